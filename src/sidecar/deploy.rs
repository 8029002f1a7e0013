//! `tandem deploy`: new requirements, migrations and new workers, in that order, into a Tandem that serves.
//!
//! `plan::deployment` decides the steps and what holds when one fails; here they are taken. Until the roll nothing that
//! serves is touched.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::context::{Context, Reread};
use super::counting;
use super::jobs::{LockedOut, migration_command, run_migrations, with_import_help};
use super::migration_run;
use super::orders::Operator;
use crate::backup::pitr::marks;
use crate::config::{MigrationRun, Settings};
use crate::control::Answer;
use crate::event_loop::{elsewhere, within};
use crate::exit::{Code, code_of, in_words, sql_state};
use crate::plan::deployment::{self, Findings, Step};
use crate::plan::in_one_line;
use crate::schema::{self, sql_files};
use crate::supervise::tree::TreeEvent;
use crate::workers::environment::{self, Next};
use crate::workers::surroundings::Surroundings;

/// How long a look at the requirements may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// How long a mark may take: a server, and a file in an archive that may be elsewhere.
const MARK_LIMIT: Duration = Duration::from_secs(30);
/// The longest pause before migrations that did not get a lock are tried again: those that waited behind them go first.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// The SQLSTATE lock_not_available.
const LOCK_NOT_AVAILABLE: &str = "55P03";

impl Operator {
    /// Take up what lies on the disk now: requirements, migrations, code. With `dry_run` only say what that would be.
    pub(super) async fn deploy(&self, dry_run: bool) -> Answer {
        if !dry_run && self.deploys.replace(true) {
            return Answer::failed(Code::Temporary, "another deployment is under way; `tandem logs` shows how far");
        }
        let began = Instant::now();
        let answer = self.take_steps(dry_run).await;
        if !dry_run {
            self.deploys.set(false);
            counting::deployment(&answer, began.elapsed());
            self.show_step(None);
        }
        answer
    }

