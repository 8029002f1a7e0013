//! `tandem logs`

use std::collections::HashSet;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::SystemTime;

use crate::cli::{Common, LogLevel, LogsArgs};
use crate::commands::logs_file::{self, Printable, Wanted};
use crate::commands::{open, running, up_detached};
use crate::config;
use crate::control::client;
use crate::control::messages::{LogEntry, LogQuery};
use crate::exit::{Code, Failure, in_words};
use crate::postgres::home::Home;
use crate::telemetry::{self, FileBounds, Printed};

/// How many lines are printed where nothing says it.
const LINES: usize = 100;

/// Print lines of the log as it writes them for a person, or as JSON: those that the running Tandem has in memory, and
/// before them those of `log.file`.
///
/// # Errors
/// No Tandem runs and it has left no file, or there is no such service.
pub async fn run(common: &Common, args: LogsArgs) -> anyhow::Result<Code> {
    if let (Some(since), Some(until)) = (args.since, args.until)
        && since > until
    {
        let text = "--since is after --until, so that nothing can lie between them: exchange them";
        return Err(Failure::new(Code::Usage, text).into());
    }
    let socket = running::socket(common)?;
    let file = open::load(common, Vec::new()).ok().and_then(|loaded| loaded.settings.log.file);
    let file = file.map(|file| open::file_bounds(&file));
    let wanted = Selection::of(&args);
    let mut page = Page { json: args.json, colour: io::stdout().is_terminal() && !config::no_color(), day: today() };
    let mut memory = Vec::new();
    let query = LogQuery { service: wanted.service.clone(), lines: None, follow: false };
    let asked = client::logs(&socket, &query, |entry| {
        memory.extend(printable(entry));
        Ok(())
    });
    if let Err(error) = asked.await {
        let (Some(file), true) = (file, is_none_there(&error)) else { return Err(with_file(common, error)) };
        return stopped(&file, &wanted, &mut page, args.follow, error);
    }
    let last = memory.iter().rev().find_map(|one| sequence(&one.entry));
    let is_whole = |found: &[Printable]| wanted.lines.is_some_and(|lines| found.len() >= lines);
    let begins = memory.first().map(|one| one.time);
    let first: HashSet<String> =
        memory.iter().filter(|one| Some(one.time) == begins).map(|one| key(&one.entry)).collect();
    if file.is_none() && is_cut_off(&memory, &wanted) {
        telemetry::say_aside("tandem: older lines are no longer in memory (log.ring); with log.file they are kept");
    }
    memory.retain(|one| wanted.has(one.time, &one.entry));
    if let Some(file) = file.filter(|_| !is_whole(&memory)) {
        // What is in memory is in the file too.
        let is_older = |time, entry: &LogEntry| match begins {
            Some(begins) => time < begins || (time == begins && !first.contains(&key(entry))),
            None => true,
        };
        match wanted.read(&file, &is_older) {
            Ok(mut found) => {
                found.append(&mut memory);
                memory = found;
            }
            // What is in memory is better than nothing.
            Err(error) => telemetry::say_aside(&format!("tandem: {}", in_words(&error))),
        }
    }
    let surplus = wanted.lines.map_or(0, |lines| memory.len().saturating_sub(lines));
    for one in &memory[surplus..] {
        if page.print(&one.entry)? == Printed::Unread {
            return Ok(Code::Stopped);
        }
    }
    if !args.follow {
        return Ok(Code::Stopped);
    }
    follow(&socket, wanted, page, last).await
}

/// Print new lines as they come: those after the one with the number `last`.
async fn follow(socket: &Path, wanted: Selection, mut page: Page, last: Option<u64>) -> anyhow::Result<Code> {
    let query = LogQuery { service: wanted.service.clone(), lines: None, follow: true };
    let ended = client::logs(socket, &query, |entry| {
        let is_new = match (sequence(&entry), last) {
            (Some(sequence), Some(last)) => sequence > last,
            _ => true,
        };
        let is_wanted = match &entry {
            LogEntry::Line { .. } => is_new && wanted.has(SystemTime::now(), &entry),
            LogEntry::Skipped { .. } => true,
        };
        match is_wanted.then(|| page.print(&entry)) {
            Some(Err(error)) => Err(error),
            Some(Ok(Printed::Unread)) => Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
            Some(Ok(Printed::Whole)) | None => Ok(()),
        }
    });
    match ended.await {
        // `tandem logs -f | head` has read enough.
        Err(error) if is_closed_pipe(&error) => Ok(Code::Stopped),
        Err(error) => Err(error),
        Ok(()) => {
            telemetry::say_aside("tandem has ended");
            Ok(Code::Stopped)
        }
    }
}

/// Print what a Tandem that does not run any more has left in its file.
fn stopped(
    file: &FileBounds,
    wanted: &Selection,
    page: &mut Page,
    follows: bool,
    error: anyhow::Error,
) -> anyhow::Result<Code> {
    if !file.files().any(|path| path.is_file()) {
        return Err(error);
    }
    telemetry::say_aside(&format!("tandem: no tandem runs here; this is what {} has", file.path.display()));
    let found = wanted.read(file, &|_, _| true)?;
    for one in &found {
        if page.print(&one.entry)? == Printed::Unread {
            return Ok(Code::Stopped);
        }
    }
    if let (true, Some(service)) = (found.is_empty(), &wanted.service) {
        telemetry::say_aside(&format!("tandem: no line of {service} is among them; without a service all are shown"));
    }
    if follows { Err(error) } else { Ok(Code::Stopped) }
}

