//! Measures the server for `/metrics`: one session, one transaction a sample, a bounded number of rows.
//!
//! A view that the role may not read is left out and said; so is one that another version of PostgreSQL does not have. Must not
//! know who reads the result, or how often it is asked.

mod setting;
mod views;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions, Connection, Either, Row, ValueRef, raw_sql};
use tokio::time::timeout;

use self::views::{DATABASES, Pace, TABLES, VIEWS, View};
use super::home::Home;
use super::provision::superuser_options;
use crate::exit::what_the_server_said;
use crate::metrics::{Family, Kind, labels};
use crate::plan::DatabaseUrl;
use crate::schema;

/// How long one statement may take.
const STATEMENT_LIMIT_MS: u32 = 5000;
/// How long a whole sample may take.
const SAMPLE_LIMIT: Duration = Duration::from_secs(15);
/// How long saying goodbye to the server may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long one statement may wait for a lock.
const LOCK_LIMIT_MS: u32 = 1000;
/// So many statements come before what is asked.
const SETTINGS_BEFORE: usize = 4;
/// What costs more is asked with every fourth sample.
const SELDOM: u64 = 4;
/// With every so many samples a view that was refused is asked again: the right may have been given meanwhile.
const REFUSED_AGAIN: u64 = 40;
/// Most rows of one view that become series.
const ROWS_MAX: usize = 1000;
/// SQLSTATE of what a role may not do, and of a statement that took too long (PostgreSQL documentation, appendix A).
const NO_RIGHT: &str = "42501";
const QUERY_CANCELED: &str = "57014";

/// One of the things that are asked.
#[derive(Clone, Copy, Debug)]
enum Question {
    View(&'static View),
    Settings,
    /// Whether the session sees what sessions of other roles do.
    Rights,
}

/// Names a question.
type Key = (&'static str, Pace);

fn questions() -> impl Iterator<Item = Question> {
    VIEWS.iter().map(Question::View).chain([Question::Settings, Question::Rights])
}

impl Question {
    fn name(self) -> &'static str {
        match self {
            Self::View(view) => view.name,
            Self::Settings => "pg_settings",
            Self::Rights => "rights",
        }
    }

    fn pace(self) -> Pace {
        match self {
            Self::View(view) => view.pace,
            Self::Settings | Self::Rights => Pace::Seldom,
        }
    }

    fn key(self) -> Key {
        (self.name(), self.pace())
    }

    /// The right that a role lacks which may not ask this.
    fn right(self) -> &'static str {
        match self {
            Self::View(view) => view.right,
            Self::Settings | Self::Rights => "pg_read_all_settings",
        }
    }

    fn sql(self, tables: u32) -> String {
        match self {
            Self::View(view) => {
                let sql = view.sql.replace("{databases}", DATABASES).replace("{tables}", TABLES);
                sql.replace("{limit}", &tables.to_string())
            }
            Self::Settings => setting::SQL.to_owned(),
            Self::Rights => "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')".to_owned(),
        }
    }

    fn families(self, rows: &[PgRow], server: &str) -> Vec<Family> {
        match self {
            Self::View(view) => families_of(view, rows, server),
            Self::Settings => settings_of(rows, server),
            Self::Rights => Vec::new(),
        }
    }
}

/// Measures one server.
pub struct Sampler {
    options: PgConnectOptions,
    /// `host:port`, as postgres_exporter has it in the label `server`.
    server: String,
    session: Option<PgConnection>,
    samples: u64,
    failures: u64,
    /// What the questions that are asked seldom last brought.
    kept: BTreeMap<Key, Vec<Family>>,
    /// Which views could not be read, and why.
    left_out: BTreeMap<&'static str, &'static str>,
}

/// A sample.
#[derive(Debug)]
pub struct Measured {
    pub families: Vec<Family>,
    /// Why there is nothing of the server in it.
    pub error: Option<String>,
    /// What is newly left out, in words for the log.
    pub news: Vec<String>,
}

impl Sampler {
    /// Of the server that Tandem runs in `home`, as its superuser over the socket; `url` is the application's.
    pub fn managed(home: &Home, url: &DatabaseUrl) -> Self {
        Self::new(superuser_options(home, url.port, &url.database), url)
    }

    /// Of a server elsewhere, with the rights that the application's role has.
    pub fn attached(url: &DatabaseUrl) -> Self {
        Self::new(schema::options(url, "tandem"), url)
    }

    fn new(options: PgConnectOptions, url: &DatabaseUrl) -> Self {
        let server = format!("{}:{}", url.host, url.port);
        let (kept, left_out) = (BTreeMap::new(), BTreeMap::new());
        Self { options, server, session: None, samples: 0, failures: 0, kept, left_out }
    }

