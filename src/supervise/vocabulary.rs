//! What can happen to the tree, what it can decide, and what it consists of. Pure data.

use super::plan::{JobId, Plan, ServiceId, ServicePlan};
use super::roll::{Outcome, RollId, Scope};
use super::state::{self, Child, Moment};

/// Why everything is being stopped, or has been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A person or the platform asked.
    Asked,
    /// A service gave up.
    GaveUp(ServiceId),
    /// A boot job failed.
    JobFailed(JobId),
    /// A hook failed, and is not to be taken lightly.
    HookFailed,
}

/// Where the whole tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
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
pub enum Event {
    Begin,
    JobSucceeded(JobId),
    JobFailed(JobId),
    Service(ServiceId, state::Event),
    Tick,
    /// Replace workers, new before old.
    Roll(RollId, Scope),
    /// Let there be so many workers.
    Scale(usize),
    /// The plan was changed; its stages are the same.
    Replan(Box<Plan>),
    /// A stop was asked for; asked again, it skips the waits.
    Stop,
    /// What was to be done before the stop is done.
    HookEnded,
    /// A hook failed, and is not to be taken lightly.
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
pub enum Action {
    RunJob(JobId),
    CancelJob(JobId),
    /// There is a service more.
    Add(ServiceId, Origin),
    Service(ServiceId, state::Action),
    /// The first is ready, and the second leaves.
    Swapped(ServiceId, ServiceId),
    /// Nothing is left of this one.
    Remove(ServiceId),
    RollEnded(RollId, Outcome),
    Enter(Phase),
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
