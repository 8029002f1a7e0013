//! Tandem with and without `workers.preload`, on the reference backend: a real import is what preloading saves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Turn;
use crate::common::project::Project;
use crate::figures::{median, number};
use crate::load::Load;
use crate::peers::Site;
use crate::rolls::ms;
use crate::server::{PROBES, Server, WORKERS, memory, pause, wait_until, workers};

pub const STARTED: &str = "reference backend, without and with preload: start to answers of all four, ms";
const LIMIT: Duration = Duration::from_secs(30);

/// One of the two ways.
struct Way {
    started: Vec<f64>,
    memory: f64,
    reloaded: Vec<f64>,
    replaced: Vec<f64>,
}

pub fn preload(turn: &mut Turn) -> Result<()> {
    let without = measure(turn, "").context("without preload")?;
    let with = measure(turn, "workers.preload = true\n").context("with preload")?;
    let both = |pick: fn(&Way) -> f64| format!("{}, **{}**", number(pick(&without)), number(pick(&with)));
    turn.put(STARTED, &both(|way| median(&way.started)));
    turn.put("— memory of workers and template (PSS), MB", &both(|way| way.memory));
    turn.put("— `tandem reload` of all four, nothing else to do: ms", &both(|way| median(&way.reloaded)));
    turn.put("— `kill -9` of a worker: ms until a new one answers", &both(|way| median(&way.replaced)));
    turn.goal("preload: a killed worker is ready again within 50 ms", median(&with.replaced) <= 50.0);
    Ok(())
}

fn measure(turn: &Turn, lines: &str) -> Result<Way> {
    let project = Project::backend_with(lines);
    let site = Site { project, venv: turn.venv.to_path_buf() };
    Server::start(turn.peer, &site)?.stop()?;
    let mut started = Vec::new();
    let mut server = loop {
        let server = Server::start(turn.peer, &site)?;
        started.push(ms(server.started));
        if started.len() == turn.pace.starts {
            break server;
        }
        server.stop()?;
    };
    pause(Duration::from_secs(1));
    let below: Vec<i32> = server.tree().into_iter().filter(|pid| *pid != server.pid()).collect();
    let memory = memory(&below);
    let mut reloaded = Vec::new();
    for _ in 0..turn.pace.starts {
        let began = Instant::now();
        let told = server.roll()?;
        ensure!(told.code == 0, "tandem reload: {}", told.said);
        reloaded.push(ms(began.elapsed()));
    }
    let load = Load::start(site.port(), &PROBES);
    let mut replaced = Vec::new();
    for _ in 0..turn.pace.kills {
        wait_until("all workers", LIMIT, || Ok(workers(&load).len() >= WORKERS))?;
        let victim = workers(&load).into_iter().next().context("nobody answers")?;
        let killed = Instant::now();
        kill(Pid::from_raw(victim), Signal::SIGKILL)?;
        let first = || load.seen().into_iter().map(|(_, first)| first).filter(|first| *first > killed).min();
        wait_until("a new worker", LIMIT, || {
            server.check()?;
            Ok(first().is_some())
        })?;
        replaced.extend(first().map(|first| ms(first - killed)));
    }
    load.stop();
    server.stop()?;
    Ok(Way { started, memory, reloaded, replaced })
}
