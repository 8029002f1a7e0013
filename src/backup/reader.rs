//! Read the rows of tables, without the rights of a superuser.
//!
//! A table's owner can have functions run by whoever asks for its rows: to plan a query, PostgreSQL computes what it can of the
//! expressions of the table's indexes and statistics. A superuser that asked would run them as one, with programs and files of the
//! server's user in reach (`COPY … TO PROGRAM`). So a role is made that may read everything and do nothing else. `COPY` of a whole
//! table plans nothing, and is what pg_dump does: by it rows are counted where such a function fails.

use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, query_scalar, raw_sql};

use super::census::{self, Table};
use super::contents::{self, Digests};
use super::reach::Reach;
use super::rights;
use crate::exit::in_words;
use crate::postgres::provision::identifier;
use crate::schema::{ANSWER_LIMIT, answered, copied};

/// What the names of roles begin with that are made to read.
pub const ROLE_START: &str = "tandem_reading_";
/// What such a role is.
const READS_ALL: &str = "LOGIN BYPASSRLS IN ROLE pg_read_all_data";
/// The roles that interrupted readings left.
const LEFT: &str = "SELECT rolname::text FROM pg_catalog.pg_roles AS role WHERE rolname ~ '^tandem_reading_'
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS session WHERE session.usesysid = role.oid)";
/// The column of a table that is read fastest. Any of them has a line for each row.
const NARROWEST: &str = "SELECT attname::text FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0
     AND NOT attisdropped AND attgenerated = '' ORDER BY attlen <= 0, attlen, attnum LIMIT 1";

/// What reads the rows of one snapshot.
pub struct Reader<'a> {
    /// Where the role is made and dropped.
    reach: &'a Reach,
    database: &'a str,
    snapshot: String,
    state: State,
    /// The role that was made.
    role: Option<String>,
}

enum State {
    /// No session is open, and this is the way to one.
    Closed(Reach),
    Open(Reach, PgConnection),
    /// None could be opened.
    Shut,
}

impl<'a> Reader<'a> {
    /// For the tables of `database`, in the exported `snapshot`.
    pub async fn enter(reach: &'a Reach, database: &'a str, snapshot: &str) -> Self {
        let mut reader =
            Self { reach, database, snapshot: snapshot.to_owned(), state: State::Closed(reach.clone()), role: None };
        if let Err(error) = reader.prepare().await {
            reader.shut(&error);
        }
        reader
    }

    /// Make a role to read with, if we are a superuser.
    async fn prepare(&mut self) -> anyhow::Result<()> {
        let mut session = self.reach.session(self.database).await?;
        let asked = query_scalar::<_, String>("SELECT pg_catalog.current_setting('is_superuser')");
        if answered(ANSWER_LIMIT, "ask who we are", asked.fetch_one(&mut session)).await? == "on" {
            self.take_role(&mut session).await?;
        }
        let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
        Ok(())
    }

    async fn take_role(&mut self, session: &mut PgConnection) -> anyhow::Result<()> {
        rights::run(session, "leave the search path", "SET search_path = ''".to_owned()).await?;
        self.sweep(session).await?;
        let (role, password) = rights::make_login(session, ROLE_START, READS_ALL).await?;
        self.state = State::Closed(self.reach.with_role(&role, &password));
        self.role = Some(role.clone());
        let may =
            query_scalar("SELECT pg_catalog.has_database_privilege($1, pg_catalog.current_database(), 'CONNECT')");
        let may = may.bind(&role).fetch_one(&mut *session);
        if !answered(ANSWER_LIMIT, "ask whether a role may connect", may).await? {
            let grant = format!("GRANT CONNECT ON DATABASE {} TO {}", identifier(self.database), identifier(&role));
            rights::run(session, "let a role connect", grant).await?;
        }
        Ok(())
    }

    async fn sweep(&self, session: &mut PgConnection) -> anyhow::Result<()> {
        let left = query_scalar::<_, String>(LEFT).fetch_all(&mut *session);
        for role in answered(ANSWER_LIMIT, "list the roles", left).await? {
            if let Err(error) = self.drop_role(session, &role).await {
                tracing::debug!("role {role}, which an interrupted backup left, stays: {}", in_words(&error));
            }
        }
        Ok(())
    }

