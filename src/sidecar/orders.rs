//! Carries out what people ask of a running Tandem: through the control socket, by signal, or by saving a file.
//!
//! Each order becomes events for the tree, and its answer is told when the tree has come to an end with it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

use super::answers::{aborted, goes_on, interrupted, may_scale, nothing_changed, told};
use super::context::{Context, Reread};
use super::jobs;
use super::services::ServiceKind;
use super::tree_view::{ServiceView, TreeView};
use crate::boot::{self, Step};
use crate::config::Settings;
use crate::control::{Answer, Ask, Order, ScaleTo};
use crate::event_loop::{self, within};
use crate::exit::Code;
use crate::postgres::secret::Password;
use crate::supervise::state::ChildEvent;
use crate::supervise::tree::{RollId, Scope, ServiceId, TreeEvent};
use crate::systemd::Upstream;
use crate::workers::environment;
use crate::workers::launch::Launch;
use crate::workers::life::{Roster, WhyReplaced};

/// How long a look at the requirements may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// What an order gets beyond the limits of what it asks for: the supervisor has other things to do too.
const ORDER_MARGIN: Duration = Duration::from_secs(30);

/// How a roll ended, in words where it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RollReport {
    /// So many were replaced.
    Done(usize),
    /// Why, and how many were replaced before.
    Aborted(String, usize),
    Interrupted,
    /// It goes on after this limit.
    GoesOn(Duration),
}

/// Gives the tree the orders of people.
pub struct Operator {
    pub(super) context: Rc<Context>,
    steps: Vec<Step>,
    events: UnboundedSender<TreeEvent>,
    pub(super) tree: watch::Sender<TreeView>,
    /// What new workers are started with.
    launch: Rc<RefCell<Option<Rc<Launch>>>>,
    pub(super) roster: Roster,
    pub(super) upstream: Rc<Upstream>,
    rolls: Cell<u64>,
    /// Whether a deployment is under way.
    pub(super) deploys: Cell<bool>,
    /// Whether the password is being changed.
    pub(super) rotates: Cell<bool>,
    /// The password of the second role, while there is one.
    pub(super) second: RefCell<Option<Password>>,
    waiting: RefCell<HashMap<RollId, oneshot::Sender<RollReport>>>,
}

impl Operator {
    pub fn new(
        context: Rc<Context>,
        steps: Vec<Step>,
        events: UnboundedSender<TreeEvent>,
        launch: Rc<RefCell<Option<Rc<Launch>>>>,
        roster: Roster,
        upstream: Rc<Upstream>,
    ) -> Self {
        let (rolls, waiting, tree) = (Cell::new(0), RefCell::default(), watch::Sender::new(TreeView::default()));
        let (deploys, rotates, second) = (Cell::new(false), Cell::new(false), RefCell::default());
        Self { context, steps, events, tree, launch, roster, upstream, rolls, deploys, rotates, second, waiting }
    }

    /// See the tree after a step.
    pub fn see(&self, tree: TreeView) {
        self.tree.send_replace(tree);
    }

    /// Hear how a roll ended.
    pub fn hear(&self, id: RollId, report: RollReport) {
        match &report {
            RollReport::Aborted(why, _) => {
                // The rest of it, a traceback or last lines, is in the log already.
                let why = why.lines().next().unwrap_or_default().trim_end_matches(':');
                tracing::error!("the roll is given up, the workers that are there serve on: {why}");
            }
            RollReport::Done(_) | RollReport::Interrupted | RollReport::GoesOn(_) => {}
        }
        if let Some(waiting) = self.waiting.borrow_mut().remove(&id) {
            let _ = waiting.send(report);
        }
    }

    /// Answer each of `asks`, for ever, none waiting for another.
    pub async fn carry_out(self: Rc<Self>, mut asks: UnboundedReceiver<Ask>) {
        while let Some(Ask { order, answer }) = asks.recv().await {
            let operator = self.clone();
            event_loop::spawn("an order", async move {
                // The client may have gone; the order is carried out all the same.
                let _ = answer.send(operator.obey(order).await);
            });
        }
    }

    /// Carry out an order whose answer goes to the log, such as a signal's.
    pub fn in_background(self: Rc<Self>, order: Order) {
        event_loop::spawn("an order by signal", async move {
            let answer = self.obey(order).await;
            // What came before it, and what went wrong, was logged as it came.
            if let Some(last) = answer.words.last().filter(|_| answer.is_done()) {
                tracing::info!("{last}");
            }
        });
    }

