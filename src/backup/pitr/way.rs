//! Which way a recovery goes: the timeline, the base backup that it begins from, and what it would leave out.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::SystemTime;

use anyhow::bail;

use super::archive::Archive;
use super::bases::{self, Base, Listing};
use super::live::{self, Live, Sign, live_at};
use super::notes::Notes;
use super::target::{Target, choose, timestamp};
use super::timeline::{Extent, Lineage, extent};
use super::wal::{Segment, WalFile};
use super::{layout, tablespaces};
use crate::config::Settings;
use crate::exit::{Code, Failure};
use crate::postgres::data::{DataDirectory, inspect};
use crate::postgres::home::Home;

/// Which cluster is to be restored to what. The caller holds the state directory's lock, and no server runs.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub home: &'a Home,
    pub settings: &'a Settings,
    pub archive: &'a Archive,
    pub target: Target,
    /// The timeline to follow; `None`: the one that was live at the moment that is wanted.
    pub timeline: Option<u32>,
    /// Whether committed rows may be left out.
    pub accept: bool,
}

/// How a wish can be fulfilled.
#[derive(Clone, Debug)]
pub struct Way {
    /// What recovery begins from.
    pub base: Base,
    /// The timeline that it follows.
    pub timeline: u32,
    pub(super) lineage: Lineage,
    /// The timeline of the cluster that is here.
    pub(super) current: Option<u32>,
    /// Timelines that are known of, but whose histories were lost. The recovery must not give their numbers again.
    pub(super) lost: Vec<u32>,
}

/// All that is known of the cluster's past.
struct Past {
    /// What is archived.
    names: Vec<WalFile>,
    /// What is not, and is in the old cluster.
    rest: Vec<WalFile>,
    bases: Vec<Base>,
    signs: Vec<Sign>,
    /// The timeline of the cluster that is here.
    current: Option<u32>,
}

impl Past {
    fn read(wish: &Wish<'_>, pg_wal: &Path, here: bool) -> anyhow::Result<Self> {
        let (names, rest) = (wish.archive.names()?, layout::unarchived(wish.archive, pg_wal, None)?);
        let Listing { bases, unreadable } = bases::listing(wish.archive)?;
        for base in unreadable {
            tracing::warn!("{base}; the restore passes it over");
        }
        let known: Vec<u32> = names.iter().chain(&rest).filter_map(|name| name.begun()).collect();
        let mut signs = live::signs(&live::births(wish.archive, Some(pg_wal), &known), &bases);
        let current = if here { Some(super::start::timeline(&wish.home.data)?) } else { None };
        signs.extend(current.map(|timeline| Sign { at: SystemTime::now(), timeline, born: false }));
        Ok(Self { names, rest, bases, signs, current })
    }

    /// The timeline that was live at the moment of `target`.
    fn live(&self, target: Target) -> Live {
        match (target, self.current) {
            (Target::Time(time), _) => live_at(&self.signs, time),
            (_, Some(timeline)) => Live { timeline, instead: None },
            (_, None) => {
                let last = self.signs.iter().map(|sign| sign.at).max();
                live_at(&self.signs, last.unwrap_or(SystemTime::UNIX_EPOCH))
            }
        }
    }

    /// The histories that there are.
    fn histories(&self) -> BTreeSet<u32> {
        self.names.iter().chain(&self.rest).filter_map(|name| name.begun()).collect()
    }

    /// The timelines that were lived on and whose history there is not.
    fn lost(&self) -> Vec<u32> {
        let segments = self.names.iter().chain(&self.rest).filter_map(|name| Some(name.segment()?.timeline));
        let bases = self.bases.iter().flat_map(|base| [base.timeline, base.stop_timeline]);
        let mut lived: BTreeSet<u32> =
            segments.chain(bases).chain(self.signs.iter().map(|sign| sign.timeline)).collect();
        lived.remove(&1);
        lived.difference(&self.histories()).copied().collect()
    }

