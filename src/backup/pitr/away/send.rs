//! Send base backups and WAL to every destination, in order and several at once, for ever.
//!
//! A process of its own does it, so that an archive or a destination that hangs holds up nothing else. Each destination has
//! its own lanes: one that is out of reach keeps nothing from the others, and a large base backup no WAL.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use chrono::Utc;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tokio::sync::Mutex;

use super::super::archive::Archive;
use super::super::bases::Base;
use super::super::expiry::Keep;
use super::super::{archive as archive_of, start};
use super::ledger::{Condition, Ledger};
use super::names::Held;
use super::owner::Tenure;
use super::spool::{Missing, Spool, missing_bases, weigh};
use super::{Away, UNSEEN};
use crate::backup::copies::Copies;
use crate::backup::store::SUFFIX;
use crate::config::{Ack, Settings};
use crate::exit::{Code, Failure, code_of, in_words};
use crate::postgres::home::Home;

/// How many files of WAL are on their way at once.
const AHEAD: usize = 4;
/// How many are sent before it is asked again whose the destination is.
const BATCH: usize = 32;
/// How often it is looked for something to send; and where an acknowledgement waits for it.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_REMOTE: Duration = Duration::from_millis(50);
/// How often it is written down how a destination is.
const WRITE: Duration = Duration::from_secs(2);
/// A destination that is out of reach is tried again after so long, and then twice as long each time, for ever.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// How often it is looked what a destination still has, and what of it may go.
const LIST: Duration = Duration::from_secs(6 * 3600);
/// The process begins anew so often; sooner where a destination could not be opened, which is tried again then.
const LIFE_CLOSED: Duration = Duration::from_secs(300);
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// What sends to one destination.
struct Sender<'a> {
    away: Away,
    archive: &'a Archive,
    keep: Keep,
    /// How often it is looked for WAL.
    look: Duration,
    ledger: RefCell<Ledger>,
    spool: RefCell<Spool>,
    place: Mutex<Option<(Tenure, Instant)>>,
    /// Why each lane does not get on, and whether that does not pass by itself.
    errors: RefCell<BTreeMap<Lane, (String, bool)>>,
    last_sent: Cell<Option<SystemTime>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Wal,
    Bases,
}

/// Send for as long as a process lives.
///
/// # Errors
/// Another process sends already, or the archive or the key cannot be read.
pub async fn follow(settings: &Settings, home: &Home) -> anyhow::Result<()> {
    let Some(_lock) = super::ledger::try_lock(&home.state)? else {
        let text = "base backups and WAL are being sent already, by another process";
        return Err(Failure::new(Code::Temporary, text).into());
    };
    let archive = archive_of(settings, home);
    let (senders, closed) = open(settings, home, &archive)?;
    let life = if closed.is_empty() { LIFE } else { LIFE_CLOSED };
    let sending = join_all(senders.iter().map(|sender| sender.follow()));
    let _ = tokio::time::timeout(life, async { tokio::join!(sending, tell_closed(closed)) }).await;
    Ok(())
}

/// Send what the destinations lack, or wait until the process has that sends already; how each is afterwards.
///
/// # Errors
/// The archive or the key cannot be read. What went wrong with a destination is in its
/// condition.
pub async fn once(settings: &Settings, home: &Home) -> anyhow::Result<Vec<Condition>> {
    let Some(_lock) = super::ledger::try_lock(&home.state)? else { return Ok(watch(settings, home).await) };
    let archive = archive_of(settings, home);
    let (senders, closed) = open(settings, home, &archive)?;
    join_all(senders.iter().map(|sender| sender.once())).await;
    let conditions = senders.iter().map(|sender| sender.condition()).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(conditions.into_iter().chain(closed.into_iter().map(|(_, condition)| condition)).collect())
}

