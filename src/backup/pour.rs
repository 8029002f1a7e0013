//! Pour SQL into psql, screened, in a transaction that ends only when all of it was poured.

use std::collections::BTreeSet;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};

use super::dump::succeeded;
use super::existing::Existing;
use super::feed::{self, Broken, Feeding};
use super::reach::Reach;
use crate::postgres::embedded::{PsqlBuilder, dbname};
use crate::process::Streaming;
use crate::telemetry::Progress;

/// Between two words on the terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long the program that makes the SQL may take to end once its output has ended.
const PROGRAM_END_LIMIT: Duration = Duration::from_secs(20);

/// Where SQL comes from.
pub struct Source {
    /// The program that makes it, such as pg_restore, and its name.
    program: Option<(&'static str, Streaming)>,
    stream: Box<dyn Read + Send>,
}

impl Source {
    pub fn of_file(stream: Box<dyn Read + Send>) -> Self {
        Self { program: None, stream }
    }

    pub fn of_program(name: &'static str, program: Streaming, stream: PipeReader) -> Self {
        Self { program: Some((name, program)), stream: Box::new(stream) }
    }

    /// The SQL, and what must live as long as it is read.
    pub fn into_parts(self) -> (Option<Streaming>, Box<dyn Read + Send>) {
        (self.program.map(|(_, program)| program), self.stream)
    }
}

/// In which transaction the SQL runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// All of it in one, which psql commits at the end of its input: for a database that is dropped if this fails.
    One,
    /// Each statement in its own, for the same.
    Many,
    /// All of it in one, which is committed by the last line that psql reads, behind these statements. An input that ends because
    /// Tandem was killed commits nothing: for a database that is in use.
    Committed(String),
}

/// How SQL is poured.
#[derive(Clone, Debug)]
pub struct Pour {
    pub transaction: Transaction,
    pub existing: Existing,
    /// The SQL's length, where it is known.
    pub sql_bytes: Option<u64>,
    /// How long it may take.
    pub limit: Duration,
}

/// Pour `source` into `database`.
///
/// # Errors
/// The source or the server refused something. Without [`Transaction::Many`] nothing of it is in the database then.
pub async fn pour(
    reach: &Reach,
    source: Source,
    pour: &Pour,
    database: &str,
    progress: &Progress,
) -> anyhow::Result<()> {
    let (psql, stdin) = Streaming::writing(&reach.reader(&psql(pour, database)))?;
    let passed = Arc::new(AtomicU64::new(0));
    let feeding = feeding(reach, source, pour, stdin, passed.clone());
    let shown = async {
        loop {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let done = passed.load(Ordering::Relaxed);
            match pour.sql_bytes.filter(|total| *total > 0) {
                Some(total) => progress.say(format!("restoring into {database}: {} %", done * 100 / total)),
                None => progress.say(format!("restoring into {database}: {} MB of SQL", done >> 20)),
            }
        }
    };
    let both = async { tokio::try_join!(feeding, async { Ok(psql.end(pour.limit).await?) }) };
    let outcome = tokio::select! {
        outcome = both => outcome,
        () = shown => unreachable!("it has no end"),
    };
    let (fed, ended) = outcome.map_err(|error| match error.downcast::<Open>() {
        Ok(Open(_stdin, why)) => anyhow::anyhow!("{why}"),
        Err(error) => error,
    })?;
    succeeded("psql", &ended)?;
    match fed {
        Ok(lacking) => {
            tell_lacking(&lacking);
            Ok(())
        }
        Err(broken) => bail!("{broken}"),
    }
}

/// psql, which reads what is poured.
fn psql(pour: &Pour, database: &str) -> PsqlBuilder {
    // As statements, and not as options of the connection: poolers refuse those.
    let psql =
        PsqlBuilder::new().dbname(dbname(database)).no_psqlrc().quiet().no_password().variable(("ON_ERROR_STOP", "1"));
    let psql = match pour.transaction {
        Transaction::One => psql.single_transaction().command("SET TRANSACTION READ WRITE"),
        // What is lost with the server is lost with a database that nobody uses yet; the swap's own commit waits for the disk.
        Transaction::Many => {
            psql.command("SET default_transaction_read_only = off").command("SET synchronous_commit = off")
        }
        Transaction::Committed(_) => psql
            .command("SET default_transaction_read_only = off")
            .command("SET idle_in_transaction_session_timeout = 0")
            .command("BEGIN"),
    };
    psql.command("SET statement_timeout = 0").command("SET idle_session_timeout = 0").file("-")
}

/// Hand the SQL over. An input that ends may be committed: it ends only when it was whole. Else psql is killed with its input
/// still open.
async fn feeding(
    reach: &Reach,
    source: Source,
    pour: &Pour,
    mut stdin: PipeWriter,
    passed: Arc<AtomicU64>,
) -> anyhow::Result<Result<BTreeSet<String>, Broken>> {
    let restricts = feed::knows_restrict(reach.version());
    let how = Feeding { restricts, existing: pour.existing.clone(), bytes_max: pour.sql_bytes };
    let Source { program, stream } = source;
    let fed = tokio::task::spawn_blocking(move || {
        let fed = feed::feed(stream, &mut stdin, how, &passed);
        (stdin, fed)
    });
    let (mut stdin, fed) = fed.await.context("read the backup")?;
    let program = match program {
        Some((name, program)) => succeeded(name, &program.end(PROGRAM_END_LIMIT).await?).err(),
        None => None,
    };
    match (fed, program) {
        (Ok(lacking), None) => {
            let Transaction::Committed(last) = pour.transaction.clone() else { return Ok(Ok(lacking)) };
            let ending = move || writeln!(stdin, "{last}\nCOMMIT;");
            let ended = tokio::task::spawn_blocking(ending).await.context("end the transaction")?;
            Ok(ended.map(|()| lacking).map_err(Broken::Write))
        }
        // psql says why by itself.
        (Err(Broken::Write(error)), _) => Ok(Err(Broken::Write(error))),
        // What the program said is why its output is cut short.
        (Ok(_) | Err(Broken::CutShort), Some(error)) => Err(anyhow::Error::new(Open(stdin, format!("{error:#}")))),
        (Err(broken), _) => Err(anyhow::Error::new(Open(stdin, broken.to_string()))),
    }
}

/// Say which tablespaces of the backup the server lacks.
pub fn tell_lacking(tablespaces: &BTreeSet<String>) {
    if !tablespaces.is_empty() {
        let names: Vec<&str> = tablespaces.iter().map(String::as_str).collect();
        tracing::warn!(
            "this server lacks the tablespace {}: what lay there is in the database's own now; ALTER TABLE … SET TABLESPACE moves \
             it once there is one",
            names.join(", ")
        );
    }
}

/// psql's input, still open, and why it must not end.
#[derive(Debug, thiserror::Error)]
#[error("{1}")]
struct Open(io::PipeWriter, String);
