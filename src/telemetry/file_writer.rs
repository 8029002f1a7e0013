//! What the thread of `log.file` does with its lines: it writes them, and tells once when it cannot.
//!
//! Blocks: the thread of its queue, and no other.

use std::io;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use super::outlet::QueuedLine;
use super::rotation::{FileBounds, RotatingFile};
use super::{Look, outlet};

/// How long a file that cannot be written is left alone before the next line tries it again.
const RETRY: Duration = Duration::from_secs(1);

static BOUNDS: OnceLock<FileBounds> = OnceLock::new();

/// From now on write the log into this file too. The first call counts.
pub fn log_to_file(bounds: FileBounds) {
    let _ = BOUNDS.set(bounds);
}

/// Whether there is such a file.
pub(super) fn is_set() -> bool {
    BOUNDS.get().is_some()
}

/// The file as its thread knows it.
pub(super) struct FileWriter {
    file: RotatingFile,
    trouble: Option<Trouble>,
    /// Whether it was told that the file cannot be rotated.
    told_unrotated: bool,
}

/// The file cannot be written.
struct Trouble {
    why: String,
    /// How many lines are missing so far.
    lost: u64,
    tried: Instant,
}

impl FileWriter {
    /// For the file that [`log_to_file`] was told of.
    pub(super) fn of_process() -> Option<Self> {
        BOUNDS.get().map(|bounds| Self::new(bounds.clone()))
    }

    fn new(bounds: FileBounds) -> Self {
        Self { file: RotatingFile::new(bounds), trouble: None, told_unrotated: false }
    }

    /// Write one entry.
    ///
    /// # Errors
    /// It could not be written, and is missing in the file.
    pub(super) fn write(&mut self, entry: QueuedLine) -> io::Result<()> {
        match entry {
            QueuedLine::Text(text) => self.line(&text),
            QueuedLine::Dropped(count) => {
                self.line(outlet::gap(count, "the disk was slower than the log", Look::Json, now()).as_bytes())
            }
            // There are no spinners in a file.
            QueuedLine::Turn(..) | QueuedLine::Say(..) | QueuedLine::End(_) => Ok(()),
        }
    }

    fn line(&mut self, text: &[u8]) -> io::Result<()> {
        if let Some(trouble) = &mut self.trouble
            && trouble.tried.elapsed() < RETRY
        {
            trouble.lost += 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = self.try_line(text);
        match (&written, &mut self.trouble) {
            (Ok(()), trouble) => {
                if let Some(over) = trouble.take() {
                    tracing::info!("log.file {} is written again; {} lines are missing in it", self.path(), over.lost);
                }
            }
            (Err(error), None) => {
                tracing::warn!("{}", cannot(self.file.path(), error));
                self.trouble = Some(Trouble { why: words(error), lost: 1, tried: Instant::now() });
            }
            (Err(_), Some(trouble)) => {
                trouble.lost += 1;
                trouble.tried = Instant::now();
            }
        }
        if let Some(error) = self.file.take_unrotated()
            && !std::mem::replace(&mut self.told_unrotated, true)
        {
            let path = self.path();
            tracing::warn!("log.file {path} cannot be rotated, and grows on: {}", words(&error));
        }
        written
    }

    /// Write `text`, with the gap before it named if there is one.
    fn try_line(&mut self, text: &[u8]) -> io::Result<()> {
        let Some(trouble) = &self.trouble else { return self.file.write(text) };
        let mut whole = outlet::gap(trouble.lost, &trouble.why, Look::Json, now()).into_bytes();
        whole.extend_from_slice(text);
        self.file.write(&whole)
    }

    fn path(&self) -> std::path::Display<'_> {
        self.file.path().display()
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}

fn words(error: &io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_owned()
}

/// That the file cannot be written, and what to do about it.
fn cannot(path: &Path, error: &io::Error) -> String {
    let next = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there",
        io::ErrorKind::NotFound => "make its directory, or mount it again",
        io::ErrorKind::IsADirectory => "name a file",
        _ => "let Tandem's user write there, or name another file",
    };
    format!(
        "log.file {} cannot be written: {}. Nothing waits for it: lines go on to standard error and `tandem logs`, and into \
         the file once it can be written; {next}",
        path.display(),
        words(error)
    )
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_that_could_not_be_written_are_named_in_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut writer = FileWriter::new(FileBounds { path: path.clone(), size_max: 1 << 20, count: 2 });
        let mut line = |text: &str| writer.write(QueuedLine::Text(format!("{text}\n").into_bytes())).is_ok();
        assert!(line("one"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(!line("two") && !line("three"));
        fs::remove_dir(&path).unwrap();
        assert!(!line("four"), "it is not tried with every line");
        writer.trouble.as_mut().unwrap().tried = Instant::now().checked_sub(RETRY).unwrap();
        assert!(writer.write(QueuedLine::Text(b"five\n".to_vec())).is_ok());
        let text = fs::read_to_string(&path).unwrap();
        let (gap, rest) = text.split_once('\n').unwrap();
        let gap: serde_json::Value = serde_json::from_str(gap).unwrap();
        assert_eq!((gap["log.dropped"].as_u64(), rest), (Some(3), "five\n"));
        assert!(gap["message"].as_str().unwrap().contains("s a directory"), "{gap}");
    }

    #[test]
    fn the_next_step_is_named() {
        for (kind, step) in [
            (io::ErrorKind::StorageFull, "make room there"),
            (io::ErrorKind::NotFound, "mount it again"),
            (io::ErrorKind::PermissionDenied, "let Tandem's user write there"),
        ] {
            assert!(cannot(Path::new("/l"), &kind.into()).contains(step));
        }
    }
}
