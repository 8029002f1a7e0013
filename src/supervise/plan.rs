//! What the tree is made from: the stages of the boot, and how each service is kept. Pure data.

use std::time::Duration;

use crate::plan::Policy;

/// A service of the tree, for its whole life; never given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub usize);

/// A job's place in the shell's own list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobId(pub usize);

/// One entry of the boot list. A service is named by its place in [`Plan::services`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Must succeed before the next stage begins.
    Job(JobId),
    /// Must all be ready before the next stage begins.
    Services(Vec<ServiceId>),
    /// Are started, and nobody waits for them.
    Aside(Vec<ServiceId>),
}

impl Stage {
    /// The services it names.
    pub fn services(&self) -> &[ServiceId] {
        match self {
            Self::Job(_) => &[],
            Self::Services(ids) | Self::Aside(ids) => ids,
        }
    }
}

/// What the whole makes of a service that gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It ends everything, unless another of its stage serves; then it rests and tries again.
    Always,
    /// It ends the boot; later it rests and tries again.
    Boot,
    /// It rests and tries again.
    Never,
}

/// How one service is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePlan {
    pub policy: Policy,
    /// The stage from which it may already wait at its gate.
    pub prepare_at: Option<usize>,
    pub need: Need,
}

/// What is run, in which order, and how patiently it is replaced and stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub stages: Vec<Stage>,
    pub services: Vec<ServicePlan>,
    /// How long to go on serving after readiness was withdrawn.
    pub drain_delay: Duration,
    /// How long what is to be done before a serving tree stops may take; it ends with `Event::HookEnded`.
    pub before_stop: Option<Duration>,
    pub roll: RollPlan,
}

/// How workers are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollPlan {
    /// The stage of the workers, if there are any.
    pub workers: Option<usize>,
    /// The stage of the template that workers are forked from; it has one service, or none.
    pub template: Option<usize>,
    /// How the template is kept, where there shall be one.
    pub preload: Option<ServicePlan>,
    /// How many replacements may be on their way to ready at once; at least 1.
    pub surge: usize,
    /// How many workers there may be beyond those wanted, on their way in or out: what the connection budget allows. One
    /// is always allowed.
    pub extra_max: usize,
}

impl RollPlan {
    /// For a tree without workers.
    pub const NONE: Self = Self { workers: None, template: None, preload: None, surge: 1, extra_max: 1 };
}

impl Plan {
    /// How the service in `place` of `stage` is kept; one that came later is kept as the first is.
    pub fn service(&self, stage: usize, place: usize) -> Option<&ServicePlan> {
        let ids = self.stages.get(stage)?.services();
        ids.get(place).or(ids.first()).map(|id| &self.services[id.0])
    }
}
