//! The kernel's OOM killer: a worker that it took is told apart from one that somebody killed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::control;
use crate::common::namespace::in_namespace;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What Tandem says of a worker that the kernel took.
const WORDS: &str = "SIGKILL, by the kernel, for want of memory (raise the limit, or set workers.max_memory)";
const LINES: &str = "migrations.run = 'none'\nworkers.count = 1";

/// Why the worker was last replaced.
fn reason(project: &Project) -> String {
    control::status(project)["services"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|service| (service["kind"] == "worker").then(|| service["last_reason"].to_string()))
        .unwrap()
}

/// Wait until another worker than `before` serves.
fn wait_replaced(tandem: &Tandem, before: i32) {
    wait_for("another worker", || tandem.workers().first().is_some_and(|&pid| pid != before));
}

/// With the kernel's counts as the test writes them, in a file that stands in the place of the control groups: the first
/// kind of the second version, then of the first.
#[test]
fn a_worker_that_the_kernel_took_is_told_apart_from_one_that_was_killed() {
    for (name, text) in [("memory.events", "low 0\noom_kill "), ("memory/memory.oom_control", "under_oom 0\noom_kill ")]
    {
        let project = Project::app_with("plain:app", LINES);
        let counts = project.dir().join("groups").join(name);
        fs::create_dir_all(counts.parent().unwrap()).unwrap();
        let write = |kills: u32| fs::write(&counts, format!("{text}{kills}\n")).unwrap();
        write(3);
        // Tandem asks in which group it is, and no test is in a group of its own.
        let script = "mount --bind \"$0\"/groups /sys/fs/cgroup; exec \"$@\"";
        let Some(command) = in_namespace(&project, script) else { return };
        let mut tandem = Tandem::start_as(&project, command);
        tandem.wait_ready();

        let first = tandem.workers()[0];
        kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
        wait_replaced(&tandem, first);
        assert_eq!(reason(&project), "\"SIGKILL\"", "somebody else's doing");

        let second = tandem.workers()[0];
        write(4);
        kill(Pid::from_raw(second), Signal::SIGKILL).unwrap();
        wait_replaced(&tandem, second);
        assert!(reason(&project).contains(WORDS), "{name}: {}", reason(&project));
        tandem.wait_log(WORDS);
        // Counted once.
        let third = tandem.workers()[0];
        kill(Pid::from_raw(third), Signal::SIGKILL).unwrap();
        wait_replaced(&tandem, third);
        assert_eq!(reason(&project), "\"SIGKILL\"");
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

/// A control group of the test's own with a limit, where this machine lets it make one.
struct Group(PathBuf);

impl Group {
    fn make(limit: u64) -> Option<Self> {
        let name = format!("tandem-test-{}", std::process::id());
        let kinds = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        kinds.iter().find_map(|(root, file)| {
            let group = Self(Path::new(root).join(&name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(file), limit.to_string()).ok()?;
            // Memory on the disk would let the worker live on.
            let _ = fs::write(group.0.join("memory.swap.max"), "0");
            let _ = fs::write(group.0.join("memory.swappiness"), "0");
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        wait_for("the end of the group", || fs::remove_dir(&self.0).is_ok() || !self.0.exists());
    }
}

#[test]
fn in_a_group_that_runs_out_of_memory_the_worker_goes_and_postgresql_stays() {
    // In a container that may make none, what the test above holds has to do.
    let Some(group) = Group::make(700 << 20) else { return };
    let project = Project::app_with("stubborn:app", &format!("{LINES}\npostgres.shared_buffers = '32MB'"));
    let script = "echo $$ >\"$1\"/cgroup.procs; shift; exec \"$@\"";
    let binary = tandem::command(&project);
    let mut command = tandem::command_as("sh", project.dir());
    command.args(["-euc", script, "sh"]).arg(&group.0).arg(binary.get_program());
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    let (worker, postmaster) = (tandem.workers()[0], tandem.postmaster(&project));
    drop(tandem.get("/grow?megabytes=2000"));
    wait_replaced(&tandem, worker);
    assert!(reason(&project).contains(WORDS), "{}\n{}", reason(&project), tandem.log());
    assert_eq!(tandem.postmaster(&project), postmaster);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    drop(tandem);
    drop(group);
}
