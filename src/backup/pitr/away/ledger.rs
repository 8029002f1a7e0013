//! What each destination was sent, and how far behind it is, in files of the state directory.
//!
//! ```text
//! <state>/away/<destination's digest>/sent         a line for each file: its name there, and size and digest of what was sent
//! <state>/away/<destination's digest>/state.json   how it is
//! <state>/away/<destination's digest>/verified.json        what came of reading it again
//! <state>/away/sending                             the lock of the process that sends
//! ```
//!
//! The server's user may read them: with `backup.pitr.ack = "remote"`, the archive_command waits for a line.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::super::archive::list;
use super::super::bases::Base;
use super::super::wal::WalFile;
use super::names::{BaseName, Held};
use crate::backup::store::{SUFFIX, Sent};
use crate::durable::{self, Lock, WriteOptions};
use crate::install::sha256;
use crate::postgres::home::make_dir;

/// The list of what was sent.
pub const SENT: &str = "sent";
const STATE: &str = "state.json";
const VERIFIED: &str = "verified.json";
const SENDING: &str = "sending";
/// A state that is older is of a process that is not there any more, or stands still.
const STALE: Duration = Duration::from_secs(60);

/// Where what is known of destinations lies, in the state directory `state`.
pub fn dir(state: &Path) -> PathBuf {
    state.join("away")
}

/// Where what is known of `destination` lies.
pub fn dir_of(state: &Path, destination: &str) -> PathBuf {
    dir(state).join(&sha256(destination.as_bytes())[..16])
}

/// What was sent, as it was sent: sealed, if it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentFile {
    pub size: u64,
    pub sha256: String,
}

/// What one destination was sent: by name, without the ending of sealed files.
#[derive(Debug, Default)]
struct Known {
    sent: BTreeMap<String, SentFile>,
    /// The oldest base backup among it, and where the oldest WAL begins that one of them needs. What is older was let go
    /// there, or never sent: it is not lacking.
    oldest: Option<String>,
    floor: Option<(u32, u32)>,
}

impl Known {
    fn read(path: &Path) -> Self {
        Self::of(read(path))
    }

    fn of(sent: BTreeMap<String, SentFile>) -> Self {
        let described = |name: &String| match Held::read(name) {
            Some(Held::Description(base)) => Some(base),
            _ => None,
        };
        let bases: Vec<BaseName> = sent.keys().filter_map(described).collect();
        let floor = bases.iter().map(|base| base.start.place()).min();
        Self { oldest: bases.into_iter().map(|base| base.name).min(), floor, sent }
    }

    fn has(&self, held: &Held) -> bool {
        self.sent.contains_key(&held.to_string())
    }

    fn lacks_wal(&self, name: WalFile) -> bool {
        let is_older = |floor: (u32, u32)| name.segment().is_some_and(|segment| segment.place() < floor);
        !self.floor.is_some_and(is_older) && !self.has(&Held::Wal(name))
    }

    fn lacks_base(&self, base: &Base) -> bool {
        let is_older = self.oldest.as_ref().is_some_and(|oldest| base.name < *oldest);
        !is_older && !self.has(&Held::Description(BaseName::of(base)))
    }
}

/// What one destination was sent, and the file that says so.
#[derive(Debug)]
pub struct Ledger {
    pub dir: PathBuf,
    known: Known,
    file: File,
}

