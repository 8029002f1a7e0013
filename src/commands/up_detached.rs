//! `tandem up --detach`: start Tandem in a session of its own, and wait until it is ready.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::time::{sleep, timeout};

use crate::cli::{Common, UpArgs};
use crate::commands::asks::Asks;
use crate::commands::open;
use crate::config::{Loaded, Source};
use crate::control::client;
use crate::exit::{Code, Failure};
use crate::plan::CommandLine;
use crate::plan::libpq::is_libpq;
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::process::{self, Child, Exit, Streams};
use crate::telemetry::{self, Progress};
use crate::{boot, scrub};

/// How often the new Tandem is asked how far it is.
const POLL: Duration = Duration::from_millis(200);
/// How long one answer may take.
const POLL_LIMIT: Duration = Duration::from_secs(5);
/// What the end of a start that is broken off gets beyond the limits of the stop: it may be in the middle of a step.
const MARGIN: Duration = Duration::from_secs(10);
/// How much of the log of a failed start is shown, in lines and in bytes.
const LINES_SHOWN: usize = 60;
const BYTES_READ: u64 = 256 * 1024;

/// The log of a Tandem in the background.
pub fn log_file(home: &Home) -> PathBuf {
    home.state.join("tandem.log")
}

/// How the waiting ended.
enum Outcome {
    Ready,
    Ended(Exit),
    Asked,
    Late,
}

/// Start a Tandem that outlives this process and its terminal, and wait until it is ready, at most `limit`. Returns the exit
/// code: 0, or that of the Tandem that could not start.
///
/// # Errors
/// The configuration is wrong, another Tandem runs, or it is not ready in time.
pub async fn run(common: &Common, args: &UpArgs, source: Source, limit: Duration) -> anyhow::Result<u8> {
    let began = Instant::now();
    let kept = source.environment.iter().filter(|(name, _)| is_libpq(name));
    let kept: Vec<(String, String)> = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    let loaded = open::configure(source)?.loaded;
    let home = Home::resolve(&loaded.settings)?;
    home.prepare()?;
    // Told here, and not by way of a log. The other process takes it anew.
    StateLock::try_for(&home, "tandem up --detach")?;
    let log = log_file(&home);
    let from = log.metadata().map_or(0, |meta| meta.len());
    let program = std::env::current_exe().context("find this program")?;
    let streams = Streams::to_log(&log)
        .map_err(|error| Failure::new(Code::CannotCreate, format!("write {}: {error}", log.display())))?;
    let command = CommandLine::tandem(program).args(common.as_args()).arg("up").args(args.as_args(&log));
    let command = kept.iter().fold(command, |command, (name, value)| command.env(name, value));
    let mut asked = Asks::open()?;
    let mut child = process::spawn_with(&command, None, streams).context("start `tandem up`")?;
    let pid = child.pid();
    let progress = telemetry::progress("Tandem is starting in the background");
    let outcome = tokio::select! {
        exit = child.wait() => Outcome::Ended(exit),
        () = ready(&home, pid, &progress) => Outcome::Ready,
        () = asked.next() => Outcome::Asked,
        () = sleep(limit) => Outcome::Late,
    };
    drop(progress);
    match outcome {
        Outcome::Ready => {
            tell_ready(&loaded, pid, &log, began.elapsed());
            Ok(Code::Stopped as u8)
        }
        Outcome::Ended(exit) => {
            let last = last_lines(&log, from).with_context(|| format!("read {}", log.display()))?;
            telemetry::flush();
            telemetry::say_aside(last.trim_end());
            match exit {
                Exit::Code(0) => Err(Failure::new(Code::Failed, "it was stopped before it was ready").into()),
                Exit::Code(code) => Ok(u8::try_from(code).unwrap_or(Code::Failed as u8)),
                Exit::Signal(_) => Err(Failure::new(Code::Failed, format!("it was ended by {exit}")).into()),
            }
        }
        Outcome::Asked => Err(break_off(&loaded, &mut child, &mut asked).await),
        Outcome::Late => {
            let text = format!(
                "not ready within {}. It goes on starting, as process {pid}: `tandem status` shows how far it is, `tandem logs -f` \
                 what it says, `tandem stop` ends it",
                humantime::format_duration(limit)
            );
            Err(Failure::new(Code::Temporary, text).into())
        }
    }
}

/// Until the Tandem of process `pid` is ready.
async fn ready(home: &Home, pid: i32, progress: &Progress) {
    loop {
        sleep(POLL).await;
        let Ok(Ok(status)) = timeout(POLL_LIMIT, client::status(&home.control)).await else { continue };
        // What answered there may be one that ends.
        if i32::try_from(status.pid) != Ok(pid) {
            continue;
        }
        if status.phase == crate::phase::Phase::Serving.to_string() {
            return;
        }
        progress.say(format!("Tandem is starting in the background: {}", status.phase));
    }
}

fn tell_ready(loaded: &Loaded, pid: i32, log: &Path, took: Duration) {
    let settings = &loaded.settings;
    let rows = [
        ("app", settings.urls()),
        ("health", format!("{}/health", settings.health.listen.shown("http"))),
        ("log", log.display().to_string()),
        ("next", "tandem status, tandem logs -f, tandem stop".to_owned()),
    ];
    let title = format!("{} runs in the background, process {pid}; ready after {took:.0?}", settings.name);
    telemetry::banner(&title, &rows);
}

/// Stop the Tandem that is not ready yet, and wait for its end; asked again, it waits for nothing.
async fn break_off(loaded: &Loaded, child: &mut Child, asked: &mut Asks) -> anyhow::Error {
    telemetry::say_aside("tandem: the start is broken off; once more skips the waits of the stop");
    let (pid, limit) = (child.pid(), boot::stop_ladder(&loaded.settings).total() + MARGIN);
    let ended = async {
        loop {
            process::signal(pid, nix::sys::signal::Signal::SIGTERM);
            tokio::select! {
                _ = child.wait() => return,
                () = asked.next() => {}
            }
        }
    };
    match timeout(limit, ended).await {
        Ok(()) => Failure::new(Code::Failed, "stopped before it was ready").into(),
        Err(_) => {
            let text =
                format!("asked to stop, process {pid} has not ended within {limit:.0?}: `tandem stop` goes on waiting");
            Failure::new(Code::Temporary, text).into()
        }
    }
}

/// The last lines that were added to `log` behind the first `from` bytes.
fn last_lines(log: &Path, from: u64) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    // Another file has taken its place meanwhile.
    let from = if length < from { 0 } else { from };
    file.seek(SeekFrom::Start(from.max(length.saturating_sub(BYTES_READ))))?;
    let mut bytes = Vec::new();
    file.take(BYTES_READ).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(scrub::scrubbed(&lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_failed_start_its_own_last_lines_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "of the last run\none\ntwo\n").unwrap();
        assert_eq!(last_lines(&log, 16).unwrap(), "one\ntwo");
        // The file was replaced at its bound.
        std::fs::write(&log, "three\n").unwrap();
        assert_eq!(last_lines(&log, 16).unwrap(), "three");
        let many: String = (0..1000).map(|line| format!("line {line}\n")).collect();
        std::fs::write(&log, many).unwrap();
        let shown = last_lines(&log, 0).unwrap();
        assert_eq!((shown.lines().count(), shown.lines().last()), (LINES_SHOWN, Some("line 999")));
    }
}
