//! Ready means that a worker can write: asked at the workers' own door.

use std::fs;

use crate::common::backups::as_superuser;
use crate::common::plain::Plain;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};

fn project(lines: &str) -> Project {
    Project::app_with("plain:app", &format!("workers.count = 1\nmigrations.run = 'none'\n{lines}"))
}

/// What `/ready` says is missing, once it says no.
fn missing(project: &Project, tandem: &Tandem) -> String {
    wait_for("the refusal", || tandem.ready() == Some(false));
    let (_, body) = tandem::get(project.health, "/ready").unwrap();
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    answer["missing"].to_string()
}

#[test]
fn a_left_standby_signal_is_refused_with_the_way_out() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let signal = project.data().join("standby.signal");
    fs::write(&signal, "").unwrap();
    refusal::up(&project).expect(73, &["standby.signal", "takes no writes", "remove that file"]);
    fs::remove_file(&signal).unwrap();
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_role_or_an_address_that_lets_no_worker_write_is_not_ready_and_the_server_stays() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let postmaster = tandem.postmaster(&project);
    assert_eq!(tandem.health()["status"], "healthy");
    as_superuser(&project, "postgres", "ALTER ROLE app SET default_transaction_read_only = on");
    // A new server is a new door.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), nix::sys::signal::Signal::SIGINT).unwrap();
    wait_for("the next server", || {
        fs::read_to_string(project.data().join("postmaster.pid")).is_ok_and(|text| text.contains("ready"))
            && tandem.postmaster(&project) != postmaster
    });
    let postmaster = tandem.postmaster(&project);
    wait_for("the reason", || missing(&project, &tandem).contains("default_transaction_read_only is on"));
    let health = tandem.health();
    assert_eq!(health["status"], "unhealthy");
    assert!(health["database"]["error"].as_str().unwrap().contains("no worker can write"), "{health}");
    assert_eq!(tandem.postmaster(&project), postmaster, "a restart would not help");
    as_superuser(&project, "postgres", "ALTER ROLE app RESET default_transaction_read_only");
    tandem.wait_ready();

    // One of a kind that nobody has listed: the role's time is over.
    as_superuser(&project, "postgres", "ALTER ROLE app VALID UNTIL '2001-01-01'");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), nix::sys::signal::Signal::SIGINT).unwrap();
    wait_for("the reason", || {
        let said = missing(&project, &tandem);
        said.contains("at the workers' address") && said.contains("28P01")
    });
    as_superuser(&project, "postgres", "ALTER ROLE app VALID UNTIL 'infinity'");
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_server_that_takes_no_writes_is_not_attached_to_and_one_that_stops_taking_them_is_not_ready() {
    let owner = project("");
    let mut server = Tandem::up(&owner);
    let url = refusal::run(&owner, &["url"]).said.trim().to_owned();
    let read_only = |value: &str| {
        as_superuser(&owner, "postgres", &format!("ALTER DATABASE app SET default_transaction_read_only = {value}"));
    };
    read_only("on");
    let project = project("postgres.ready_limit = '1s'");
    let start = |project: &Project| {
        let mut command = tandem::command(project);
        command.env("DATABASE_URL", &url);
        Tandem::start_as(project, command)
    };
    let mut refused = start(&project);
    assert_eq!(refused.wait_code(), 75, "{}", refused.log());
    assert!(
        refused.log().contains("took no writes within 1s: default_transaction_read_only is on"),
        "{}",
        refused.log()
    );
    read_only("off");
    let mut tandem = start(&project);
    tandem.wait_ready();
    read_only("on");
    as_superuser(&owner, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'app'");
    // The end of the session that is watched is told first.
    wait_for("the reason", || missing(&project, &tandem).contains("default_transaction_read_only is on"));
    read_only("off");
    as_superuser(&owner, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'app'");
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(server.stop(), 0, "{}", server.log());
}

#[tokio::test]
async fn a_hot_standby_is_not_attached_to() {
    let owner = project("");
    let mut tandem = Tandem::up(&owner);
    let url = refusal::run(&owner, &["url"]).said.trim().to_owned();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    fs::write(owner.data().join("standby.signal"), "").unwrap();
    let standby = Plain::start(&owner, &[]).await;
    let project = project("postgres.ready_limit = '1s'");
    let mut command = tandem::command(&project);
    command.env("DATABASE_URL", url.replace(&format!(":{}/", owner.postgres), &format!(":{}/", standby.port)));
    refusal::up_as(&project, command).expect(75, &["took no writes within 1s", "the server is a standby"]);
}
