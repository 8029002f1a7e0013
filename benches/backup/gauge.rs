//! What a command costs: time, processor time, memory.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;

/// Longest wait for a command; the slowest takes two minutes.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at the memory of what takes seconds.
pub const SLOW: Duration = Duration::from_millis(50);
/// Of what takes milliseconds.
pub const FAST: Duration = Duration::from_millis(1);
/// What of a failed command's words is shown, in bytes.
const TAIL: usize = 600;

/// What one command cost.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    pub seconds: f64,
    /// Of it and of those that it waited for, in seconds.
    pub cpu: f64,
    /// The most memory that it had itself, in MB.
    pub own: f64,
    /// The sum of that over it and all below it.
    pub all: f64,
    /// What it printed.
    pub said: String,
}

/// Run `command` to its successful end, and look at its memory so often.
pub fn run(command: &mut Command, look: Duration) -> Result<Cost> {
    let (mut said, mut errors) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let before = cpu()?;
    let began = Instant::now();
    let child = command.stdout(said.try_clone()?).stderr(errors.try_clone()?).spawn();
    let mut child = child.with_context(|| format!("start {}", command.get_program().display()))?;
    let pid = child.id();
    let (tell, told) = channel();
    let waiting = std::thread::spawn(move || {
        let status = child.wait();
        let _ = tell.send(Instant::now());
        status
    });
    let mut peaks = BTreeMap::new();
    let ended = loop {
        sample(pid, &mut peaks);
        match told.recv_timeout(look) {
            Ok(ended) => break ended,
            Err(RecvTimeoutError::Timeout) if began.elapsed() < LIMIT => {}
            Err(_) => {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
                bail!("{} did not end within {LIMIT:?}", command.get_program().display());
            }
        }
    };
    let Ok(status) = waiting.join() else { bail!("the thread that waits has panicked") };
    let read = |file: &mut fs::File| -> Result<String> {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (status, errors) = (status?, read(&mut errors)?);
    let end = errors.char_indices().rev().nth(TAIL).map_or(0, |(at, _)| at);
    ensure!(status.success(), "{}: {status}: {}", command.get_program().display(), errors[end..].trim());
    Ok(Cost {
        seconds: (ended - began).as_secs_f64(),
        cpu: cpu()? - before,
        own: peaks.get(&pid).copied().unwrap_or_default(),
        all: peaks.values().sum(),
        said: read(&mut said)?.trim_end().to_owned(),
    })
}

/// Processor time of all children that have ended, and of theirs, in seconds.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    #[expect(clippy::cast_precision_loss, reason = "hours, in microseconds")]
    let seconds = (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6;
    Ok(seconds)
}

/// Note the most memory that `pid`, and each process below it, has had so far, in MB.
fn sample(pid: u32, peaks: &mut BTreeMap<u32, f64>) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    if let Some(peak) = peak {
        let peak: f64 = peak;
        let most = peaks.entry(pid).or_default();
        *most = most.max(peak * 1024.0 / 1e6);
    }
    // Each thread lists those that it has started.
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            sample(child, peaks);
        }
    }
}
