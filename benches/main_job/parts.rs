//! The parts of the run: each adds its rows.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::client::{LIMIT, first_select, pause, wait_for, wait_until};
use crate::common::project::Project;
use crate::common::tandem;
use crate::figures::median;
use crate::peers::{self, Cluster, Uvicorn};
use crate::probes::probe;
use crate::table::{Goal, Table};
use crate::up::{Stopped, Up, ms};

/// Rounds of what takes a second or two, and of what takes longer.
const ROUNDS: usize = 10;
const ROUNDS_SLOW: usize = 5;
const POLL: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_secs(30);
const PROBING: Duration = Duration::from_secs(10);
const BARE: &str = "bare `postgres`";
const UVICORN: &str = "uvicorn";

/// What the parts share.
pub struct Bench {
    /// A project that has been up before.
    warm: Project,
    cluster: Cluster,
    venv: PathBuf,
    url: String,
    idle_stops: Vec<Stopped>,
}

impl Bench {
    /// Everything cached, everything made: the state in which a second start finds things.
    pub fn prepare() -> Self {
        let venv = peers::venv();
        let warm = Project::backend();
        let (up, _) = Up::ready(&warm);
        let cluster = Cluster::of(&warm);
        cluster.prepare_load();
        let url = peers::database_url(&warm);
        up.stop();
        Self { warm, cluster, venv, url, idle_stops: Vec::new() }
    }
}

