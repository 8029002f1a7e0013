//! The SQL of a backup on its way to psql: read, screened, counted, and never handed over as whole when it is not.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use rand::TryRng;
use rand::rngs::SysRng;

use super::dump::ends_whole;
use super::existing::Existing;
use super::screen::{Refused, Screen};
use super::tokens::{self, Token, name, unquoted, word};
use crate::install::hexadecimal;

/// How much of the stream's end is looked at for the trailer, in bytes.
const TAIL_SIZE: usize = 256;
/// How much is handed over at once, in bytes.
const BLOCK_SIZE: usize = 1 << 18;
/// How much of a file is looked at for its extensions, in bytes.
const HEAD_SIZE: u64 = 16 << 20;
/// The first minor release of each major one whose psql knows `\restrict` (PostgreSQL's release notes, CVE-2025-8714).
const RESTRICT_SINCE: [(u32, u32); 5] = [(13, 22), (14, 19), (15, 14), (16, 10), (17, 6)];

/// Why not all of a file was handed over.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the file is damaged: {0}")]
    Read(io::Error),
    #[error("the file is cut short: pg_dump's last line is missing")]
    CutShort,
    #[error("the file holds more than the {0} bytes of SQL that its manifest says")]
    TooLong(u64),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("psql takes no more: {0}")]
    Write(io::Error),
}

/// How SQL is handed over.
#[derive(Clone, Debug)]
pub struct Feeding {
    /// Whether psql knows `\restrict`.
    pub restricts: bool,
    pub existing: Existing,
    /// How much SQL there is, where that is known.
    pub bytes_max: Option<u64>,
}

/// Hand `stream` to `psql`. `passed` counts its bytes. Returns the tablespaces that the dump names and the server lacks.
///
/// # Errors
/// [`Broken`]; psql has part of the dump then, and its input must not end as if it were whole.
pub fn feed(
    mut stream: impl Read,
    psql: &mut impl Write,
    feeding: Feeding,
    passed: &AtomicU64,
) -> Result<BTreeSet<String>, Broken> {
    if feeding.restricts {
        // From here on psql itself knows no command any more but `\unrestrict` with this key.
        writeln!(psql, "\\restrict {}", key().map_err(Broken::Read)?).map_err(Broken::Write)?;
    }
    let mut screen = Screen::new(feeding.existing);
    let (mut block, mut screened, mut tail) = (vec![0; BLOCK_SIZE], Vec::with_capacity(BLOCK_SIZE), Vec::new());
    loop {
        let length = match stream.read(&mut block) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broken::Read(error)),
        };
        let before = passed.fetch_add(length as u64, Ordering::Relaxed);
        if let Some(bytes_max) = feeding.bytes_max.filter(|max| before + length as u64 > *max) {
            return Err(Broken::TooLong(bytes_max));
        }
        screened.clear();
        let refused = screen.pass(&block[..length], &mut screened);
        psql.write_all(&screened).map_err(Broken::Write)?;
        refused?;
        tail.extend_from_slice(&block[length.saturating_sub(TAIL_SIZE)..length]);
        tail.drain(..tail.len().saturating_sub(TAIL_SIZE));
    }
    screened.clear();
    screen.finish(&mut screened);
    psql.write_all(&screened).map_err(Broken::Write)?;
    if ends_whole(&tail) { Ok(screen.lacking().clone()) } else { Err(Broken::CutShort) }
}

/// A random key for `\restrict`.
fn key() -> io::Result<String> {
    let mut bits = [0; 16];
    SysRng.try_fill_bytes(&mut bits).map_err(io::Error::other)?;
    Ok(hexadecimal(&bits))
}

/// Whether psql of this version, such as `16.15`, knows `\restrict`.
pub fn knows_restrict(version: &str) -> bool {
    let mut numbers = version.split(['.', ' ']).map(|number| number.parse::<u32>().ok());
    let (major, minor) = (numbers.next().flatten().unwrap_or(0), numbers.next().flatten().unwrap_or(0));
    major > 17
        || RESTRICT_SINCE.contains(&(major, minor))
        || RESTRICT_SINCE.iter().any(|&(of, since)| of == major && minor > since)
}

/// What the first statements of a dump make.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Head {
    pub extensions: Vec<Extension>,
    /// Schemas, as they are written.
    pub schemas: Vec<String>,
    /// Comments on extensions: the name, and the comment as it is written.
    pub comments: Vec<(String, String)>,
}

