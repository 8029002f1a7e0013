//! The trees that the simulation drives: their plans, drawn from a seed.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::SmallRng;

use crate::policy::{KILL_GRACE, Policy, Rung, Signal};
use crate::tree::{Need, Plan, RollPlan, ServiceId, ServicePlan, Stage};

/// Workers that the connection budget of a simulated tree has room for.
pub const BUDGET: usize = 5;

/// How long a worker may take to say that it accepts no more.
pub const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What kind of tree it is. It stays so for a whole history.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// The server is Tandem's own.
    pub managed: bool,
    /// One job runs instead of the workers.
    pub errand: bool,
    /// Workers may fail as often as they like.
    pub patient: bool,
    pub companions: usize,
    pub surge: usize,
    pub before_stop: bool,
    pub drain: bool,
    /// Limits without end.
    pub endless: bool,
    /// A worker that was replaced has all the time that its requests need.
    pub drains_for_ever: bool,
    /// The budget has room for one worker beside those that are wanted.
    pub tight: bool,
}

impl Kind {
    pub fn draw(random: &mut SmallRng) -> Self {
        Self {
            managed: random.random_bool(0.8),
            errand: random.random_bool(0.1),
            patient: random.random_bool(0.3),
            companions: random.random_range(0..4),
            surge: random.random_range(1..4),
            before_stop: random.random_bool(0.5),
            drain: random.random_bool(0.5),
            endless: random.random_bool(0.05),
            drains_for_ever: random.random_bool(0.5),
            tight: random.random_bool(0.5),
        }
    }
}

/// Where the parts of a plan are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    pub postgres: Option<usize>,
    pub migrate: Option<usize>,
    pub workers: Option<usize>,
    pub companions: Option<usize>,
}

fn rung(signal: Signal, group: bool, millis: u64) -> Rung {
    Rung { signal, group, grace: Duration::from_millis(millis) }
}

fn policy(ladder: Vec<Rung>, hang: Option<u64>, endless: bool) -> Policy {
    let limit = |seconds| if endless { Duration::MAX } else { Duration::from_secs(seconds) };
    Policy {
        spawn_limit: limit(4),
        ready_limit: limit(5),
        hang_limit: hang.map(limit),
        ladder,
        retire: vec![],
        close_limit: CLOSE_LIMIT,
        drain_limit: Duration::MAX,
        drain_firm: Duration::from_secs(3),
        hang: vec![],
        backoff_first: Duration::ZERO,
        backoff_step: Duration::from_millis(100),
        backoff_max: Duration::from_secs(2),
        intensity: 3,
        period: limit(20),
        start_intensity: 1,
        start_pause: Duration::from_millis(300),
        rest: Duration::from_secs(10),
        abandon_limit: limit(8),
        starved_pause: Duration::from_secs(5),
    }
}

fn worker(kind: Kind) -> Policy {
    let ladder = vec![rung(Signal::Term, true, 2000), rung(Signal::Abort, false, 1000), rung(Signal::Kill, true, 1000)];
    Policy {
        retire: vec![rung(Signal::Retire, false, 4000)],
        drain_limit: if kind.drains_for_ever { Duration::MAX } else { Duration::from_secs(9) },
        hang: vec![rung(Signal::Abort, false, 1000), rung(Signal::Kill, true, 1000)],
        ..policy(ladder, Some(0), kind.endless)
    }
}

fn postgres(kind: Kind) -> Policy {
    let ladder =
        vec![rung(Signal::Interrupt, false, 2000), rung(Signal::Quit, false, 1000), rung(Signal::Kill, false, 1000)];
    policy(ladder, Some(3), kind.endless)
}

fn companion(place: u64) -> Policy {
    let kill = Rung { signal: Signal::Kill, group: true, grace: KILL_GRACE };
    policy(vec![rung(Signal::Term, true, 500 * place), kill], None, false)
}

/// A plan for `count` workers, forked off a template if `preload`.
pub fn plan(kind: Kind, preload: bool, count: usize) -> (Plan, Stages) {
    let service = |policy: Policy, prepare_at, need| ServicePlan { policy, prepare_at, need };
    let need = |need| if kind.patient { Need::Never } else { need };
    let mut services = Vec::new();
    let mut more = |plans: Vec<ServicePlan>| -> Vec<ServiceId> {
        let ids = (services.len()..services.len() + plans.len()).map(ServiceId).collect();
        services.extend(plans);
        ids
    };
    let (mut stages, mut at) = (vec![Stage::Job], Stages::default());
    if kind.managed {
        stages.push(Stage::Job);
        at.postgres = Some(stages.len());
        stages.push(Stage::Services(more(vec![service(postgres(kind), None, Need::Always)])));
    }
    at.migrate = Some(stages.len());
    // The job that waits for another server, or the errand.
    stages.push(Stage::Job);
    let mut roll = RollPlan::NONE;
    if !kind.errand {
        let template = service(worker(kind), Some(1), need(Need::Boot));
        roll.template = Some(stages.len());
        stages.push(Stage::Services(more(if preload { vec![template.clone()] } else { vec![] })));
        at.workers = Some(stages.len());
        let prepare_at = (!preload).then_some(1);
        stages.push(Stage::Services(more(vec![service(worker(kind), prepare_at, need(Need::Always)); count])));
        at.companions = Some(stages.len());
        let companions = (0..kind.companions as u64).map(|place| service(companion(place), None, Need::Never));
        stages.push(Stage::Aside(more(companions.collect())));
        roll = RollPlan {
            workers: at.workers,
            template: roll.template,
            preload: preload.then_some(template),
            surge: kind.surge,
            most: if kind.tight { 1 } else { BUDGET },
        };
    }
    let serves = !kind.errand;
    let plan = Plan {
        stages,
        services,
        drain_delay: Duration::from_millis(if serves && kind.drain { 500 } else { 0 }),
        after_stop: Duration::ZERO,
        before_stop: (serves && kind.before_stop).then_some(Duration::from_secs(2)),
        roll,
    };
    (plan, at)
}
