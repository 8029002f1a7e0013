//! What a restore needs of a destination, fetched into an archive of its own: descriptions and histories first, then the base
//! backup that fits, then the WAL behind it up to the moment that is wanted, several files ahead.
//!
//! Every file is checked before it has its name there. What was fetched stays for the next try where one fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context;
use futures_util::{StreamExt, stream};

use super::super::archive::Archive;
use super::super::bases::{self, Base};
use super::super::live::{self, Birth};
use super::super::records::{PAGE, Record, RecordReader};
use super::super::target::{Target, choose};
use super::super::timeline::{Extent, Lineage, extent};
use super::super::wal::{Lsn, Segment, WalFile};
use super::super::way::{Way, Wish};
use super::super::{histories, start, target};
use super::Away;
use super::audit::Files;
use super::names::{BaseName, Held, Inventory};
use super::parcel::DataDigest;
use crate::backup::copies::Copies;
use crate::backup::signature::{self, SigningKeys};
use crate::backup::store::StoredFile;
use crate::config::Settings;
use crate::exit::{Code, Failure, in_words};
use crate::postgres::data::{DataDirectory, inspect};
use crate::postgres::home::Home;
use crate::room::Guard;
use crate::telemetry::{self, Progress};

/// The directory in the state directory where it is fetched to.
const DIR: &str = "restoring-from-away";
/// How many files of WAL are on their way at once.
const AHEAD: usize = 4;

/// What was found in a destination, and the archive that it is fetched into.
pub struct Brought {
    pub archive: Archive,
    away: Away,
    files: Files,
    bases: Vec<(Base, DataDigest)>,
    inventory: Inventory,
    home: Home,
    guard: Guard,
}

/// What a killed restore has fetched, if there is something: the same restore would go on with it.
pub fn left(home: &Home) -> Option<PathBuf> {
    Some(home.state.join(DIR)).filter(|path| path.exists())
}

impl Away {
    /// The destination `address`, for a restore: whose files these are, its own note says; `trust` takes what nobody here has
    /// signed.
    ///
    /// # Errors
    /// It cannot be reached, or nothing that a restore to a moment could use is there.
    pub async fn at(settings: &Settings, home: &Home, address: &str, trust: bool) -> anyhow::Result<Self> {
        let copies = Copies::open(settings, address)?;
        let keys = SigningKeys::read(&signature::path(home))?;
        let destination = copies.destination.to_string();
        let mut away = Self { destination, copies, keys, system: 0, trust };
        let Some((owner, _)) = away.owner().await? else {
            let text = format!(
                "{} holds no base backups and WAL, which a restore to a moment needs: `tandem backup list --from {0}` shows the \
                 dumps in it",
                away.destination
            );
            return Err(Failure::new(Code::Usage, text).into());
        };
        away.system = owner.system_identifier;
        Ok(away)
    }

    /// Fetch what there is to choose from: descriptions of base backups, histories and notes.
    ///
    /// # Errors
    /// It cannot be listed or fetched, or nobody here has signed it.
    pub async fn survey(self, settings: &Settings, home: &Home) -> anyhow::Result<Brought> {
        self.check_here(home)?;
        let archive = Archive::new(home.state.join(DIR));
        if archive.system_identifier().ok().flatten().is_some_and(|system| system != self.system) {
            // What an earlier try left, of another cluster.
            fs::remove_dir_all(archive.dir()).with_context(|| format!("remove {}", archive.dir().display()))?;
        }
        archive.prepare(self.system, home.server.as_ref().map(|server| (server.uid, server.gid)))?;
        let (files, inventory) = self.files().await?;
        let guard = Guard::new("restore", settings.disk.stop_free, None);
        let mut brought =
            Brought { archive, away: self, files, bases: Vec::new(), inventory, home: home.clone(), guard };
        brought.describe().await?;
        Ok(brought)
    }
}

impl Away {
    /// Refuse to put another cluster in the place of the one that is here.
    fn check_here(&self, home: &Home) -> anyhow::Result<()> {
        if inspect(home)? != DataDirectory::Cluster || start::system_identifier(&home.data)? == self.system {
            return Ok(());
        }
        let (place, data) = (&self.destination, home.data.display());
        let text = format!(
            "the cluster in {data} is another than the one in {place}: move {data} away first, if that one is to take its place"
        );
        Err(Failure::new(Code::Failed, text).into())
    }
}

