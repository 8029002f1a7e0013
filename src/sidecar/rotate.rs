//! Another password for the application's role, in every process that has it: `tandem password rotate`, and a reload that finds
//! another one in the configuration. No request fails for it; `postgres::rotation` says how that can be.
//!
//! ```text
//! second role ─> all processes log in as it ─> those of before are gone ─> new password ─> all log in with it ─> second role gone
//! ```
//!
//! Where it stops half-way the old password holds, or the new one, and the second role stays until the next try or start.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::answers::{aborted, goes_on, interrupted};
use super::orders::{Operator, RollReport, Waited};
use super::services::ServiceKind;
use super::tree_view::{ServiceView, TreeView};
use crate::config::{Loaded, Origin, PostgresMode, Settings};
use crate::control::Answer;
use crate::event_loop::within;
use crate::exit::{Code, in_words};
use crate::health::picture;
use crate::postgres::rotation::{Place, ROLE};
use crate::postgres::secret::{self, Password};
use crate::supervise::tree::Scope;

/// How long a process that was replaced may finish what it has, before the password is changed. It may open new connections
/// meanwhile.
const DRAINED_LIMIT: Duration = Duration::from_mins(10);
/// How long the password file may take to be read or written.
const FILE_LIMIT: Duration = Duration::from_secs(5);

/// Why processes were not all replaced.
pub(super) struct Stopped {
    pub answer: Answer,
    /// How many new ones serve now; `None`: that goes on.
    pub replaced: Option<usize>,
    /// Whether everything is as it was, so that what was begun is taken back.
    pub undo: bool,
}

impl Stopped {
    fn half_way(code: Code, why: String) -> Self {
        tracing::error!("password: {why}");
        Self { answer: Answer::failed(code, why), replaced: None, undo: false }
    }
}

impl Operator {
    /// Give the application's role another password of Tandem's own.
    pub(super) async fn rotate_password(&self) -> Answer {
        if let Err(answer) = self.is_serving("password rotate") {
            return answer;
        }
        if let Some(why) = given(&self.context.current().loaded()) {
            return Answer::failed(Code::Usage, why);
        }
        let changed = match secret::make() {
            Ok(new) => self.change_password(new).await,
            Err(error) => return Answer::failed(Code::Failed, in_words(&error)),
        };
        match changed {
            Ok(words) => Answer::done(words),
            Err(stopped) => stopped.answer,
        }
    }

    /// The password that `settings` ask for, where it is another one than now.
    ///
    /// # Errors
    /// The password file cannot be read.
    pub(super) async fn other_password(&self, settings: &Settings) -> anyhow::Result<Option<Password>> {
        let now = self.context.password.borrow().clone();
        if settings.postgres.mode == PostgresMode::Attach || now.is_none() {
            return Ok(None);
        }
        let (home, given) = (self.context.home.clone(), settings.postgres.password.clone());
        let read = move || secret::ensure(&home, given.as_ref());
        let wanted = within(FILE_LIMIT, "read the password file", read).await??;
        Ok(Some(wanted).filter(|wanted| now.is_none_or(|now| now.secret != wanted.secret)))
    }

    /// Replace every worker, as a reload does.
    pub(super) async fn replace_workers(&self) -> Result<Vec<String>, Stopped> {
        let began = Instant::now();
        match self.roll(Scope::All).await {
            RollReport::Done(count) => Ok(vec![format!("replaced {count} workers in {:.1?}", began.elapsed())]),
            RollReport::Aborted(why, replaced) => Err(Stopped {
                answer: Answer::failed(Code::Failed, aborted(&why, replaced)),
                replaced: Some(replaced),
                undo: replaced == 0,
            }),
            RollReport::Interrupted => Err(Stopped { answer: interrupted(), replaced: Some(0), undo: false }),
            RollReport::GoesOn(limit) => {
                Err(Stopped { answer: goes_on("the roll", limit), replaced: None, undo: false })
            }
        }
    }

