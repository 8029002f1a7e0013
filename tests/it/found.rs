//! A project without a configuration, and keys that nobody wrote: what is found, and what is asked.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::common::bare::{Bare, FASTAPI, said, with_environment};
use crate::common::namespace::mount_namespace;
use crate::common::project::{root, venv};
use crate::common::tandem::{Tandem, command_as, get, wait_for};

#[test]
fn a_project_without_a_configuration_starts_and_is_told_what_was_found() {
    with_environment();
    let project = Bare::called("päth with \"quotes\" it's", &[("shop/__init__.py", ""), ("shop/main.py", FASTAPI)]);
    let alembic = root().join("tests/fixtures/alembic");
    for name in ["env.py", "script.py.mako"] {
        project.write(&format!("migrations/{name}"), &fs::read_to_string(alembic.join(name)).unwrap());
    }
    project.write("alembic.ini", "[alembic]\nscript_location = %(here)s/migrations\n");
    fs::create_dir(project.path().join("migrations/versions")).unwrap();
    let mut tandem = project.up();
    assert_eq!(get(project.app, "/").unwrap().1, "\"found\"");
    let log = tandem.log();
    for words in
        ["shop.main:app, FastAPI (shop/main.py:3)", "alembic upgrade head (alembic.ini)", "environment VIRTUAL_ENV"]
    {
        assert!(log.contains(words), "{words}: {log}");
    }
    // Only Alembic's own table: none of another application's.
    let tables = said(
        &project.run(&[
            "psql",
            "-Atc",
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
        ]),
        0,
    );
    assert_eq!(tables.trim(), "alembic_version");
    let status = said(&project.run(&["migrate", "status"]), 0);
    assert!(status.contains("current"), "{status}");
    let check = said(&project.run(&["check"]), 0);
    assert!(check.contains("found in shop/main.py:3") && check.contains("found in alembic.ini"), "{check}");

    // From a directory in it, it is the same project.
    let below = project.path().join("shop");
    let url = project.command_in(&below).arg("url").output().unwrap();
    assert!(said(&url, 0).contains(&format!(":{}/", project.postgres)));
    said(&project.command_in(&below).args(["health", "--ready"]).output().unwrap(), 0);
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn nothing_is_made_where_nothing_migrates() {
    with_environment();
    let project = Bare::new(&[("main.py", FASTAPI)]);
    let mut tandem = project.up();
    assert!(tandem.log().contains("migrations"), "{}", tandem.log());
    let tables = said(
        &project.run(&[
            "psql",
            "-Atc",
            "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
        ]),
        0,
    );
    assert_eq!(tables.trim(), "0");
    let refused = said(&project.run(&["migrate", "up"]), 64);
    assert!(refused.contains("no migrations were found"), "{refused}");
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn a_database_that_has_the_built_in_migrations_goes_on_with_them() {
    with_environment();
    let project = Bare::new(&[("main.py", FASTAPI), ("alembic.ini", "[alembic]\nscript_location = nowhere\n")]);
    let made = project.command().args(["migrate", "up", "--set", "migrations.run=seaorm"]).output().unwrap();
    assert!(said(&made, 0).contains("applied m004_add_indexes"));
    let mut tandem = project.up();
    assert!(tandem.log().contains("so these go on (migrations.run = \"seaorm\")"), "{}", tandem.log());
    let status = said(&project.run(&["migrate", "status"]), 0);
    assert!(status.contains("applied") && status.contains("004_add_indexes"), "{status}");
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn two_applications_are_a_question_and_elsewhere_an_error_with_the_choices() {
    let project = Bare::new(&[("main.py", FASTAPI), ("admin/__init__.py", ""), ("admin/app.py", FASTAPI)]);
    let text = said(&project.run(&["up"]), 78);
    for words in
        ["more than one application may be meant", "main:app, FastAPI (main.py:3)", "--set workers.app=admin.app:app"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!project.path().join(".tandem").exists(), "nothing was started");
    // A word is enough.
    let check = project.command().args(["check", "--set", "workers.app=main:app"]).output().unwrap();
    assert!(said(&check, 0).contains("--set"));
}

#[test]
fn a_person_at_a_terminal_is_asked_and_the_answer_is_kept() {
    with_environment();
    let project = Bare::new(&[("main.py", FASTAPI), ("admin/__init__.py", ""), ("admin/app.py", FASTAPI)]);
    let turns = r#"[["Which one? [1-2]", "2\n"], ["is ready", "\u0003"]]"#;
    let mut typist = project.with_ports(command_as("python3", &project.path()));
    typist.arg(root().join("tests/fixtures/typist.py")).arg(turns).args([env!("CARGO_BIN_EXE_tandem"), "up"]);
    let text = said(&typist.output().unwrap(), 0);
    assert!(text.contains("1  main:app, FastAPI (main.py:3)") && text.contains("the answer is written in"), "{text}");
    let written = fs::read_to_string(project.path().join("tandem.toml")).unwrap();
    assert!(written.contains("workers.app = \"admin.app:app\""), "{written}");
    assert!(said(&project.run(&["check"]), 0).contains("admin.app:app"));
}

#[test]
fn an_environment_without_uvicorn_is_told_before_anything_is_started() {
    with_environment();
    let project = Bare::new(&[("main.py", FASTAPI)]);
    // As `python3 -m venv --without-pip` makes one.
    let python = venv().join("bin/python").canonicalize().unwrap();
    project.write(".venv/pyvenv.cfg", &format!("home = {}\n", python.parent().unwrap().display()));
    fs::create_dir(project.path().join(".venv/bin")).unwrap();
    std::os::unix::fs::symlink(&python, project.path().join(".venv/bin/python")).unwrap();
    let mut command = project.command();
    let text = said(&command.env_remove("VIRTUAL_ENV").env("PATH", "/usr/bin:/bin").arg("up").output().unwrap(), 78);
    assert!(
        text.contains("Uvicorn, which runs the workers, cannot be imported by") && text.contains(".venv/bin/python"),
        "{text}"
    );
    assert!(!project.path().join(".tandem/postgres/16").exists());
}

#[test]
fn a_broken_pyproject_is_told_with_its_line() {
    let project = Bare::new(&[("main.py", FASTAPI), ("pyproject.toml", "[project]\nname = shop\n")]);
    let text = said(&project.run(&["up"]), 78);
    assert!(text.contains("pyproject.toml:2: not TOML"), "{text}");
}

#[test]
fn a_python_that_is_not_there_is_told_with_those_that_are() {
    let project =
        Bare::new(&[("main.py", FASTAPI), ("requirements.txt", "fastapi\nuvicorn\n"), (".python-version", "3.97\n")]);
    let mut command = project.command();
    // Without uv, and without an environment that is active.
    command.env_remove("VIRTUAL_ENV").env("PATH", "/usr/bin:/bin").args(["install", "--set", "python.installer=pip"]);
    let text = said(&command.output().unwrap(), 78);
    assert!(text.contains("asks for Python 3.97 (.python-version:1), and there is 3."), "{text}");
}

#[test]
fn a_lock_that_does_not_match_its_project_is_told_with_what_mends_it() {
    let project = Bare::new(&[
        ("main.py", FASTAPI),
        ("pyproject.toml", "[project]\nname = 'shop'\nversion = '1'\ndependencies = ['fastapi', 'httpx']\n"),
        ("uv.lock", "version = 1\n[[package]]\nname = 'fastapi'\nversion = '0.128.0'\n"),
    ]);
    let mut command = project.command();
    command.env_remove("VIRTUAL_ENV").env("PATH", "/usr/bin:/bin").arg("install");
    let text = said(&command.output().unwrap(), 78);
    assert!(text.contains("asks for httpx, which the lock lacks; run `uv lock`"), "{text}");
}

#[test]
fn a_project_that_cannot_be_written_says_where_the_state_could_go() {
    let project = Bare::new(&[("main.py", FASTAPI)]);
    let elsewhere = "state_dir (TANDEM_STATE_DIR) says where else the state can go";
    fs::write(project.path().join(".tandem"), "").unwrap();
    let text = said(&project.run(&["up"]), 73);
    assert!(text.contains(".tandem: File exists") && text.contains(elsewhere), "{text}");
    fs::remove_file(project.path().join(".tandem")).unwrap();
    // Root writes anywhere but into a file system that is mounted read-only.
    let Some(namespace) = mount_namespace() else { return };
    let script =
        "mount --bind \"$PWD\" \"$PWD\" && mount -o remount,bind,ro \"$PWD\" && cd \"$PWD\" && exec \"$0\" \"$@\"";
    let read_only = || {
        let mut command = project.with_ports(command_as("unshare", &project.path()));
        command.args(namespace).args(["sh", "-euc", script, env!("CARGO_BIN_EXE_tandem")]);
        command
    };
    let text = said(&read_only().arg("up").output().unwrap(), 73);
    assert!(text.contains(".tandem: Read-only file system") && text.contains(elsewhere), "{text}");
    // And there it goes.
    with_environment();
    let state = tempfile::tempdir().unwrap();
    fs::set_permissions(state.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = read_only();
    command.env("TANDEM_STATE_DIR", state.path());
    let mut tandem = Tandem::start_in(&project.path(), command, &["up", "--log-format", "text"]);
    wait_for("readiness", || {
        assert!(!tandem.ended(), "{}", tandem.log());
        get(project.health, "/ready").is_some_and(|(status, _)| status == 200)
    });
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(!project.path().join(".tandem").exists());
}
