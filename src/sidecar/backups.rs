//! Scheduled backups: waits until one is due, runs it, shows the outcome in health, and raises the alarm if it failed.
//!
//! Each backup is a process of its own, so that its memory is freed at its end, and a disk that hangs does not hold up the
//! supervisor.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;

use super::disks::LOOK_LIMIT;
use super::{Context, counting};
use crate::backup::catalog::{BackupEntry, Catalog};
use crate::backup::pitr;
use crate::backup::retention::State;
use crate::backup::scheduled::{self, Run};
use crate::config::{Alarm, PostgresMode, Settings};
use crate::event_loop::{Hangs, within};
use crate::exit::in_words;
use crate::health::calendar::{self, Dated, DayState, Expected, calendar};
use crate::health::history::{self, Marks};
use crate::health::picture::{self, Picture};
use crate::plan::libpq::stays_attached;
use crate::plan::{CommandLine, in_one_line, schedule::Schedule};
use crate::process;
use crate::telemetry::{self, Stream};
use crate::workers::surroundings::Surroundings;

/// How long after a failed base backup the next is tried.
const BASE_AGAIN: Duration = Duration::from_secs(3600);
/// How often a failed run is tried again before the next that is planned: each try leaves a dump, whatever failed after it. Where
/// only copies failed, they alone are sent again, and as often as it takes.
const RETRIES_MAX: u32 = 3;
/// How often the clock and the schedule are looked at again: the clock may be set, the schedule changed.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// How much longer than twice `backup.limit` (a backup and its verification) a run may take.
const MARGIN: Duration = Duration::from_secs(600);
/// How long `backup.on_failure` may take.
const ALARM_LIMIT: Duration = Duration::from_secs(60);
/// The name of its lines in the log.
const SERVICE: &str = "backup";

/// Take dumps and base backups when they are due, for ever. Neither waits for the other.
pub async fn keep(context: Rc<Context>, pictures: watch::Sender<Arc<Picture>>) {
    tokio::join!(dumps(context.clone(), pictures), bases(context));
}

