//! `tandem backup mark` and `tandem restore --list-moments`: moments with a name, and all that can be reached.

use crate::backup::pitr::archive::Archive;
use crate::backup::pitr::marks::{self, Mark};
use crate::backup::pitr::moments::{self, Chain, Moments};
use crate::backup::pitr::target::timestamp;
use crate::backup::pitr::{self};
use crate::cli::Common;
use crate::commands::{backup_base, open, running};
use crate::exit::{Code, Failure};
use crate::postgres::home::Home;
use crate::postgres::server;

/// Give the present moment of the running server the name `name`.
///
/// # Errors
/// No server of Tandem's own runs, it does not archive its WAL, or what [`marks::set`] says.
pub async fn mark(common: &Common, name: &str, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    let home = Home::resolve(&settings)?;
    backup_base::check(&settings)?;
    let Some(port) = server::own_running_port(&home) else {
        let text = "no server runs, and a mark is a moment of a running one: start it with `tandem up`";
        return Err(Failure::new(Code::Temporary, text).into());
    };
    let mark = marks::set(&home, port, &pitr::archive(&settings, &home), name).await?;
    let words = format!(
        "mark {} at {} on timeline {}, {}: `tandem restore --at-mark {}` leads back to it",
        mark.name,
        mark.lsn,
        mark.timeline,
        timestamp(mark.at),
        mark.name
    );
    running::say(&if json { serde_json::to_string_pretty(&mark)? } else { words })?;
    Ok(Code::Stopped)
}

/// The mark `name`.
///
/// # Errors
/// [`Failure`]: there is none; with those that there are.
pub fn find(archive: &Archive, name: &str) -> anyhow::Result<Mark> {
    if let Some(mark) = marks::find(archive, name)? {
        return Ok(mark);
    }
    let newest: Vec<String> = marks::all(archive).into_iter().rev().take(3).map(|mark| mark.name).collect();
    let newest = match newest.as_slice() {
        [] => "there is none at all: `tandem backup mark NAME` sets one".to_owned(),
        names => format!("the newest are {}; `tandem restore --list-moments` shows all", names.join(", ")),
    };
    Err(Failure::new(Code::Usage, format!("there is no mark {name}: {newest}. Nothing was changed")).into())
}

/// Show what can be reached.
///
/// # Errors
/// The archive cannot be read.
pub fn list(common: &Common, json: bool) -> anyhow::Result<Code> {
    let settings = open::settings(common, Vec::new())?;
    let moments = moments::reachable(&pitr::archive(&settings, &Home::resolve(&settings)?))?;
    running::say(&if json { serde_json::to_string_pretty(&moments)? } else { words(&moments) })?;
    Ok(Code::Stopped)
}

fn words(moments: &Moments) -> String {
    if moments.chains.is_empty() {
        return "no moment can be reached: `tandem backup base` makes the base backup that they begin from".to_owned();
    }
    let mut text: Vec<String> = moments.chains.iter().map(line_of_time).collect();
    if !moments.unreachable.is_empty() {
        let names: Vec<&str> = moments.unreachable.iter().map(|mark| mark.name.as_str()).collect();
        text.push(format!("marks whose WAL is gone, or not archived yet: {}", names.join(", ")));
    }
    text.push("any moment between: tandem restore --at TIME; a mark: tandem restore --at-mark NAME".to_owned());
    text.join("\n")
}

/// A chain, a line for each of its moments.
fn line_of_time(chain: &Chain) -> String {
    let bases = chain.bases.iter().map(|base| (base.at, format!("base backup {}", base.name)));
    let marks = chain.marks.iter().map(|mark| (mark.at, format!("mark {}", mark.name)));
    let mut points: Vec<_> = bases.chain(marks).collect();
    points.sort();
    let end = match &chain.gap {
        Some(why) => format!("a gap at {}: {why}", chain.until),
        None => format!("the newest that is archived, up to {}", chain.until),
    };
    points.push((chain.archived, end));
    let lines = points.iter().map(|(at, what)| format!("\n  {:<32} {what}", timestamp(*at)));
    format!("timeline {}{}", chain.timeline, lines.collect::<String>())
}
