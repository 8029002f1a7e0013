//! The cells that say what was to be reached, and whether it was.

use crate::figures::{median, number};
use crate::gauge::Cost;
use crate::sheet::{Sheet, spread};

/// What Tandem's own process may take at the most, in MB.
const MEMORY: f64 = 40.0;

/// Goals of one row, and whether each is met.
#[derive(Default)]
pub struct Goals(Vec<(String, bool)>);

impl Goals {
    /// At most so much.
    pub fn at_most(&mut self, value: f64, limit: f64, unit: &str) {
        self.0.push((format!("≤ {} {unit}", number(limit)), value <= limit));
    }

    /// At least so much.
    pub fn at_least(&mut self, value: f64, limit: f64, unit: &str) {
        self.0.push((format!("≥ {} {unit}", number(limit)), value >= limit));
    }

    /// Tandem's own memory.
    pub fn memory(&mut self, costs: &[Cost]) {
        self.at_most(middle(costs, |cost| cost.own), MEMORY, "MB of memory");
    }

    /// Both cells.
    pub fn cells(self, row: &str, sheet: &mut Sheet) -> [String; 2] {
        let verdicts: Vec<String> =
            self.0.iter().map(|(goal, met)| sheet.verdict(&format!("{row}: {goal}"), *met)).collect();
        let goals: Vec<String> = self.0.into_iter().map(|(goal, _)| goal).collect();
        [goals.join("; "), verdicts.join(", ")]
    }
}

/// The median of one value of many commands.
pub fn middle(costs: &[Cost], value: impl Fn(&Cost) -> f64) -> f64 {
    median(&costs.iter().map(value).collect::<Vec<_>>())
}

/// The cell of one value of many commands.
pub fn cell(costs: &[Cost], value: impl Fn(&Cost) -> f64) -> String {
    spread(&costs.iter().map(value).collect::<Vec<_>>())
}

/// The cell of the most memory: of the process itself, and with those below it.
pub fn memory(costs: &[Cost]) -> String {
    let most = |value: fn(&Cost) -> f64| costs.iter().map(value).fold(0.0, f64::max);
    format!("{} ({})", number(most(|cost| cost.own)), number(most(|cost| cost.all)))
}