/// Wait until the process that sends has written down that each destination has everything, or why not.
async fn watch(settings: &Settings, home: &Home) -> Vec<Condition> {
    let began = SystemTime::now();
    loop {
        let conditions = super::conditions(settings, home);
        let settled = |condition: &Condition| {
            let is_new = condition.looked.is_some_and(|looked| SystemTime::from(looked) > began);
            let lacks = condition.behind_segments + condition.behind_bases > 0;
            is_new && (condition.error.is_some() || !lacks)
        };
        if conditions.iter().all(settled) {
            return conditions;
        }
        let is_stale = |condition: &Condition| condition.trouble(Duration::MAX, began, SystemTime::now());
        if let Some(why) = conditions.iter().find_map(is_stale) {
            let why = Some(why);
            return conditions.into_iter().map(|it| Condition { error: it.error.or(why.clone()), ..it }).collect();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Go on writing down why these destinations cannot be opened.
async fn tell_closed(closed: Vec<(PathBuf, Condition)>) {
    loop {
        for (dir, condition) in &closed {
            if let Err(error) = (Condition { looked: Some(Utc::now()), ..condition.clone() }).write(dir) {
                tracing::debug!("{}", in_words(&error));
            }
        }
        tokio::time::sleep(WRITE).await;
    }
}

/// What sends to each destination, and the destinations that cannot be opened, with where that is written down.
type Opened<'a> = (Vec<Sender<'a>>, Vec<(PathBuf, Condition)>);

fn open<'a>(settings: &Settings, home: &Home, archive: &'a Archive) -> anyhow::Result<Opened<'a>> {
    let system = start::system_identifier(&home.data)?;
    let pitr = &settings.backup.pitr;
    let keep = Keep { count: pitr.base_backups, days: pitr.keep_days };
    let (mut senders, mut closed) = (Vec::new(), Vec::new());
    for (destination, copies) in Copies::configured(settings) {
        let ledger = Ledger::open(&home.state, &destination)?;
        match copies {
            Ok(copies) => senders.push(Sender {
                away: Away::of(copies, home, system)?,
                archive,
                keep,
                look: if pitr.ack == Ack::Remote { LOOK_REMOTE } else { LOOK },
                ledger: RefCell::new(ledger),
                spool: RefCell::default(),
                place: Mutex::new(None),
                errors: RefCell::default(),
                last_sent: Cell::new(None),
            }),
            Err(error) => {
                tracing::error!("{}", in_words(&error));
                let (error, looked) = (Some(in_words(&error)), Some(Utc::now()));
                let condition = Condition { error, looked, lasting: true, ..Condition::unknown(&destination) };
                condition.write(&ledger.dir)?;
                closed.push((ledger.dir, condition));
            }
        }
    }
    Ok((senders, closed))
}