impl Ledger {
    /// That of `destination`.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn open(state: &Path, destination: &str) -> anyhow::Result<Self> {
        let dir = dir_of(state, destination);
        make_dir(&super::ledger::dir(state), 0o755, None)?;
        make_dir(&dir, 0o755, None)?;
        let path = dir.join(SENT);
        let open = || {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            // The server's user reads it, whatever the umask.
            file.set_permissions(Permissions::from_mode(0o644))?;
            Ok::<_, io::Error>(file)
        };
        let file = open().with_context(|| format!("write {}", path.display()))?;
        Ok(Self { known: Known::read(&path), dir, file })
    }

    pub fn has(&self, held: &Held) -> bool {
        self.known.has(held)
    }

    pub fn lacks_wal(&self, name: WalFile) -> bool {
        self.known.lacks_wal(name)
    }

    pub fn lacks_base(&self, base: &Base) -> bool {
        self.known.lacks_base(base)
    }

    pub fn is_empty(&self) -> bool {
        self.known.sent.is_empty()
    }

    /// Write down that it has what was `sent`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, sent: &Sent) -> anyhow::Result<()> {
        let name = sent.name.strip_suffix(SUFFIX).unwrap_or(&sent.name).to_owned();
        let entry = SentFile { size: sent.size, sha256: sent.sha256.clone() };
        // In one call: a line that was cut is none.
        self.file.write_all(line(&name, &entry).as_bytes()).context("write down what was sent")?;
        let mut sent = std::mem::take(&mut self.known.sent);
        sent.insert(name.clone(), entry);
        match Held::read(&name) {
            Some(Held::Description(_)) => self.known = Known::of(sent),
            _ => self.known.sent = sent,
        }
        Ok(())
    }

    /// Forget all but what `is_there`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn retain(&mut self, mut is_there: impl FnMut(&str, &SentFile) -> bool) -> anyhow::Result<()> {
        let before = self.known.sent.len();
        let mut sent = std::mem::take(&mut self.known.sent);
        sent.retain(|name, sent| is_there(name, sent));
        let changed = sent.len() != before;
        self.known = Known::of(sent);
        if !changed {
            return Ok(());
        }
        let text: String = self.known.sent.iter().map(|(name, sent)| line(name, sent)).collect();
        let path = self.dir.join(SENT);
        durable::replace(&path, text.as_bytes(), &WriteOptions::default().mode(0o644))
            .and_then(|()| OpenOptions::new().append(true).open(&path))
            .map(|file| self.file = file)
            .with_context(|| format!("write {}", path.display()))
    }
}

fn line(name: &str, sent: &SentFile) -> String {
    format!("{name} {} {}\n", sent.size, sent.sha256)
}

fn read(path: &Path) -> BTreeMap<String, SentFile> {
    parse(&fs::read_to_string(path).unwrap_or_default())
}

/// What whole lines say; one that was cut is none.
fn parse(text: &str) -> BTreeMap<String, SentFile> {
    let entry = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, size, sha256] = words[..] else { return None };
        let whole = sha256.len() == 64;
        whole.then_some((name.to_owned(), SentFile { size: size.parse().ok()?, sha256: sha256.to_owned() }))
    };
    text.lines().filter_map(entry).collect()
}

/// What all destinations were sent: what one of them lacks stays on this machine.
#[derive(Debug, Default)]
pub struct SentEverywhere(Vec<Known>);

impl SentEverywhere {
    /// What is known of all `destinations`.
    pub fn of(state: &Path, destinations: &[String]) -> Self {
        Self(destinations.iter().map(|place| Known::read(&dir_of(state, place).join(SENT))).collect())
    }

    /// Whether one lacks `name`.
    pub fn lacks_wal(&self, name: WalFile) -> bool {
        self.0.iter().any(|known| known.lacks_wal(name))
    }

    /// Whether one lacks `base`.
    pub fn lacks_base(&self, base: &Base) -> bool {
        self.0.iter().any(|known| known.lacks_base(base))
    }
}

/// How a destination is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    pub destination: String,
    /// What it lacks: files of WAL, and bytes of all.
    pub behind_segments: u64,
    pub behind_bytes: u64,
    pub behind_bases: u64,
    /// Since when the oldest that it lacks is there to be sent.
    pub oldest: Option<DateTime<Utc>>,
    /// When something was sent last.
    pub last_sent: Option<DateTime<Utc>>,
    /// Why nothing is, at this moment.
    pub error: Option<String>,
    /// Whether that does not pass by itself.
    pub lasting: bool,
    /// When this was written.
    pub looked: Option<DateTime<Utc>>,
}

impl Condition {
    /// That of a destination that nothing is known of.
    pub fn unknown(destination: &str) -> Self {
        Self {
            destination: destination.to_owned(),
            behind_segments: 0,
            behind_bytes: 0,
            behind_bases: 0,
            oldest: None,
            last_sent: None,
            error: None,
            lasting: false,
            looked: None,
        }
    }

