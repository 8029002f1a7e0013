//! When a file system is full, if it goes on filling as it did. Pure: the time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// One sample a minute is kept, for six hours.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(60);
const SAMPLES_MAX: usize = 360;
/// Fewer say nothing.
const SAMPLES_MIN: usize = 10;
/// What lies further ahead is no forecast.
const HORIZON: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// How well a line must fit (the square of the correlation): a disk that goes up and down has no trend.
const FIT_MIN: f64 = 0.5;

/// The free room of the last hours.
#[derive(Clone, Debug, Default)]
pub struct Forecast {
    samples: VecDeque<(Instant, u64)>,
}

impl Forecast {
    /// Note that so many bytes were free at `now`; more often than once a minute it changes nothing.
    pub fn note(&mut self, now: Instant, free: u64) {
        let is_due =
            self.samples.back().is_none_or(|(last, _)| now.saturating_duration_since(*last) >= SAMPLE_INTERVAL);
        if !is_due {
            return;
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((now, free));
    }

    /// In how much time nothing is free, from the last sample on; `None` where it does not fill, or so slowly that nobody can
    /// tell. Whole minutes.
    pub fn full_in(&self) -> Option<Duration> {
        let (first, _) = *self.samples.front()?;
        let (_, free) = *self.samples.back()?;
        if self.samples.len() < SAMPLES_MIN {
            return None;
        }
        // Least squares; times in seconds since the first sample.
        let points = self.samples.iter().map(|&(at, free)| (at.duration_since(first).as_secs_f64(), free as f64));
        let count = self.samples.len() as f64;
        let (sum_x, sum_y) = points.clone().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        let (mean_x, mean_y) = (sum_x / count, sum_y / count);
        let (mut xx, mut xy, mut yy) = (0.0, 0.0, 0.0);
        for (x, y) in points {
            let (x, y) = (x - mean_x, y - mean_y);
            (xx, xy, yy) = (xx + x * x, xy + x * y, yy + y * y);
        }
        if xx <= 0.0 || yy <= 0.0 || xy >= 0.0 || xy * xy / (xx * yy) < FIT_MIN {
            return None;
        }
        let seconds = free as f64 / -(xy / xx);
        let left = Duration::try_from_secs_f64(seconds).ok().filter(|left| *left <= HORIZON)?;
        Some(Duration::from_secs(left.as_secs() / 60 * 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(free: impl Fn(u64) -> u64, minutes: u64) -> Option<Duration> {
        let (begun, mut forecast) = (Instant::now(), Forecast::default());
        for second in (0..=minutes * 60).step_by(10) {
            forecast.note(begun + Duration::from_secs(second), free(second));
        }
        assert!(forecast.samples.len() <= SAMPLES_MAX);
        forecast.full_in()
    }

    #[test]
    fn a_disk_that_fills_steadily_is_full_when_the_line_says() {
        // A megabyte a second; after 20 minutes 8800 of 10000 are left.
        let full = forecast(|second| (10_000 - second) << 20, 20).unwrap();
        assert_eq!(full, Duration::from_secs(8_800 / 60 * 60));
        // Hours later only the last six count, in which it fills twice as fast.
        let full =
            forecast(|second| 1_000_000 - if second < 36_000 { second } else { 36_000 + (second - 36_000) * 2 }, 1000);
        assert_eq!(full.unwrap().as_secs() / 60, (1_000_000 - 36_000 - 24_000 * 2) / 2 / 60);
    }

    #[test]
    fn a_disk_without_a_trend_has_no_forecast() {
        assert_eq!(forecast(|_| 5 << 30, 60), None, "nothing changes");
        assert_eq!(forecast(|second| (5 << 30) + second, 60), None, "it empties");
        assert_eq!(forecast(|second| (5 << 30) - (second / 60 % 7) * 1_000_000, 120), None, "it goes up and down");
        assert_eq!(forecast(|second| (500 << 30) - second, 60), None, "in centuries");
        assert_eq!(forecast(|second| (5 << 30) - second * 1_000_000, 5), None, "too soon to tell");
    }
}
