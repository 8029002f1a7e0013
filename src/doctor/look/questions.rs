//! What is asked of the server, each question in a transaction and within limits of its own, so that it waits for nobody's lock
//! and nothing of it stays in a pooler's session. Nothing is written.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, raw_sql};

use crate::doctor::facts::{Look, Unseen};
use crate::exit::{Code, code_of, in_words};
use crate::schema::answered;

/// How long the server may take for one question, and wait for a lock in it; in milliseconds, for the server itself.
const LIMITS: &str =
    "SET LOCAL statement_timeout = 3000; SET LOCAL lock_timeout = 1000; SET LOCAL search_path = pg_catalog; ";
/// As long as that, and a bit for the way.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

pub const CONNECTIONS: &str = "
    SELECT count(*) FILTER (WHERE backend_type = 'client backend'),
           current_setting('max_connections')::int8 - current_setting('superuser_reserved_connections')::int8
             - coalesce(current_setting('reserved_connections', true), '0')::int8
    FROM pg_stat_activity";

/// Those that wait for a lock, and those whose transaction is older than half a minute. A statement's first two words are its
/// kind; the rest of it may hold anything.
pub const SESSIONS: &str = "
    SELECT a.pid, coalesce(usename, '')::text, coalesce(application_name, ''), coalesce(state, ''),
           coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::float8,
           coalesce(extract(epoch FROM clock_timestamp() - state_change), 0)::float8,
           CASE WHEN l.pid IS NOT NULL
                THEN coalesce(extract(epoch FROM clock_timestamp() - l.since), 0)::float8 END,
           CASE WHEN l.pid IS NOT NULL THEN pg_blocking_pids(a.pid) ELSE '{}' END,
           coalesce(upper(substring(query FROM '^\\s*([a-zA-Z]+(?:\\s+[a-zA-Z]+)?)')), '')
    FROM pg_stat_activity a
    LEFT JOIN (SELECT pid, min(waitstart) AS since FROM pg_locks WHERE NOT granted GROUP BY pid) l ON l.pid = a.pid
    WHERE backend_type = 'client backend' AND a.pid <> pg_backend_pid()
      AND (l.pid IS NOT NULL OR xact_start IS NOT NULL)
    ORDER BY xact_start LIMIT 200";

pub const PREPARED: &str = "
    SELECT gid || ' in ' || database FROM pg_prepared_xacts
    WHERE prepared < clock_timestamp() - interval '5 minutes' ORDER BY prepared LIMIT 20";

pub const AGES: &str = "SELECT datname::text, age(datfrozenxid)::int8, mxid_age(datminmxid)::int8 FROM pg_database";

pub const ARCHIVER: &str = "
    SELECT current_setting('archive_mode') <> 'off',
           coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false), last_failed_wal
    FROM pg_stat_archiver";

pub const SLOTS: &str = "
    SELECT slot_name::text, active, coalesce(wal_status = 'lost', false),
           coalesce(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                         ELSE pg_current_wal_lsn() END, restart_lsn), 0)::int8
    FROM pg_replication_slots LIMIT 100";

pub const SETTINGS: &str = "
    SELECT name, CASE WHEN unit IN ('8kB', 'kB', 'MB', 'GB', 'B')
                      THEN pg_size_bytes(current_setting(name))::text ELSE setting END
    FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'ssl', 'listen_addresses', 'shared_buffers', 'max_connections', 'autovacuum',
                   'server_version', 'data_checksums', 'transaction_read_only', 'max_files_per_process')";

pub const PENDING: &str = "SELECT name FROM pg_settings WHERE pending_restart ORDER BY name";

/// Those that are being built are not valid yet.
pub const INVALID_INDEXES: &str = "
    SELECT format('%I.%I', n.nspname, c.relname)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE NOT i.indisvalid AND c.relkind = 'i'
      AND NOT EXISTS (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
    ORDER BY 1 LIMIT 20";

pub const DAMAGED_PAGES: &str = "SELECT coalesce(sum(checksum_failures), 0)::int8 FROM pg_stat_database";

/// The rules as pg_hba.conf has them.
pub const HBA: &str = "
    SELECT concat_ws(' ', type, array_to_string(database, ','), array_to_string(user_name, ','),
                     address || coalesce('/' || netmask, ''), auth_method, error)
    FROM pg_hba_file_rules ORDER BY line_number LIMIT 200";

pub const IS_SUPERUSER: &str = "SELECT rolsuper FROM pg_roles WHERE rolname = current_user";

pub const CLOCK: &str = "SELECT extract(epoch FROM clock_timestamp())::float8";

pub const HAS_ALEMBIC: &str = "SELECT to_regclass('public.alembic_version') IS NOT NULL";
pub const ALEMBIC: &str = "SELECT version_num::text FROM public.alembic_version ORDER BY 1 LIMIT 20";

/// What differs from PostgreSQL's defaults, for a report. What may hold a password or a command is left out.
pub const CHANGED_SETTINGS: &str = "
    SELECT name || ' = ' || setting || coalesce(' ' || unit, '') FROM pg_settings
    WHERE source NOT IN ('default', 'override', 'client', 'session')
      AND name !~ 'conninfo|password|passphrase|_command$|ldap|krb' ORDER BY name";

/// A session that is asked one question after another.
pub struct Asker {
    session: Option<PgConnection>,
    why_gone: Unseen,
}

impl Asker {
    pub fn new(session: PgConnection) -> Self {
        Self { session: Some(session), why_gone: Unseen::unknown("the server does not answer any more") }
    }

    /// Nobody to ask, for this reason.
    pub fn nobody(why: Unseen) -> Self {
        Self { session: None, why_gone: why }
    }

    /// The rows that `question` has for an answer; `what` it asks for, in words.
    pub async fn rows(&mut self, what: &str, question: &str) -> Look<Vec<PgRow>> {
        let Some(session) = &mut self.session else { return Err(self.why_gone.clone()) };
        let asked = raw_sql(AssertSqlSafe(format!("{LIMITS}{question}"))).fetch_all(session);
        let answer = answered(ANSWER_LIMIT, what, asked).await;
        answer.map_err(|error| {
            // After an answer that did not come, the next one would be its.
            if code_of(&error) == Code::Temporary {
                self.session = None;
            }
            Unseen::unknown(in_words(&error))
        })
    }

    /// As [`Self::rows`], each row made into a `T`.
    pub async fn all<T>(
        &mut self,
        what: &str,
        question: &str,
        read: impl Fn(&PgRow) -> Result<T, sea_orm::sqlx::Error>,
    ) -> Look<Vec<T>> {
        let rows = self.rows(what, question).await?;
        let read: Result<Vec<T>, _> = rows.iter().map(read).collect();
        read.map_err(|error| Unseen::unknown(format!("{what}: {error}")))
    }

    /// As [`Self::all`], of a question that has one row for an answer.
    pub async fn one<T>(
        &mut self,
        what: &str,
        question: &str,
        read: impl Fn(&PgRow) -> Result<T, sea_orm::sqlx::Error>,
    ) -> Look<T> {
        let mut all = self.all(what, question, read).await?;
        all.pop().ok_or_else(|| Unseen::unknown(format!("{what}: no answer")))
    }

    /// The session itself, for what is not one question.
    pub fn session(&mut self) -> Look<&mut PgConnection> {
        self.session.as_mut().ok_or_else(|| self.why_gone.clone())
    }

    /// End the session.
    pub async fn close(self) {
        if let Some(session) = self.session {
            let _closed = tokio::time::timeout(ANSWER_LIMIT, session.close()).await;
        }
    }
}
