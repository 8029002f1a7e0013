//! Companions: `[[process]]` entries, kept beside the workers. The boot does not wait for them, and their failure never
//! stops Tandem.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal as OsSignal;

use crate::config::{ProcessSettings, Workers};
use crate::event_loop::{self, Hangs};
use crate::exit::own_limit;
use crate::plan::{CommandLine, KILL_GRACE, Policy, Rung, STARVED_PAUSE, Signal};
use crate::process::{self, Child, Exit, Output, oom};
use crate::service::{self, Reporter, Start, Tail};
use crate::supervise::state::{ChildAction, Ending, Generation};

/// How long output of a process that has ended is still read.
const OUTPUT_LIMIT: Duration = Duration::from_millis(100);

/// Longest time for a process.
const SPAWN_LIMIT: Duration = Duration::from_secs(15);

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
        // It never retires.
        close_limit: Duration::ZERO,
        drain_limit: Duration::ZERO,
        drain_firm: Duration::ZERO,
        hang: Vec::new(),
        backoff_first: workers.backoff_first,
        backoff_step: workers.backoff_first.saturating_mul(2),
        backoff_max: workers.backoff_max,
        intensity: workers.restart_intensity as usize,
        period: workers.restart_period,
        start_intensity: workers.restart_intensity as usize,
        start_pause: Duration::ZERO,
        rest: workers.restart_period,
        abandon_limit: workers.ready_limit,
        starved_pause: STARVED_PAUSE,
    }
}

/// Makes a companion's command line, anew for each start: when all it needs is known.
pub type MakeCommand = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<CommandLine, Hangs>>>>>;

/// One companion. Its clones are the same companion.
#[derive(Clone)]
pub struct Companion(Rc<Inner>);

struct Inner {
    name: String,
    command: MakeCommand,
    reporter: Reporter,
    tail: Tail,
    start: Start,
    pid: Cell<Option<i32>>,
    last_exit: Cell<Option<Exit>>,
}

impl Companion {
    pub fn new(name: String, command: MakeCommand, reporter: Reporter) -> Self {
        let (tail, pid, last_exit) = (Tail::default(), Cell::default(), Cell::default());
        Self(Rc::new(Inner { name, command, reporter, tail, start: Start::default(), pid, last_exit }))
    }

    /// Its name, in the log and everywhere else.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How the last process ended, if one has.
    pub fn last_exit(&self) -> Option<Exit> {
        self.0.last_exit.get()
    }

    /// Start it, and report its life to its end.
    async fn run(self, generation: Generation) {
        let inner = &*self.0;
        let reporter = inner.reporter.of(generation);
        let (child, output) = match self.start().await {
            Ok(started) => started,
            Err(error) => {
                tracing::error!({ service.name = %inner.name }, "{error}");
                reporter.failed(Ending::Ended);
                return;
            }
        };
        let group = child.pid();
        oom::take_first(group);
        inner.pid.set(Some(group));
        inner.start.done();
        reporter.spawned(group);
        // It has no word for ready: that it is there is all that there is to say.
        reporter.ready();
        let exit = service::attend_family(child, output, &inner.name, &inner.tail, OUTPUT_LIMIT).await;
        inner.pid.set(None);
        inner.last_exit.set(Some(exit));
        reporter.exited(Ending::Ended);
    }

    async fn start(&self) -> io::Result<(Child, Output)> {
        let name = &self.0.name;
        let failed = |program: &str, error: io::Error| {
            let whose = own_limit(&error).map(|whose| format!(": {whose}")).unwrap_or_default();
            io::Error::new(error.kind(), format!("start {program} ([[process]] {name}): {error}{whose}"))
        };
        let command = (self.0.command)().await.map_err(|hangs| failed("its program", io::Error::other(hangs)))?;
        let started = process::spawn_aside(&command, &[], OsSignal::SIGKILL).await;
        started.map_err(|error| failed(&command.program().display().to_string(), error))
    }
}

impl Companion {
    /// Carry out one action, without waiting.
    pub fn act(&self, action: ChildAction) {
        match action {
            ChildAction::Spawn(generation, _) => {
                self.0.start.begun(&event_loop::spawn("a companion", self.clone().run(generation)));
            }
            ChildAction::CancelSpawn(generation) => {
                if self.0.start.cancel() {
                    self.0.reporter.of(generation).failed(Ending::Ended);
                }
            }
            ChildAction::Signal { pid, rung, .. } => {
                if self.0.pid.get() == Some(pid) {
                    service::signal(pid, rung);
                }
            }
            ChildAction::Disown(pid) => process::signal_group(pid, OsSignal::SIGKILL),
            ChildAction::Restart(delay) => {
                let how = self.last_exit().map_or("could not be started".into(), |exit| format!("ended: {exit}"));
                tracing::warn!({ service.name = %self.0.name }, "{how}; restart {}", service::after(delay));
            }
            ChildAction::GiveUp => tracing::error!({ service.name = %self.0.name }, "failed too often, rests"),
            ChildAction::Abandon { .. }
            | ChildAction::Unheard { .. }
            | ChildAction::Release
            | ChildAction::Withdraw => {}
        }
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.0.tail.lines()
    }
}
