//! Check the database the way a worker reaches it: over its address, with its role and password.
//!
//! A server that answers the superuser on its unix socket may still refuse workers, or allow them no writes.

use std::time::{Duration, Instant};

use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::{self, ConnectOptions, Connection, query_scalar};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::probe::knock;
use super::trouble::{Answer, AnswerSource};
use crate::exit::own_limit;
use crate::health::picture::Fault;
use crate::plan::DatabaseUrl;
use crate::schema;

/// Time between two checks while workers are refused.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two full sessions while workers are let in: a session costs milliseconds, a knock microseconds.
const SESSION: Duration = Duration::from_secs(60);

/// The workers' way in, and the result of the last check.
pub struct Door {
    options: PgConnectOptions,
    address: (String, u16),
    found: Option<(Instant, Option<Fault>)>,
    /// When a session was last opened.
    entered: Option<Instant>,
}

impl Door {
    pub fn new(url: &DatabaseUrl) -> Self {
        Self {
            options: schema::options(url, "tandem"),
            address: (url.host.clone(), url.port),
            found: None,
            entered: None,
        }
    }

    /// Why a worker cannot write, if it cannot. The first check and one a minute open a session; the checks between them only
    /// knock, and only when `due`.
    pub async fn ask(&mut self, due: bool, limit: Duration) -> Option<Fault> {
        let fresh = self.entered.is_some_and(|at| at.elapsed() < SESSION);
        let fault = match self.found {
            Some((_, None)) if !due => return None,
            Some((at, Some(fault))) if at.elapsed() < RETRY => return Some(fault),
            Some((_, None)) if fresh => {
                let (host, port) = (self.address.0.as_str(), self.address.1);
                let knocked = timeout(limit, knock(TcpStream::connect((host, port)))).await;
                let shut = Fault::Door("the server takes no connections", None);
                let is_shut = matches!(knocked, Ok(Err(error)) if own_limit(&error).is_none());
                if is_shut { Some(shut) } else { None }
            }
            None | Some(_) => {
                self.entered = Some(Instant::now());
                match timeout(limit, self.enter()).await {
                    Ok(Ok(read_only)) => read_only.then_some(Fault::ReadOnly),
                    Ok(Err(error)) => fault(&Answer::of(&error)),
                    Err(_) => Some(Fault::Door("the server does not answer", None)),
                }
            }
        };
        self.found = Some((Instant::now(), fault));
        fault
    }

    /// Connect as a worker does. Returns whether its sessions are read-only.
    async fn enter(&self) -> Result<bool, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let read_only = query_scalar("SELECT current_setting('default_transaction_read_only')::bool")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(read_only)
    }
}

/// The fault that a refusal stands for. A server without a free connection still serves the workers that have one.
fn fault(answer: &Answer) -> Option<Fault> {
    match (answer.from, answer.fault()) {
        (AnswerSource::Network, _) => Some(Fault::Door("the server takes no connections", None)),
        (_, Fault::Lasting(what, code)) => Some(Fault::Door(what, code)),
        (AnswerSource::Server(_) | AnswerSource::Tls | AnswerSource::Url | AnswerSource::Own, _) => None,
    }
}