    /// Let `new` be the password, for the role and for every process; what was done, in words.
    pub(super) async fn change_password(&self, new: Password) -> Result<Vec<String>, Stopped> {
        if self.rotates.replace(true) {
            let text = "another change of the password is under way; `tandem logs` shows how far".to_owned();
            return Err(Stopped { answer: Answer::failed(Code::Temporary, text), replaced: Some(0), undo: true });
        }
        let changed = self.take_turns(new).await;
        self.rotates.set(false);
        changed
    }

    async fn take_turns(&self, new: Password) -> Result<Vec<String>, Stopped> {
        let began = Instant::now();
        let (url, user) = (self.context.url(), self.context.settings().postgres.user.clone());
        let place = Place { home: self.context.home.clone(), port: url.port, user, database: url.database };
        let user = &place.user;
        let old = self.context.password.borrow().clone();
        self.begin_turn(&place).await?;
        tracing::info!("password: all processes change over to role {ROLE}, which acts as {user}");
        let before = self.processes();
        if let Err(stopped) = self.replace_all().await {
            // Whatever starts from now on has the password that holds, and so does the probe.
            if let Some(old) = &old {
                self.context.log_in_as(user, &old.secret);
                self.let_hold();
            }
            if stopped.undo {
                self.end_turn(&place).await;
            }
            return Err(stopped);
        }
        if let Err(still) = self.wait_gone(&before).await {
            let text = format!(
                "{still} after {DRAINED_LIMIT:?}: it may open new connections, so the old password of {user} holds, and the \
                 others work as {ROLE}; ask again when it has ended (`tandem status`)"
            );
            return Err(Stopped::half_way(Code::Temporary, text));
        }
        if let Err(error) = self.give(&place, &new, old.as_ref()).await {
            let text = format!("{}; the old password of {user} holds, and workers go on as {ROLE}", in_words(&error));
            return Err(Stopped::half_way(Code::Failed, text));
        }
        tracing::info!("password: {user} has the new one, and all processes change over to it");
        self.context.log_in_as(user, &new.secret);
        *self.context.password.borrow_mut() = Some(new);
        self.let_hold();
        let before = self.processes();
        if let Err(stopped) = self.replace_all().await {
            let why = stopped.answer.words.join("\n");
            let text = format!("{why}\n{user} has the new password; workers that are there go on as {ROLE}");
            return Err(Stopped { undo: false, ..Stopped::half_way(Code::Failed, text) });
        }
        let mut words =
            vec![format!("{user} has a new password, and every process with it, after {:.1?}", began.elapsed())];
        match self.wait_gone(&before).await {
            Ok(()) => self.end_turn(&place).await,
            Err(still) => {
                words.push(format!("{still} as {ROLE}: the next change, or the next start, removes that role"))
            }
        }
        words.iter().for_each(|line| tracing::info!("password: {line}"));
        Ok(words)
    }

    /// Let processes that start from now on log in as the second role: the one of a change that stopped half-way, which some
    /// may still use, or a new one.
    async fn begin_turn(&self, place: &Place) -> Result<(), Stopped> {
        let kept = self.second.borrow().clone();
        let second = match kept {
            Some(second) => Ok(second),
            None => match secret::make() {
                Ok(second) => place.begin(&second).await.map(|()| second),
                Err(error) => Err(error),
            },
        };
        let second = second.map_err(|error| {
            let answer = Answer::failed(Code::Failed, format!("{}\nnothing was changed", in_words(&error)));
            Stopped { answer, replaced: Some(0), undo: true }
        })?;
        *self.second.borrow_mut() = Some(second.clone());
        self.context.log_in_as(ROLE, &second.secret);
        self.let_hold();
        Ok(())
    }

    /// Remove the second role, which nothing uses any more.
    async fn end_turn(&self, place: &Place) {
        match place.end().await {
            Ok(()) => *self.second.borrow_mut() = None,
            Err(error) => tracing::warn!("password: role {ROLE} stays until the next start: {}", in_words(&error)),
        }
    }

