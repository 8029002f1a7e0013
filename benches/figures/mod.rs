//! What every benchmark needs to say what it measured: the machine, the middle of many values, the place in the README.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// What ran this, and what else ran there.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let meminfo = read("/proc/meminfo");
    let memory = meminfo.split_whitespace().nth(1).and_then(|size| size.parse::<f64>().ok()).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let day = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    format!(
        "{}: {cpus} × {}, {:.0} GB, Linux {}; load average before the run {}",
        &day[..10],
        model.map_or("unknown processor", |(_, model)| model),
        memory / 1024.0 / 1024.0,
        kernel.trim(),
        load.split_whitespace().next().unwrap_or("?"),
    )
}

/// Put what `change` makes of it between the markers of `section` in `benches/README.md`.
pub fn write(section: &str, change: impl FnOnce(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/README.md");
    let [begin, end] = ["begin", "end"].map(|side| format!("<!-- {section}: {side} -->\n"));
    let readme = fs::read_to_string(&path).unwrap();
    let (head, rest) = readme.split_once(&begin).expect("benches/README.md has the marker of the begin");
    let (old, tail) = rest.split_once(&end).expect("benches/README.md has the marker of the end");
    fs::write(&path, format!("{head}{begin}{}{end}{tail}", change(old))).unwrap();
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] }
}

/// The value that the share `part` of `sorted` does not exceed.
pub fn quantile(sorted: &[f64], part: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into the slice")]
    let place = (sorted.len() as f64 * part) as usize;
    sorted[place.min(sorted.len() - 1)]
}

/// Three digits that matter.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 99.5 => format!("{value:.0}"),
        size if size >= 9.95 => format!("{value:.1}"),
        size if size >= 0.0995 || size == 0.0 => format!("{value:.2}").trim_end_matches(".00").to_owned(),
        _ => format!("{value:.4}"),
    }
}
