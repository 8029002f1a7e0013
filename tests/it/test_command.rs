//! `tandem test`: a command with a throwaway server around it.

use std::fs;

use crate::common::harness::{Suite, place, wait_gone};
use crate::common::tandem::{self, get, lives, wait_for};
use nix::sys::signal::Signal;

/// Prints the value of one expression in the session's database.
fn select(expression: &str) -> String {
    format!("psql -XAtc \"SELECT {expression}\"")
}

#[test]
fn a_command_gets_a_migrated_database_of_its_own_and_its_exit_code_is_passed_on() {
    let suite = Suite::with("postgres.database = 'shop'\npostgres.user = 'clerk'");
    let script =
        format!("env >env; {}; psql -XAt \"$DATABASE_URL\" -c 'TABLE alembic_version'; exit 7", select("current_user"));
    let run = suite.run(&[], &script);
    run.expect(7, &["clerk\n", "004_add_indexes\n"]);
    let env = suite.read("env");
    let value = |name: &str| env.lines().find_map(|line| line.strip_prefix(&format!("{name}="))).map(str::to_owned);
    for (name, expected) in
        [("PGDATABASE", "shop"), ("PGUSER", "clerk"), ("PGHOST", "127.0.0.1"), ("DB_POOL_SIZE", "20")]
    {
        assert_eq!(value(name).as_deref(), Some(expected), "{name}");
    }
    assert!(value("DATABASE_URL").unwrap().starts_with("postgresql://clerk:"));
    assert!(value("PGPASSWORD").is_some() && value("PGPORT").is_some() && value("DB_POOL_TIMEOUT").is_some());
    wait_gone(&place(&value("TANDEM_TEST_SOCKET").unwrap()));
}

#[test]
fn a_project_without_a_configuration_gets_an_empty_database() {
    let suite = Suite::bare();
    let count = select("count(*) FROM pg_tables WHERE schemaname = 'public'");
    suite.run(&[], &count).expect(0, &["0\n"]);
    suite.run(&["--migrations", "sea-orm"], &count).expect(0, &["8\n"]);
}

#[test]
fn a_database_that_the_environment_names_is_never_touched() {
    let suite = Suite::bare();
    suite.write(".env", "DATABASE_URL=postgresql://prod:secret@db.example.invalid:5432/prod\n");
    let mut command = suite.command(&["--", "sh", "-c", "echo $DATABASE_URL; psql -XAtc 'SELECT 1'"]);
    command.env("DATABASE_URL", "postgresql://prod:secret@db.example.invalid:5432/prod");
    let run = crate::common::refusal::said(command.output().unwrap());
    run.expect(0, &["@127.0.0.1:", "1\n"]);
    assert!(!run.said.contains("secret") && !run.said.contains("example"), "{}", run.said);

    let bare = Suite::bare();
    let mut command = bare.command(&["--", "sh", "-c", "psql -XAtc 'SELECT 42'"]);
    let run = crate::common::refusal::said(command.env("DATABASE_URL", "sqlite:///test.db").output().unwrap());
    run.expect(0, &["42\n"]);
}

#[test]
fn a_command_that_is_not_there_exits_with_127() {
    let suite = Suite::bare();
    let said = |args: &[&str]| crate::common::refusal::said(suite.command(args).output().unwrap());
    said(&["--", "no-such-command"]).expect(127, &["no-such-command: command not found"]);
    suite.write("data.txt", "not a program");
    said(&["--", "./data.txt"]).expect(126, &["./data.txt: cannot be run"]);
    // Without a command it is pytest, which this project's environment does not hold.
    let mut command = suite.command(&[]);
    command.env("PATH", "/usr/bin:/bin");
    crate::common::refusal::said(command.output().unwrap())
        .expect(127, &["pytest is not installed", "pip install pytest"]);
}

