//! One request to a health port, for `tandem health`.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::client::get;
use crate::plan::Place;

/// `GET path` from the health port that listens on `listen`: the HTTP status and the body.
///
/// # Errors
/// Nothing answers there, what answers is not HTTP, or `limit` has passed.
pub async fn probe(listen: &Place, path: &str, limit: Duration) -> anyhow::Result<(u16, String)> {
    let address = listen.reachable().context("the health port has no address")?;
    let asked = async {
        let stream = TcpStream::connect(address).await.context("connect (is `tandem up` running?)")?;
        get(stream, &address.to_string(), path, limit).await
    };
    match timeout(limit, asked).await {
        Ok(answer) => answer.with_context(|| format!("ask http://{address}{path}")),
        Err(_) => bail!("ask http://{address}{path}: no answer within {limit:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_says_what_to_look_at() {
        let _alone = crate::forks::none();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let error = probe(&Place::At(address), "/live", Duration::from_secs(5)).await.unwrap_err();
        assert!(format!("{error:#}").contains("tandem up"), "{error:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_says_nothing_is_named_with_the_limit() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let error = format!("{:#}", probe(&Place::At(address), "/live", Duration::from_secs(2)).await.unwrap_err());
        assert!(error.contains("no answer within 2s") && error.contains(&address.to_string()), "{error}");
    }
}
