//! What somebody sees who meets Tandem for the first time: few lines, the cause of a failure in the last one, and what to do next.

use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::tandem::{self, Tandem, wait_for};

/// Small enough to start fast.
const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1";

/// A project with this application and these lines of configuration.
fn project(app: &str, lines: &str) -> Project {
    let project = Project::app_with("mine:app", lines).without("workers.app_dir");
    project.write("mine.py", app);
    project
}

/// An application whose startup runs `statements`.
fn starting(statements: &str) -> String {
    format!(
        "async def app(scope, receive, send):\n    if scope['type'] == 'lifespan':\n        await receive()\n        \
         {statements}\n        await send({{'type': 'lifespan.startup.complete'}})\n        await receive()\n        \
         await send({{'type': 'lifespan.shutdown.complete'}})\n        return\n    \
         await send({{'type': 'http.response.start', 'status': 200, 'headers': []}})\n    \
         await send({{'type': 'http.response.body', 'body': b'ok'}})\n"
    )
}

fn last_line(said: &str) -> &str {
    said.trim_end().lines().last().unwrap_or_default()
}

/// PostgreSQL's own words for a session that Tandem ends at a stop.
const FRIGHTENING: [&str; 3] = ["FATAL", "terminating connection", "connection to client lost"];

fn expect_calm(said: &str) {
    for words in FRIGHTENING {
        assert!(!said.contains(words), "{words}:\n{said}");
    }
}

#[test]
fn a_startup_that_fails_shows_its_traceback_once_and_its_cause_last() {
    let lines = BARE.replace("count = 1", "count = 4");
    let project = project(&starting("raise RuntimeError('no redis')"), &lines);
    let Refusal { code, said } = refusal::up(&project);
    assert_eq!(code, 69, "{said}");
    assert_eq!(said.matches("Traceback (most recent call last)").count(), 1, "{said}");
    assert!(last_line(&said).contains("RuntimeError: no redis"), "{said}");
    // Each of four workers is tried three times at most.
    assert!(said.matches("; restart in ").count() <= 8, "{said}");
    assert!(said.lines().count() <= 80, "{} lines:\n{said}", said.lines().count());
    expect_calm(&said);
}

