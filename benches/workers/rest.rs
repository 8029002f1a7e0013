//! Starts, what a server costs when it has nothing to do, and how evenly the work falls on its workers when it has.

use std::time::Duration;

use anyhow::Result;

use crate::Turn;
use crate::figures::{median, number};
use crate::load::{Group, Kind, Load};
use crate::rolls::ms;
use crate::server::{Server, WORKERS, cpu, memory, pause};

pub const STARTED: &str = "start to answers of all four workers, ms";
const SHORT: &str = "busiest worker ÷ mean: 32 clients with short connections";
const LONG_LIVED: usize = 8;

pub fn rest(turn: &mut Turn) -> Result<()> {
    let site = turn.site()?;
    let mut times = Vec::new();
    if turn.peer.is_tandem() {
        // The first start makes the cluster, which the others have not got.
        Server::start(turn.peer, &site)?.stop()?;
    }
    let server = loop {
        let server = Server::start(turn.peer, &site)?;
        times.push(ms(server.started));
        if times.len() == turn.pace.starts {
            break server;
        }
        // One that does not stop as asked was killed; not all can be stopped as soon as they serve.
        let _ = server.stop();
    };
    turn.put(STARTED, &format!("**{}**", number(median(&times))));
    at_rest(turn, &server);
    spread(turn, site.port());
    let _ = server.stop();
    Ok(())
}

fn at_rest(turn: &mut Turn, server: &Server) {
    pause(Duration::from_secs(1));
    let (tree, database) = (server.tree(), server.database());
    let before = (cpu(&tree), cpu(&database));
    pause(turn.pace.rest);
    let spent = (cpu(&tree) - before.0, cpu(&database) - before.1);
    let (mine, beside) = (memory(&tree), memory(&database));
    let supervisor = memory(&[server.pid()]);
    let postgres =
        |value: f64| if database.is_empty() { String::new() } else { format!(", PostgreSQL {}", number(value)) };
    let text = format!("**{}** ({}{})", number(mine), number(supervisor), postgres(beside));
    turn.put("memory at rest, PSS of the tree (of that the supervisor), MB", &text);
    let text = format!("**{}**{}", number(spent.0 * 1000.0), postgres(spent.1 * 1000.0));
    turn.put(&format!("CPU time of the tree in {} s at rest, ms", turn.pace.rest.as_secs()), &text);
}

/// How evenly the work falls on the workers.
fn spread(turn: &mut Turn, port: u16) {
    let (short, long) = spreads(turn, port);
    turn.put(SHORT, &short);
    turn.put(&long_row(turn), &long);
}

fn long_row(turn: &Turn) -> String {
    format!("— {LONG_LIVED} long-lived connections, {} times", turn.pace.spreads)
}

fn spreads(turn: &Turn, port: u16) -> (String, String) {
    let short = Group { kind: Kind::New, clients: 32, pause: (0, 2_000) };
    let load = Load::start(port, &[short]);
    pause(turn.pace.spread);
    let busiest = load.stop().busiest(WORKERS);
    let kept = Group { kind: Kind::Busy, clients: LONG_LIVED, pause: (1_000, 300_000) };
    let one = |_| {
        // A new connection each round, at a time of its own; then all are equally busy.
        let load = Load::start(port, &[kept]);
        pause(turn.pace.spread);
        load.stop().busiest(WORKERS)
    };
    let rounds: Vec<f64> = (0..turn.pace.spreads).map(one).collect();
    let most = rounds.iter().copied().fold(0.0, f64::max);
    (number(busiest), format!("{} (at most {})", number(median(&rounds)), number(most)))
}
