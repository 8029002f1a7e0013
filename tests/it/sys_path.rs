//! Where workers run and what they import from: as under Uvicorn's own command.

use std::fs;
use std::process::{Child, Stdio};

use crate::common::ports::free_port;
use crate::common::project::{Project, python, venv};
use crate::common::tandem::{self, Tandem, command_as, wait_for};
use crate::common::worker::{Flavour, Stage};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1\n";

/// Answers with its working directory and `sys.path`, from a thread, as FastAPI's plain functions do.
const APP: &str = "import json, os, sys\nfrom fastapi import FastAPI\napp = FastAPI()\n\
                   @app.get('/')\ndef here():\n    return {'cwd': os.getcwd(), 'path': sys.path, 'name': __name__}\n";

/// A project whose application lies in `dir` below it.
fn project(app: &str, dir: &str, more: &str) -> Project {
    let project = Project::app_with(app, &format!("{BARE}{more}"));
    project.reconfigure(|text| {
        let lines = text.lines().map(|line| match line.starts_with("workers.app_dir") {
            true => format!("workers.app_dir = '{dir}'\n"),
            false => format!("{line}\n"),
        });
        lines.collect()
    });
    project
}

fn answer(tandem: &Tandem) -> serde_json::Value {
    let (status, body) = tandem.get("/").unwrap();
    assert_eq!(status, 200, "{body}\n{}", tandem.log());
    serde_json::from_str(&body).unwrap()
}

/// Uvicorn's own command, ended on drop.
struct Uvicorn(Child);

