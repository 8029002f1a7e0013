//! Starts children without waiting for them on the event loop.
//!
//! std's `Command::spawn` returns after the child has executed its program. So it waits for the disks of the working
//! directory and of the program, which may hang. Threads of this room call it. They never end, because the kernel sends a
//! child's death signal when the *thread* that spawned it ends (prctl(2), PR_SET_PDEATHSIG).

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::child::{Child, Output};
use super::orphans;
use super::spawn::{InheritedFd, signal_group, spawn};
use crate::event_loop::Call;
use crate::plan::CommandLine;

/// How long fork(2), chdir(2) and execve(2) may take. If no disk hangs, they take milliseconds.
const SPAWN_LIMIT: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The threads that have nothing to do.
static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());

/// As [`super::spawn()`], on another thread: for everything that runs on the event loop.
///
/// # Errors
/// As [`super::spawn()`]; `TimedOut` when the program or its directory does not answer within 10 s, or did not at an
/// earlier try that still hangs. A child that is started after that is killed.
pub async fn spawn_aside(command: &CommandLine, fds: &[InheritedFd], death: Signal) -> io::Result<(Child, Output)> {
    let dir = command.dir.as_ref().map(|dir| format!(" in {}", dir.display())).unwrap_or_default();
    let what = format!("start {}{dir}", command.program().display());
    let late = |hangs| io::Error::new(io::ErrorKind::TimedOut, hangs);
    let (call, running) = Call::begin(what).map_err(late)?;
    // What ends before it is known as a child of ours must not be reaped as a stranger.
    let _hold = orphans::hold();
    let (sender, started) = oneshot::channel();
    let (command, fds, runtime) = (command.clone(), fds.to_vec(), Handle::current());
    let job = move || {
        let _runtime = runtime.enter();
        let spawned = spawn(&command, &fds, death);
        drop(running);
        if let Err(Ok((child, _output))) = sender.send(spawned) {
            // The caller does not wait for it any more.
            signal_group(child.pid(), Signal::SIGKILL);
        }
    };
    hand_over(Box::new(job))?;
    let mut started = Started(started);
    call.wait(SPAWN_LIMIT, async { (&mut started.0).await.ok() }).await.map_err(late)?
}

/// A child on its way. It may come in the moment in which it is not waited for any more: then it is killed.
struct Started(oneshot::Receiver<io::Result<(Child, Output)>>);

impl Drop for Started {
    fn drop(&mut self) {
        if let Ok(Ok((child, _output))) = self.0.try_recv() {
            signal_group(child.pid(), Signal::SIGKILL);
        }
    }
}

/// Let an idle thread do `job`, or a new one where each is busy.
fn hand_over(job: Job) -> io::Result<()> {
    let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let thread = match idle {
        Some(thread) => thread,
        None => {
            let (sender, jobs) = channel::<Job>();
            let own = sender.clone();
            let work = move || {
                // It has a sender itself, so this never ends.
                while let Ok(job) = jobs.recv() {
                    job();
                    IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(own.clone());
                }
            };
            std::thread::Builder::new().name("spawner".into()).spawn(work)?;
            sender
        }
    };
    thread.send(job).map_err(|_| io::Error::other("the thread that starts children is gone"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Exit;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_child_is_started_and_what_cannot_be_started_is_told() {
        let command = CommandLine::new("sh").args(["-c", "echo hello; exit 3"]);
        let (mut child, output) = spawn_aside(&command, &[], Signal::SIGKILL).await.unwrap();
        let mut said = Vec::new();
        super::super::lines(output.stdout.unwrap(), |line| said.push(line.to_owned())).await;
        assert_eq!(said, ["hello"]);
        assert_eq!(tokio::time::timeout(LIMIT, child.wait()).await.unwrap(), Exit::Code(3));
        let absent = spawn_aside(&CommandLine::new("/no/such/program"), &[], Signal::SIGKILL).await;
        assert_eq!(absent.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_child_outlives_the_runtime_that_asked_for_it_and_dies_with_nobody_waiting() {
        // The thread that spawned it is no thread of the runtime, so its death signal does not come.
        let pid = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let command = CommandLine::new("sleep").arg("1000");
            let (child, _output) = runtime.block_on(spawn_aside(&command, &[], Signal::SIGKILL)).unwrap();
            child.pid()
        });
        let pid = pid.join().unwrap();
        assert_eq!(super::super::group_of(pid), Some(pid), "it lives");
        // Its handle went with the thread, so it is no child that `signal_group` would signal.
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        tokio::time::timeout(LIMIT, super::super::ended(pid)).await.unwrap();
    }
}
