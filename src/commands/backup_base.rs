//! `tandem backup base` and `tandem backup bases`.

use std::time::Duration;

use comfy_table::Table;

use crate::backup::pitr::base::{self, Made, Source};
use crate::backup::pitr::bases::Listing;
use crate::backup::pitr::expiry::Keep;
use crate::backup::pitr::{self, bases};
use crate::cli::Common;
use crate::commands::asks::asked_to_end;
use crate::commands::table::{plain, size};
use crate::commands::{backup, open, running};
use crate::config::{PostgresMode, Settings};
use crate::exit::{Code, Failure};
use crate::postgres::home::Home;
use crate::postgres::server;
use crate::telemetry;

/// Make a base backup of the running server.
///
/// # Errors
/// No server of Tandem's own runs, it does not archive its WAL, or what [`base::make`] says.
pub async fn make(common: &Common, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    let home = Home::resolve(&settings)?;
    check(&settings)?;
    let Some(port) = server::own_running_port(&home) else {
        let text = "no server runs, and a base backup is made of a running one: start it with `tandem up`";
        return Err(Failure::new(Code::Temporary, text).into());
    };
    backup::stand_back(&settings);
    let wanted = &settings.backup.pitr;
    let (archive, keep) =
        (pitr::archive(&settings, &home), Keep { count: wanted.base_backups, days: wanted.keep_days });
    let progress = telemetry::progress("Making a base backup");
    let stop_free = settings.disk.stop_free;
    let rate = settings.backup.rate;
    let sent = &pitr::away::sent_everywhere(&settings, &home);
    let source = Source { home: &home, port, archive: &archive, keep, stop_free, sent, rate };
    let made = tokio::select! {
        made = base::make(&source) => made?,
        // Dropping the future ends the session and removes the unfinished backup.
        () = asked_to_end() => return Err(Failure::new(Code::Failed, "interrupted; nothing of it is left").into()),
    };
    drop(progress);
    running::say(&if json { serde_json::to_string_pretty(&made.base)? } else { words(&made) })?;
    Ok(Code::Stopped)
}

/// List the base backups.
///
/// # Errors
/// The archive cannot be read.
pub fn list(common: &Common, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    let Listing { bases, unreadable } = bases::listing(&pitr::archive(&settings, &Home::resolve(&settings)?))?;
    for base in unreadable {
        tracing::warn!("{base}");
    }
    if json {
        running::say(&serde_json::to_string_pretty(&bases)?)?;
        return Ok(Code::Stopped);
    }
    if bases.is_empty() {
        running::say("there is none yet: `tandem backup base` makes one")?;
        return Ok(Code::Stopped);
    }
    let mut table = Table::new();
    table.set_header(["NAME", "ENDED", "TIMELINE", "START", "STOP", "SIZE", "ARCHIVED"]);
    for base in &bases {
        let ended = humantime::format_rfc3339_seconds(base.ended).to_string();
        let (timeline, start, stop) =
            (base.timeline.to_string(), base.start_lsn.to_string(), base.stop_lsn.to_string());
        table.add_row([
            base.name.clone(),
            ended,
            timeline,
            start,
            stop,
            size(Some(base.size)),
            size(Some(base.archived_size)),
        ]);
    }
    running::say(&plain(table, &[2, 5, 6]))?;
    Ok(Code::Stopped)
}

/// Refuse where no base backup and no mark is of use.
///
/// # Errors
/// [`Failure`] that says why.
pub fn check(settings: &Settings) -> anyhow::Result<()> {
    let text = match (settings.postgres.mode, settings.backup.pitr.enabled) {
        (PostgresMode::Managed, true) => return Ok(()),
        (PostgresMode::Managed, false) => {
            "backup.pitr.enabled is false: without archived WAL neither a base backup nor a mark is of use"
        }
        (PostgresMode::Attach, _) => "the server is not Tandem's own: whoever runs it makes its base backups and marks",
    };
    Err(Failure::new(Code::Config, text).into())
}

fn words(made: &Made) -> String {
    let base = &made.base;
    let (size, archived, took) =
        (size(Some(base.size)), size(Some(base.archived_size)), Duration::from_millis(base.duration_ms));
    let mut text = format!("{}: {size} in {archived}, verified, after {took:.1?}", base.name);
    for old in &made.removed {
        text.push_str(&format!("\nremoved {}", old.name));
    }
    if made.removed_wal > 0 {
        text.push_str(&format!("\nremoved {} files of WAL that none of those that are kept needs", made.removed_wal));
    }
    text
}