#[test]
fn signals_are_passed_on_and_a_second_and_third_request_end_what_ignores_them() {
    let suite = Suite::bare();
    let mut run = suite
        .start(&[], "trap 'echo usr1 >got' USR1; touch set; while [ ! -e got ]; do sleep 0.01; done; exec sleep 1000");
    let place = suite.wait_place(&mut run);
    wait_for("the trap", || suite.path("set").exists());
    run.signal(Signal::SIGUSR1);
    wait_for("the signal", || suite.read("got") == "usr1");
    // The trap is gone with the shell.
    wait_for("sleep", || run.descendants().iter().any(|process| process.args == "sleep 1000"));
    run.signal(Signal::SIGTERM);
    assert_eq!(run.wait_code(), 128 + 15);
    wait_gone(&place);

    let stubborn = Suite::bare();
    let mut run = stubborn.start(&[], "trap '' INT TERM; touch deaf; while :; do sleep 0.05; done");
    let place = stubborn.wait_place(&mut run);
    wait_for("the traps", || stubborn.path("deaf").exists());
    for _ in 0..3 {
        run.signal(Signal::SIGINT);
        tandem::pause();
    }
    assert_eq!(run.wait_code(), 128 + 9);
    wait_gone(&place);
}

#[test]
fn nothing_is_left_of_a_run_however_it_is_killed() {
    for victim in ["tandem", "command", "postmaster", "janitor"] {
        let suite = Suite::bare();
        let mut run = suite.start(&[], "exec sleep 1000");
        let place = suite.wait_place(&mut run);
        let find = |part: &str| run.descendants().into_iter().find(|process| process.args.contains(part)).unwrap().pid;
        let (command, janitor) = (find("sleep 1000"), find("tandem-janitor"));
        let kill = |pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        match victim {
            "tandem" => {
                run.signal(Signal::SIGKILL);
                run.wait_exit();
            }
            "command" => {
                kill(command);
                assert_eq!(run.wait_code(), 128 + 9);
            }
            "postmaster" => {
                let first = crate::common::harness::postmaster(&place);
                kill(first);
                let file = place.join("postgres/16/postmaster.pid");
                let ready = || {
                    fs::read_to_string(&file)
                        .is_ok_and(|text| text.contains("ready") && !text.starts_with(&format!("{first}\n")))
                };
                wait_for("another postmaster", ready);
                run.signal(Signal::SIGTERM);
                assert_eq!(run.wait_code(), 128 + 15);
                assert!(run.log().contains("is started again"), "{}", run.log());
            }
            _ => {
                kill(janitor);
                run.signal(Signal::SIGTERM);
                assert_eq!(run.wait_code(), 128 + 15);
            }
        }
        wait_for("the end of the command", || !lives(command));
        wait_gone(&place);
    }
}

#[test]
fn killed_with_9_a_run_takes_along_what_went_into_a_session_of_its_own() {
    let suite = Suite::bare();
    let script = "setsid sh -c 'setsid sleep 1000 & echo $! >daemon.new; mv daemon.new daemon; exec sleep 1000' & \
                  while [ ! -e daemon ]; do sleep 0.01; done; touch started; exec sleep 1000";
    let mut run = suite.start(&[], script);
    let place = suite.wait_place(&mut run);
    wait_for("the daemons", || suite.path("started").exists());
    let sleeping = || -> Vec<i32> {
        run.descendants().iter().filter(|process| process.args == "sleep 1000").map(|process| process.pid).collect()
    };
    // The last becomes one just now.
    wait_for("all three", || sleeping().len() == 3);
    let left = sleeping();
    run.signal(Signal::SIGKILL);
    run.wait_exit();
    wait_for("the end of all of them", || !left.iter().any(|&pid| lives(pid)));
    wait_gone(&place);
}

#[test]
fn what_a_power_cut_leaves_the_next_run_sweeps() {
    let suite = Suite::bare();
    let mut run = suite.start(&[], "exec sleep 1000");
    let place = suite.wait_place(&mut run);
    let janitor = run.descendants().into_iter().find(|process| process.args.contains("tandem-janitor")).unwrap();
    // Both at once: nobody is left to clean up.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(janitor.pid), Signal::SIGKILL).unwrap();
    run.signal(Signal::SIGKILL);
    run.wait_exit();
    Suite::bare().run(&[], "true").expect(0, &[]);
    wait_gone(&place);
}

#[test]
fn daemons_that_a_command_leaves_behind_are_ended() {
    let suite = Suite::bare();
    let script = "setsid sh -c 'echo $$ >daemon; exec sleep 1000' & while [ ! -s daemon ]; do sleep 0.01; done; \
                  echo $TANDEM_TEST_SOCKET";
    let run = suite.run(&[], script);
    run.expect(0, &[]);
    assert!(!lives(suite.read("daemon").parse().unwrap()));
    wait_gone(&place(run.said.trim()));
}