    async fn take_steps(&self, dry_run: bool) -> Answer {
        let reading = match self.read_again("deploy").await {
            Ok(reading) => reading,
            Err(answer) => return answer,
        };
        let settings = reading.current.settings();
        let findings = match findings(&self.context, &settings).await {
            Ok(findings) => findings,
            Err(error) => {
                tracing::error!("deploy: {}", in_words(&error));
                return Answer::failed(code_of(&error), format!("{}\nnothing was changed", in_words(&error)));
            }
        };
        let steps = deployment::steps(&findings);
        if dry_run {
            return Answer::done(deployment::told(&steps));
        }
        let mut next = None;
        let mut words = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            tracing::info!("deploy: {step}");
            self.show_step(Some(step.to_string()));
            let began = Instant::now();
            let done = match step {
                Step::Environment(_) => self.make_next(&settings).await.map(|made| next = Some(made)),
                Step::Migrations(_) => {
                    self.mark(&settings).await;
                    let migrated = self.migrate(&settings, next.as_ref()).await;
                    counting::migrations(migrated.is_ok());
                    migrated
                }
                Step::Roll(_) => return self.finish(reading, next, words, &steps).await,
            };
            if let Err(error) = done {
                let text = format!("{}\n{}", in_words(&error), deployment::remains(&steps, index, 0));
                tracing::error!("deploy: {text}");
                return Answer::failed(code_of(&error), text);
            }
            words.push(format!("{}. {step}: done in {:.1?}", index + 1, began.elapsed()));
        }
        Answer::done(words)
    }

    /// Show the step that is under way.
    fn show_step(&self, step: Option<String>) {
        *self.context.deployment_step.borrow_mut() = step;
        // What others see is made anew after each event.
        self.tell(TreeEvent::Tick);
    }

    async fn make_next(&self, settings: &Settings) -> anyhow::Result<Next> {
        let (python, state, dir) =
            (settings.python.clone(), self.context.home.state.clone(), settings.directory.clone());
        elsewhere(move || async move { environment::make_next(&python, &state, &dir).await }).await
    }

    /// Give the moment before the migrations a name.
    async fn mark(&self, settings: &Settings) {
        let (settings, home) = (settings.clone(), self.context.home.clone());
        let marking = elsewhere(move || async move { marks::before(&settings, &home, "deploy").await });
        if tokio::time::timeout(MARK_LIMIT, marking).await.is_err() {
            tracing::warn!("deploy: no mark was set within {MARK_LIMIT:?}: the archive does not answer");
        }
    }

    /// Migrate with the new code and the new environment. A statement that does not get its lock gives up its place in the
    /// queue, in which the application's own statements stand behind it, and is tried again.
    async fn migrate(&self, settings: &Settings, next: Option<&Next>) -> anyhow::Result<()> {
        let limit = settings.migrations.limit;
        let until = Instant::now() + limit;
        let mut pause = settings.migrations.lock_timeout.min(RETRY_MAX);
        let mut locked_out = None;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Err(error) = self.migrate_once(settings, next, left).await else { return Ok(()) };
            if error.is::<LockedOut>() || sql_state(&error).as_deref() == Some(LOCK_NOT_AVAILABLE) {
                locked_out = Some(error);
            } else if Instant::now() < until {
                return Err(error);
            } else {
                // The last try was cut short: what kept the others is the reason.
                return Err(locked_out.map_or(error, |error| tried(error, limit)));
            }
            if let Some(error) = locked_out.take_if(|_| Instant::now() + pause >= until) {
                return Err(tried(error, limit));
            }
            tracing::warn!(
                "deploy: the migrations waited {:?} for a lock (migrations.lock_timeout) that a transaction of the \
                 application's holds; again in {pause:?}",
                settings.migrations.lock_timeout
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn migrate_once(&self, settings: &Settings, next: Option<&Next>, limit: Duration) -> anyhow::Result<()> {
        let (migrations, url) = (&settings.migrations, &self.context.url());
        match &migration_run::of_database(url, migrations).await? {
            MigrationRun::None => Ok(()),
            MigrationRun::SeaOrm => {
                schema::up_beside(url, migrations.lock_limit, limit, migrations.lock_timeout).await.map(drop)
            }
            MigrationRun::Sql => {
                let limits = (migrations.lock_limit, limit);
                sql_files::up(url, &settings.sql_dir(), limits, Some(migrations.lock_timeout)).await.map(drop)
            }
            MigrationRun::Command(words) => {
                let python = next.map_or_else(|| self.context.python.borrow().clone(), Next::python);
                let owned = words.clone();
                let make = move |around: Surroundings<'_>| (migration_command(&around, &owned), around.import_help());
                // libpq's way, which psycopg goes too; asyncpg has none but its own arguments. The `options` of a URL win
                // over PGOPTIONS. A URL without any stays as it is: Alembic's configuration chokes on a `%` in it.
                let timeout = migrations.lock_timeout.as_millis().max(1).to_string();
                let limited = url.with_session_setting("lock_timeout", &timeout);
                let says_options = url.parameter("options").is_some();
                let given = if says_options { limited.clone() } else { url.clone() };
                let (command, import_help) =
                    self.context.around_aside_in(settings.clone(), given, python, make).await?;
                let options = limited.parameter("options").unwrap_or_default();
                let command = command?.env("PGOPTIONS", options);
                let run = run_migrations(url, &command, words, limit);
                let ended = schema::locked(url, migrations.lock_limit, run).await;
                ended.map_err(|error| with_import_help(error, import_help))
            }
        }
    }

    /// Replace the workers. The new environment is the one in use once a worker runs in it.
    async fn finish(&self, reading: Reread, next: Option<Next>, mut words: Vec<String>, steps: &[Step]) -> Answer {
        let _reloading = self.upstream.reloading();
        let roll = steps.len() - 1;
        let before = self.context.python.borrow().clone();
        if let Some(next) = &next {
            *self.context.python.borrow_mut() = next.python();
        }
        let (answer, aborted) = self.adopt(reading).await;
        if aborted == Some(0) {
            *self.context.python.borrow_mut() = before;
            let text = format!("{}\n{}", answer.words.join("\n"), deployment::remains(steps, roll, 0));
            tracing::error!("deploy: {}", deployment::remains(steps, roll, 0));
            return Answer { words: vec![text], ..answer };
        }
        if let Some(next) = next {
            let moved = aborted.is_none();
            let adopt = move || next.adopt(moved);
            let adopted =
                within(self.context.settings().python.limit, "let the new environment be the one in use", adopt).await;
            let adopted =
                adopted.map_err(anyhow::Error::from).and_then(|done| done.context("name the new environment"));
            if let Err(error) = adopted {
                let text = format!("{}; the next start of Tandem makes the environment again", in_words(&error));
                tracing::error!("deploy: {text}");
                words.push(text);
            }
        }
        if let Some(replaced) = aborted {
            let text = format!("{}\n{}", answer.words.join("\n"), deployment::remains(steps, roll, replaced));
            return Answer { words: vec![text], ..answer };
        }
        words.extend(answer.words.iter().cloned());
        if answer.is_done() {
            tracing::info!("deploy: done");
        }
        Answer { words, ..answer }
    }
}

fn tried(error: anyhow::Error, limit: Duration) -> anyhow::Error {
    error.context(format!("tried for {limit:?} (migrations.limit)"))
}

/// What there is to do.
async fn findings(context: &Rc<Context>, settings: &Settings) -> anyhow::Result<Findings> {
    let (python, state, dir) = (settings.python.clone(), context.home.state.clone(), settings.directory.clone());
    let look = move || environment::changed(&python, &state, &dir);
    let requirements = within(LOOK_LIMIT, "look at the requirements", look).await??;
    let migrations = match &migration_run::of_database(&context.url(), &settings.migrations).await? {
        MigrationRun::None => None,
        MigrationRun::SeaOrm => {
            let missing = schema::status(&context.url()).await?.iter().filter(|row| !row.applied).count();
            (missing > 0).then(|| format!("{missing} that the database lacks"))
        }
        MigrationRun::Sql => {
            let files = sql_files::status(&context.url(), &settings.sql_dir()).await?;
            let missing = files.iter().filter(|file| !file.applied).count();
            (missing > 0).then(|| format!("{missing} that the database lacks"))
        }
        MigrationRun::Command(words) => Some(in_one_line(words)),
    };
    Ok(Findings { requirements, migrations, workers: settings.workers.count })
}