    async fn obey(&self, order: Order) -> Answer {
        match order {
            Order::Stop => self.stop(),
            Order::Reload => self.reload().await,
            Order::Deploy { dry_run } => self.deploy(dry_run).await,
            Order::Restart { service } => self.restart(&service).await,
            Order::Scale(to) => self.scale(to).await,
            Order::RotatePassword => self.rotate_password().await,
        }
    }

    fn stop(&self) -> Answer {
        match self.events.send(TreeEvent::Stop) {
            Ok(()) => Answer::begun(vec!["stopping".into()], self.stop_limit()),
            Err(_) => Answer::failed(Code::Temporary, "it is ending already"),
        }
    }

    /// How long a stop may take from here.
    fn stop_limit(&self) -> Duration {
        let planned = boot::plan(&self.context.settings(), &self.steps, self.context.reload).stop_sum().total();
        self.tree.borrow().stop_limit.max(planned)
    }

    /// Read the configuration again, let what changed hold, and replace every worker.
    pub async fn reload(&self) -> Answer {
        let _reloading = self.upstream.reloading();
        let reading = match self.read_again("reload").await {
            Ok(reading) => reading,
            Err(answer) => return answer,
        };
        let settings = reading.current.settings();
        let (python, home, dir) =
            (settings.python.clone(), self.context.home.state.clone(), settings.directory.clone());
        let look = move || environment::changed(&python, &home, &dir);
        let changed = within(LOOK_LIMIT, "look at the requirements", look).await.ok().and_then(Result::ok).flatten();
        let mut answer = self.adopt(reading).await.0;
        if let Some(file) = changed {
            let text = format!(
                "{} has changed since the Python environment was made from it: `tandem deploy` installs what it says now, a \
                 reload does not",
                file.display()
            );
            tracing::warn!("reload: {text}");
            answer.words.insert(0, text);
        }
        answer
    }

    /// The configuration as it is now, if Tandem can go on with it; else the answer for the order `what`.
    pub(super) async fn read_again(&self, what: &str) -> Result<Reread, Answer> {
        self.is_serving(what)?;
        let reading = self.context.read_again().await.map_err(|error| nothing_changed(what, &error))?;
        let settings = reading.current.settings();
        may_scale(&settings, settings.workers.count).map_err(|why| {
            let text = format!("{} workers, as there are: {why}\nnothing was changed", settings.workers.count);
            tracing::error!("{what}: {text}");
            Answer::failed(Code::Config, text)
        })?;
        Ok(reading)
    }

    /// Let what `reading` changed hold, and replace every worker. Also, how many new workers a roll that failed leaves.
    pub(super) async fn adopt(&self, mut reading: Reread) -> (Answer, Option<usize>) {
        // In the environment that new workers are started in.
        let verdict = match jobs::check_serving(&self.context, &reading.current.loaded()).await {
            Ok(verdict) => verdict,
            Err(error) => return (nothing_changed("reload", &error), Some(0)),
        };
        reading.notices.extend(verdict.notices);
        let password = match self.other_password(&reading.current.settings()).await {
            Ok(password) => password,
            Err(error) => return (nothing_changed("reload", &error), Some(0)),
        };
        let certificate = match self.look_at_certificate(&reading.current).await {
            Ok(certificate) => certificate,
            Err(error) => return (nothing_changed("reload", &error), Some(0)),
        };
        reading.notices.extend(certificate.iter().flat_map(|certificate| certificate.notices.clone()));
        let served = match certificate {
            Some(certificate) => self.serve_certificate(certificate).await,
            None => Ok(None),
        };
        let served = match served {
            Ok(served) => served,
            Err(error) => return (nothing_changed("reload", &error), Some(0)),
        };
        let mut words = told(&reading);
        words.extend(served);
        words.iter().for_each(|line| tracing::info!("reload: {line}"));
        let scaled = reading.live.iter().any(|key| key == "workers.count");
        let before = self.context.adopt(reading.current);
        let certificate_before = self.context.certificate.replace(verdict.not_after);
        let settings = self.let_hold();
        if scaled {
            let _ = self.events.send(TreeEvent::Scale(settings.workers.count as usize));
        }
        let replaced = match password {
            None => self.replace_workers().await,
            Some(new) => self.change_password(new).await,
        };
        match replaced {
            Ok(done) => {
                words.extend(done);
                (Answer::done(words), None)
            }
            Err(stopped) => {
                if stopped.undo && Rc::ptr_eq(&settings, &self.context.settings()) {
                    self.context.adopt(before);
                    self.context.certificate.set(certificate_before);
                    let old = self.let_hold();
                    let _ = self.events.send(TreeEvent::Scale(old.workers.count as usize));
                }
                (stopped.answer, stopped.replaced)
            }
        }
    }

