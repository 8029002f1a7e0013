//! What the log says of a server elsewhere that went away: that it did and why, again and again while it lasts, and that it
//! is back. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// How often it is said that it is still away.
const AGAIN: Duration = Duration::from_secs(30);

/// Whether the server is there, as the log has told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It was never there; the boot waits for it, and says so itself.
    Unknown,
    There,
    Away {
        since: Instant,
        told: Instant,
    },
}

/// What is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Gone,
    /// For so long by now.
    Still(Duration),
    /// After so long.
    Back(Duration),
}

impl Absence {
    /// It was asked: `serves` says whether it can be used.
    pub fn see(&mut self, serves: bool, now: Instant) -> Option<News> {
        let (next, news) = match (*self, serves) {
            (Self::Unknown, false) => (Self::Unknown, None),
            (Self::Unknown | Self::There, true) => (Self::There, None),
            (Self::There, false) => (Self::Away { since: now, told: now }, Some(News::Gone)),
            (Self::Away { since, .. }, true) => (Self::There, Some(News::Back(now.saturating_duration_since(since)))),
            (Self::Away { since, told }, false) if now.saturating_duration_since(told) >= AGAIN => {
                (Self::Away { since, told: now }, Some(News::Still(now.saturating_duration_since(since))))
            }
            (away @ Self::Away { .. }, false) => (away, None),
        };
        *self = next;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_told_at_once_again_and_again_and_at_its_end() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut absence = Absence::Unknown;
        assert_eq!(absence.see(false, begin), None, "the boot says so itself");
        assert_eq!(absence.see(true, begin), None);
        assert_eq!(absence.see(false, after(1)), Some(News::Gone));
        for second in 2..31 {
            assert_eq!(absence.see(false, after(second)), None);
        }
        assert_eq!(absence.see(false, after(31)), Some(News::Still(AGAIN)));
        assert_eq!(absence.see(false, after(60)), None);
        assert_eq!(absence.see(false, after(61)), Some(News::Still(AGAIN * 2)));
        assert_eq!(absence.see(true, after(70)), Some(News::Back(Duration::from_secs(69))));
        assert_eq!(absence.see(true, after(71)), None);
    }
}
