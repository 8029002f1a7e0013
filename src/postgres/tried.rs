//! Check settings before a start: PostgreSQL reads the rendered files and starts nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::binaries::Installation;
use super::settings::{self, Inputs, Purpose};
use super::trouble::lines;
use crate::config::{Postgres, memory};
use crate::exit::Failure;
use crate::process;

/// How long reading a file may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Let the server of `installation` read what `postgres` asks for, in a directory of its own, below `state` where there is no
/// other place. A notice where that is not possible.
///
/// # Errors
/// A name or a value that it does not take, with where it stands.
pub async fn try_settings(
    installation: &Installation,
    postgres: &Postgres,
    state: Option<&Path>,
) -> anyhow::Result<Option<String>> {
    // The root file system of a container may be read-only, and /tmp with it.
    let place = tempfile::tempdir().or_else(|error| state.and_then(|dir| tempfile::tempdir_in(dir).ok()).ok_or(error));
    let dir = match place {
        Ok(dir) => dir,
        Err(error) => {
            return Ok(Some(format!("PostgreSQL did not try [postgres.settings], for want of a place: {error}")));
        }
    };
    let files = settings::render(&Inputs {
        postgres,
        socket_dir: Path::new("/tmp"),
        port: 5432,
        memory: memory::available(),
        shared: None,
        trusted_users: &[],
        archiving: None,
        statements: false,
        tls: None,
        purpose: Purpose::Durable,
    })?;
    std::fs::write(dir.path().join("postgresql.conf"), &files.conf)?;
    // `-C` as the first argument is the one mode in which `postgres` runs as root.
    let command = installation.command("postgres").args(["-C", "port", "-D"]).arg(dir.path()).env("LC_ALL", "C");
    let finished = process::run(&command, LIMIT).await?;
    if finished.exit.success() {
        return Ok(None);
    }
    let said: Vec<String> = finished.stderr.lines().map(str::to_owned).collect();
    let places = lines::SettingSources { given: &postgres.settings, altered: &BTreeMap::new(), data: dir.path() };
    match lines::lasting(&said, places) {
        Some(lasting) => Err(Failure::new(lasting.code, lasting.why).into()),
        // What else may be wrong is found by the start, which has all the files.
        None => Ok(None),
    }
}
