//! What a start of the server needs where its WAL is archived.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;

use super::archive::Archive;
use super::{away, command, tablespaces};
use crate::config::{Ack, Settings};
use crate::exit::in_words;
use crate::postgres::home::{Home, make_dir};
use crate::postgres::settings::Archiving;

/// Where the archive of the deployment in `home` is.
pub fn archive(settings: &Settings, home: &Home) -> Archive {
    Archive::new(settings.backup.pitr.dir.clone().unwrap_or_else(|| home.state.join("pitr")))
}

/// Make the archive of the cluster in `home`, and say how its server is to archive; `None` where it is not to.
///
/// An archive that cannot be used keeps nothing from starting: it shows in the log, and as a backlog in the health.
///
/// # Errors
/// A path is such that PostgreSQL cannot run Tandem, or the cluster's control file cannot be read.
pub fn archiving(settings: &Settings, home: &Home) -> anyhow::Result<Option<Archiving>> {
    let pitr = &settings.backup.pitr;
    if !pitr.enabled {
        return Ok(None);
    }
    let archive = archive(settings, home);
    let owner = home.server.as_ref().map(|server| (server.uid, server.gid));
    if let Err(error) = archive.prepare(system_identifier(&home.data)?, owner) {
        tracing::error!("WAL cannot be archived: {}", in_words(&error));
    }
    if let Some(refusal) = tablespaces::refusal(&tablespaces::of(&home.data)?) {
        tracing::error!("{refusal}");
    }
    let program = command::program(&home.run, home.server.as_ref())?;
    let remote = (pitr.ack == Ack::Remote && away::is_wanted(settings)).then(|| away::ledger::dir(&home.state));
    if let Some(dir) = &remote {
        // The server looks there.
        make_dir(dir, 0o755, None)?;
    }
    let command = command::archive_command(&program, &archive, remote.as_deref())?;
    Ok(Some(Archiving { command, timeout: pitr.archive_timeout }))
}

/// The number that a cluster has from its initdb on: the first eight bytes of its control file (PostgreSQL's
/// src/include/catalog/pg_control.h).
///
/// # Errors
/// There is no cluster in `data`.
pub fn system_identifier(data: &Path) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    control(data, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The timeline of the cluster in `data`: that of its last checkpoint, 48 bytes into the control file.
///
/// # Errors
/// There is no cluster in `data`.
pub fn timeline(data: &Path) -> anyhow::Result<u32> {
    let mut bytes = [0; 52];
    control(data, &mut bytes)?;
    let [.., a, b, c, d] = bytes;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

fn control(data: &Path, bytes: &mut [u8]) -> anyhow::Result<()> {
    let path = data.join("global/pg_control");
    let read = File::open(&path).and_then(|mut file| file.read_exact(bytes));
    read.with_context(|| format!("read {}", path.display()))
}