#[test]
fn a_failing_command_shows_the_last_lines_of_the_servers_log() {
    let suite = Suite::bare();
    let run = suite.run(&[], "psql -Xc 'SELECT nonsense FROM nowhere' 2>/dev/null; exit 1");
    run.expect(1, &["last lines of PostgreSQL's log", "relation \"nowhere\" does not exist"]);
    assert!(!run.said.contains("starting PostgreSQL"), "{}", run.said);
    let quiet = suite.run(&[], "psql -Xc 'SELECT nonsense' 2>/dev/null; exit 0");
    quiet.expect(0, &[]);
    assert_eq!(quiet.said, "", "a command that succeeds is all there is to hear");
}

#[test]
fn a_kept_server_can_be_used_and_is_gone_when_it_is_ended() {
    let suite = Suite::bare();
    let run = suite.run(&["--keep"], "echo $TANDEM_TEST_SOCKET; psql -Xqc 'CREATE TABLE mine AS SELECT 42 AS answer'");
    run.expect(0, &["connect: ", "end it:  kill -INT "]);
    let place = place(run.said.lines().next().unwrap());
    let connect = run.said.lines().find_map(|line| line.trim().strip_prefix("connect: ")).unwrap().to_owned();
    // Another run sweeps, and leaves it alone.
    Suite::bare().run(&[], "true").expect(0, &[]);
    let asked = Suite::bare().run(&[], &format!("{connect} -XAtc 'TABLE mine'"));
    asked.expect(0, &["42\n"]);
    let end = run.said.lines().find_map(|line| line.trim().strip_prefix("end it:  ")).unwrap().to_owned();
    Suite::bare().run(&[], &end).expect(0, &[]);
    wait_gone(&place);

    let suite = Suite::bare();
    let run = suite.run(&["--keep-on-failure"], "echo $TANDEM_TEST_SOCKET");
    run.expect(0, &[]);
    wait_gone(&self::place(run.said.trim()));
    let run = suite.run(&["--keep-on-failure"], "echo $TANDEM_TEST_SOCKET; exit 2");
    run.expect(2, &["connect: "]);
    let end = run.said.lines().find_map(|line| line.trim().strip_prefix("end it:  ")).unwrap().to_owned();
    Suite::bare().run(&[], &end).expect(0, &[]);
    wait_gone(&self::place(run.said.lines().next().unwrap()));
}

#[test]
fn several_runs_at_once_never_collide() {
    let suites: Vec<_> = (0..4).map(|_| Suite::bare()).collect();
    let script =
        "psql -Xqc 'CREATE TABLE mine (x int)' && psql -XAtc 'SELECT count(*) FROM mine' && echo $PGPORT >port";
    let mut runs: Vec<_> = suites.iter().map(|suite| suite.start(&["--migrations", "seaorm"], script)).collect();
    let mut ports: Vec<String> = Vec::new();
    for (run, suite) in runs.iter_mut().zip(&suites) {
        assert_eq!(run.wait_code(), 0, "{}", run.log());
        ports.push(suite.read("port"));
        wait_gone(&suite.wait_place(run));
    }
    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), suites.len());
}

#[test]
fn the_real_workers_serve_beside_the_command() {
    let app_dir = crate::common::project::root().join("tests/fixtures/apps");
    let lines = format!("workers.app = 'plain:app'\nworkers.app_dir = '{}'\nworkers.count = 1", app_dir.display());
    let suite = Suite::with(&lines);
    let mut run = suite.start(&["--workers"], "echo $TANDEM_BASE_URL >url.new; mv url.new url; exec sleep 1000");
    let place = suite.wait_place(&mut run);
    wait_for("the address", || suite.path("url").exists());
    let port = suite.read("url").rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(get(port, "/").unwrap().0, 200);
    run.signal(Signal::SIGTERM);
    assert_eq!(run.wait_code(), 128 + 15);
    wait_gone(&place);

    let broken = Suite::with(&lines.replace("plain:app", "broken_import:app"));
    broken.run(&["--workers"], "echo never").expect(1, &["the stack of --workers", "broken_import"]);
}

#[test]
fn bad_usage_says_what_to_write() {
    let suite = Suite::bare();
    suite.run(&["--migrations", "alembic 'upgrade"], "true").expect(64, &["--migrations", "closed quotes"]);
    suite.run(&["--seed", "missing.sql"], "true").expect(78, &["test.seed", "missing.sql"]);
    suite.run(&["--set", "test.settings.port=1"], "true").expect(78, &["port"]);
}
