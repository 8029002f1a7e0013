//! Whatever disk, file or resolver hangs, the event loop goes on: health, control and signals answer.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use crate::common::control;
use crate::common::hang::{HungFile, HungMount, all_answer, answers};
use crate::common::namespace::in_namespace;
use crate::common::project::{Project, root};
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, wait_for};
use ::tandem::process::identity;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1";

fn slay(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// `tandem up` in a mount namespace of its own, ready; `None` where this user can have none.
fn up_in_namespace(project: &Project) -> Option<Tandem> {
    let mut tandem = Tandem::start_as(project, in_namespace(project, "exec \"$@\"")?);
    tandem.wait_ready();
    Some(tandem)
}

#[test]
fn a_hung_disk_of_the_backups_stops_nothing_and_is_named() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nbackup.dir = 'copies'"));
    let dir = project.dir().join("copies");
    fs::create_dir(&dir).unwrap();
    let Some(mut tandem) = up_in_namespace(&project) else { return };
    wait_for("the room for backups", || tandem.health()["disk"]["backup_free_bytes"].is_u64());
    let known = tandem.health()["disk"]["backup_total_bytes"].clone();
    let Some(mount) = HungMount::over(tandem.pid(), &dir) else { return };

    // It is looked at each second, and given up after five.
    wait_for("the hung disk in /health", || {
        all_answer(&tandem, &project);
        tandem.health()["disk"]["backup_unanswered_seconds"].is_f64()
    });
    let health = tandem.health();
    assert_eq!(health["status"], "degraded", "{health:#}");
    assert!(health["reasons"].to_string().contains("disk of the backups: it does not answer"), "{health:#}");
    assert_eq!(health["disk"]["backup_total_bytes"], known, "what was last known is still shown");
    tandem.wait_log("copies: no answer within 5s; it is not asked again before it answers");

    drop(mount);
    wait_for("the disk that answers again", || tandem.health()["disk"]["backup_unanswered_seconds"].is_null());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_stop_waits_for_no_hung_disk() {
    let project = Project::app_with("plain:app", &format!("{BARE}\nbackup.dir = 'copies'"));
    let dir = project.dir().join("copies");
    fs::create_dir(&dir).unwrap();
    let Some(mut tandem) = up_in_namespace(&project) else { return };
    let Some(_mount) = HungMount::over(tandem.pid(), &dir) else { return };
    // Somebody waits for it in the kernel by now.
    wait_for("a thread that waits for the disk", || waits_for_fuse(tandem.pid()));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

/// Whether a thread of process `pid` waits for a FUSE file system.
fn waits_for_fuse(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.into_iter().any(|thread| {
        let place = fs::read_to_string(thread.path().join("wchan")).unwrap_or_default();
        place.contains("fuse")
    })
}

#[test]
fn a_hung_directory_of_the_application_delays_its_workers_alone() {
    let project = Project::app_with("plain:app", &BARE.replace("count = 1", "count = 2"));
    project.write("app/plain.py", &fs::read_to_string(root().join("tests/fixtures/apps/plain.py")).unwrap());
    project.reconfigure(|text| text.replace(&root().join("tests/fixtures/apps").display().to_string(), "app"));
    let Some(mut tandem) = up_in_namespace(&project) else { return };
    wait_for("two workers", || tandem.workers().len() == 2);
    let Some(mount) = HungMount::over(tandem.pid(), &project.dir().join("app")) else { return };

    slay(tandem.workers()[0]);
    wait_for("the other worker alone", || tandem.workers().len() == 1);
    for _ in 0..3 {
        all_answer(&tandem, &project);
        assert_eq!(tandem.get("/").map(|(status, _)| status), Some(200), "the other worker serves");
    }
    // The server needs no application, and is started again meanwhile.
    let server = tandem.postmaster(&project);
    slay(server);
    wait_for("another server", || {
        answers(&tandem, project.health, "/live", 200);
        tandem.ready() == Some(true) && tandem.postmaster(&project) != server
    });
    drop(mount);
    wait_for("two workers again", || tandem.workers().len() == 2);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_record_of_the_last_backup_that_cannot_be_read_stops_nothing() {
    let project = Project::app_with("plain:app", BARE);
    let record = HungFile::at(&project.state().join("backups/.last-run.json"));
    let mut tandem = Tandem::up(&project);
    wait_for("somebody who reads the record", || record.has_reader());
    all_answer(&tandem, &project);
    record.release("{}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_reload_that_waits_for_a_file_stops_nothing() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let dotenv = HungFile::at(&project.dir().join(".env"));
    let reload = control::start(&project, &["reload"]);
    // The command reads the configuration itself, to find the control socket.
    wait_for("the command", || dotenv.has_reader());
    let again = project.dir().join(".env");
    dotenv.release("");
    let dotenv = HungFile::at(&again);
    wait_for("the reload", || {
        all_live(&tandem, &project);
        dotenv.has_reader()
    });
    for _ in 0..10 {
        all_live(&tandem, &project);
    }
    dotenv.release("GREETING=hello\n");
    control::said(reload).expect(0, &["replaced 1 workers"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

fn all_live(tandem: &Tandem, project: &Project) {
    answers(tandem, project.health, "/live", 200);
    answers(tandem, project.health, "/ready", 200);
}

#[test]
fn a_server_that_starts_again_from_a_hung_file_stops_nothing() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let path = project.data().join("postgresql.conf");
    let text = fs::read_to_string(&path).unwrap();
    let conf = HungFile::at(&path);
    slay(tandem.postmaster(&project));
    wait_for("the next start of the server", || {
        answers(&tandem, project.health, "/live", 200);
        conf.has_reader()
    });
    for _ in 0..10 {
        answers(&tandem, project.health, "/live", 200);
        answers(&tandem, project.health, "/ready", 503);
        assert_eq!(tandem.get("/").map(|(status, _)| status), Some(200), "the workers serve on");
    }
    conf.release(&text);
    own(&path, &project);
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Give `path` to the user whom the data directory belongs to.
fn own(path: &std::path::Path, project: &Project) {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(project.data()).unwrap();
    std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
}

#[test]
fn a_resolver_without_an_answer_stops_nothing() {
    if !identity::is_root() {
        return skip("only root can listen where resolvers do");
    }
    // A resolver that takes questions and never answers, at an address of this test's own.
    let address =
        format!("127.{}.{}.{}", 1 + rand::random::<u8>() % 250, rand::random::<u8>(), 1 + rand::random::<u8>() % 250);
    let Ok(silent) = UdpSocket::bind((address.as_str(), 53)) else { return skip("port 53 cannot be had") };
    silent.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let project = Project::app_with("plain:app", BARE);
    project.configure("postgres.url = 'postgresql://app:secret@db.example.com/app'");
    project.write("resolv.conf", &format!("nameserver {address}\noptions timeout:5 attempts:2\n"));
    project.write("nsswitch.conf", "hosts: dns\n");
    let script = "mount --bind \"$0\"/resolv.conf /etc/resolv.conf
        mount --bind \"$0\"/nsswitch.conf /etc/nsswitch.conf; exec \"$@\"";
    let Some(command) = in_namespace(&project, script) else { return };
    let mut tandem = Tandem::start_as(&project, command);
    let mut question = [0; 512];
    silent.recv(&mut question).expect("the boot asks for the host's name");
    for _ in 0..10 {
        answers(&tandem, project.health, "/live", 200);
        answers(&tandem, project.health, "/ready", 503);
        tandem::pause();
    }
    // Nothing came of it, and a stop in the middle waits for nothing.
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn a_flood_of_the_servers_log_keeps_the_loop_from_nothing() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let stall = || tandem.health()["supervisor"]["longest_stall_ms"].as_f64().unwrap();
    let before = stall();
    let lines =
        "DO $$ BEGIN FOR i IN 1..60000 LOOP RAISE LOG '%', i || ' flood ' || repeat('x', 100); END LOOP; END $$";
    let mut flood = control::start(&project, &["psql", "-Xqc", lines]);
    while flood.try_wait().unwrap().is_none() {
        assert_eq!(tandem::get(project.health, "/live").unwrap().0, 200);
    }
    assert!(control::said(flood).code == 0);
    assert!(before < 250.0 && stall() < 250.0, "{before} ms before the flood, {} ms at most in it", stall());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn the_event_loop_measures_itself() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let own = tandem.health()["supervisor"].clone();
    assert!(own["longest_stall_ms"].as_f64().is_some_and(|longest| longest > 0.0), "{own}");
    assert!(own["stalls"].is_u64() && own["log_lines_dropped"] == 0, "{own}");
    let (_, metrics) = tandem::get(project.health, "/metrics").unwrap();
    for name in ["tandem_loop_stall_seconds_max ", "tandem_loop_stalls_total ", "tandem_log_lines_dropped_total 0"] {
        assert!(metrics.contains(name), "{name} is not in:\n{metrics}");
    }
    assert!(metrics.contains("tandem_disk_answers{file_system=\"data\"} 1"), "{metrics}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
