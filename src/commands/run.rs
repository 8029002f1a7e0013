//! `tandem run`: any command, as workers are run.

use std::io::ErrorKind;

use crate::cli::Common;
use crate::commands::open;
use crate::config::{PostgresMode, Settings};
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::postgres::{secret, server};
use crate::process;
use crate::telemetry::{self, say_aside};
use crate::workers::surroundings::Surroundings;
use crate::workers::{environment, launch};

/// What shells answer for a command that is not there, and for one that cannot be run (POSIX, 2.8.2).
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// Become the command, with the environment and the user of a worker; returns only where that failed, with the code for it.
///
/// # Errors
/// The Python environment cannot be made, or there is no such user.
pub async fn run(common: &Common, words: &[String]) -> anyhow::Result<u8> {
    let settings = open::settings(common, Vec::new())?;
    let home = Home::resolve(&settings)?;
    let url = url(&settings, &home)?;
    let python = match StateLock::take(&home, "tandem run") {
        Ok(_lock) => environment::ensure(&settings.python, &home.state, &settings.directory).await?.python,
        // It must not be made anew under the workers that run in it.
        Err(_) => environment::existing(&settings.python, &home.state, &settings.directory),
    };
    let identity = launch::identity_for(&settings, &home.run, &python)?;
    let of_tests = settings.in_test();
    let around =
        Surroundings { settings: &settings, url: &url, python: &python, identity: identity.as_ref(), of_tests };
    let dir = std::env::current_dir()?;
    let name = words.first().map_or("", String::as_str);
    let command = around.command(words, &format!("{}-run", settings.name), &dir);
    let command = command.ok_or_else(|| Failure::new(Code::Usage, "no command was given"))?;
    telemetry::flush();
    let error = process::replace(&command);
    say_aside(&format!("tandem: cannot run {name}: {error}"));
    Ok(if error.kind() == ErrorKind::NotFound { NOT_FOUND } else { NOT_RUNNABLE })
}

/// Where the database is, or will be once `tandem up` runs. The command may need none.
fn url(settings: &Settings, home: &Home) -> anyhow::Result<DatabaseUrl> {
    if settings.postgres.mode == PostgresMode::Managed && !settings.in_test() {
        if server::own_running_port(home).is_none() {
            say_aside("tandem: PostgreSQL is not running: what needs the database fails until `tandem up` runs");
        }
        home.prepare()?;
        secret::ensure(home, settings.postgres.password.as_ref())?;
    }
    open::url(settings, home)
}
