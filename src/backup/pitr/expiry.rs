//! Which base backups and which WAL no kept moment needs any more. Pure.

use std::time::Duration;

use super::bases::Base;
use super::live::Birth;
use super::timeline::Lineage;
use super::wal::{Segment, WalFile};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// So long after a restore the base backup that it used stays, and all that came after: who restored to a wrong moment
/// finds out within days.
const AFTER_RESTORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Base backups on the way of the current timeline.
    pub count: u32,
    /// Days of which every moment can be reached, however many base backups that takes.
    pub days: u32,
}

/// The base backups that may go, by name. `lineage` is that of the current timeline, which `birth` began.
///
/// What stays has one beginning: the oldest base backup on the way that any rule wants. Whatever was made after it stays
/// too, on timelines that were left as well, so that every moment since can be reached.
pub fn surplus(bases: &[Base], lineage: &Lineage, birth: Option<&Birth>, keep: Keep) -> Vec<String> {
    let mut on_the_way: Vec<&Base> =
        bases.iter().filter(|base| lineage.passes(base.stop_timeline, base.stop_lsn)).collect();
    on_the_way.sort_by_key(|base| (base.stop_lsn, base.ended));
    // A chain without a beginning is none.
    let count = usize::try_from(keep.count).unwrap_or(usize::MAX).max(1);
    let Some(by_count) = on_the_way.len().checked_sub(count).map(|at| on_the_way[at]) else { return Vec::new() };
    // By the newest base backup and not by the clock, which may be wrong.
    let Some(now) = bases.iter().map(|base| base.ended).max() else { return Vec::new() };
    let window = DAY * keep.days;
    let by_days = now.checked_sub(window).filter(|_| keep.days > 0).and_then(|start| {
        // From the last one before the window on, every moment in it can be reached.
        on_the_way.iter().rfind(|base| base.ended <= start).or(on_the_way.first()).copied()
    });
    let recent = birth.filter(|birth| now < birth.at + window.max(AFTER_RESTORE));
    let by_restore = recent.and_then(|birth| {
        let named = on_the_way.iter().find(|base| Some(&base.name) == birth.base.as_ref());
        named.or_else(|| on_the_way.iter().rfind(|base| base.stop_timeline != birth.timeline)).copied()
    });
    let wanted = [Some(by_count), by_days, by_restore].into_iter().flatten();
    let Some(oldest) = wanted.min_by_key(|base| (base.stop_lsn, base.ended)) else { return Vec::new() };
    let goes = |base: &&Base| {
        if lineage.passes(base.stop_timeline, base.stop_lsn) {
            base.stop_lsn < oldest.stop_lsn
        } else {
            base.ended < oldest.ended
        }
    };
    bases.iter().filter(goes).map(|base| base.name.clone()).collect()
}

