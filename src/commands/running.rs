//! The first and last steps of commands that talk to a running Tandem: find its control socket, print its answer.

use std::io;
use std::path::PathBuf;

use crate::cli::Common;
use crate::commands::open;
use crate::config::{self, LogFormat};
use crate::control::{Order, client};
use crate::exit::Code;
use crate::postgres::home::Home;
use crate::telemetry::{self, say_aside};

/// The control socket of the Tandem that this configuration is for.
///
/// Nothing is logged: what the configuration says of itself, `tandem check` shows.
///
/// # Errors
/// Every error of the configuration at once, unless a Tandem has the place where it would be without one: a mistake in the
/// file must not keep anybody from stopping what was started before it.
pub fn socket(common: &Common) -> anyhow::Result<PathBuf> {
    let error = match open::load(common, Vec::new()) {
        Ok(loaded) => {
            // An error is printed as the file says; by itself, what only asks prints text.
            if loaded.settings.log.format != LogFormat::Auto {
                telemetry::expect(loaded.settings.log.format);
            }
            return Ok(Home::resolve(&loaded.settings)?.control);
        }
        Err(error) => error,
    };
    let Ok(directory) = open::source(common, Vec::new()).and_then(|source| config::directory(&source)) else {
        return Err(error);
    };
    let usual = Home::at(&directory.join(".tandem"), None).control;
    if !usual.exists() {
        return Err(error);
    }
    say_aside(&format!(
        "tandem: the configuration has mistakes (see `tandem check`), so this asks {}",
        usual.display()
    ));
    Ok(usual)
}

/// Send `order`, which messages call `what`, and print the answer.
///
/// Ctrl-C ends the waiting; the order is still carried out.
///
/// # Errors
/// No Tandem runs, or it refused or failed, with the exit code that it names.
pub async fn order(common: &Common, order: Order, what: &str) -> anyhow::Result<Code> {
    let socket = socket(common)?;
    let _progress = telemetry::progress(format!("Waiting for the {what}"));
    let answer = tokio::select! {
        answer = client::order(&socket, &order) => answer?,
        _ = tokio::signal::ctrl_c() => {
            say_aside(&format!("tandem: no longer waiting; the {what} goes on, and `tandem status` shows it"));
            return Ok(Code::Failed);
        }
    };
    for words in answer.into_result()? {
        say(&words)?;
    }
    Ok(Code::Stopped)
}

/// Print a line. A reader that closed the pipe (`| head`) is not an error.
///
/// # Errors
/// Standard output cannot be written for another reason.
pub fn say(text: &str) -> io::Result<()> {
    telemetry::print(&format!("{text}\n")).map(drop)
}
