//! What was measured, as Markdown: a few tables, and what could not be measured.

use std::fmt::Write;

use crate::figures::{median, number};

/// Longest note, in characters.
const NOTE_MAX: usize = 400;

/// One table.
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// All tables of a run.
#[derive(Default)]
pub struct Sheet {
    tables: Vec<Table>,
    notes: Vec<String>,
    pub missed: Vec<String>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self { head: head.iter().map(|&cell| cell.to_owned()).collect(), rows: Vec::new() }
    }

    /// Cells that are missing at the end stay empty.
    pub fn row(&mut self, mut cells: Vec<String>) {
        cells.resize(self.head.len(), String::new());
        println!("| {} |", cells.join(" | "));
        self.rows.push(cells);
    }

    fn markdown(&self) -> String {
        let mut text = format!("| {} |\n|{}\n", self.head.join(" | "), "---|".repeat(self.head.len()));
        for row in &self.rows {
            let _ = writeln!(text, "| {} |", row.join(" | "));
        }
        text
    }
}

impl Sheet {
    pub fn add(&mut self, table: Table) {
        if !table.rows.is_empty() {
            self.tables.push(table);
        }
    }

    /// Something that a reader of the tables must know, once, and on one line.
    pub fn note(&mut self, note: &str) {
        let note: String = note.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(NOTE_MAX).collect();
        if !self.notes.contains(&note) {
            eprintln!("{note}");
            self.notes.push(note);
        }
    }

    /// The cell that says whether a goal is met.
    pub fn verdict(&mut self, goal: &str, met: bool) -> String {
        if met {
            return "yes".into();
        }
        self.missed.push(goal.to_owned());
        "**no**".into()
    }

    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    pub fn markdown(&self) -> String {
        let tables = self.tables.iter().map(Table::markdown).collect::<Vec<_>>().join("\n");
        let notes = self.notes.iter().fold(String::new(), |text, note| format!("{text}\n- {note}"));
        if notes.is_empty() { tables } else { format!("{tables}{notes}\n") }
    }
}

/// Median, and from the least to the greatest; nothing for no value.
pub fn spread(values: &[f64]) -> String {
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &value| (low.min(value), high.max(value)));
    match values {
        [] => String::new(),
        [one] => number(*one),
        _ => format!("**{}** ({}–{})", number(median(values)), number(low), number(high)),
    }
}