    /// Start new workers, and treat all of them, as the settings say that hold now.
    pub(super) fn let_hold(&self) -> Rc<Settings> {
        let settings = self.context.settings();
        let launch =
            self.launch.borrow().as_ref().map(|launch| Rc::new(launch.with(settings.clone(), self.context.url())));
        *self.launch.borrow_mut() = launch;
        let _ = self.events.send(TreeEvent::Replan(Box::new(boot::plan(&settings, &self.steps, self.context.reload))));
        settings
    }

    /// Replace one worker, and do not wait for it.
    pub fn recycle(&self, id: ServiceId) {
        let _ = self.events.send(TreeEvent::Roll(self.next_roll(), Scope::One(id)));
    }

    /// End a worker that was replaced, with the grace of a stop for the requests that it still has.
    pub fn cut(&self, id: ServiceId) {
        let _ = self.events.send(TreeEvent::Service(id, ChildEvent::Stop));
    }

    pub(super) fn tell(&self, event: TreeEvent) {
        let _ = self.events.send(event);
    }

    pub(super) async fn roll(&self, scope: Scope) -> RollReport {
        let (sender, report) = oneshot::channel();
        let id = self.next_roll();
        self.waiting.borrow_mut().insert(id, sender);
        let _ = self.events.send(TreeEvent::Roll(id, scope));
        let limit = self.roll_limit();
        match timeout(limit, report).await {
            Ok(report) => report.unwrap_or(RollReport::Interrupted),
            Err(_) => {
                self.waiting.borrow_mut().remove(&id);
                RollReport::GoesOn(limit)
            }
        }
    }

    /// The longest that a roll takes which waits for another one: twice the template and every worker, one after another,
    /// each with its start, its drain and its stop.
    fn roll_limit(&self) -> Duration {
        let workers = &self.context.settings().workers;
        let one = self.tree.borrow().workers().map(|worker| worker.restart_limit).max().unwrap_or_default();
        let count = workers.count.saturating_add(1).saturating_mul(2);
        one.saturating_add(workers.drain).saturating_mul(count).saturating_add(ORDER_MARGIN)
    }

    fn next_roll(&self) -> RollId {
        self.rolls.set(self.rolls.get() + 1);
        RollId(self.rolls.get())
    }

    async fn restart(&self, name: &str) -> Answer {
        if let Err(answer) = self.is_serving("restart") {
            return answer;
        }
        let found = self.tree.borrow().standing().find(|service| service.name == name).cloned();
        match found {
            _ if name == "workers" => self.restart_workers(Scope::All).await,
            Some(worker) if worker.kind == Some(ServiceKind::Worker) => {
                self.roster
                    .lives()
                    .iter()
                    .filter(|life| life.service() == worker.id)
                    .for_each(|life| life.note_replacement(WhyReplaced::Restart, "restart asked for".into()));
                self.restart_workers(Scope::One(worker.id)).await
            }
            Some(service) => self.restart_in_place(&service).await,
            None => Answer::failed(Code::Usage, self.unknown(name)),
        }
    }

    async fn restart_workers(&self, scope: Scope) -> Answer {
        let began = Instant::now();
        match self.roll(scope).await {
            RollReport::Done(count) => {
                Answer::done(vec![format!("replaced {count} workers in {:.1?}", began.elapsed())])
            }
            RollReport::Aborted(why, replaced) => Answer::failed(Code::Failed, aborted(&why, replaced)),
            RollReport::Interrupted => interrupted(),
            RollReport::GoesOn(limit) => goes_on("the roll", limit),
        }
    }

