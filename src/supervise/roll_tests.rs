//! Rolls, case by case. The simulation holds that nothing else goes wrong.

use std::time::Duration;

use super::super::state::{Ending, ProcessEvent};
use super::super::tree::{Cause, Need, Plan, RollPlan, ServicePlan, Stage, TreeEvent};
use super::*;
use crate::policy::{Policy, Rung, Signal};

const NOW: Moment = Duration::from_secs(100);
const WORKERS: [ServiceId; 3] = [ServiceId(0), ServiceId(1), ServiceId(2)];

fn service() -> ServicePlan {
    let rung = |signal, seconds| Rung { signal, group: true, grace: Duration::from_secs(seconds) };
    let policy = Policy {
        spawn_limit: Duration::from_secs(15),
        ready_limit: Duration::from_secs(60),
        hang_limit: Some(Duration::ZERO),
        ladder: vec![rung(Signal::Term, 10), rung(Signal::Kill, 2)],
        retire: vec![rung(Signal::Retire, 30)],
        close_limit: Duration::from_secs(5),
        drain_limit: Duration::from_secs(90),
        drain_firm: Duration::from_secs(20),
        hang: vec![],
        backoff_first: Duration::ZERO,
        backoff_step: Duration::ZERO,
        backoff_max: Duration::ZERO,
        intensity: 5,
        period: Duration::from_secs(60),
        start_intensity: 5,
        start_pause: Duration::ZERO,
        rest: Duration::from_secs(60),
        abandon_limit: Duration::from_secs(30),
        starved_pause: Duration::from_secs(5),
    };
    ServicePlan { policy, prepare_at: None, need: Need::Always }
}

/// Three workers that serve; with a template in stage 0 if `preload`.
struct World {
    tree: Option<Tree>,
    pid: i32,
}

impl World {
    fn serving(surge: usize, extra_max: usize, preload: bool) -> Self {
        let template = if preload { vec![ServiceId(3)] } else { vec![] };
        let plan = Plan {
            stages: vec![Stage::Services(template), Stage::Services(WORKERS.to_vec())],
            services: vec![service(); 4],
            drain_delay: Duration::ZERO,
            after_stop: Duration::ZERO,
            before_stop: None,
            roll: RollPlan {
                workers: Some(1),
                template: Some(0),
                preload: preload.then(service),
                surge,
                most: 3 + extra_max,
            },
        };
        let mut world = Self { tree: Some(Tree::new(plan)), pid: 10 };
        world.feed(TreeEvent::Begin);
        if preload {
            world.ready(ServiceId(3));
        }
        for id in WORKERS {
            world.ready(id);
        }
        assert_eq!(world.tree().phase, TreePhase::Serving);
        world
    }

    fn tree(&self) -> &Tree {
        self.tree.as_ref().unwrap()
    }

    fn feed(&mut self, event: TreeEvent) -> Vec<TreeAction> {
        self.feed_at(event, NOW)
    }

    fn feed_at(&mut self, event: TreeEvent, now: Moment) -> Vec<TreeAction> {
        let (tree, actions) = self.tree.take().unwrap().step(event, now);
        self.tree = Some(tree);
        actions
    }

    /// So much time has passed since all else happened.
    fn later(&mut self, passed: Duration) -> Vec<TreeAction> {
        self.feed_at(TreeEvent::Tick, NOW + passed)
    }

    fn tell(&mut self, id: ServiceId, about: ProcessEvent) -> Vec<TreeAction> {
        let generation = self.tree().members[&id].child.generation;
        self.feed(TreeEvent::Service(id, ChildEvent::Process(generation, about)))
    }

    /// A service that was asked for is there, and ready.
    fn ready(&mut self, id: ServiceId) -> Vec<TreeAction> {
        self.pid += 1;
        self.tell(id, ProcessEvent::Spawned(self.pid));
        self.tell(id, ProcessEvent::Ready)
    }

    fn gone(&mut self, id: ServiceId) -> Vec<TreeAction> {
        self.tell(id, ProcessEvent::Exited(Ending::Ended))
    }

    /// A worker that was told to leave says that it accepts no more.
    fn closed(&mut self, id: ServiceId) -> Vec<TreeAction> {
        self.tell(id, ProcessEvent::Closed)
    }

    fn roll(&mut self, id: u64, scope: Scope) -> Vec<TreeAction> {
        self.feed(TreeEvent::Roll(RollId(id), scope))
    }

    fn standing(&self) -> Vec<usize> {
        self.tree().standing(1).iter().map(|id| id.0).collect()
    }
}

fn added(actions: &[TreeAction]) -> Vec<ServiceId> {
    actions.iter().filter_map(|action| if let TreeAction::Add(id, _) = action { Some(*id) } else { None }).collect()
}

fn ended(actions: &[TreeAction]) -> Vec<(u64, Outcome)> {
    let ends = actions.iter().filter_map(|action| match action {
        TreeAction::RollEnded(id, outcome) => Some((id.0, *outcome)),
        _ => None,
    });
    ends.collect()
}

