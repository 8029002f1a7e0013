//! `tandem logs`

use std::io::{self, IsTerminal};
use std::time::SystemTime;

use crate::cli::Common;
use crate::commands::{open, running, up_detached};
use crate::config;
use crate::control::client;
use crate::control::messages::{LogEntry, LogQuery};
use crate::exit::{Code, Failure};
use crate::postgres::home::Home;
use crate::telemetry::{self, Printed};

/// Print lines of the running Tandem's log as it writes them for a person, or as JSON.
///
/// # Errors
/// No Tandem runs, or it has no such service.
pub async fn run(
    common: &Common,
    service: Option<String>,
    follow: bool,
    lines: usize,
    json: bool,
) -> anyhow::Result<Code> {
    let socket = running::socket(common)?;
    let query = LogQuery { service, lines: Some(lines), follow };
    let colour = io::stdout().is_terminal() && !config::no_color();
    let ended = client::logs(&socket, &query, |entry| match telemetry::print(&shown(&entry, json, colour)?)? {
        Printed::Whole => Ok(()),
        Printed::Unread => Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
    });
    match ended.await {
        // `tandem logs | head` has read enough.
        Err(error) if is_closed_pipe(&error) => Ok(Code::Stopped),
        Err(error) => Err(with_file(common, error)),
        Ok(()) => {
            if follow {
                telemetry::say_aside("tandem has ended");
            }
            Ok(Code::Stopped)
        }
    }
}

fn shown(entry: &LogEntry, json: bool, colour: bool) -> anyhow::Result<String> {
    Ok(match entry {
        entry if json => serde_json::to_string(entry)? + "\n",
        LogEntry::Line { time, service, level, text, .. } => {
            let time = humantime::parse_rfc3339(time).unwrap_or(SystemTime::UNIX_EPOCH);
            telemetry::text_line(colour, time, service, level, text)
        }
        LogEntry::Skipped { skipped } => format!("({skipped} lines came faster than they could be shown)\n"),
    })
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// `error`, with the log file that a Tandem in the background has left, if there is one.
fn with_file(common: &Common, error: anyhow::Error) -> anyhow::Error {
    let home = open::load(common, Vec::new()).ok().and_then(|loaded| Home::resolve(&loaded.settings).ok());
    let file = home.map(|home| up_detached::log_file(&home)).filter(|file| file.is_file());
    match (file, error.downcast_ref::<Failure>()) {
        (Some(file), Some(failure)) if failure.to_string().starts_with("no tandem runs here") => {
            let text = format!("{failure}. What the last one in the background said is in {}", file.display());
            Failure::new(failure.code, text).into()
        }
        _ => error,
    }
}
