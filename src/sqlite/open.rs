//! Opening the file: read-only, with a limit on waiting, and with an error that says what to do.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use crate::exit::{Code, Failure};

/// How long another program may hold the file.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// What every SQLite database begins with (SQLite documentation, "Database File Format").
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Beginnings of files that are mistaken for one.
const OTHERS: [(&[u8], &str); 5] = [
    (&[0x1f, 0x8b], "it is compressed with gzip: decompress it first"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "it is compressed with zstd: decompress it first"),
    (b"PK\x03\x04", "it is a zip archive: unpack it first"),
    (b"PRAGMA", "it is SQL, as `sqlite3 FILE .dump` writes it: `sqlite3 new.sqlite3 < FILE` makes a database of it"),
    (b"BEGIN", "it is SQL, as `sqlite3 FILE .dump` writes it: `sqlite3 new.sqlite3 < FILE` makes a database of it"),
];

/// What the check finds that damages nothing: SQLite did not hold the program to its own constraints.
const HARMLESS: [&str; 3] = ["NULL value in ", "CHECK constraint failed", " value in "];

/// How many problems the check names.
const PROBLEMS_MAX: usize = 5;

/// Open the database in `path` and begin the transaction that all is read in.
///
/// # Errors
/// A [`Failure`] that says what keeps it from being read.
pub fn open(path: &Path) -> anyhow::Result<Connection> {
    let connection = begun(path)?;
    sound(&connection, path)?;
    Ok(connection)
}

/// Refuse a file that cannot be read, without reading all of it.
///
/// # Errors
/// As [`open`].
pub fn try_out(path: &Path) -> anyhow::Result<()> {
    begun(path).map(drop)
}

fn begun(path: &Path) -> anyhow::Result<Connection> {
    recognise(path)?;
    let connection = match begin(path, &path.as_os_str().to_string_lossy(), OpenFlags::empty()) {
        // Without the right to make the files beside it (`-shm`), a database in WAL mode can be read only as one that nobody
        // changes. Nothing is in the log then.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) && !has_log(path) => {
            let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), NON_ALPHANUMERIC);
            begin(path, &format!("file:{encoded}?immutable=1"), OpenFlags::SQLITE_OPEN_URI)
        }
        begun => begun,
    };
    connection.map_err(|error| explained(path, error))
}

fn begin(path: &Path, name: &str, more: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
    let connection = match more.is_empty() {
        true => Connection::open_with_flags(path, flags)?,
        false => Connection::open_with_flags(name, flags)?,
    };
    connection.busy_timeout(BUSY_LIMIT)?;
    // The file may come from anywhere: its schema runs no function with side effects.
    connection
        .execute_batch("PRAGMA trusted_schema = OFF; PRAGMA query_only = ON; PRAGMA cell_size_check = ON; BEGIN")?;
    // The lock is taken with the first page that is read.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(connection)
}

/// Refuse what is no SQLite database.
fn recognise(path: &Path) -> anyhow::Result<()> {
    let refuse = |why: String| Failure::new(Code::Failed, format!("{} is refused: {why}", path.display()));
    let meta = path.metadata().map_err(|error| refuse(error.to_string()))?;
    if !meta.is_file() {
        bail!(refuse("it is not a file".to_owned()));
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(|error| refuse(error.to_string()))?;
    file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(|error| refuse(error.to_string()))?;
    // An empty file is an empty database.
    if start == MAGIC || start.is_empty() {
        return Ok(());
    }
    let other = OTHERS.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, what)| format!("; {what}"));
    let other = other.unwrap_or_else(|| "; an encrypted one must be decrypted first".to_owned());
    bail!(refuse(format!("it is no SQLite database{other}")))
}

/// Refuse a file that is damaged.
fn sound(connection: &Connection, path: &Path) -> anyhow::Result<()> {
    let look = || -> rusqlite::Result<Vec<String>> {
        let mut statement = connection.prepare("PRAGMA quick_check")?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
        lines.collect()
    };
    let lines = look().map_err(|error| explained(path, error))?;
    let lines = lines.iter().flat_map(|line| line.lines());
    let damage: Vec<&str> =
        lines.filter(|line| *line != "ok" && !HARMLESS.iter().any(|word| line.contains(word))).collect();
    if damage.is_empty() {
        return Ok(());
    }
    bail!(damaged(path, &damage[..damage.len().min(PROBLEMS_MAX)].join("; ")))
}

fn damaged(path: &Path, what: &str) -> Failure {
    let path = path.display();
    let text = format!(
        "{path} is damaged: {what}. Take its last good copy; or save what can be read with \
         `sqlite3 {path} .recover | sqlite3 recovered.sqlite3`, look at it, and import that"
    );
    Failure::new(Code::Failed, text)
}

/// `error` of a file in words, with what to do.
pub fn explained(path: &Path, error: rusqlite::Error) -> anyhow::Error {
    let shown = path.display();
    let extended = error.sqlite_error().map(|error| error.extended_code);
    let failure = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Failure::new(
            Code::Temporary,
            format!(
                "{shown} is locked: another program writes into it and did not let go within {BUSY_LIMIT:?}; stop that program \
                 (`fuser {shown}` names it), or try again"
            ),
        ),
        Some(ErrorCode::DatabaseCorrupt) => damaged(path, &error.to_string()),
        Some(ErrorCode::NotADatabase) => {
            Failure::new(Code::Failed, format!("{shown} is refused: it is no SQLite database, or an encrypted one"))
        }
        _ if matches!(extended, Some(ffi::SQLITE_READONLY_ROLLBACK | ffi::SQLITE_READONLY_RECOVERY))
            || has_log(path) =>
        {
            Failure::new(
                Code::Failed,
                format!(
                    "{shown} cannot be read alone ({error}): the program that wrote it ended in the middle, and the files beside \
                     it (-journal, -wal) have the rest; copy all of them to a directory that you may write to, open the \
                     copy once with `sqlite3`, and import that"
                ),
            )
        }
        _ => Failure::new(Code::Failed, format!("read {shown}: {error}")),
    };
    failure.into()
}

/// The file that SQLite keeps beside `path`.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn has_log(path: &Path) -> bool {
    ["-wal", "-journal"].iter().any(|suffix| beside(path, suffix).metadata().is_ok_and(|meta| meta.len() > 0))
}
