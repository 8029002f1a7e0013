//! Carries out what people ask of a running Tandem: through the control socket, by signal, or by saving a file.
//!
//! Each order becomes events for the tree, and its answer is told when the tree has come to an end with it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::context::{Context, Reread};
use super::known::{Known, KnownService};
use super::{Step, plan};
use crate::config::Settings;
use crate::control::{Answer, Ask, Order, ScaleTo};
use crate::event_loop::{self, Hangs, within};
use crate::exit::{Code, in_words};
use crate::supervise::state;
use crate::supervise::tree::{Event, RollId, Scope, ServiceId};
use crate::systemd::Upstream;
use crate::watch::Watch;
use crate::workers::launch::Launch;
use crate::workers::life::Roster;

/// How long the removal of byte code may take.
const BYTE_CODE_LIMIT: Duration = Duration::from_secs(2);

/// How a roll ended, in words where it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// So many were replaced.
    Done(usize),
    /// Why, and how many were replaced before.
    Aborted(String, usize),
    Interrupted,
}

/// Who gives the tree its orders.
pub struct Operator {
    context: Rc<Context>,
    steps: Vec<Step>,
    events: UnboundedSender<Event>,
    known: watch::Sender<Known>,
    /// What new workers are started with.
    launch: Rc<RefCell<Option<Rc<Launch>>>>,
    roster: Roster,
    upstream: Rc<Upstream>,
    rolls: Cell<u64>,
    waiting: RefCell<HashMap<RollId, oneshot::Sender<Report>>>,
}

impl Operator {
    pub fn new(
        context: Rc<Context>,
        steps: Vec<Step>,
        events: UnboundedSender<Event>,
        launch: Rc<RefCell<Option<Rc<Launch>>>>,
        roster: Roster,
        upstream: Rc<Upstream>,
    ) -> Self {
        let (rolls, waiting, known) = (Cell::new(0), RefCell::default(), watch::Sender::new(Known::default()));
        Self { context, steps, events, known, launch, roster, upstream, rolls, waiting }
    }

    /// See the tree after a step.
    pub fn see(&self, known: Known) {
        self.known.send_replace(known);
    }

