//! What was measured, as a Markdown table: a row for each measure, a column for each server.

use std::fmt::Write;

#[derive(Default)]
pub struct Sheet {
    columns: Vec<String>,
    rows: Vec<(String, Vec<String>)>,
    /// Goals that were not reached.
    pub missed: Vec<String>,
}

impl Sheet {
    pub fn new(columns: Vec<String>) -> Self {
        Self { columns, ..Self::default() }
    }

    /// Fill the cell of `row` in the column `column`. Rows stand in the order in which they are first filled.
    pub fn put(&mut self, row: &str, column: usize, text: &str) {
        eprintln!("{} | {row} | {text}", self.columns[column]);
        let place = self.rows.iter().position(|(name, _)| name == row).unwrap_or_else(|| {
            self.rows.push((row.to_owned(), vec![String::new(); self.columns.len()]));
            self.rows.len() - 1
        });
        self.rows[place].1[column] = text.replace('|', "/").replace('\n', " ");
    }

    /// Note whether a goal was reached.
    pub fn goal(&mut self, what: &str, met: bool) {
        if !met {
            self.missed.push(what.to_owned());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("| | {} |\n|---|{}\n", self.columns.join(" | "), "---|".repeat(self.columns.len()));
        for (name, cells) in &self.rows {
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
        text
    }
}
