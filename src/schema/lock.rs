//! The lock that lets one migration run at a time on a database, across machines.
//!
//! It is polled: a session that *waits* in `pg_advisory_lock` holds a snapshot, which `CREATE INDEX CONCURRENTLY` in the
//! holder waits for in turn, and PostgreSQL does not see that as a deadlock. It lives on a connection of its own, since
//! it belongs to a session and a pool gives no promise about those.

use std::time::Duration;

use anyhow::Context;
use sea_orm::sqlx::{Connection, PgConnection, query_as, query_scalar};
use tokio::time::{Instant, sleep, timeout};

use super::connect::{self, ANSWER_LIMIT, answered};
use crate::exit::{Code, Failure, in_words, is_broken_off, what_the_server_said};
use crate::plan::DatabaseUrl;

/// The key of the lock: "tandem" in ASCII.
pub const LOCK_KEY: i64 = 0x7461_6e64_656d;

/// What our sessions are called in `pg_stat_activity`.
pub(super) const APPLICATION_NAME: &str = "tandem-migrate";

/// How often the session that holds the lock sends something.
const KEPT_ALIVE: Duration = Duration::from_secs(20);

/// Time between two tries while another session holds the lock.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The session that holds the lock in this database, found by the two halves of the 64-bit key (PostgreSQL documentation,
/// "pg_locks").
const HOLDER: &str = "
    SELECT lock.pid, coalesce(activity.application_name, ''), coalesce(activity.client_addr::text, 'this machine')
    FROM pg_catalog.pg_locks AS lock LEFT JOIN pg_catalog.pg_stat_activity AS activity USING (pid)
    WHERE lock.locktype = 'advisory' AND lock.granted AND lock.objsubid = 1
      AND lock.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
      AND lock.classid::bigint = $1 >> 32 AND lock.objid::bigint = $1 & 4294967295";

/// Do `work`, which migrates with a tool of its own, while no other migration runs on the database.
///
/// # Errors
/// [`Code::Temporary`] when the lock was not free within `limit`; [`Code::Config`] for a pooler that makes it void; and
/// what `work` says: with the end of the lock's session as its cause where the server broke that off.
pub async fn locked<T>(
    url: &DatabaseUrl,
    limit: Duration,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let session = connect::session(url, APPLICATION_NAME).await?;
    let mut lock = Lock::take(url, session, limit).await?;
    let result = lock.held_during(work).await;
    let result = match result {
        Err(failed) => match lock.check().await {
            Err(gone) if is_broken_off(&gone) => Err(gone.context(in_words(&failed))),
            _ => Err(failed),
        },
        done => done,
    };
    lock.release().await;
    result
}

/// The lock, held. Dropping it closes its connection, and PostgreSQL lets go of the lock.
#[derive(Debug)]
pub(super) struct Lock {
    session: PgConnection,
}

impl Lock {
    /// Take the lock on `session`, which is at `url`, waiting at most `limit` for the session that holds it.
    ///
    /// # Errors
    /// A [`Code::Temporary`] failure that names the holder when the limit has passed; [`Code::Config`] for a pooler that
    /// makes the lock void.
    pub async fn take(url: &DatabaseUrl, mut session: PgConnection, limit: Duration) -> anyhow::Result<Self> {
        connect::refuse_shared_sessions(url, APPLICATION_NAME, &mut session).await?;
        connect::unlimited(&mut session).await.context("prepare to take the migration lock")?;
        let deadline = Instant::now() + limit;
        let mut announced = false;
        loop {
            let taken = query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK_KEY).fetch_one(&mut session);
            if answered(ANSWER_LIMIT, "take the migration lock", taken).await? {
                return Ok(Self { session });
            }
            if Instant::now() >= deadline {
                let who = holder(&mut session).await;
                let message =
                    format!("another migration is running on this database after {limit:?} of waiting: {who}");
                return Err(Failure::new(Code::Temporary, message).into());
            }
            if !announced {
                announced = true;
                let who = holder(&mut session).await;
                tracing::info!(lock.holder = who, "waiting for another migration to end");
            }
            sleep(POLL_INTERVAL.min(deadline - Instant::now())).await;
        }
    }

    /// The session that holds the lock. It answers only while the lock is held.
    pub fn session(&mut self) -> &mut PgConnection {
        &mut self.session
    }

    /// Make sure that the lock is still held: the server may have restarted since.
    pub async fn check(&mut self) -> anyhow::Result<()> {
        answered(ANSWER_LIMIT, "keep the migration lock", self.session.ping()).await
    }

    /// Let go of the lock at once.
    pub async fn release(mut self) {
        let release = async {
            let released = query_scalar::<_, bool>("SELECT pg_advisory_unlock($1)").bind(LOCK_KEY);
            if let Err(error) = released.fetch_one(&mut self.session).await {
                // Closing the connection has the same effect, a little later.
                tracing::debug!("release the migration lock: {}", what_the_server_said(&error));
            }
            let _closed = self.session.close().await;
        };
        if timeout(ANSWER_LIMIT, release).await.is_err() {
            // The socket closes as the session is dropped.
            tracing::debug!("release the migration lock: no answer within {ANSWER_LIMIT:?}");
        }
    }

    /// Do `work`, which has a limit of its own, and say something to the server now and then: routers between two machines
    /// forget a connection that is silent for long. `work` goes on while the server does not answer.
    async fn held_during<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let keep = async {
            loop {
                sleep(KEPT_ALIVE).await;
                if let Err(error) = self.check().await {
                    tracing::warn!("{}; the migration goes on without it", in_words(&error));
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            result = work => result,
            () = keep => unreachable!("it has no end"),
        }
    }
}