#[test]
fn one_after_another_new_before_old() {
    let mut world = World::serving(1, 1, false);
    let first = added(&world.roll(1, Scope::All));
    assert_eq!(first.len(), 1, "the surge is one");
    let actions = world.ready(first[0]);
    let swapped = actions.iter().position(|action| *action == TreeAction::Swapped(first[0], WORKERS[0]));
    let told = actions.iter().position(
        |action| matches!(action, TreeAction::Service(id, ChildAction::Signal { rung, .. }) if *id == WORKERS[0] && rung.signal == Signal::Retire),
    );
    assert!(swapped.is_some() && swapped < told, "{actions:?}");
    assert!(added(&actions).is_empty(), "no connection is left for another beside the one that drains");
    let second = added(&world.gone(WORKERS[0]));
    assert_eq!(second.len(), 1, "and now there is");
    world.ready(second[0]);
    let third = added(&world.gone(WORKERS[1]));
    assert_eq!(ended(&world.ready(third[0])), [], "the last one may still accept connections");
    assert_eq!(world.tree().rolling(), Some((3, 0)));
    assert_eq!(
        ended(&world.closed(WORKERS[2])),
        [(1, Outcome::Done(3))],
        "done when all have closed, not when all drained"
    );
    assert_eq!(world.standing(), [first[0].0, second[0].0, third[0].0]);
}

#[test]
fn drains_overlap_where_there_is_room() {
    let mut world = World::serving(2, 3, false);
    let first = added(&world.roll(1, Scope::All));
    assert_eq!(first.len(), 2, "the surge is two");
    let third = added(&world.ready(first[0]));
    assert_eq!(third.len(), 1, "one drains, one comes, and a third has room");
    assert!(added(&world.ready(first[1])).is_empty(), "none is left to be replaced");
    world.closed(WORKERS[0]);
    world.closed(WORKERS[2]);
    world.ready(third[0]);
    assert_eq!(ended(&world.closed(WORKERS[1])), [(1, Outcome::Done(3))]);
}

#[test]
fn a_replacement_that_fails_ends_the_roll_and_the_old_one_stays() {
    for ending in [Ending::Ended, Ending::Unstartable] {
        let mut world = World::serving(1, 1, false);
        let new = added(&world.roll(1, Scope::All))[0];
        world.tell(new, ProcessEvent::Spawned(99));
        let actions = world.tell(new, ProcessEvent::Exited(ending));
        assert_eq!(ended(&actions), [(1, Outcome::Aborted(new, 0))]);
        let again = |action: &&TreeAction| {
            matches!(action, TreeAction::Service(_, ChildAction::Restart(_) | ChildAction::GiveUp))
        };
        assert_eq!(actions.iter().find(again), None, "it is not tried again");
        assert!(actions.contains(&TreeAction::Remove(new)));
        assert_eq!(world.standing(), [0, 1, 2]);
        assert_eq!(world.tree().rolling(), None);
    }
}

#[test]
fn rolls_of_one_kind_are_one_and_others_wait() {
    let mut world = World::serving(1, 9, false);
    let mut new = added(&world.roll(1, Scope::All));
    for id in [2, 3] {
        assert!(added(&world.roll(id, Scope::All)).is_empty());
    }
    world.roll(4, Scope::One(WORKERS[1]));
    let mut ends = Vec::new();
    while let Some(id) = new.pop() {
        let mut actions = world.ready(id);
        let old = actions.iter().find_map(|action| match action {
            TreeAction::Swapped(_, old) => Some(*old),
            _ => None,
        });
        actions.extend(world.closed(old.unwrap()));
        ends.extend(ended(&actions));
        new.extend(added(&actions));
    }
    let gone = (4, Outcome::Done(0));
    assert_eq!(ends, [(1, Outcome::Done(3)), (2, Outcome::Done(3)), (3, Outcome::Done(3)), gone]);
}

#[test]
fn an_old_one_that_dies_first_is_replaced_all_the_same() {
    let mut world = World::serving(1, 1, false);
    let new = added(&world.roll(1, Scope::One(WORKERS[0])))[0];
    world.gone(WORKERS[0]);
    let actions = world.ready(new);
    assert!(actions.contains(&TreeAction::Remove(WORKERS[0])), "{actions:?}");
    assert_eq!(ended(&actions), [(1, Outcome::Done(1))]);
    assert_eq!(world.standing(), [new.0, 1, 2]);
}

#[test]
fn scaling_down_during_a_roll_takes_the_highest_slots_and_their_replacements() {
    let mut world = World::serving(3, 9, false);
    let new = added(&world.roll(1, Scope::All));
    assert_eq!(new.len(), 3);
    world.feed(TreeEvent::Scale(1));
    assert_eq!(world.standing(), [0]);
    world.ready(new[0]);
    assert_eq!(ended(&world.closed(WORKERS[0])), [(1, Outcome::Done(1))]);
    assert_eq!(world.standing(), [new[0].0]);
    assert_eq!(added(&world.feed(TreeEvent::Scale(3))).len(), 2);
    assert!(world.feed(TreeEvent::Scale(0)).is_empty(), "no worker would be left");
}