impl Brought {
    async fn describe(&mut self) -> anyhow::Result<()> {
        let names: Vec<BaseName> = self.inventory.bases.clone();
        for name in &names {
            let (_, there) = &self.files[&Held::Description(name.clone()).to_string()];
            match self.away.fetch_description(name, there).await {
                Ok(described) => self.bases.push(described),
                // Whoever lacks the key lacks it for all of them.
                Err(error) if self.bases.is_empty() => return Err(error),
                Err(error) => tracing::warn!("{}; the restore passes it over", in_words(&error)),
            }
        }
        for (held, there) in self.files.values() {
            match held {
                Held::Wal(name @ WalFile::History(_)) => {
                    self.fetch_to(held, there, &self.archive.path(*name)).await?;
                }
                Held::Birth(_) => {
                    let birth: Birth = serde_json::from_value(self.away.fetch_value(held, there).await?)
                        .with_context(|| format!("{held} is damaged"))?;
                    live::record(&self.archive, &birth);
                }
                Held::Gap(segment) => {
                    let value = self.away.fetch_value(held, there).await?;
                    let why = value.get("text").and_then(|text| text.as_str()).unwrap_or_default();
                    self.archive.mark_gap(*segment, why)?;
                }
                Held::Wal(_) | Held::Description(_) | Held::Data(_) => {}
            }
        }
        for left in bases::bases(&self.archive)? {
            // Of an earlier try, and let go in the destination since.
            if !self.bases.iter().any(|(base, _)| base.name == left.name) {
                bases::remove(&self.archive, &left)?;
            }
        }
        for (base, _) in &self.bases {
            let dir = base.dir(&self.archive);
            self.archive.make_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
            // A base backup counts for one where its data is; this is filled when it is chosen.
            let data = dir.join(bases::DATA);
            if !data.exists() {
                fs::write(&data, "").with_context(|| format!("write {}", data.display()))?;
            }
            self.archive.write_small(&dir.join(bases::DESCRIPTION), &serde_json::to_string_pretty(base)?)?;
        }
        Ok(())
    }

    /// Fetch the base backup and the WAL for the target of `wish`, whose archive is this one.
    ///
    /// # Errors
    /// There is no way there, with the hole in it named; or something does not come, or is not what was sent.
    pub async fn fetch(&self, wish: &Wish<'_>) -> anyhow::Result<()> {
        let all: Vec<Base> = self.bases.iter().map(|(base, _)| base.clone()).collect();
        let timeline = wish.timeline.unwrap_or_else(|| self.live(wish.target, &all));
        let lineage = match histories::lineage(&self.archive, timeline)? {
            Some(lineage) => lineage,
            None => Lineage::alone(timeline),
        };
        let refuse = |text: String| anyhow::Error::from(Failure::new(Code::Failed, text));
        let base = choose(&all, &lineage, wish.target)
            .map_err(|error| refuse(format!("in {}: {error}", self.away.destination)))?;
        self.fetch_for(base, &lineage, wish.target).await
    }

    /// Fetch what `way` needs, where that is another than was thought: the cluster that is here may say so.
    ///
    /// # Errors
    /// As [`Brought::fetch`].
    pub async fn fetch_way(&self, way: &Way, target: Target) -> anyhow::Result<()> {
        self.fetch_for(&way.base, &way.lineage, target).await
    }

    fn live(&self, target: Target, all: &[Base]) -> u32 {
        let begun: Vec<u32> = self.inventory.wal.iter().filter_map(|name| name.begun()).collect();
        let births = live::births(&self.archive, None, &begun);
        let signs = live::signs(&births, all);
        let last = signs.iter().map(|sign| sign.at).max().unwrap_or(UNIX_EPOCH);
        let moment = if let Target::Time(time) = target { time } else { last };
        live::live_at(&signs, moment).timeline
    }

