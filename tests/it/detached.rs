//! `tandem up --detach`: it outlives the command that started it, and that command says how the start went.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::tandem::{self, Tandem, get, left_in, wait_for};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1";

/// A project whose Tandem ends with it, whatever becomes of the test.
struct Background(Project);

impl Background {
    fn app(app: &str) -> Self {
        Self(Project::app_with(app, BARE))
    }

    /// One that imports `text`.
    fn of(text: &str) -> Self {
        let project = Project::app_with("mine:app", BARE).without("workers.app_dir");
        project.write("mine.py", text);
        Self(project)
    }

    fn run(&self, args: &[&str]) -> Refusal {
        refusal::run(&self.0, args)
    }

    fn status(&self) -> serde_json::Value {
        let output = tandem::run(&self.0, &["status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.0.state().join("tandem.log")).unwrap_or_default()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.0.dir().join(".tandem/run/control.sock").exists() {
            let _ = tandem::run(&self.0, &["stop"]);
        }
        for process in left_in(self.0.dir()) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn it_runs_in_a_session_of_its_own_and_the_other_commands_reach_it() {
    let background = Background::app("plain:app");
    let Refusal { code, said } = background.run(&["up", "--detach", "--workers", "2", "--log-format", "text"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("runs in the background, process ") && said.contains("tandem logs -f"), "{said}");
    assert_eq!(get(background.0.app, "/"), Some((200, "ok".to_owned())));
    let status = background.status();
    assert_eq!(status["phase"], "serving", "{status}");
    let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    assert!(said.contains(&format!("process {pid};")), "{said}");
    let stat = procfs::process::Process::new(pid).unwrap().stat().unwrap();
    assert_eq!((stat.session, stat.tty_nr), (pid, 0));
    let workers = status["services"].as_array().unwrap().iter().filter(|service| service["kind"] == "worker").count();
    assert_eq!(workers, 2, "the flags reach it: {status}");

    // What it says is in its file, which nobody else reads, and in its memory.
    let log = background.0.state().join("tandem.log");
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    wait_for("the banner", || background.log().contains("is ready after"));
    background.run(&["logs"]).expect(0, &["is ready after"]);

    // There is one already.
    for args in [&["up", "-d"][..], &["up", "--wait", "30s"], &["up"]] {
        background.run(args).expect(73, &[&format!("pid {pid}"), "`tandem up`"]);
    }
    background.run(&["stop"]).expect(0, &["stopped"]);
    assert!(left_in(background.0.dir()).is_empty());
    background.run(&["logs"]).expect(1, &["no tandem runs here", "tandem.log"]);

    // `down` is what Compose calls it.
    background.run(&["up", "-d"]).expect(0, &["runs in the background"]);
    background.run(&["down"]).expect(0, &["stopped"]);
}

#[test]
fn a_start_that_fails_ends_the_waiting_with_its_last_words_and_its_code() {
    let background = Background::of("raise ValueError('SECRET_KEY is not set')\n");
    let Refusal { code, said } = background.run(&["up", "-d"]);
    assert_eq!(code, 69, "{said}");
    let last = said.trim_end().lines().last().unwrap_or_default();
    assert!(
        last.contains("mine:app cannot be imported") && last.contains("ValueError: SECRET_KEY is not set"),
        "{said}"
    );
    assert!(left_in(background.0.dir()).is_empty());
    // A mistake in the configuration is told before anything is started.
    background.0.configure("workers.cuont = 2");
    background.run(&["up", "-d"]).expect(78, &["did you mean `workers.count`?"]);
}

#[test]
fn a_stop_of_the_waiting_stops_the_start_and_the_end_of_its_patience_does_not() {
    let background = Background::of("import time\n\ntime.sleep(600)\n");
    let args = ["up", "--detach", "--log-format", "text"];
    let mut waiting = Tandem::start_with(&background.0, tandem::command(&background.0), &args);
    wait_for("workers that import", || background.status()["phase"] == "starting-workers" || waiting.ended());
    waiting.signal(Signal::SIGINT);
    assert_eq!(waiting.wait_code(), 1, "{}", waiting.log());
    assert!(waiting.log().contains("stopped before it was ready"), "{}", waiting.log());
    assert!(left_in(background.0.dir()).is_empty());

    background.run(&["up", "--wait", "1s"]).expect(75, &["not ready within 1s", "`tandem stop`"]);
    wait_for("workers that import", || background.status()["phase"] == "starting-workers");
    background.run(&["stop"]).expect(0, &["stopped"]);
    assert!(left_in(background.0.dir()).is_empty());
}

/// Answers whatever is asked, and prints as much as one line may hold.
const TALKATIVE: &str = "async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        await receive()
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        return await send({'type': 'lifespan.shutdown.complete'})
    for _ in range(10):
        print('x' * 60_000, flush=True)
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'ok'})
";

#[test]
fn its_log_is_kept_below_a_size() {
    let background = Background::of(TALKATIVE);
    background.run(&["up", "-d"]).expect(0, &["runs in the background"]);
    let (log, older) = (background.0.state().join("tandem.log"), background.0.state().join("tandem.log.1"));
    let size = |path: &std::path::Path| fs::metadata(path).map_or(0, |meta| meta.len());
    for turn in 1..=2 {
        let before = fs::metadata(&older).ok().map(|meta| meta.modified().unwrap());
        wait_for(&format!("rotation {turn}"), || {
            get(background.0.app, "/");
            fs::metadata(&older).ok().map(|meta| meta.modified().unwrap()) != before
        });
        assert!(size(&older) < 18 << 20 && size(&log) < 18 << 20, "{} {}", size(&older), size(&log));
    }
    background.run(&["stop"]).expect(0, &["stopped"]);
    // It goes on in the newest.
    assert!(background.log().contains("stopped in"));
}
