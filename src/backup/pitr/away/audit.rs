//! Read all base backups and all WAL of a destination again: each file is fetched, its digest and who made it are checked, and
//! the chain of WAL is looked through for holes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures_util::{StreamExt, stream};
use serde::Serialize;

use super::super::timeline::{Lineage, extent};
use super::super::wal::{Segment, WalFile};
use super::names::{BaseName, Held, Inventory};
use super::{Away, UNSEEN};
use crate::backup::store::{SUFFIX, StoredFile};
use crate::config::Room;
use crate::exit::in_words;
use crate::postgres::home::Home;
use crate::room::Guard;
use crate::telemetry;

/// How many files of WAL are read at once.
const AT_ONCE: usize = 4;
/// After so long, what was on its way has come.
const SETTLE: Duration = Duration::from_secs(2);

/// What is in a destination, by name without the ending of sealed files.
pub(super) type Files = BTreeMap<String, (Held, StoredFile)>;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Audit {
    pub destination: String,
    /// Base backups that are as they were sent.
    pub bases: Vec<String>,
    /// How many files of WAL are.
    pub wal: usize,
    /// Bytes of all that was read.
    pub read_bytes: u64,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

impl Away {
    /// Read all of it again.
    ///
    /// # Errors
    /// It cannot be listed. What is wrong with a file is in what is returned.
    pub async fn audit(&self, home: &Home, stop_free: Room) -> anyhow::Result<Audit> {
        let (files, inventory) = self.files().await?;
        let dir = tempfile::Builder::new().prefix(".reading-").tempdir_in(&home.state);
        let dir = dir.with_context(|| format!("make a directory in {}", home.state.display()))?;
        let mut audit = Audit { destination: self.destination.clone(), ..Audit::default() };
        let progress = telemetry::progress(format!("Reading {} again", self.destination));
        for base in &inventory.bases {
            progress.say(format!("Reading {} in {} again", base.name, self.destination));
            let room = Guard::new("verification", stop_free, None);
            match self.read_base(&files, base, dir.path(), room).await {
                Ok(bytes) => {
                    audit.bases.push(base.name.clone());
                    audit.read_bytes += bytes;
                }
                Err(error) => audit.problems.push(format!("{}: {}", base.name, in_words(&error))),
            }
        }
        let wal = files.values().filter(|(held, _)| matches!(held, Held::Wal(_)));
        let place = dir.path();
        let reading = wal.map(|(held, there)| async move {
            let to = place.join(held.to_string().replace('/', "-"));
            let read = self.fetch_wal(held, there, &to).await;
            let _ = std::fs::remove_file(&to);
            (there.size, read)
        });
        let mut reading = stream::iter(reading).buffered(AT_ONCE);
        while let Some((size, read)) = reading.next().await {
            match read {
                Ok(()) => (audit.wal, audit.read_bytes) = (audit.wal + 1, audit.read_bytes + size),
                Err(error) => audit.problems.push(in_words(&error)),
            }
        }
        if inventory.bases.is_empty() {
            audit.problems.push("there is no whole base backup: nothing can be restored from it".to_owned());
        }
        let holes = self.holes(&files, &inventory, dir.path()).await;
        if !holes.is_empty() {
            // Several are sent at once: what is on its way may have left a hole in the listing.
            tokio::time::sleep(SETTLE).await;
            let (files, inventory) = self.files().await?;
            audit.problems.extend(self.holes(&files, &inventory, dir.path()).await);
        }
        Ok(audit)
    }

    /// What is there, by name without the ending of sealed files.
    pub(super) async fn files(&self) -> anyhow::Result<(Files, Inventory)> {
        let listing = self.listing().await?;
        let plain = |name: &str| name.strip_suffix(SUFFIX).unwrap_or(name).to_owned();
        let files: Files = listing.into_iter().map(|(held, file)| (plain(&file.name), (held, file))).collect();
        let inventory = Inventory::of(&files.values().map(|(held, _)| held.clone()).collect::<Vec<_>>());
        Ok((files, inventory))
    }

    async fn read_base(&self, files: &Files, name: &BaseName, dir: &Path, room: Guard) -> anyhow::Result<u64> {
        let file = |held: Held| files.get(&held.to_string()).map(|(_, file)| file);
        let description = file(Held::Description(name.clone())).context("its description is missing")?;
        let (_, digest) = self.fetch_description(name, description).await?;
        let data = file(Held::Data(name.clone())).context("its data is missing")?;
        let to = dir.join("data");
        room.claim(dir, data.size).hold(self.fetch_data((data, &digest), &to, UNSEEN)).await?;
        let _ = std::fs::remove_file(&to);
        Ok(data.size)
    }

    /// The holes in the WAL behind the oldest base backup, on the way to each timeline that nothing came out of.
    async fn holes(&self, files: &Files, inventory: &Inventory, dir: &Path) -> Vec<String> {
        let Some(oldest) = inventory.bases.iter().min_by_key(|base| base.start.place()) else { return Vec::new() };
        let newest = inventory.wal.iter().filter_map(|name| name.begun()).max().unwrap_or(1);
        let lineage = match self.lineage(files, newest, dir).await {
            Ok(lineage) => lineage,
            Err(error) => return vec![in_words(&error)],
        };
        let there: Vec<Segment> = inventory
            .wal
            .iter()
            .filter_map(|name| match *name {
                WalFile::Segment(segment) | WalFile::Partial(segment) => Some(segment),
                WalFile::Backup(..) | WalFile::History(_) => None,
            })
            .collect();
        let size = super::super::wal::SEGMENT_SIZE;
        let (mut holes, mut from) = (Vec::new(), oldest.start);
        loop {
            let found = extent(from, &lineage, &there, size);
            if !found.gap {
                return holes;
            }
            let on_the_way = |segment: &&Segment| lineage.at(**segment, size).contains(&segment.timeline);
            let behind = there.iter().filter(on_the_way).filter(|segment| segment.place() > found.missing.place());
            let Some(next) = behind.min() else { return holes };
            let rest = "what is behind it is reached from a newer base backup alone";
            holes.push(format!("the WAL has a hole from {} to {next}: {rest}", found.missing));
            from = *next;
        }
    }

    async fn lineage(&self, files: &Files, timeline: u32, dir: &Path) -> anyhow::Result<Lineage> {
        let held = Held::Wal(WalFile::History(timeline));
        let Some((held, there)) = files.get(&held.to_string()) else { return Ok(Lineage::alone(timeline)) };
        let to = dir.join("history");
        self.fetch_wal(held, there, &to).await?;
        let text = zstd::decode_all(std::fs::File::open(&to)?).context("read a timeline's history")?;
        Ok(Lineage::read(timeline, &String::from_utf8_lossy(&text))?)
    }
}