#[test]
fn the_template_comes_first_and_takes_its_place_with_the_first_worker() {
    let mut world = World::serving(1, 9, true);
    let template = added(&world.roll(1, Scope::All));
    assert_eq!(template.len(), 1, "no worker is to be forked off the old one");
    let worker = added(&world.ready(template[0]));
    assert_eq!((worker.len(), world.tree().standing(0)), (1, vec![ServiceId(3)]), "it is not proven yet");
    world.ready(worker[0]);
    assert_eq!(world.tree().standing(0), template);
}

#[test]
fn a_template_that_cannot_import_ends_the_roll() {
    let mut world = World::serving(1, 9, true);
    let new = added(&world.roll(1, Scope::All))[0];
    world.tell(new, ProcessEvent::Spawned(99));
    let actions = world.tell(new, ProcessEvent::Exited(Ending::Unstartable));
    assert_eq!(ended(&actions), [(1, Outcome::Aborted(new, 0))]);
    assert_eq!((world.tree().standing(0), world.standing()), (vec![ServiceId(3)], vec![0, 1, 2]));
}

#[test]
fn a_stop_interrupts_the_roll_and_those_that_wait() {
    let mut world = World::serving(1, 1, false);
    world.roll(1, Scope::All);
    world.roll(2, Scope::One(WORKERS[2]));
    let actions = world.feed(TreeEvent::Stop);
    assert_eq!(ended(&actions), [(1, Outcome::Interrupted), (2, Outcome::Interrupted)]);
    assert!(matches!(world.tree().phase, TreePhase::Stopping { cause: Cause::Asked, .. }));
    assert_eq!(ended(&world.roll(3, Scope::All)), [(3, Outcome::Interrupted)]);
}

#[test]
fn new_slots_wait_for_the_connections_of_those_that_leave() {
    let mut world = World::serving(1, 1, false);
    world.feed(TreeEvent::Scale(1));
    assert_eq!(world.standing(), [0], "two leave, and keep their connections until they are gone");
    assert_eq!(added(&world.feed(TreeEvent::Scale(3))).len(), 1, "one beyond those wanted has room");
    assert_eq!(added(&world.gone(WORKERS[2])).len(), 1);
    assert_eq!(world.standing().len(), 3);
}

#[test]
fn a_roll_does_not_wait_for_a_word_that_does_not_come() {
    let mut world = World::serving(1, 9, false);
    let new = added(&world.roll(1, Scope::One(WORKERS[0])))[0];
    assert_eq!(ended(&world.ready(new)), []);
    assert_eq!(world.tree().deadline(), Some(NOW + service().policy.close_limit));
    let actions = world.later(service().policy.close_limit);
    assert_eq!(ended(&actions), [(1, Outcome::Done(1))]);
    let unheard = |action: &TreeAction| matches!(action, TreeAction::Service(id, ChildAction::Unheard { .. }) if *id == WORKERS[0]);
    assert!(actions.iter().any(unheard), "{actions:?}");
}

#[test]
fn a_drain_without_an_end_holds_up_neither_a_roll_nor_a_scaling() {
    let mut world = World::serving(1, 1, false);
    let first = added(&world.roll(1, Scope::All));
    world.ready(first[0]);
    assert!(
        added(&world.closed(WORKERS[0])).is_empty(),
        "no connection is left for another beside the one that drains"
    );
    let firm = service().policy.drain_firm;
    assert!(world.later(firm - Duration::from_secs(1)).is_empty(), "its time is firm");
    let actions = world.later(firm);
    assert!(actions.contains(&TreeAction::Cut(WORKERS[0])), "{actions:?}");
    assert!(added(&actions).is_empty(), "its connections are its own until it is gone");
    assert!(world.later(firm).is_empty(), "and no other is cut meanwhile");
    let second = added(&world.gone(WORKERS[0]));
    assert_eq!(second.len(), 1);
    world.ready(second[0]);
    world.closed(WORKERS[1]);
    world.feed(TreeEvent::Scale(1));
    world.closed(WORKERS[2]);
    world.closed(second[0]);
    let actions = world.feed(TreeEvent::Scale(4));
    assert!(!actions.iter().any(|action| matches!(action, TreeAction::Cut(_))), "{actions:?}");
    let actions = world.later(firm);
    let cut = actions.iter().filter(|action| matches!(action, TreeAction::Cut(_))).count();
    assert_eq!(cut, 1, "one at a time: {actions:?}");
}

#[test]
fn a_stop_ends_what_still_drains() {
    let mut world = World::serving(1, 9, false);
    let new = added(&world.roll(1, Scope::One(WORKERS[0])))[0];
    world.ready(new);
    world.closed(WORKERS[0]);
    let actions = world.feed(TreeEvent::Stop);
    let told = |action: &TreeAction| matches!(action, TreeAction::Service(id, ChildAction::Signal { rung, .. }) if *id == WORKERS[0] && rung.signal == Signal::Term);
    assert!(actions.iter().any(told), "{actions:?}");
}
