//! The signals Tandem itself gets, as a stream of words.

use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook_tokio::Signals;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a signal asks Tandem to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// SIGTERM (Docker, Kubernetes, systemd), SIGINT (Ctrl-C), SIGHUP when the terminal is gone.
    Stop,
    /// SIGHUP (`systemctl reload`, `kill -HUP`): read the configuration again and replace the workers.
    Reload,
    /// SIGTTIN from a process (gunicorn's signals): one worker more. Two in quick succession may count as one.
    ScaleUp,
    /// SIGTTOU from a process: one worker less.
    ScaleDown,
    /// SIGCHLD: a child, ours or adopted, has ended.
    Reap,
}

/// The stream of signals. Made before the first child, so that no signal is missed.
pub struct Inbox {
    signals: Signals,
    scaling: AsyncFd<SignalFd>,
    /// Whether Tandem has a terminal; the kernel sends SIGHUP when a terminal goes away.
    terminal: bool,
    /// Whether Tandem was started with SIGHUP ignored, as nohup(1) does, and outlives the terminal.
    hangup_ignored: bool,
}

/// The signals that ask for more or fewer workers, when a process sends them.
///
/// The terminal driver sends them too, to background jobs that use the terminal, and repeats them as long as there is a
/// handler: with one, a job that writes to a terminal with `tostop` never returns from write(2). Where they are blocked,
/// the driver lets the job write (tty_ioctl(4), SIGTTOU). So Tandem blocks them and reads them from a descriptor.
fn scaling() -> SigSet {
    SigSet::from_iter([Signal::SIGTTIN, Signal::SIGTTOU])
}

/// Block the signals that [`Inbox`] reads. Call it before there is a second thread, which the signals would stop otherwise;
/// children get an empty mask from `process`.
pub fn block() {
    // It only fails for a bad argument.
    let _ = scaling().thread_block();
}

impl Inbox {
    /// Needs a running tokio runtime.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    #[expect(
        deprecated,
        reason = "its heir is unsafe for types that give up their descriptor, which SignalFd never does"
    )]
    pub fn open() -> std::io::Result<Self> {
        block();
        let hangup_ignored = ignores_hangup();
        let fd = SignalFd::with_flags(&scaling(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            signals: Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD])?,
            scaling: AsyncFd::with_interest(fd, Interest::READABLE)?,
            terminal: has_terminal(),
            hangup_ignored,
        })
    }

    /// The next request.
    pub async fn next(&mut self) -> Asked {
        loop {
            let signals = std::pin::Pin::new(&mut self.signals);
            let asked = tokio::select! {
                biased;
                asked = scaled(&self.scaling) => asked,
                signal = stream(signals) => match signal {
                    Some(SIGCHLD) => Some(Asked::Reap),
                    Some(SIGHUP) => self.hangup(),
                    Some(_) => Some(Asked::Stop),
                    None => std::future::pending().await,
                },
            };
            if let Some(asked) = asked {
                return asked;
            }
        }
    }

    /// What a SIGHUP means: the kernel sends it when the terminal closes, and so does the shell as it leaves.
    fn hangup(&mut self) -> Option<Asked> {
        if self.terminal && !has_terminal() {
            // The terminal goes away once: a later SIGHUP asks for a reload.
            self.terminal = false;
            tracing::info!(
                "the terminal is gone{}",
                if self.hangup_ignored { "; SIGHUP was ignored at the start, so Tandem goes on" } else { "" }
            );
            return (!self.hangup_ignored).then_some(Asked::Stop);
        }
        tracing::info!("SIGHUP: reload");
        Some(Asked::Reload)
    }
}

/// The signals that `tandem test` passes on to its command, with those that tell of a child.
pub struct Passing(Signals);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Send it on as it came.
    On(Signal),
    /// SIGCHLD: a child has ended, or was stopped.
    Child,
}

impl Passing {
    /// Needs a running tokio runtime.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn open() -> std::io::Result<Self> {
        let others = [SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH];
        Ok(Self(Signals::new([SIGTERM, SIGINT, SIGHUP, SIGCHLD].into_iter().chain(others))?))
    }

    /// The next one.
    pub async fn next(&mut self) -> Passed {
        loop {
            match stream(std::pin::Pin::new(&mut self.0)).await.map(Signal::try_from) {
                Some(Ok(Signal::SIGCHLD)) => return Passed::Child,
                Some(Ok(signal)) => return Passed::On(signal),
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

async fn stream(signals: std::pin::Pin<&mut Signals>) -> Option<i32> {
    let mut signals = signals;
    std::future::poll_fn(|context| futures_core::Stream::poll_next(signals.as_mut(), context)).await
}

/// The next request for more or fewer workers; `None` for what the terminal driver sent.
async fn scaled(fd: &AsyncFd<SignalFd>) -> Option<Asked> {
    let read = |fd: &SignalFd| match fd.read_signal()? {
        Some(info) => Ok(info),
        None => Err(std::io::ErrorKind::WouldBlock.into()),
    };
    let info = match fd.async_io(Interest::READABLE, read).await {
        Ok(info) => info,
        Err(error) => {
            tracing::error!(fd = ?fd.as_fd(), "read signals: {error}");
            return std::future::pending().await;
        }
    };
    let (asked, name) = match Signal::try_from(info.ssi_signo.cast_signed()) {
        Ok(Signal::SIGTTIN) => (Asked::ScaleUp, "SIGTTIN: one worker more"),
        Ok(Signal::SIGTTOU) => (Asked::ScaleDown, "SIGTTOU: one worker less"),
        _ => return None,
    };
    // Positive codes are the kernel's own (sigaction(2), "si_code").
    let sent = info.ssi_code <= 0;
    if sent {
        tracing::info!(sender.pid = info.ssi_pid, "{name}");
    }
    sent.then_some(asked)
}

/// Whether this process has a controlling terminal, which `/dev/tty` opens (tty(4)).
fn has_terminal() -> bool {
    // Blocks: never, this device waits for nothing.
    std::fs::File::open("/dev/tty").is_ok()
}

/// Whether Tandem was started with SIGHUP ignored.
fn ignores_hangup() -> bool {
    // Blocks: before the loop turns, and for nothing.
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    status.is_ok_and(|status| status.sigign & (1 << (SIGHUP - 1)) != 0)
}
