//! What can happen to the tree, what it can decide, and what it consists of. Pure data.

use super::plan::{Plan, ServiceId, ServicePlan};
use super::roll::{Outcome, RollId, Scope};
use super::state::{Child, ChildAction, ChildEvent, Moment};

/// One run of the job of a stage. A job that was broken off runs again, and the end of the earlier run counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobRun {
    pub stage: usize,
    /// Counted over all jobs.
    pub run: u64,
}

/// Why everything is being stopped, or has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A person or the platform asked.
    Asked,
    /// A service gave up.
    GaveUp(ServiceId),
    /// The boot job of this stage failed.
    JobFailed(usize),
    /// A hook failed and `hooks.on_failure = "stop"`.
    HookFailed,
}

/// How far the tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreePhase {
    /// Not begun.
    Idle,
    /// This stage is under way; those below it are done.
    Booting { stage: usize },
    /// Every stage was reached.
    Serving,
    /// Readiness is withdrawn, requests are still served: until this moment, and as long as the hook runs, at most until
    /// its limit.
    Draining { until: Moment, hook: Option<Moment> },
    /// The services of this stage are being ended; those above it are gone.
    Stopping { stage: usize, cause: Cause },
    /// Nothing is left.
    Stopped { cause: Cause },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeEvent {
    Begin,
    JobSucceeded(JobRun),
    JobFailed(JobRun),
    Service(ServiceId, ChildEvent),
    /// Time has passed.
    Tick,
    /// Replace workers, new before old.
    Roll(RollId, Scope),
    /// Let there be so many workers.
    Scale(usize),
    /// The plan was changed; its stages are the same.
    Replan(Box<Plan>),
    /// A stop was asked for; asked again, it skips the waits.
    Stop,
    /// The hook before the stop has ended.
    HookEnded,
    /// A hook failed and `hooks.on_failure = "stop"`.
    HookFailed,
}

/// Where a service that comes later comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is to take this one's place.
    Replaces(ServiceId),
    /// A worker in a slot of its own.
    Slot(usize),
    /// The first template.
    Template,
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeAction {
    RunJob(JobRun),
    CancelJob(JobRun),
    /// There is a service more.
    Add(ServiceId, Origin),
    Service(ServiceId, ChildAction),
    /// The first is ready, and the second leaves.
    Swapped(ServiceId, ServiceId),
    /// This one still finishes requests, and is ended for the sake of another that waits for its place.
    Cut(ServiceId),
    /// Nothing is left of this one.
    Remove(ServiceId),
    RollEnded(RollId, Outcome),
    Enter(TreePhase),
}

/// What a service is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It holds its place.
    Standing,
    /// It is to take the place of another once it is ready.
    Replacement,
    /// It leaves, and is forgotten when it is gone.
    Retiring,
}

/// A service of the tree.
#[derive(Clone, Debug)]
pub struct Member {
    pub child: Child,
    pub plan: ServicePlan,
    pub stage: usize,
    /// Which of its stage it is: for a worker its slot.
    pub place: usize,
    pub role: Role,
}
