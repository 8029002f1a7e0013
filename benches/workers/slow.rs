//! Requests that take longer than any drain, while their worker is being replaced.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Together;
use crate::peers::Site;
use crate::server::{Server, pause};

pub const FAILED: &str = "a roll with eight requests of 45 s in flight: failed";
pub const SLOW_CLIENTS: usize = 8;
/// On top of what the answer takes.
const PATIENCE: Duration = Duration::from_secs(15);
/// For the requests to be on their way before the roll.
const HEAD_START: Duration = Duration::from_secs(1);

/// Clients with one slow request after the other, each over a connection of its own.
pub struct Slow {
    over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Counts>>,
}

#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub asked: u64,
    pub failed: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "**{}** of {}", self.failed, self.asked)
    }
}

impl Slow {
    pub fn start(port: u16, clients: usize, takes: Duration) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let one = |_| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || client(port, takes, &over))
        };
        let clients = (0..clients).map(one).collect();
        Self { over, clients }
    }

    /// What is in flight is the last.
    pub fn ask_no_more(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Wait for the answers to what is in flight, and count.
    pub fn stop(self) -> Counts {
        self.ask_no_more();
        let counts = self.clients.into_iter().map(|client| client.join().expect("a client does not panic"));
        counts.fold(Counts::default(), |sum, one| Counts {
            asked: sum.asked + one.asked,
            failed: sum.failed + one.failed,
        })
    }
}

/// At least one request.
fn client(port: u16, takes: Duration, over: &AtomicBool) -> Counts {
    let mut counts = Counts::default();
    loop {
        counts.asked += 1;
        if ask(port, takes).is_err() {
            counts.failed += 1;
            // A port that refuses would be asked as fast as the loop turns.
            pause(HEAD_START);
        }
        if over.load(Ordering::Relaxed) {
            return counts;
        }
    }
}

/// An answer of 200 that is whole: the application's body is the digits of a process id.
fn ask(port: u16, takes: Duration) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(takes + PATIENCE))?;
    let path = format!("/slow/{}", takes.as_secs());
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim()).context("no whole head")?;
    anyhow::ensure!(answer.starts_with("HTTP/1.1 200 ") && body.parse::<i32>().is_ok(), "{answer}");
    Ok(())
}

/// Every server rolls once, all in the same minute: they have nothing to do but to wait.
pub fn slow(together: &mut Together) -> Result<()> {
    let sites: Vec<Site> = together.peers.iter().map(|_| Site::new(together.venv, "")).collect::<Result<_>>()?;
    let mut at_work = Vec::new();
    for (column, (peer, site)) in together.peers.iter().zip(&sites).enumerate() {
        match Server::start(peer, site) {
            Ok(server) => at_work.push((column, server)),
            Err(error) => together.put(FAILED, column, &format!("not measured: {error:#}")),
        }
    }
    let clients: Vec<Slow> =
        at_work.iter().map(|(_, server)| Slow::start(server.site.port(), SLOW_CLIENTS, together.pace.slow)).collect();
    pause(HEAD_START);
    clients.iter().for_each(Slow::ask_no_more);
    for (column, server) in &at_work {
        if let Err(error) = server.roll() {
            together.put("— and then", *column, &format!("{error:#}"));
        }
    }
    for ((column, _), clients) in at_work.iter().zip(clients) {
        let counts = clients.stop();
        let quick = if together.pace.quick { format!(" of {} s", together.pace.slow.as_secs()) } else { String::new() };
        together.put(FAILED, *column, &format!("{counts}{quick}"));
        if together.peers[*column].is_tandem() {
            together.goal("a roll fails no request of 45 s", counts.failed == 0);
        }
    }
    Ok(())
}
