//! The connection budget of a server that Tandem runs: what the pools need is what PostgreSQL accepts.

use crate::common::control;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{Tandem, run};

/// The pools as the guide's `.env` has them.
const GUIDE: &str = "DB_POOL_SIZE=20\nDB_POOL_OVERFLOW=10\n";

fn max_connections(project: &Project) -> String {
    let output = run(project, &["psql", "-Atc", "SHOW max_connections"]);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_guides_pools_start_and_scale_to_four_without_a_number_for_the_server() {
    let project = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1");
    project.write(".env", GUIDE);
    let mut tandem = Tandem::up(&project);
    assert_eq!(max_connections(&project), "163");
    assert_eq!(tandem.get("/env?name=DB_POOL_SIZE").unwrap().1, "20");
    control::run(&project, &["scale", "4"]).expect(0, &["1 workers before, 4 now"]);
    control::run(&project, &["reload"]).expect(0, &["replaced 4 workers"]);
    let words = ["5 workers × (20 + 10)", "max_connections is 163 since the start", "a restart of Tandem makes it 193"];
    control::run(&project, &["scale", "5"]).expect(64, &words);
    // Pools that grew past what the running server accepts are refused too.
    project.write(".env", "DB_POOL_SIZE=40\nDB_POOL_OVERFLOW=10\n");
    let words = ["4 workers × (40 + 10)", "a restart of Tandem makes it 263", "nothing was changed"];
    control::run(&project, &["reload"]).expect(78, &words);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // The next start has room for them, and a smaller number written by hand is held against the pools.
    let check = refusal::run(&project, &["check", "--set", "workers.count=8"]);
    check.expect(0, &["max_connections is 463 (auto: room for 8 workers)", "auto: 463"]);
    let check = refusal::run(&project, &["check", "--set", "postgres.max_connections=100"]);
    check.expect(78, &["1 workers × (40 + 10)", "max_connections is 100", "raise postgres.max_connections to 113"]);
}

#[test]
fn an_attached_server_that_accepts_fewer_connections_is_told_before_the_workers_start() {
    let server = Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 1\npool.size = 1");
    let mut serving = Tandem::up(&server);
    assert_eq!(max_connections(&server), "100", "small pools get PostgreSQL's own default");
    let url = String::from_utf8(run(&server, &["url"]).stdout).unwrap();
    let project = Project::app_with("plain:app", "migrations.run = 'none'").without("postgres.port");
    project.write(".env", &format!("DATABASE_URL={url}"));
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert!(log.contains("4 workers × (20 + 10)") && log.contains("max_connections is 100"), "{log}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(serving.stop(), 0, "{}", serving.log());
}