    /// Keep the password where it is Tandem's own, then let it hold: what is kept is what the next start gives the role,
    /// whenever this one ends.
    async fn give(&self, place: &Place, new: &Password, old: Option<&Password>) -> anyhow::Result<()> {
        let keep = async |password: &Password| {
            let (home, password) = (place.home.clone(), password.clone());
            let keep = move || secret::keep(&home, &password);
            within(FILE_LIMIT, "write the password file", keep).await?
        };
        if new.generated {
            keep(new).await?;
        }
        let Err(error) = place.give(new).await else { return Ok(()) };
        if let Some(old) = old.filter(|old| old.generated && new.generated) {
            keep(old).await?;
        }
        Err(error)
    }

    /// Replace every worker, new before old, and start the processes beside them again.
    async fn replace_all(&self) -> Result<(), Stopped> {
        self.replace_workers().await?;
        let companions: Vec<ServiceView> =
            self.tree.borrow().standing().filter(|it| is_companion(it)).cloned().collect();
        for companion in companions {
            let answer = self.restart_in_place(&companion).await;
            if !answer.is_done() {
                return Err(Stopped { answer, replaced: None, undo: false });
            }
        }
        Ok(())
    }

    /// The processes that have the address of the database.
    fn processes(&self) -> BTreeSet<i32> {
        let tree = self.tree.borrow();
        let all = tree.services.iter().filter(|service| service.kind != Some(ServiceKind::Postgres));
        all.filter_map(|service| service.pid).collect()
    }

    /// Wait until none of the processes `before` is left.
    ///
    /// # Errors
    /// Which one is, and what it does.
    async fn wait_gone(&self, before: &BTreeSet<i32>) -> Result<(), String> {
        let left = |tree: &TreeView| {
            let has_one = |service: &&ServiceView| service.pid.is_some_and(|pid| before.contains(&pid));
            tree.services.iter().find(has_one).cloned()
        };
        if left(&self.tree.borrow()).is_none() {
            return Ok(());
        }
        let gone = self.wait(DRAINED_LIMIT, |tree| left(tree).is_none().then_some(()));
        if let Waited::For(()) = gone.await {
            return Ok(());
        }
        let Some(service) = left(&self.tree.borrow()) else { return Ok(()) };
        let pid = service.pid.unwrap_or_default();
        let does = self.roster.unfinished(pid).map(|it| picture::in_words(&it)).unwrap_or_else(|| "what it has".into());
        Err(format!("{} (process {pid}) was replaced and still finishes {does}", service.name))
    }
}

fn is_companion(service: &ServiceView) -> bool {
    service.kind == Some(ServiceKind::Companion)
}

/// Why Tandem cannot choose the password, and what to do instead, where it was given.
pub fn given(loaded: &Loaded) -> Option<String> {
    let postgres = &loaded.settings.postgres;
    if postgres.mode == PostgresMode::Attach {
        return Some(format!(
            "the server is run by somebody else, and so is the password of {}: change it there (ALTER ROLE … PASSWORD), \
             then where this configuration has it, and restart Tandem",
            postgres.url.as_ref().map_or(&postgres.user, |url| &url.user)
        ));
    }
    postgres.password.as_ref()?;
    let of = |key: &str| loaded.origins.get(key).unwrap_or(&Origin::Default);
    let (origin, of_file) = (of("postgres.password"), of("postgres.password_file"));
    let is_file = of_file == origin && *origin != Origin::Default;
    let name = if is_file { origin.name_of("postgres.password_file") } else { origin.name_of("postgres.password") };
    let way = match origin {
        _ if is_file => "write the new one into that file, then `tandem reload`: it takes the new one over".to_owned(),
        Origin::Environment(_) | Origin::Flag(_) => {
            "set the new one there and restart Tandem; from a file (POSTGRES_PASSWORD_FILE, postgres.password_file) a \
             reload takes it over without a restart"
                .to_owned()
        }
        _ => "write the new one there, then `tandem reload`: it takes the new one over".to_owned(),
    };
    Some(format!("the password is not Tandem's to choose, {name} ({}) gives it: {way}", origin.place()))
}