impl Drop for Uvicorn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the application answers under `uvicorn ARGS` in the project's directory.
fn under_uvicorn(project: &Project, args: &[&str]) -> serde_json::Value {
    let port = free_port();
    let mut command = command_as(venv().join("bin/uvicorn").to_str().unwrap(), project.dir());
    command.args(args).args(["--port", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let _uvicorn = Uvicorn(command.spawn().unwrap());
    let mut found = None;
    wait_for("an answer of Uvicorn's", || {
        found = tandem::get(port, "/").filter(|(status, _)| *status == 200);
        found.is_some()
    });
    serde_json::from_str(&found.unwrap().1).unwrap()
}

/// The path without the directory of Uvicorn's script, and with full names.
fn path(answer: &serde_json::Value, project: &Project) -> Vec<String> {
    let bin = venv().join("bin").display().to_string();
    let all = answer["path"].as_array().unwrap().iter().map(|path| path.as_str().unwrap());
    all.filter(|path| *path != bin)
        .map(|path| project.dir().join(path).components().as_path().display().to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_named_like_modules_that_uvicorn_imports_break_nothing() {
    python().await;
    for more in ["", "workers.preload = true\n"] {
        let project = project("main:app", ".", more);
        project.write("main.py", APP);
        for name in ["queue", "email", "platform", "calendar", "random", "token", "types"] {
            project.write(&format!("{name}.py"), "JOBS = []\n");
        }
        // A tool that the application's files would break in the same way.
        project.write("tools/migrate.py", "import email.utils, queue\nqueue.Queue()\nprint('migrated')\n");
        project.configure("migrations.run = ['python', 'tools/migrate.py']");
        project.reconfigure(|text| text.replace("migrations.run = 'none'\n", ""));
        let mut tandem = Tandem::up(&project);
        assert!(tandem.log().contains("migrated"), "{}", tandem.log());
        let (ours, theirs) = (answer(&tandem), under_uvicorn(&project, &["main:app"]));
        assert_eq!(path(&ours, &project), path(&theirs, &project));
        assert_eq!(ours["cwd"], theirs["cwd"]);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

/// Modules of Python's that neither Uvicorn nor FastAPI needs, and that Tandem could.
const NAMES: [&str; 5] = ["colorsys", "difflib", "mmap", "sched", "termios"];

#[tokio::test(flavor = "multi_thread")]
async fn a_file_named_like_a_module_that_uvicorn_does_not_load_is_the_applications() {
    python().await;
    let imports: String = NAMES.iter().map(|name| format!("import {name}\nassert {name}.JOBS == []\n")).collect();
    for more in ["", "workers.preload = true\n", "workers.uvicorn.headers = 'X-A:b'\n"] {
        let project = project("main:app", ".", more);
        project.write("main.py", &format!("{imports}{APP}"));
        NAMES.iter().for_each(|name| project.write(&format!("{name}.py"), "JOBS = []\n"));
        let mut tandem = Tandem::up(&project);
        assert_eq!(answer(&tandem)["name"], under_uvicorn(&project, &["main:app"])["name"]);
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_working_directory_is_the_projects_unless_another_is_named() {
    python().await;
    let app = format!(
        "{APP}from fastapi.staticfiles import StaticFiles\napp.mount('/static', StaticFiles(directory='static'))\n"
    );
    for (more, dir) in [("", ""), ("workers.dir = 'run'\n", "run"), ("workers.preload = true\n", "")] {
        let hook = "hooks.after_ready = ['/bin/sh', '-c', 'echo hook in $(pwd -P)']\n";
        let migrate = "migrations.run = ['/bin/sh', '-c', 'echo migrations in $(pwd -P)']\n";
        let project = project("pkg.__main__:app", "src", &format!("{more}{hook}{migrate}"));
        project.reconfigure(|text| text.replace("migrations.run = 'none'\n", ""));
        project.write("src/pkg/__main__.py", "from .api import app\n");
        project.write("src/pkg/api.py", &app);
        let there = project.dir().join(dir);
        project.write(
            &format!("{}static/a.txt", if dir.is_empty() { String::new() } else { format!("{dir}/") }),
            "a file",
        );
        let mut tandem = Tandem::up(&project);
        let ours = answer(&tandem);
        let real = fs::canonicalize(&there).unwrap().display().to_string();
        assert_eq!((&ours["cwd"], &ours["name"]), (&real.clone().into(), &"pkg.api".into()));
        assert_eq!(tandem.get("/static/a.txt").unwrap(), (200, "a file".into()));
        if dir.is_empty() {
            let theirs = under_uvicorn(&project, &["--app-dir", "src", "pkg.__main__:app"]);
            assert_eq!(path(&ours, &project), path(&theirs, &project));
            assert_eq!(ours["cwd"], theirs["cwd"]);
        }
        for what in ["hook", "migrations"] {
            tandem.wait_log(&format!("{what} in {real}"));
        }
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
    let project = project("main:app", ".", "workers.dir = 'nowhere'\n");
    project.write("main.py", APP);
    let refused = tandem::run(&project, &["check"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
    assert!(refused.status.code() == Some(78) && said.contains("nowhere is not a directory"), "{said}");
}

#[test]
fn what_keeps_an_application_from_its_import_is_told_with_its_cause() {
    // Its module is another one by then.
    let hidden = project("platform:app", ".", "");
    hidden.write("platform.py", APP);
    let mut tandem = Tandem::start(&hidden);
    assert_eq!(tandem.wait_code(), 69, "{}", tandem.log());
    let log = tandem.log();
    assert!(log.contains("platform.py, but a module of that name which Uvicorn needs itself"), "{log}");

    // The first attempt to import it says more than the second.
    let shadow = project("main:app", ".", "");
    shadow.write("main.py", APP);
    shadow.write("secrets.py", "KEY = 'mine'\n");
    let mut tandem = Tandem::start(&shadow);
    assert_eq!(tandem.wait_code(), 69, "{}", tandem.log());
    let log = tandem.log();
    assert!(log.contains("cannot import name 'token_hex' from 'secrets'") && log.contains("secrets.py"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_uvicorn_imports_the_application_in_the_running_loop_and_a_new_one_does_not() {
    Stage::set(Flavour::OLDEST).await.ready("task_at_import:app", &[]).await;
    let mut refused = Stage::set(Flavour::NEWEST).await.launch("task_at_import:app", &[]);
    refused.open_gate();
    refused.end().await;
    let heard = refused.heard().join("\n");
    assert!(heard.contains("no running event loop"), "{heard}");
    // What goes wrong in the loop is told as what goes wrong before it.
    let mut broken = Stage::set(Flavour::OLDEST).await.launch("broken_import:app", &[]);
    broken.open_gate();
    broken.end().await;
    let heard = broken.heard().join("\n");
    assert!(heard.contains("X_TANDEM_IMPORT_ERROR") && !heard.contains("launcher.py"), "{heard}");
}
