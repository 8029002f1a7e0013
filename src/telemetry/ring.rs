//! The last lines of every service and of Tandem itself, kept in memory for `tandem logs`, bounded in bytes.
//!
//! Lines are kept in blocks, which are allocated when they are needed. At the bound, the oldest block is reused: a short
//! log takes little memory, a long one no more than the bound.

use std::collections::VecDeque;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::record::Record;
use super::{format, json, terminal};

/// How many bytes are kept before [`Ring::keep`] is called.
pub const RING_SIZE: usize = 1024 * 1024;
/// Text in one block, in bytes; a longer line is cut.
const TEXT_MAX: usize = 16 * 1024;
/// Lines in one block.
const LINES_MAX: usize = 256;
/// The size of a full block in bytes.
const BLOCK_SIZE: usize = TEXT_MAX + LINES_MAX * size_of::<Head>();
/// The end of a line that was cut.
const CUT: &str = "…";

static RING: LazyLock<Ring> = LazyLock::new(|| Ring::new(RING_SIZE));

/// The ring of this process.
pub fn ring() -> &'static Ring {
    &RING
}

/// A bounded memory of lines.
pub struct Ring {
    lines: Mutex<Lines>,
    /// The sequence number that the next line will have.
    next: watch::Sender<u64>,
}

/// One line as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counts up by one with every line.
    pub sequence: u64,
    pub time: SystemTime,
    pub service: String,
    pub level: Level,
    pub text: String,
}

/// The position of a reader.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The service whose lines it reads; `None`: all.
    service: Option<String>,
    /// The first line that it has not read.
    next: u64,
    /// How many of the lines that concern it came before `next`.
    seen: u64,
    /// Where it ends; `None`: never.
    until: Option<u64>,
}

/// The lines of one read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// How many lines were overwritten before this reader read them.
    pub skipped: u64,
    pub lines: Vec<Line>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.skipped == 0 && self.lines.is_empty()
    }
}

impl Ring {
    /// A ring that keeps `size` bytes of lines.
    pub(crate) fn new(size: usize) -> Self {
        let mut lines = Lines::default();
        lines.keep(size);
        Self { lines: Mutex::new(lines), next: watch::Sender::new(0) }
    }

    /// From now on, keep `size` bytes (in blocks of 22 KB, of which there is one at least); 0 keeps nothing.
    pub fn keep(&self, size: usize) {
        self.lock().keep(size);
    }

    /// The names under which there are lines, Tandem's own included.
    pub fn services(&self) -> Vec<String> {
        self.lock().names.iter().filter(|name| name.kept > 0).map(|name| name.text.clone()).collect()
    }

    /// A reader of the last `last` lines that concern `service` (all that are kept for `None`); with `follow` it goes on
    /// with those that are still to come.
    pub fn reader(&self, service: Option<String>, last: Option<usize>, follow: bool) -> Cursor {
        let lines = self.lock();
        let until = (!follow).then_some(lines.next);
        let mut cursor = Cursor { service, next: lines.oldest(), seen: 0, until };
        cursor.seen = lines.forgotten(&cursor);
        let there = lines.concerning(&cursor).count();
        let passed_over = last.map_or(0, |last| there.saturating_sub(last));
        cursor.seen += passed_over as u64;
        cursor.next = lines.concerning(&cursor).nth(passed_over).map_or(lines.next, |found| found.sequence);
        cursor
    }

    /// The next lines for `cursor`: as many as have about `bytes` of text.
    pub fn read(&self, cursor: &mut Cursor, bytes: usize) -> Batch {
        let lines = self.lock();
        let forgotten = lines.forgotten(cursor);
        let mut batch = Batch { skipped: forgotten.saturating_sub(cursor.seen), lines: Vec::new() };
        cursor.seen = cursor.seen.max(forgotten);
        let mut size = 0;
        for found in lines.concerning(cursor) {
            if size > bytes {
                // The rest stays for the next reading.
                cursor.advance(&batch);
                return batch;
            }
            size += found.text.len();
            batch.lines.push(lines.line(found));
        }
        cursor.advance(&batch);
        cursor.next = lines.next.min(cursor.until.unwrap_or(u64::MAX));
        batch
    }

    /// Changes with every new line.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    /// Keep a line of Tandem's own that does not go through tracing.
    pub(super) fn tell(&self, time: SystemTime, level: Level, text: &str) {
        self.push(time, format::OWN, None, level, text);
    }

    /// Keep a line of `service`; Tandem's line `about` another service concerns both.
    pub(crate) fn push(&self, time: SystemTime, service: &str, about: Option<&str>, level: Level, text: &str) {
        let next = {
            let mut lines = self.lock();
            lines.push(time, service, about.unwrap_or(service), level, text);
            lines.next
        };
        self.next.send_replace(next);
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cursor {
    fn advance(&mut self, batch: &Batch) {
        self.seen += batch.lines.len() as u64;
        if let Some(last) = batch.lines.last() {
            self.next = last.sequence + 1;
        }
    }
}

#[derive(Default)]
struct Lines {
    blocks: VecDeque<Block>,
    blocks_max: usize,
    /// Every name that ever had a line: there are as many as services.
    names: Vec<ServiceName>,
    /// The sequence number of the next line.
    next: u64,
}

struct Block {
    /// The sequence number of its first line.
    first: u64,
    heads: Vec<Head>,
    /// The lines' text, one after another.
    text: String,
}

/// All of a line but its text.
#[derive(Clone, Copy)]
struct Head {
    /// Milliseconds since 1970.
    time: u64,
    /// Where its text ends in the block's.
    end: u32,
    /// Places in [`Lines::names`].
    service: u16,
    about: u16,
    level: Level,
}

struct ServiceName {
    text: String,
    /// Lines that concern it: since the start, and still kept.
    pushed: u64,
    kept: u64,
}

/// A line in its block.
struct Found<'a> {
    sequence: u64,
    head: &'a Head,
    text: &'a str,
}

impl Lines {
    fn keep(&mut self, size: usize) {
        self.blocks_max = if size == 0 { 0 } else { (size / BLOCK_SIZE).max(1) };
        while self.blocks.len() > self.blocks_max {
            self.forget();
        }
    }

