//! The registry: what has happened since Tandem started, and what was last measured.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::body::Bytes;
use tokio::sync::Notify;

use super::family::{Family, labels};
use super::names::{ALL, Definition, SERIES_LEFT_OUT};
use super::text::{Format, write};

/// Most series of one definition.
const SERIES_MAX: usize = 1000;

/// Counts and gauges, and the last sample of the database. One lives as long as the process ([`registry`]).
#[derive(Debug)]
pub struct Registry {
    series: Mutex<BTreeMap<&'static str, BTreeMap<Vec<String>, f64>>>,
    database: Mutex<Option<Arc<DatabaseText>>>,
    scrapes: Mutex<Scrapes>,
    scraped: Notify,
    own: Mutex<Vec<Family>>,
}

/// What was last measured of the database, and its texts: large, and the same for every scrape.
#[derive(Debug)]
pub struct DatabaseText {
    families: Vec<Family>,
    /// Removes secrets.
    clean: fn(String) -> String,
    open_metrics: OnceLock<Bytes>,
    text: OnceLock<Bytes>,
    /// When it was measured.
    pub taken: Instant,
}

impl DatabaseText {
    /// `families`, which are not text yet; `clean` removes secrets.
    pub fn new(families: Vec<Family>, clean: fn(String) -> String) -> Self {
        let (open_metrics, text) = (OnceLock::new(), OnceLock::new());
        Self { families, clean, open_metrics, text, taken: Instant::now() }
    }

    #[cfg(feature = "otlp")]
    pub fn families(&self) -> &[Family] {
        &self.families
    }

    /// One of the texts; its bytes are shared. It is made where it was not made yet, which may take milliseconds.
    pub fn text(&self, format: Format) -> Bytes {
        self.place(format).get_or_init(|| Bytes::from((self.clean)(write(&self.families, format)))).clone()
    }

    /// One of the texts, if it was made.
    pub fn made(&self, format: Format) -> Option<Bytes> {
        self.place(format).get().cloned()
    }

    fn place(&self, format: Format) -> &OnceLock<Bytes> {
        match format {
            Format::OpenMetrics => &self.open_metrics,
            Format::Text => &self.text,
        }
    }
}

/// When each text was last asked for.
#[derive(Debug, Default)]
struct Scrapes {
    open_metrics: Option<Instant>,
    text: Option<Instant>,
    /// When the families themselves were last read.
    families: Option<Instant>,
}

/// The registry of this process.
pub fn registry() -> &'static Registry {
    static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::default);
    &REGISTRY
}

impl Default for Registry {
    fn default() -> Self {
        let begin = |definition: &Definition| {
            let series = definition.begin.iter().map(|values| (owned(values), 0.0));
            (definition.name, series.collect())
        };
        let series = Mutex::new(ALL.iter().map(|definition| begin(definition)).collect());
        let (database, scrapes, own) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { series, database, scrapes, scraped: Notify::new(), own }
    }
}

impl Registry {
    /// It has happened once.
    pub fn count(&self, definition: &'static Definition, values: &[&str]) {
        self.add(definition, values, 1);
    }

    /// It has happened so often.
    pub fn add(&self, definition: &'static Definition, values: &[&str], times: u64) {
        #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
        self.change(definition, values, |value| value + times as f64);
    }

    /// It is `value` now.
    pub fn set(&self, definition: &'static Definition, values: &[&str], value: f64) {
        self.change(definition, values, |_| value);
    }

    /// It is `time` now, in seconds since 1970.
    pub fn set_time(&self, definition: &'static Definition, values: &[&str], time: SystemTime) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.set(definition, values, since.as_secs_f64());
    }

    fn change(&self, definition: &'static Definition, values: &[&str], change: impl FnOnce(f64) -> f64) {
        debug_assert_eq!(definition.labels.len(), values.len(), "{}", definition.name);
        let mut all = locked(&self.series);
        let series = all.entry(definition.name).or_default();
        let values = owned(values);
        if series.len() >= SERIES_MAX && !series.contains_key(&values) {
            *all.entry(SERIES_LEFT_OUT.name).or_default().entry(Vec::new()).or_default() += 1.0;
            return;
        }
        let value = series.entry(values).or_default();
        *value = change(*value);
    }