/// What of the archived `names` no recovery from one of the kept base backups reads. `starts` are the segments in which
/// these began; without one, all is kept.
///
/// The place alone decides, on every timeline: recovery goes forward from the start of its backup, on that backup's
/// timeline and on those that left it later. Histories stay, for they say which timelines these are.
pub fn unneeded(names: &[WalFile], starts: &[Segment]) -> Vec<WalFile> {
    let Some(oldest) = starts.iter().map(|segment| segment.place()).min() else { return Vec::new() };
    let before = |name: &&WalFile| name.segment().is_some_and(|segment| segment.place() < oldest);
    names.iter().filter(before).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::bases::tests::base;
    use super::*;

    fn segment(timeline: u32, log: u32, number: u32) -> Segment {
        Segment { timeline, log, number }
    }

    /// On `timeline`, ended in segment `place` and on this day.
    fn on(timeline: u32, place: u64, day: u64) -> Base {
        base(timeline, (place << 24) + 0x28, (place << 24) + 0x100, day * 24 * 3600)
    }

    fn began(timeline: u32, day: u64, used: &Base) -> Birth {
        let at = SystemTime::UNIX_EPOCH + DAY * u32::try_from(day).unwrap();
        Birth { timeline, at, base: Some(used.name.clone()), replaced: None }
    }

    /// Which of `bases` go, by their places.
    fn gone(bases: &[Base], history: (u32, &str), birth: Option<&Birth>, keep: Keep) -> Vec<usize> {
        let names = surplus(bases, &Lineage::read(history.0, history.1).unwrap(), birth, keep);
        (0..bases.len()).filter(|at| names.contains(&bases[*at].name)).collect()
    }

    const TWO: Keep = Keep { count: 2, days: 0 };

    #[test]
    fn the_newest_base_backups_are_kept_and_never_none() {
        let bases: Vec<Base> = (1..=5).map(|day| on(1, day, day)).collect();
        let gone = |count: usize, keep| gone(&bases[..count], (1, ""), None, Keep { count: keep, days: 0 });
        assert_eq!([gone(0, 2), gone(1, 2), gone(2, 2)], [[], [], []] as [[usize; 0]; 3]);
        assert_eq!((gone(5, 2), gone(3, 0), gone(5, 9)), (vec![0, 1, 2], vec![0, 1], vec![]));
    }

    #[test]
    fn a_window_keeps_what_reaches_every_moment_in_it() {
        let weekly: Vec<Base> = (0..10).map(|week| on(1, week + 1, 100 + 7 * week)).collect();
        let gone = |count, days| gone(&weekly, (1, ""), None, Keep { count, days }).len();
        // The newest is of day 163; 20 days before it begin on day 143, which the one of day 142 reaches.
        assert_eq!((gone(2, 20), gone(2, 21), gone(2, 22), gone(2, 1)), (6, 6, 5, 8));
        assert_eq!((gone(5, 20), gone(2, 1000)), (5, 0), "the count is the least");
    }

    #[test]
    fn what_a_restore_used_and_what_it_left_stay_and_count_for_nothing() {
        let (used, left) = (on(1, 2, 1), on(1, 6, 8));
        let birth = began(2, 9, &used);
        // Left in segment 4: the second base backup lies behind it.
        let history = (2, "1\t0/4000000\tx\n");
        let mut bases = vec![used.clone(), left];
        for (place, day) in [(5, 9), (6, 10), (7, 17)] {
            bases.push(on(2, place, day));
            assert_eq!(gone(&bases, history, Some(&birth), TWO), [] as [usize; 0], "on day {day}");
        }
        // Where it was not written down, the last before the new timeline is the one that was used.
        let unknown = Birth { base: None, ..birth.clone() };
        assert_eq!(gone(&bases, history, Some(&unknown), TWO), [] as [usize; 0]);
        bases.push(on(2, 8, 24));
        assert_eq!(gone(&bases, history, Some(&birth), TWO), [0, 1, 2, 3], "two weeks later it is a base like others");
        assert_eq!(gone(&bases, history, Some(&birth), Keep { count: 2, days: 30 }), [] as [usize; 0]);
    }

    #[test]
    fn base_backups_on_a_timeline_that_was_left_go_when_none_of_its_moments_is_kept_any_more() {
        let bases = [on(1, 2, 1), on(1, 6, 8), on(2, 5, 30), on(2, 6, 37)];
        let history = (2, "1\t0/4000000\tx\n");
        assert_eq!(gone(&bases[..3], history, None, TWO), [] as [usize; 0], "two are on the way");
        assert_eq!(gone(&bases, history, None, TWO), [0, 1]);
        assert_eq!(gone(&bases[1..3], history, None, TWO), [] as [usize; 0], "one is, so none goes");
        // A timeline whose history is not known has no others on its way.
        assert_eq!(gone(&bases[..3], (2, ""), None, TWO), [] as [usize; 0]);
    }

    #[test]
    fn wal_is_kept_from_the_start_of_the_oldest_kept_base_backup_on() {
        let names = [
            WalFile::History(2),
            WalFile::Segment(segment(1, 0, 4)),
            WalFile::Segment(segment(1, 0, 5)),
            WalFile::Backup(segment(1, 0, 4), 0x28),
            WalFile::Backup(segment(1, 0, 5), 0x28),
            WalFile::Segment(segment(1, 1, 0)),
            WalFile::Partial(segment(1, 0, 4)),
            WalFile::Segment(segment(2, 0, 3)),
            WalFile::Segment(segment(2, 0, 6)),
        ];
        let gone = unneeded(&names, &[segment(1, 0, 5), segment(2, 0, 7)]);
        assert_eq!(gone, [names[1], names[3], names[6], names[7]]);
        assert_eq!(unneeded(&names, &[]), [], "without a base backup nothing is known to be unneeded");
    }

    /// Restored into the past, a cluster begins its new timeline at a lower place than its newest backup has.
    #[test]
    fn a_base_backup_on_a_timeline_that_left_early_keeps_its_wal() {
        let names = [
            WalFile::Segment(segment(2, 0, 6)),
            WalFile::Segment(segment(1, 0, 9)),
            WalFile::Segment(segment(1, 0, 6)),
        ];
        assert_eq!(unneeded(&names, &[segment(1, 0, 9), segment(2, 0, 6)]), []);
    }
}
