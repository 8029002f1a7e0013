//! Take over a cluster that Tandem did not make, such as a volume of PostgreSQL's container image: its superuser may have
//! any name.
//!
//! Tandem administers every cluster as the role `postgres`, with peer authentication only. If that role is missing, it is
//! created once, without a password, in PostgreSQL's single-user mode, which needs no authentication. Callers hold the
//! [`super::lock::StateLock`].

use std::fs;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use anyhow::{Context, bail};

use super::binaries::Installation;
use super::files::write_whole;
use super::home::Home;
use super::settings::{HEADER, Rendered, SUPERUSER};
use super::trouble::{self, Lasting};
use super::{server, stale};
use crate::durable;
use crate::exit::{Code, Failure, with_disk_full};
use crate::process::Streaming;

/// How long the single-user session may take. Crash recovery comes first if the cluster was not shut down.
const LIMIT: Duration = Duration::from_secs(600);
/// The configuration file of the single-user session.
const CONF: &str = "tandem.adopting.conf";
/// The files that [`super::cluster::configure`] writes.
const CONFIGURATION: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];
/// How their names end once Tandem writes them.
const BEFORE: &str = "before-tandem";
/// Marks the output line that reports the new role.
const MADE: &str = "Tandem administers this cluster as role";

/// Make sure that the cluster of `home` has the role that Tandem needs; costs a look into one file where `files` have been
/// in place before.
///
/// # Errors
/// PostgreSQL does not run on the cluster; with what it said.
pub async fn adopt(home: &Home, installation: &Installation, files: &Rendered) -> anyhow::Result<()> {
    if fs::read_to_string(home.data.join("postgresql.conf")).is_ok_and(|text| text.starts_with(HEADER)) {
        return Ok(());
    }
    let conf = home.data.join(CONF);
    // The cluster's own configuration may name libraries and files that this machine lacks.
    write_whole(&conf, &files.conf, 0o600, home.server.as_ref())?;
    let outcome = make_role(home, installation).await;
    fs::remove_file(&conf).with_context(|| format!("remove {}", conf.display()))?;
    outcome?;
    keep_configuration(home)
}

/// Give the files that Tandem is about to write in the cluster's place another name: an operator's settings and rules are
/// in them. What was kept once stays.
fn keep_configuration(home: &Home) -> anyhow::Result<()> {
    let mut kept = Vec::new();
    for name in CONFIGURATION {
        let (from, to) = (home.data.join(name), format!("{name}.{BEFORE}"));
        match durable::rename_new(&from, &home.data.join(&to)) {
            Ok(()) => kept.push(to),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) => {}
            Err(error) => return Err(error).with_context(|| format!("rename {} to {to}", from.display())),
        }
    }
    if !kept.is_empty() {
        tracing::warn!(
            "from now on Tandem writes the configuration of the cluster in {}; what was there is kept as {}: what shall hold \
             of it belongs into [postgres.settings]",
            home.data.display(),
            kept.join(", ")
        );
    }
    Ok(())
}

async fn make_role(home: &Home, installation: &Installation) -> anyhow::Result<()> {
    let environment = stale::clear(home, stale::FAST_GRACE).await?;
    let config = format!("config_file={}", home.data.join(CONF).display());
    let command = server::program(home, installation, &environment)
        .arg("--single")
        .arg("-D")
        .arg(&home.data)
        .args(["-c", config.as_str(), "-c", "shared_preload_libraries=", "-c", "archive_mode=off"])
        .arg("template1");
    let (running, mut input) = Streaming::writing(&command)?;
    // Each input line is one statement. RAISE messages go to the server's log, here standard error.
    writeln!(
        input,
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{SUPERUSER}') THEN \
         CREATE ROLE {SUPERUSER} SUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS LOGIN; \
         RAISE WARNING '{MADE} {SUPERUSER}, made beside its superuser %', current_user; END IF; END $$"
    )
    .context("speak to PostgreSQL")?;
    drop(input);
    let ended = running.end(LIMIT).await?;
    let said = ended.stderr.join("\n");
    if !ended.exit.success() || said.contains("ERROR:") {
        let (data, exit) = (home.data.display(), ended.exit);
        let text = format!("the cluster in {data} cannot be taken over ({exit}): {said}");
        if let Some(Lasting { code, why }) = trouble::of_locale(&text) {
            bail!(Failure::new(code, why));
        }
        bail!(with_disk_full(Failure::new(Code::CannotCreate, text).into(), &said));
    }
    if let Some((_, who)) = said.split_once(MADE) {
        let who = who.lines().next().unwrap_or_default();
        tracing::warn!("{MADE}{who}; it has no password, and only Tandem's own users get in as it");
    }
    Ok(())
}