    /// What a recovery along `lineage` leaves out though it was committed by then; in words.
    fn left_out(&self, wish: &Wish<'_>, lineage: &Lineage, live: Live) -> Vec<String> {
        // It is known on which timeline a mark was set, and what was there by then.
        if let Target::Before(_) = wish.target {
            return Vec::new();
        }
        let timeline = lineage.newest();
        let mut told = Vec::new();
        let may_be = live.timeline == timeline || live.instead == Some(timeline);
        if let (Target::Time(_), false) = (wish.target, may_be) {
            told.push(format!(
                "at {} timeline {} was live: what was committed there after timeline {timeline} left it would be missing",
                wish.target, live.timeline
            ));
        }
        if let (Some(instead), None) = (live.instead, wish.timeline) {
            told.push(format!(
                "it is not known whether timeline {timeline} or timeline {instead} was live at {}: an old data directory was put \
                 back. `--timeline {instead}` follows the other",
                wish.target
            ));
        }
        let began = self.signs.iter().filter(|sign| sign.born && sign.timeline == timeline).map(|sign| sign.at).min();
        let by_then = self.bases.iter().filter(|base| wish.target.is_behind(base));
        let newest = by_then.max_by_key(|base| base.ended);
        // One from before the timeline began was left on purpose, by the restore that began it.
        let newest = newest.filter(|base| began.is_none_or(|began| base.ended > began));
        if let Some(base) = newest.filter(|base| !lineage.passes(base.stop_timeline, base.stop_lsn)) {
            told.push(format!(
                "the newest base backup, {} of {}, is on timeline {}, which timeline {timeline} does not come from: what is in \
                 it would be missing",
                base.name,
                timestamp(base.ended),
                base.stop_timeline
            ));
        }
        told
    }
}

/// Find the way to what is wished. Archives what the old cluster had no time to; changes nothing else.
///
/// # Errors
/// No base backup leads there, the WAL on the way is known to have a gap or makes a tablespace, or rows that were
/// committed by then would be left out.
pub fn find(wish: &Wish<'_>) -> anyhow::Result<Way> {
    let pg_wal = wish.home.data.join("pg_wal");
    let here = inspect(wish.home)? == DataDirectory::Cluster;
    if here {
        let (ours, theirs) = (super::start::system_identifier(&wish.home.data)?, wish.archive.system_identifier()?);
        if theirs.is_some_and(|theirs| theirs != ours) {
            bail!("{} is the archive of another cluster than the one here", wish.archive.dir().display());
        }
        archive_rest(wish.archive, &pg_wal);
    }
    let past = Past::read(wish, &pg_wal, here)?;
    let live = past.live(wish.target);
    let timeline = wish.timeline.unwrap_or(live.timeline);
    let lineage = lineage(wish, &pg_wal, &past, timeline)?;
    let left_out = past.left_out(wish, &lineage, live);
    if !left_out.is_empty() && !wish.accept {
        let text = format!("{}. Nothing was changed; `--accept` restores without that", left_out.join("; "));
        return Err(Failure::new(Code::Failed, text).into());
    }
    for told in left_out {
        tracing::warn!("{told}; accepted");
    }
    let refuse = |text: String| anyhow::Error::from(Failure::new(Code::Failed, text));
    let base = choose(&past.bases, &lineage, wish.target).map_err(|error| refuse(error.to_string()))?;
    check_reach(wish, base, &lineage, &past)?;
    tablespaces::check(wish.archive, &pg_wal, (base, &lineage, wish.target))?;
    Ok(Way { base: base.clone(), timeline, current: past.current, lost: past.lost(), lineage })
}

/// Archive what the server had asked for when it ended. What fails here is carried over by itself.
fn archive_rest(archive: &Archive, pg_wal: &Path) {
    let notes = Notes::new(pg_wal);
    if notes.given_up().is_some() {
        return;
    }
    for name in notes.ready() {
        if let Err(error) = archive.push(&pg_wal.join(&name), 1) {
            tracing::warn!("archive {name}, which the server left: {error:#}");
            return;
        }
    }
}

