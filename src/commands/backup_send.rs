//! `tandem backup send`, `tandem backup claim` and `tandem backup verify --from`: base backups and WAL in the destinations.

use anyhow::Context;
use chrono::Utc;

use crate::backup::copies::Copies;
use crate::backup::pitr::away::ledger::{Condition, Verified, dir_of};
use crate::backup::pitr::away::{self, Away};
use crate::backup::pitr::start;
use crate::cli::Common;
use crate::commands::asks::asked_to_end;
use crate::commands::running::say;
use crate::commands::table::size;
use crate::commands::{backup, open};
use crate::config::Settings;
use crate::exit::{Code, Failure};
use crate::postgres::home::{Home, make_dir};

/// Send what the destinations lack; with `follow` for as long as `tandem up` runs, which starts it so.
///
/// # Errors
/// There is no destination, another process sends already, or a destination did not get everything.
pub async fn send(common: &Common, follow: bool, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    let home = Home::resolve(&settings)?;
    if !away::is_wanted(&settings) {
        let text = "base backups and WAL go nowhere: that takes backup.pitr.enabled, backup.pitr.copy and an address in \
                    backup.destinations";
        return Err(Failure::new(Code::Config, text).into());
    }
    backup::stand_back(&settings);
    if follow {
        away::send::follow(&settings, &home).await?;
        return Ok(Code::Stopped);
    }
    let conditions = tokio::select! {
        sent = away::send::once(&settings, &home) => sent?,
        () = asked_to_end() => return Err(Failure::new(Code::Failed, "interrupted; what was sent is there").into()),
    };
    if json {
        say(&serde_json::to_string_pretty(&conditions)?)?;
    } else {
        conditions.iter().try_for_each(|condition| say(&words(condition)))?;
    }
    let failed = conditions.iter().find(|condition| condition.error.is_some());
    Ok(failed.map_or(Code::Stopped, |failed| if failed.lasting { Code::Config } else { Code::Temporary }))
}

/// How a destination is, in a line.
pub fn words(condition: &Condition) -> String {
    let lag = condition.lag();
    let error = condition.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    match (lag.as_str(), error.is_empty()) {
        ("nothing", true) => format!("{} has all base backups and WAL", condition.destination),
        _ => format!("{} lacks {lag}{error}", condition.destination),
    }
}

/// How all destinations are, as was last written down; nothing where none gets base backups and WAL.
pub fn told(settings: &Settings, home: &Home) -> String {
    away::conditions(settings, home).iter().map(|condition| format!("\n{}", words(condition))).collect()
}

/// Let this machine archive to `address`, in the place of another with the same cluster.
///
/// # Errors
/// It is no destination, cannot be reached, or holds the WAL of another cluster.
pub async fn claim(common: &Common, address: &str) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    let home = Home::resolve(&settings)?;
    let copies = Copies::open(&settings, address)?;
    let system = start::system_identifier(&home.data).context("there is no cluster here whose WAL could go there")?;
    let away = Away::of(copies, &home, system)?;
    let dir = dir_of(&home.state, &away.destination);
    make_dir(&dir, 0o755, None)?;
    let before = away.claim(&dir).await?;
    let before = before.map(|owner| format!(", in the place of {}, since {}", owner.machine, owner.since));
    say(&format!("this machine archives to {} from now on{}", away.destination, before.unwrap_or_default()))?;
    Ok(Code::Stopped)
}

/// Read all base backups and WAL at `address` again.
///
/// # Errors
/// It cannot be reached.
pub async fn verify(common: &Common, address: &str, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    let home = Home::resolve(&settings)?;
    home.prepare()?;
    backup::stand_back(&settings);
    let away = Away::at(&settings, &home, address, settings.restore_trust).await?;
    let audit = tokio::select! {
        audit = away.audit(&home, settings.disk.stop_free) => audit?,
        () = asked_to_end() => return Err(Failure::new(Code::Failed, "interrupted").into()),
    };
    Verified { at: Utc::now(), problems: audit.problems.clone() }.write(&home.state, &audit.destination)?;
    if json {
        say(&serde_json::to_string_pretty(&audit)?)?;
    } else {
        for problem in &audit.problems {
            say(&format!("BAD {problem}"))?;
        }
        let (bases, wal, read) = (audit.bases.len(), audit.wal, size(Some(audit.read_bytes)));
        let so = if audit.problems.is_empty() { "verified" } else { "as they were sent" };
        say(&format!("{}: {bases} base backups and {wal} files of WAL {so}, {read} read", audit.destination))?;
    }
    Ok(if audit.problems.is_empty() { Code::Stopped } else { Code::Failed })
}
