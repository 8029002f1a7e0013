//! Whether the name of the server that is attached to resolves. A name may resolve a minute later, once a resolver answers
//! again or a container of that name has started: so this is asked where the server is needed, and never while the
//! configuration is read.

use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::config::Postgres;
use crate::exit::{Code, Failure};

/// The longest wait for the resolver, which may itself be out of reach.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Why the name of the server does not resolve and what to do, if it does not. The resolver runs on another thread.
pub async fn unresolved(postgres: &Postgres) -> Option<String> {
    let (url, help) = (postgres.url.as_ref()?, postgres.unresolved_help.as_ref()?);
    let why = match timeout(LOOKUP_LIMIT, lookup_host((url.host.as_str(), url.port))).await {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {LOOKUP_LIMIT:?}"),
    };
    Some(format!("host `{}` does not resolve ({why})\n  help: {help}", url.host))
}

/// For a command that needs the server at once.
///
/// # Errors
/// [`Code::Temporary`] where its name does not resolve.
pub async fn check(postgres: &Postgres) -> anyhow::Result<()> {
    match unresolved(postgres).await {
        None => Ok(()),
        Some(why) => Err(Failure::new(Code::Temporary, format!("the database cannot be reached: {why}")).into()),
    }
}
