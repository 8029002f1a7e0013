//! Who the processes run as, what they may read, and where the state goes that they could not reach.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::namespace::mount_namespace;
use crate::common::project::{Project, root};
use crate::common::refusal;
use crate::common::skip::skip;
use crate::common::tandem::{self, Process, Tandem, wait_for};
use ::tandem::plan::Identity;
use ::tandem::process::identity;

/// What these tests need of root; `None` where they do not run as root.
pub fn server() -> Option<Identity> {
    if !identity::is_root() {
        skip("only root can choose whom its children run as");
        return None;
    }
    ["postgres", "nobody"].iter().find_map(|name| identity::lookup(name))
}

/// An interpreter that any user may run: the default one may lie in root's home.
fn open_interpreter() -> String {
    ["/usr/bin/python3", "/usr/local/bin/python3"]
        .into_iter()
        .find(|python| Path::new(python).exists())
        .unwrap_or("python3")
        .to_owned()
}

/// A project whose environment and application every user can reach. The environment is shared by the tests of this
/// file and made by whoever comes first, under Tandem's own lock.
pub fn open_project(lines: &str) -> Project {
    let venv = open_dir("venv-for-all").join("venv");
    let lines = format!("workers.count = 1\npython.interpreter = '{}'\n{lines}", open_interpreter());
    let project = Project::app_with("plain:app", &lines).without("python.venv").without("workers.app_dir");
    project.configure(&format!("python.venv = '{}'\nworkers.app_dir = 'app'", venv.display()));
    open_app(&project);
    project
}

/// The application and its requirements inside the project, since the checkout may lie behind a closed door.
fn open_app(project: &Project) {
    project.write("app/plain.py", &fs::read_to_string(root().join("tests/fixtures/apps/plain.py")).unwrap());
    let pinned = fs::read_to_string(root().join("examples/backend/requirements.txt")).unwrap();
    project.write("requirements.txt", &pinned);
    project.reconfigure(|text| {
        let lines = text.lines().map(|line| match line.starts_with("python.requirements = ") {
            true => "python.requirements = 'requirements.txt'\n".to_owned(),
            false => format!("{line}\n"),
        });
        lines.collect()
    });
}

/// A directory for what several runs of these tests share, that every user can reach. Not below the target directory:
/// the checkout may lie in somebody's home.
fn open_dir(name: &str) -> PathBuf {
    let uid = nix::unistd::Uid::effective();
    let dir = std::env::temp_dir().join(format!("tandem-test-{uid}-{name}"));
    let _there = fs::create_dir(&dir);
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(dir.symlink_metadata().unwrap().uid(), uid.as_raw(), "{} is somebody else's", dir.display());
    dir
}

/// The real uid of a process.
pub fn uid(process: &Process) -> u32 {
    procfs::process::Process::new(process.pid).unwrap().status().unwrap().ruid
}

/// Whether all that still live run as `user`: one of the server's short-lived processes may have ended since it was seen.
fn all_run_as(user: u32, processes: &[Process]) -> bool {
    processes.iter().filter(|process| tandem::still_lives(process)).all(|process| {
        let status = procfs::process::Process::new(process.pid).and_then(|process| process.status());
        status.is_ok_and(|status| status.ruid == user) || !tandem::still_lives(process)
    })
}

