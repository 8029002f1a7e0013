//! Read a plain dump line by line, taking out what pg_dump said on standard error where a script mixed it in, and count
//! what it holds. Pure: bytes in, bytes out.
//!
//! `pg_dump --verbose 2>&1` puts each message wherever the SQL happened to be, in the middle of rows too. A message ends with a
//! line's end; without it the SQL is whole again. A row may hold the same text, though: each message comes once, and each
//! row has as many columns as its table, so text that imitates a message is noticed, and the file refused.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read, Write};

use super::dump::TRAILER;
use super::tokens;

/// The longest line, in bytes: a row that is written as text has less than 1 GiB (PostgreSQL's MaxAllocSize).
const LINE_MAX: u64 = 1 << 30;
/// What begins a message.
const MESSAGE: &[u8] = b"pg_dump: ";
/// Messages that stand alone (PostgreSQL's pg_dump.c and common.c, releases 10 to 18).
const ALONE: &[&str] = &[
    "identifying extension members",
    "finding extension members",
    "finding extension tables",
    "finding inheritance relationships",
    "finding table check constraints",
    "finding table default expressions",
    "finding table not null constraints",
    "flagging indexes in partitioned tables",
    "flagging inherited columns in subtables",
    "reading column info for interesting tables",
    "reading constraints",
    "reading default privileges",
    "reading dependency data",
    "reading event triggers",
    "reading extended statistics",
    "reading extensions",
    "reading indexes",
    "reading large objects",
    "reading partitioning data",
    "reading partition key information for interesting tables",
    "reading policies",
    "reading procedural languages",
    "reading publication membership",
    "reading publication membership of schemas",
    "reading publication membership of tables",
    "reading publications",
    "reading rewrite rules",
    "reading row-level security policies",
    "reading row security enabled for tables",
    "reading schemas",
    "reading subscriptions",
    "reading subscription membership of tables",
    "reading table inheritance information",
    "reading transforms",
    "reading triggers",
    "reading type casts",
    "reading user-defined access methods",
    "reading user-defined aggregate functions",
    "reading user-defined collations",
    "reading user-defined conversions",
    "reading user-defined foreign servers",
    "reading user-defined foreign-data wrappers",
    "reading user-defined functions",
    "reading user-defined operator classes",
    "reading user-defined operator families",
    "reading user-defined operators",
    "reading user-defined tables",
    "reading user-defined text search configurations",
    "reading user-defined text search dictionaries",
    "reading user-defined text search parsers",
    "reading user-defined text search templates",
    "reading user-defined types",
    "saving database definition",
    "saving large objects",
];
/// Messages that end with what they are about.
const ABOUT: &[&str] = &[
    "last built-in OID is ",
    "saving encoding = ",
    "saving standard_conforming_strings = ",
    "saving search_path = ",
    "processing data for table \"",
    "dumping contents of table \"",
    "finding the columns and types of table \"",
    "finding default expressions of table \"",
    "finding check constraints for table \"",
    "reading indexes for table \"",
    "reading foreign key constraints for table \"",
    "reading triggers for table \"",
    "reading policies for table \"",
];
/// Messages that name a kind of object, in capitals, before the object.
const KINDS: &[&str] = &["creating ", "executing ", "processing "];

/// What a dump holds, as its text tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Messages that were taken out.
    pub removed: u64,
    /// Warnings among them, and what follows on them.
    pub warnings: Vec<String>,
    /// Rows of each table, as `schema.table`, where they come by COPY.
    pub rows: BTreeMap<String, u64>,
    /// Who owns things and who was granted things.
    pub roles: BTreeSet<String>,
    /// What the dump says of its server.
    pub server_version: Option<String>,
    pub pg_dump_version: Option<String>,
}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum NotRepaired {
    #[error("it cannot be read to its end, so it is damaged or cut short: {0}")]
    Read(io::Error),
    #[error("write: {0}")]
    Write(io::Error),
    #[error("it is no plain dump: it begins neither with pg_dump's comments nor with its messages")]
    NotPlain,
    #[error("it is one of pg_restore's archives, which `pg_restore` reads as it is")]
    Archive,
    #[error("the dump failed when it was made: {0}")]
    Failed(String),
    #[error("it is cut short: pg_dump's last line is missing")]
    CutShort,
    #[error(
        "row {row} of {table} has {found} columns and not {wanted}: its text mimics a message of pg_dump's, or the file is damaged"
    )]
    Row { table: String, row: u64, found: usize, wanted: usize },
    #[error("a line of it is longer than any row can be, so it is no dump")]
    Line,
    #[error("the message `{0}` comes twice, so one of them may be a row's own text")]
    Twice(String),
}

/// Copy a dump from `from` to `to`, repaired.
///
/// # Errors
/// [`NotRepaired`]; the output is incomplete then and must be removed.
pub fn repair(mut from: impl BufRead, mut to: impl Write) -> Result<Found, NotRepaired> {
    let mut reader = Reader::default();
    let mixed = {
        let start = from.fill_buf().map_err(NotRepaired::Read)?;
        match start {
            start if start.starts_with(b"PGDMP") => return Err(NotRepaired::Archive),
            start if start.starts_with(MESSAGE) => true,
            start if start.starts_with(b"--") || start.starts_with(b"\\restrict") => false,
            _ => return Err(NotRepaired::NotPlain),
        }
    };
    let (mut raw, mut line) = (Vec::new(), Vec::new());
    loop {
        raw.clear();
        if from.by_ref().take(LINE_MAX).read_until(b'\n', &mut raw).map_err(NotRepaired::Read)? == 0 {
            break;
        }
        if raw.len() as u64 == LINE_MAX {
            return Err(NotRepaired::Line);
        }
        match if mixed { message(&raw) } else { None } {
            Some(begin) => {
                reader.message(&raw[begin..])?;
                line.extend_from_slice(&raw[..begin]);
            }
            None => {
                line.extend_from_slice(&raw);
                reader.line(&line)?;
                to.write_all(&line).map_err(NotRepaired::Write)?;
                line.clear();
            }
        }
    }
    to.write_all(&line).and_then(|()| to.flush()).map_err(NotRepaired::Write)?;
    if reader.whole { Ok(reader.found) } else { Err(NotRepaired::CutShort) }
}

