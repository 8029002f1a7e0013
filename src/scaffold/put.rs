//! Puts a file into the project; one that is there stays as it is.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::{Content, Piece};
use crate::durable::{self, WriteOptions};
use crate::exit::{Code, Failure};

/// What became of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Made,
    /// Lines were added to it.
    Added(Vec<String>),
    /// It is there, with other content than it would get.
    Kept,
    /// It says already what it would get.
    Same,
}

/// Ordinary files of a project.
const MODE: u32 = 0o644;

/// Put `piece` into `directory`.
///
/// # Errors
/// A [`Failure`] with [`Code::CannotCreate`] where it cannot be written.
pub fn put(directory: &Path, piece: &Piece) -> anyhow::Result<Outcome> {
    let path = directory.join(&piece.path);
    let failed = |error: io::Error| {
        let text = format!("write {}: {error}. `tandem init --print` shows what it would hold", path.display());
        Failure::new(Code::CannotCreate, text)
    };
    let options = WriteOptions::default().mode(MODE);
    let (whole, lines) = match &piece.content {
        Content::Whole(text) => (text, None),
        Content::Lines { lines, new } => (new, Some(lines)),
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match durable::create(&path, whole.as_bytes(), &options) {
        Ok(()) => return Ok(Outcome::Made),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error).into()),
    }
    let there = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let Some(lines) = lines else {
        return Ok(if there == *whole { Outcome::Same } else { Outcome::Kept });
    };
    let bare = |line: &str| line.trim().trim_matches('/').to_owned();
    let missing = lines.iter().filter(|line| !there.lines().any(|it| bare(it) == bare(line))).cloned();
    let missing: Vec<String> = missing.collect();
    if missing.is_empty() {
        return Ok(Outcome::Same);
    }
    // The bytes that are there stay, whatever they are.
    let mut bytes = fs::read(&path).map_err(failed)?;
    if !bytes.is_empty() && !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    bytes.extend(missing.iter().flat_map(|line| format!("{line}\n").into_bytes()));
    // A link is followed: the file that it leads to is the one that git reads.
    let target = path.canonicalize().map_err(failed)?;
    durable::replace(&target, &bytes, &options).map_err(failed)?;
    Ok(Outcome::Added(missing))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn nothing_that_is_there_changes_but_for_a_missing_line() {
        let temp = tempfile::tempdir().unwrap();
        let whole = |text: &str| Piece {
            path: PathBuf::from("a dir/ü.toml"),
            content: Content::Whole(text.to_owned()),
            note: String::new(),
        };
        assert_eq!(put(temp.path(), &whole("one")).unwrap(), Outcome::Made);
        assert_eq!(put(temp.path(), &whole("one")).unwrap(), Outcome::Same);
        assert_eq!(put(temp.path(), &whole("two")).unwrap(), Outcome::Kept);
        assert_eq!(fs::read_to_string(temp.path().join("a dir/ü.toml")).unwrap(), "one");
        let ignore = Piece {
            path: PathBuf::from(".gitignore"),
            content: Content::Lines { lines: vec![".tandem/".to_owned()], new: ".tandem/\n.env\n".to_owned() },
            note: String::new(),
        };
        fs::write(temp.path().join(".gitignore"), b"*.pyc\n\xff").unwrap();
        assert_eq!(put(temp.path(), &ignore).unwrap(), Outcome::Added(vec![".tandem/".to_owned()]));
        assert_eq!(fs::read(temp.path().join(".gitignore")).unwrap(), b"*.pyc\n\xff\n.tandem/\n");
        fs::write(temp.path().join(".gitignore"), "/.tandem\n").unwrap();
        assert_eq!(put(temp.path(), &ignore).unwrap(), Outcome::Same);
    }
}
