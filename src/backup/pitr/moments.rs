//! What can be reached: each chain of WAL with its base backups, its marks and where it ends.

use std::collections::BTreeSet;
use std::time::SystemTime;

use serde::Serialize;

use super::archive::Archive;
use super::bases::{self, Base, Listing, rfc3339};
use super::marks::{self, Mark};
use super::timeline::{Extent, Lineage, extent};
use super::wal::{Lsn, Segment, WalFile};

/// WAL without a hole, from its first base backup on. Every moment on it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    pub timeline: u32,
    /// The oldest first. The first is of an earlier timeline where this one has none.
    pub bases: Vec<Start>,
    pub marks: Vec<Mark>,
    /// Up to here its WAL is archived.
    pub until: Lsn,
    /// When the newest of it was.
    #[serde(with = "rfc3339")]
    pub archived: SystemTime,
    /// Why what comes after that is not reached from these base backups, where there is more.
    pub gap: Option<String>,
}

/// A base backup, from whose end on moments can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Start {
    pub name: String,
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    pub lsn: Lsn,
}

/// All that can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moments {
    /// By timeline, the oldest first.
    pub chains: Vec<Chain>,
    /// Marks on none of them: their base backup or WAL is gone, or not archived yet.
    pub unreachable: Vec<Mark>,
}

/// What is in the archive.
struct There {
    segments: Vec<Segment>,
    bases: Vec<Base>,
    marks: Vec<Mark>,
    gaps: Vec<(Segment, String)>,
}

/// What the archive leads to.
///
/// # Errors
/// It cannot be read.
pub fn reachable(archive: &Archive) -> anyhow::Result<Moments> {
    let names = archive.names()?;
    let Listing { mut bases, unreadable } = bases::listing(archive)?;
    for base in unreadable {
        tracing::warn!("{base}");
    }
    bases.sort_by_key(|base| (base.stop_lsn, base.ended));
    let is_whole = |name: &WalFile| match *name {
        WalFile::Segment(segment) | WalFile::Partial(segment) => Some(segment),
        WalFile::Backup(..) | WalFile::History(_) => None,
    };
    let segments: Vec<Segment> = names.iter().filter_map(is_whole).collect();
    let timelines = segments.iter().map(|segment| segment.timeline).chain(bases.iter().map(|base| base.stop_timeline));
    let timelines: BTreeSet<u32> = timelines.collect();
    let there = There { segments, bases, marks: marks::all(archive), gaps: archive.gaps() };
    let mut moments = Moments::default();
    for timeline in timelines {
        let lineage = match archive.read(WalFile::History(timeline))? {
            Some(history) => Lineage::read(timeline, &String::from_utf8_lossy(&history))?,
            None => Lineage::alone(timeline),
        };
        moments.chains.extend(chains(&there, timeline, &lineage).into_iter().map(|(chain, last)| {
            let files =
                last.map(|last| [WalFile::Segment(last), WalFile::Partial(last)].map(|name| archive.path(name)));
            let written = files.iter().flatten().filter_map(|path| path.metadata().ok()?.modified().ok()).max();
            Chain { archived: written.unwrap_or(chain.archived).max(chain.archived), ..chain }
        }));
    }
    let reached: BTreeSet<&str> =
        moments.chains.iter().flat_map(|chain| &chain.marks).map(|mark| mark.name.as_str()).collect();
    moments.unreachable = there.marks.iter().filter(|mark| !reached.contains(mark.name.as_str())).cloned().collect();
    Ok(moments)
}

