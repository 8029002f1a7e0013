//! `tandem restore --at`, `--at-mark`, `--to-lsn`, `--to-xid` and `--to-end`: the whole cluster, back to a moment.

use anyhow::Context;

use crate::backup::pitr::archive::Archive;
use crate::backup::pitr::away::Away;
use crate::backup::pitr::away::bring::Brought;
use crate::backup::pitr::target::{self, Target};
use crate::backup::pitr::to_moment::{self, RestoredCluster, Way, Wish};
use crate::backup::pitr::{self, subscriptions, wal};
use crate::cli::{Common, RestoreArgs};
use crate::commands::asks::asked_to_end;
use crate::commands::restore::confirm;
use crate::commands::{moments, open, running};
use crate::config::{PostgresMode, Settings};
use crate::exit::{Code, Failure};
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::postgres::{cluster, stale};

/// Recover the stopped database to a point in time.
///
/// # Errors
/// A server runs, nobody agreed, or what [`to_moment::find`] and [`to_moment::restore_cluster`] say.
pub async fn run(common: &Common, args: &RestoreArgs) -> anyhow::Result<Code> {
    // What is wrong with it is told before anything is looked for.
    target(args)?;
    let settings = open::settings(common, Vec::new())?;
    refuse_attached(&settings)?;
    let home = Home::resolve(&settings)?;
    home.prepare()?;
    let lock = StateLock::take(&home, "tandem restore");
    let _lock = lock.context("a restore needs the database stopped: `tandem stop` stops it")?;
    stale::end_leftover(&home, settings.stop.postgres_grace).await?;
    let installation = open::installation(&settings).await?;
    cluster::check_reach(&home, &installation)?;
    let brought = survey(&settings, &home, args).await?;
    let own = pitr::archive(&settings, &home);
    let archive = brought.as_ref().map_or(&own, |brought| &brought.archive);
    let ((target, timeline), accept) = (moment(args, archive)?, args.accept);
    let wish = Wish { home: &home, settings: &settings, archive, target, timeline, accept };
    let way = way(&wish, brought.as_ref()).await?;
    confirm(args.yes, &question(&wish, &way))?;
    let restored = tokio::select! {
        restored = to_moment::restore_cluster(&wish, &way, &installation) => restored?,
        () = asked_to_end() => {
            let text = "interrupted; the data that was there is as it was";
            return Err(Failure::new(Code::Failed, text).into());
        }
    };
    running::say(&if args.json { json(&way, &restored)? } else { words(&way, &restored) })?;
    if let Some(brought) = brought {
        if !args.json {
            running::say(&brought.told())?;
        }
        brought.conclude(&own);
    }
    Ok(Code::Stopped)
}

/// What there is at `--from`.
async fn survey(settings: &Settings, home: &Home, args: &RestoreArgs) -> anyhow::Result<Option<Brought>> {
    let Some(address) = &args.from else { return Ok(None) };
    let trust = args.trust || settings.restore_trust;
    Ok(Some(Away::at(settings, home, address, trust).await?.survey(settings, home).await?))
}

/// The way to what is wished, once all that it needs was fetched.
async fn way(wish: &Wish<'_>, brought: Option<&Brought>) -> anyhow::Result<Way> {
    let Some(brought) = brought else { return to_moment::find(wish) };
    let fetching = async {
        brought.fetch(wish).await?;
        let way = to_moment::find(wish)?;
        brought.fetch_way(&way, wish.target).await.map(|()| way)
    };
    tokio::select! {
        way = fetching => way,
        () = asked_to_end() => {
            let text = "interrupted; nothing was changed, and what was fetched stays for the next try";
            Err(Failure::new(Code::Failed, text).into())
        }
    }
}

/// Whether a moment is asked for.
pub fn is_asked(args: &RestoreArgs) -> bool {
    args.at.is_some() || args.to_lsn.is_some() || args.at_mark.is_some() || args.to_xid.is_some() || args.to_end
}

/// What is asked for, and the timeline that it is on, where that is said or known.
///
/// # Errors
/// [`Failure`]: there is no such time, position or mark.
pub fn moment(args: &RestoreArgs, archive: &Archive) -> anyhow::Result<(Target, Option<u32>)> {
    let Some(name) = &args.at_mark else { return Ok((target(args)?, args.timeline)) };
    let mark = moments::find(archive, name)?;
    // What was live then is written down with the mark.
    Ok((Target::Before(mark.lsn), args.timeline.or(Some(mark.timeline))))
}

/// Refuse a server whose past is somebody else's.
///
/// # Errors
/// [`Failure`]: it is not Tandem's own.
pub fn refuse_attached(settings: &Settings) -> Result<(), Failure> {
    if settings.postgres.mode == PostgresMode::Attach {
        return Err(Failure::new(Code::Config, "the server is not Tandem's own: whoever runs it restores it"));
    }
    Ok(())
}

fn target(args: &RestoreArgs) -> anyhow::Result<Target> {
    let usage = |error: String| Failure::new(Code::Usage, error);
    if let Some(transaction) = args.to_xid {
        return Ok(Target::Transaction(transaction));
    }
    match (&args.at, &args.to_lsn) {
        (Some(at), _) => Ok(Target::Time(target::time(at).map_err(|error| usage(format!("--at: {error}")))?)),
        (None, Some(lsn)) => {
            Ok(Target::Lsn(lsn.parse().map_err(|error: wal::NoLsn| usage(format!("--to-lsn: {error}")))?))
        }
        (None, None) => Ok(Target::End),
    }
}

/// What the recovery will do, in words.
fn question(wish: &Wish<'_>, way: &Way) -> String {
    let base = &way.base;
    format!(
        "{} will be restored to {}: from {} of {}, along timeline {}.\n\
         What was written since will be gone from the database; its present data is kept beside.",
        wish.home.data.display(),
        wish.target,
        base.name,
        target::timestamp(base.ended),
        way.timeline
    )
}

fn json(way: &Way, restored: &RestoredCluster) -> anyhow::Result<String> {
    let recovered = &restored.recovered;
    Ok(serde_json::to_string_pretty(&serde_json::json!({
        "base": way.base.name,
        "followed_timeline": way.timeline,
        "timeline": recovered.timeline,
        "lsn": recovered.lsn,
        "last_transaction": recovered.last_transaction,
        "kept": restored.kept,
        "disabled_subscriptions": recovered.disabled,
        "lost_slots": restored.slots,
    }))?)
}

fn words(way: &Way, restored: &RestoredCluster) -> String {
    let recovered = &restored.recovered;
    let last = recovered.last_transaction.as_deref();
    let last = last.map_or_else(
        || "nothing was committed after the base backup".into(),
        |time| format!("the last transaction is of {time}"),
    );
    let mut text =
        format!("restored from {}; {last}; timeline {} begins at {}", way.base.name, recovered.timeline, recovered.lsn);
    if let Some(kept) = &restored.kept {
        text.push_str(&format!("\nthe data that was there before is in {}", kept.display()));
    }
    for told in subscriptions::told(&recovered.disabled, &restored.slots) {
        text.push_str(&format!("\n{told}"));
    }
    text.push_str("\n`tandem up` starts it; then `tandem backup base` makes the next restore a short one");
    text
}
