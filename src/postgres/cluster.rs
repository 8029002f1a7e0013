//! Make the cluster and configure it: a real initdb in a staging directory, one sync, one rename.
//!
//! After any interruption the data directory is complete or absent. Callers hold the [`super::lock::StateLock`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::binaries::Installation;
use super::data::{DataDirectory, inspect};
use super::embedded::{self, InitDbBuilder};
use super::files::{free_bytes, write_whole};
use super::home::{Home, make_dir};
use super::settings::Rendered;
use super::{initial, names};
use crate::durable;
use crate::exit::{Code, Failure, NoRoom};
use crate::plan::CommandLine;
use crate::process::{self, identity};
use crate::telemetry;

/// Limit for initdb, which takes half a second of CPU time.
const INITDB_LIMIT: Duration = Duration::from_secs(180);
/// Room that a new cluster needs: 38 MB and the first WAL segments.
const ROOM: u64 = 60 * 1024 * 1024;
const STAGING_PREFIX: &str = ".staging-";
/// How long the removal of a staging directory goes on while a killed initdb still writes into it.
const REMOVE_LIMIT: Duration = Duration::from_millis(500);

/// The cluster in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Whether it was made just now.
    pub fresh: bool,
}

/// How a new cluster is made. An existing one stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Making<'a> {
    /// More options of initdb's.
    pub initdb_args: &'a [String],
    /// Whether scripts have to run in it before it counts as complete ([`initial`]).
    pub has_scripts: bool,
}

/// Make sure that there is a cluster in the data directory of `home`. One in which the scripts of its first start did not all
/// run is removed, and made anew as `making` says.
///
/// # Errors
/// [`Failure`] when the data directory must not be used ([`inspect`]), the disk is full, or initdb failed.
pub async fn ensure(home: &Home, installation: &Installation, making: Making<'_>) -> anyhow::Result<Cluster> {
    let parent = home.data.parent().context("the data directory has no parent")?;
    sweep(parent).await;
    if inspect(home)? == DataDirectory::Cluster {
        if !initial::is_unfinished(home)? {
            return Ok(Cluster { fresh: false });
        }
        discard(home, parent)?;
    }
    home.trusted_users()?;
    check_reach(home, installation)?;
    let _progress = telemetry::progress(format!("making a PostgreSQL cluster in {}", home.data.display()));
    let staging = Staging(parent.join(format!("{STAGING_PREFIX}{}", std::process::id())));
    make_dir(&staging.0, 0o700, home.server.as_ref())?;
    initdb(home, installation, &staging.0, InitDbBuilder::data_checksums, making.initdb_args).await?;
    if making.has_scripts {
        initial::mark(&staging.0, home.server.as_ref())?;
    }
    let (from, to) = (staging.0.clone(), home.data.clone());
    tokio::task::spawn_blocking(move || put_in_place(&from, &to)).await?.map_err(|error| explain_place(home, error))?;
    Ok(Cluster { fresh: true })
}

/// Write the configuration files of the cluster in `home`.
///
/// # Errors
/// When a file cannot be written.
pub fn configure(home: &Home, files: &Rendered) -> anyhow::Result<()> {
    if let Some(notice) = &files.notice {
        tracing::info!("{notice}");
    }
    let texts = [("postgresql.conf", &files.conf), ("pg_hba.conf", &files.hba), ("pg_ident.conf", &files.ident)];
    for (name, text) in texts {
        write_whole(&home.data.join(name), text, 0o600, home.server.as_ref())?;
    }
    Ok(())
}

/// Take the unfinished cluster out of the way; no server runs in it.
fn discard(home: &Home, parent: &Path) -> anyhow::Result<()> {
    let data = home.data.display();
    tracing::warn!(
        "the scripts of postgres.init_scripts did not all run in the cluster in {data}: it is removed and made anew"
    );
    let aside = Staging(parent.join(format!("{STAGING_PREFIX}unfinished-{}", std::process::id())));
    durable::rename(&home.data, &aside.0).with_context(|| format!("take the unfinished cluster out of {data}"))
}

/// A directory that disappears unless it was renamed away.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Remove `dir`, again and again while a process that was killed a moment ago still makes files in it.
fn remove(dir: &Path) {
    let begun = Instant::now();
    loop {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) if begun.elapsed() > REMOVE_LIMIT => {
                return tracing::warn!(%error, "remove {}; the next start tries again", dir.display());
            }
            // Not a return: what was written meanwhile may have made it anew.
            _ => {}
        }
    }
}

/// Remove what an interrupted initdb of an earlier run left.
async fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let left = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX));
    for path in left.map(|entry| entry.path()).collect::<Vec<_>>() {
        tracing::info!("removing {}, which an interrupted start left behind", path.display());
        let _ = tokio::task::spawn_blocking(move || remove(&path)).await;
    }
}