    async fn fetch_for(&self, base: &Base, lineage: &Lineage, target: Target) -> anyhow::Result<()> {
        let size = base.segment_size;
        let there: Vec<Segment> = self.inventory.wal.iter().filter_map(|name| segment(*name)).collect();
        let here = |segment: Segment| self.home.data.join("pg_wal").join(segment.to_string()).exists();
        let Extent { missing, gap } = extent(base.start_segment(), lineage, &there, size);
        let is_hole = gap && !here(missing);
        if is_hole && target == Target::End {
            return Err(self.hole(missing, lineage, &there, size).into());
        }
        let beyond = matches!(target, Target::Lsn(lsn) if lsn > missing.start(size)) && !here(missing);
        if beyond {
            let end = missing.start(size);
            let text = format!("the WAL in {} ends at {end}, before {target}", self.away.destination);
            return Err(if is_hole {
                self.hole(missing, lineage, &there, size)
            } else {
                Failure::new(Code::Failed, text)
            }
            .into());
        }
        let progress = telemetry::progress(format!("Fetching from {}", self.away.destination));
        self.fetch_base(base, &progress).await?;
        let passed = self.fetch_wal(base, lineage, target, &progress).await?;
        if is_hole && !passed {
            return Err(self.hole(missing, lineage, &there, size).into());
        }
        Ok(())
    }

    /// What is missing, and what can be done without it.
    fn hole(&self, first: Segment, lineage: &Lineage, there: &[Segment], size: u64) -> Failure {
        let on_the_way = |segment: &&Segment| lineage.at(**segment, size).contains(&segment.timeline);
        let next = there.iter().filter(on_the_way).filter(|segment| segment.place() > first.place()).min();
        let (end, place) = (first.start(size), &self.away.destination);
        let until = next.map(|next| format!(", and goes on with {next}")).unwrap_or_default();
        let text = format!(
            "the WAL in {place} has a hole: {first} is missing{until}. `--to-lsn {end}` restores what is before it; what is \
             behind it needs a newer base backup"
        );
        Failure::new(Code::Failed, text)
    }

    async fn fetch_base(&self, base: &Base, progress: &Progress) -> anyhow::Result<()> {
        let (name, to) = (BaseName::of(base), base.dir(&self.archive).join(bases::DATA));
        let known = self.bases.iter().find(|(known, _)| known.name == base.name);
        let there = self.files.get(&Held::Data(name).to_string());
        let (Some((_, digest)), Some((_, there))) = (known, there) else {
            let text = format!("{} lacks the data of {}: it is not whole there", self.away.destination, base.name);
            return Err(Failure::new(Code::Failed, text).into());
        };
        if to.metadata().is_ok_and(|meta| meta.len() == digest.size) {
            // It was checked when it got its name.
            return Ok(());
        }
        let show = |done: u64, total: u64| {
            let percent = (done * 100).checked_div(total).unwrap_or(100);
            progress.say(format!("Fetching {} from {}: {percent} %", base.name, self.away.destination));
        };
        let room = self.guard.clone().claim(self.archive.dir(), digest.size);
        room.hold(self.away.fetch_data((there, digest), &to, &show)).await
    }