    /// End a service and start it again: it cannot be there twice.
    pub(super) async fn restart_in_place(&self, service: &ServiceView) -> Answer {
        let (began, name) = (Instant::now(), &service.name);
        tracing::info!({ service.name = %name }, "restart asked for");
        let _ = self.events.send(TreeEvent::Service(service.id, ChildEvent::Restart));
        let limit = service.restart_limit.saturating_add(ORDER_MARGIN);
        let ended = self.wait(limit, |tree| match tree.of_id(service.id) {
            Some(now) if now.is_abandoned() => {
                let why = now.last_reason.clone().unwrap_or_default();
                Some(Err(format!("{why}; it is started again once that process is gone")))
            }
            Some(now) if now.is_ready() && now.pid != service.pid => Some(Ok(())),
            // A planned end counts as no failure.
            Some(now) if now.failed.is_some() && now.failed != service.failed => {
                Some(Err(now.last_reason.clone().unwrap_or_else(|| "it could not be started".into())))
            }
            Some(_) => None,
            None => Some(Err("it is gone".into())),
        });
        match ended.await {
            Waited::For(Ok(())) => Answer::done(vec![format!("restarted {name} in {:.1?}", began.elapsed())]),
            Waited::For(Err(why)) => Answer::failed(Code::Failed, format!("{name} does not start again: {why}")),
            Waited::Interrupted => interrupted(),
            Waited::Limit => goes_on(&format!("the restart of {name}"), limit),
        }
    }

    /// Let there be more or fewer workers.
    pub async fn scale(&self, to: ScaleTo) -> Answer {
        if let Err(answer) = self.is_serving("scale") {
            return answer;
        }
        let now = u32::try_from(self.tree.borrow().workers().count()).unwrap_or(u32::MAX);
        let wanted = match to {
            ScaleTo::To(count) => count,
            ScaleTo::By(by) => now.saturating_add_signed(by),
        };
        if let Err(why) = may_scale(&self.context.settings(), wanted) {
            tracing::warn!("scale to {wanted}: {why}");
            return Answer::failed(Code::Usage, format!("scale to {wanted}: {why}"));
        }
        tracing::info!("scale from {now} to {wanted} workers");
        self.context.set_worker_count(wanted);
        self.let_hold();
        let _ = self.events.send(TreeEvent::Scale(wanted as usize));
        let began = Instant::now();
        let limit = self.roll_limit();
        let reached = self.wait(limit, |tree| {
            let workers: Vec<_> = tree.workers().collect();
            if workers.len() != wanted as usize {
                return None;
            }
            if let Some(failed) = workers.iter().find(|worker| worker.has_failed()) {
                let why = failed.last_reason.clone().unwrap_or_else(|| "it could not be started".into());
                return Some(Err(format!("{} does not get ready: {why}", failed.name)));
            }
            workers.iter().all(|worker| worker.is_ready()).then_some(Ok(()))
        });
        match reached.await {
            Waited::For(Ok(())) => {
                Answer::done(vec![format!("{now} workers before, {wanted} now, after {:.1?}", began.elapsed())])
            }
            Waited::For(Err(why)) => {
                let text = format!("{why}\nit is tried again; `tandem scale {now}` takes the new ones back");
                Answer::failed(Code::Failed, text)
            }
            Waited::Interrupted => interrupted(),
            Waited::Limit => goes_on(&format!("the change to {wanted} workers"), limit),
        }
    }

    /// Wait until `judge` has come to something, at most for `limit`.
    pub(super) async fn wait<T>(&self, limit: Duration, judge: impl Fn(&TreeView) -> Option<T>) -> Waited<T> {
        let mut tree = self.tree.subscribe();
        let judged = async {
            // What there is now may not have heard of the order yet.
            while tree.changed().await.is_ok() {
                let now = tree.borrow_and_update();
                if let Some(found) = judge(&now) {
                    return Waited::For(found);
                }
                if !now.serving {
                    return Waited::Interrupted;
                }
            }
            Waited::Interrupted
        };
        timeout(limit, judged).await.unwrap_or(Waited::Limit)
    }

    pub(super) fn is_serving(&self, what: &str) -> Result<(), Answer> {
        let tree = self.tree.borrow();
        if tree.serving {
            return Ok(());
        }
        let text = format!("{what}: Tandem is {} and does not serve; ask again when it does", tree.phase);
        tracing::warn!("{text}");
        Err(Answer::failed(Code::Temporary, text))
    }

    fn unknown(&self, name: &str) -> String {
        let tree = self.tree.borrow();
        let names: Vec<&str> = tree.standing().map(|service| service.name.as_str()).collect();
        format!("there is no service {name:?}; there are workers (all of them), {}", names.join(", "))
    }
}

/// How a wait for the tree ended.
pub(super) enum Waited<T> {
    For(T),
    /// A stop came first.
    Interrupted,
    /// The limit passed first.
    Limit,
}
