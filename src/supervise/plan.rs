//! What the tree is made from: the stages of the boot, and how each service is kept. Pure data, and the sum of a stop.

use std::time::Duration;

use crate::policy::Policy;

/// A service of the tree, for its whole life; never given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub usize);

/// One entry of the boot list. A service is named by its place in [`Plan::services`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Must succeed before the next stage begins.
    Job,
    /// Must all be ready before the next stage begins.
    Services(Vec<ServiceId>),
    /// Are started; the boot does not wait for them.
    Aside(Vec<ServiceId>),
}

impl Stage {
    /// The services it names.
    pub fn services(&self) -> &[ServiceId] {
        match self {
            Self::Job => &[],
            Self::Services(ids) | Self::Aside(ids) => ids,
        }
    }
}

/// What Tandem does when this service gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It ends, unless another service of the stage serves; then this one rests and is tried again.
    Always,
    /// It ends if it still boots; later the service rests and is tried again.
    Boot,
    /// The service rests and is tried again.
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
    /// How long the hook before the stop of a serving tree may take; it ends with `TreeEvent::HookEnded`.
    pub before_stop: Option<Duration>,
    /// How long what is done after the last service has ended may take.
    pub after_stop: Duration,
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
    /// How many workers there may be at once, those on their way in or out included: what the connection budget allows.
    /// One beyond those wanted is always allowed.
    pub most: usize,
}

impl RollPlan {
    /// For a tree without workers.
    pub const NONE: Self = Self { workers: None, template: None, preload: None, surge: 1, most: 1 };
}

/// How long an orderly stop may take, part by part in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopSum {
    /// Serving on after readiness was withdrawn: the drain, or the hook before the stop where that may take longer.
    pub draining: Duration,
    /// The stages, from the last to the first, each with the slowest ladder of its services.
    pub stages: Vec<(usize, Duration)>,
    /// What is done after the last service has ended.
    pub after: Duration,
}

impl StopSum {
    pub fn total(&self) -> Duration {
        let limits = self.stages.iter().map(|(_, limit)| *limit).chain([self.after]);
        limits.fold(self.draining, Duration::saturating_add)
    }
}

impl Plan {
    /// How the service in `place` of `stage` is kept; one that came later is kept as the first is.
    pub fn service(&self, stage: usize, place: usize) -> Option<&ServicePlan> {
        let ids = self.stages.get(stage)?.services();
        ids.get(place).or(ids.first()).map(|id| &self.services[id.0])
    }

    /// The stages that are ended together with `stage`: itself, and with the workers their template, for nothing is
    /// forked any more.
    pub fn ended_with(&self, stage: usize) -> impl Iterator<Item = usize> + use<> {
        let template = self.roll.template.filter(|_| self.roll.workers == Some(stage));
        [Some(stage), template].into_iter().flatten()
    }

    /// The one arithmetic of the stop: what `tandem check` prints, what is held against the platform's grace, what the log
    /// says, and what the simulation holds the tree to.
    pub fn stop_sum(&self) -> StopSum {
        self.stop_sum_of(|stage| {
            let planned = self.stages[stage].services().iter().map(|id| &self.services[id.0].policy);
            let template =
                self.roll.preload.iter().filter(|_| self.roll.template == Some(stage)).map(|plan| &plan.policy);
            planned.chain(template).map(Policy::stop_limit).max().unwrap_or_default()
        })
    }

    /// As [`Plan::stop_sum`], where the slowest ladder of each stage is what `slowest` says.
    pub fn stop_sum_of(&self, slowest: impl Fn(usize) -> Duration) -> StopSum {
        let mut ended = vec![false; self.stages.len()];
        let mut stages = Vec::new();
        for stage in (0..self.stages.len()).rev() {
            let together = self.ended_with(stage).filter(|&stage| !std::mem::replace(&mut ended[stage], true));
            let limit = together.map(&slowest).max().unwrap_or_default();
            if !limit.is_zero() {
                stages.push((stage, limit));
            }
        }
        let draining = self.drain_delay.max(self.before_stop.unwrap_or_default());
        StopSum { draining, stages, after: self.after_stop }
    }
}