    /// Hear how a roll ended.
    pub fn hear(&self, id: RollId, report: Report) {
        match &report {
            Report::Aborted(why, _) => {
                // The rest of it, a traceback or last lines, is in the log already.
                let why = why.lines().next().unwrap_or_default().trim_end_matches(':');
                tracing::error!("the roll is given up, the workers that are there serve on: {why}");
            }
            Report::Done(_) | Report::Interrupted => {}
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
                // Whoever asked may have gone: what was asked for happens all the same.
                let _ = answer.send(operator.obey(order).await);
            });
        }
    }

    /// Carry out an order that nobody waits for, such as a signal's: the log has its answer.
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
            Order::Restart { service } => self.restart(&service).await,
            Order::Scale(to) => self.scale(to).await,
        }
    }

    fn stop(&self) -> Answer {
        match self.events.send(Event::Stop) {
            Ok(()) => Answer::done(vec!["stopping".into()]),
            Err(_) => Answer::failed(Code::Temporary, "it is ending already"),
        }
    }

    /// Read the configuration again, let what changed hold, and replace every worker.
    pub async fn reload(&self) -> Answer {
        if let Err(answer) = self.is_serving("reload") {
            return answer;
        }
        let _reloading = self.upstream.reloading();
        let reading = match self.context.read_again().await {
            Ok(reading) => reading,
            Err(error) => {
                let text = format!("{}\nnothing was changed: Tandem goes on as before", in_words(&error));
                tracing::error!("reload: {text}");
                let code = if error.is::<Hangs>() { Code::Temporary } else { Code::Config };
                return Answer::failed(code, text);
            }
        };
        let settings = reading.current.settings();
        if let Err(why) = may_scale(&settings, settings.workers.count) {
            let text = format!("{} workers, as there are: {why}\nnothing was changed", settings.workers.count);
            tracing::error!("reload: {text}");
            return Answer::failed(Code::Config, text);
        }
        let mut words = told(&reading);
        words.iter().for_each(|line| tracing::info!("reload: {line}"));
        let scaled = reading.live.iter().any(|key| key == "workers.count");
        let before = self.context.adopt(reading.current);
        let settings = self.let_hold();
        if scaled {
            let _ = self.events.send(Event::Scale(settings.workers.count as usize));
        }
        let began = Instant::now();
        match self.roll(Scope::All).await {
            Report::Done(count) => {
                words.push(format!("replaced {count} workers in {:.1?}", began.elapsed()));
                Answer::done(words)
            }
            Report::Aborted(why, replaced) => {
                if replaced == 0 && Rc::ptr_eq(&settings, &self.context.settings()) {
                    self.context.adopt(before);
                    let old = self.let_hold();
                    let _ = self.events.send(Event::Scale(old.workers.count as usize));
                }
                Answer::failed(Code::Failed, aborted(&why, replaced))
            }
            Report::Interrupted => interrupted(),
        }
    }

    /// Start new workers, and treat all of them, as the settings say that hold now.
    fn let_hold(&self) -> Rc<Settings> {
        let settings = self.context.settings();
        let launch = self.launch.borrow().as_ref().map(|launch| Rc::new(launch.with(settings.clone())));
        *self.launch.borrow_mut() = launch;
        let _ = self.events.send(Event::Replan(Box::new(plan(&settings, &self.steps, self.context.reload))));
        settings
    }

    /// Replace every worker whenever sources are saved, for ever. What is saved meanwhile is one more change.
    pub async fn follow(self: Rc<Self>, mut sources: Watch) {
        while let Some(changed) = sources.next().await {
            let what = match &changed[..] {
                [one] => one.strip_prefix(sources.root()).unwrap_or(one).display().to_string(),
                more => format!("{} files", more.len()),
            };
            tracing::info!("{what} changed: the workers are replaced");
            let sources = changed.clone();
            let forget = move || sources.iter().for_each(|source| forget_byte_code(source));
            // What cannot be removed is compiled anew when its source is a second older.
            let _ = within(BYTE_CODE_LIMIT, "remove the byte code of changed sources", forget).await;
            self.roster.lives().iter().for_each(|life| life.note(format!("{what} changed")));
            let began = Instant::now();
            if let Report::Done(count) = self.roll(Scope::All).await {
                tracing::info!("replaced {count} workers in {:.1?}", began.elapsed());
            }
        }
    }

    /// Replace one worker; nobody waits for it.
    pub fn recycle(&self, id: ServiceId) {
        let _ = self.events.send(Event::Roll(self.next_roll(), Scope::One(id)));
    }

    async fn roll(&self, scope: Scope) -> Report {
        let (sender, report) = oneshot::channel();
        let id = self.next_roll();
        self.waiting.borrow_mut().insert(id, sender);
        let _ = self.events.send(Event::Roll(id, scope));
        report.await.unwrap_or(Report::Interrupted)
    }

    fn next_roll(&self) -> RollId {
        self.rolls.set(self.rolls.get() + 1);
        RollId(self.rolls.get())
    }

    async fn restart(&self, name: &str) -> Answer {
        if let Err(answer) = self.is_serving("restart") {
            return answer;
        }
        let found = self.known.borrow().standing().find(|service| service.name == name).cloned();
        match found {
            _ if name == "workers" => self.restart_workers(Scope::All).await,
            Some(worker) if worker.kind == "worker" => {
                self.roster
                    .lives()
                    .iter()
                    .filter(|life| life.service() == worker.id)
                    .for_each(|life| life.note("restart asked for".into()));
                self.restart_workers(Scope::One(worker.id)).await
            }
            Some(service) => self.restart_in_place(&service).await,
            None => Answer::failed(Code::Usage, self.unknown(name)),
        }
    }

    async fn restart_workers(&self, scope: Scope) -> Answer {
        let began = Instant::now();
        match self.roll(scope).await {
            Report::Done(count) => Answer::done(vec![format!("replaced {count} workers in {:.1?}", began.elapsed())]),
            Report::Aborted(why, replaced) => Answer::failed(Code::Failed, aborted(&why, replaced)),
            Report::Interrupted => interrupted(),
        }
    }

    /// End a service and start it again: it cannot be there twice.
    async fn restart_in_place(&self, service: &KnownService) -> Answer {
        let (began, name) = (Instant::now(), &service.name);
        tracing::info!({ service.name = %name }, "restart asked for");
        let _ = self.events.send(Event::Service(service.id, state::Event::Restart));
        let ended = self.wait(|known| match known.of_id(service.id) {
            Some(now) if now.is_ready() && now.pid != service.pid => Some(Ok(())),
            // A planned end counts as no failure.
            Some(now) if now.failed.is_some() && now.failed != service.failed => {
                Some(Err(now.last_reason.clone().unwrap_or_else(|| "it could not be started".into())))
            }
            Some(_) => None,
            None => Some(Err("it is gone".into())),
        });
        match ended.await {
            Some(Ok(())) => Answer::done(vec![format!("restarted {name} in {:.1?}", began.elapsed())]),
            Some(Err(why)) => Answer::failed(Code::Failed, format!("{name} does not start again: {why}")),
            None => interrupted(),
        }
    }

    /// Let there be more or fewer workers.
    pub async fn scale(&self, to: ScaleTo) -> Answer {
        if let Err(answer) = self.is_serving("scale") {
            return answer;
        }
        let now = u32::try_from(self.known.borrow().workers().count()).unwrap_or(u32::MAX);
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
        let _ = self.events.send(Event::Scale(wanted as usize));
        let began = Instant::now();
        let reached = self.wait(|known| {
            let workers: Vec<_> = known.workers().collect();
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
            Some(Ok(())) => {
                Answer::done(vec![format!("{now} workers before, {wanted} now, after {:.1?}", began.elapsed())])
            }
            Some(Err(why)) => {
                let text = format!("{why}\nit is tried again; `tandem scale {now}` takes the new ones back");
                Answer::failed(Code::Failed, text)
            }
            None => interrupted(),
        }
    }

    /// Wait until `judge` has come to something; `None` when a stop comes first.
    async fn wait<T>(&self, judge: impl Fn(&Known) -> Option<T>) -> Option<T> {
        let mut known = self.known.subscribe();
        // What there is now may not have heard of the order yet.
        known.changed().await.ok()?;
        loop {
            {
                let now = known.borrow_and_update();
                if let Some(found) = judge(&now) {
                    return Some(found);
                }
                if !now.serving {
                    return None;
                }
            }
            known.changed().await.ok()?;
        }
    }

    fn is_serving(&self, what: &str) -> Result<(), Answer> {
        let known = self.known.borrow();
        if known.serving {
            return Ok(());
        }
        let text = format!("{what}: Tandem is {} and does not serve; ask again when it does", known.phase);
        tracing::warn!("{text}");
        Err(Answer::failed(Code::Temporary, text))
    }

    fn unknown(&self, name: &str) -> String {
        let known = self.known.borrow();
        let names: Vec<&str> = known.standing().map(|service| service.name.as_str()).collect();
        format!("there is no service {name:?}; there are workers (all of them), {}", names.join(", "))
    }
}