    async fn drop_role(&self, session: &mut PgConnection, role: &str) -> anyhow::Result<()> {
        let revoke = format!("REVOKE CONNECT ON DATABASE {} FROM {}", identifier(self.database), identifier(role));
        rights::run(session, "take back what a role may", revoke).await?;
        rights::run(session, "drop it", format!("DROP ROLE {}", identifier(role))).await
    }

    fn shut(&mut self, error: &anyhow::Error) {
        tracing::info!("rows are counted by COPY, which takes longer: {}", in_words(error));
        self.state = State::Shut;
    }

    /// How many rows `table` has. `session` is one in the same snapshot, of any rights.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn count(&mut self, session: &mut PgConnection, table: &Table) -> anyhow::Result<i64> {
        let counted = match self.open().await {
            Some(own) => Some(census::count(own, table).await),
            None => None,
        };
        match counted {
            Some(Ok(rows)) => Ok(rows),
            // No statement can have the table's name.
            Some(Err(error)) if !table.is_utf8 => Err(error),
            other => {
                if let Some(Err(error)) = other {
                    tracing::debug!("{} is counted by COPY: {}", table.name, in_words(&error));
                    self.close();
                }
                by_copy(session, table).await
            }
        }
    }

    /// Add the rows of `table` to `digests`, as those of `belongs_to`. What cannot be digested stays without a digest.
    pub async fn digest(&mut self, digests: &mut Digests, table: &Table, belongs_to: &str) {
        let Some(own) = self.open().await else {
            digests.leave_out(belongs_to);
            return;
        };
        if let Err(error) = digests.add(own, (&table.schema, &table.name), belongs_to).await {
            tracing::warn!("the rows of {belongs_to} are only counted: {}", in_words(&error));
            digests.leave_out(belongs_to);
            self.close();
        }
    }

    async fn open(&mut self) -> Option<&mut PgConnection> {
        if let State::Closed(way) = &self.state {
            let way = way.clone();
            match self.session(&way).await {
                Ok(session) => self.state = State::Open(way, session),
                Err(error) => self.shut(&error),
            }
        }
        match &mut self.state {
            State::Open(_, session) => Some(session),
            State::Closed(_) | State::Shut => None,
        }
    }

    async fn session(&self, way: &Reach) -> anyhow::Result<PgConnection> {
        let mut session = way.session(self.database).await?;
        let begin = census::begin(Some(&self.snapshot));
        answered(ANSWER_LIMIT, "take the snapshot", raw_sql(AssertSqlSafe(begin)).execute(&mut session)).await?;
        census::names_as_they_are(&mut session).await?;
        answered(ANSWER_LIMIT, "say how values are written", raw_sql(contents::FORMATS).execute(&mut session)).await?;
        Ok(session)
    }

    /// A transaction that has failed is of no use any more.
    fn close(&mut self) {
        if let State::Open(way, _) = &self.state {
            self.state = State::Closed(way.clone());
        }
    }

    /// Close the session, and drop the role.
    pub async fn leave(self) {
        if let State::Open(_, session) = self.state {
            let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
        }
        let Some(role) = &self.role else { return };
        let reader = Self { state: State::Shut, role: None, ..self };
        let dropped = async {
            let mut session = reader.reach.session(reader.database).await?;
            reader.drop_role(&mut session, role).await?;
            answered(ANSWER_LIMIT, "close", session.close()).await
        };
        if let Err(error) = dropped.await {
            tracing::warn!("role {role} stays until the next backup: {}", in_words(&error));
        }
    }
}

/// How many rows `table` has, as COPY writes them.
async fn by_copy(session: &mut PgConnection, table: &Table) -> anyhow::Result<i64> {
    let column = query_scalar::<_, String>(NARROWEST).bind(table.oid).fetch_optional(&mut *session);
    let column = answered(ANSWER_LIMIT, "choose a column", column).await?;
    let column = column.map(|name| format!(" ({})", identifier(&name))).unwrap_or_default();
    let (schema, name) = (identifier(&table.schema), identifier(&table.name));
    Ok(copied::lines(session, &format!("COPY {schema}.{name}{column} TO STDOUT"), |_| {}).await?)
}