    /// Fetch the WAL from the start of `base` on, until a transaction behind `target`; whether there was one.
    async fn fetch_wal(
        &self,
        base: &Base,
        lineage: &Lineage,
        target: Target,
        progress: &Progress,
    ) -> anyhow::Result<bool> {
        let size = base.segment_size;
        let places = std::iter::successors(Some(base.start_segment()), |place| Some(place.next(size)));
        // At each place all that recovery may read, the newest timeline first; up to the first where there is nothing.
        let found = places.map_while(|place| {
            let names = lineage.at(place, size).into_iter().flat_map(|timeline| {
                let segment = Segment { timeline, ..place };
                [WalFile::Segment(segment), WalFile::Partial(segment)]
            });
            let files: Vec<_> = names.filter_map(|name| self.files.get(&Held::Wal(name).to_string())).collect();
            (!files.is_empty()).then_some((place, files))
        });
        let fetching = found.map(|(place, files)| async move {
            for (held, there) in files {
                self.fetch_one(held, there).await?;
            }
            anyhow::Ok(place)
        });
        let (mut reader, mut fetching) = (RecordReader::default(), stream::iter(fetching).buffered(AHEAD));
        while let Some(place) = fetching.next().await {
            let place = place?;
            progress.say(format!("Fetching WAL from {}: {place}", self.away.destination));
            let end = place.next(size).start(size);
            if self.passes(&mut reader, lineage, (place, size), target)? && end >= base.stop_lsn {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn fetch_one(&self, held: &Held, there: &StoredFile) -> anyhow::Result<()> {
        let Held::Wal(name) = held else { return Ok(()) };
        let to = self.archive.path(*name);
        if to.exists() {
            return Ok(());
        }
        if let Some(folder) = to.parent() {
            self.archive.make_dir(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        self.guard.clone().claim(self.archive.dir(), there.size).check()?;
        self.fetch_to(held, there, &to).await
    }

    /// For the server too, which is a user of its own.
    async fn fetch_to(&self, held: &Held, there: &StoredFile, to: &Path) -> anyhow::Result<()> {
        self.away.fetch_wal(held, there, to).await?;
        let given = File::options().write(true).open(to).and_then(|file| {
            // Where nothing else says when a timeline began, the time of its history does.
            file.set_modified(there.modified)?;
            self.archive.give_away(&file)
        });
        given.with_context(|| format!("write {}", to.display()))
    }

    /// Whether the segment at this place has a transaction behind `target`, or ends behind it.
    fn passes(
        &self,
        reader: &mut RecordReader,
        lineage: &Lineage,
        (place, size): (Segment, u64),
        target: Target,
    ) -> anyhow::Result<bool> {
        let wanted = match target {
            // Where a transaction ended is found by recovering.
            Target::End | Target::Transaction(_) => return Ok(false),
            Target::Lsn(lsn) | Target::Before(lsn) => return Ok(place.start(size) > lsn),
            Target::Time(time) => time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros()),
        };
        let mut names =
            lineage.at(place, size).into_iter().map(|timeline| WalFile::Segment(Segment { timeline, ..place }));
        let Some(name) = names.find(|name| self.archive.has(*name)) else { return Ok(false) };
        let bytes = self.archive.read(name)?.unwrap_or_default();
        let addresses = (place.start(size).0..).step_by(PAGE);
        for (page, address) in bytes.chunks_exact(PAGE).zip(addresses) {
            let Some(records) = reader.page(page, Lsn(address)) else { break };
            let mut ended = records.into_iter().filter_map(|(_, record)| match record {
                Some(Record::Ended(time)) => u128::try_from(time).ok(),
                _ => None,
            });
            if ended.any(|time| time > wanted) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What the destination cannot know: when its newest WAL came.
    pub fn told(&self) -> String {
        let newest =
            self.files.values().filter(|(held, _)| matches!(held, Held::Wal(_))).map(|(_, file)| file.modified);
        let newest = newest
            .max()
            .map_or_else(|| "no WAL came".into(), |time| format!("the last came at {}", target::timestamp(time)));
        format!(
            "of the WAL in {}, {newest}: what was committed later on the machine that sent it is not in it",
            self.away.destination
        )
    }

    /// Keep in `archive`, this machine's own, what is known of the timelines, and remove what was fetched.
    pub fn conclude(self, archive: &Archive) {
        let timelines: Vec<u32> = (self.archive.names().unwrap_or_default().into_iter())
            .filter_map(WalFile::begun)
            .chain(self.inventory.births.iter().copied())
            .chain(recorded(&self.archive))
            .collect();
        let owner = self.home.server.as_ref().map(|server| (server.uid, server.gid));
        match archive.prepare(self.away.system, owner) {
            Ok(()) => {
                live::births(&self.archive, None, &timelines).iter().for_each(|birth| live::record(archive, birth))
            }
            Err(error) => tracing::warn!("{}", in_words(&error)),
        }
        if let Err(error) = fs::remove_dir_all(self.archive.dir()) {
            tracing::warn!("remove {}, which the restore fetched: {error}", self.archive.dir().display());
        }
    }
}

/// The timelines of which it is written down when they began: the newest has no history in the archive yet.
fn recorded(archive: &Archive) -> Vec<u32> {
    let files = super::super::archive::entries(&archive.dir().join("timelines"));
    let number = |path: PathBuf| u32::from_str_radix(path.file_stem()?.to_str()?, 16).ok();
    files.into_iter().filter_map(number).collect()
}

fn segment(name: WalFile) -> Option<Segment> {
    match name {
        WalFile::Segment(segment) | WalFile::Partial(segment) => Some(segment),
        WalFile::Backup(..) | WalFile::History(_) => None,
    }
}
