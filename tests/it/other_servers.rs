//! Other ASGI servers in the place of Tandem's own launcher: each slot is one process of theirs.

use crate::common::control;
use crate::common::project::{Project, python_with, venv_of};
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, still_lives, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A project of two workers that are started by `command`.
pub async fn project(command: &str, lines: &str) -> Project {
    python_with("servers", "servers.txt").await;
    let project = Project::app_with(
        "plain:app",
        &format!(
            "migrations.run = 'none'\nworkers.count = 2\npool.size = 1\npool.overflow = 1\npython.managed = false\n\
             workers.command = {command}\n{lines}"
        ),
    );
    let project = project.without("python.venv").without("python.requirements").without("workers.app");
    project.configure(&format!("python.venv = '{}'", venv_of("servers").display()));
    project
}

/// The server serves, is replaced when it dies and when asked to be, and leaves nothing.
fn keeps(project: &Project) {
    let mut tandem = Tandem::up(project);
    wait_for("two workers", || tandem.workers().len() == 2);
    assert_eq!(tandem.get("/"), Some((200, "ok".into())));
    assert_eq!(tandem.get("/env?name=TANDEM_APP").unwrap().0, 404, "the launcher's protocol is its own");
    // Its environment has no SQLAlchemy.
    assert!(tandem.get("/env?name=DATABASE_URL").unwrap().1.starts_with("postgresql://"));

    let before = tandem.workers();
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    wait_for("another worker", || {
        let now = tandem.workers();
        now.len() == 2 && !now.contains(&before[0]) && now.contains(&before[1])
    });
    let before = tandem.workers();
    control::run(project, &["reload"]).expect(0, &["replaced 2 workers"]);
    assert!(before.iter().all(|pid| !tandem.workers().contains(pid)), "{before:?}\n{}", tandem.log());
    assert_eq!(tandem.get("/"), Some((200, "ok".into())));
    wait_for("the old ones gone", || tandem.health()["workers"].as_array().unwrap().len() == 2);

    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
    assert_eq!(tandem.get("/"), None, "nobody holds the port");

    let mut tandem = Tandem::up(project);
    let family = tandem.descendants();
    tandem.signal(Signal::SIGKILL);
    assert!(tandem.wait_exit().code().is_none());
    wait_for("the end of all it had started", || !family.iter().any(still_lives));
}

#[tokio::test]
async fn gunicorn_says_itself_that_it_is_ready() {
    let command = "['gunicorn', '--bind', 'fd://{fd}', '-k', 'asgi', '-w', '1', 'plain:app']";
    keeps(&project(command, "").await);
}

#[tokio::test]
async fn gunicorn_with_uvicorns_worker_answers_at_a_path() {
    let command = "['gunicorn', '--bind', 'fd://{fd}', '-k', 'uvicorn_worker.UvicornWorker', '-w', '1', 'plain:app']";
    keeps(&project(command, "workers.ready = '/'").await);
}

#[tokio::test]
async fn hypercorn_takes_the_socket_and_answers_at_a_path() {
    keeps(&project("['hypercorn', '--bind', 'fd://{fd}', 'plain:app']", "workers.ready = '/'").await);
}

#[tokio::test]
async fn uvicorns_own_command_takes_the_socket() {
    keeps(&project("['uvicorn', '--fd', '{fd}', 'plain:app']", "workers.ready = '/'").await);
}

#[tokio::test]
async fn granian_binds_the_port_itself() {
    let command = "['granian', '--interface', 'asgi', '--host', '{host}', '--port', '{port}', 'plain:app']";
    keeps(&project(command, "workers.ready = '/'\nworkers.socket = 'own'").await);
}

#[tokio::test]
async fn a_command_that_is_not_there_is_named() {
    let refused = refusal::up(&project("['no-such-server', 'plain:app']", "workers.restart_intensity = 1").await);
    refused.expect(69, &["no-such-server plain:app (workers.command) is not there", "gave up"]);
}

#[tokio::test]
async fn a_server_that_answers_elsewhere_never_gets_ready() {
    let command = "['hypercorn', '--bind', '127.0.0.1:0', 'plain:app']";
    let lines = "workers.ready = '/'\nworkers.ready_limit = '2s'\nworkers.restart_intensity = 1";
    refusal::up(&project(command, lines).await)
        .expect(69, &["did not get ready within workers.ready_limit", "gave up"]);
}