/// The lineage of `timeline`.
fn lineage(wish: &Wish<'_>, pg_wal: &Path, past: &Past, timeline: u32) -> anyhow::Result<Lineage> {
    let name = WalFile::History(timeline);
    let history = match wish.archive.read(name)? {
        Some(history) => Some(history),
        None => fs::read(pg_wal.join(name.to_string())).ok(),
    };
    match history {
        Some(history) => Ok(Lineage::read(timeline, &String::from_utf8_lossy(&history))?),
        None if timeline == 1 => Ok(Lineage::alone(1)),
        // From a base backup on it, it leads on without.
        None if past.bases.iter().any(|base| (base.timeline, base.stop_timeline) == (timeline, timeline)) => {
            tracing::warn!(
                "the archive lacks the history of timeline {timeline} ({name}): only base backups on it lead there"
            );
            Ok(Lineage::alone(timeline))
        }
        None => Err(Failure::new(Code::Failed, format!("the archive knows no timeline {timeline}")).into()),
    }
}

/// Why the `chain` from a base backup to its missing segment was given up, if one of the `gaps` that are noted says so. Notes of
/// earlier chains stay, and say nothing of this one. Pure.
fn given_up(gaps: Vec<(Segment, String)>, chain: RangeInclusive<Segment>) -> Option<String> {
    let places = chain.start().place()..=chain.end().place();
    gaps.into_iter().rfind(|(segment, _)| places.contains(&segment.place())).map(|(_, why)| why)
}

/// Refuse what is known not to be reached. How far the WAL goes in time only recovery itself finds out.
fn check_reach(wish: &Wish<'_>, base: &Base, lineage: &Lineage, past: &Past) -> anyhow::Result<()> {
    let there: Vec<Segment> = (past.names.iter().chain(&past.rest))
        .filter_map(|name| match *name {
            WalFile::Segment(segment) | WalFile::Partial(segment) => Some(segment),
            WalFile::Backup(..) | WalFile::History(_) => None,
        })
        .collect();
    let size = base.segment_size;
    let Extent { missing, gap } = extent(base.start_segment(), lineage, &there, size);
    let end = missing.start(size);
    let why = given_up(wish.archive.gaps(), base.start_segment()..=missing.next(size));
    let why = why.map(|why| format!(" (given up: {why})")).unwrap_or_default();
    let refused = match wish.target {
        Target::Lsn(lsn) | Target::Before(lsn) if lsn > end => {
            format!("the WAL after {} ends at {end}, before {lsn}{why}", base.name)
        }
        Target::End if gap => format!(
            "the WAL after {} has a gap at {end}{why}: `--to-lsn {end}` restores what is before it, and all that is behind \
             it needs a newer base backup",
            base.name
        ),
        Target::Lsn(_) | Target::Before(_) | Target::Transaction(_) | Target::End | Target::Time(_) => return Ok(()),
    };
    Err(Failure::new(Code::Failed, refused).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reason_of_its_own_chain_is_told() {
        let at = |log, number| Segment { log, number, timeline: 1 };
        let gap = |log, number, why: &str| (at(log, number), why.to_owned());
        let earlier = gap(0, 5, "the former disk was full");
        let own = gap(1, 3, "the archive was away");
        let later = gap(2, 1, "of a chain that began afterwards");
        let chain = || at(0, 200)..=at(1, 4);
        assert_eq!(given_up(vec![earlier.clone(), own.clone(), later.clone()], chain()), Some(own.1));
        assert_eq!(given_up(vec![earlier, later], chain()), None);
        // At both its ends, whatever timeline it was on.
        for number in [200, 255] {
            let on_another = (Segment { timeline: 7, ..at(0, number) }, "why".to_owned());
            assert_eq!(given_up(vec![on_another], chain()).as_deref(), Some("why"));
        }
        assert_eq!(given_up(vec![gap(1, 4, "at the end")], chain()).as_deref(), Some("at the end"));
        assert_eq!(given_up(vec![gap(1, 5, "behind it"), gap(0, 199, "before it")], chain()), None);
    }
}