/// Whether there may be `wanted` workers.
fn may_scale(settings: &Settings, wanted: u32) -> Result<(), String> {
    if wanted == 0 {
        return Err("no worker would be left to answer; `tandem stop` stops everything".into());
    }
    let most = settings.health.workers_min;
    if wanted < most {
        return Err(format!("health.workers_min asks for at least {most} ready workers"));
    }
    let budget = crate::plan::Budget { workers: wanted, ..settings.budget() };
    match budget.check() {
        Err(over) if settings.postgres.mode == crate::config::PostgresMode::Managed => {
            let later = budget.connections_for(settings.memory);
            if settings.postgres.max_connections_auto && u64::from(later) >= budget.total() {
                return Err(format!(
                    "{over} since the start: with workers.count = {wanted} in the configuration a restart of Tandem makes \
                     it {later}; or {}",
                    over.help()
                ));
            }
            Err(format!("{over}: {}", over.help()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What became of each key that changed.
fn told(reading: &Reread) -> Vec<String> {
    let lines = [
        ("holds at once", &reading.live),
        ("holds in the workers that come now", &reading.rolled),
        ("holds only after a restart of Tandem", &reading.restart),
    ];
    let told = lines.into_iter().filter(|(_, keys)| !keys.is_empty());
    let told = told.map(|(what, keys)| format!("{}: {what}", keys.join(", ")));
    told.chain(reading.notices.iter().cloned()).collect()
}

fn aborted(why: &str, replaced: usize) -> String {
    let before = match replaced {
        0 => "the workers that were there serve on".to_owned(),
        count => format!("{count} were replaced before, the others that were there serve on"),
    };
    format!("{why}\n{before}")
}

fn interrupted() -> Answer {
    Answer::failed(Code::Temporary, "a stop came first")
}

/// Remove what Python compiled from `source`: it takes that for new when size and second of the source are the same, which
/// two saves in a row can be.
fn forget_byte_code(source: &Path) {
    let (Some(dir), Some(stem)) = (source.parent(), source.file_stem().and_then(OsStr::to_str)) else { return };
    let starts = format!("{stem}.");
    // Blocks: called by `within`.
    for entry in std::fs::read_dir(dir.join("__pycache__")).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&starts) && name.ends_with(".pyc")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
