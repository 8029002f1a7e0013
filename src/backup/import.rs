//! Make a backup of a dump that something else wrote: repair it, restore it, and keep it with what was found in it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};

use super::catalog::Catalog;
use super::compress::{self, Written};
use super::estimate::{self, Restorable};
use super::files::{Partial, digest};
use super::load::Load;
use super::manifest::{Globals, LAYOUT, Manifest, Verdict};
use super::name::{Format, Name};
use super::repair::{Found, NotRepaired, repair};
use super::rights::Rights;
use super::verify::{Means, Trial, Tried, try_out};
use crate::config::{Compression, Settings};
use crate::exit::{Code, Failure};
use crate::postgres::provision::identifier;
use crate::room::Guard;
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
    let compression = compression_of(file).map_err(|error| refuse(error.to_string()))?;
    let size = file.metadata().map_err(|error| refuse(error.to_string()))?.len();
    let room = Guard::new("import", means.settings.disk.stop_free, catalog.server_data())
        .claim(catalog.dir(), estimate::import(size, compression));
    room.check()?;
    let partial = Partial::beside(catalog.dir(), &name.to_string());
    let out = partial.create().with_context(|| format!("make {}", partial.path().display()))?;
    let passed = Arc::new(AtomicU64::new(0));
    let (from, counter, goes_on) = (file.to_owned(), passed.clone(), GoesOn::default());
    let ended = goes_on.0.clone();
    let mut copying = tokio::task::spawn_blocking(move || copy(&from, compression, out, &counter, &ended));
    let copying = async {
        let _goes_on = goes_on;
        loop {
            match tokio::time::timeout(PROGRESS_INTERVAL, &mut copying).await {
                Ok(copied) => return anyhow::Ok(copied?),
                Err(_) => progress.say(format!("importing: {} MB of SQL", passed.load(Ordering::Relaxed) >> 20)),
            }
        }
    };
    let copied = room.hold(copying).await?;
    let (found, written) = match copied {
        Ok(copied) => copied,
        Err(NotRepaired::Write(error)) => {
            return Err(error).with_context(|| format!("write {}", partial.path().display()));
        }
        Err(refused) => return Err(refuse(refused.to_string()).into()),
    };
    let globals = roles(catalog, &name, &found)?;
    let trial = Trial {
        load: trial_load(partial.path(), written.stream_bytes, means.settings),
        globals: Some(globals.path().to_owned()),
        properties: None,
        size: Restorable {
            database_bytes: None,
            sql_bytes: Some(written.stream_bytes),
            size_bytes: written.size_bytes,
            is_compressed: true,
        },
        digests: false,
    };
    let Tried { census, damage, lacks: _ } = try_out(means, &trial, &progress).await?.map_err(refuse)?;
    let lost = found.rows.iter().filter(|&(table, rows)| census.rows.get(table) != Some(rows));
    let lost =
        lost.map(|(table, rows)| format!("table {table} restores to {:?} rows, not {rows}", census.rows.get(table)));
    let problems: Vec<String> = lost.chain(damage).collect();
    if !problems.is_empty() {
        bail!(refuse(problems.join("\n  ")));
    }
    let named_globals = catalog.beside(&name, "globals.sql");
    let (sha256, size_bytes) = digest(globals.path()).context("read the roles")?;
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
        database_bytes: None,
        sha256: written.sha256,
        globals: Some(Globals {
            file: named_globals.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            size_bytes,
            sha256,
        }),
        // The throwaway cluster's owner, locale and grants say nothing of the server that was dumped.
        census: super::manifest::Census { properties: None, database_level: None, ..census },
        server_version: found.server_version.clone().unwrap_or_else(unknown),
        pg_dump_version: found.pg_dump_version.clone().unwrap_or_else(unknown),
        tandem_version: env!("CARGO_PKG_VERSION").to_owned(),
        needs_superuser: None,
        imported: true,
    };
    catalog.publish(&name, partial, Some(globals), &manifest)?;
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

/// How what was made of the file is tried.
fn trial_load(path: &Path, sql_bytes: u64, settings: &Settings) -> Load {
    Load {
        path: path.to_owned(),
        format: Format::Plain,
        compression: Compression::Gzip,
        sql_bytes: Some(sql_bytes),
        limit: settings.backup.limit,
        // How many objects it makes is not known, and each of them holds a lock to the end of its transaction. What fails in the
        // middle goes with the throwaway server.
        in_one: false,
        trusted: settings.restore_trust,
        rights: if settings.restore_trust { Rights::Try } else { Rights::Few },
        only: None,
    }
}

/// How `file` is compressed.
fn compression_of(file: &Path) -> io::Result<Compression> {
    Ok(match BufReader::new(File::open(file)?).fill_buf()? {
        start if start.starts_with(GZIP) => Compression::Gzip,
        start if start.starts_with(ZSTD) => Compression::Zstd,
        _ => Compression::None,
    })
}

/// Tells the threads that copy to end, when it is dropped: nobody waits for them any more.
#[derive(Default)]
struct GoesOn(Arc<AtomicBool>);

impl Drop for GoesOn {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stream that fails once it `ended` is set.
struct Endable<'a, R> {
    from: R,
    ended: &'a AtomicBool,
}

impl<R: Read> Read for Endable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.ended.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the import was ended")),
            false => self.from.read(buffer),
        }
    }
}

/// Repair `from` into `out`: one thread reads and repairs, others compress.
fn copy(
    from: &Path,
    compression: Compression,
    out: File,
    passed: &AtomicU64,
    ended: &AtomicBool,
) -> Result<(Found, Written), NotRepaired> {
    let from = compress::read(from, compression).map_err(NotRepaired::Read)?;
    let stream = BufReader::new(Endable { from, ended });
    let (reader, writer) = io::pipe().map_err(NotRepaired::Write)?;
    std::thread::scope(|scope| {
        let compressing = scope.spawn(|| compress::write(reader, out, Compression::Gzip, passed));
        // The pipe's end is the end of the file, right or wrong: a wrong one is thrown away.
        let repaired = repair(stream, io::BufWriter::with_capacity(1 << 16, writer));
        let written = compressing.join().unwrap_or_else(|_| Err(io::Error::other("the compressing thread panicked")));
        match (repaired, written) {
            // A file that takes no more shows to the repair as a pipe that takes no more.
            (Ok(_) | Err(NotRepaired::Write(_)), Err(error)) => Err(NotRepaired::Write(error)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Purpose, Source};

    #[test]
    fn a_file_of_unknown_size_is_not_tried_in_one_transaction() {
        let temp = tempfile::tempdir().unwrap();
        let source = Source { cwd: temp.path().to_owned(), purpose: Purpose::Test, ..Source::default() };
        let mut settings = config::load(&source).unwrap().settings;
        for (trust, rights) in [(false, Rights::Few), (true, Rights::Try)] {
            settings.restore_trust = trust;
            let load = trial_load(temp.path(), 1 << 40, &settings);
            assert!(!load.in_one, "each of its objects would hold a lock to the end");
            assert_eq!((load.trusted, load.rights), (trust, rights));
        }
    }
}
