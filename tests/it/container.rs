//! What a container gives a process: a cache that is closed or read-only, a volume whose modes drift, little shared memory, a
//! user without a name, a umask and variables of others. No engine is needed for these.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::namespace::in_namespace;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::skip::skip;
use crate::common::tandem::{self, Tandem, wait_for};
use ::tandem::process::identity;

fn project(lines: &str) -> Project {
    Project::app_with("plain:app", &format!("workers.count = 1\n{lines}"))
}

/// Run a shell script of the test's.
fn sh(script: &str, dir: &Path) {
    #[expect(clippy::disallowed_methods, reason = "a test prepares a directory")]
    let done = Command::new("sh").args(["-euc", script]).arg(dir).status().unwrap();
    assert!(done.success(), "{script}");
}

/// A project with a cache of its own in which everything is installed.
fn filled_cache(lines: &str) -> (Project, PathBuf) {
    let project = project(lines);
    let cache = project.dir().join("cache");
    // What the tests share is installed by whoever comes first.
    refusal::run(&project, &["install"]).expect(0, &["PostgreSQL 16"]);
    let said = refusal::run(&project, &["install", "--json"]).said;
    let installed: serde_json::Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let shared = Path::new(installed["postgres"]["bin"].as_str().unwrap()).ancestors().nth(2).unwrap();
    fs::create_dir(&cache).unwrap();
    if installed["postgres"]["origin"].as_str().unwrap().starts_with("package") {
        sh(&format!("cp -a '{}' \"$0\"/postgresql", shared.display()), &cache);
    }
    project.configure(&format!("cache_dir = '{}'", cache.display()));
    (project, cache)
}