    /// Write it down.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self).context("describe a destination")?;
        let options = WriteOptions::default().mode(0o644).unflushed();
        durable::replace(&dir.join(STATE), &text, &options).with_context(|| format!("write into {}", dir.display()))
    }

    /// What was last written of `destination`.
    pub fn read(state: &Path, destination: &str) -> Self {
        let read = fs::read(dir_of(state, destination).join(STATE)).ok();
        let known = read.and_then(|text| serde_json::from_slice::<Self>(&text).ok());
        known.unwrap_or_else(|| Self::unknown(destination))
    }

    /// What is wrong with it, in words, where it may be behind for `behind_max` and this process looks since `since`. Pure.
    pub fn trouble(&self, behind_max: Duration, since: SystemTime, now: SystemTime) -> Option<String> {
        let age = |time: SystemTime| now.duration_since(time).ok();
        let place = &self.destination;
        let first = |error: &String| error.lines().next().unwrap_or_default().to_owned();
        if let Some(error) = self.error.as_ref().filter(|_| self.lasting) {
            return Some(format!("{place} gets no base backups and WAL: {}", first(error)));
        }
        let looked = self.looked.map_or(since, |looked| since.max(looked.into()));
        if age(looked).is_some_and(|age| age > STALE) {
            return Some(format!("nothing is sent to {place}: the process that does it does not run, or stands still"));
        }
        let behind = self.oldest.and_then(|oldest| age(oldest.into())).filter(|age| *age > behind_max)?;
        let why = self.error.as_ref().map(|error| format!(": {}", first(error))).unwrap_or_default();
        let minutes = behind.as_secs().div_ceil(60);
        Some(format!("{place} is behind for {minutes} min, by {}{why}", self.lag()))
    }

    /// What it lacks, in words.
    pub fn lag(&self) -> String {
        let many = |count: u64, what: &str| match count {
            0 => None,
            1 => Some(format!("1 {what}")),
            count => Some(format!("{count} {what}s")),
        };
        let of = [many(self.behind_bases, "base backup"), many(self.behind_segments, "segment")];
        let of: Vec<String> = of.into_iter().flatten().collect();
        match of.is_empty() {
            true => "nothing".to_owned(),
            false => format!("{} ({} MB)", of.join(" and "), self.behind_bytes.div_ceil(1 << 20)),
        }
    }
}

/// What came of reading a destination again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub at: DateTime<Utc>,
    pub problems: Vec<String>,
}

impl Verified {
    /// What was last written down of `destination`.
    pub fn read(state: &Path, destination: &str) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir_of(state, destination).join(VERIFIED)).ok()?).ok()
    }

    /// Write it down of `destination`, if it is one that this machine sends to.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, state: &Path, destination: &str) -> anyhow::Result<()> {
        let dir = dir_of(state, destination);
        let text = serde_json::to_vec_pretty(self).context("describe a verification")?;
        let write = || durable::replace(&dir.join(VERIFIED), &text, &WriteOptions::default().mode(0o644));
        if dir.is_dir() { write().with_context(|| format!("write into {}", dir.display())) } else { Ok(()) }
    }

    /// The first of what is wrong, in words.
    pub fn trouble(&self, destination: &str) -> Option<String> {
        let more = self.problems.len().saturating_sub(1);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let first = self.problems.first()?;
        Some(format!("{destination} was read again and is not as it was sent: {first}{more}"))
    }
}

/// Whether `destination` has a base backup and lacks nothing, by what is written down.
pub fn is_complete(state: &Path, destination: &str) -> bool {
    let condition = Condition::read(state, destination);
    let lacks = condition.behind_segments + condition.behind_bases > 0 || condition.error.is_some();
    !lacks && Known::read(&dir_of(state, destination).join(SENT)).oldest.is_some()
}

/// Be the one process that sends, for as long as the lock lives; `None`: another is.
///
/// # Errors
/// The lock file cannot be opened or locked.
pub fn try_lock(state: &Path) -> anyhow::Result<Option<Lock>> {
    make_dir(&dir(state), 0o755, None)?;
    let path = dir(state).join(SENDING);
    match Lock::take(&path, "`tandem backup send`") {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.is_held() => Ok(None),
        Err(error) => Err(error.into_io()).with_context(|| format!("lock {}", path.display())),
    }
}

/// Whether some destination was sent `name`; what is known lies in `dir`. Blocks no longer than reading takes.
///
/// # Errors
/// It cannot be read.
pub fn is_sent(dir: &Path, name: WalFile) -> anyhow::Result<bool> {
    let wanted = Held::Wal(name).to_string();
    for place in list(dir)? {
        match fs::read_to_string(place.join(SENT)) {
            Ok(text) if parse(&text).contains_key(&wanted) => return Ok(true),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", place.display())),
        }
    }
    Ok(false)
}