fn postgres_and_workers(tandem: &Tandem) -> (Vec<Process>, Vec<Process>) {
    let ready = tandem.workers();
    let all = tandem.descendants();
    let workers = all.iter().filter(|process| ready.contains(&process.pid)).cloned().collect();
    (all.into_iter().filter(|process| process.name == "postgres").collect(), workers)
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

/// Whether `user` can read `path`; asked of the kernel, not worked out from modes.
fn readable_by(user: &Identity, path: &Path) -> bool {
    #[expect(clippy::disallowed_methods, reason = "a test asks the system")]
    let mut head = Command::new("head");
    head.args(["-c", "1"]).arg(path).uid(user.uid).gid(user.gid).current_dir("/");
    head.output().unwrap().status.success()
}

#[test]
fn root_gives_the_server_and_the_workers_users_of_their_own() {
    let Some(server) = server() else { return };
    let Some(web) = identity::lookup("nobody") else { return };
    let project = open_project("workers.run_as = 'nobody'");
    let mut tandem = Tandem::up(&project);

    let (postgres, workers) = postgres_and_workers(&tandem);
    assert!(!postgres.is_empty() && all_run_as(server.uid, &postgres), "{postgres:?}");
    assert!(workers.len() == 1 && uid(&workers[0]) == web.uid, "{workers:?}");

    let data = project.data();
    assert_eq!((data.metadata().unwrap().uid(), mode(&data)), (server.uid, 0o700));
    let password = project.state().join("run/password");
    assert_eq!((password.metadata().unwrap().uid(), mode(&password)), (0, 0o600));
    for secret in [data.join("PG_VERSION"), password] {
        assert!(readable_by(&identity::lookup("root").unwrap(), &secret), "{}", secret.display());
        assert!(server.uid == web.uid || !readable_by(&web, &secret), "{}", secret.display());
    }
    // The other user's environment holds the password, and is closed to the server as well.
    let environ = PathBuf::from(format!("/proc/{}/environ", workers[0].pid));
    assert!(server.uid == web.uid || !readable_by(&server, &environ));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_user_that_does_not_exist_is_named_with_its_key() {
    if server().is_none() {
        return;
    }
    let project = open_project("postgres.run_as = 'nobody-at-all'");
    refusal::up(&project).expect(78, &["nobody-at-all", "postgres.run_as"]);
    let project = open_project("postgres.run_as = 'root'");
    refusal::up(&project).expect(78, &["refuses to run as root"]);
    let project = open_project("workers.run_as = 'nobody-at-all'");
    refusal::up(&project).expect(78, &["nobody-at-all", "workers.run_as"]);
}

#[test]
fn a_state_directory_behind_a_closed_door_is_refused_where_it_was_chosen() {
    let Some(server) = server() else { return };
    let project = open_project("state_dir = 'closed/state'");
    let closed = project.dir().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let door = closed.display().to_string();
    refusal::up(&project).expect(73, &[&server.name, &door, "chmod o+x", "state_dir", "postgres.run_as"]);
    assert_eq!(refusal::names(&closed), [""; 0]);
}

/// Removed at the end, also of a test that fails.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_default_state_directory_behind_a_closed_door_moves_and_says_so() {
    if server().is_none() {
        return;
    }
    // As a checkout in root's own home: only root may enter the project.
    let project = Project::app_with("plain:app", &format!("name = 'moved-{}'\nworkers.count = 1", std::process::id()));
    fs::set_permissions(project.dir(), Permissions::from_mode(0o700)).unwrap();
    let mut tandem = Tandem::start(&project);
    let state = move_of(&mut tandem);
    let state = Removed(state);
    tandem.wait_ready();
    assert!(state.0.join("postgres/16/PG_VERSION").exists() && !project.state().exists());
    // The other commands find it there.
    refusal::run(&project, &["psql", "-Atc", "SELECT 'found'"]).expect(0, &["found"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(&state.0).is_empty());
}

/// Where the log says that the state is kept.
fn move_of(tandem: &mut Tandem) -> PathBuf {
    let said = "so the state is kept in ";
    tandem.wait_log(said);
    let log = tandem.log();
    let (_, rest) = log.split_once(said).unwrap();
    let state = PathBuf::from(rest.split_whitespace().next().unwrap());
    assert!(state.starts_with("/var/lib/tandem"), "{log}");
    state
}

/// As [`tandem::command`], as an ordinary user with a home directory of its own.
fn ordinary(project: &Project) -> Command {
    let command = tandem::command(project);
    if !identity::is_root() {
        return command;
    }
    let user = identity::lookup("nobody").unwrap();
    // The checkout's own binary may lie where that user cannot go.
    let binary = project.dir().join("tandem");
    if !binary.exists() {
        // A link where that is possible: a copy that is being written while another test forks cannot be started.
        tandem::program_in(project.dir());
    }
    let home = open_dir("for-nobody").join("home");
    let _there = fs::create_dir(&home);
    for path in [project.dir(), &home] {
        chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let mut switched = Command::new(&binary);
    switched.current_dir(project.dir()).uid(user.uid).gid(user.gid);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => switched.env(name, value),
            None => switched.env_remove(name),
        };
    }
    switched.env("HOME", &home).env_remove("XDG_CACHE_HOME");
    // Root's own python may stand first in PATH, where this user cannot go.
    switched.env("PATH", "/usr/local/bin:/usr/bin:/bin");
    switched
}

#[test]
fn an_ordinary_user_gets_all_of_it_and_owns_all_of_it() {
    let project = Project::app_with("plain:app", "workers.count = 2").without("workers.app_dir").without("python.venv");
    project.configure(&format!("workers.app_dir = 'app'\npython.interpreter = '{}'", open_interpreter()));
    open_app(&project);
    let command = ordinary(&project);
    let user = project.dir().metadata().unwrap().uid();
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    let all = tandem.descendants();
    assert!(all.len() > 3 && all_run_as(user, &all), "{all:?}");
    let data = project.data();
    assert_eq!((data.metadata().unwrap().uid(), mode(&data)), (user, 0o700));
    assert_eq!(mode(&project.state().join("run/password")), 0o600);
    assert!(tandem.warnings().is_empty(), "{}", tandem.log());
    assert_eq!(tandem.get("/").unwrap().1, "ok");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());

    // And again, now that all is there.
    let mut tandem = Tandem::start_as(&project, ordinary(&project));
    tandem.wait_ready();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// What somebody else left behind in a container, as with `docker exec --user 0`, falls to its first process.
#[test]
#[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
fn an_ordinary_user_as_pid_1_waits_for_no_process_of_another() {
    if server().is_none() {
        return;
    }
    let project = open_project("migrations.run = 'none'");
    let ordinary = ordinary(&project);
    let user = identity::lookup("nobody").unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "setpriv", "--clear-groups"]);
    command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]).arg(ordinary.get_program());
    command.current_dir(project.dir());
    for (name, value) in ordinary.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    let first = tandem.descendants().into_iter().find(|process| process.parent == tandem.pid()).unwrap().pid;
    let left = ["--pid", "sh", "-c", "sleep 1000 & exec true"];
    assert!(Command::new("nsenter").args(["--target", &first.to_string()]).args(left).status().unwrap().success());
    let is_foreign = |process: &Process| process.args.contains("sleep 1000") && process.parent == first;
    wait_for("the adoption", || tandem.descendants().iter().any(is_foreign));

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(tandem.wait_code(), 0, "{}", tandem.log());
    let log = tandem.log();
    assert!(log.contains("left alone, since they are another user's: sleep"), "{log}");
    assert!(!log.contains("not gone") && !log.contains("not permitted"), "{log}");
}

