//! The workers' door: the address, role and password that they get in with, which are not the superuser's.
//!
//! A server that answers over its unix socket may still let no worker in, or let it write nothing.

use std::time::{Duration, Instant};

use sea_orm::sqlx::postgres::PgConnectOptions;
use sea_orm::sqlx::{self, ConnectOptions, Connection, query_scalar};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::probe::knock;
use super::trouble::{Answer, From};
use crate::health::picture::Fault;
use crate::plan::DatabaseUrl;
use crate::schema;

/// How often a door that is shut is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a whole session is opened at one that is open: it costs milliseconds, a knock microseconds.
const SESSION: Duration = Duration::from_secs(60);

/// The door, and what was last found there.
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

    /// What keeps a worker from writing. A session tells, at first and now and then; between two of them a knock does, each
    /// time that it is `due`.
    pub async fn ask(&mut self, due: bool, limit: Duration) -> Option<Fault> {
        let fresh = self.entered.is_some_and(|at| at.elapsed() < SESSION);
        let fault = match self.found {
            Some((_, None)) if !due => return None,
            Some((at, Some(fault))) if at.elapsed() < RETRY => return Some(fault),
            Some((_, None)) if fresh => {
                let (host, port) = (self.address.0.as_str(), self.address.1);
                let knocked = timeout(limit, knock(TcpStream::connect((host, port)))).await;
                let shut = Fault::Door("the server takes no connections", None);
                if matches!(knocked, Ok(Err(_))) { Some(shut) } else { None }
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

    /// Get in as a worker does; whether its sessions are read-only.
    async fn enter(&self) -> Result<bool, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let read_only = query_scalar("SELECT current_setting('default_transaction_read_only')::bool")
            .fetch_one(&mut connection)
            .await?;
        connection.close().await?;
        Ok(read_only)
    }
}

/// What a refusal at the door means. A server whose connections are all taken serves those that have them.
fn fault(answer: &Answer) -> Option<Fault> {
    match (answer.from, answer.fault()) {
        (From::Network, _) => Some(Fault::Door("the server takes no connections", None)),
        (_, Fault::Lasting(what, code)) => Some(Fault::Door(what, code)),
        (From::Server(_) | From::Tls | From::Url, _) => None,
    }
}
