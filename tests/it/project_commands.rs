//! Commands that belong to one project: `tandem run`, `env`, `health`, and a project of Docker Compose's.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::bare::{Bare, FASTAPI, said, with_environment};
use crate::common::tandem::command_in;

/// Prints what a command of `tandem run` gets.
const SHOW: &str = "import os, sys, fastapi\nprint(os.environ['DATABASE_URL'].split('@')[1], os.environ['OWN'], sys.argv[1:])\n\
                    import shop.main\nsys.exit(7)\n";

#[test]
fn any_command_runs_as_workers_do_and_its_exit_code_is_passed_on() {
    with_environment();
    let files = [("shop/__init__.py", ""), ("shop/main.py", FASTAPI), ("show.py", SHOW), (".env", "OWN=mine\n")];
    let project = Bare::new(&files);
    // Nothing runs, and nothing ever did.
    let text = said(&project.run(&["run", "python", "show.py", "--flag", "a b"]), 7);
    let expected = format!("127.0.0.1:{}/app mine ['--flag', 'a b']", project.postgres);
    assert!(text.contains(&expected) && text.contains("PostgreSQL is not running"), "{text}");
    let mut tandem = project.up();
    let text = said(&project.run(&["run", "python", "show.py"]), 7);
    assert!(text.contains("mine []") && !text.contains("not running"), "{text}");
    let asked = "import os, sqlalchemy as s\nwith s.create_engine(os.environ['DATABASE_URL']).connect() as c:\n    \
                 print(c.execute(s.text('SELECT 6 * 7')).scalar())";
    assert!(said(&project.run(&["run", "python", "-c", asked]), 0).contains("42"));
    assert!(said(&project.run(&["run", "no-such-program"]), 127).contains("cannot run no-such-program"));
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn a_shell_with_the_projects_environment_is_no_trap() {
    with_environment();
    let project = Bare::new(&[("main.py", FASTAPI)]);
    let mut tandem = project.up();
    let env = said(&project.run(&["env", "--json"]), 0);
    let variables: std::collections::BTreeMap<String, String> = serde_json::from_str(&env).unwrap();
    assert_eq!(tandem.stop(), 0);
    // As after `eval "$(tandem env)"`, with the server stopped.
    let again = |args: &[&str]| {
        let mut command = project.command();
        command.env_remove("TANDEM_POSTGRES__PORT").envs(&variables).args(args);
        command.output().unwrap()
    };
    let check = said(&again(&["check"]), 0);
    assert!(check.contains("auto: managed") || check.contains("postgres.mode                  managed"), "{check}");
    let url = said(&again(&["url"]), 0);
    assert!(url.contains("postgresql://app:") && url.contains(&format!(":{}/app", project.postgres)), "{url}");
    said(&again(&["backup"]), 0);
}

#[test]
fn health_is_that_of_this_project() {
    with_environment();
    let running = Bare::new(&[("main.py", FASTAPI)]);
    let mut tandem = running.up();
    said(&running.run(&["health"]), 0);
    let other = Bare::new(&[("main.py", FASTAPI)]);
    for word in ["--json", "--ready"] {
        let mut command = other.command();
        command.env("TANDEM_HEALTH__LISTEN", format!("127.0.0.1:{}", running.health)).args(["health", word]);
        let text = said(&command.output().unwrap(), 1);
        assert!(text.contains("is answered by the Tandem of project-"), "{text}");
    }
    assert_eq!(tandem.stop(), 0);
}

/// The guide's lines.
const OF_COMPOSE: &str = "POSTGRES_USER=ffe_user\nPOSTGRES_PASSWORD=changeme\nPOSTGRES_DB=ffe\n\
                          DATABASE_URL=\"postgresql+psycopg2://ffe_user:changeme@postgres:5432/ffe\"\n";

#[test]
fn composes_own_environment_file_starts_as_it_stands() {
    with_environment();
    let compose = "services:\n  postgres:\n    image: postgres:16\n  backend:\n    build: .\n";
    let project = Bare::new(&[("main.py", FASTAPI), (".env", OF_COMPOSE), ("docker-compose.yml", compose)]);
    let mut tandem = project.up();
    let log = tandem.log();
    assert!(
        log.contains("names the server postgres, which does not resolve here and is taken for Docker Compose's"),
        "{log}"
    );
    let names = said(&project.run(&["psql", "-Atc", "SELECT current_user || ' ' || current_database()"]), 0);
    assert!(names.starts_with("ffe_user ffe\n"), "{names}");
    assert_eq!(tandem.stop(), 0);
    // Where a cluster manager makes names, one that does not resolve yet is waited for.
    let cluster = project.command().env("KUBERNETES_SERVICE_HOST", "10.0.0.1").arg("check").output().unwrap();
    assert!(said(&cluster, 0).contains("Tandem attaches to it"));
}

#[test]
fn a_configuration_above_is_used_unless_another_user_could_have_put_it_there() {
    let place = tempfile::tempdir().unwrap();
    let (project, below) = (place.path().join("project"), place.path().join("project/a/b"));
    fs::create_dir_all(&below).unwrap();
    fs::create_dir(project.join("config")).unwrap();
    fs::write(project.join("config/tandem.toml"), "name = 'above'\nworkers.app = 'main:app'\n").unwrap();
    fs::write(below.join(".env"), "TANDEM_NAME=below\n").unwrap();
    let check = |home: &std::path::Path| command_in(&below).env("HOME", home).arg("check").output().unwrap();
    let text = said(&check(place.path()), 0);
    assert!(
        text.contains("above") && !text.contains("below") && text.contains("notice: the configuration is "),
        "{text}"
    );
    // Not past the home directory.
    assert!(said(&check(&project.join("a")), 78).contains("there is no tandem.toml here"));
    fs::set_permissions(&project, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(said(&check(place.path()), 78).contains("is passed over"));
}

#[test]
fn a_lock_is_installed_with_its_hashes_though_its_tool_is_not_there() {
    let lock = |hash: &str| {
        format!(
            "[[package]]\nname = \"uvicorn\"\nversion = \"0.30.0\"\noptional = false\npython-versions = \">=3.8\"\ngroups = [\"main\"]\n\
             files = [{{file = \"uvicorn-0.30.0-py3-none-any.whl\", hash = \"sha256:{hash}\"}}]\n\
             [[package]]\nname = \"click\"\nversion = \"8.1.7\"\noptional = false\ngroups = [\"main\"]\n\
             files = [{{file = \"c.whl\", hash = \"sha256:ae74fb96c20a0277a1d615f1e4d73c8414f5a98db8b799a7931d1582f3390c28\"}}]\n\
             [[package]]\nname = \"h11\"\nversion = \"0.14.0\"\noptional = false\ngroups = [\"main\"]\n\
             files = [{{file = \"h.whl\", hash = \"sha256:e3fe4ac4b851c468cc8363d500db52c2ead036020723024a109d37346efaa761\"}}]\n\
             [[package]]\nname = \"colorama\"\nversion = \"0.4.6\"\noptional = false\ngroups = [\"main\"]\n\
             markers = \"platform_system == \\\"Windows\\\"\"\nfiles = [{{file = \"x.whl\", hash = \"sha256:00\"}}]\n\
             [metadata]\nlock-version = \"2.1\"\n"
        )
    };
    let pyproject =
        "[project]\nname = \"shop\"\nversion = \"1\"\nrequires-python = \">=3.9\"\ndependencies = [\"uvicorn\"]\n";
    let project = Bare::new(&[
        ("main.py", "async def app(scope, receive, send): ...\n"),
        ("pyproject.toml", pyproject),
        ("poetry.lock", &lock("78fa0b5f56abb8562024a59041caeb555c86e48d0efdd23c3fe7de7a4075bdab")),
    ]);
    let install = || {
        let mut command = project.command();
        command.env_remove("VIRTUAL_ENV").env("PATH", "/usr/local/bin:/usr/bin:/bin").arg("install");
        // A uvicorn beside python3 would be used as it is.
        command.args(["--set", "python.requirements=poetry.lock"]).output().unwrap()
    };
    said(&install(), 0);
    let site = glob(&project.path().join(".tandem/venv/lib"));
    for package in ["uvicorn-0.30.0.dist-info", "click-8.1.7.dist-info", "h11-0.14.0.dist-info"] {
        assert!(site.join(package).is_dir(), "{package}");
    }
    assert!(!site.join("colorama").exists());
    project.write("poetry.lock", &lock("00fa0b5f56abb8562024a59041caeb555c86e48d0efdd23c3fe7de7a4075bdab"));
    assert!(said(&install(), 1).contains("is not what the requirements' hashes say"));
}

/// The packages of the only Python below `lib`.
fn glob(lib: &std::path::Path) -> std::path::PathBuf {
    let version = fs::read_dir(lib).unwrap().next().unwrap().unwrap();
    version.path().join("site-packages")
}