/// All that needs a throwaway server, beside a running Tandem or not, and what tries settings.
const USES: &str =
    "\"$@\" backup && \"$@\" backup verify --all && \"$@\" test -- psql -Atc 'select 1' && \"$@\" check &&
    { \"$@\" check --set postgres.settings.work_memm=1; [ $? = 78 ]; } && exit 0; exit 1";

#[test]
fn a_read_only_cache_and_root_serve_backups_their_verification_and_tests() {
    // No directory for temporary files either: what is written lies in the state directory.
    for (closed, tmp) in [("mount -o remount,ro,bind \"$0\"/cache", "/tmp"), (":", "\"$0\"/closed")] {
        let (project, cache) = filled_cache("postgres.settings.work_mem = '8MB'");
        let before = refusal::names(&cache);
        let script = format!(
            "mount --bind \"$0\"/cache \"$0\"/cache; {closed}
             mkdir \"$0\"/closed; mount -t tmpfs -o ro tmpfs \"$0\"/closed
             mount -t tmpfs -o size=64m,mode=0755 tmpfs /dev/shm
             export TMPDIR={tmp}; {USES}"
        );
        let Some(mut command) = in_namespace(&project, &script) else { return };
        refusal::said(command.output().unwrap()).expect(0, &["verified", "1"]);
        let written = refusal::names(&cache) != before;
        assert_eq!(written, closed == ":", "templates go to the cache where they can");
        assert!(project.state().join("cache/test").exists() != written, "{:?}", refusal::names(&project.state()));
    }
}

#[test]
fn where_nothing_can_be_written_a_check_says_that_settings_were_not_tried() {
    let (project, _) = filled_cache("postgres.settings.work_mem = '8MB'");
    let script = "mkdir -p \"$0\"/closed; mount -t tmpfs -o ro tmpfs \"$0\"/closed
        [ ! -d \"$0\"/.tandem ] || mount -t tmpfs -o ro tmpfs \"$0\"/.tandem
        export TMPDIR=\"$0\"/closed; exec \"$@\" check";
    let Some(mut command) = in_namespace(&project, script) else { return };
    refusal::said(command.output().unwrap()).expect(0, &["work_mem", "notice: PostgreSQL did not try", "Read-only"]);
}

/// The binary as another user, without a home and without groups.
fn as_user(project: &Project, uid: u32, gid: u32) -> Command {
    let binary = tandem::program_in(project.dir());
    let mut command = tandem::command_as("setpriv", project.dir());
    let (uid, gid) = (uid.to_string(), gid.to_string());
    command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", &binary]);
    command.env("HOME", "/").env("PATH", "/usr/local/bin:/usr/bin:/bin").env_remove("XDG_CACHE_HOME");
    command
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_volume_that_was_opened_to_a_group_is_closed_again_and_served() {
    let project = project("backup.pitr.enabled = true\ntest.dir = './.tandem'");
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    refusal::run(&project, &["backup"]).expect(0, &[]);
    refusal::run(&project, &["test", "--", "true"]).expect(0, &[]);
    // As kubelet does at every mount, for a Pod's `fsGroup`.
    // The archiver's program is a second name of the tests' own binary.
    let open = "find \"$0\" -not -name tandem-wal -not -type l -exec chmod g+rwX {} + || true
        find \"$0\" -type d -exec chmod g+s {} + || true";
    sh(open, &project.state());
    let mut tandem = Tandem::up(&project);
    tandem.wait_log("closed again");
    let state = project.state();
    let private = [project.data(), state.join("postgres"), state.join("run/postgres"), state.join("backups")];
    for path in private {
        assert_eq!(mode(&path), 0o700, "{}", path.display());
    }
    assert_eq!((mode(&state.join("run/password")), mode(&state.join("lock"))), (0o600, 0o600));
    assert_eq!(tandem.log().matches("closed again").count(), 1, "{}", tandem.log());
    refusal::run(&project, &["backup"]).expect(0, &[]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    sh(open, &project.state());
    refusal::run(&project, &["test", "--", "true"]).expect(0, &[]);
}

#[test]
fn a_part_of_the_state_that_is_somebody_elses_is_refused_with_owner_and_way() {
    let mut project = project("migrations.run = 'none'");
    // Of the checkout, which that user may not enter.
    for key in ["workers.app_dir", "python.requirements", "python.venv"] {
        project = project.without(key);
    }
    if !identity::is_root() {
        return skip("only root can give a directory away");
    }
    let Some(user) = identity::lookup("nobody") else { return };
    // As Docker makes a bind mount that is not there: root's.
    fs::create_dir(project.state()).unwrap();
    fs::set_permissions(project.state(), Permissions::from_mode(0o755)).unwrap();
    let words = [&format!("as user id {}", user.uid), "belongs to 0:0, mode 0755", "chown", "container's volume"];
    let mut command = as_user(&project, user.uid, user.gid);
    refusal::said(command.args(["migrate", "status", "--set", "migrations.run=seaorm"]).output().unwrap())
        .expect(73, &words);

    // The volume was given to that user once root had used it: all that root made is to go with it.
    let state = project.state();
    fs::write(state.join("lock"), "").unwrap();
    fs::set_permissions(state.join("lock"), Permissions::from_mode(0o600)).unwrap();
    chown(&state, Some(user.uid), Some(user.gid)).unwrap();
    let whole = format!("chown -R {}:{} {}", user.uid, user.gid, state.display());
    let mut command = as_user(&project, user.uid, user.gid);
    refusal::said(command.args(["migrate", "status", "--set", "migrations.run=seaorm"]).output().unwrap())
        .expect(73, &[&whole, "belongs to 0:0, mode 0600", "or run Tandem as user id 0"]);
    fs::remove_file(state.join("lock")).unwrap();
    chown(&state, Some(0), Some(0)).unwrap();

    // Root's server was another user's.
    let run = project.state().join("run");
    fs::create_dir_all(run.join("postgres")).unwrap();
    chown(run.join("postgres"), Some(12_345), None).unwrap();
    let refused = refusal::up(&project);
    refused.expect(73, &["belongs to user id 12345", "chown -R", "postgres.run_as"]);
    assert!(!refused.said.contains("shorter path"), "{}", refused.said);
}

#[test]
fn a_second_tandem_is_told_on_which_host_the_first_runs() {
    let project = project("migrations.run = 'none'");
    let mut tandem = Tandem::up(&project);
    let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
    refusal::run(&project, &["up"]).expect(73, &[&format!("(pid {} on host {host}, `tandem up`, since", tandem.pid())]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_server_starts_whatever_shared_memory_there_is() {
    let shows = "set +e; \"$@\"; code=$?; exit $code";
    for (place, settings, kind) in [
        ("-o size=1m,mode=1777", "", "mmap"),
        ("-o ro", "", "mmap"),
        ("-o mode=0755", "", "mmap"),
        ("-o size=1m,mode=1777", "postgres.settings.dynamic_shared_memory_type = 'sysv'", "sysv"),
        ("-o size=1g,mode=1777", "postgres.settings.work_mem = '4MB'", "posix"),
    ] {
        // Root's server is another user, whom a closed directory keeps out; an ordinary user's own would not.
        if place == "-o mode=0755" && !identity::is_root() {
            continue;
        }
        let project = project(&format!("migrations.run = 'none'\n{settings}"));
        let script = format!("mount -t tmpfs {place} tmpfs /dev/shm; {shows}");
        let Some(command) = in_namespace(&project, &script) else { return };
        let mut tandem = Tandem::start_as(&project, command);
        tandem.wait_ready();
        let shown = refusal::run(&project, &["psql", "-Atc", "show dynamic_shared_memory_type"]).said;
        assert_eq!(shown.trim(), kind, "{place} {settings}\n{}", tandem.log());
        assert_eq!(tandem.log().contains("--shm-size"), kind == "mmap", "{}", tandem.log());
        assert_eq!(stop_below(&mut tandem), 0, "{}", tandem.log());
    }
}

/// Stop the Tandem that a script started, which is not the script's own process.
fn stop_below(tandem: &mut Tandem) -> i32 {
    let below = tandem.descendants();
    let own = below.iter().find(|process| process.name == "tandem").expect("tandem runs below the script");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(own.pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    tandem.wait_code()
}

/// Everything below `dir` that group or others may write, sockets and links aside.
fn open_below(dir: &Path) -> Vec<PathBuf> {
    let mut open = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let meta = entry.path().symlink_metadata().unwrap();
            if meta.is_dir() {
                dirs.push(entry.path());
            }
            let counts = meta.is_dir() || meta.is_file();
            if counts && meta.mode() & 0o022 != 0 {
                open.push(entry.path());
            }
        }
    }
    open
}

#[test]
fn whatever_the_umask_nothing_of_tandems_is_open_to_others_and_children_get_the_umask() {
    let hook = "hooks.after_ready = ['sh', '-c', 'umask >umask.new; mv umask.new umask']";
    let project = project(&format!("backup.pitr.enabled = true\n{hook}"));
    // The workers' user writes here.
    fs::set_permissions(project.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = tandem::command_as("sh", project.dir());
    command.args(["-c", "umask 000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tandem")]);
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    wait_for("the hook", || project.dir().join("umask").exists());
    assert_eq!(fs::read_to_string(project.dir().join("umask")).unwrap().trim(), "0000");
    for what in [&["backup"][..], &["backup", "verify", "--all"]] {
        let mut command = tandem::command_as("sh", project.dir());
        command.args(["-c", "umask 000; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_tandem")]).args(what);
        refusal::said(command.output().unwrap()).expect(0, &[]);
    }
    assert_eq!(open_below(&project.state()), Vec::<PathBuf>::new());
    assert_eq!(mode(&project.state().join("lock")), 0o600);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn git_is_kept_out_of_the_state_directory_from_the_first_moment() {
    let ignored = |project: &Project| {
        let path = project.state().join(".gitignore");
        assert_eq!(fs::read_to_string(&path).unwrap(), "*\n");
        path
    };
    // The environment is there before anything else.
    let project = Project::app("plain:app").without("python.venv").without("python.requirements");
    project.write("requirements.txt", "nosuchpackage-at-all\n");
    project.configure("python.requirements = 'requirements.txt'");
    assert_ne!(refusal::run(&project, &["install"]).code, 0);
    ignored(&project);

    let project = self::project("");
    refusal::run(&project, &["migrate", "up"]).expect(0, &[]);
    fs::remove_file(ignored(&project)).unwrap();
    refusal::run(&project, &["migrate", "up"]).expect(0, &[]);
    // What somebody wrote there is left.
    fs::write(ignored(&project), "# mine\n").unwrap();
    refusal::run(&project, &["migrate", "up"]).expect(0, &[]);
    assert_eq!(fs::read_to_string(project.state().join(".gitignore")).unwrap(), "# mine\n");
}

#[test]
fn a_wrong_configuration_is_a_line_of_json_for_each_problem_where_that_is_asked_for() {
    let project = project("workers.cuont = 3\nworkers.backlog = 'many'");
    let by_flag = refusal::run(&project, &["up", "--log-format", "json"]);
    let mut command = tandem::command(&project);
    let by_variable = refusal::said(command.env("TANDEM_LOG__FORMAT", "json").arg("check").output().unwrap());
    // Nobody looks at a terminal: whatever collects the lines of `up` collects the last one too.
    let by_pipe = refusal::run(&project, &["up"]);
    for refused in [by_flag, by_variable, by_pipe] {
        refused.expect(78, &["workers.cuont", "backlog"]);
        let lines: Vec<serde_json::Value> =
            refused.said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        assert_eq!(lines.len(), 2, "{}", refused.said);
    }
    let refused = refusal::run(&project, &["up", "--log-format", "text"]);
    assert!(refused.said.starts_with("tandem: the configuration has 2 problems:\n"), "{}", refused.said);
}

#[test]
fn a_first_start_tells_each_migration_once_and_readiness_in_a_word() {
    let project = project("");
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert!(!log.contains("already exists, skipping"), "{log}");
    let told: Vec<&str> = log.lines().filter(|line| line.contains("applied migration")).collect();
    let one = told.iter().filter(|line| line.contains("001")).count();
    assert!(told.len() > 2 && one == 1 && !log.contains("migration applied"), "{log}");
    refusal::run(&project, &["health", "--ready"]).expect(0, &["ready (200)"]);
    refusal::run(&project, &["health"]).expect(0, &["healthy (200)"]);

    // The kernel takes a worker before PostgreSQL.
    let score =
        |pid: i32| -> i32 { fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap() };
    let worker = tandem.workers()[0];
    assert!(score(worker) > score(tandem.pid()) && score(worker) > score(tandem.postmaster(&project)));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