/// Server alone, no workers: the first SELECT 1.
pub fn warm(bench: &mut Bench, table: &mut Table) {
    let Bench { warm, cluster, .. } = bench;
    let (mut ours, mut bare, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2 * ROUNDS {
        for times in [&mut bare, &mut again] {
            let began = Instant::now();
            let mut server = cluster.postgres(&[]);
            times.push(ms(first_select(&cluster.socket, "postgres", began)));
            server.signal(Signal::SIGINT);
            server.wait();
        }
        let mut up = Up::start(warm, &["migrate", "status"]);
        ours.push(ms(first_select(&cluster.socket, "postgres", up.began)));
        assert!(up.wait());
    }
    let what = "warm start: process start to first `SELECT 1`, no workers (`tandem migrate status`)";
    table.row(what, "ms", &ours, Some((BARE, &bare)), Goal::RatioAtMost(1.15));
    let extra: Vec<f64> = ours.iter().zip(&bare).map(|(ours, bare)| ours - bare).collect();
    table.row("— of that more than the bare server", "ms", &extra, None, Goal::None);
    table.row("— the bare server against itself", "ms", &bare, Some(("again", &again)), Goal::None);
}

/// Everything, warm.
pub fn stack(bench: &mut Bench, table: &mut Table) {
    let Bench { warm, cluster, venv, url, idle_stops } = bench;
    let (mut ours, mut peer, mut stops, mut imports) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut sequence: [Vec<f64>; 3] = Default::default();
    let mut steps: HashMap<String, Vec<f64>> = HashMap::new();
    for _ in 0..ROUNDS {
        let (up, ready) = Up::ready(warm);
        ours.push(ms(ready));
        for (name, took) in up.steps() {
            steps.entry(name).or_default().push(took);
        }
        idle_stops.push(up.stop());

        let began = Instant::now();
        let mut last = Duration::ZERO;
        let mut lap = |part: &mut Vec<f64>| {
            part.push(ms(began.elapsed().saturating_sub(last)));
            last = began.elapsed();
        };
        cluster.pg_ctl(&["start", "-w"]);
        lap(&mut sequence[0]);
        peers::alembic(venv, url);
        lap(&mut sequence[1]);
        let uvicorn = Uvicorn::start(warm, venv, url);
        uvicorn.wait_started(warm, 4);
        lap(&mut sequence[2]);
        peer.push(ms(began.elapsed()));
        let began = Instant::now();
        uvicorn.stop();
        cluster.pg_ctl(&["stop", "-m", "fast"]);
        stops.push(ms(began.elapsed()));
        imports.push(ms(peers::import_time(venv, url)));
    }
    let name = "`pg_ctl start`, `alembic upgrade head`, `uvicorn --workers 4`";
    table.row("whole stack, warm, to all four workers ready", "ms", &ours, Some((name, &peer)), Goal::None);
    let parts = ["pg_ctl", "alembic", "uvicorn"].iter().zip(&sequence);
    let parts: Vec<String> = parts.map(|(name, times)| format!("{name} {:.0}", median(times))).collect();
    table.say("— step by step, medians in ms", &by_step(&steps), &parts.join(", "));
    table.row(
        "— beside the time that one interpreter alone needs to import the application",
        "ms",
        &ours,
        Some(("import", &imports)),
        Goal::None,
    );
    let whole: Vec<f64> = idle_stops.iter().map(|stop| stop.whole).collect();
    let name = "SIGTERM to uvicorn, then `pg_ctl stop -m fast`";
    table.row("stop, idle: SIGTERM to exit", "ms", &whole, Some((name, &stops)), Goal::None);
    split(table, idle_stops);
}

fn by_step(steps: &HashMap<String, Vec<f64>>) -> String {
    let order = ["install", "cluster", "postgres", "provision", "migrate", "workers"];
    let parts = order.iter().filter_map(|&name| Some(format!("{name} {:.0}", median(steps.get(name)?))));
    parts.collect::<Vec<_>>().join(", ")
}

fn split(table: &mut Table, stops: &[Stopped]) {
    let pick = |part: fn(&Stopped) -> f64| stops.iter().map(part).collect::<Vec<f64>>();
    table.row("— workers' part", "ms", &pick(|stop| stop.workers), None, Goal::None);
    table.row("— PostgreSQL's part", "ms", &pick(|stop| stop.postgres), None, Goal::None);
}

/// The first start ever.
pub fn first(_: &mut Bench, table: &mut Table) {
    let (mut server, mut whole) = (Vec::new(), Vec::new());
    let mut steps: HashMap<String, Vec<f64>> = HashMap::new();
    for _ in 0..ROUNDS_SLOW {
        let project = Project::backend();
        let mut up = Up::start(&project, &["migrate", "status"]);
        assert!(up.wait());
        server.push(ms(up.began.elapsed()));

        let project = Project::backend();
        let (up, ready) = Up::ready(&project);
        whole.push(ms(ready));
        for (name, took) in up.steps() {
            steps.entry(name).or_default().push(took);
        }
        up.stop();
    }
    let what = "first start ever, binaries there: cluster, server, role, database, one question, and the stop (`tandem migrate status`)";
    table.row(what, "ms", &server, None, Goal::Below(450.0));
    table.row(
        "first start ever, binaries and Python environment there, to all workers ready",
        "ms",
        &whole,
        None,
        Goal::None,
    );
    table.say("— step by step, medians in ms", &by_step(&steps), "");

    // The network is asked once.
    let nothing = TempDir::new().unwrap();
    fs::set_permissions(nothing.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let project = Project::backend();
    let text = fs::read_to_string(project.dir().join("tandem.toml")).unwrap();
    let own = text.lines().filter(|line| !line.starts_with("python.venv"));
    let text: String = own.map(|line| format!("{line}\n")).collect();
    project.write("tandem.toml", &format!("cache_dir = '{}'\n{text}", nothing.path().display()));
    let (up, ready) = Up::ready(&project);
    let steps = up.steps().into_iter().map(|(name, took)| (name, vec![took])).collect();
    up.stop();
    let what = "first start ever, nothing there: binaries and packages fetched (once; what pip has cached helps)";
    table.row(what, "ms", &[ms(ready)], None, Goal::None);
    table.say("— step by step, in ms", &by_step(&steps), "");
}

/// Stop while four clients write.
pub fn stop(bench: &mut Bench, table: &mut Table) {
    let Bench { warm, cluster, .. } = bench;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS_SLOW {
        let (up, _) = Up::ready(warm);
        let load = cluster.load();
        ours.push(up.stop());
        drop(load);

        let mut server = cluster.postgres(&[]);
        first_select(&cluster.socket, "postgres", Instant::now());
        let load = cluster.load();
        let began = Instant::now();
        server.signal(Signal::SIGINT);
        server.wait();
        bare.push(ms(began.elapsed()));
        drop(load);
    }
    let whole: Vec<f64> = ours.iter().map(|stop| stop.whole).collect();
    let postgres: Vec<f64> = ours.iter().map(|stop| stop.postgres).collect();
    table.row("stop under write load (pgbench, 4 clients): SIGTERM to exit", "ms", &whole, None, Goal::None);
    let workers: Vec<f64> = ours.iter().map(|stop| stop.workers).collect();
    table.row("— workers' part", "ms", &workers, None, Goal::None);
    let name = "bare `postgres`, SIGINT";
    table.row("— PostgreSQL's part", "ms", &postgres, Some((name, &bare)), Goal::Below(100.0));
}

/// `kill -9` of the postmaster while four clients write.
pub fn crash(bench: &mut Bench, table: &mut Table) {
    let project = Project::backend();
    let (up, _) = Up::ready(&project);
    let own = Cluster::of(&project);
    own.prepare_load();
    // The peer lives beside it, in a cluster of its own, so that the two take turns.
    let cluster = &bench.cluster;
    let by_default = ["-c", "recovery_init_sync_method=fsync"];
    let mut server = cluster.postgres(&by_default);
    first_select(&cluster.socket, "postgres", Instant::now());
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS_SLOW {
        let load = own.load();
        let postmaster = own.postmaster();
        let began = Instant::now();
        kill(Pid::from_raw(postmaster), Signal::SIGKILL).unwrap();
        wait_until("another postmaster", POLL, || {
            own_pid(&own).is_some_and(|pid| pid != postmaster && tandem::lives(pid))
        });
        ours.push(ms(first_select(&own.socket, "postgres", began)));
        drop(load);

        let load = cluster.load();
        let began = Instant::now();
        server.signal(Signal::SIGKILL);
        server.wait();
        // What it left notices within milliseconds; until then a new server refuses to start.
        server = cluster.postgres(&by_default);
        bare.push(ms(wait_for("recovery", POLL, || {
            if server.0.try_wait()?.is_some() {
                server = cluster.postgres(&by_default);
            }
            let mut session = crate::client::Session::open(&cluster.socket, "postgres")?;
            session.ask("SELECT 1").map(|_| began.elapsed())
        })));
        drop(load);
    }
    server.signal(Signal::SIGINT);
    server.wait();
    up.stop();
    let what = "PostgreSQL `kill -9` under write load: answers again";
    let name = "bare `postgres` with its default `recovery_init_sync_method`, restarted at once";
    table.row(what, "ms", &ours, Some((name, &bare)), Goal::Below(400.0));
}

fn own_pid(cluster: &Cluster) -> Option<i32> {
    fs::read_to_string(cluster.data.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()
}

/// Tandem's own memory and work, with nothing to do.
pub fn idle(bench: &mut Bench, table: &mut Table) {
    let (up, _) = Up::ready(&bench.warm);
    let (sql, cpu) = (transactions(&bench.cluster), cpu(up.pid()));
    pause(IDLE);
    let spent = self::cpu(up.pid()) - cpu;
    let asked = transactions(&bench.cluster) - sql;
    let (pss, private) = memory(up.pid());
    up.stop();
    table.row("Tandem's own memory (PSS) after 30 idle seconds, 4 workers", "MB", &[pss], None, Goal::Below(8.0));
    table.row("— of that not backed by its file", "MB", &[private], None, Goal::None);
    table.row("Tandem's own CPU time in 30 idle seconds, 4 workers", "s", &[spent], None, Goal::Below(0.02));
    table.row(
        "— transactions of all databases meanwhile, per second",
        "",
        &[asked / IDLE.as_secs_f64()],
        None,
        Goal::None,
    );
}

/// User and system time of a process, in seconds.
fn cpu(pid: i32) -> f64 {
    // In nanoseconds, of the main thread and the others; /proc/pid/stat counts in hundredths of a second.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let spent = threads.map(|thread| {
        let text = fs::read_to_string(thread.unwrap().path().join("schedstat")).unwrap();
        text.split(' ').next().unwrap().parse::<f64>().unwrap()
    });
    spent.sum::<f64>() / 1e9
}

/// Proportional and anonymous memory of a process, in MB.
fn memory(pid: i32) -> (f64, f64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        value.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    (field("Pss:"), field("Pss_Anon:"))
}

fn transactions(cluster: &Cluster) -> f64 {
    // Backends hand in their counts at most once a second.
    pause(Duration::from_millis(1200));
    let sql = "SELECT sum(xact_commit + xact_rollback) FROM pg_stat_database";
    cluster.ask("postgres", sql).parse().unwrap()
}

/// A thousand probes a second.
pub fn health(bench: &mut Bench, table: &mut Table) {
    let (up, _) = Up::ready(&bench.warm);
    for (name, keep_alive) in [("keep-alive", true), ("a new connection each", false)] {
        let before = transactions(&bench.cluster);
        let latency = probe(bench.warm.health, PROBING, keep_alive);
        let asked = transactions(&bench.cluster) - before;
        let what = format!("`/health` at 1,000 requests/s, {name}: p50");
        table.row(&what, "ms", &[latency.p50], None, Goal::None);
        table.row("— p99", "ms", &[latency.p99], None, Goal::Below(1.0));
        table.row("— max", "ms", &[latency.max], None, Goal::None);
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let count = latency.count as f64;
        let what = format!("— transactions of all databases per probe ({asked} for {count})");
        table.row(&what, "", &[asked / count], None, Goal::None);
    }
    up.stop();
}

/// A worker, and the supervisor itself, killed with -9.
pub fn workers(bench: &mut Bench, table: &mut Table) {
    let Bench { warm, venv, url, .. } = bench;
    let (mut ours, mut peer, mut imports) = (Vec::new(), Vec::new(), Vec::new());
    let (mut gone, mut left, mut peer_left) = (Vec::new(), 0, Vec::new());
    let (up, _) = Up::ready(warm);
    // Beside it, on another port: what it measures is a worker's start, and neither has anything else to do.
    let beside = Project::backend();
    let mut uvicorn = Uvicorn::start(&beside, venv, url);
    uvicorn.wait_started(&beside, 4);
    for round in 0..ROUNDS_SLOW {
        let before = ready(warm);
        let began = Instant::now();
        kill(Pid::from_raw(before[round % before.len()]), Signal::SIGKILL).unwrap();
        wait_until("the worker", POLL, || {
            let now = ready(warm);
            now.len() == 4 && now != before
        });
        ours.push(ms(began.elapsed()));

        let killed = uvicorn.workers()[0];
        let began = Instant::now();
        kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
        uvicorn.wait_started(&beside, 5 + round);
        peer.push(ms(began.elapsed()));
        imports.push(ms(peers::import_time(venv, url)));
    }
    up.stop();
    for _ in 0..3 {
        let workers = uvicorn.workers();
        uvicorn.running.signal(Signal::SIGKILL);
        uvicorn.running.wait();
        pause(Duration::from_secs(1));
        let alive: Vec<i32> = workers.into_iter().filter(|&pid| tandem::lives(pid)).collect();
        peer_left.push(alive.len().to_string());
        for pid in alive {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        uvicorn = Uvicorn::start(&beside, venv, url);
        uvicorn.wait_started(&beside, 4);
    }
    uvicorn.stop();
    for _ in 0..ROUNDS_SLOW {
        let (up, _) = Up::ready(warm);
        let pids: Vec<i32> = tandem::descendants(up.pid()).iter().map(|process| process.pid).collect();
        let began = Instant::now();
        up.signal(Signal::SIGKILL);
        let lives = || pids.iter().filter(|&&pid| tandem::lives(pid)).count();
        while lives() > 0 && began.elapsed() < LIMIT {
            pause(POLL);
        }
        left += usize::from(began.elapsed() > Duration::from_secs(1));
        gone.push(ms(began.elapsed()));
    }
    table.row("`kill -9` of one of 4 workers: ready again", "ms", &ours, Some((UVICORN, &peer)), Goal::None);
    let name = "one interpreter's import of the application";
    table.row("— beside the import alone", "ms", &ours, Some((name, &imports)), Goal::None);
    table.row("`kill -9` of the supervisor: no process left after", "ms", &gone, None, Goal::Below(1000.0));
    let ours = format!("left after 1 s in {left} of {ROUNDS_SLOW}");
    table.say("— processes left after 1 s", &ours, &format!("uvicorn: {} of 4 workers", peer_left.join(", ")));
}

/// The workers that are ready, by pid.
fn ready(project: &Project) -> Vec<i32> {
    let Some((_, body)) = tandem::get(project.health, "/health") else { return Vec::new() };
    let health: serde_json::Value = serde_json::from_str(&body).unwrap();
    let workers = health["workers"].as_array().unwrap().iter().filter(|worker| worker["state"] == "ready");
    workers.filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok()).collect()
}
