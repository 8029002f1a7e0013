//! Where a recovery is to end, and which base backup it begins from. Pure.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::bases::Base;
use super::timeline::Lineage;
use super::wal::Lsn;

/// Where a recovery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Behind the last transaction that was committed by then.
    Time(SystemTime),
    /// Behind this position.
    Lsn(Lsn),
    /// Before the first record from this position on: a mark's.
    Before(Lsn),
    /// Behind the end of this transaction.
    Transaction(u32),
    /// With the last that there is.
    End,
}

impl Target {
    /// Whether `base` had ended by then.
    pub fn is_behind(self, base: &Base) -> bool {
        match self {
            Self::Time(time) => base.ended <= time,
            Self::Lsn(lsn) | Self::Before(lsn) => base.stop_lsn <= lsn,
            Self::End | Self::Transaction(_) => true,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => formatter.write_str(&timestamp(*time)),
            Self::Lsn(lsn) | Self::Before(lsn) => write!(formatter, "{lsn}"),
            Self::Transaction(id) => write!(formatter, "transaction {id}"),
            Self::End => formatter.write_str("the end"),
        }
    }
}

/// A time as PostgreSQL and people read it, in UTC.
pub fn timestamp(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_micros(time).to_string().replace('T', " ");
    let text = text.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    format!("{text}+00")
}

/// What was to be a time is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: write it as \"2026-01-02 15:04:05+00\", with the offset from UTC")]
pub struct NoTime(String);

/// Read a time. Its offset must be there: a restore an hour beside the wish costs more than four letters.
///
/// # Errors
/// It is none.
pub fn time(text: &str) -> Result<SystemTime, NoTime> {
    let no_time = || NoTime(text.to_owned());
    let (bare, ahead) = offset(text.trim()).ok_or_else(no_time)?;
    let local = humantime::parse_rfc3339_weak(bare.trim_end()).map_err(|_| no_time())?;
    let shift = Duration::from_secs(ahead.unsigned_abs());
    let utc = if ahead > 0 { local.checked_sub(shift) } else { local.checked_add(shift) };
    utc.ok_or_else(no_time)
}

/// The text before the offset, and the seconds that it is ahead of UTC.
fn offset(text: &str) -> Option<(&str, i64)> {
    if let Some(bare) = text.strip_suffix(['Z', 'z']).or_else(|| text.strip_suffix("UTC")) {
        return Some((bare, 0));
    }
    // The date has dashes too, but no colon before them.
    let clock = text.find(':')?;
    let at = clock + text[clock..].find(['+', '-'])?;
    let sign = if text[at..].starts_with('-') { -1 } else { 1 };
    let digits: String = text[at + 1..].chars().filter(|letter| *letter != ':').collect();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i64 = digits.parse().ok()?;
    let (hours, minutes) = match digits.len() {
        1 | 2 => (number, 0),
        4 => (number / 100, number % 100),
        _ => return None,
    };
    (hours < 16 && minutes < 60).then_some((&text[..at], sign * (hours * 3600 + minutes * 60)))
}

/// Why no base backup serves a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBase {
    #[error("there is no base backup: `tandem backup base` makes one, for a recovery to any moment after it")]
    None,
    #[error("{0} is before the end of the oldest base backup on the way, {1}, at {2}")]
    TooEarly(Target, String, String),
    #[error("none of the {0} base backups lies on the way to timeline {1}")]
    Astray(usize, u32),
}

/// The newest of `bases` from which recovery gets to `target` along `lineage`.
///
/// # Errors
/// None does.
pub fn choose<'a>(bases: &'a [Base], lineage: &Lineage, target: Target) -> Result<&'a Base, NoBase> {
    if bases.is_empty() {
        return Err(NoBase::None);
    }
    let on_the_way: Vec<&Base> =
        bases.iter().filter(|base| lineage.passes(base.stop_timeline, base.stop_lsn)).collect();
    let before = |base: &&&Base| target.is_behind(base);
    let order = |base: &&&Base| (base.stop_lsn, base.ended);
    let oldest = on_the_way.iter().min_by_key(order);
    let from = match target {
        // In which base backup it was over, none says.
        Target::Transaction(_) => oldest,
        _ => on_the_way.iter().filter(before).max_by_key(order),
    };
    match (from, oldest) {
        (Some(base), _) => Ok(base),
        (None, Some(oldest)) => {
            let end = match target {
                Target::Lsn(_) | Target::Before(_) => oldest.stop_lsn.to_string(),
                Target::Time(_) | Target::End | Target::Transaction(_) => timestamp(oldest.ended),
            };
            Err(NoBase::TooEarly(target, oldest.name.clone(), end))
        }
        (None, None) => Err(NoBase::Astray(bases.len(), lineage.newest())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::bases::tests::base;
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_are_read_as_people_and_postgresql_write_them() {
        let noon = at(1_767_366_245);
        for text in [
            "2026-01-02 15:04:05+00",
            "2026-01-02T15:04:05Z",
            "2026-01-02 15:04:05 UTC",
            "2026-01-02 16:04:05+01",
            "2026-01-02 20:34:05 +05:30",
            "2026-01-02 07:04:05-0800",
            "2026-01-02 15:04:05.000+00",
        ] {
            assert_eq!(time(text).unwrap(), noon, "{text}");
        }
        assert_eq!(timestamp(noon), "2026-01-02 15:04:05+00");
        assert_eq!(timestamp(noon + Duration::from_micros(120_500)), "2026-01-02 15:04:05.1205+00");
        assert_eq!(
            time(&timestamp(noon + Duration::from_micros(120_500))).unwrap(),
            noon + Duration::from_micros(120_500)
        );
        for text in [
            "",
            "now",
            "2026-01-02",
            "2026-01-02 15:04:05",
            "2026-01-02 15:04:05+1:2:3",
            "2026-13-02 15:04:05Z",
            "15:04+é",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_newest_base_backup_before_the_target_is_chosen() {
        let bases = [base(1, 0x200_0028, 0x200_0100, 100), base(1, 0x600_0028, 0x600_0100, 200)];
        let first = Lineage::read(1, "").unwrap();
        let chosen = |lineage: &Lineage, target| choose(&bases, lineage, target).map(|base| base.ended);
        assert_eq!(chosen(&first, Target::End), Ok(at(200)));
        assert_eq!(chosen(&first, Target::Time(at(199))), Ok(at(100)));
        assert_eq!(chosen(&first, Target::Time(at(200))), Ok(at(200)));
        assert_eq!(chosen(&first, Target::Lsn(Lsn(0x600_00ff))), Ok(at(100)));
        assert_eq!(chosen(&first, Target::Before(Lsn(0x600_0100))), Ok(at(200)));
        assert_eq!(chosen(&first, Target::Transaction(7)), Ok(at(100)), "it may have ended before the second");
        let early = choose(&bases, &first, Target::Time(at(99))).unwrap_err().to_string();
        assert!(early.contains("1970-01-01 00:01:40+00") && early.contains(&bases[0].name), "{early}");
        assert_eq!(choose(&[], &first, Target::End), Err(NoBase::None));
        // The second lies beyond where the first timeline was left.
        let second = Lineage::read(2, "1\t0/5000000\tx\n").unwrap();
        assert_eq!(chosen(&second, Target::End), Ok(at(100)));
        let gone = Lineage::read(2, "1\t0/1000000\tx\n").unwrap();
        assert_eq!(choose(&bases, &gone, Target::End), Err(NoBase::Astray(2, 2)));
    }
}
