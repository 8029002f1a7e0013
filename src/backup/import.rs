//! Make a backup of a dump that something else wrote: repair it, restore it, and keep it with what was found in it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};

use super::catalog::Catalog;
use super::compress::{self, Written};
use super::files::{self, Partial, digest};
use super::load::Load;
use super::manifest::{Globals, LAYOUT, Manifest, Verdict};
use super::name::{Format, Name};
use super::repair::{Found, Refused, repair};
use super::verify::{Means, Trial, try_out};
use crate::config::Compression;
use crate::exit::{Code, Failure};
use crate::postgres::provision::identifier;
use crate::telemetry;

/// What a compressed file begins with (RFC 1952, 2.3.1; RFC 8878, 3.1.1).
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Between two words on the terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What was made of a file.
#[derive(Debug, serde::Serialize)]
pub struct Imported {
    pub manifest: Manifest,
    /// Messages that were taken out.
    pub removed: u64,
    pub warnings: Vec<String>,
    /// Who owns things in it and who was granted things.
    pub roles: Vec<String>,
}

/// Import `file` into `catalog`, as a backup of `database`, of what its name says, or of `usual`.
///
/// # Errors
/// [`Failure`] that says why it is refused. The file itself is never touched.
pub async fn import(
    means: &Means<'_>,
    catalog: &Catalog,
    file: &Path,
    database: Option<&str>,
    usual: &str,
) -> anyhow::Result<Imported> {
    let began = Instant::now();
    let named = file.file_name().and_then(|name| name.to_str()).and_then(Name::parse);
    let refuse = |why: String| Failure::new(Code::Failed, format!("{} is refused: {why}", file.display()));
    let changed = file.metadata().and_then(|meta| meta.modified()).map_err(|error| refuse(error.to_string()))?;
    let taken: DateTime<Utc> = named.as_ref().map_or_else(|| changed.into(), |name| name.taken);
    let database = database.or(named.as_ref().map(|name| name.database.as_str())).unwrap_or(usual);
    let _lock = catalog.lock()?;
    let progress = telemetry::progress(format!("importing {}", file.display()));
    let name = catalog.free_name(Name::new(database, taken, Format::Plain, Compression::Gzip));
    let partial = Partial::beside(catalog.dir(), &name.to_string());
    let out = partial.create().with_context(|| format!("make {}", partial.path().display()))?;
    let passed = Arc::new(AtomicU64::new(0));
    let (from, counter) = (file.to_owned(), passed.clone());
    let mut copying = tokio::task::spawn_blocking(move || copy(&from, out, &counter));
    let copied = loop {
        match tokio::time::timeout(PROGRESS_INTERVAL, &mut copying).await {
            Ok(copied) => break copied?,
            Err(_) => progress.say(format!("importing: {} MB of SQL", passed.load(Ordering::Relaxed) >> 20)),
        }
    };
    let (found, written) = match copied {
        Ok(copied) => copied,
        Err(Refused::Write(error)) => return Err(error).with_context(|| format!("write {}", partial.path().display())),
        Err(refused) => return Err(refuse(refused.to_string()).into()),
    };
    let globals = roles(catalog, &name, &found)?;
    let trial = Trial {
        load: Load {
            path: partial.path().to_owned(),
            format: Format::Plain,
            compression: Compression::Gzip,
            sql_bytes: Some(written.stream_bytes),
            limit: means.settings.backup.limit,
            in_one: true,
        },
        globals: Some(globals.path().to_owned()),
        properties: None,
        size_bytes: written.size_bytes,
        digests: false,
    };
    let (census, damage) = try_out(means, &trial, &progress).await?.map_err(refuse)?;
    let lost = found.rows.iter().filter(|&(table, rows)| census.rows.get(table) != Some(rows));
    let lost =
        lost.map(|(table, rows)| format!("table {table} restores to {:?} rows, not {rows}", census.rows.get(table)));
    let problems: Vec<String> = lost.chain(damage).collect();
    if !problems.is_empty() {
        bail!(refuse(problems.join("\n  ")));
    }
    let named_globals = catalog.beside(&name, "globals.sql");
    let (sha256, size_bytes) = digest(globals.path()).context("read the roles")?;
    globals.publish(&named_globals).context("name the roles")?;
    partial.publish(&catalog.dir().join(name.to_string())).with_context(|| format!("name {name}"))?;
    let unknown = || "unknown".to_owned();
    let manifest = Manifest {
        layout: LAYOUT,
        file: name.to_string(),
        database: name.database.clone(),
        format: Format::Plain,
        compression: Compression::Gzip,
        taken: name.taken,
        duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        size_bytes: written.size_bytes,
        sql_bytes: Some(written.stream_bytes),
        sha256: written.sha256,
        globals: Some(Globals {
            file: named_globals.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            size_bytes,
            sha256,
        }),
        // The throwaway cluster's owner and locale say nothing of the server that was dumped.
        census: super::manifest::Census { properties: None, ..census },
        server_version: found.server_version.clone().unwrap_or_else(unknown),
        pg_dump_version: found.pg_dump_version.clone().unwrap_or_else(unknown),
        tandem_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    files::write_json(&catalog.beside(&name, "manifest.json"), &manifest)?;
    let verdict = Verdict {
        sha256: manifest.sha256.clone(),
        verified: Utc::now(),
        duration_ms: manifest.duration_ms,
        problems: Vec::new(),
        tandem_version: manifest.tandem_version.clone(),
    };
    catalog.record(&name, &verdict)?;
    Ok(Imported {
        manifest,
        removed: found.removed,
        warnings: found.warnings,
        roles: found.roles.into_iter().collect(),
    })
}

/// Repair `from` into `out`: one thread reads and repairs, others compress.
fn copy(from: &Path, out: File, passed: &AtomicU64) -> Result<(Found, Written), Refused> {
    let mut file = BufReader::new(File::open(from).map_err(Refused::Read)?);
    let compression = match file.fill_buf().map_err(Refused::Read)? {
        start if start.starts_with(GZIP) => Compression::Gzip,
        start if start.starts_with(ZSTD) => Compression::Zstd,
        _ => Compression::None,
    };
    let stream = BufReader::new(compress::read(from, compression).map_err(Refused::Read)?);
    let (reader, writer) = io::pipe().map_err(Refused::Write)?;
    std::thread::scope(|scope| {
        let compressing = scope.spawn(|| compress::write(reader, out, Compression::Gzip, passed));
        // The pipe's end is the end of the file, right or wrong: a wrong one is thrown away.
        let repaired = repair(stream, io::BufWriter::with_capacity(1 << 16, writer));
        let written = compressing.join().unwrap_or_else(|_| Err(io::Error::other("the compressing thread panicked")));
        match (repaired, written) {
            // A file that takes no more shows to the repair as a pipe that takes no more.
            (Ok(_) | Err(Refused::Write(_)), Err(error)) => Err(Refused::Write(error)),
            (Err(refused), _) => Err(refused),
            (Ok(found), Ok(written)) => Ok((found, written)),
        }
    })
}

/// The roles that the dump needs; their passwords are in no dump.
fn roles(catalog: &Catalog, name: &Name, found: &Found) -> anyhow::Result<Partial> {
    let partial = Partial::beside(catalog.dir(), &format!("{}.globals.sql", name.stem()));
    let text: String = found.roles.iter().map(|role| format!("CREATE ROLE {};\n", identifier(role))).collect();
    let written = partial.create().and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", partial.path().display()))?;
    Ok(partial)
}
