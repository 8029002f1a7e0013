//! Locks on files: only their owner may hold them, and who is refused is told which process does.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::common::project::Project;
use crate::common::refusal::{self, Refusal, said};
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, wait_for};
use ::tandem::process::identity;

/// What a killed Tandem may have left in a lock file; no process has such a number (proc(5), pid_max).
const DEAD: &str = "2147483000";

/// A lock file as earlier versions made it, with the words of a holder that died.
fn leave_behind(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    fs::write(path, format!("pid {DEAD} on host {host}, `tandem up`, since 2026-01-01T00:00:00Z")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
}

/// All lock files below `dir`; PostgreSQL's own are PostgreSQL's.
fn locks(dir: &Path) -> Vec<PathBuf> {
    let entries = dir.read_dir().into_iter().flatten().map(|entry| entry.unwrap().path());
    let each = entries.flat_map(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let below = path.symlink_metadata().unwrap().is_dir() && name != "16" && name != "venv";
        let is_lock = path.is_file() && name.ends_with("lock") && !name.starts_with(".s.PGSQL");
        if below { locks(&path) } else { is_lock.then_some(path).into_iter().collect() }
    });
    each.collect()
}

/// Whether another user can hold the lock file `path`, asked of the kernel.
fn nobody_can_hold(path: &Path) -> bool {
    #[expect(clippy::disallowed_methods, reason = "a test plays another user")]
    let mut flock = Command::new("flock");
    flock.args(["--exclusive", "--nonblock"]).arg(path).arg("true").current_dir("/").uid(65_534).gid(65_534);
    flock.stderr(Stdio::null()).status().unwrap().success()
}

#[test]
fn no_other_user_can_hold_a_lock_of_tandems() {
    let lines = "workers.count = 1\nbackup.pitr.enabled = true\nbackup.schedule = 'never'";
    let project = Project::app_with("plain:app", lines);
    for name in ["lock", "backups/.lock"] {
        leave_behind(&project.state().join(name));
    }
    let mut tandem = Tandem::up(&project);
    refusal::run(&project, &["backup"]).expect(0, &[]);
    refusal::run(&project, &["backup", "base"]).expect(0, &[]);
    let places = project.dir().join("tests-places");
    fs::create_dir(&places).unwrap();
    let set = format!("test.dir={}", places.display());
    let script = "while ! test -e go; do sleep 0.05; done";
    let mut testing = tandem::command(&project);
    testing.args(["test", "--migrations", "none", "--set", &set, "--", "sh", "-c", script]);
    let testing = testing.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
    let mut testing = Holding(testing);
    wait_for("the tests' locks", || locks(&places).len() >= 2);

    let found: Vec<_> = [project.state(), places].iter().flat_map(|dir| locks(dir)).collect();
    let names: Vec<_> = found.iter().map(|path| path.display().to_string()).collect();
    for name in [".tandem/lock", "backups/.lock", "base.lock"] {
        assert!(names.iter().any(|path| path.ends_with(name)), "{name} is not among {names:?}");
    }
    for path in &found {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600, "{}", path.display());
        assert!(!identity::is_root() || !nobody_can_hold(path), "{}", path.display());
    }
    project.write("go", "");
    assert!(testing.0.wait().unwrap().success());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// A process that holds a lock, ended on drop with all that it started.
struct Holding(Child);

impl Holding {
    /// Run `script` in `sh`, with the lock file as `$1`, until it says on its output that it holds the lock.
    fn begin(project: &Project, lock: &Path, script: &str) -> Self {
        let mut command = tandem::command_as("sh", project.dir());
        let held = project.dir().join("held");
        let output = fs::File::create(&held).unwrap();
        command.args(["-c", script, "sh"]).arg(lock).stdout(output).process_group(0);
        let holding = Self(command.spawn().unwrap());
        wait_for("the lock to be held", || fs::read(&held).is_ok_and(|said| !said.is_empty()));
        holding
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
            let _ = self.0.wait();
        }
    }
}

/// `tandem up`, which is to be refused while the holder lives on.
fn up(project: &Project) -> Refusal {
    said(tandem::command(project).arg("up").output().unwrap())
}

#[test]
fn the_process_that_holds_a_lock_is_named_and_never_one_that_died() {
    let project = Project::app_with("plain:app", "workers.count = 1");
    let (state, backups) = (project.state().join("lock"), project.state().join("backups/.lock"));
    [&state, &backups].into_iter().for_each(|path| leave_behind(path));
    {
        // It holds the lock itself.
        let script = "exec flock --no-fork --exclusive \"$1\" sh -c 'echo held; exec sleep 1000'";
        let holding = Holding::begin(&project, &state, script);
        let refused = up(&project);
        refused.expect(73, &[&format!("process {} (`sleep`, user id ", holding.0.id()), "holds"]);
        assert!(!refused.said.contains(DEAD), "{}", refused.said);
    }
    {
        // The process that took it has ended: another that it started has it by inheritance.
        let script = "exec 9<>\"$1\"; flock 9; sleep 1000 & echo $! >pid; echo held; exec 9>&-; wait";
        let _holding = Holding::begin(&project, &state, script);
        let heir = fs::read_to_string(project.dir().join("pid")).unwrap();
        let refused = up(&project);
        refused.expect(73, &[&format!("process {} (`sleep`, user id ", heir.trim())]);
        assert!(!refused.said.contains(DEAD), "{}", refused.said);
    }
    // The same of the lock of the backups, and of a Tandem that runs.
    let mut tandem = Tandem::up(&project);
    let script = "exec flock --no-fork --exclusive \"$1\" sh -c 'echo held; exec sleep 1000'";
    let holding = Holding::begin(&project, &backups, script);
    let refused = refusal::run(&project, &["backup"]);
    refused.expect(75, &[&format!("process {} (`sleep`, user id ", holding.0.id())]);
    assert!(!refused.said.contains(DEAD), "{}", refused.said);
    let second = said(tandem::command(&project).args(["up", "--set", "health.listen=0"]).output().unwrap());
    second.expect(73, &[&format!("another tandem (pid {} on host ", tandem.pid()), "`tandem up`, since 20"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_lock_that_another_user_holds_stops_nobody_once_it_is_closed_to_him() {
    if !identity::is_root() {
        return skip("only root can play another user");
    }
    let project = Project::app_with("plain:app", "workers.count = 1");
    let lock = project.state().join("lock");
    leave_behind(&lock);
    // Earlier versions left it open, and he holds it now: his process is named, and once it is gone he has no other.
    let script = "exec setpriv --reuid 65534 --clear-groups flock --no-fork --exclusive \"$1\" \
                  sh -c 'echo held; exec sleep 1000'";
    let holding = Holding::begin(&project, &lock, script);
    up(&project).expect(73, &["(`sleep`, user id 65534) holds"]);
    drop(holding);
    let mut tandem = Tandem::up(&project);
    assert!(!nobody_can_hold(&lock));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(!nobody_can_hold(&lock));
}
