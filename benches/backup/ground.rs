//! What the comparison runs on: a project that Tandem runs, a filled database, PostgreSQL's programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem};
use crate::figures::number;
use crate::gauge;

/// Of the SQL, pgbench's tables are about this part, decisions that, and the rest are outcomes.
const PGBENCH_PART: f64 = 0.3;
const DECISIONS_PART: f64 = 0.5;
/// Bytes of SQL for one of pgbench's units of scale, for one decision, and for one outcome.
const SCALE_SIZE: f64 = 9.7e6;
const DECISION_SIZE: f64 = 511.0;
const OUTCOME_SIZE: f64 = 209.0;

/// Two tables as the reference backend has them: keys and digests that do not compress, text that does, numbers in between.
const ROWS: &str = "
SELECT setseed(0.5);
CREATE TABLE decision_cache (
    id varchar(36) PRIMARY KEY, asset_pair varchar(20) NOT NULL, \"timestamp\" timestamp NOT NULL, timeframe varchar(10) NOT NULL,
    decision_hash varchar(64) NOT NULL UNIQUE, decision_json text NOT NULL, confidence integer NOT NULL, market_regime varchar(20),
    created_at timestamp NOT NULL DEFAULT now(), expires_at timestamp
);
CREATE TABLE trade_outcomes (
    id varchar(36) PRIMARY KEY, asset_pair varchar(20) NOT NULL, provider_name varchar(50) NOT NULL,
    decision_timestamp timestamp NOT NULL, entry_price double precision NOT NULL, exit_price double precision,
    profit_loss_pct double precision, trade_direction varchar(10) NOT NULL, is_win boolean, market_regime varchar(20),
    confidence_score integer, trade_opened_at timestamp NOT NULL DEFAULT now(), trade_closed_at timestamp,
    hold_duration_seconds integer, notes text
);
CREATE TEMPORARY TABLE words AS
SELECT string_to_array('BTCUSD ETHUSD EURUSD GBPUSD SOLUSD XAUUSD SPX500 ADAUSD', ' ') AS pair,
    string_to_array('1m 5m 15m 1h 4h 1d', ' ') AS frame,
    string_to_array('trending ranging volatile quiet', ' ') AS regime,
    string_to_array('llama qwen gemini mistral deepseek', ' ') AS provider,
    string_to_array('momentum reversal breakout carry spread basis hedge sweep drift gap volume above below average resistance '
        'support earnings upgrade downgrade sector rotation index rebalance inflow outflow volatility expansion contraction '
        'signal confirmed rejected partial filled delayed risk limit', ' ') AS w;
INSERT INTO decision_cache
SELECT gen_random_uuid(), pair[1 + (random() * 7)::int], taken, frame[1 + (random() * 5)::int],
    encode(sha256(convert_to(n::text, 'UTF8')), 'hex'),
    json_build_object('action', CASE WHEN random() < 0.4 THEN 'BUY' WHEN random() < 0.5 THEN 'SELL' ELSE 'HOLD' END,
        'entry_price', round((20 + 400 * random())::numeric, 4), 'stop_loss', round((20 + 400 * random())::numeric, 4),
        'position_size', random(), 'rsi', round((100 * random())::numeric, 3), 'macd', random() - 0.5,
        'provider', provider[1 + (random() * 4)::int], 'trace_id', gen_random_uuid(),
        'reasoning', concat_ws(' ', w[1 + (random() * 35)::int], w[1 + (random() * 35)::int], w[1 + (random() * 35)::int],
            'at', round((20 + 400 * random())::numeric, 2), w[1 + (random() * 35)::int], w[1 + (random() * 35)::int], 'and',
            w[1 + (random() * 35)::int], w[1 + (random() * 35)::int], w[1 + (random() * 35)::int])),
    (100 * random())::int, regime[1 + (random() * 3)::int], taken + interval '1 s', taken + interval '1 hour'
FROM words, (SELECT n, timestamp '2025-01-02 14:30' + n * interval '0.9 s' AS taken FROM generate_series(1, :decisions) AS n) AS s;
INSERT INTO trade_outcomes
SELECT gen_random_uuid(), pair[1 + (random() * 7)::int], provider[1 + (random() * 4)::int], taken, price, price + change,
    100 * change / price, CASE WHEN random() < 0.5 THEN 'LONG' ELSE 'SHORT' END, change > 0, regime[1 + (random() * 3)::int],
    (100 * random())::int, taken + interval '2 s', taken + held * interval '1 s', held,
    concat_ws(' ', w[1 + (random() * 35)::int], w[1 + (random() * 35)::int], w[1 + (random() * 35)::int])
FROM words, (SELECT timestamp '2025-01-02 14:30' + n * interval '0.9 s' AS taken, round((20 + 400 * random())::numeric, 2)::float8
    AS price, random() - 0.45 AS change, (86400 * random())::int AS held FROM generate_series(1, :outcomes) AS n) AS s;
