//! What was measured, as a Markdown table.

use std::fmt::Write;

use crate::figures::{median, number};

/// What a row is to reach. For a goal on a ratio, every pair's own counts, and the median of these decides.
#[derive(Clone, Copy)]
pub enum Goal {
    None,
    Below(f64),
    RatioAtMost(f64),
}

/// The table so far.
#[derive(Default)]
pub struct Table {
    rows: Vec<String>,
    pub missed: Vec<String>,
}

impl Table {
    /// Add a row: `ours` against `peer`, whose nth values were taken in the same round.
    pub fn row(&mut self, what: &str, unit: &str, ours: &[f64], peer: Option<(&str, &[f64])>, goal: Goal) {
        if ours.is_empty() {
            return;
        }
        let (other, ratios) = match peer {
            Some((name, values)) => {
                (format!("{name}: {}", spread(values, unit)), ours.iter().zip(values).map(|(a, b)| a / b).collect())
            }
            None => (String::new(), Vec::new()),
        };
        let ratio = if ratios.is_empty() { String::new() } else { spread(&ratios, "×") };
        let (wanted, met) = match goal {
            Goal::None => (String::new(), None),
            Goal::Below(limit) => (format!("< {} {unit}", number(limit)), Some(median(ours) < limit)),
            Goal::RatioAtMost(limit) => (format!("≤ {} ×", number(limit)), Some(median(&ratios) <= limit)),
        };
        let verdict = match met {
            None => "",
            Some(true) => "yes",
            Some(false) => "**no**",
        };
        let line = format!("| {what} | {} | {other} | {ratio} | {wanted} | {verdict} |", spread(ours, unit));
        println!("{line}");
        if met == Some(false) {
            self.missed.push(line.clone());
        }
        self.rows.push(line);
    }

    /// A row of words.
    pub fn say(&mut self, what: &str, ours: &str, peer: &str) {
        let line = format!("| {what} | {ours} | {peer} | | | |");
        println!("{line}");
        self.rows.push(line);
    }

    pub fn markdown(&self) -> String {
        let mut text =
            String::from("| | Tandem | peer | ratio, pair by pair | goal | met |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            let _ = writeln!(text, "{row}");
        }
        text
    }
}

/// Median, and from the least to the greatest.
fn spread(values: &[f64], unit: &str) -> String {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &value| (low.min(value), high.max(value)));
    match values {
        [one] => format!("{} {unit}", number(*one)),
        _ => format!("**{}** {unit} ({}–{})", number(median(values)), number(low), number(high)),
    }
}