    /// All counts and gauges, with what was last measured of this process.
    pub fn families(&self) -> Vec<Family> {
        let all = locked(&self.series);
        let one = |definition: &&Definition| {
            let mut family = Family::new(definition.name, definition.help, definition.kind);
            let series = all.get(definition.name).into_iter().flatten();
            family.samples.extend(series.map(|(values, value)| {
                let pairs: Vec<_> = definition.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
                (labels(&pairs), *value)
            }));
            family
        };
        ALL.iter().map(one).chain(locked(&self.own).iter().cloned()).collect()
    }

    /// Keep what was measured of this process.
    pub fn set_own(&self, families: Vec<Family>) {
        *locked(&self.own) = families;
    }

    /// Keep what was measured of the database, in the place of what was measured before.
    pub fn set_database(&self, text: Arc<DatabaseText>) {
        *locked(&self.database) = Some(text);
    }

    /// What was last measured of the database.
    pub fn database(&self) -> Option<Arc<DatabaseText>> {
        locked(&self.database).clone()
    }

    /// Note that somebody asks for the text `format` now.
    pub fn note_scrape(&self, format: Format) {
        let mut scrapes = locked(&self.scrapes);
        match format {
            Format::OpenMetrics => scrapes.open_metrics = Some(Instant::now()),
            Format::Text => scrapes.text = Some(Instant::now()),
        }
        self.scraped.notify_one();
    }

    /// Note that the families themselves are read now.
    #[cfg(feature = "otlp")]
    pub fn note_reader(&self) {
        locked(&self.scrapes).families = Some(Instant::now());
        self.scraped.notify_one();
    }

    /// Whether anything was read within the last `time`.
    pub fn is_read_within(&self, time: Duration) -> bool {
        let families = locked(&self.scrapes).families;
        families.is_some_and(|at| at.elapsed() <= time) || !self.scraped_within(time).is_empty()
    }

    /// Which texts were asked for within the last `time`.
    pub fn scraped_within(&self, time: Duration) -> Vec<Format> {
        let scrapes = locked(&self.scrapes);
        let all = [(Format::OpenMetrics, scrapes.open_metrics), (Format::Text, scrapes.text)];
        let recent = all.into_iter().filter(|(_, at)| at.is_some_and(|at| at.elapsed() <= time));
        recent.map(|(format, _)| format).collect()
    }

    /// Until somebody asks for a text. One that came since the last call counts.
    pub async fn next_scrape(&self) {
        self.scraped.notified().await;
    }
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::names::{BOOT_STEPS, GAVE_UP, ROLLS};
    use super::*;

    fn text(registry: &Registry) -> String {
        write(&registry.families(), Format::Text)
    }

    #[test]
    fn counters_exist_before_anything_has_happened_and_only_grow() {
        let registry = Registry::default();
        assert!(text(&registry).contains("\ntandem_rolls_total{outcome=\"aborted\"} 0\n"), "{}", text(&registry));
        registry.count(&ROLLS, &["done"]);
        registry.add(&ROLLS, &["done"], 2);
        registry.set(&BOOT_STEPS, &["postgres"], 0.25);
        let text = text(&registry);
        assert!(text.contains("\ntandem_rolls_total{outcome=\"done\"} 3\n"), "{text}");
        assert!(text.contains("\ntandem_boot_step_duration_seconds{step=\"postgres\"} 0.25\n"), "{text}");
    }

    #[test]
    fn a_label_that_never_repeats_does_not_fill_the_memory() {
        let registry = Registry::default();
        for number in 0..SERIES_MAX + 7 {
            registry.count(&GAVE_UP, &[&number.to_string()]);
        }
        // A series that is there goes on.
        registry.count(&GAVE_UP, &["0"]);
        let text = text(&registry);
        assert_eq!(text.matches("\ntandem_service_gave_up_total{").count(), SERIES_MAX);
        assert!(text.contains("\ntandem_metrics_series_left_out_total 7\n"), "{text}");
        assert!(text.contains("\ntandem_service_gave_up_total{service=\"0\"} 2\n"), "{text}");
    }
}
