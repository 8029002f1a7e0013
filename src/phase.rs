//! The phase that users see: how far Tandem is between its first step and its last.

use std::fmt;

/// The one phase that Tandem is in; moves down this list, and never up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Finding or fetching PostgreSQL and making the Python environment.
    #[default]
    Installing,
    /// The cluster is made, opened or recovering.
    StartingDatabase,
    Migrating,
    /// Workers import the application; the first of them may be ready already.
    StartingWorkers,
    /// All steps are done. Whether requests are answered is what `health/` says.
    Serving,
    /// Readiness is withdrawn, requests are still answered.
    Draining,
    /// Workers, then PostgreSQL, are told to end.
    Stopping,
    Stopped,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 8] = [
        Self::Installing,
        Self::StartingDatabase,
        Self::Migrating,
        Self::StartingWorkers,
        Self::Serving,
        Self::Draining,
        Self::Stopping,
        Self::Stopped,
    ];

    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::Installing => "installing",
            Self::StartingDatabase => "starting-database",
            Self::Migrating => "migrating",
            Self::StartingWorkers => "starting-workers",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_in_order_and_have_names_of_their_own() {
        assert!(Phase::ALL.is_sorted());
        let names: std::collections::HashSet<_> = Phase::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), Phase::ALL.len());
    }
}
