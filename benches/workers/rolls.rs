//! Planned changes under load: rolls back to back, and a roll onto code that does not start.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::load::{Kind, Load, MIX, Tally};
use crate::server::{PROBES, Server, Told, WORKERS, lives, pause, wait_until, workers};
use crate::slow::{SLOW_CLIENTS, Slow};
use crate::{Turn, figures::number};

pub const RELOADED: &str = "new code for four workers, little to do: s until all are new, and none is left of the old";
pub const FAILED: &str = "rolls back to back: requests failed";
pub const BROKEN: &str = "roll onto code that does not start: requests failed";
pub const LONG: &str = "many rolls back to back: requests failed";
const PAUSE_MAX: Duration = Duration::from_millis(20);
const ROLL_LIMIT: Duration = Duration::from_secs(30);
/// No run of rolls takes longer.
const LONG_LIMIT: Duration = Duration::from_secs(360);
/// What is looked at to say whether a server serves.
const LOOK: Duration = Duration::from_secs(2);
/// EX_USAGE of sysexits.h.
const COMMAND_UNKNOWN: i32 = 64;
const NO_CODE: &str = "import a_module_that_nobody_has\n";

/// Rolls for a while, one as soon as the one before is over.
pub fn rolls(turn: &mut Turn) -> Result<()> {
    let site = turn.site()?;
    let mut server = Server::start(turn.peer, &site)?;
    reload(turn, &mut server)?;
    let load = Load::start(site.port(), &MIX);
    pause(LOOK);
    let (began, mut rolls, mut trouble) = (Instant::now(), 0, None);
    while began.elapsed() < turn.pace.rolling {
        if let Err(error) = roll(&mut server, &load) {
            if rolls == 0 && load.tally().all().failed == 0 {
                return Err(error.context("the first roll"));
            }
            trouble = Some(format!("{error:#}"));
            break;
        }
        rolls += 1;
    }
    let each = began.elapsed() / rolls.max(1);
    // What the last one does to connections that were kept shows when they are used next.
    pause(Duration::from_secs(1));
    let tally = load.stop();
    say(turn, FAILED, &tally);
    for kind in Kind::ALL {
        let counts = tally.of(kind);
        turn.put(&format!("— {}", kind.name()), &format!("{} of {}", counts.failed, counts.asked));
    }
    say_gap(turn, &tally);
    let swaps = tally.workers.len().saturating_sub(WORKERS);
    let note = trouble.map_or_else(String::new, |trouble| format!("; then: {trouble}"));
    turn.put(
        "— rolls, worker swaps, seconds for a roll",
        &format!("{rolls}, {swaps}, {:.1}{note}", each.as_secs_f64()),
    );
    turn.goal("a roll fails no request", tally.all().failed == 0 && note.is_empty() && rolls > 0);
    drop(server);
    Ok(())
}

/// How long a roll takes that nothing is in the way of: with just enough requests to see the new workers.
fn reload(turn: &mut Turn, server: &mut Server) -> Result<()> {
    let load = Load::start(server.site.port(), &PROBES);
    wait_until("all workers", LOOK * 5, || Ok(workers(&load).len() >= WORKERS))?;
    // Circus takes no orders before the warm-up of its last worker is over.
    pause(LOOK);
    let began = Instant::now();
    roll(server, &load).context("the first roll")?;
    turn.put(RELOADED, &format!("**{}**", number(began.elapsed().as_secs_f64())));
    load.stop();
    Ok(())
}

fn say(turn: &mut Turn, row: &str, tally: &Tally) {
    let all = tally.all();
    let why = if all.failed == 0 { String::new() } else { format!(" ({})", tally.why()) };
    turn.put(row, &format!("**{}** of {}{why}", all.failed, all.asked));
}

fn say_gap(turn: &mut Turn, tally: &Tally) {
    let text = format!("**{}** ({})", number(ms(tally.gap)), number(ms(tally.held_up)));
    turn.put("— longest time without any answer (the client's own longest delay), ms", &text);
}

/// One roll: over when four new workers have answered and the old ones are gone.
fn roll(server: &mut Server, load: &Load) -> Result<()> {
    let old = workers(load);
    let told = server.roll()?;
    if told.code != 0 {
        bail!("exit code {}: {}", told.code, told.said.lines().next().unwrap_or_default());
    }
    wait_until("the roll", ROLL_LIMIT, || {
        server.check()?;
        let now = workers(load);
        Ok(old.is_disjoint(&now) && now.len() >= WORKERS)
    })
}