/// Make base backups when they are due. A base backup waits until its WAL is archived: as long as archiving fails, if it
/// does.
async fn bases(context: Rc<Context>) {
    loop {
        let settings = context.settings();
        let pause = match base(&context, &settings).await {
            Ok(()) => LOOK_AGAIN,
            Err(error) => {
                counting::base_backup(false);
                tracing::error!("the base backup failed: {error}; it is tried again in {BASE_AGAIN:?}");
                alarm(&context, &settings, &error).await;
                BASE_AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Take dumps when they are due.
async fn dumps(context: Rc<Context>, pictures: watch::Sender<Arc<Picture>>) {
    let (mut after, mut last) = begin(&context).await;
    last.iter().for_each(counting::copies);
    let failed_at = |run: &Run| run.error.as_ref().map(|_| run.finished);
    let mut failed = last.as_ref().and_then(failed_at);
    let mut tries = 0;
    if planned(&context.settings()).is_none() {
        tracing::debug!("no backup is scheduled (backup.schedule)");
    }
    let mut seen = Seen::default();
    loop {
        let settings = context.settings();
        let catalog = Catalog::of(&settings, &context.home);
        seen = look(seen, &catalog, &context.url().database).await;
        let now = Utc::now();
        // If the clock was set back, the next run does not wait until it is there again.
        after = after.min(now);
        let schedule = planned(&settings);
        let planned = schedule.as_ref().and_then(|schedule| schedule.next(after));
        let pause = settings.backup.retry_after.and_then(|pause| TimeDelta::from_std(pause).ok());
        let again = failed
            .zip(pause)
            .map(|(failed, pause)| failed.min(now) + pause)
            .filter(|_| schedule.is_some() && (tries < RETRIES_MAX || lacks_copies(last.as_ref())));
        let next = [planned, again].into_iter().flatten().min();
        let show = |running, last: Option<&Run>| {
            let shown = shown(&seen, schedule.as_ref(), next, running, last);
            let days = days(&seen, schedule.as_ref(), &settings, last, now);
            pictures.send_modify(|picture| {
                let picture = Arc::make_mut(picture);
                let marks = Marks::of(picture);
                let before = &mut picture.backups;
                let (pitr, last_base, kept_databases) = (before.pitr.take(), before.last_base, before.kept_databases);
                let unreadable_bases = std::mem::take(&mut before.unreadable_bases);
                *before = picture::Backups { pitr, last_base, unreadable_bases, kept_databases, ..shown };
                picture.details.backup_days = days;
                history::note(picture, &marks, SystemTime::now());
            });
        };
        if next.is_some_and(|next| next <= now) {
            show(true, last.as_ref());
            let is_planned = planned.is_some_and(|planned| planned <= now);
            let run = one(&context, &settings, !is_planned && lacks_copies(last.as_ref())).await;
            counting::backup(&run);
            // One run makes up for all that were missed.
            after = Utc::now();
            failed = failed_at(&run);
            tries = if is_planned { 0 } else { tries + 1 };
            if let Some(error) = &run.error {
                tracing::error!("the scheduled backup failed: {error}; {}", what_follows(&settings, &run, tries));
                record(&catalog, &run).await;
                // Who was called for the same reason an hour ago need not be called again before the next night.
                let is_told = last.as_ref().is_some_and(|last| last.error.as_ref() == Some(error));
                if is_planned || !is_told {
                    alarm(&context, &settings, error).await;
                }
            }
            last = Some(run);
            continue;
        }
        show(false, last.as_ref());
        let wait = next.and_then(|next| (next - now).to_std().ok()).unwrap_or(LOOK_AGAIN);
        tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
    }
}

/// Whether nothing failed but copies.
fn lacks_copies(last: Option<&Run>) -> bool {
    last.is_some_and(|run| run.error.is_some() && run.only_copies)
}

/// What follows on a failed `run` after so many `tries`.
fn what_follows(settings: &Settings, run: &Run, tries: u32) -> String {
    match settings.backup.retry_after {
        Some(pause) if run.only_copies => format!("the copies are tried again in {pause:?}, without another backup"),
        Some(pause) if tries < RETRIES_MAX => format!("it is tried again in {pause:?}"),
        Some(_) => format!("it was tried again {tries} times, and is not before the next that is planned"),
        None => "the next one is the next that is planned".to_owned(),
    }
}

/// The time from which on runs are due, and the last run. It is the time of the last backup, so that a missed one is due at
/// once. Waits while the disk hangs: only the disk tells what was missed.
async fn begin(context: &Context) -> (DateTime<Utc>, Option<Run>) {
    loop {
        let settings = context.settings();
        let (catalog, database) = (Catalog::of(&settings, &context.home), context.url().database.clone());
        let catch_up = settings.backup.catch_up;
        let look = move || {
            // Blocks: called by `within`.
            let last = scheduled::last(&catalog);
            let newest = if catch_up { catalog.newest(&database).ok().flatten() } else { None };
            (newest.max(last.as_ref().filter(|_| catch_up).map(|run| run.started)), last)
        };
        let what = format!("read the last backups in {}", Catalog::of(&settings, &context.home).dir().display());
        match within(LOOK_LIMIT, what, look).await {
            Ok((newest, last)) => {
                let now = Utc::now();
                return (newest.map_or(now, |newest| newest.min(now)), last);
            }
            Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

/// Record the outcome of a run. A disk that hangs does not delay the alarm.
async fn record(catalog: &Catalog, run: &Run) {
    let (catalog, run) = (catalog.clone(), run.clone());
    let what = format!("write down in {} what came of the last backup", catalog.dir().display());
    let _ = within(LOOK_LIMIT, what, move || scheduled::record(&catalog, &run)).await;
}

fn planned(settings: &Settings) -> Option<Schedule> {
    let backup = &settings.backup;
    let expression = backup.schedule.as_deref()?;
    // Both were read when the configuration was.
    Schedule::new(expression, &backup.time_zone, backup.jitter, &format!("{}{:?}", settings.name, hostname())).ok()
}

fn hostname() -> Option<std::ffi::OsString> {
    nix::unistd::gethostname().ok()
}

/// Make a base backup where the WAL is archived and one is due.
async fn base(context: &Context, settings: &Settings) -> Result<(), String> {
    let wanted = settings.backup.pitr.enabled && settings.backup.schedule.is_some();
    if !wanted || settings.postgres.mode == PostgresMode::Attach {
        return Ok(());
    }
    let archive = pitr::archive(settings, &context.home);
    // Blocks: called by `within`.
    let look = move || pitr::bases::bases(&archive).ok().and_then(|bases| Some(bases.last()?.ended.into()));
    let newest = within(LOOK_LIMIT, "look whether a base backup is due", look).await;
    let newest = newest.map_err(|hangs| hangs.to_string())?;
    if !scheduled::base_due(newest, Utc::now()) {
        return Ok(());
    }
    let command = command(context, &["backup", "base"]).map_err(|error| in_words(&error))?;
    in_a_process(&command, settings.backup.limit).await?;
    counting::base_backup(true);
    Ok(())
}

/// Run one of Tandem's own commands; returns the last line of its output, or why it failed.
pub(super) async fn in_a_process(command: &CommandLine, limit: Duration) -> Result<String, String> {
    let mut last_words = String::new();
    let on_line = |line: &str| {
        // The last line of its output is the result, as JSON.
        if !line.starts_with('{') {
            telemetry::child_line(SERVICE, Stream::Stderr, line);
            line.trim_start_matches("tandem: ").clone_into(&mut last_words);
        }
    };
    match process::run_with(command, limit, on_line).await {
        Ok(finished) if finished.exit.success() => Ok(finished.stdout.lines().last().unwrap_or_default().to_owned()),
        Ok(_) if !last_words.is_empty() => Err(last_words),
        Ok(finished) => Err(format!("its process ended with {}", finished.exit)),
        Err(error) => Err(error.to_string()),
    }
}

/// One run, in a process of its own; of `copies` alone where nothing else is missing.
async fn one(context: &Context, settings: &Settings, copies: bool) -> Run {
    let started = Utc::now();
    let failed =
        |error: anyhow::Error| Run { started, finished: Utc::now(), error: Some(in_words(&error)), ..Run::default() };
    let words: &[&str] = if copies { &["backup", "scheduled", "--copies"] } else { &["backup", "scheduled"] };
    let command = match command(context, words) {
        Ok(command) => command,
        Err(error) => return failed(error),
    };
    match in_a_process(&command, 2 * settings.backup.limit + MARGIN).await {
        Ok(line) => {
            let run = serde_json::from_str(&line).context("understand what the backup's process said");
            run.unwrap_or_else(failed)
        }
        Err(error) => {
            // Its own record says what failed, in all its lines, and of which backup.
            let catalog = Catalog::of(settings, &context.home);
            // Blocks: called by `within`.
            let look = move || scheduled::last(&catalog).filter(|run| run.started >= started && run.error.is_some());
            let recorded = within(LOOK_LIMIT, "read what came of the last backup", look).await;
            recorded.ok().flatten().unwrap_or_else(|| failed(anyhow::anyhow!(error)))
        }
    }
}

/// This program again, with the same configuration.
pub(super) fn command(context: &Context, words: &[&str]) -> anyhow::Result<CommandLine> {
    let source = context.source();
    let program = std::env::current_exe().context("find this program")?;
    let config = source.file.iter().flat_map(|path| ["--config".to_owned(), path.display().to_string()]);
    let set = source.flags.iter().flat_map(|flag| ["--set".to_owned(), format!("{}={}", flag.key, flag.value)]);
    let format = ["--log-format".to_owned(), "text".to_owned()];
    let args = words.iter().map(|&word| word.to_owned()).chain(config).chain(set).chain(format);
    // The TLS variables for an attached server apply to that process's sessions too.
    let kept = source.environment.iter().filter(|(name, _)| stays_attached(name));
    let command = kept.fold(CommandLine::tandem(program), |command, (name, value)| command.env(name, value));
    Ok(command.args(args).dir(&source.cwd))
}

/// Run or call `backup.on_failure`.
pub(super) async fn alarm(context: &Rc<Context>, settings: &Settings, error: &str) {
    let told = match &settings.backup.on_failure {
        None => return,
        Some(Alarm::Command(words)) => run_alarm(context, settings, words, error).await,
        Some(Alarm::Webhook(address)) => {
            let body = serde_json::json!({
                "event": "backup_failed", "deployment": settings.name, "database": context.url().database, "error": error,
                "timestamp": Utc::now(),
            });
            crate::backup::webhook::post(address, &body, ALARM_LIMIT).await
        }
    };
    if let Err(error) = told {
        tracing::error!("backup.on_failure: {}", in_words(&error));
    }
}

async fn run_alarm(context: &Rc<Context>, settings: &Settings, words: &[String], error: &str) -> anyhow::Result<()> {
    // As Tandem's own user, as the backups are made.
    let (owned, application, dir) = (words.to_vec(), format!("{}-alarm", settings.name), settings.directory.clone());
    let command = context
        .around_aside(move |around| Surroundings { identity: None, ..around }.command(&owned, &application, &dir))
        .await?;
    // It may send a mail, by a program that takes more rights.
    let command = command.context("it names no program")?.no_new_privs(false);
    let command = context
        .whereabouts(command)
        .env("TANDEM_BACKUP_ERROR", error)
        .env("TANDEM_BACKUP_DATABASE", &context.url().database)
        .env("TANDEM_DEPLOYMENT", &settings.name);
    let on_line = |line: &str| telemetry::child_line("hook:backup.on_failure", Stream::Stderr, line);
    let finished = process::run_with(&command, ALARM_LIMIT, on_line).await?;
    anyhow::ensure!(finished.exit.success(), "`{}` ended with {}", in_one_line(words), finished.exit);
    Ok(())
}

/// The directory of backups as last read. It is read again only after a change: its manifests are long.
#[derive(Clone, Default)]
struct Seen {
    changed: Option<SystemTime>,
    dir: PathBuf,
    count: usize,
    newest: Option<SystemTime>,
    newest_verified: Option<SystemTime>,
    /// All of them, for the calendar.
    dated: Vec<Dated>,
    /// Since when the directory does not answer; the other fields are as old then.
    unanswered: Option<Instant>,
    /// Why it cannot be read; the other fields are as old then.
    unreadable: Option<String>,
}

/// The directory as it is now; `seen` if it does not answer.
async fn look(seen: Seen, catalog: &Catalog, database: &str) -> Seen {
    let what = format!("look for backups in {}", catalog.dir().display());
    let (before, catalog, database) = (seen.clone(), catalog.clone(), database.to_owned());
    match within(LOOK_LIMIT, what, move || before.look(&catalog, &database)).await {
        Ok(now) => now,
        Err(Hangs { since, .. }) => Seen { unanswered: Some(since), ..seen },
    }
}

impl Seen {
    /// Look again, if anything has changed.
    fn look(self, catalog: &Catalog, database: &str) -> Self {
        // Blocks: called by `within`.
        let changed = catalog.dir().metadata().and_then(|meta| meta.modified()).ok();
        if changed == self.changed && self.dir == catalog.dir() && self.unreadable.is_none() {
            return Self { unanswered: None, ..self };
        }
        let entries = match catalog.entries(Some(database)) {
            Ok(entries) => entries,
            Err(error) => return Self { unanswered: None, unreadable: Some(in_words(&error)), ..self },
        };
        let proven = entries.iter().rev().find(|entry| entry.standing() == State::Proven);
        Self {
            changed,
            dir: catalog.dir().to_owned(),
            count: entries.len(),
            newest: entries.last().map(|entry| entry.name.taken.into()),
            newest_verified: proven.map(|entry| entry.name.taken.into()),
            dated: entries.iter().filter_map(dated).collect(),
            unanswered: None,
            unreadable: None,
        }
    }
}

/// A backup as the calendar has it, which leaves out files that may be somebody else's.
fn dated(entry: &BackupEntry) -> Option<Dated> {
    let state = match entry.standing() {
        State::Proven => DayState::Verified,
        State::Unverified => DayState::Taken,
        State::Bad => DayState::Bad,
        State::Incomplete => return None,
    };
    let bytes = entry.manifest.as_ref().map_or(0, |manifest| manifest.size_bytes);
    Some(Dated { taken: entry.name.taken.into(), state, bytes })
}

/// The calendar of backups.
fn days(
    seen: &Seen,
    schedule: Option<&Schedule>,
    settings: &Settings,
    last: Option<&Run>,
    now: DateTime<Utc>,
) -> Vec<calendar::Day> {
    let failed = last.filter(|run| run.error.is_some());
    let failed = failed.map(|run| Dated { taken: run.started.into(), state: DayState::Bad, bytes: 0 });
    let found: Vec<_> = seen.dated.iter().copied().chain(failed).collect();
    let midnight = now - (now.time() - chrono::NaiveTime::MIN);
    let begins = (0..calendar::DAYS).map(|back| midnight - TimeDelta::days(i64::try_from(back).unwrap_or(0)));
    // The first of each day is enough.
    let due = schedule.into_iter().flat_map(|schedule| {
        begins.clone().filter_map(|begin| schedule.next(begin - TimeDelta::seconds(1)).filter(|due| *due <= now))
    });
    let due: Vec<SystemTime> = due.map(SystemTime::from).collect();
    let retention = settings.backup.retention;
    calendar(&found, Expected { due: &due, kept_days: retention.days.max(retention.daily) }, now.into())
}

/// The picture of backups.
fn shown(
    seen: &Seen,
    schedule: Option<&Schedule>,
    next: Option<DateTime<Utc>>,
    running: bool,
    last: Option<&Run>,
) -> picture::Backups {
    picture::Backups {
        schedule: schedule.map(ToString::to_string),
        next: next.map(Into::into),
        running,
        last: last.map(|run| picture::BackupRun {
            started: run.started.into(),
            finished: run.finished.into(),
            name: run.name.clone(),
            size_bytes: run.size_bytes,
            verified: run.verified,
            error: run.error.clone(),
        }),
        count: seen.count,
        newest: seen.newest,
        newest_verified: seen.newest_verified,
        unanswered: seen.unanswered,
        unreadable: seen.unreadable.as_ref().map(|why| format!("the directory of backups: {why}")),
        ..picture::Backups::default()
    }
}
