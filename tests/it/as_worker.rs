//! What runs the application's code runs as the workers do, whoever starts it: user, rights, home, descriptors, variables.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use procfs::process::Process;

use crate::common::project::Project;
use crate::common::refusal::said;
use crate::common::tandem::{self, Tandem, wait_for};
use crate::identity::open_project;
use ::tandem::process::identity;

/// A file that Tandem is started with, open under a number of its own.
const HANDED: &str = "handed";

/// Every sort of child that runs the application's code, each of which writes down what it is.
const LINES: &str = "workers.preload = true\nmigrations.run = ['sh', 'facts.sh', 'migration']\n\
                     hooks.after_ready = ['sh', 'facts.sh', 'hook']\nhooks.before_stop = ['sh', 'facts.sh', 'last']";
const COMPANION: &str = "\n[[process]]\nname = 'queue'\ncommand = ['sh', 'facts.sh', 'queue', 'stay']\n";
const FACTS: &str = r#"{
echo "uid=$(id -u)"; echo "groups=$(id -G)"; echo "home=$HOME"; echo "user=$USER"; echo "logname=$LOGNAME"
echo "rights=$(grep NoNewPrivs /proc/self/status | tr -dc 01)"; echo "directory=$(pwd)"
env | sed 's/^/env /'; ls -l /proc/self/fd | sed -n 's/.* -> /fd /p'
} >"$FACTS/$1.new"
mv "$FACTS/$1.new" "$FACTS/$1"
test -z "$2" || exec sleep 1000
"#;

/// What a child wrote down, by what it is called.
fn facts(project: &Project, name: &str) -> (BTreeMap<String, String>, String) {
    let path = project.dir().join("facts").join(name);
    wait_for(&format!("what the {name} is"), || path.exists());
    let text = fs::read_to_string(path).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| !name.contains(' '));
    (pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(), text)
}

/// A project whose children write down what they are, and `tandem up` in it: with one more descriptor, and with the
/// variables of whoever logged in.
fn project(lines: &str) -> Project {
    let project = open_project(&format!("{LINES}\n{lines}"));
    project.reconfigure(|text| format!("{text}{COMPANION}"));
    project.write("facts.sh", FACTS);
    project.write(HANDED, "");
    let facts = project.dir().join("facts");
    fs::create_dir(&facts).unwrap();
    fs::set_permissions(&facts, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    project
}

fn command(project: &Project) -> Command {
    let mut command = tandem::command_as("sh", project.dir());
    let script = format!("exec 9<{HANDED}; exec \"$@\"");
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_tandem")]).process_group(0);
    command
        .env("FACTS", project.dir().join("facts"))
        .env("HOME", "/home/of/whoever/logged/in")
        .env("XDG_CACHE_HOME", cache())
        .envs([("USER", "somebody"), ("LOGNAME", "somebody"), ("XDG_RUNTIME_DIR", "/run/user/0")])
        .envs([("SSH_AUTH_SOCK", "/run/agent"), ("TANDEM_POOL__SIZE", "1"), ("TANDEM_POSTGRES__USER", "clerk")])
        .envs([("TANDEM_BACKUP_AWS_SECRET_ACCESS_KEY", "hush-hush-hush"), ("OF_THE_APPLICATION", "kept")]);
    command
}

/// An ordinary user's cache, which the variables above would move.
fn cache() -> std::path::PathBuf {
    let of_home = || std::path::PathBuf::from(option("HOME").unwrap_or_else(|| "/".to_owned())).join(".cache");
    option("XDG_CACHE_HOME").map_or_else(of_home, Into::into)
}

fn option(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "what the tests were started with")]
    std::env::var(name).ok()
}

/// The numbers and places of a process's descriptors that lead to the file that Tandem was started with.
fn has_handed(pid: i32) -> bool {
    let descriptors = Process::new(pid).and_then(|process| process.fd()).into_iter().flatten().flatten();
    descriptors.into_iter().any(|info| format!("{:?}", info.target).contains(HANDED))
}

