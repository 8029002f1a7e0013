//! `tandem database`: databases of the `tandem test` around this command, for harnesses in any language.

use anyhow::Context;

use crate::cli::{Common, Database};
use crate::commands::open;
use crate::commands::running::say;
use crate::exit::{Code, Failure};
use crate::harness::{Client, NewDatabase, VARIABLE};
use crate::plan::DatabaseUrl;

/// Get a database, or give one back.
///
/// # Errors
/// No `tandem test` is around this command, or it refuses.
pub async fn run(common: &Common, command: Database) -> anyhow::Result<Code> {
    let source = open::source(common, Vec::new())?;
    let socket = source.environment.get(VARIABLE).filter(|path| !path.is_empty());
    let client = Client::new(socket.ok_or_else(|| {
        let text = "no test harness is around this command: run it inside `tandem test -- CMD`";
        Failure::new(Code::Failed, text)
    })?);
    match command {
        Database::New { shared, lasting, json } => {
            let lease = client.new_database(&NewDatabase { shared, lasting, label: None }).await?;
            say(&if json { serde_json::to_string(&lease)? } else { lease.url })?;
        }
        Database::Drop { database, failed, json } => {
            let name = name(&database)?;
            let returned = client.give_back(&name, failed).await?;
            match (json, returned.url.as_ref()) {
                (true, _) => say(&serde_json::to_string(&returned)?)?,
                (false, Some(url)) => say(&format!("kept: {url}"))?,
                (false, None) => {}
            }
        }
    }
    Ok(Code::Stopped)
}

/// The name of a database that is given by its name or its URL.
fn name(text: &str) -> anyhow::Result<String> {
    if !text.contains("://") {
        return Ok(text.to_owned());
    }
    Ok(DatabaseUrl::parse(text).context("understand the URL")?.database)
}
