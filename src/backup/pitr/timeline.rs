//! Timelines: how one came out of another, and which segments lie on the way. Pure.
//!
//! A recovery that ends before the newest WAL begins a new timeline. Its history says which it left, and where
//! (PostgreSQL's src/backend/access/transam/timeline.c).

use super::wal::{Lsn, Segment};

/// What stands in for a history that was lost: PostgreSQL reads a comment, and gives the number to no other timeline.
pub const LOST: &str = "# lost\n";

/// A part of the way: this timeline, up to this position; `None`: to its end, wherever that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub timeline: u32,
    pub until: Option<Lsn>,
}

/// The way from the first timeline to the newest on it, oldest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage(Vec<Stretch>);

/// A history that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the history of timeline {0} cannot be read: {1:?}")]
pub struct Unreadable(u32, String);

impl Lineage {
    /// That of `timeline`, whose history this is; the first timeline has none.
    ///
    /// # Errors
    /// A line of it is none.
    pub fn read(timeline: u32, history: &str) -> Result<Self, Unreadable> {
        let lines = history.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut stretches = Vec::new();
        for line in lines {
            let mut words = line.split_whitespace();
            let parent = words.next().and_then(|word| word.parse().ok());
            let until = words.next().and_then(|word| word.parse().ok());
            let (Some(parent), Some(until)) = (parent, until) else {
                return Err(Unreadable(timeline, line.to_owned()));
            };
            stretches.push(Stretch { timeline: parent, until: Some(until) });
        }
        stretches.push(Stretch { timeline, until: None });
        Ok(Self(stretches))
    }

    /// That of a timeline whose history is not known: nothing else is on the way.
    pub fn alone(timeline: u32) -> Self {
        Self(vec![Stretch { timeline, until: None }])
    }

    /// The timeline that it leads to.
    pub fn newest(&self) -> u32 {
        self.0.last().map_or(1, |stretch| stretch.timeline)
    }

    /// Whether the way passes `lsn` on `timeline`.
    pub fn passes(&self, timeline: u32, lsn: Lsn) -> bool {
        let stretch = self.0.iter().find(|stretch| stretch.timeline == timeline);
        stretch.is_some_and(|stretch| stretch.until.is_none_or(|until| lsn <= until))
    }

    /// The timelines whose segment at `place` recovery may read, newest first: where one was left in the middle of a
    /// segment, the next begins with a copy of it.
    pub fn at(&self, place: Segment, size: u64) -> Vec<u32> {
        let start = place.start(size);
        let mut begins = Lsn(0);
        let mut found = Vec::new();
        for stretch in &self.0 {
            let first = Segment::of(stretch.timeline, begins, size).start(size);
            if start >= first && stretch.until.is_none_or(|until| start < until) {
                found.push(stretch.timeline);
            }
            begins = stretch.until.unwrap_or(begins);
        }
        found.reverse();
        found
    }
}

/// How far the WAL goes without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first segment that is missing.
    pub missing: Segment,
    /// Whether there is more behind it on the way.
    pub gap: bool,
}

/// How far the segments that are `there` go along `lineage`, from `start` on.
pub fn extent(start: Segment, lineage: &Lineage, there: &[Segment], size: u64) -> Extent {
    let there: std::collections::HashSet<Segment> = there.iter().copied().collect();
    let has = |place: Segment| {
        lineage.at(place, size).into_iter().any(|timeline| there.contains(&Segment { timeline, ..place }))
    };
    let mut next = start;
    while has(next) {
        next = next.next(size);
    }
    let timeline = lineage.at(next, size).first().copied().unwrap_or(next.timeline);
    let on_the_way = |segment: &&Segment| lineage.at(**segment, size).contains(&segment.timeline);
    let gap = there.iter().filter(on_the_way).any(|segment| segment.place() > next.place());
    Extent { missing: Segment { timeline, ..next }, gap }
}

#[cfg(test)]
mod tests {
    use super::super::wal::SEGMENT_SIZE;
    use super::*;

    const HISTORY: &str = "1\t0/5000028\tbefore 2026-01-02 15:04:05+00\n\n2\t0/9000000\tno recovery target specified\n";

    fn segment(timeline: u32, number: u32) -> Segment {
        Segment { timeline, log: 0, number }
    }

    fn lineage() -> Lineage {
        Lineage::read(3, HISTORY).unwrap()
    }

    #[test]
    fn a_history_says_which_positions_lie_on_the_way() {
        assert_eq!(lineage().newest(), 3);
        assert!(lineage().passes(1, Lsn(0x500_0028)) && !lineage().passes(1, Lsn(0x500_0029)));
        assert!(lineage().passes(2, Lsn(0x900_0000)) && lineage().passes(3, Lsn(u64::MAX)));
        assert!(!lineage().passes(4, Lsn(0)));
        assert!(Lineage::read(1, "").unwrap().passes(1, Lsn(1 << 40)));
        for wrong in ["1", "one 0/1", "1 0-1"] {
            assert!(Lineage::read(2, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_segment_in_which_a_timeline_was_left_is_on_both() {
        assert_eq!(lineage().at(segment(1, 4), SEGMENT_SIZE), [1]);
        assert_eq!(lineage().at(segment(1, 5), SEGMENT_SIZE), [2, 1]);
        assert_eq!(lineage().at(segment(1, 6), SEGMENT_SIZE), [2]);
        assert_eq!(lineage().at(segment(1, 9), SEGMENT_SIZE), [3], "left at its very beginning, nothing is in it");
    }

    #[test]
    fn a_gap_is_told_from_the_end() {
        let whole: Vec<_> =
            [(1, 3), (1, 4), (2, 5), (2, 6), (2, 7), (2, 8), (3, 9), (3, 10)].map(|(t, n)| segment(t, n)).into();
        let extent = |start, there: &[Segment]| extent(start, &lineage(), there, SEGMENT_SIZE);
        assert_eq!(extent(segment(1, 3), &whole), Extent { missing: segment(3, 11), gap: false });
        let without: Vec<_> = whole.iter().copied().filter(|place| place.number != 7).collect();
        assert_eq!(extent(segment(1, 3), &without), Extent { missing: segment(2, 7), gap: true });
        // What went on on a timeline that was left is not on the way.
        let mut left = whole.clone();
        left.extend([segment(1, 6), segment(1, 12)]);
        assert_eq!(extent(segment(1, 3), &left), Extent { missing: segment(3, 11), gap: false });
        assert_eq!(extent(segment(1, 2), &[]), Extent { missing: segment(1, 2), gap: false });
        // The first segment of the next log has the number 0.
        let logs = [(0, 254), (0, 255), (1, 1), (1, 2)].map(|(log, number)| Segment { timeline: 3, log, number });
        let first = Segment { timeline: 3, log: 1, number: 0 };
        assert_eq!(extent(logs[0], &logs), Extent { missing: first, gap: true });
        assert_eq!(extent(logs[0], &[logs[0], logs[1], first]).missing, logs[2]);
    }
}
