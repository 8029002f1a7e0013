//! Requests a second, and how long one takes. The servers stand side by side and take turns, so that what else the machine
//! does meets them all alike.

use std::time::Instant;

use anyhow::Result;

use crate::Together;
use crate::figures::{median, number, quantile};
use crate::load::{Group, Kind, Load};
use crate::peers::{Peer, Site};
use crate::server::{Server, pause};

pub const MEASURED: &str = "requests a second: keep-alive, 32 clients back to back";
/// Tandem's throughput, as a share of Uvicorn's with as many workers.
const SHARE_MIN: f64 = 0.98;

/// The kernel's connection tracking, where it is loaded, remembers an ended connection for two minutes, and drops packets
/// once it remembers as many as it may: new connections then wait a second for their next try.
const TRACKING_MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// What all turns of all servers need.
const TRACKED_MIN: u64 = 2_000_000;

/// What the clients do, the least pause being none. Paced, they leave the servers time between two requests.
struct Way {
    what: &'static str,
    kind: Kind,
    clients: usize,
    pause_max: u64,
}

const WAYS: [Way; 5] = [
    Way { what: "keep-alive, 32 clients back to back", kind: Kind::Busy, clients: 32, pause_max: 0 },
    Way { what: "new connections, 32 clients back to back", kind: Kind::New, clients: 32, pause_max: 0 },
    Way { what: "keep-alive, 16 clients, some 1,600/s", kind: Kind::Busy, clients: 16, pause_max: 20_000 },
    Way { what: "new connections, 16 clients, some 1,600/s", kind: Kind::New, clients: 16, pause_max: 20_000 },
    Way { what: "keep-alive, one client back to back", kind: Kind::Busy, clients: 1, pause_max: 0 },
];

/// What one server did in one way.
#[derive(Clone, Default)]
struct Found {
    /// Requests a second of each turn.
    rates: Vec<f64>,
    /// Of all turns, in milliseconds.
    latencies: Vec<f64>,
    failed: u64,
}

pub fn throughput(together: &mut Together) -> Result<()> {
    let tracked = std::fs::read_to_string(TRACKING_MAX).ok().and_then(|text| text.trim().parse().ok());
    if let Some(few) = tracked.filter(|max: &u64| *max < TRACKED_MIN) {
        let need =
            format!("new connections: the kernel tracks {few}; set net.netfilter.nf_conntrack_max to {TRACKED_MIN}");
        together.goal(&need, false);
    }
    let sites: Vec<Site> = together.peers.iter().map(|_| Site::new(together.venv, "")).collect::<Result<_>>()?;
    let mut servers = Vec::new();
    for (column, (peer, site)) in together.peers.iter().zip(&sites).enumerate() {
        match Server::start(peer, site) {
            Ok(server) => servers.push((column, server)),
            Err(error) => together.put(MEASURED, column, &format!("not measured: {error:#}")),
        }
    }
    for way in &WAYS {
        let mut found = vec![Found::default(); together.peers.len()];
        for turn in 0..together.pace.turns {
            // Another one is first each time.
            for at in 0..servers.len() {
                let (column, server) = &servers[(at + turn) % servers.len()];
                one_turn(way, server, together, &mut found[*column]);
            }
        }
        tell(together, way, &mut found);
    }
    for (_, server) in servers {
        let _ = server.stop();
    }
    Ok(())
}

fn one_turn(way: &Way, server: &Server, together: &Together, found: &mut Found) {
    let group = Group { kind: way.kind, clients: way.clients, pause: (0, way.pause_max) };
    let (began, load) = (Instant::now(), Load::start(server.site.port(), &[group]));
    pause(together.pace.turn);
    let tally = load.stop();
    found.rates.push(tally.good() as f64 / began.elapsed().as_secs_f64());
    found.latencies.extend_from_slice(tally.latencies(way.kind));
    found.failed += tally.all().failed;
}

fn tell(together: &mut Together, way: &Way, found: &mut [Found]) {
    let uvicorn = together.peers.iter().position(|peer| peer.name == "uvicorn");
    let mut limits = vec![None; found.len()];
    for (column, found) in found.iter_mut().enumerate().filter(|(_, found)| !found.latencies.is_empty()) {
        found.latencies.sort_by(f64::total_cmp);
        limits[column] = Some([0.5, 0.99, 0.999].map(|part| quantile(&found.latencies, part)));
    }
    let rates = format!("requests a second: {}", way.what);
    let times = format!("— p50, p99, p99.9 of one, ms: {}", way.what);
    for (column, found) in found.iter().enumerate() {
        let Some([p50, p99, p999]) = limits[column] else { continue };
        let failed = if found.failed == 0 { String::new() } else { format!(" ({} failed)", found.failed) };
        // Where the clients' pauses set the pace, the rate says nothing of the server.
        if way.pause_max == 0 {
            together.put(&rates, column, &format!("**{}**{failed}", number(median(&found.rates))));
        }
        together.put(&times, column, &format!("**{}**, {}, {}{failed}", number(p50), number(p99), number(p999)));
    }
    let tandem = together.peers.iter().position(Peer::is_tandem);
    let (Some(tandem), Some(uvicorn)) = (tandem, uvicorn) else { return };
    let (Some(own), Some(its)) = (limits[tandem], limits[uvicorn]) else { return };
    if way.pause_max == 0 {
        // Turn by turn: what else the machine does changes more slowly.
        let shares: Vec<f64> = found[tandem].rates.iter().zip(&found[uvicorn].rates).map(|(a, b)| a / b).collect();
        let share = median(&shares);
        together.put(&format!("— the same, Tandem ÷ uvicorn: {}", way.what), tandem, &format!("**{share:.3}**"));
        together.goal(
            &format!("{}: Tandem's throughput is at least {SHARE_MIN} × Uvicorn's", way.what),
            share >= SHARE_MIN,
        );
    }
    together.goal(&format!("{}: p99 is no more than Uvicorn's", way.what), own[1] <= its[1]);
}
