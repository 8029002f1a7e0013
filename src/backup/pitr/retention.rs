//! Which base backups and which WAL nobody needs any more. Pure.

use super::wal::{Name, Segment};

/// How many of `count` base backups, counted from the oldest, are beyond the `keep` newest.
pub fn surplus(count: usize, keep: usize) -> usize {
    // A chain without a beginning is none.
    count.saturating_sub(keep.max(1))
}

/// What of the archived `names` no recovery from one of the kept base backups reads. `starts` are the segments in which
/// these began; without one, all is kept.
///
/// The place alone decides, on every timeline: recovery goes forward from the start of its backup, on that backup's
/// timeline and on those that left it later. Histories stay, for they say which timelines these are.
pub fn unneeded(names: &[Name], starts: &[Segment]) -> Vec<Name> {
    let Some(oldest) = starts.iter().map(|segment| segment.place()).min() else { return Vec::new() };
    let before = |name: &&Name| name.segment().is_some_and(|segment| segment.place() < oldest);
    names.iter().filter(before).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(timeline: u32, log: u32, number: u32) -> Segment {
        Segment { timeline, log, number }
    }

    #[test]
    fn the_newest_base_backups_are_kept_and_never_none() {
        assert_eq!([surplus(0, 2), surplus(1, 2), surplus(2, 2), surplus(5, 2), surplus(3, 0)], [0, 0, 0, 3, 2]);
    }

    #[test]
    fn wal_is_kept_from_the_start_of_the_oldest_kept_base_backup_on() {
        let names = [
            Name::History(2),
            Name::Segment(segment(1, 0, 4)),
            Name::Segment(segment(1, 0, 5)),
            Name::Backup(segment(1, 0, 4), 0x28),
            Name::Backup(segment(1, 0, 5), 0x28),
            Name::Segment(segment(1, 1, 0)),
            Name::Partial(segment(1, 0, 4)),
            Name::Segment(segment(2, 0, 3)),
            Name::Segment(segment(2, 0, 6)),
        ];
        let gone = unneeded(&names, &[segment(1, 0, 5), segment(2, 0, 7)]);
        assert_eq!(gone, [names[1], names[3], names[6], names[7]]);
        assert_eq!(unneeded(&names, &[]), [], "without a base backup nothing is known to be unneeded");
    }

    /// Restored into the past, a cluster begins its new timeline at a lower place than its newest backup has.
    #[test]
    fn a_base_backup_on_a_timeline_that_left_early_keeps_its_wal() {
        let names = [Name::Segment(segment(2, 0, 6)), Name::Segment(segment(1, 0, 9)), Name::Segment(segment(1, 0, 6))];
        assert_eq!(unneeded(&names, &[segment(1, 0, 9), segment(2, 0, 6)]), []);
    }
}
