//! A copy of the tree after each step, which orders read and wait on.

use std::time::Duration;

use crate::phase::Phase as Public;
use crate::supervise::state::{Moment, State};
use crate::supervise::tree::{Role, ServiceId, Tree, TreePhase};

use super::services::{ServiceKind, Services};

/// The tree after a step.
#[derive(Clone, Debug, Default)]
pub struct TreeView {
    pub serving: bool,
    pub phase: Public,
    pub services: Vec<ServiceView>,
    /// How long a stop may take from here.
    pub stop_limit: Duration,
}

/// One service of it.
#[derive(Clone, Debug)]
pub struct ServiceView {
    pub id: ServiceId,
    pub name: String,
    pub kind: Option<ServiceKind>,
    pub role: Role,
    pub state: State,
    pub pid: Option<i32>,
    pub last_reason: Option<String>,
    /// When it last failed, within its policy's period.
    pub failed: Option<Moment>,
    /// The longest that it takes to end it and to have it ready again.
    pub restart_limit: Duration,
}

impl TreeView {
    pub fn of(tree: &Tree, services: &Services, phase: Public) -> Self {
        let known = tree.members.iter().map(|(&id, member)| ServiceView {
            id,
            name: services.name(id),
            kind: services.kind(id),
            role: member.role,
            state: member.child.state,
            pid: member.child.pid(),
            last_reason: services.last_reason(id),
            failed: member.child.failures.back().copied(),
            restart_limit: tree.restart_limit(id),
        });
        let (serving, stop_limit) = (tree.phase == TreePhase::Serving, tree.stop_sum().total());
        Self { serving, phase, services: known.collect(), stop_limit }
    }

    /// The workers that hold a slot, by slot.
    pub fn workers(&self) -> impl Iterator<Item = &ServiceView> {
        self.standing().filter(|service| service.kind == Some(ServiceKind::Worker))
    }

    /// Those that hold their places.
    pub fn standing(&self) -> impl Iterator<Item = &ServiceView> {
        self.services.iter().filter(|service| service.role == Role::Standing)
    }

    pub fn of_id(&self, id: ServiceId) -> Option<&ServiceView> {
        self.services.iter().find(|service| service.id == id)
    }
}

impl ServiceView {
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready { .. })
    }

    pub fn is_abandoned(&self) -> bool {
        matches!(self.state, State::Abandoned { .. })
    }

    /// Whether its last attempt to start came to nothing.
    pub fn has_failed(&self) -> bool {
        matches!(self.state, State::Backoff { .. } | State::GaveUp | State::Abandoned { .. })
    }
}
