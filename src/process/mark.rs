//! The mark in the environment of every child, by which its descendants are known wherever they went.
//!
//! A descendant can leave its process group, its session and its parent, and may have closed all it inherited; its
//! environment stays what it was when its program was started, unless it was started with another one on purpose.

use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::look;

/// The variable.
pub const NAME: &str = "TANDEM_RUN";
/// The last part of the mark of a child that is to end in its own time when Tandem was killed, as a postmaster is.
const ORDERLY: &str = "orderly";

/// What this process marks its children with, from [`begin`] on.
static RUN: OnceLock<RunId> = OnceLock::new();
static CHILDREN: AtomicU64 = AtomicU64::new(0);

/// One run of Tandem with one state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId {
    /// The state directory, as device and inode: at most one run holds it at a time.
    pub place: String,
    pub id: String,
}

impl RunId {
    /// The run that `text` says, as [`RunId`] is displayed.
    pub fn parse(text: &str) -> Option<Self> {
        let (place, id) = text.split_once('.')?;
        let is_word =
            |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        (is_word(place) && is_word(id)).then(|| Self { place: place.to_owned(), id: id.to_owned() })
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.place, self.id)
    }
}

/// The mark of one child, which its descendants inherit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub run: RunId,
    /// Which child.
    pub number: u64,
    /// Whether it is left to end in its own time when Tandem was killed.
    pub orderly: bool,
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let (text, orderly) = match text.strip_suffix(ORDERLY).and_then(|text| text.strip_suffix('.')) {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (run, number) = text.rsplit_once('.')?;
        Some(Self { run: RunId::parse(run)?, number: number.parse().ok()?, orderly })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All of one length: a forked worker writes its own over the one that it was forked with.
        write!(formatter, "{}.{:010}", self.run, self.number)?;
        if self.orderly { write!(formatter, ".{ORDERLY}") } else { Ok(()) }
    }
}

/// Mark every child from now on as one of this run, which holds the state directory `state`.
///
/// # Errors
/// The directory is not there.
pub fn begin(state: &Path) -> io::Result<RunId> {
    // Blocks: before the loop turns.
    let meta = std::fs::metadata(state)?;
    let place = format!("{:x}-{:x}", meta.dev(), meta.ino());
    Ok(RUN.get_or_init(|| RunId { place, id: format!("{:016x}", rand::random::<u64>()) }).clone())
}

/// The mark for another child, once a run has begun.
pub fn next(orderly: bool) -> Option<Mark> {
    let run = RUN.get()?.clone();
    Some(Mark { run, number: CHILDREN.fetch_add(1, Ordering::Relaxed), orderly })
}

/// The mark that process `pid` carries, if it does.
///
/// # Errors
/// The process is gone, or this user may not look at it.
pub fn of(pid: i32) -> io::Result<Option<Mark>> {
    // Blocks: for as long as that process's memory is locked; called through `apart`.
    let environment = look::as_owner(pid, || std::fs::read(format!("/proc/{pid}/environ")))?;
    let value = environment.split(|&byte| byte == 0).find_map(|entry| {
        let value = entry.strip_prefix(NAME.as_bytes())?.strip_prefix(b"=")?;
        std::ffi::OsStr::from_bytes(value).to_str()
    });
    Ok(value.and_then(Mark::parse))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let run = RunId { place: "fe01-1a".into(), id: "00ff".into() };
        for orderly in [false, true] {
            let mark = Mark { run: run.clone(), number: 7, orderly };
            assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        }
        assert_eq!(RunId::parse(&run.to_string()), Some(run));
        for text in ["", "1", "orderly", ".orderly", "fe01-1a.7", "fe01-1a.00ff.x", "../etc.00ff.1"] {
            assert_eq!(Mark::parse(text), None, "{text}");
        }
    }
}