#[test]
fn every_child_that_runs_the_application_is_what_a_worker_is() {
    let root = identity::is_root();
    let project = project(if root { "workers.run_as = 'nobody'" } else { "" });
    let mut tandem = Tandem::start_as(&project, command(&project));
    tandem.wait_ready();
    let expected = identity::lookup("nobody").filter(|_| root);
    let own = identity::current().unwrap();
    let user = expected.as_ref().unwrap_or(&own);

    let worker = Process::new(tandem.workers()[0]).unwrap();
    assert_eq!(worker.status().unwrap().nonewprivs, Some(1), "the worker");
    assert_eq!(worker.status().unwrap().ruid, user.uid);
    for name in ["migration", "hook", "queue"] {
        let (facts, text) = facts(&project, name);
        let directory = project.dir().display().to_string();
        for (fact, value) in [("uid", user.uid.to_string()), ("rights", "1".into()), ("directory", directory)] {
            assert_eq!(facts[fact], value, "the {fact} of the {name}:\n{text}");
        }
        if let Some(user) = &expected {
            for (fact, value) in [
                ("groups", user.gid.to_string()),
                ("home", user.home.display().to_string()),
                ("user", user.name.clone()),
                ("logname", user.name.clone()),
            ] {
                assert_eq!(facts[fact], value, "the {fact} of the {name}:\n{text}");
            }
            assert!(!text.contains("env XDG_RUNTIME_DIR") && !text.contains("env SSH_AUTH_SOCK"), "{name}:\n{text}");
        }
        assert!(text.contains("env OF_THE_APPLICATION=kept"), "{name}:\n{text}");
        for operators in ["TANDEM_POOL__SIZE", "TANDEM_POSTGRES__USER", "TANDEM_BACKUP_AWS", "hush-hush"] {
            assert!(!text.contains(operators), "{operators} reaches the {name}:\n{text}");
        }
        assert!(!text.contains(HANDED), "what Tandem was started with reaches the {name}:\n{text}");
    }
    let (hook, text) = facts(&project, "hook");
    assert!(text.contains(&format!("env TANDEM_STATE_DIR={}", project.state().display())), "{hook:?}");

    // PostgreSQL and the template too.
    let all = tandem.descendants();
    assert!(all.iter().any(|process| process.args.contains("template.py")), "{all:?}");
    for process in all {
        assert!(!has_handed(process.pid), "{process:?}");
        let environment = Process::new(process.pid).and_then(|process| process.environ()).unwrap_or_default();
        let names = ["TANDEM_POOL__SIZE", "TANDEM_POSTGRES__USER", "TANDEM_BACKUP_AWS_SECRET_ACCESS_KEY"];
        let operators = environment.keys().find(|name| names.iter().any(|operators| name == operators));
        assert_eq!(operators, None, "{process:?}");
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let (last, text) = facts(&project, "last");
    assert_eq!((&last["uid"], &last["rights"]), (&user.uid.to_string(), &"1".to_owned()), "{text}");
}

#[test]
fn rights_can_be_left_to_the_application_and_its_own_words_win() {
    let project = project("workers.no_new_privs = false");
    project.reconfigure(|text| text.replace("\n[[process]]", "\n[workers.env]\nHOME = '/srv/home'\n[[process]]"));
    let mut tandem = Tandem::start_as(&project, command(&project));
    tandem.wait_ready();
    for name in ["migration", "hook", "queue"] {
        let (facts, text) = facts(&project, name);
        assert_eq!((facts["rights"].as_str(), facts["home"].as_str()), ("0", "/srv/home"), "{name}:\n{text}");
    }
    assert_eq!(tandem.get("/env?name=HOME").unwrap().1, "/srv/home");
    let worker = Process::new(tandem.workers()[0]).unwrap();
    assert_eq!(worker.status().unwrap().nonewprivs, Some(0));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_persons_own_command_gets_what_the_person_handed_down() {
    let project = Project::app("plain:app");
    project.write(HANDED, "read through a descriptor");
    let mut command = tandem::command_as("sh", project.dir());
    let script = format!(
        "exec 9<{HANDED}; exec \"$@\" test --migrations none -- sh -c 'cat <&9; grep NoNewPrivs /proc/self/status'"
    );
    command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_tandem")]).env("TANDEM_TEST__POOL", "1");
    said(command.output().unwrap()).expect(0, &["read through a descriptor", "NoNewPrivs:\t0"]);
}

#[test]
fn a_variable_that_is_dropped_reaches_no_child_by_any_way() {
    let lines = "workers.count = 1\nworkers.drop_env = ['AWS_*', 'PAYMENT_KEY']\n\
                 migrations.run = ['sh', '-c', 'env >migration']\nhooks.after_ready = ['sh', '-c', 'env >hook']";
    let project = Project::app_with("plain:app", lines);
    project.reconfigure(|text| {
        let own = "\n[workers.env]\nAWS_REGION = 'the-application-s'\nKEPT = 'kept'\n\
                   [[process]]\nname = 'queue'\ncommand = ['sh', '-c', 'env >queue; exec sleep 1000']\n\
                   env = { AWS_PROFILE = 'queue' }\n";
        format!("{text}{own}")
    });
    fs::set_permissions(project.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    project.write(".env", "PAYMENT_KEY=of-dotenv\nAWS_SESSION_TOKEN=of-dotenv\nOWN_KEY=own\n");
    let with = |mut command: Command| {
        command.envs([("AWS_SECRET_ACCESS_KEY", "of-the-environment"), ("AWS_REGION", "of-the-environment")]);
        command.env("PAYMENT_KEY", "of-the-environment");
        command
    };
    let mut tandem = Tandem::start_as(&project, with(tandem::command(&project)));
    tandem.wait_ready();
    let written = |name: &str| {
        let path = project.dir().join(name);
        wait_for(name, || fs::read_to_string(&path).is_ok_and(|text| text.contains("DATABASE_URL")));
        fs::read_to_string(&path).unwrap()
    };
    let test = with(tandem::command(&project)).args(["test", "--migrations", "none", "--", "env"]).output().unwrap();
    let of_tests = said(test).said;
    for (name, text) in [
        ("migration", written("migration")),
        ("hook", written("hook")),
        ("queue", written("queue")),
        ("test", of_tests),
    ] {
        assert!(!text.contains("of-the-environment") && !text.contains("of-dotenv"), "{name}:\n{text}");
        for kept in ["AWS_REGION=the-application-s", "KEPT=kept", "OWN_KEY=own"] {
            assert!(text.contains(kept), "{kept} does not reach the {name}:\n{text}");
        }
        assert_eq!(text.contains("AWS_PROFILE=queue"), name == "queue", "{name}:\n{text}");
    }
    for (name, value) in
        [("AWS_SECRET_ACCESS_KEY", None), ("PAYMENT_KEY", None), ("AWS_REGION", Some("the-application-s"))]
    {
        let (code, text) = tandem.get(&format!("/env?name={name}")).unwrap();
        assert_eq!((code == 200).then_some(text.as_str()), value, "{name}");
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn an_installation_imports_nothing_of_the_projects() {
    let lines = "workers.count = 1\npython.installer = 'pip'\npython.interpreter = '/usr/bin/python3'";
    let project = Project::app_with("plain:app", lines).without("python.venv").without("python.requirements");
    project.configure("python.requirements = 'requirements.txt'");
    project.write("requirements.txt", "no-such-package-at-all==1.0\n");
    for module in ["venv", "pip", "ensurepip", "uvicorn"] {
        project.write(&format!("{module}.py"), &format!("open('ran-{module}', 'w')\n"));
    }
    // Nothing is fetched: the first package that is asked for is not there.
    let output = tandem::command(&project).arg("install").env("PIP_NO_INDEX", "1").output().unwrap();
    assert_ne!(said(output).code, 0);
    let ran: Vec<_> =
        crate::common::refusal::names(project.dir()).into_iter().filter(|name| name.starts_with("ran-")).collect();
    assert!(ran.is_empty(), "{ran:?}");
}