#[test]
fn a_startup_that_fails_at_first_is_tried_again_and_serves() {
    let once = "import os\n\n        if not os.path.exists('tried'):\n            open('tried', 'w').close()\n            \
                raise RuntimeError('redis is starting too')";
    let project = project(&starting(once), BARE);
    // The workers' user writes here.
    std::fs::set_permissions(project.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert!(log.contains("RuntimeError: redis is starting too") && log.contains("; restart in 1s"), "{log}");
    assert_eq!(tandem.get("/"), Some((200, "ok".to_owned())));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn what_a_migration_failed_by_is_the_last_line() {
    let run = "migrations.run = ['alembic', 'upgrade', 'head']";
    let project = project(&starting("pass"), &BARE.replace("migrations.run = 'none'", run));
    let Refusal { code, said } = refusal::up(&project);
    assert_ne!(code, 0);
    // What Alembic says without an alembic.ini, to standard output.
    assert!(last_line(&said).contains("script_location"), "{said}");
    expect_calm(&said);
}

#[test]
fn a_first_start_says_each_migration_once_and_nothing_that_frightens() {
    let project = Project::backend();
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert!(!log.contains("already exists, skipping"), "{log}");
    assert!(log.matches("004_add_indexes").count() <= 1, "{log}");
    // The first address that it names answers.
    let (_, banner) = log.split_once("is ready after").unwrap_or_else(|| panic!("no banner:\n{log}"));
    let address =
        banner.lines().find_map(|line| Some(line.split_once("http://")?.1.split_whitespace().next()?.to_owned()));
    assert_eq!(address, Some(format!("127.0.0.1:{}", project.app)), "{banner}");
    let (status, body) = tandem.get("/").unwrap();
    assert!(status == 200 && body.contains("/docs"), "{status} {body}");
    for command in ["tandem status", "tandem logs -f", "tandem stop"] {
        assert!(banner.contains(command), "{banner}");
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    expect_calm(&tandem.log());
}

#[test]
fn workers_that_take_their_time_are_told() {
    let app = format!("import time\n\ntime.sleep(3.5)\n\n\n{}", starting("pass"));
    let project = project(&app, BARE);
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert!(log.contains("workers are starting: importing mine:app, 0 of 1 ready"), "{log}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn without_a_command_or_with_another_tools_the_right_ones_are_shown() {
    let project = project("", "");
    let five = ["tandem up", "tandem status", "tandem logs -f", "tandem test", "tandem stop"];
    refusal::run(&project, &[]).expect(64, &five);
    for (word, meant) in [
        ("start", "here that is `tandem up`"),
        ("serve", "`tandem up`"),
        ("dev", "`tandem up --reload`"),
        ("ps", "`tandem status`"),
        ("exec", "here that is `tandem "),
        ("shell", "here that is `tandem "),
        ("statuss", "similar subcommands exist: 'stats', 'status'"),
    ] {
        refusal::run(&project, &[word]).expect(64, &[meant]);
    }
    let version = refusal::run(&project, &["--version"]);
    version.expect(0, &["tandem 0.", "PostgreSQL 16."]);
    assert_eq!(refusal::run(&project, &["-V"]).said.lines().count(), 1);
}

#[test]
fn what_is_stopped_is_told_so_and_what_is_checked_is_judged() {
    let project = project(&starting("pass"), BARE);
    let mut tandem = Tandem::up(&project);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let stopped = refusal::run(&project, &["psql", "-c", "SELECT 1"]);
    stopped.expect(1, &["the database is stopped", "`tandem up`"]);
    refusal::run(&project, &["psql", "--version"]).expect(0, &["psql (PostgreSQL) 16"]);
    refusal::run(&project, &["down"]).expect(1, &["no tandem runs here", "`tandem up`"]);

    let all = refusal::run(&project, &["check"]);
    all.expect(0, &["workers.drain"]);
    assert!(last_line(&all.said).starts_with("the configuration is good: "), "{}", all.said);
    let changed = refusal::run(&project, &["check", "--changed"]);
    changed.expect(0, &["workers.count", "the configuration is good: "]);
    assert!(!changed.said.contains("workers.drain"), "{}", changed.said);

    project.configure("workers.port = 9000");
    refusal::run(&project, &["check"]).expect(78, &["workers.port", "did you mean `workers.listen`?"]);
}

#[test]
fn for_development_there_is_one_worker_and_a_line_for_each_request() {
    let project = project(&starting("pass"), "migrations.run = 'none'");
    let mut tandem =
        Tandem::start_with(&project, tandem::command(&project), &["up", "--reload", "--log-format", "text"]);
    tandem.wait_ready();
    assert_eq!(tandem.workers().len(), 1);
    tandem.get("/a/page").unwrap();
    tandem.wait_log("GET /a/page");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// What the shell offers behind `words`, of which the last is being typed.
fn offered(project: &Project, words: &[&str]) -> Vec<String> {
    let mut command = tandem::command(project);
    command.env("_TANDEM_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", words.len().to_string()).env("_CLAP_IFS", "\n");
    let output = command.args(["--", "tandem"]).args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().split('\n').map(str::to_owned).collect()
}

#[test]
fn a_shell_is_offered_the_services_and_the_backups_that_there_are() {
    let project = project(&starting("pass"), &BARE.replace("count = 1", "count = 2"));
    assert!(offered(&project, &["sta"]).contains(&"status".to_owned()));
    // Nothing runs: nothing is offered, and nothing is said.
    assert_eq!(offered(&project, &["restart", "w"]), [""]);
    let mut tandem = Tandem::up(&project);
    // On a busy machine the answer may come too late for a person at the keyboard, and is left out.
    wait_for("the services", || offered(&project, &["restart", "w"]) == ["worker-0", "worker-1"]);
    wait_for("postgres", || offered(&project, &["logs", "-f", "p"]).contains(&"postgres".to_owned()));
    refusal::run(&project, &["backup"]).expect(0, &[]);
    wait_for("the backups", || {
        let backups = offered(&project, &["restore", ""]);
        backups.contains(&"latest".to_owned()) && backups.iter().any(|name| name.starts_with("app_backup_"))
    });
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
