//! The probe's own session: it answers questions, and its end is noticed while nothing is asked.
//!
//! The driver reads from a plain connection only while a question is open; what it calls a listener reads all the time.
//! No channel is listened to.

use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sea_orm::sqlx::{self, Acquire, ConnectOptions, Connection};

/// How long the pool behind a listener may wait for a connection: it asks again and again while the server recovers.
const POOL_LIMIT: Duration = Duration::from_millis(500);

/// A session.
pub(super) enum Session {
    /// As it is opened: a pool would hide for a while why the server refuses.
    Plain(Box<PgConnection>),
    Watched(Box<Watched>),
}

/// A session that the driver reads from all the time.
pub(super) struct Watched {
    listener: PgListener,
    pool: PgPool,
}

impl Session {
    /// Open a plain session.
    pub async fn open(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        Ok(Self::Plain(Box::new(options.connect().await?)))
    }

    /// The connection, to ask something.
    pub async fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        match self {
            Self::Plain(connection) => Ok(connection),
            Self::Watched(watched) => watched.listener.acquire().await,
        }
    }

    /// Turn it into one whose end is noticed; `false` when it has ended. A plain one is replaced by another session.
    ///
    /// The caller sets the limit: while the server has no connection to spare, this waits for one.
    pub async fn watch(&mut self, options: &PgConnectOptions) -> bool {
        let Self::Plain(connection) = self else { return true };
        match Watched::open(options).await {
            Ok(watched) => {
                *self = Self::Watched(Box::new(watched));
                true
            }
            Err(_) if connection.ping().await.is_ok() => std::future::pending().await,
            Err(_) => false,
        }
    }

    /// Completes when a session that is watched has ended; a plain one never does.
    pub async fn ended(&mut self) {
        let Self::Watched(watched) = self else { return std::future::pending().await };
        // Nothing is listened to, so a notification is an error of the server's, and not the end.
        while matches!(watched.listener.try_recv().await, Ok(Some(_))) {}
    }
}

impl Watched {
    async fn open(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let pool =
            PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None).acquire_timeout(POOL_LIMIT);
        let pool = pool.connect_lazy_with(options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.ignore_pool_close_event(true);
        Ok(Self { listener, pool })
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Marked as closed here and now: the listener's connection then ends instead of going back into the pool.
        drop(self.pool.close());
    }
}