/// Whether the server's user can reach PostgreSQL's programs.
///
/// # Errors
/// [`Failure`] with [`Code::CannotCreate`] that names the directory in the way.
pub fn check_reach(home: &Home, installation: &Installation) -> anyhow::Result<()> {
    let Some(server) = &home.server else { return Ok(()) };
    let Some(barrier) = identity::barrier(&installation.bin, server) else { return Ok(()) };
    let (bin, barrier, name) = (installation.bin.display(), barrier.display(), &server.name);
    let ways = format!("let it pass (chmod o+x {barrier}), or set cache_dir to a place it can reach");
    bail!(Failure::new(
        Code::CannotCreate,
        format!(
            "PostgreSQL runs as user {name}, who may not enter {barrier} on the way to its programs in {bin}: {ways}"
        )
    ))
}

/// Let initdb fill the empty directory `staging`; `more` and the operator's `args` add options to those of every cluster here.
/// Nothing is synced.
///
/// # Errors
/// [`Failure`] with [`Code::CannotCreate`] and what initdb said.
pub async fn initdb(
    home: &Home,
    installation: &Installation,
    staging: &Path,
    more: impl FnOnce(InitDbBuilder) -> InitDbBuilder,
    args: &[String],
) -> anyhow::Result<()> {
    let command = initdb_command(home, installation, staging, more).args(args);
    let finished = process::run(&command, INITDB_LIMIT).await?;
    if finished.exit.success() {
        return Ok(());
    }
    // Full shared memory gives the same message.
    let of_disk = finished.stderr.lines().filter(|line| !line.contains("shared memory")).find_map(NoRoom::said);
    let little = || free_bytes(staging).is_some_and(|free| free < ROOM).then_some(NoRoom::Disk);
    // A page of a mapped file that finds no room ends its process (mmap(2), SIGBUS); where bytes are free, a quota is used up.
    let unmapped = || finished.stderr.contains("Bus error").then_some(NoRoom::Quota);
    if let Some(why) = of_disk.or_else(little).or_else(unmapped) {
        let (dir, megabytes) = (home.state.display(), ROOM / 1024 / 1024);
        let way = match why {
            NoRoom::Disk => "free some",
            NoRoom::Quota => "raise the quota of the user that PostgreSQL runs as",
        };
        let message = format!(
            "{why}: a new cluster needs about {megabytes} MB in {dir}; {way}, or set state_dir to another disk"
        );
        bail!(Failure::new(Code::CannotCreate, message));
    }
    let said = finished.stderr.trim();
    bail!(Failure::new(Code::CannotCreate, format!("initdb failed ({}): {said}", finished.exit)))
}

fn initdb_command(
    home: &Home,
    installation: &Installation,
    staging: &Path,
    more: impl FnOnce(InitDbBuilder) -> InitDbBuilder,
) -> CommandLine {
    let initdb = InitDbBuilder::from(&embedded::server(home, installation, 0))
        .pgdata(staging)
        .auth_local("peer")
        .auth_host("scram-sha-256")
        .encoding("UTF8")
        .locale("C.UTF-8")
        .locale_provider("libc")
        // initdb's own servers need 1 MB of it, which a small or closed /dev/shm does not have.
        .set("dynamic_shared_memory_type=mmap")
        // One syncfs follows, which is as durable as syncing every file.
        .no_sync()
        .no_instructions();
    let command = embedded::command(installation, &more(initdb))
        .clean_env()
        // initdb starts its server through /bin/sh. A LANG that the machine does not have breaks it.
        .env("PATH", super::server::PATH)
        .env("LANG", "C")
        // Without it, initdb compares every file of the time zone database with the machine's.
        .env("TZ", "UTC")
        .dir(staging)
        .identity(home.server.clone());
    names::environment(&home.run).into_iter().fold(command, |command, (name, value)| command.env(name, value))
}

fn put_in_place(staging: &Path, data: &Path) -> io::Result<()> {
    durable::sync_file_system(staging)?;
    durable::rename(staging, data)?;
    durable::sync_parent(data)
}

fn explain_place(home: &Home, error: io::Error) -> anyhow::Error {
    let data = home.data.display();
    let message = match error.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => {
            format!(
                "{data} is a mount point, which a new cluster cannot be renamed onto: mount {} instead",
                home.state.display()
            )
        }
        _ => format!("cannot put the new cluster into place at {data}"),
    };
    anyhow::Error::new(error).context(Failure::new(Code::CannotCreate, message))
}

#[cfg(test)]
mod tests;
