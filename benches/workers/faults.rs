//! Faults: a worker killed, a worker that hangs, the supervisor killed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Turn;
use crate::figures::{median, number};
use crate::load::{Kind, Load, MIX};
use crate::rolls::ms;
use crate::server::{PROBES, Server, WORKERS, lives, pause, wait_until, workers};

pub const KILLED: &str = "`kill -9` of a worker: ms until a new one answers";
pub const BLOCKED: &str = "event loop blocked for good: noticed, replaced after";
pub const ORPHANS: &str = "`kill -9` of the supervisor: processes left after 3 s";
const REPLACED_LIMIT: Duration = Duration::from_secs(20);
const ORPHANED: Duration = Duration::from_secs(3);

/// One worker after the other is killed, under load.
pub fn kill_worker(turn: &mut Turn) -> Result<()> {
    let site = turn.site()?;
    let mut server = Server::start(turn.peer, &site)?;
    let load = Load::start(site.port(), &MIX);
    let mut times = Vec::new();
    let mut trouble = None;
    for _ in 0..turn.pace.kills {
        wait_until("all workers", REPLACED_LIMIT, || Ok(workers(&load).len() >= WORKERS))?;
        // Each has connections that it keeps by then.
        pause(Duration::from_secs(1));
        let victim = workers(&load).into_iter().next().context("nobody answers")?;
        let killed = Instant::now();
        kill(Pid::from_raw(victim), Signal::SIGKILL)?;
        let replaced = wait_until("a new worker", REPLACED_LIMIT, || {
            server.check()?;
            Ok(load.seen().iter().any(|(_, first)| *first > killed))
        });
        if let Err(error) = replaced {
            trouble = Some(format!("{error:#}"));
            break;
        }
        let first = load.seen().into_iter().map(|(_, first)| first).filter(|first| *first > killed).min();
        times.extend(first.map(|first| ms(first - killed)));
    }
    let tally = load.stop();
    let note = trouble.map_or_else(String::new, |trouble| format!("**{trouble}**"));
    let time = if times.is_empty() { String::new() } else { format!("**{}** ", number(median(&times))) };
    turn.put(KILLED, format!("{time}{note}").trim());
    let all = tally.all();
    let why = if all.failed == 0 { String::new() } else { format!(" ({})", tally.why()) };
    let kinds: Vec<String> = Kind::ALL.iter().map(|kind| tally.of(*kind).failed.to_string()).collect();
    turn.put(
        &format!("— requests failed by {} kills: new, busy, idle, pipelined", turn.pace.kills),
        &format!("{}{why}", kinds.join(", ")),
    );
    // What was in flight on the one that died may fail, and of these clients it has one at most, as a rule.
    let met = tally.of(Kind::New).failed <= turn.pace.kills as u64;
    turn.goal("kill -9 of a worker fails nobody who connects anew", met);
    turn.put("— longest time without any answer, ms", &number(ms(tally.gap)));
    drop(server);
    Ok(())
}

/// A request blocks the event loop of its worker and never lets go.
pub fn block(turn: &mut Turn) -> Result<()> {
    let site = turn.site()?;
    let server = Server::start(turn.peer, &site)?;
    let load = Load::start(site.port(), &MIX);
    wait_until("all workers", REPLACED_LIMIT, || Ok(workers(&load).len() >= WORKERS))?;
    // It has connections of others by then.
    pause(Duration::from_secs(1));
    let (victim, _connection) = block_one(site.port()).context("block a worker")?;
    let began = Instant::now();
    let noticed = wait_until("the end of the worker", turn.pace.blocked, || Ok(!lives(victim)));
    let noticed = noticed.ok().map(|()| began.elapsed());
    let replaced = noticed.and_then(|_| {
        let new = wait_until("a new worker", REPLACED_LIMIT, || {
            Ok(load.seen().iter().any(|(_, first)| *first > began) && workers(&load).len() >= WORKERS)
        });
        new.ok().map(|()| began.elapsed())
    });
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let text = match (noticed, replaced) {
        (Some(noticed), Some(replaced)) => format!("**{}**, {}", seconds(noticed), seconds(replaced)),
        (Some(noticed), None) => format!("**{}**, not replaced", seconds(noticed)),
        (None, _) => format!("**never** ({} s)", turn.pace.blocked.as_secs()),
    };
    turn.put(BLOCKED, &text);
    let tally = load.stop();
    let all = tally.all();
    let why = if all.failed == 0 { String::new() } else { format!(" ({})", tally.why()) };
    turn.put("— requests of others failed", &format!("{} of {}{why}", all.failed, all.asked));
    turn.goal("a blocked event loop is noticed", noticed.is_some());
    drop(server);
    Ok(())
}

/// Block the worker that a connection leads to. Returns its process id and the connection.
fn block_one(port: u16) -> Result<(i32, TcpStream)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /pid HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let mut answer = String::new();
    let mut part = [0; 1024];
    let pid = loop {
        let size = stream.read(&mut part)?;
        ensure!(size > 0, "the connection ended");
        answer.push_str(&String::from_utf8_lossy(&part[..size]));
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim());
        if let Some(Ok(pid)) = body.filter(|body| !body.is_empty()).map(str::parse) {
            break pid;
        }
    };
    // The same connection leads to the same worker.
    stream.write_all(b"GET /block HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    Ok((pid, stream))
}

/// The supervisor is killed, and what is left of it.
pub fn kill_supervisor(turn: &mut Turn) -> Result<()> {
    let site = turn.site()?;
    let server = Server::start(turn.peer, &site)?;
    let below: Vec<i32> =
        server.tree().into_iter().chain(server.database()).filter(|pid| *pid != server.pid()).collect();
    let began = Instant::now();
    kill(Pid::from_raw(server.pid()), Signal::SIGKILL)?;
    let left = || below.iter().filter(|pid| lives(**pid)).count();
    let gone = wait_until("their end", ORPHANED, || Ok(left() == 0)).ok().map(|()| began.elapsed());
    let load = Load::start(site.port(), &PROBES);
    pause(Duration::from_millis(500));
    let served = load.stop().good() > 0;
    let text = match gone {
        Some(gone) => format!("**0** of {}, all gone after {} ms", below.len(), number(ms(gone))),
        None => format!("**{}** of {}", left(), below.len()),
    };
    turn.put(ORPHANS, &text);
    turn.put("— the port is still served", if served { "yes" } else { "no" });
    turn.goal("no process outlives the supervisor", left() == 0);
    drop(server);
    Ok(())
}
