//! The loop around the pure tree: wait for one event, decide, act. Nothing is awaited while deciding or acting.

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until};

use crate::supervise::tree::{Cause, Tree, TreeAction, TreeEvent, TreePhase};

/// Carries out what the tree decides.
pub trait Shell {
    /// Carry out one action, without waiting for its outcome: that comes back as an event.
    fn act(&mut self, action: TreeAction);

    /// See the tree after a step, to publish what others read of it.
    fn observe(&mut self, tree: &Tree);
}

/// Run `tree` from its begin until nothing of it is left. Dropping the future forgets the children: don't.
pub async fn run(mut tree: Tree, mut events: UnboundedReceiver<TreeEvent>, shell: &mut impl Shell) -> Cause {
    let started = Instant::now();
    let mut event = TreeEvent::Begin;
    loop {
        let (next, actions) = tree.step(event, started.elapsed());
        tree = next;
        for action in actions {
            shell.act(action);
        }
        shell.observe(&tree);
        if let TreePhase::Stopped { cause } = tree.phase {
            return cause;
        }
        event = wait(&tree, started, &mut events).await;
    }
}

/// The next event, or a tick when the tree's deadline comes first.
async fn wait(tree: &Tree, started: Instant, events: &mut UnboundedReceiver<TreeEvent>) -> TreeEvent {
    let tick = async {
        match tree.deadline() {
            // One past the end of time never comes.
            Some(deadline) => match started.checked_add(deadline) {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        event = events.recv() => event.unwrap_or(TreeEvent::Stop),
        () = tick => TreeEvent::Tick,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Policy, Rung, Signal};
    use crate::supervise::state::{ChildAction, ChildEvent, Ending, Generation, ProcessEvent};
    use crate::supervise::tree::{Need, Plan, RollPlan, ServiceId, ServicePlan, Stage};
    use std::time::Duration;
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    /// A scripted world: the child is there at once, gets ready, and ends only when killed.
    struct Script {
        events: UnboundedSender<TreeEvent>,
        seen: Vec<TreeAction>,
        generation: Generation,
    }

    impl Script {
        fn of(&self, id: ServiceId, about: ProcessEvent) -> TreeEvent {
            TreeEvent::Service(id, ChildEvent::Process(self.generation, about))
        }
    }

    impl Shell for Script {
        fn act(&mut self, action: TreeAction) {
            self.seen.push(action);
            let answer = match action {
                TreeAction::RunJob(job) => TreeEvent::JobSucceeded(job),
                TreeAction::Service(id, ChildAction::Spawn(generation, _)) => {
                    self.generation = generation;
                    self.events.send(self.of(id, ProcessEvent::Spawned(1))).unwrap();
                    self.of(id, ProcessEvent::Ready)
                }
                TreeAction::Service(id, ChildAction::Signal { rung: Rung { signal: Signal::Kill, .. }, .. }) => {
                    self.of(id, ProcessEvent::Exited(Ending::Ended))
                }
                TreeAction::Enter(TreePhase::Serving) => TreeEvent::Stop,
                _ => return,
            };
            self.events.send(answer).unwrap();
        }

        fn observe(&mut self, _: &Tree) {}
    }

    #[tokio::test(start_paused = true)]
    async fn the_loop_ticks_when_a_deadline_comes_before_any_event() {
        let rung = |signal, seconds| Rung { signal, group: true, grace: Duration::from_secs(seconds) };
        let policy = Policy {
            spawn_limit: Duration::from_secs(15),
            ready_limit: Duration::from_secs(60),
            hang_limit: None,
            ladder: vec![rung(Signal::Term, 10), rung(Signal::Kill, 2)],
            retire: vec![],
            close_limit: Duration::ZERO,
            drain_limit: Duration::ZERO,
            drain_firm: Duration::ZERO,
            hang: vec![],
            backoff_first: Duration::ZERO,
            backoff_step: Duration::ZERO,
            backoff_max: Duration::ZERO,
            intensity: 0,
            period: Duration::ZERO,
            start_intensity: 0,
            start_pause: Duration::ZERO,
            rest: Duration::ZERO,
            abandon_limit: Duration::from_secs(30),
            starved_pause: Duration::ZERO,
        };
        let plan = Plan {
            stages: vec![Stage::Job, Stage::Services(vec![ServiceId(0)])],
            services: vec![ServicePlan { policy, prepare_at: None, need: Need::Always }],
            drain_delay: Duration::ZERO,
            after_stop: Duration::ZERO,
            before_stop: None,
            roll: RollPlan::NONE,
        };
        let (events, receiver) = unbounded_channel();
        let mut script = Script { events, seen: Vec::new(), generation: Generation::default() };
        let started = Instant::now();
        assert_eq!(run(Tree::new(plan), receiver, &mut script).await, Cause::Asked);
        assert_eq!(started.elapsed().as_secs(), 10, "SIGTERM was ignored for the whole grace, then SIGKILL");
        assert_eq!(script.seen.first(), Some(&TreeAction::Enter(TreePhase::Booting { stage: 0 })));
    }
}
