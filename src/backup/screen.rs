//! What of a dump's SQL psql may read. Pure: bytes in, bytes out.
//!
//! psql runs commands of its own that stand in its input: `\! rm …` starts a shell, `\o |…` and `\copy` do as well, `\connect` leads
//! to another database. pg_dump writes none of them but `\.` at the end of rows, and `\restrict`. So the input is read as psql
//! reads it (PostgreSQL's psqlscan.l): quotes, dollar quotes, comments and rows are known, and a command that stands in
//! none of them ends the reading. The dump's own `\restrict` is left out: ours comes before it, with a key that the dump does
//! not know, and then psql itself refuses whatever this reading should have missed.

use std::collections::BTreeSet;
use std::mem;

use super::existing::{CHOOSES_TABLESPACE, Existing};
use super::tokens::{is_copy_from_stdin, is_word};

/// What the command line of `\restrict` may hold at the most, in bytes.
const RESTRICT_MAX: usize = 256;
/// The longest start of a statement that is held back, in bytes: a COPY of 1,600 columns whose names are all quotes.
const HELD_MAX: usize = 1 << 18;
/// Words that tell what a statement is.
const WORDS_MAX: usize = 3;
/// The longest of these words that is of interest.
const WORD_LENGTH_MAX: usize = 16;

/// The first letters of what chooses a tablespace.
const DEFAULT_TABLESPACE: &[u8] = b"default_tablespa";

/// Why a file goes no further.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line} of its SQL has {what}, which pg_dump does not write: the file was changed, or comes from elsewhere"
)]
pub struct Refused {
    pub line: u64,
    pub what: String,
}

/// Where in the SQL the reading is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Plain,
    /// In `'…'`; `E'…'` knows backslashes, and `escaped` says that one was just read.
    Text {
        escape: bool,
        escaped: bool,
    },
    /// In `"…"`.
    Name,
    /// After a `$` that may begin a dollar quote, with the letters since.
    Tag(Vec<u8>),
    /// In `$tag$…`; `since` is what follows the last `$`, if it may still be the tag.
    Dollar {
        tag: Vec<u8>,
        since: Option<Vec<u8>>,
    },
    Line,
    Block(u32),
    /// In a line that begins with a backslash.
    Command(Vec<u8>),
    /// Behind a COPY, up to the end of its line.
    AfterCopy,
    /// In the rows of a COPY, with the start of the line as far as it may still be `\.`.
    Rows(Option<Vec<u8>>),
}

/// What becomes of the statement that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Too little of it is read.
    Open,
    Pass,
    /// It is held back until it is known as pg_dump's own.
    Copy,
    /// It is held back until it is known what it makes.
    Held,
}

/// A reader of SQL on its way to psql.
#[derive(Debug)]
pub struct Screen {
    place: Place,
    line: u64,
    /// The byte before, where it can begin something with the next one.
    before: u8,
    /// The identifier, keyword or number that is read.
    token: Vec<u8>,
    /// Whether the last string knew backslashes, as long as only white space has followed on it.
    last_escape: Option<bool>,
    parens: u32,
    /// `BEGIN ATOMIC` and `CASE` in the body of a function, as psql counts them.
    begins: u32,
    words: Vec<Vec<u8>>,
    /// First letters of the first words, by which psql knows a function's definition.
    initials: Vec<u8>,
    fate: Fate,
    held: Vec<u8>,
    existing: Existing,
    lacking: BTreeSet<String>,
    /// Whether the rows of the COPY that is read are left out.
    skips: bool,
}

impl Screen {
    /// The start of a file, for a database that has what is `existing`.
    pub fn new(existing: Existing) -> Self {
        Self {
            place: Place::Plain,
            line: 1,
            before: 0,
            token: Vec::new(),
            last_escape: None,
            parens: 0,
            begins: 0,
            words: Vec::new(),
            initials: Vec::new(),
            fate: Fate::Open,
            held: Vec::new(),
            existing,
            lacking: BTreeSet::new(),
            skips: false,
        }
    }

    /// The tablespaces that the dump chose so far and the server lacks.
    pub fn lacking(&self) -> &BTreeSet<String> {
        &self.lacking
    }

    /// Add to `out` what of `input` psql may read.
    ///
    /// # Errors
    /// [`Refused`]; nothing more may follow then.
    pub fn pass(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), Refused> {
        let mut rest = input;
        while let Some(&byte) = rest.first() {
            // Most of a dump is rows, and most of a row is not its start.
            if self.place == Place::Rows(None) {
                let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
                if !self.skips {
                    out.extend_from_slice(&rest[..end]);
                }
                if rest[end - 1] == b'\n' {
                    self.line += 1;
                    self.place = Place::Rows(Some(Vec::new()));
                }
                rest = &rest[end..];
                continue;
            }
            rest = &rest[1..];
            self.byte(byte, out)?;
            self.line += u64::from(byte == b'\n');
            if self.held.len() > HELD_MAX {
                if self.fate == Fate::Copy {
                    return Err(self.refused("a COPY that is longer than any"));
                }
                self.fate = Fate::Pass;
            }
        }
        Ok(())
    }

