//! The lines of `log.file` and of the older files beside it, for `tandem logs`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;

use crate::control::messages::LogEntry;
use crate::telemetry::{self, FileBounds, FileLine};

/// A line as `tandem logs` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Printable {
    pub time: SystemTime,
    pub entry: LogEntry,
}

/// Which lines of files are wanted.
pub struct Wanted<'a> {
    /// Is asked with the service that the line is about, if it is Tandem's about one.
    pub accepts: &'a dyn Fn(&Printable, Option<&str>) -> bool,
    pub since: Option<SystemTime>,
    /// The last so many.
    pub lines: Option<usize>,
}

/// The wanted lines, the oldest first. What is not Tandem's in a file is passed over.
///
/// # Errors
/// A file is there and cannot be read.
pub fn read(files: &FileBounds, wanted: &Wanted<'_>) -> anyhow::Result<Vec<Printable>> {
    let mut found: Vec<Printable> = Vec::new();
    // The newest first: a long log is not read for its last lines.
    for path in files.files() {
        if wanted.lines.is_some_and(|lines| found.len() >= lines) {
            break;
        }
        let Some((mut older, begins)) = read_one(&path, wanted).with_context(|| format!("read {}", path.display()))?
        else {
            continue;
        };
        older.append(&mut found);
        found = older;
        if wanted.since.is_some_and(|since| begins.is_some_and(|begins| begins < since)) {
            break;
        }
    }
    let surplus = wanted.lines.map_or(0, |lines| found.len().saturating_sub(lines));
    Ok(found.split_off(surplus))
}

/// The wanted lines of one file, and when its first line was written; `None`: there is no such file.
fn read_one(path: &Path, wanted: &Wanted<'_>) -> io::Result<Option<(Vec<Printable>, Option<SystemTime>)>> {
    // Blocks: a command that waits for its data.
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A pipe or a device has no past, and would be waited for.
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut reader = BufReader::new(file);
    let (mut found, mut begins, mut bytes) = (Vec::new(), None, Vec::new());
    while reader.read_until(b'\n', &mut bytes)? > 0 {
        let line = std::str::from_utf8(&bytes).ok().and_then(telemetry::file_line);
        bytes.clear();
        let Some(line) = line else { continue };
        begins = begins.or(Some(line.time));
        let (line, about) = printable(line);
        if (wanted.accepts)(&line, about.as_deref()) {
            found.push(line);
        }
    }
    Ok(Some((found, begins)))
}

fn printable(line: FileLine) -> (Printable, Option<String>) {
    let FileLine { time, level, service, about, text } = line;
    let level = level.as_str().to_owned();
    let entry = LogEntry::Line { sequence: None, time: telemetry::rfc3339(time), service, level, text };
    (Printable { time, entry }, about)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(second: u32, text: &str) -> String {
        format!(
            "{{\"timestamp\":\"2026-11-30T12:00:{second:02}.000Z\",\"level\":\"INFO\",\"target\":\"output\",\
             \"service.name\":\"worker-0\",\"message\":\"{text}\"}}\n"
        )
    }

    fn texts(found: &[Printable]) -> Vec<&str> {
        fn text(one: &Printable) -> &str {
            match &one.entry {
                LogEntry::Line { text, .. } => text,
                LogEntry::Skipped { .. } => "",
            }
        }
        found.iter().map(text).collect()
    }

    #[test]
    fn the_last_lines_are_those_of_the_newest_files() {
        let dir = tempfile::tempdir().unwrap();
        let files = FileBounds { path: dir.path().join("log"), size_max: 1, count: 3 };
        fs::write(dir.path().join("log"), line(5, "e") + "not ours\n\n" + &line(6, "f") + "{\"torn").unwrap();
        fs::write(dir.path().join("log.1"), line(3, "c") + &line(4, "d")).unwrap();
        fs::write(dir.path().join("log.2"), [line(1, "a").as_bytes(), b"\xff\n", line(2, "b").as_bytes()].concat())
            .unwrap();
        fs::write(dir.path().join("log.3"), line(0, "not counted")).unwrap();
        let read = |lines, since: Option<&str>| {
            let since = since.map(|since| humantime::parse_rfc3339(since).unwrap());
            let accepts = |one: &Printable, _: Option<&str>| since.is_none_or(|since| one.time >= since);
            read(&files, &Wanted { accepts: &accepts, since, lines }).unwrap()
        };
        assert_eq!(texts(&read(None, None)), ["a", "b", "c", "d", "e", "f"]);
        assert_eq!(texts(&read(Some(3), None)), ["d", "e", "f"]);
        assert_eq!(texts(&read(None, Some("2026-11-30T12:00:04Z"))), ["d", "e", "f"]);
        fs::remove_file(dir.path().join("log.1")).unwrap();
        assert_eq!(texts(&read(None, None)), ["a", "b", "e", "f"], "a gap among the files ends nothing");
    }
}