impl Sender<'_> {
    async fn follow(&self) {
        tokio::join!(self.lane(Lane::Wal), self.lane(Lane::Bases), self.tell());
    }

    async fn once(&self) {
        for lane in [Lane::Wal, Lane::Bases] {
            let mut outcome = Ok(true);
            while matches!(outcome, Ok(true)) {
                outcome = self.round(lane).await;
            }
            self.note(lane, outcome.err().as_ref());
        }
        self.write();
    }

    /// One lane, for ever.
    async fn lane(&self, lane: Lane) {
        let mut pause = AGAIN_FIRST;
        loop {
            let outcome = self.round(lane).await;
            self.note(lane, outcome.as_ref().err());
            match outcome {
                Ok(true) => pause = AGAIN_FIRST,
                Ok(false) => {
                    pause = AGAIN_FIRST;
                    tokio::time::sleep(if lane == Lane::Wal { self.look } else { LOOK }).await;
                }
                Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN_MAX);
                }
            }
        }
    }

    fn missing(&self) -> anyhow::Result<Missing> {
        self.spool.borrow_mut().missing(self.archive, &self.ledger.borrow())
    }

    /// Send some of what there is to send; whether there was any.
    async fn round(&self, lane: Lane) -> anyhow::Result<bool> {
        self.list_in_time().await?;
        match lane {
            Lane::Wal => {
                let missing = self.missing()?;
                let any = !missing.wal.is_empty() || !missing.notes.is_empty();
                if any { self.wal(missing).await.map(|()| true) } else { Ok(false) }
            }
            // The oldest first: where the oldest is, all WAL behind it is of use.
            Lane::Bases => match self.missing_bases()?.first() {
                Some(base) => self.base(base).await.map(|()| true),
                None => Ok(false),
            },
        }
    }

    fn missing_bases(&self) -> anyhow::Result<Vec<Base>> {
        missing_bases(self.archive, &self.ledger.borrow())
    }

    async fn wal(&self, missing: Missing) -> anyhow::Result<()> {
        self.check_place().await?;
        for (held, path) in &missing.notes {
            let sent = self.away.send_note(held, path).await?;
            self.ledger.borrow_mut().add(&sent)?;
        }
        let files = missing.wal.into_iter().take(BATCH).map(|name| (Held::Wal(name), self.archive.path(name)));
        let files: Vec<_> = files.collect();
        let sizes = files.iter().filter_map(|(_, path)| Some(path.metadata().ok()?.len()));
        self.away.copies.check_room(sizes.sum())?;
        let sending = files.into_iter().map(|(held, path)| async move { self.away.send_wal(&held, path).await });
        // In their order: what is written down as sent has no hole before it.
        let mut sending = stream::iter(sending).buffered(AHEAD);
        while let Some(sent) = sending.next().await {
            if let Some(sent) = sent? {
                self.ledger.borrow_mut().add(&sent)?;
                self.last_sent.set(Some(SystemTime::now()));
            }
        }
        Ok(())
    }

    async fn base(&self, base: &Base) -> anyhow::Result<()> {
        self.check_place().await?;
        self.away.copies.check_room(base.archived_size)?;
        let (data, description) = self.away.send_base(base, &base.dir(self.archive), UNSEEN).await?;
        self.check_place().await?;
        self.ledger.borrow_mut().add(&data)?;
        self.ledger.borrow_mut().add(&description)?;
        self.last_sent.set(Some(SystemTime::now()));
        tracing::info!("{} is in {}", base.name, self.away.destination);
        self.let_go().await;
        Ok(())
    }

    /// What may not go, as under Object Lock, is no reason to send nothing.
    async fn let_go(&self) {
        if let Err(error) = self.expire().await {
            tracing::warn!("retention in {}: {}", self.away.destination, in_words(&error));
        }
    }

    async fn expire(&self) -> anyhow::Result<()> {
        let expired = self.away.expire(self.archive, self.keep).await?;
        for base in &expired.bases {
            tracing::info!("removed {} from {}", base.name, self.away.destination);
        }
        self.ledger.borrow_mut().retain(|name, _| !expired.names.contains(name))
    }

    /// Take the place in the destination, and look what it has; again from time to time.
    async fn list_in_time(&self) -> anyhow::Result<()> {
        let mut place = self.place.lock().await;
        let is_fresh = place.as_ref().is_some_and(|(_, listed)| listed.elapsed() < LIST);
        if is_fresh {
            return Ok(());
        }
        self.check_mounted().await?;
        // Taken anew: a machine that was refused may have been allowed in again.
        let dir = self.ledger.borrow().dir.clone();
        let tenure = self.away.take(&dir).await?;
        self.away.copies.mark().await?;
        self.compare().await?;
        *place = Some((tenure, Instant::now()));
        drop(place);
        self.let_go().await;
        Ok(())
    }

    /// Whether the place is still this machine's. Where it is not, it is tried to be taken anew the next time.
    async fn check_place(&self) -> anyhow::Result<()> {
        let mut place = self.place.lock().await;
        let Some((tenure, _)) = place.as_ref() else {
            return Err(Failure::new(Code::Temporary, "the destination was taken meanwhile").into());
        };
        let checked = self.away.check_tenure(tenure).await;
        if checked.is_err() {
            *place = None;
        }
        checked
    }

    /// What is not there any more, or not in its length, counts as not sent.
    async fn compare(&self) -> anyhow::Result<()> {
        let listing = self.away.listing().await?;
        let sizes: BTreeMap<String, u64> = listing
            .iter()
            .map(|(_, file)| (file.name.strip_suffix(SUFFIX).unwrap_or(&file.name).to_owned(), file.size))
            .collect();
        let data_is_there = |name: &str| match Held::read(name) {
            Some(Held::Description(base)) => sizes.contains_key(&Held::Data(base).to_string()),
            _ => true,
        };
        self.ledger
            .borrow_mut()
            .retain(|name, sent| sizes.get(name).is_some_and(|size| *size == sent.size) && data_is_there(name))
    }

    /// Refuse a directory that has nothing of what was sent there: its disk is not mounted.
    async fn check_mounted(&self) -> anyhow::Result<()> {
        let is_new = self.ledger.borrow().is_empty();
        if is_new || self.away.copies.is_marked() || self.away.owner().await?.is_some() {
            return Ok(());
        }
        let place = &self.away.destination;
        let text = format!(
            "{place} is there, and nothing of the base backups and WAL that were sent to it: mount the disk that belongs there. \
             If it is a new one, make the empty file .tandem-copies in it"
        );
        Err(Failure::new(Code::Config, text).into())
    }

    /// Say once what is wrong in a lane, and when it is over.
    fn note(&self, lane: Lane, error: Option<&anyhow::Error>) {
        let now = error.map(|error| (in_words(error), code_of(error) == Code::Config));
        let mut errors = self.errors.borrow_mut();
        let before = match now.clone() {
            Some(now) => errors.insert(lane, now),
            None => errors.remove(&lane),
        };
        let place = &self.away.destination;
        match (before, now) {
            (before, Some((text, _))) if before.as_ref().is_none_or(|(before, _)| *before != text) => {
                tracing::error!("{place} does not get the {}: {text}; it is tried again", lane.what());
            }
            (Some(_), None) => tracing::info!("{place} gets the {} again", lane.what()),
            _ => {}
        }
    }

    /// Write down how it is, for ever.
    async fn tell(&self) {
        loop {
            self.write();
            tokio::time::sleep(WRITE).await;
        }
    }

    fn write(&self) {
        let written = self.condition().and_then(|condition| condition.write(&self.ledger.borrow().dir));
        if let Err(error) = written {
            tracing::debug!("{}", in_words(&error));
        }
    }

    fn condition(&self) -> anyhow::Result<Condition> {
        let (missing, bases) = (self.missing()?, self.missing_bases()?);
        let (behind_bytes, oldest) = weigh(self.archive, &missing, &bases);
        let errors = self.errors.borrow();
        let first = errors.values().next();
        Ok(Condition {
            destination: self.away.destination.clone(),
            behind_segments: missing.wal.len() as u64,
            behind_bytes,
            behind_bases: bases.len() as u64,
            oldest: oldest.map(Into::into),
            last_sent: self.last_sent.get().map(Into::into),
            error: first.map(|(text, _)| text.clone()),
            lasting: errors.values().any(|(_, lasting)| *lasting),
            looked: Some(Utc::now()),
        })
    }
}

impl Lane {
    fn what(self) -> &'static str {
        match self {
            Self::Wal => "WAL",
            Self::Bases => "base backups",
        }
    }
}