async fn holder(session: &mut PgConnection) -> String {
    let asked = query_as::<_, (i32, String, String)>(HOLDER).bind(LOCK_KEY).fetch_optional(session);
    match answered(ANSWER_LIMIT, "ask the server", asked).await {
        Ok(Some((pid, name, place))) if name.is_empty() => format!("server process {pid}, from {place}"),
        Ok(Some((pid, name, place))) => format!("{name} (server process {pid}, from {place})"),
        Ok(None) => "it ended just now".to_owned(),
        Err(error) => format!("who holds the lock is unknown ({})", in_words(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sea_orm::sqlx::ConnectOptions;
    use sea_orm::sqlx::postgres::PgSslMode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A session of a server that lets it in and says nothing more, and the server's end of it.
    async fn mute() -> (PgConnection, tokio::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // AuthenticationOk, ReadyForQuery.
        let server = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            assert!(socket.read(&mut [0; 1024]).await.unwrap() > 0);
            socket.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.unwrap();
            socket
        };
        let options = connect::blank("app", APPLICATION_NAME).host("127.0.0.1").port(port).username("app");
        let options = options.ssl_mode(PgSslMode::Disable);
        let (socket, session) = tokio::join!(server, options.connect());
        (session.unwrap(), socket)
    }

    #[tokio::test]
    async fn no_question_of_a_migration_waits_for_ever() {
        let url = DatabaseUrl::parse("postgresql://app@127.0.0.1/app").unwrap();
        let (mut session, _socket) = mute().await;
        tokio::time::pause();
        let said = |error: anyhow::Error| {
            let text = format!("{error:#}");
            assert!(text.contains("no answer within") && crate::exit::code_of(&error) == Code::Temporary, "{text}");
        };
        said(connect::unlimited(&mut session).await.unwrap_err());
        tokio::time::resume();
        let (mut session, _socket) = mute().await;
        tokio::time::pause();
        said(connect::refuse_shared_sessions(&url, APPLICATION_NAME, &mut session).await.unwrap_err());
        tokio::time::resume();
        let (mut session, _socket) = mute().await;
        tokio::time::pause();
        assert!(holder(&mut session).await.contains("no answer within"));
        tokio::time::resume();
        let (mut session, _socket) = mute().await;
        tokio::time::pause();
        said(super::super::inspect::inspect(&mut session).await.unwrap_err());
    }

    #[tokio::test]
    async fn a_server_that_hangs_holds_up_neither_the_work_nor_its_end() {
        let (session, _socket) = mute().await;
        let mut lock = Lock { session };
        tokio::time::pause();
        let begun = Instant::now();
        let work = async {
            sleep(KEPT_ALIVE + Duration::from_secs(1)).await;
            Ok("ended")
        };
        assert_eq!(lock.held_during(work).await.unwrap(), "ended");
        assert!(begun.elapsed() < KEPT_ALIVE + ANSWER_LIMIT, "{:?}", begun.elapsed());
        assert!(lock.check().await.unwrap_err().to_string().contains("no answer within"));
        lock.release().await;
    }
}
