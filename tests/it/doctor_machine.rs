//! `tandem doctor` on machines that lack something: limits, shared memory, disks that are none, mounts that hang.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use crate::common::doctor::of;
use crate::common::hang::HungMount;
use crate::common::namespace::{in_namespace, mount_namespace};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem;

/// What hangs does so for ever, and every look is given up after seconds. The machine may be busy.
const HANG_LIMIT: Duration = Duration::from_secs(60);

fn stopped() -> Project {
    let project = Project::app_with("plain:app", "workers.count = 1\nbackup.schedule = 'never'");
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    project
}

#[test]
fn limits_that_are_too_low_are_told() {
    let project = stopped();
    let later = SystemTime::now() + Duration::from_secs(2 * 86_400);
    fs::File::options().write(true).open(project.state().join("lock")).unwrap().set_modified(later).unwrap();
    let binary = tandem::command(&project);
    let mut command = tandem::command_as("sh", project.dir());
    command.args(["-c", "ulimit -n 200; ulimit -f 20000; exec \"$0\" doctor --json"]).arg(binary.get_program());
    let report = of(command);
    report.expect("open-files", "warning", &["at most 200 files", "LimitNOFILE=", "RLIMIT_FSIZE", "LimitFSIZE"]);
    report.expect("clock", "warning", &["it was set back"]);
    report.expect("memory", "ok", &[]);
}

#[test]
fn disks_and_memory_that_hold_nothing_for_long_are_told() {
    let project = stopped();
    let script = "mount -t tmpfs -o size=1m tmpfs /dev/shm
        mount -t tmpfs tmpfs /usr/share/zoneinfo
        mkdir \"$0\"/copy; mount -t tmpfs -o size=200m,mode=0755,nr_inodes=1500 tmpfs \"$0\"/copy
        cp -a \"$0\"/.tandem/. \"$0\"/copy; mount --move \"$0\"/copy \"$0\"/.tandem
        exec \"$@\" doctor --json --set disk.warn_free=99% --set disk.stop_free=95%";
    let Some(command) = in_namespace(&project, script) else { return };
    let report = of(command);
    report.expect("file-system", "warning", &["the data are on tmpfs", "state_dir"]);
    report.expect("shared-memory", "warning", &["/dev/shm has", "--shm-size"]);
    report.expect("disk", "error", &["less than disk.stop_free", "make room"]);
    assert_ne!(report.check("time-zones")["verdict"], "ok", "{:#}", report.all);
    let read_only = "mount --bind \"$0\"/.tandem \"$0\"/.tandem; mount -o remount,bind,ro \"$0\"/.tandem
        exec \"$@\" doctor --json";
    let Some(command) = in_namespace(&project, read_only) else { return };
    of(command).expect("file-system", "error", &["read-only", "dmesg"]);
}

#[test]
fn a_mount_that_hangs_makes_its_own_checks_unknown_and_holds_up_nothing() {
    let project = stopped();
    let Some(namespace) = mount_namespace() else { return };
    // It waits for the mount to be laid over the backups, in its own namespace.
    let dir = project.state().join("copies");
    fs::create_dir(&dir).unwrap();
    let mut command = tandem::command_as("unshare", project.dir());
    let binary = tandem::command(&project);
    let script = "read -r line; exec \"$0\" doctor --json --set backup.dir=.tandem/copies";
    command.args(namespace).args(["sh", "-c", script]).arg(binary.get_program());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // unshare becomes the shell.
    tandem::wait_for("its namespace", || {
        fs::read_to_string(format!("/proc/{}/comm", child.id())).is_ok_and(|name| name.trim() == "sh")
    });
    let mount = HungMount::over(child.id().cast_signed(), &dir);
    let began = Instant::now();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let Some(_mount) = mount else { return };
    assert!(began.elapsed() < HANG_LIMIT, "{:?}", began.elapsed());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = |name: &str| {
        let all = report["checks"].as_array().unwrap();
        all.iter().find(|check| check["name"] == name).unwrap()["verdict"].clone()
    };
    assert_eq!((verdict("backups"), verdict("data-directory")), ("unknown".into(), "ok".into()), "{report:#}");
    assert_eq!(output.status.code(), Some(1));
}