/// The chains of `timeline`, each with its last segment. Pure.
fn chains(there: &There, timeline: u32, lineage: &Lineage) -> Vec<(Chain, Option<Segment>)> {
    let on_the_way: Vec<&Base> =
        there.bases.iter().filter(|base| lineage.passes(base.stop_timeline, base.stop_lsn)).collect();
    let mut own: Vec<&Base> = on_the_way.iter().copied().filter(|base| base.stop_timeline == timeline).collect();
    if own.is_empty() {
        own.extend(on_the_way.last());
    }
    let mut chains: Vec<(Chain, Option<Segment>)> = Vec::new();
    for base in own {
        let size = base.segment_size;
        let Extent { missing, gap } = extent(base.start_segment(), lineage, &there.segments, size);
        let start = Start { name: base.name.clone(), at: base.ended, lsn: base.stop_lsn };
        let until = missing.start(size).max(base.stop_lsn);
        if let Some((chain, _)) = chains.last_mut().filter(|(chain, _)| chain.until == until) {
            chain.archived = chain.archived.max(base.ended);
            chain.bases.push(start);
            continue;
        }
        let is_on_it = |mark: &&Mark| mark.timeline == timeline && mark.lsn >= base.stop_lsn && mark.lsn <= until;
        let marks = there.marks.iter().filter(is_on_it).cloned().collect();
        let given_up = there.gaps.iter().rfind(|(segment, _)| segment.place() == missing.place());
        let why = given_up.map_or_else(|| "a segment is missing".to_owned(), |(_, why)| why.clone());
        let before = there.segments.iter().copied().filter(|segment| {
            segment.place() < missing.place() && lineage.at(*segment, size).contains(&segment.timeline)
        });
        let last = before.max_by_key(|segment| (segment.place(), segment.timeline));
        let chain = Chain { timeline, bases: vec![start], marks, until, archived: base.ended, gap: gap.then_some(why) };
        chains.push((chain, last));
    }
    chains
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::bases::tests::base;
    use super::*;

    fn mark(name: &str, timeline: u32, lsn: u64) -> Mark {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(lsn);
        Mark { name: name.to_owned(), at, timeline, lsn: Lsn(lsn) }
    }

    #[test]
    fn a_hole_ends_a_chain_and_the_next_base_backup_begins_another() {
        let at = |number, timeline| Segment { log: 0, number, timeline };
        let there = There {
            segments: vec![at(2, 1), at(3, 1), at(6, 1), at(7, 1)],
            bases: vec![base(1, 0x200_0028, 0x200_0100, 100), base(1, 0x600_0028, 0x600_0100, 200)],
            marks: vec![
                mark("early", 1, 0x100_0000),
                mark("a", 1, 0x280_0000),
                mark("in the hole", 1, 0x500_0000),
                mark("b", 1, 0x700_0000),
                mark("of another", 2, 0x700_0000),
            ],
            gaps: vec![(at(4, 1), "the disk was away".to_owned())],
        };
        let chains = chains(&there, 1, &Lineage::alone(1));
        let told: Vec<_> = (chains.iter())
            .map(|(chain, last)| {
                let marks: Vec<&str> = chain.marks.iter().map(|mark| mark.name.as_str()).collect();
                (chain.bases.len(), marks, chain.until, chain.gap.as_deref(), last.map(|last| last.number))
            })
            .collect();
        assert_eq!(
            told,
            [
                (1, vec!["a"], Lsn(0x400_0000), Some("the disk was away"), Some(3)),
                (1, vec!["b"], Lsn(0x800_0000), None, Some(7))
            ]
        );
    }

    #[test]
    fn a_timeline_without_a_base_backup_of_its_own_begins_from_one_before_it() {
        let at = |number, timeline| Segment { log: 0, number, timeline };
        let there = There {
            segments: vec![at(2, 1), at(3, 1), at(3, 2), at(4, 2)],
            bases: vec![base(1, 0x200_0028, 0x200_0100, 100)],
            marks: vec![mark("left", 1, 0x380_0000), mark("new", 2, 0x400_0000)],
            gaps: Vec::new(),
        };
        let lineage = Lineage::read(2, "1\t0/3400000\tx\n").unwrap();
        let names = |chains: Vec<(Chain, Option<Segment>)>| -> Vec<String> {
            chains.into_iter().flat_map(|(chain, _)| chain.marks).map(|mark| mark.name).collect()
        };
        assert_eq!(names(chains(&there, 2, &lineage)), ["new"]);
        assert_eq!(names(chains(&there, 1, &Lineage::alone(1))), ["left"]);
    }
}
