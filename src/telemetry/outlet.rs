//! The queues before standard error and before `log.file`, and the threads that write them.
//!
//! write(2) blocks when the reader stops reading (Ctrl-S, `| less`, a stalled ssh, a blocking log driver), and when a disk
//! hangs. Here it blocks one thread only, and neither queue waits for the other. Lines that do not fit into the queue
//! meanwhile are dropped and counted, and a line in their place says how many are missing. The ring ([`super::ring()`])
//! keeps them too.
//!
//! The queue is bounded in bytes. `tracing-appender` bounds the number of lines, which can have 64 KB each here, and does
//! not mark in the log where lines are missing.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::Level;

use super::file_writer::FileWriter;
use super::terminal::Spinners;
use super::{Look, format, json, look};

/// How many bytes may wait to be written.
const SIZE_MAX: usize = 1 << 20;
/// How often spinners turn.
const TICK: Duration = Duration::from_millis(100);

/// What waits to be written or shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum QueuedLine {
    /// To be written in one piece.
    Text(Vec<u8>),
    /// The number of texts that are missing here.
    Dropped(u64),
    /// A new spinner: its number, and the text beside it.
    Turn(u64, String),
    /// Another text for a spinner.
    Say(u64, String),
    /// The end of a spinner.
    End(u64),
}

/// What a queue is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    Stderr,
    /// `log.file`.
    File,
}

/// A queue, and what it is written to.
pub(super) struct Outlet {
    sink: Sink,
    waiting: Mutex<Waiting>,
    /// Signalled when an entry was put in.
    news: Condvar,
    /// Signalled when everything is written.
    done: Condvar,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<QueuedLine>,
    /// The size of the texts in `entries`.
    bytes: usize,
    /// How many texts were dropped or could not be written since the start.
    dropped: u64,
    /// Set when a text did not fit, until half of the queue is written: otherwise every second line would be a gap.
    full: bool,
    /// The process is about to end: nothing is dropped.
    urgent: bool,
    /// The thread is writing an entry.
    writing: bool,
    /// A flush passed its limit, and nothing was written since.
    stuck: bool,
    has_thread: bool,
}

impl Waiting {
    /// Add `entry`, or count it as dropped if there is no room.
    fn put(&mut self, entry: QueuedLine) {
        match &entry {
            QueuedLine::Text(text) if self.has_room(text.len()) => self.bytes += text.len(),
            QueuedLine::Text(_) => return self.drop_one(),
            // Only the newest text of a spinner matters.
            QueuedLine::Say(number, _) => {
                let same = |other: &&mut QueuedLine| matches!(other, QueuedLine::Say(their, _) if their == number);
                if let Some(before) = self.entries.iter_mut().rev().find(same) {
                    *before = entry;
                    return;
                }
            }
            QueuedLine::Dropped(_) | QueuedLine::Turn(..) | QueuedLine::End(_) => {}
        }
        self.entries.push_back(entry);
    }

    fn has_room(&mut self, length: usize) -> bool {
        self.full = if self.full { self.bytes > SIZE_MAX / 2 } else { self.bytes + length > SIZE_MAX };
        self.urgent || !self.full
    }

    fn drop_one(&mut self) {
        self.dropped += 1;
        match self.entries.back_mut() {
            Some(QueuedLine::Dropped(count)) => *count += 1,
            _ => self.entries.push_back(QueuedLine::Dropped(1)),
        }
    }

    fn take(&mut self) -> Option<QueuedLine> {
        let entry = self.entries.pop_front()?;
        if let QueuedLine::Text(text) = &entry {
            self.bytes -= text.len();
        }
        Some(entry)
    }
}

/// What writes the entries of a queue; it belongs to one thread.
enum Writer {
    Stderr(Spinners),
    File(FileWriter),
    /// There is no such file.
    Nothing,
}

impl Writer {
    fn of(sink: Sink) -> Self {
        match sink {
            Sink::Stderr => Self::Stderr(Spinners::default()),
            Sink::File => FileWriter::of_process().map_or(Self::Nothing, Self::File),
        }
    }

    /// Write or show one entry. Blocks while standard error is not read, or the disk hangs.
    fn write(&mut self, entry: QueuedLine) -> io::Result<()> {
        match self {
            Self::Stderr(spinners) => write(spinners, entry),
            Self::File(file) => file.write(entry),
            Self::Nothing => Ok(()),
        }
    }

    /// Whether nothing changes on the terminal by itself.
    fn is_still(&self) -> bool {
        if let Self::Stderr(spinners) = self { spinners.are_none() } else { true }
    }

    fn tick(&self) {
        if let Self::Stderr(spinners) = self {
            spinners.tick();
        }
    }
}

impl Outlet {
    pub(super) fn to(sink: Sink) -> Self {
        Self { sink, waiting: Mutex::default(), news: Condvar::new(), done: Condvar::new() }
    }

    /// Add `entry` to the queue. Does not block.
    pub(super) fn put(&'static self, entry: QueuedLine) {
        let mut waiting = self.lock();
        if !waiting.has_thread {
            waiting.has_thread = true;
            let name = if self.sink == Sink::Stderr { "log" } else { "log-file" };
            let thread = std::thread::Builder::new().name(name.into()).spawn(|| self.write_for_ever());
            if thread.is_err() {
                // The thread cannot be started: write here. The next entry tries again.
                waiting.has_thread = false;
                drop(waiting);
                return drop(Writer::of(self.sink).write(entry));
            }
        }
        waiting.put(entry);
        drop(waiting);
        self.news.notify_one();
    }