/// Which lines are wanted.
struct Selection {
    service: Option<String>,
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    grep: Option<regex::Regex>,
    level: Option<tracing::Level>,
    lines: Option<usize>,
}

impl Selection {
    fn of(args: &LogsArgs) -> Self {
        let is_bounded = args.since.is_some() || args.until.is_some();
        Self {
            service: args.service().cloned(),
            since: args.since,
            until: args.until,
            grep: args.grep.clone(),
            level: args.level.map(LogLevel::as_tracing),
            lines: args.lines.or_else(|| (!is_bounded).then_some(LINES)),
        }
    }

    /// Whether a line of the wanted service is wanted.
    fn has(&self, time: SystemTime, entry: &LogEntry) -> bool {
        let LogEntry::Line { level, text, .. } = entry else { return true };
        let level: tracing::Level = level.parse().unwrap_or(tracing::Level::INFO);
        self.since.is_none_or(|since| time >= since)
            && self.until.is_none_or(|until| time <= until)
            && self.level.is_none_or(|worst| level <= worst)
            && self.grep.as_ref().is_none_or(|grep| grep.is_match(text))
    }

    /// The wanted lines of the files that `is_older` lets pass.
    fn read(
        &self,
        file: &FileBounds,
        is_older: &dyn Fn(SystemTime, &LogEntry) -> bool,
    ) -> anyhow::Result<Vec<Printable>> {
        let accepts = |one: &Printable, about: Option<&str>| {
            let LogEntry::Line { service, .. } = &one.entry else { return false };
            let is_its = |wanted: &String| wanted == service || Some(wanted.as_str()) == about;
            self.service.as_ref().is_none_or(is_its) && self.has(one.time, &one.entry) && is_older(one.time, &one.entry)
        };
        logs_file::read(file, &Wanted { accepts: &accepts, since: self.since, lines: self.lines })
    }
}

/// What is printed, and how.
struct Page {
    json: bool,
    colour: bool,
    /// The day of the line before, such as `2026-11-30`.
    day: String,
}

impl Page {
    fn print(&mut self, entry: &LogEntry) -> anyhow::Result<Printed> {
        let text = match entry {
            entry if self.json => serde_json::to_string(entry)? + "\n",
            LogEntry::Line { time, service, level, text, .. } => {
                let day = time.get(.."2026-11-30".len()).unwrap_or_default();
                let headline = if self.day == day { String::new() } else { format!("-- {day} (UTC)\n") };
                day.clone_into(&mut self.day);
                let time = humantime::parse_rfc3339(time).unwrap_or(SystemTime::UNIX_EPOCH);
                headline + &telemetry::text_line(self.colour, time, service, level, text)
            }
            LogEntry::Skipped { skipped } => format!("({skipped} lines came faster than they could be shown)\n"),
        };
        Ok(telemetry::print(&text)?)
    }
}

fn today() -> String {
    telemetry::rfc3339(SystemTime::now()).chars().take("2026-11-30".len()).collect()
}

/// Whether lines since the wanted moment were overwritten in memory. Of one service that cannot be seen.
fn is_cut_off(memory: &[Printable], wanted: &Selection) -> bool {
    let Some(oldest) = memory.first().filter(|_| wanted.service.is_none()) else { return false };
    wanted.since.is_some_and(|since| since < oldest.time) && sequence(&oldest.entry).is_some_and(|number| number > 0)
}

/// A line from memory. What was overwritten there may be in the file.
fn printable(entry: LogEntry) -> Option<Printable> {
    let LogEntry::Line { time, .. } = &entry else { return None };
    let time = humantime::parse_rfc3339(time).unwrap_or(SystemTime::UNIX_EPOCH);
    Some(Printable { time, entry })
}

/// What tells a line from others of its millisecond.
fn key(entry: &LogEntry) -> String {
    match entry {
        LogEntry::Line { service, text, .. } => format!("{service}\0{text}"),
        LogEntry::Skipped { .. } => String::new(),
    }
}

fn sequence(entry: &LogEntry) -> Option<u64> {
    if let LogEntry::Line { sequence, .. } = entry { *sequence } else { None }
}

fn is_none_there(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.to_string().starts_with("no tandem runs here"))
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// `error`, with the log file that a Tandem in the background has left, if there is one.
fn with_file(common: &Common, error: anyhow::Error) -> anyhow::Error {
    let home = open::load(common, Vec::new()).ok().and_then(|loaded| Home::resolve(&loaded.settings).ok());
    let file = home.map(|home| up_detached::log_file(&home)).filter(|file| file.is_file());
    match (file, error.downcast_ref::<Failure>()) {
        (Some(file), Some(failure)) if is_none_there(&error) => {
            let text = format!("{failure}. What the last one in the background said is in {}", file.display());
            Failure::new(failure.code, text).into()
        }
        _ => error,
    }
}
