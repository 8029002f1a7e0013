//! Where the comparison takes place: a project whose Tandem runs, a database that is filled, PostgreSQL's programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::common::project::Project;
use crate::common::tandem::{self, Tandem};
use crate::figures::number;
use crate::gauge;

/// Of the SQL, pgbench's tables are about this part; the rest is trades.
const PGBENCH_PART: f64 = 0.3;
/// Bytes of SQL for one of pgbench's units of scale, and for one trade.
const SCALE_SIZE: f64 = 9.7e6;
const TRADE_SIZE: f64 = 330.0;

/// Rows as an application has them: keys that do not compress, words that do, numbers in between.
const TRADES: &str = "
SELECT setseed(0.5);
CREATE TABLE trades (
    id bigint PRIMARY KEY, order_id uuid NOT NULL, symbol text NOT NULL, side text NOT NULL, price numeric(12, 4) NOT NULL,
    quantity integer NOT NULL, account_id integer NOT NULL, executed_at timestamptz NOT NULL, metadata jsonb NOT NULL
);
INSERT INTO trades
SELECT n, gen_random_uuid(), s[1 + (random() * random() * 23)::int], CASE WHEN random() < 0.5 THEN 'buy' ELSE 'sell' END,
    round((20 + 400 * random())::numeric, 2), 10 * (1 + (random() ^ 3 * 50)::int), (random() * 4000)::int,
    timestamptz '2025-01-02 14:30:00+00' + n * interval '0.9 s' + random() * interval '1 s',
    jsonb_build_object(
        'venue', (ARRAY['XNAS', 'XNYS', 'ARCX', 'BATS'])[1 + (random() * 3)::int], 'latency_us', (random() * 2000)::int,
        'confidence', round(random()::numeric, 3), 'strategy', w[1 + (random() * 9)::int] || '-' || (random() * 20)::int,
        'tags', jsonb_build_array(w[1 + (random() * 35)::int], w[1 + (random() * 35)::int]),
        'reason', concat_ws(' ', w[1 + (random() * 35)::int], w[1 + (random() * 35)::int], w[1 + (random() * 35)::int],
            w[1 + (random() * 35)::int], 'at', round((20 + 400 * random())::numeric, 2)))
FROM generate_series(1, :rows) AS n,
    (SELECT string_to_array('AAPL MSFT NVDA AMZN GOOG META TSLA AMD INTC ORCL IBM CSCO QCOM TXN ADBE CRM NFLX AVGO MU SHOP '
        'UBER SNOW PLTR COIN', ' ') AS s, string_to_array('momentum reversal breakout carry spread basis hedge sweep drift gap '
        'volume above below average resistance support earnings upgrade downgrade sector rotation index rebalance inflow '
        'outflow volatility expansion contraction signal confirmed rejected partial filled delayed risk limit', ' ') AS w) AS words;
CREATE INDEX ON trades (symbol, executed_at);
CREATE INDEX ON trades (account_id);
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
}

impl Ground {
    /// Start Tandem in a new directory, and fill its database with about `size` MB of SQL.
    pub fn prepare(size: u64) -> Result<Self> {
        let project =
            Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'\npostgres.source = 'package'");
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
        let (scale, rows) =
            (whole(bytes * PGBENCH_PART / SCALE_SIZE), whole(bytes * (1.0 - PGBENCH_PART) / TRADE_SIZE));
        let options = format!("-c role={}", self.role);
        gauge::run(
            self.program("pgbench").args(["-i", "-q", "-s", &scale.to_string()]).env("PGOPTIONS", &options),
            gauge::SLOW,
        )?;
        let script = self.scratch.join("trades.sql");
        fs::write(&script, TRADES)?;
        let mut psql = self.program("psql");
        psql.args(["-Xq", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-v", &format!("rows={rows}"), "-f"]).arg(script);
        gauge::run(psql.env("PGOPTIONS", &options), gauge::SLOW)?;
        self.sql("VACUUM ANALYZE")?;
        self.sql("CHECKPOINT")?;
        let held: f64 = self.sql("SELECT pg_database_size(current_database())")?.parse()?;
        self.holds = format!(
            "pgbench at scale {scale} and {rows} trades with JSON, {} GB on disk with their indexes",
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
        self.project.configure("backup.pitr.enabled = true");
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

    /// Who owns the database.
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