/// An extension that a dump makes.
#[derive(Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its name as it is written.
    pub written: String,
    pub schema: Option<String>,
}

/// Read the start of a dump: pg_dump writes schemas and extensions before all that may need them.
pub fn head(stream: impl Read) -> Head {
    let (mut head, mut text) = (Head::default(), String::new());
    for line in io::BufRead::split(io::BufReader::new(stream.take(HEAD_SIZE)), b'\n').map_while(Result::ok) {
        let Ok(line) = String::from_utf8(line) else { continue };
        if let Some(rest) = line.strip_prefix("CREATE EXTENSION IF NOT EXISTS ") {
            let rest = rest.trim_end_matches(';');
            let (written, schema) =
                rest.split_once(" WITH SCHEMA ").map_or((rest, None), |(name, it)| (name, Some(it)));
            head.extensions.push(Extension { written: written.to_owned(), schema: schema.map(unquoted) });
        } else if let Some(schema) = line.strip_prefix("CREATE SCHEMA ") {
            head.schemas.push(schema.trim_end_matches(';').to_owned());
        } else if line.starts_with("CREATE ") || line.starts_with("COPY ") {
            break;
        }
        text.push_str(&line);
        text.push('\n');
    }
    for statement in tokens::statements(&text) {
        if let [comment, on, extension, of, is, Token::Text(text)] = statement.as_slice()
            && [comment, on, extension, is].map(word)
                == ["COMMENT", "ON", "EXTENSION", "IS"].map(|word| Some(word.to_owned()))
            && let Some(name) = name(of)
        {
            head.comments.push((name, text.clone()));
        }
    }
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: &str = "--\n-- PostgreSQL database dump complete\n--\n";

    fn fed(text: &str, bytes_max: Option<u64>) -> (String, Result<BTreeSet<String>, Broken>) {
        let mut psql = Vec::new();
        let feeding = Feeding { restricts: true, existing: Existing::default(), bytes_max };
        let result = feed(text.as_bytes(), &mut psql, feeding, &AtomicU64::new(0));
        (String::from_utf8(psql).unwrap(), result)
    }

    #[test]
    fn psql_is_restricted_before_it_reads_and_gets_no_more_than_was_written_down() {
        let text = format!("\\restrict theirs\nSELECT 1;\n{END}");
        let (psql, result) = fed(&text, Some(text.len() as u64));
        result.unwrap();
        let (first, rest) = psql.split_once('\n').unwrap();
        assert!(first.starts_with("\\restrict ") && !first.contains("theirs") && first.len() > 30, "{first}");
        assert_eq!(rest, format!("SELECT 1;\n{END}"));
        assert!(matches!(fed(&text, Some(20)).1, Err(Broken::TooLong(20))));
        assert!(matches!(fed("SELECT 1;\n", None).1, Err(Broken::CutShort)));
        let (psql, result) = fed(&format!("SELECT 1;\n\\! id\n{END}"), None);
        assert!(matches!(result, Err(Broken::Refused(_))) && !psql.contains("id"), "{psql}");
    }

    #[test]
    fn versions_that_know_the_restriction_are_told_from_those_that_do_not() {
        for (version, knows) in [
            ("16.9", false),
            ("16.10", true),
            ("16.15", true),
            ("15.13", false),
            ("17.6", true),
            ("18.0", true),
            ("", false),
        ] {
            assert_eq!(knows_restrict(version), knows, "{version}");
        }
    }

    #[test]
    fn extensions_are_read_from_the_start_of_a_dump() {
        let text = "SET a = 1;\nCREATE SCHEMA \"my ext\";\nCREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" WITH SCHEMA \"my ext\";\n\
                    COMMENT ON EXTENSION \"uuid-ossp\" IS 'x';\nCREATE EXTENSION IF NOT EXISTS hstore;\nCREATE TABLE t ();\n\
                    CREATE EXTENSION IF NOT EXISTS late WITH SCHEMA public;\n";
        let head = head(text.as_bytes());
        let extension = |written: &str, schema: Option<&str>| Extension {
            written: written.to_owned(),
            schema: schema.map(str::to_owned),
        };
        assert_eq!(head.extensions, [extension("\"uuid-ossp\"", Some("my ext")), extension("hstore", None)]);
        assert_eq!(head.schemas, ["\"my ext\""]);
        assert_eq!(head.comments, [("uuid-ossp".to_owned(), "'x'".to_owned())]);
    }
}
