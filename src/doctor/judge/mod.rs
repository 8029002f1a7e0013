//! From facts to findings. Pure: a judge reads facts, and neither looks nor knows the time.

pub mod backups;
pub mod data;
pub mod machine;
pub mod project;
pub mod security;
pub mod server;
pub mod sessions;

use super::facts::{Look, Unseen};
use super::verdict::Finding;

/// What a judge finds; nothing found is well. `Err`: nothing was seen.
pub type Judged = Result<Vec<Finding>, Unseen>;

/// What a look saw.
fn seen<T>(look: &Look<T>) -> Result<&T, Unseen> {
    look.as_ref().map_err(Clone::clone)
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["bytes", "kB", "MB", "GB"];
    let step = match bytes {
        0..1024 => 0,
        1024..1_048_576 => 1,
        1_048_576..1_073_741_824 => 2,
        _ => 3,
    };
    match step {
        0 => format!("{bytes} bytes"),
        3 => format!("{:.1} GB", bytes as f64 / f64::from(1 << 30)),
        step => format!("{} {}", bytes.div_ceil(1 << (10 * step)), UNITS[step]),
    }
}

/// A time span for people, in its two largest units.
fn span(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default().as_secs();
    let text = humantime::format_duration(std::time::Duration::from_secs(whole)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A name that somebody else chose, in one line.
fn plain(name: &str) -> String {
    name.escape_debug().to_string()
}

/// The first few of `all` in a sentence, and how many more there are.
fn few(all: &[String]) -> String {
    const SHOWN_MAX: usize = 5;
    let shown = all.iter().take(SHOWN_MAX).map(|one| one.replace(char::is_control, "?")).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_are_for_people() {
        assert_eq!([size(12), size(2048), size(64 << 20), size(3 << 30)], ["12 bytes", "2 kB", "64 MB", "3.0 GB"]);
        assert_eq!((span(7_261.5), span(-1.0)), ("2h 1m".to_owned(), "0s".to_owned()));
        let names: Vec<String> = (1..8).map(|n| n.to_string()).collect();
        assert_eq!(few(&names), "1, 2, 3, 4, 5 and 2 more");
    }
}
