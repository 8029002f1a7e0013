//! How readiness goes after something happened to the database: asked as fast as the health port answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::backups::as_superuser;
use super::project::Project;
use super::strict::Connection;
use super::tandem::{self, Process, wait_for};

/// What `/ready` did.
#[derive(Debug, Default)]
pub struct Course {
    /// From the deed to the first refusal; `None`: there was none within the limit.
    pub withdrawn: Option<Duration>,
    /// From the deed to the next yes after that.
    pub back: Option<Duration>,
    /// What the refusals said is missing, each once.
    pub missing: Vec<String>,
}

/// Do `deed`, and follow `/ready` until it is withdrawn and back again. A refusal is waited for until `first`, the yes after
/// it until `limit`. `meanwhile` is done once, after the first refusal.
pub fn follow(
    health: u16,
    (first, limit): (Duration, Duration),
    deed: impl FnOnce(),
    meanwhile: impl FnOnce(),
) -> Course {
    let open = || Connection::open(SocketAddr::from((Ipv4Addr::LOCALHOST, health))).unwrap();
    let mut port = open();
    let mut ask = || {
        // The port closes connections that are idle for long, as during `meanwhile`.
        let answer = port.get("/ready").or_else(|_| {
            port = open();
            port.get("/ready")
        });
        let answer = answer.unwrap();
        (answer.status == 200, answer.body)
    };
    assert!(ask().0, "it is not ready before");
    let mut course = Course::default();
    let mut meanwhile = Some(meanwhile);
    let began = Instant::now();
    deed();
    loop {
        let (ready, body) = ask();
        let elapsed = began.elapsed();
        match course.withdrawn {
            None if !ready => {
                course.withdrawn = Some(elapsed);
                meanwhile.take().unwrap()();
            }
            None if elapsed > first => return course,
            Some(_) if ready => {
                course.back = Some(elapsed);
                return course;
            }
            Some(_) if elapsed > limit => return course,
            _ => {}
        }
        if !ready {
            let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
            let missing = answer["missing"].to_string();
            if course.missing.last() != Some(&missing) {
                course.missing.push(missing);
            }
        }
    }
}

/// The process of the server `postmaster` whose title says `what`.
pub fn of_server(processes: &[Process], postmaster: i32, what: &str) -> Option<i32> {
    let found = processes.iter().find(|process| process.parent == postmaster && process.args.contains(what));
    found.map(|process| process.pid)
}

/// A session of `project`'s database that does nothing, ended on drop, and its server process.
pub struct Idle {
    client: Child,
    pub backend: i32,
}

impl Idle {
    pub fn open(project: &Project) -> Self {
        let mut command = tandem::command(project);
        command.args(["psql", "-Xqc", "SELECT pg_sleep(600)"]).stdout(Stdio::null()).stderr(Stdio::null());
        let client = command.spawn().unwrap();
        let find = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'";
        let mut found = String::new();
        wait_for("the session", || {
            found = as_superuser(project, "postgres", find);
            !found.is_empty()
        });
        Self { client, backend: found.parse().unwrap() }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