    fn push(&mut self, time: SystemTime, service: &str, about: &str, level: Level, text: &str) {
        let (service, about) = (self.name(service), self.name(about));
        let (text, cut) = if text.len() > TEXT_MAX {
            (&text[..text.floor_char_boundary(TEXT_MAX - CUT.len())], CUT)
        } else {
            (text, "")
        };
        let sequence = self.next;
        self.next += 1;
        self.count(service, about, |name| name.pushed += 1);
        let Some(block) = self.room(text.len() + cut.len(), sequence) else { return };
        block.text.push_str(text);
        block.text.push_str(cut);
        let time = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let time = u64::try_from(time).unwrap_or(u64::MAX);
        let end = u32::try_from(block.text.len()).unwrap_or(u32::MAX);
        block.heads.push(Head { time, end, service, about, level });
        self.count(service, about, |name| name.kept += 1);
    }

    /// The block that the next line goes into: the newest, a new one, or the oldest used again. `None`: nothing is kept.
    fn room(&mut self, length: usize, first: u64) -> Option<&mut Block> {
        let full = |block: &Block| block.text.len() + length > TEXT_MAX || block.heads.len() == LINES_MAX;
        if self.blocks.back().is_none_or(full) {
            let used = if self.blocks.len() >= self.blocks_max { self.forget() } else { None };
            if self.blocks.len() < self.blocks_max {
                let mut block =
                    used.unwrap_or_else(|| Block { first, heads: Vec::new(), text: String::with_capacity(TEXT_MAX) });
                block.first = first;
                self.blocks.push_back(block);
            }
        }
        self.blocks.back_mut()
    }

    /// Forget the oldest block, and hand it back empty.
    fn forget(&mut self) -> Option<Block> {
        let mut block = self.blocks.pop_front()?;
        for head in &block.heads {
            self.count(head.service, head.about, |name| name.kept -= 1);
        }
        block.heads.clear();
        block.text.clear();
        Some(block)
    }

    fn count(&mut self, service: u16, about: u16, change: fn(&mut ServiceName)) {
        change(&mut self.names[usize::from(service)]);
        if about != service {
            change(&mut self.names[usize::from(about)]);
        }
    }

    /// The place of `name`. Should there ever be more than fit, the rest share the last.
    fn name(&mut self, name: &str) -> u16 {
        let place = self.names.iter().position(|known| known.text == name).unwrap_or_else(|| {
            if self.names.len() <= usize::from(u16::MAX) {
                self.names.push(ServiceName { text: name.to_owned(), pushed: 0, kept: 0 });
            }
            self.names.len() - 1
        });
        u16::try_from(place).unwrap_or(u16::MAX)
    }

    /// The sequence number of the oldest line that is kept.
    fn oldest(&self) -> u64 {
        self.blocks.front().map_or(self.next, |block| block.first)
    }

    /// How many lines that concern `cursor` came since the start and are not kept any more.
    fn forgotten(&self, cursor: &Cursor) -> u64 {
        match &cursor.service {
            None => self.oldest(),
            Some(service) => {
                let name = self.names.iter().find(|name| name.text == *service);
                name.map_or(0, |name| name.pushed - name.kept)
            }
        }
    }

    /// The kept lines that concern `cursor` and that it has not read.
    fn concerning<'a>(&'a self, cursor: &Cursor) -> impl Iterator<Item = Found<'a>> + use<'a> {
        let wanted = cursor.service.as_ref().map(|service| self.names.iter().position(|name| name.text == *service));
        let (from, until) = (cursor.next, cursor.until.unwrap_or(u64::MAX));
        let begin = self.blocks.partition_point(|block| block.first <= from).saturating_sub(1);
        let lines = self.blocks.range(begin..).flat_map(Block::lines);
        lines.filter(move |found| {
            let concerns = wanted.is_none_or(|place| {
                place.is_some_and(|place| {
                    usize::from(found.head.service) == place || usize::from(found.head.about) == place
                })
            });
            concerns && (from..until).contains(&found.sequence)
        })
    }

    fn line(&self, found: Found<'_>) -> Line {
        Line {
            sequence: found.sequence,
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(found.head.time),
            service: self.names[usize::from(found.head.service)].text.clone(),
            level: found.head.level,
            text: found.text.to_owned(),
        }
    }
}

impl Block {
    fn lines(&self) -> impl Iterator<Item = Found<'_>> {
        let begins = std::iter::once(0).chain(self.heads.iter().map(|head| head.end as usize));
        let numbered = (self.first..).zip(&self.heads).zip(begins);
        numbered.map(|((sequence, head), begin)| Found { sequence, head, text: &self.text[begin..head.end as usize] })
    }
}

/// The layer that puts every event into a ring, and into `log.file` with the same time.
pub(super) struct Keep(pub &'static Ring);

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let (record, level, now) = (Record::of(event), *event.metadata().level(), SystemTime::now());
        let said = format::said(&record, level);
        self.0.push(now, &said.service, said.about.as_deref(), level, &said.text);
        terminal::write_to_file(|| json::line(&record, level, now));
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