/// Where in `raw` one of pg_dump's messages begins, if it ends with one.
fn message(raw: &[u8]) -> Option<usize> {
    let text = raw.strip_suffix(b"\n")?;
    // The last one: a row may hold the word itself before it.
    let begin = text.windows(MESSAGE.len()).rposition(|window| window == MESSAGE)?;
    let said = std::str::from_utf8(&text[begin + MESSAGE.len()..]).ok()?;
    known(said).then_some(begin)
}

/// Whether pg_dump says this.
fn known(said: &str) -> bool {
    let capitals = |rest: &str| {
        let kind = rest.split(['"', ' ']).next().unwrap_or_default();
        !kind.is_empty() && kind.chars().all(|letter| letter.is_ascii_uppercase())
    };
    let trouble = ["error: ", "warning: ", "detail: ", "hint: ", "fatal: "];
    ALONE.contains(&said)
        || ABOUT
            .iter()
            .any(|start| said.strip_prefix(start).is_some_and(|rest| !start.ends_with('"') || rest.ends_with('"')))
        || KINDS.iter().any(|start| said.strip_prefix(start).is_some_and(capitals))
        || trouble.iter().any(|start| said.starts_with(start))
}

/// The tables' rows that a COPY brings.
#[derive(Debug)]
struct Copy {
    table: String,
    columns: usize,
    rows: u64,
}

#[derive(Debug, Default)]
struct Reader {
    found: Found,
    seen: BTreeSet<String>,
    copy: Option<Copy>,
    whole: bool,
}

impl Reader {
    fn message(&mut self, raw: &[u8]) -> Result<(), NotRepaired> {
        let said = String::from_utf8_lossy(&raw[MESSAGE.len()..]).trim_end().to_owned();
        if said.starts_with("error: ") || said.starts_with("fatal: ") {
            return Err(NotRepaired::Failed(said));
        }
        self.found.removed += 1;
        if ["warning: ", "detail: ", "hint: "].iter().any(|start| said.starts_with(start)) {
            self.found.warnings.push(said);
        } else if !self.seen.insert(said.clone()) {
            return Err(NotRepaired::Twice(said));
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), NotRepaired> {
        if let Some(copy) = &mut self.copy {
            if line == b"\\.\n" {
                self.copy = None;
                return Ok(());
            }
            if !line.ends_with(b"\n") {
                return Err(NotRepaired::CutShort);
            }
            copy.rows += 1;
            *self.found.rows.entry(copy.table.clone()).or_default() += 1;
            let found = line.iter().filter(|&&byte| byte == b'\t').count() + 1;
            // A table without columns has empty lines for rows.
            if copy.columns > 0 && found != copy.columns {
                let (table, row, wanted) = (copy.table.clone(), copy.rows, copy.columns);
                return Err(NotRepaired::Row { table, row, found, wanted });
            }
            return Ok(());
        }
        if line == TRAILER {
            self.whole = true;
        }
        let Ok(text) = std::str::from_utf8(line) else { return Ok(()) };
        let text = text.trim_end_matches('\n');
        if let Some((table, columns)) =
            text.strip_prefix("COPY ").and_then(|rest| rest.strip_suffix(" FROM stdin;")).and_then(target)
        {
            self.found.rows.entry(table.clone()).or_default();
            self.copy = Some(Copy { table, columns, rows: 0 });
        } else if let Some(version) = text.strip_prefix("-- Dumped from database version ") {
            self.found.server_version = Some(version.to_owned());
        } else if let Some(version) = text.strip_prefix("-- Dumped by pg_dump version ") {
            self.found.pg_dump_version = Some(version.to_owned());
        } else if let Some(role) = role(text) {
            self.found.roles.insert(role);
        }
        Ok(())
    }
}

/// The table of a COPY and how many columns it brings: `public.t (a, b)`.
fn target(text: &str) -> Option<(String, usize)> {
    let (schema, rest) = identifier(text)?;
    let (table, rest) = identifier(rest.strip_prefix('.')?)?;
    let mut columns = 0;
    let mut rest = rest.strip_prefix(" (")?;
    while let Some((_, after)) = identifier(rest) {
        columns += 1;
        rest = after.strip_prefix(", ").unwrap_or(after);
    }
    (rest == ")").then(|| (format!("{schema}.{table}"), columns))
}

/// The role that a statement of a dump gives something to.
fn role(text: &str) -> Option<String> {
    let owner = text.starts_with("ALTER ").then(|| text.rsplit_once(" OWNER TO ")).flatten();
    let granted = text.starts_with("GRANT ").then(|| text.rsplit_once(" TO ")).flatten();
    let (name, rest) = identifier(owner.or(granted)?.1)?;
    ((rest == ";" || rest == " WITH GRANT OPTION;") && name != "PUBLIC").then_some(name)
}

/// The name that `text` begins with, without its quotes, and what follows it.
fn identifier(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == '$'))
            .unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    tokens::quoted(quoted)
}

#[cfg(test)]
#[path = "repair_tests.rs"]
mod tests;