#[test]
fn what_root_installed_into_an_image_an_ordinary_user_runs_and_cannot_change() {
    if server().is_none() {
        return;
    }
    // With seconds, so that no test waits for a minute.
    let lines = "backup.schedule = '* * * * * *'\nbackup.verify = 'always'";
    let project = open_project(lines).without("python.venv");
    let image = open_dir("image");
    let (cache, venv) = (image.join("cache"), image.join("venv"));
    let layout = [("TANDEM_CACHE_DIR", &cache), ("TANDEM_PYTHON__VENV", &venv)];
    let mut install = tandem::command(&project);
    refusal::said(install.envs(layout).arg("install").output().unwrap()).expect(0, &["PostgreSQL 16", "Python"]);

    let mut command = ordinary(&project);
    command.envs(layout);
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    assert!(tandem.warnings().is_empty(), "{}", tandem.log());
    assert!(!project.state().join("venv").exists(), "nothing is installed again");
    // The templates that a verification and a test run keep do not lie in the cache.
    tandem::wait_for("a verified backup", || tandem.health()["backups"]["last"]["verified"] == true);
    for args in [&["backup", "verify", "--all"][..], &["test", "--", "true"]] {
        let mut command = ordinary(&project);
        command.envs(layout).args(args);
        refusal::said(command.output().unwrap()).expect(0, &[]);
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let slots = cache.join("postgresql");
    let installed = refusal::names(&slots).into_iter().map(|name| slots.join(name)).chain([cache, venv]);
    for path in installed {
        assert_eq!(path.symlink_metadata().unwrap().uid(), 0, "{}", path.display());
    }
}

/// A user whom no passwd database knows, in the group 0: OpenShift's, and `docker run --user 12345:0`.
fn nameless(project: &Project, layout: &[(&str, &Path)]) -> Command {
    let program = project.dir().join("tandem");
    if !program.exists() {
        tandem::program_in(project.dir());
    }
    let mut command = tandem::command_as("setpriv", project.dir());
    command.args(["--reuid", "12345", "--regid", "0", "--clear-groups"]).arg(program);
    command.envs(layout.iter().copied()).env("HOME", "/").env("PATH", "/usr/local/bin:/usr/bin:/bin");
    command
}

#[test]
fn a_user_without_a_name_runs_all_of_it_in_a_volume_of_group_0() {
    if server().is_none() {
        return;
    }
    // Only the bases that are asked for: two at once refuse each other.
    let project = open_project("backup.pitr.enabled = true\nbackup.schedule = 'never'");
    let cache = open_dir("image").join("cache");
    let mut install = tandem::command(&project);
    refusal::said(install.env("TANDEM_CACHE_DIR", &cache).arg("install").output().unwrap())
        .expect(0, &["PostgreSQL 16"]);
    let volume = project.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    chown(&volume, Some(10_001), Some(0)).unwrap();
    fs::set_permissions(&volume, Permissions::from_mode(0o775)).unwrap();
    let layout: [(&str, &Path); 2] = [("TANDEM_CACHE_DIR", &cache), ("TANDEM_STATE_DIR", &volume)];

    for start in ["the first", "the second"] {
        let mut tandem = Tandem::start_as(&project, nameless(&project, &layout));
        tandem.wait_ready();
        let (postgres, workers) = postgres_and_workers(&tandem);
        assert!(all_run_as(12_345, &postgres) && all_run_as(12_345, &workers), "{start}: {postgres:?}");
        let preloads = |process: &Process| {
            let environment = procfs::process::Process::new(process.pid).unwrap().environ().unwrap();
            environment.keys().any(|name| name == "LD_PRELOAD")
        };
        assert!(preloads(&postgres[0]) && !preloads(&workers[0]), "{start}: the library is for PostgreSQL alone");
        for args in [
            &["psql", "-Atc", "select 1"][..],
            &["backup"],
            &["backup", "verify", "--all"],
            &["backup", "base"],
            &["test", "--", "true"],
        ] {
            let ran = nameless(&project, &layout).args(args).output().unwrap();
            refusal::said(ran).expect(0, &[]);
        }
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }

    // Without the library nobody can tell initdb who it is.
    let script = "for file in $(find /usr/lib /lib /usr/local/lib -maxdepth 2 -name libnss_wrapper.so)
        do mount --bind /dev/null $file; done; exec \"$@\"";
    let Some(namespace) = mount_namespace() else { return };
    let mut hidden = tandem::command_as("unshare", project.dir());
    let inner = nameless(&project, &layout);
    hidden.args(namespace).args(["sh", "-euc", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    hidden.envs(layout).arg("up").args(["--set", "log.format=text"]);
    refusal::said(hidden.output().unwrap()).expect(78, &["user id 12345", "libnss-wrapper", "/etc/passwd"]);
}