    /// Take a sample with the `tables` largest tables.
    pub async fn sample(&mut self, tables: u32) -> Measured {
        let began = Instant::now();
        let before = self.left_out.clone();
        let asked = timeout(SAMPLE_LIMIT, self.ask(tables)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {SAMPLE_LIMIT:?}")));
        self.samples += 1;
        let (mut families, error) = match asked {
            Ok(families) => (families, None),
            Err(error) => {
                // It may be in the middle of an exchange.
                (self.session, self.kept) = (None, BTreeMap::new());
                self.failures += 1;
                (Vec::new(), Some(error))
            }
        };
        families.extend(self.of_itself(error.is_none(), began.elapsed()));
        let news = self.left_out.iter().filter(|(name, why)| before.get(*name) != Some(*why));
        let news = news.map(|(name, why)| format!("{name} is left out of /metrics: {why}")).collect();
        Measured { families, error, news }
    }

    /// End the session, if there is one.
    pub async fn close(&mut self) {
        if let Some(session) = self.session.take() {
            let _closed = timeout(CLOSE_LIMIT, session.close()).await;
        }
    }

    async fn ask(&mut self, tables: u32) -> Result<Vec<Family>, String> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.options.connect().await.map_err(|error| what_the_server_said(&error))?,
        };
        let families = self.ask_views(&mut session, tables).await.map_err(|error| what_the_server_said(&error))?;
        self.session = Some(session);
        Ok(families)
    }

    /// Ask all that is due, in one exchange. Where the server refuses something of it, in one exchange each, which shows what.
    async fn ask_views(&mut self, session: &mut PgConnection, tables: u32) -> Result<Vec<Family>, sqlx::Error> {
        if self.samples.is_multiple_of(REFUSED_AGAIN) {
            self.left_out.clear();
        }
        let seldom = self.samples.is_multiple_of(SELDOM) || self.kept.is_empty();
        let is_due = |pace: Pace| pace == Pace::Each || seldom;
        let is_asked = |question: &Question| is_due(question.pace()) && !self.left_out.contains_key(question.name());
        let due: Vec<_> = questions().filter(is_asked).map(|question| (question, question.sql(tables))).collect();
        let all: Vec<&str> = due.iter().map(|(_, sql)| sql.as_str()).collect();
        let mut answers = BTreeMap::new();
        match exchange(session, &all).await {
            Ok(sets) => answers.extend(due.iter().map(|(question, _)| question.key()).zip(sets)),
            Err(error) if is_refusal(&error) => {
                raw_sql("ROLLBACK").execute(&mut *session).await?;
                for (question, sql) in &due {
                    let set = self.ask_one(session, *question, sql).await?;
                    answers.extend(set.map(|set| (question.key(), set)));
                }
            }
            Err(error) => return Err(error),
        }
        let mut families = Vec::new();
        for question in questions() {
            match answers.get(&question.key()) {
                Some(rows) => {
                    let found = question.families(rows, &self.server);
                    if question.pace() == Pace::Seldom {
                        self.kept.insert(question.key(), found.clone());
                    }
                    families.extend(found);
                }
                None if is_due(question.pace()) => drop(self.kept.remove(&question.key())),
                None => families.extend(self.kept.get(&question.key()).into_iter().flatten().cloned()),
            }
        }
        let rights = answers.get(&Question::Rights.key()).and_then(|rows| text_at(rows.first()?, 0));
        if rights.as_deref() == Some("f") {
            self.left_out.insert("what sessions of other roles do", "the role lacks pg_read_all_stats");
        }
        Ok(families)
    }

    /// Ask one question; nothing, and a note why, where the server refuses it.
    async fn ask_one(
        &mut self,
        session: &mut PgConnection,
        question: Question,
        sql: &str,
    ) -> Result<Option<Vec<PgRow>>, sqlx::Error> {
        let error = match exchange(session, &[sql]).await {
            Ok(mut sets) => return Ok(sets.pop()),
            Err(error) if is_refusal(&error) => error,
            Err(error) => return Err(error),
        };
        let code = error.as_database_error().and_then(|error| error.code());
        let why = match code.as_deref() {
            Some(NO_RIGHT) => refused(question.right()),
            Some(QUERY_CANCELED) => "it took longer than 5 s",
            _ => "this version of PostgreSQL does not have it as it is asked",
        };
        tracing::debug!("measure {}: {}", question.name(), what_the_server_said(&error));
        self.left_out.insert(question.name(), why);
        raw_sql("ROLLBACK").execute(session).await?;
        Ok(None)
    }

    /// What a sample says of itself.
    fn of_itself(&self, is_up: bool, took: Duration) -> Vec<Family> {
        let mut left_out = Family::new(
            "tandem_metrics_views_left_out",
            "Statistics of the database that are left out, and why",
            Kind::Gauge,
        );
        for (view, why) in &self.left_out {
            left_out = left_out.with(&[("view", view), ("why", why)], 1.0);
        }
        let server = [("server", self.server.as_str())];
        let flag = |flag: bool| f64::from(u8::from(flag));
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        let [samples, failures] = [self.samples as f64, self.failures as f64];
        vec![
            Family::gauge("pg_up", "Whether the server answered when it was last measured", flag(is_up)),
            Family::gauge(
                "pg_exporter_last_scrape_duration_seconds",
                "How long it took to measure the server",
                took.as_secs_f64(),
            ),
            Family::gauge("pg_exporter_last_scrape_error", "Whether that failed", flag(!is_up)),
            Family::new("pg_exporter_scrapes_total", "How often the server was measured", Kind::ForeignCounter)
                .with(&[], samples),
            Family::new("tandem_metrics_failures", "How often that failed", Kind::Counter).with(&server, failures),
            left_out,
        ]
    }
}

