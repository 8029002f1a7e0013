//! `[hooks]`: the operator's commands at turns of the life of Tandem and its workers.

use std::time::Duration;

/// When `hooks.after_ready` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterReady {
    /// Once, when all is up.
    Start,
    /// Then, and again whenever workers were replaced.
    Replaced,
}

/// What follows a hook that fails or passes its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// A line in the log.
    Warn,
    /// Tandem stops, and says so with its exit code.
    Stop,
}

/// `[hooks]`: commands at turns of the life of all. A program is looked for in the Python environment first.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// Runs once the application serves.
    pub after_ready: Option<Vec<String>>,
    pub after_ready_on: AfterReady,
    /// Runs before anything is stopped.
    pub before_stop: Option<Vec<String>>,
    /// Runs whenever a worker's process has ended.
    pub worker_exit: Option<Vec<String>>,
    /// How long a hook may take before it is killed.
    pub limit: Duration,
    pub on_failure: OnFailure,
}