CREATE INDEX ON decision_cache (asset_pair, \"timestamp\");
CREATE INDEX ON trade_outcomes (asset_pair, provider_name);
";

/// The ground that all stand on.
pub struct Ground {
    pub project: Project,
    tandem: Option<Tandem>,
    /// PostgreSQL's programs, which peers get too.
    pub bin: PathBuf,
    pub database: String,
    role: String,
    /// For what peers write, on the disk of the data directory.
    pub scratch: PathBuf,
    /// What the database holds, in words.
    pub holds: String,
    /// Whether only what has a goal is measured, and briefly.
    pub quick: bool,
}

impl Ground {
    /// Start Tandem in a new directory, and fill its database with about `size` MB of SQL.
    pub fn prepare(size: u64, quick: bool) -> Result<Self> {
        let project = Project::app_with(
            "plain:app",
            "workers.count = 1\nmigrations.run = 'none'\npostgres.source = 'package'\nbackup.nice = 10",
        );
        let tandem = Tandem::up(&project);
        let exe = fs::read_link(format!("/proc/{}/exe", tandem.postmaster(&project)))?;
        let bin = exe.parent().context("the server's programs")?.to_path_buf();
        let scratch = project.dir().join("scratch");
        fs::create_dir_all(&scratch)?;
        let mut ground = Self {
            project,
            tandem: Some(tandem),
            bin,
            database: String::new(),
            role: String::new(),
            scratch,
            holds: String::new(),
            quick,
        };
        let who =
            gauge::run(&mut ground.tandem(&["psql", "-XAtc", "SELECT current_database(), current_user"]), gauge::SLOW)?;
        let (database, role) = who.said.split_once('|').context("what psql says")?;
        (ground.database, ground.role) = (database.to_owned(), role.to_owned());
        ground.fill(size)?;
        Ok(ground)
    }

    fn fill(&mut self, size: u64) -> Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "gigabytes at most")]
        let bytes = size as f64 * 1e6;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few millions")]
        let whole = |value: f64| (value as u64).max(1);
        let scale = whole(bytes * PGBENCH_PART / SCALE_SIZE);
        let decisions = whole(bytes * DECISIONS_PART / DECISION_SIZE);
        let outcomes = whole(bytes * (1.0 - PGBENCH_PART - DECISIONS_PART) / OUTCOME_SIZE);
        let options = format!("-c role={}", self.role);
        gauge::run(
            self.program("pgbench").args(["-i", "-q", "-s", &scale.to_string()]).env("PGOPTIONS", &options),
            gauge::SLOW,
        )?;
        let script = self.scratch.join("rows.sql");
        fs::write(&script, ROWS)?;
        let mut psql = self.program("psql");
        psql.args(["-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"]);
        psql.args(["-v", &format!("decisions={decisions}"), "-v", &format!("outcomes={outcomes}"), "-f"]).arg(script);
        gauge::run(psql.env("PGOPTIONS", &options), gauge::SLOW)?;
        self.sql("VACUUM ANALYZE")?;
        self.sql("CHECKPOINT")?;
        let held: f64 = self.sql("SELECT pg_database_size(current_database())")?.parse()?;
        self.holds = format!(
            "pgbench at scale {scale}, {decisions} decisions and {outcomes} outcomes as the reference backend has them, {} GB on disk \
             with their indexes",
            number(held / 1e9)
        );
        Ok(())
    }

    /// Run Tandem anew with recovery to any moment, unless it does so already.
    pub fn archive_wal(&mut self) -> Result<()> {
        if self.archive().exists() {
            return Ok(());
        }
        if let Some(mut tandem) = self.tandem.take() {
            ensure!(tandem.stop() == 0, "tandem stops:\n{}", tandem.log());
        }
        // Without a schedule, no base backup is made by itself.
        self.project.configure("backup.pitr.enabled = true\nbackup.schedule = 'never'");
        self.tandem = Some(Tandem::up(&self.project));
        Ok(())
    }

    /// Where the WAL is archived.
    pub fn archive(&self) -> PathBuf {
        self.project.state().join("pitr")
    }

    /// Where Tandem's backups are.
    pub fn backups(&self) -> PathBuf {
        self.project.state().join("backups")
    }

    /// The owner of the database.
    pub fn role(&self) -> &str {
        &self.role
    }

    pub fn tandem(&self, args: &[&str]) -> Command {
        let mut command = tandem::command(&self.project);
        command.args(args);
        command
    }

    /// One of PostgreSQL's programs, or of the system's, as the superuser on the database.
    pub fn program(&self, name: impl AsRef<Path>) -> Command {
        #[expect(clippy::disallowed_methods, reason = "a benchmark starts what it compares")]
        let mut command = Command::new(match name.as_ref().components().count() {
            1 if self.bin.join(&name).exists() => self.bin.join(&name),
            _ => name.as_ref().to_path_buf(),
        });
        #[expect(clippy::disallowed_methods, reason = "as the shell that started us does")]
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into());
        command.current_dir(&self.scratch).stdin(std::process::Stdio::null());
        command.env("PATH", format!("{}:{path}", self.bin.display()));
        command.env("LD_LIBRARY_PATH", self.bin.with_file_name("lib"));
        command
            .env("PGHOST", self.project.state().join("run/postgres"))
            .env("PGPORT", self.project.postgres.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", &self.database);
        command
    }

    /// A line for the shell, which waits for all that is in it, and fails with the first that does.
    pub fn shell(&self, line: &str) -> Command {
        let mut command = self.program("bash");
        command.args(["-o", "pipefail", "-ec", line]);
        command
    }

    /// Run `text` as the superuser; rows alone.
    pub fn sql(&self, text: &str) -> Result<String> {
        let mut psql = self.program("psql");
        Ok(gauge::run(psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text]), gauge::SLOW)?.said)
    }
}

/// What a file or all files in a directory hold, in bytes.
pub fn size(path: &Path) -> Result<u64> {
    let meta = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    if meta.is_file() {
        return Ok(meta.len());
    }
    let mut all = 0;
    for entry in fs::read_dir(path)? {
        all += size(&entry?.path())?;
    }
    Ok(all)
}

/// Remove what is there, file or directory, and let the disk come to rest.
pub fn clear(path: &Path) {
    let _ = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
    nix::unistd::sync();
}
