//! The examples run as they stand: `tandem up` serves them, and their own tests pass under `tandem test`.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::common::ports::free_port;
use crate::common::project::root;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, get, left_in, post, wait_for};

/// A copy of an example, with ports of its own and a Python environment that the next run finds again.
struct Example {
    dir: TempDir,
    variables: Vec<(&'static str, String)>,
    app: u16,
    health: u16,
}

impl Example {
    fn of(name: &str) -> Self {
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let dir = tempfile::Builder::new().prefix("tandem-test-").permissions(everybody).tempdir().unwrap();
        copy(&root().join("examples").join(name), dir.path());
        let (app, health) = (free_port(), free_port());
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("venv-{name}"));
        let variables = vec![
            ("TANDEM_WORKERS__LISTEN", format!("127.0.0.1:{app}")),
            ("TANDEM_HEALTH__LISTEN", format!("127.0.0.1:{health}")),
            ("TANDEM_POSTGRES__PORT", free_port().to_string()),
            // Where an environment is named, it is not looked for what goes into it.
            ("TANDEM_PYTHON__VENV", venv.display().to_string()),
            ("TANDEM_PYTHON__REQUIREMENTS", "requirements.txt".to_owned()),
            ("TANDEM_WORKERS__COUNT", "1".to_owned()),
            ("TANDEM_DISK__WARN_FREE", "0%".to_owned()),
        ];
        Self { dir, variables, app, health }
    }

    fn command(&self) -> Command {
        let mut command = tandem::command_in(self.dir.path());
        command.envs(self.variables.iter().cloned());
        command
    }

    /// `tandem up`, until it is ready.
    fn up(&self) -> Tandem {
        let mut tandem = Tandem::start_in(self.dir.path(), self.command(), &["up", "--log-format", "text"]);
        wait_for("readiness", || {
            assert!(!tandem.ended(), "{}", tandem.log());
            get(self.health, "/ready").is_some_and(|(status, _)| status == 200)
        });
        tandem
    }

    /// Its own tests, with the word of their runner for a success.
    fn test(&self, args: &[&str], success: &str) {
        let tests = refusal::said(self.command().arg("test").args(args).output().unwrap());
        tests.expect(0, &[success]);
    }

    fn stop(&self, mut tandem: Tandem) {
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
        assert!(left_in(self.dir.path()).is_empty());
    }
}

/// The files of an example, and nothing that a run has made there.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == "__pycache__" {
            continue;
        }
        if source.is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&source, &target);
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}

fn json(answer: Option<(u16, String)>) -> (u16, serde_json::Value) {
    let (status, body) = answer.expect("an answer");
    (status, serde_json::from_str(&body).unwrap_or_default())
}

/// A note is made, and is found where the banner leads to.
fn keeps_a_note(example: &Example, path: &str) {
    let (status, made) = json(post(example.app, path, &serde_json::json!({ "text": "milk" })));
    assert_eq!((status, &made["text"]), (201, &"milk".into()), "{made}");
    let (status, root) = json(get(example.app, "/"));
    assert_eq!((status, &root["notes"]), (200, &serde_json::json!(["milk"])), "{root}");
}

#[test]
fn the_async_example_runs_and_so_do_its_tests() {
    let example = Example::of("fastapi-async");
    let tandem = example.up();
    keeps_a_note(&example, "/notes");
    example.stop(tandem);
    example.test(&[], "3 passed");
}

#[test]
fn the_litestar_example_runs_and_so_do_its_tests() {
    let example = Example::of("litestar");
    let tandem = example.up();
    keeps_a_note(&example, "/notes");
    example.stop(tandem);
    example.test(&[], "2 passed");
}

#[test]
fn the_django_example_runs_and_so_do_its_tests() {
    let example = Example::of("django");
    let tandem = example.up();
    keeps_a_note(&example, "/notes");
    example.stop(tandem);
    example.test(&["--", "python", "manage.py", "test"], "Ran 3 tests");
}

#[test]
fn the_full_stack_example_counts_in_its_queue_and_its_tests_run() {
    let example = Example::of("full-stack");
    let tandem = example.up();
    let (status, page) = get(example.app, "/").expect("the page");
    assert!(status == 200 && page.contains("<h1>Word counts</h1>"), "{status} {page}");
    let (status, job) = json(post(example.app, "/api/jobs", &serde_json::json!({ "text": "one two three" })));
    assert_eq!(status, 201, "{job}");
    let path = format!("/api/jobs/{}", job["id"]);
    wait_for("the queue", || json(get(example.app, &path)).1["words"] == 3);
    example.stop(tandem);
    example.test(&[], "3 passed");
}

/// What an example needs is pinned, with hashes, for the oldest Python that Tandem knows.
#[test]
fn the_examples_pin_what_they_need() {
    for name in ["fastapi-async", "django", "litestar", "full-stack"] {
        let dir = root().join("examples").join(name);
        let text = fs::read_to_string(dir.join("requirements.txt")).unwrap();
        assert!(text.contains("--generate-hashes") && text.contains("--python-version 3.9"), "{name}");
        let pins = text.lines().filter(|line| line.contains("==") && !line.starts_with([' ', '#']));
        assert!(pins.count() > 4 && text.contains("    --hash=sha256:"), "{name}");
        let configuration = fs::read_to_string(dir.join("tandem.toml")).unwrap();
        assert!(configuration.lines().count() <= 16, "{name}: as small as can be");
        assert!(fs::read_to_string(dir.join("README.md")).unwrap().lines().count() <= 16, "{name}: ten lines or so");
    }
}