fn refused(right: &'static str) -> &'static str {
    match right {
        "pg_monitor" => "the role lacks pg_monitor",
        "pg_read_all_settings" => "the role lacks pg_read_all_settings",
        _ => "the role lacks pg_read_all_stats",
    }
}

/// Whether the server refused a statement, and goes on with the session.
fn is_refusal(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    // Of the class 57 (operator intervention) only a cancelled statement leaves the session as it was.
    code.is_some_and(|code| code == QUERY_CANCELED || !(code.starts_with("57") || code.starts_with("08")))
}

/// What each of `statements` returns, in one exchange, in a transaction in which nothing can be written, nothing takes long and
/// every name is PostgreSQL's own. What is set goes with it: behind a pooler the session is another's a moment later.
async fn exchange(session: &mut PgConnection, statements: &[&str]) -> Result<Vec<Vec<PgRow>>, sqlx::Error> {
    let sql = format!(
        "BEGIN READ ONLY; SET LOCAL search_path = ''; SET LOCAL statement_timeout = {STATEMENT_LIMIT_MS}; \
         SET LOCAL lock_timeout = {LOCK_LIMIT_MS}; {}; COMMIT",
        statements.join("; ")
    );
    let mut sets = vec![Vec::new()];
    {
        // Of our own words and a number.
        let mut answers = raw_sql(AssertSqlSafe(sql)).fetch_many(session);
        while let Some(answer) = answers.try_next().await? {
            match answer {
                Either::Left(_) => sets.push(Vec::new()),
                Either::Right(row) => {
                    if let Some(set) = sets.last_mut() {
                        set.push(row);
                    }
                }
            }
        }
    }
    Ok(sets.into_iter().skip(SETTINGS_BEFORE).take(statements.len()).collect())
}

/// The metrics of a view. What the server does not know (NULL) is left out.
fn families_of(view: &View, rows: &[PgRow], server: &str) -> Vec<Family> {
    let mut families: Vec<Family> = view
        .values
        .iter()
        .map(|(end, kind, help)| {
            let name = if end.is_empty() { view.name.to_owned() } else { format!("{}_{end}", view.name) };
            Family::new(name, *help, *kind)
        })
        .collect();
    for row in rows.iter().take(ROWS_MAX) {
        let texts: Vec<String> = (0..view.labels.len()).map(|place| text_at(row, place).unwrap_or_default()).collect();
        let mut pairs: Vec<_> = view.labels.iter().copied().zip(texts.iter().map(String::as_str)).collect();
        if view.server {
            pairs.push(("server", server));
        }
        let labels = labels(&pairs);
        for (place, family) in families.iter_mut().enumerate() {
            let value = text_at(row, view.labels.len() + place).and_then(|text| text.parse().ok());
            family.samples.extend(value.map(|value| (labels.clone(), value)));
        }
    }
    families
}

fn settings_of(rows: &[PgRow], server: &str) -> Vec<Family> {
    let mut families = BTreeMap::new();
    for row in rows {
        let [name, setting, unit, description] = [0, 1, 2, 3].map(|place| text_at(row, place).unwrap_or_default());
        if let Some(family) = setting::family(&name, &setting, &unit, &description, &[("server", server)]) {
            // Two settings of extensions may have the same name once their dots are gone.
            families.entry(family.name.clone()).or_insert(family);
        }
    }
    families.into_values().collect()
}

/// The text in column `place`, which the simple protocol has for every type. A database may hold bytes that are no UTF-8.
fn text_at(row: &PgRow, place: usize) -> Option<String> {
    let value = row.try_get_raw(place).ok().filter(|value| !value.is_null())?;
    Some(String::from_utf8_lossy(value.as_bytes().ok()?).into_owned())
}