/// What was last written in `dir` of each destination.
pub fn conditions(dir: &Path) -> Vec<Condition> {
    let states = list(dir).unwrap_or_default().into_iter().filter_map(|place| fs::read(place.join(STATE)).ok());
    states.filter_map(|text| serde_json::from_slice::<Condition>(&text).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::wal::Segment;
    use super::*;

    fn sent(name: &str) -> Sent {
        Sent { name: name.to_owned(), size: 7, sha256: "ab".repeat(32) }
    }

    #[test]
    fn what_was_sent_is_remembered_and_a_line_that_was_cut_is_none() {
        let temp = tempfile::tempdir().unwrap();
        let wal = |number| WalFile::Segment(Segment { timeline: 1, log: 0, number });
        let name = |number| Held::Wal(wal(number)).to_string();
        let mut ledger = Ledger::open(temp.path(), "s3://one/a").unwrap();
        ledger.add(&sent(&name(1))).unwrap();
        ledger.add(&sent(&format!("{}{SUFFIX}", name(2)))).unwrap();
        let path = ledger.dir.join(SENT);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str(&line(&name(3), &SentFile { size: 7, sha256: "ab".repeat(32) })[..60]);
        fs::write(&path, text).unwrap();
        let mut ledger = Ledger::open(temp.path(), "s3://one/a").unwrap();
        assert!([1, 2].iter().all(|number| ledger.has(&Held::Wal(wal(*number)))) && !ledger.has(&Held::Wal(wal(3))));
        assert!(is_sent(&dir(temp.path()), wal(2)).unwrap() && !is_sent(&dir(temp.path()), wal(3)).unwrap());
        let places = ["s3://one/a".to_owned(), "s3://other".to_owned()];
        assert!(!SentEverywhere::of(temp.path(), &places[..1]).lacks_wal(wal(1)));
        assert!(SentEverywhere::of(temp.path(), &places).lacks_wal(wal(1)), "the other has nothing");
        ledger.retain(|known, _| known == name(2)).unwrap();
        ledger.add(&sent(&name(4))).unwrap();
        let ledger = Ledger::open(temp.path(), "s3://one/a").unwrap();
        assert_eq!([1, 2, 4].map(|number| ledger.has(&Held::Wal(wal(number)))), [false, true, true]);
        // What is older than the oldest base backup there was let go there, and is not lacking.
        let mut ledger = ledger;
        let base = super::super::super::bases::tests::base(1, 0x400_0028, 0x400_0100, 1_767_366_245);
        assert!(ledger.lacks_wal(wal(3)) && ledger.lacks_base(&base));
        ledger.add(&sent(&Held::Description(BaseName::of(&base)).to_string())).unwrap();
        assert!(!ledger.lacks_wal(wal(3)) && ledger.lacks_wal(wal(5)) && !ledger.lacks_base(&base));
        let older = super::super::super::bases::tests::base(1, 0x200_0028, 0x200_0100, 1_767_366_200);
        assert!(!ledger.lacks_base(&older));
    }

    #[test]
    fn a_destination_is_in_trouble_when_it_is_behind_too_long_or_nobody_sends() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let after = |seconds| start + Duration::from_secs(seconds);
        let looked = |seconds| Some(DateTime::<Utc>::from(after(seconds)));
        let fine = Condition { looked: looked(100), ..Condition::unknown("s3://b") };
        let trouble = |condition: &Condition, now| condition.trouble(Duration::from_secs(600), start, after(now));
        assert_eq!(trouble(&fine, 110), None);
        assert!(trouble(&fine, 200).unwrap().contains("does not run"));
        let behind = Condition { oldest: looked(0), behind_segments: 2, behind_bytes: 5 << 20, ..fine.clone() };
        assert_eq!(trouble(&behind, 110), None);
        let late = Condition { looked: looked(700), error: Some("nobody listens\nthere".into()), ..behind };
        let told = trouble(&late, 701).unwrap();
        assert!(
            told.contains("behind for 12 min, by 2 segments (5 MB): nobody listens") && !told.contains("there"),
            "{told}"
        );
        let refused = Condition { lasting: true, error: Some("another machine".into()), ..fine };
        assert!(trouble(&refused, 101).unwrap().contains("another machine"));
    }
}