/// Tandem alone: until there were many swaps and many requests.
pub fn long(turn: &mut Turn) -> Result<()> {
    let site = turn.site()?;
    let server = Server::start(turn.peer, &site)?;
    let load = Load::start(site.port(), &MIX);
    let slow = Slow::start(site.port(), SLOW_CLIENTS, turn.pace.slow);
    let (began, mut rolls) = (Instant::now(), 0);
    let (mut swaps, mut asked) = (0, 0);
    while (swaps < turn.pace.swaps || asked < turn.pace.requests) && began.elapsed() < LONG_LIMIT {
        let told = server.roll()?;
        if told.code != 0 {
            bail!("roll {rolls}: exit code {}: {}", told.code, told.said.lines().next().unwrap_or_default());
        }
        rolls += 1;
        let tally = load.tally();
        (swaps, asked) = (tally.workers.len().saturating_sub(WORKERS), tally.all().asked);
    }
    let took = began.elapsed();
    pause(Duration::from_secs(1));
    let tally = load.stop();
    // Those in flight have their time.
    let slow = slow.stop();
    say(turn, LONG, &tally);
    let row = format!("— {SLOW_CLIENTS} requests of {} s in flight all the time: failed", turn.pace.slow.as_secs());
    turn.put(&row, &slow.to_string());
    turn.goal("long: no slow request fails", slow.failed == 0 && slow.asked > 0);
    let text = format!("{rolls}, {swaps}, {:.0}", took.as_secs_f64());
    turn.put("— rolls, worker swaps, seconds in all", &text);
    let text = format!("**{}** ({})", number(ms(tally.gap)), number(ms(tally.held_up)));
    turn.put("— longest time without any answer in them (the client's own longest delay), ms", &text);
    turn.goal("long: no request fails", tally.all().failed == 0);
    turn.goal("long: enough swaps and requests", swaps >= turn.pace.swaps && asked >= turn.pace.requests);
    turn.goal("long: no pause of more than 20 ms", tally.gap <= PAUSE_MAX);
    server.stop()
}

/// The new code cannot be imported.
pub fn broken(turn: &mut Turn) -> Result<()> {
    let site = turn.site()?;
    let mut server = Server::start(turn.peer, &site)?;
    let load = Load::start(site.port(), &MIX);
    // Circus takes no orders before the warm-up of its last worker is over.
    pause(LOOK);
    wait_until("all workers", LOOK * 5, || Ok(workers(&load).len() >= WORKERS))?;
    let old = workers(&load);
    site.write_app(NO_CODE)?;
    let began = Instant::now();
    // Some commands wait for ever for what does not start.
    let told = server.roll().context("the command of the roll");
    if let Ok(Told { code: COMMAND_UNKNOWN, said }) = &told {
        bail!("{}", said.trim());
    }
    pause(turn.pace.broken.saturating_sub(began.elapsed()).saturating_sub(LOOK));
    let runs = server.runs();
    let before = load.tally().good();
    pause(LOOK);
    let after = load.tally();
    let left = old.iter().filter(|pid| lives(**pid)).count();
    say(turn, BROKEN, &load.stop());
    let serves = match (after.good() > before, runs) {
        (true, true) => format!("serves on, {left} of {WORKERS} old workers"),
        (true, false) => format!("the supervisor has ended; {left} of {WORKERS} old workers serve on alone"),
        (false, true) => "**serves nobody**; supervisor runs".to_owned(),
        (false, false) => "**ended**".to_owned(),
    };
    let code = match &told {
        Ok(told) if told.code != 0 => format!("; exit code {}", told.code),
        Ok(_) => String::new(),
        Err(error) => format!("; {error:#}"),
    };
    turn.put("— and then", &format!("{serves}{code}"));
    turn.goal("broken code: the old workers serve on", left == WORKERS && after.good() > before);
    turn.goal("broken code: the exit code says so", told.is_ok_and(|told| told.code != 0));
    let same: BTreeSet<i32> = after.workers.keys().copied().collect();
    turn.goal("broken code: no worker is replaced", same == old);
    drop(server);
    Ok(())
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
