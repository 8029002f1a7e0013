//! Companions: `[[process]]` entries, kept beside the workers. The boot does not wait for them, and their failure never
//! stops Tandem.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal as OsSignal;

use crate::config::{ProcessSettings, Workers};
use crate::plan::{CommandLine, KILL_GRACE, Policy, Rung, STARVED_PAUSE, Signal};
use crate::process::{self, Exit, oom};
use crate::service::{self, Reporter, Tail};
use crate::supervise::state::{ChildAction, Ending, Generation};

/// How long output of a process that has ended is still read.
const OUTPUT_LIMIT: Duration = Duration::from_millis(100);

/// Longest time for a process.
const SPAWN_LIMIT: Duration = Duration::from_secs(10);

/// How a companion is kept: as a worker is, but it may end as slowly as it says. Pure.
pub fn policy(companion: &ProcessSettings, workers: &Workers) -> Policy {
    Policy {
        spawn_limit: SPAWN_LIMIT,
        // It is ready as soon as it is there.
        ready_limit: KILL_GRACE,
        hang_limit: None,
        ladder: vec![
            Rung { signal: Signal::Term, group: true, grace: companion.stop_grace },
            Rung { signal: Signal::Kill, group: true, grace: KILL_GRACE },
        ],
        retire: Vec::new(),
        hang: Vec::new(),
        backoff_first: workers.backoff_first,
        backoff_step: workers.backoff_first.saturating_mul(2),
        backoff_max: workers.backoff_max,
        intensity: workers.restart_intensity as usize,
        period: workers.restart_period,
        rest: workers.restart_period,
        abandon_limit: workers.ready_limit,
        starved_pause: STARVED_PAUSE,
    }
}

/// One companion. `command` makes its command line anew for each start, when all it needs is known.
pub struct Companion {
    name: String,
    command: Box<dyn Fn() -> CommandLine>,
    reporter: Reporter,
    tail: Tail,
    pid: Rc<Cell<Option<i32>>>,
    last_exit: Rc<Cell<Option<Exit>>>,
}

impl Companion {
    pub fn new(name: String, command: Box<dyn Fn() -> CommandLine>, reporter: Reporter) -> Self {
        Self { name, command, reporter, tail: Tail::default(), pid: Rc::default(), last_exit: Rc::default() }
    }

    /// Its name, in the log and everywhere else.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the last process ended, if one has.
    pub fn last_exit(&self) -> Option<Exit> {
        self.last_exit.get()
    }

    fn spawn(&self, generation: Generation) {
        let reporter = self.reporter.of(generation);
        let command = (self.command)();
        let (child, output) = match process::spawn(&command, &[], OsSignal::SIGKILL) {
            Ok(spawned) => spawned,
            Err(error) => {
                let program = command.program().display();
                tracing::error!({ service.name = %self.name }, "start {program} ([[process]] {}): {error}", self.name);
                reporter.failed(Ending::Ended);
                return;
            }
        };
        let group = child.pid();
        oom::take_first(group);
        self.pid.set(Some(group));
        reporter.spawned(group);
        // It has no word for ready: that it is there is all that there is to say.
        reporter.ready();
        let (name, tail) = (self.name.clone(), self.tail.clone());
        let (pid, last_exit) = (self.pid.clone(), self.last_exit.clone());
        tokio::task::spawn_local(async move {
            let exit = service::attend_family(child, output, &name, &tail, OUTPUT_LIMIT).await;
            pid.set(None);
            last_exit.set(Some(exit));
            reporter.exited(Ending::Ended);
        });
    }
}

impl Companion {
    /// Carry out one action, without waiting.
    pub fn act(&self, action: ChildAction) {
        match action {
            ChildAction::Spawn(generation, _) => self.spawn(generation),
            ChildAction::Signal { pid, rung, .. } => {
                if self.pid.get() == Some(pid) {
                    service::signal(pid, rung);
                }
            }
            ChildAction::Disown(pid) => process::signal_group(pid, OsSignal::SIGKILL),
            ChildAction::Restart(delay) => {
                let how = self.last_exit().map_or("could not be started".into(), |exit| format!("ended: {exit}"));
                tracing::warn!({ service.name = %self.name }, "{how}; restart {}", service::after(delay));
            }
            ChildAction::GiveUp => tracing::error!({ service.name = %self.name }, "failed too often, rests"),
            // Its process is there in the turn in which it is asked for.
            ChildAction::CancelSpawn(_)
            | ChildAction::Abandon { .. }
            | ChildAction::Release
            | ChildAction::Withdraw => {}
        }
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.tail.lines()
    }
}
