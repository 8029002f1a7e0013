//! A second server on the data directory of a project, in another namespace as a container with the same volume has it: it is
//! seen and refused, and never ended.

use std::fs;
use std::process::Command;

use crate::common::plain::Plain;
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::unistd::Uid;

const LINES: &str = "workers.count = 1\nmigrations.run = 'none'";

/// `unshare` with the namespaces that a container has.
fn container() -> Option<Vec<&'static str>> {
    let mut args = vec!["unshare", "--pid", "--ipc", "--mount", "--fork", "--mount-proc", "--kill-child"];
    if !Uid::effective().is_root() {
        args.splice(1..1, ["--user", "--map-current-user"]);
    }
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let allowed = Command::new(args[0]).args(&args[1..]).arg("true").status().unwrap().success();
    if !allowed {
        skip("this kernel lets this user have no pid namespace");
    }
    allowed.then_some(args)
}

/// A project with a cluster and no server.
fn stopped() -> Project {
    let project = Project::app_with("plain:app", LINES);
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    project
}

/// `tandem up` in a container whose volume is the data of `project`: at another path, with a state directory of its own.
fn up_in_container(project: &Project, container: &[&str]) -> Refusal {
    let other = Project::app_with("plain:app", LINES);
    let script = "mkdir -p \"$0\"/.tandem/postgres/16; mount --bind \"$1\" \"$0\"/.tandem/postgres/16
        chown --reference=\"$1\" \"$0\"/.tandem/postgres; chmod 700 \"$0\"/.tandem/postgres; shift; exec \"$@\"";
    let mut command = tandem::command_as(container[0], other.dir());
    command.args(&container[1..]).args(["sh", "-euc", script]).arg(other.dir()).arg(project.data());
    command.arg(env!("CARGO_BIN_EXE_tandem"));
    refusal::up_as(&other, command)
}

#[tokio::test]
async fn a_server_of_another_container_is_refused_and_lives_on() {
    let Some(container) = container() else { return };
    let project = stopped();
    let mut theirs = Plain::start(&project, &container).await;
    let before = theirs.pid_file();
    let said = ["of another container or namespace", "stop it where it was started", "would destroy the data"];
    let mut refused = Tandem::start(&project);
    Refusal { code: refused.wait_code(), said: refused.log() }.expect(73, &said);
    // What would start a server for itself is refused as well.
    refusal::run(&project, &["backup"]).expect(73, &said);
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(73, &said);
    assert!(theirs.lives());
    assert_eq!(theirs.pid_file(), before);

    // It is gone, and what it left does not stop a start.
    drop(theirs);
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_second_state_directory_with_the_same_data_is_refused_before_anything_is_touched() {
    let project = Project::app_with("plain:app", LINES);
    let mut tandem = Tandem::up(&project);
    let other = Project::app_with("plain:app", LINES);
    fs::create_dir_all(other.data().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(project.data(), other.data()).unwrap();
    let conf = || fs::read_to_string(project.data().join("postgresql.conf")).unwrap();
    let before = (tandem.postmaster(&project), conf());
    let said = ["another tandem runs a server in this directory", "would destroy the data"];
    refusal::up(&other).expect(73, &said);
    let migrate = ["migrate", "up", "--set", "migrations.run=seaorm"];
    for args in [&["restore", "--to-end", "--yes"][..], &["backup"], &migrate] {
        refusal::run(&other, args).expect(73, &said);
    }
    assert_eq!((tandem.postmaster(&project), conf()), before);
    assert_eq!(tandem.ready(), Some(true));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test]
async fn a_server_that_cannot_be_seen_is_refused_and_lives_on() {
    let Some(container) = container() else { return };
    let project = stopped();
    let mut plain = Plain::start(&project, &[]).await;
    let before = plain.pid_file();
    up_in_container(&project, &container).expect(73, &["cannot be seen from here", "global/", "stop it first"]);
    assert!(plain.lives());
    assert_eq!(plain.pid_file(), before);
    drop(plain);

    // Another Tandem's is known by its lock, from the first moment on.
    let mut tandem = Tandem::up(&project);
    let postmaster = tandem.postmaster(&project);
    up_in_container(&project, &container).expect(73, &[]);
    assert_eq!((tandem.postmaster(&project), tandem.ready()), (postmaster, Some(true)), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test]
async fn an_orphan_of_our_own_namespace_is_still_ended() {
    let project = stopped();
    let mut orphan = Plain::start(&project, &[]).await;
    let mut tandem = Tandem::up(&project);
    assert!(tandem.log().contains("a PostgreSQL server of an earlier run still works"), "{}", tandem.log());
    wait_for("its end", || !orphan.lives());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