    /// As [`Outlet::put`], even if the queue is full.
    pub(super) fn put_urgent(&'static self, text: Vec<u8>) {
        let before = std::mem::replace(&mut self.lock().urgent, true);
        self.put(QueuedLine::Text(text));
        self.lock().urgent = before;
    }

    /// From now on drop nothing: the process is about to end.
    pub(super) fn urge(&self) {
        self.lock().urgent = true;
    }

    /// Wait until everything is written, at most `limit`. Unless `patient`, return at once if the last flush passed its
    /// limit.
    pub(super) fn flush(&self, limit: Duration, patient: bool) {
        let deadline = Instant::now() + limit;
        let mut waiting = self.lock();
        while waiting.has_thread && (waiting.writing || !waiting.entries.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || (waiting.stuck && !patient) {
                waiting.stuck = true;
                return;
            }
            waiting = self.done.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The number of lines dropped since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_for_ever(&self) {
        let mut writer = Writer::of(self.sink);
        loop {
            let mut waiting = self.lock();
            let entry = loop {
                if let Some(entry) = waiting.take() {
                    break Some(entry);
                }
                waiting.writing = false;
                self.done.notify_all();
                if writer.is_still() {
                    waiting = self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                let (woken, timeout) = self.news.wait_timeout(waiting, TICK).unwrap_or_else(PoisonError::into_inner);
                waiting = woken;
                if timeout.timed_out() && waiting.entries.is_empty() {
                    break None;
                }
            };
            waiting.writing = true;
            drop(waiting);
            let written = match entry {
                Some(entry) => writer.write(entry),
                None => {
                    writer.tick();
                    Ok(())
                }
            };
            let mut waiting = self.lock();
            waiting.stuck = false;
            if written.is_err() {
                // The reader is gone, or a disk is full.
                waiting.dropped += 1;
            }
        }
    }
}

/// Write an entry to standard error, or show it there.
fn write(spinners: &mut Spinners, entry: QueuedLine) -> io::Result<()> {
    match entry {
        QueuedLine::Text(text) => spinners.suspend(|| write_all(&text)),
        QueuedLine::Dropped(count) => {
            let gap = gap(count, "standard error was not read", look(), SystemTime::now());
            spinners.suspend(|| write_all(gap.as_bytes()))
        }
        QueuedLine::Turn(number, text) => {
            spinners.turn(number, text);
            Ok(())
        }
        QueuedLine::Say(number, text) => {
            spinners.say(number, text);
            Ok(())
        }
        QueuedLine::End(number) => {
            spinners.end(number);
            Ok(())
        }
    }
}

/// Write all of `text` to standard error.
fn write_all(text: &[u8]) -> io::Result<()> {
    // Blocks: the thread of the queue, and no other.
    super::print::write_all(io::stderr(), text)?;
    super::log_file::wrote(text.len());
    Ok(())
}

/// The line in the place of `count` lines that were dropped because of `why`.
pub(super) fn gap(count: u64, why: &str, look: Look, now: SystemTime) -> String {
    let (lines, were) = if count == 1 { ("line", "was") } else { ("lines", "were") };
    let text = format!("{count} {lines} {were} dropped here: {why}. `tandem logs` has the newest");
    match look {
        Look::Text { colour } => format::text_line(colour, now, format::OWN, "WARN", &text),
        Look::Json => {
            json::own_line(now, Level::WARN, &text, &[("log.dropped", count.into())])
                + "
"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> QueuedLine {
        QueuedLine::Text(vec![b'x'; length])
    }

    #[test]
    fn what_does_not_fit_is_counted_in_its_place() {
        let mut waiting = Waiting::default();
        let tenth = SIZE_MAX / 10;
        for _ in 0..10 {
            waiting.put(text(tenth));
        }
        for _ in 0..3 {
            waiting.put(text(tenth));
        }
        assert_eq!((waiting.entries.len(), waiting.entries.back()), (11, Some(&QueuedLine::Dropped(3))));
        // One line of room is not enough to go on: the gap would be as long as the log.
        waiting.take();
        waiting.put(text(tenth));
        assert_eq!(waiting.entries.back(), Some(&QueuedLine::Dropped(4)));
        for _ in 0..5 {
            waiting.take();
        }
        waiting.put(text(tenth));
        assert_eq!(waiting.entries.back(), Some(&text(tenth)));
        assert_eq!((waiting.dropped, waiting.bytes), (4, 5 * tenth));
    }

    #[test]
    fn last_words_always_fit() {
        let mut waiting = Waiting::default();
        waiting.put(text(SIZE_MAX));
        waiting.urgent = true;
        waiting.put(text(10));
        assert_eq!((waiting.dropped, waiting.entries.back()), (0, Some(&text(10))));
    }

    #[test]
    fn a_gap_is_a_line_like_any_other() {
        let now = SystemTime::UNIX_EPOCH;
        let line = gap(3, "standard error was not read", Look::Text { colour: false }, now);
        assert!(line.contains("WARN 3 lines were dropped here: standard error was not read"), "{line}");
        let object: serde_json::Value = serde_json::from_str(&gap(1, "it", Look::Json, now)).unwrap();
        assert_eq!((object["log.dropped"].as_u64(), object["level"].as_str()), (Some(1), Some("WARN")));
        assert!(object["message"].as_str().unwrap().starts_with("1 line was dropped here"));
    }
}