    /// Add to `out` what was held back at the end of the file.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), Refused> {
        match mem::replace(&mut self.place, Place::Plain) {
            Place::Plain => return self.plain(byte, out),
            Place::Text { escape, escaped } => {
                self.place = match byte {
                    _ if escaped => Place::Text { escape, escaped: false },
                    b'\\' if escape => Place::Text { escape, escaped: true },
                    b'\'' => {
                        self.last_escape = Some(escape);
                        Place::Plain
                    }
                    _ => Place::Text { escape, escaped: false },
                };
            }
            Place::Name if byte == b'"' => {}
            Place::Name => self.place = Place::Name,
            Place::Tag(mut tag) => match byte {
                b'$' => self.place = Place::Dollar { tag, since: None },
                b'0'..=b'9' if tag.is_empty() => return self.plain(byte, out),
                _ if is_word(byte) => {
                    tag.push(byte);
                    self.place = Place::Tag(tag);
                }
                // It was a `$` alone, and a word.
                _ => {
                    self.token = tag;
                    return self.plain(byte, out);
                }
            },
            Place::Dollar { tag, since } => {
                let since = match (byte, since) {
                    (b'$', Some(since)) if since == tag => None,
                    (b'$', _) => Some(Some(Vec::new())),
                    (_, Some(mut since)) if since.len() < tag.len() => {
                        since.push(byte);
                        Some(Some(since))
                    }
                    _ => Some(None),
                };
                if let Some(since) = since {
                    self.place = Place::Dollar { tag, since };
                }
            }
            // Either ends a line to psql.
            Place::Line if matches!(byte, b'\n' | b'\r') => {}
            Place::Line => self.place = Place::Line,
            Place::Block(depth) => {
                let depth = match (mem::replace(&mut self.before, byte), byte) {
                    (b'*', b'/') => depth - 1,
                    (b'/', b'*') => depth + 1,
                    _ => {
                        self.place = Place::Block(depth);
                        self.put(byte, out);
                        return Ok(());
                    }
                };
                self.before = 0;
                if depth > 0 {
                    self.place = Place::Block(depth);
                }
            }
            Place::Command(command) => return self.command(command, byte),
            Place::AfterCopy => {
                if !byte.is_ascii_whitespace() {
                    return Err(self.refused("more behind a COPY on its line"));
                }
                self.place = if byte == b'\n' { Place::Rows(Some(Vec::new())) } else { Place::AfterCopy };
            }
            Place::Rows(start) => self.place = rows(start, byte),
        }
        if self.skips {
            // The rows end with this byte, or go on.
            self.skips = self.place != Place::Plain;
            return Ok(());
        }
        self.put(byte, out);
        Ok(())
    }

    fn plain(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), Refused> {
        if is_word(byte) || (byte == b'$' && self.token.first().is_some_and(|first| !first.is_ascii_digit())) {
            self.token.push(byte);
            self.last_escape = None;
            (self.before, self.place) = (0, Place::Plain);
            self.put(byte, out);
            return Ok(());
        }
        let token = mem::take(&mut self.token);
        self.word(&token);
        let before = mem::replace(&mut self.before, byte);
        let (space, last_escape) = (byte.is_ascii_whitespace(), self.last_escape);
        if !space && !matches!(byte, b'-' | b'/' | b'*') {
            self.last_escape = None;
        }
        self.place = match byte {
            b'\'' => {
                let begins_escape = token.eq_ignore_ascii_case(b"e");
                Place::Text { escape: begins_escape || last_escape == Some(true), escaped: false }
            }
            b'"' => Place::Name,
            b'$' => Place::Tag(Vec::new()),
            b'-' if before == b'-' => {
                self.before = 0;
                Place::Line
            }
            b'*' if before == b'/' => {
                self.before = 0;
                Place::Block(1)
            }
            b'\\' if self.is_between_statements() => Place::Command(vec![byte]),
            b'\\' => return Err(self.refused("a backslash outside of all quotes")),
            b'(' => {
                self.parens += 1;
                Place::Plain
            }
            b')' => {
                self.parens = self.parens.saturating_sub(1);
                Place::Plain
            }
            _ => Place::Plain,
        };
        if let Place::Command(_) = self.place {
            return Ok(());
        }
        self.decide(byte, space);
        self.put(byte, out);
        if byte == b';' && self.parens == 0 && self.begins == 0 {
            return self.end_statement(out);
        }
        Ok(())
    }

    /// Whether nothing of a statement was read yet.
    fn is_between_statements(&self) -> bool {
        self.words.is_empty() && self.fate == Fate::Open && self.parens == 0
    }

    /// Take note of a word that has ended.
    fn word(&mut self, token: &[u8]) {
        if token.is_empty() {
            return;
        }
        let lower = token.to_ascii_lowercase();
        if self.words.len() < WORDS_MAX {
            self.words.push(lower.iter().copied().take(WORD_LENGTH_MAX).collect());
        }
        // As psql's rule for identifiers does.
        if self.initials.len() < 4 {
            let known = [&b"create"[..], b"function", b"procedure", b"or", b"replace"].contains(&lower.as_slice());
            self.initials.push(if known { lower[0] } else { 0 });
        }
        let makes_routine =
            matches!(self.initials.as_slice(), [b'c', b'f' | b'p', ..] | [b'c', b'o', b'r', b'f' | b'p']);
        if makes_routine && self.parens == 0 {
            match lower.as_slice() {
                b"begin" => self.begins += 1,
                b"case" if self.begins > 0 => self.begins += 1,
                b"end" => self.begins = self.begins.saturating_sub(1),
                _ => {}
            }
        }
    }

    /// Decide on the statement, where enough of it is read, or where it goes on with `byte`, which is none of a word.
    fn decide(&mut self, byte: u8, space: bool) {
        if self.fate != Fate::Open {
            return;
        }
        let words: Vec<&[u8]> = self.words.iter().map(Vec::as_slice).collect();
        self.fate = match words.as_slice() {
            [b"copy", ..] => Fate::Copy,
            [b"create", b"extension" | b"schema", ..] | [b"comment", b"on", b"extension", ..]
                if !self.existing.is_empty() =>
            {
                Fate::Held
            }
            [b"set", DEFAULT_TABLESPACE, ..] if self.existing.tablespaces.is_some() => Fate::Held,
            [b"alter", b"table", ..] | [b"refresh", b"materialized", ..] if self.existing.only.is_some() => Fate::Held,
            [] | [b"create" | b"comment" | b"set" | b"alter" | b"refresh"] | [b"comment", b"on"]
                if space || matches!(byte, b'-' | b'/' | b'*') =>
            {
                Fate::Open
            }
            // A statement that is empty ends here.
            [] if byte == b';' => Fate::Open,
            _ => Fate::Pass,
        };
    }

    fn put(&mut self, byte: u8, out: &mut Vec<u8>) {
        match self.fate {
            Fate::Pass => {
                out.append(&mut self.held);
                out.push(byte);
            }
            // White space and comments between statements.
            Fate::Open if self.words.is_empty() && self.token.is_empty() => out.push(byte),
            Fate::Open | Fate::Copy | Fate::Held => self.held.push(byte),
        }
    }

    fn end_statement(&mut self, out: &mut Vec<u8>) -> Result<(), Refused> {
        let held = mem::take(&mut self.held);
        let fate = mem::replace(&mut self.fate, Fate::Open);
        self.words.clear();
        self.initials.clear();
        (self.before, self.begins) = (0, 0);
        if fate == Fate::Copy {
            if !is_copy_from_stdin(&held) {
                return Err(self.refused("a COPY from or to something else than the rows that follow"));
            }
            self.place = Place::AfterCopy;
            self.skips = self.existing.only.as_ref().is_some_and(|only| !only.wants_rows(&held));
            if self.skips {
                return Ok(());
            }
        }
        if fate == Fate::Held && self.existing.only.as_ref().is_some_and(|only| only.leaves_out(&held)) {
            return Ok(());
        }
        if let Some(tablespace) = self.existing.lacks(&held).filter(|_| fate == Fate::Held) {
            self.lacking.insert(tablespace);
            out.extend_from_slice(CHOOSES_TABLESPACE.as_bytes());
            out.extend_from_slice(b"'';");
        } else if fate != Fate::Held || !self.existing.makes(&held) {
            out.extend_from_slice(&held);
        }
        Ok(())
    }

    /// Read on in a line that begins with a backslash: the dump's own `\restrict` and `\unrestrict` are left out.
    fn command(&mut self, mut command: Vec<u8>, byte: u8) -> Result<(), Refused> {
        if byte != b'\n' && command.len() < RESTRICT_MAX {
            command.push(byte);
            self.place = Place::Command(command);
            return Ok(());
        }
        let text = String::from_utf8_lossy(&command).trim_end().to_owned();
        let key = text.strip_prefix("\\restrict ").or_else(|| text.strip_prefix("\\unrestrict "));
        if byte == b'\n'
            && key.is_some_and(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            return Ok(());
        }
        let name: String = text.chars().take_while(|letter| !letter.is_whitespace()).take(20).collect();
        Err(self.refused(&format!("the command {name} of psql's")))
    }

    fn refused(&self, what: &str) -> Refused {
        Refused { line: self.line, what: what.to_owned() }
    }
}

/// The place after `byte` in the rows of a COPY: `\.` on a line of its own ends them.
fn rows(start: Option<Vec<u8>>, byte: u8) -> Place {
    let Some(mut start) = start else {
        return Place::Rows((byte == b'\n').then(Vec::new));
    };
    start.push(byte);
    match start.as_slice() {
        b"\\.\n" | b"\\.\r\n" => Place::Plain,
        b"\\" | b"\\." | b"\\.\r" => Place::Rows(Some(start)),
        _ => Place::Rows((byte == b'\n').then(Vec::new)),
    }
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
