//! The template: a process that has imported the application once, and forks workers off (`template.py`).
//!
//! A forked worker is Tandem's own child: it is forked twice, and Tandem becomes its parent when the process in between
//! ends. It outlives the template, and has all that a spawned worker has: gate, lifeline, notices, its own process group.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal as OsSignal;
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::gate::Gate;
use super::launch::Launch;
use super::life::{Life, Roster, Started};
use super::notify::NotifySocket;
use super::surroundings::Variables;
use crate::event_loop;
use crate::process::fd_channel::{self, Channel};
use crate::process::{self, InheritedFd, mark, orphans};
use crate::service::{Reporter, Start};
use crate::supervise::state::{ChildAction, Generation, Intent};

/// The service's name, in the log and everywhere else.
pub const NAME: &str = "template";

/// A fork takes milliseconds; a template that takes longer than this hangs.
const FORK_LIMIT: Duration = Duration::from_secs(10);

/// The template, as a service. Its clones are the same template.
#[derive(Clone)]
pub struct Template {
    launch: Rc<Launch>,
    life: Life,
    /// To the process that is there now.
    channel: Rc<RefCell<Option<ForkChannel>>>,
    start: Start,
}

/// One request at a time; empty once one was left unanswered, for its answer would be taken for the next one's.
type ForkChannel = Rc<Mutex<Option<Channel>>>;

#[derive(Serialize)]
struct ForkRequest<'a> {
    slot: usize,
    environment: serde_json::Map<String, serde_json::Value>,
    #[serde(skip)]
    fds: [&'a OwnedFd; 4],
}

#[derive(Deserialize)]
struct ForkAnswer {
    slot: usize,
    pid: Option<i32>,
    error: Option<String>,
}

impl Template {
    /// The template of `launch`.
    pub fn new(launch: Rc<Launch>, roster: Roster, reporter: Reporter) -> Self {
        let life = Life::of_template(NAME.to_owned(), roster, reporter);
        Self { launch, life, channel: Rc::default(), start: Start::default() }
    }

    /// Whether workers can be forked now.
    pub fn is_ready(&self) -> bool {
        self.life.is_ready()
    }

    /// The process's life: its last exit, whether it is unstartable.
    pub fn life(&self) -> &Life {
        &self.life
    }

    /// Fork a worker for `slot`, which gets `environment` on top of the template's own and waits at its gate. At most
    /// 10 s; Tandem must be a child subreaper ([`orphans::adopt`]).
    ///
    /// # Errors
    /// The template is not ready, could not fork, or did not answer: then it is let go of, and ends.
    pub async fn fork(&self, slot: usize, environment: Variables) -> io::Result<Started> {
        let place = self.channel.borrow().clone().filter(|_| self.is_ready());
        let place = place.ok_or_else(|| io::Error::other("the template is not ready"))?;
        let (gate, gate_end) = Gate::new()?;
        let (notify, notify_end) = NotifySocket::pair()?;
        let (stdout, stdout_end) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, stderr_end) = pipe2(OFlag::O_CLOEXEC)?;
        let mark = mark::next(false);
        let marked = mark.iter().map(|mark| (mark::NAME.to_owned(), mark.to_string().into()));
        let environment = environment.values().into_iter().map(|(name, value)| (name, value.into()));
        let environment = environment.chain(marked).collect();
        let request = ForkRequest { slot, environment, fds: [&gate_end, &stdout_end, &stderr_end, &notify_end] };
        let asked = async {
            let mut place = place.lock().await;
            // Put back only with its answer, so that a request that was given up leaves nothing to mistake.
            let channel = place.take().ok_or_else(|| io::Error::other("the template did not answer before"))?;
            let hold = orphans::hold();
            let answer = ask(&channel, &request).await?;
            *place = Some(channel);
            io::Result::Ok((answer, hold))
        };
        let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the template did not answer in time"));
        let (answer, _hold) = tokio::time::timeout(FORK_LIMIT, asked).await.unwrap_or_else(late)?;
        let pid = answer.pid.ok_or_else(|| io::Error::other(answer.error.unwrap_or_default()))?;
        let parent = self.life.pid().ok_or_else(|| io::Error::other("the template ended"))?;
        let (child, output) = process::adopt(pid, parent, stdout, stderr, mark)?;
        Ok(Started { child, output, gate: Some(gate), notify: Some(notify) })
    }

    async fn try_spawn(&self, of: (Generation, Intent)) -> io::Result<()> {
        let mut inherited = self.launch.listeners()?;
        let (gate, gate_end) = Gate::new()?;
        let (notify, notify_end) = NotifySocket::pair()?;
        let (gate_end, notify_end) = (InheritedFd(Arc::new(gate_end)), InheritedFd(Arc::new(notify_end)));
        let (channel, theirs) = fd_channel::pair()?;
        let theirs = InheritedFd(Arc::new(theirs));
        let command = self.launch.aside(|launch| launch.template_environment().apply(launch.template())).await?;
        let command = command
            .env("TANDEM_LISTEN_FD", InheritedFd::numbers(&inherited))
            .env("TANDEM_GATE_FD", gate_end.number().to_string())
            .env("TANDEM_NOTIFY_FD", notify_end.number().to_string())
            .env("TANDEM_FORK_FD", theirs.number().to_string());
        inherited.extend([gate_end, notify_end, theirs]);
        let (mut child, output) = process::spawn_aside(&command, &inherited, OsSignal::SIGKILL).await?;
        child.share_mark();
        *self.channel.borrow_mut() = Some(Rc::new(Mutex::new(Some(channel))));
        self.life.begin(Started { child, output, gate: Some(gate), notify: Some(notify) }, of);
        Ok(())
    }
}

/// Ask for one worker, over a channel on which nothing else is under way.
async fn ask(channel: &Channel, request: &ForkRequest<'_>) -> io::Result<ForkAnswer> {
    channel.send(&serde_json::to_vec(request)?, &request.fds.map(AsFd::as_fd)).await?;
    let answer = channel.recv().await?.ok_or_else(|| io::Error::other("the template ended"))?;
    let answer: ForkAnswer = serde_json::from_slice(&answer)?;
    if answer.slot != request.slot {
        return Err(io::Error::other(format!("the template answered for slot {}", answer.slot)));
    }
    Ok(answer)
}

impl Template {
    /// Carry out one action, without waiting.
    pub fn act(&self, action: ChildAction) {
        match action {
            ChildAction::Spawn(generation, intent) => {
                let template = self.clone();
                let task = event_loop::spawn("the start of the template", async move {
                    if let Err(error) = template.try_spawn((generation, intent)).await {
                        template.life.fail(generation, &error);
                    }
                });
                self.start.begun(&task);
            }
            ChildAction::CancelSpawn(generation) => {
                self.start.cancel();
                self.life.cancelled(generation);
            }
            other => self.life.act(other),
        }
    }

    /// The last lines it printed, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.life.tail()
    }
}
