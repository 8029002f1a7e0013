//! An address that is the project's own is never attached to; and the ways into the database that Tandem runs.

use crate::common::control;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{Tandem, command, run};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1";

fn stdout(project: &Project, args: &[&str]) -> String {
    String::from_utf8(run(project, args).stdout).unwrap()
}

#[test]
fn an_address_that_is_this_projects_own_is_never_attached_to() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let (env, url) = (stdout(&project, &["env"]), stdout(&project, &["url"]));
    // While it runs, whatever the host is called.
    let named = url.trim().replace("127.0.0.1", "localhost");
    let own = "names this project's own server";
    refusal::run(&project, &["check", "--set", &format!("postgres.url={named}")]).expect(0, &[own, "managed"]);
    let other = named.replace(&format!(":{}/", project.postgres), ":1/").replace("app:", "app:other");
    let check = refusal::run(&project, &["check", "--set", &format!("postgres.url={other}")]);
    check.expect(0, &["Tandem attaches to it"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // As a file that was made of it is read at the next start.
    project.write(".env", &env);
    let mut tandem = Tandem::up(&project);
    assert!(tandem.log().contains(own), "{}", tandem.log());
    assert_ne!(tandem.postmaster(&project), 0);
    assert_eq!(stdout(&project, &["url"]), url);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let set = ["check", "--set", "postgres.mode=attach"];
    refusal::run(&project, &set).expect(78, &["\"attach\", but DATABASE_URL (.env:", own]);

    // By a password of the operator's too, in the environment.
    project.write(".env", "POSTGRES_PASSWORD=hunter2\n");
    let own_url = format!("postgresql+psycopg2://app:hunter2@localhost:{}/app", project.postgres);
    let mut command = command(&project);
    command.env("DATABASE_URL", own_url);
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    assert!(tandem.log().contains("DATABASE_URL (environment) names this project's own server"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn another_local_server_with_the_same_credentials_is_attached_to() {
    // What a run as managed left; the port is not written, so any port could be meant.
    let project = Project::app_with("plain:app", BARE).without("postgres.port");
    std::fs::create_dir_all(project.data()).unwrap();
    project.write(
        ".env",
        "POSTGRES_USER=app\nPOSTGRES_PASSWORD=pw\nPOSTGRES_DB=app\nDATABASE_URL=postgresql://app:pw@localhost:28832/app\n",
    );
    refusal::run(&project, &["check"]).expect(0, &["Tandem attaches to it"]);
    refusal::run(&project, &["check", "--set", "postgres.port=28832"]).expect(0, &["names this project's own server"]);
    // Who says so is believed, as long as nothing proves the opposite.
    let said = ["check", "--set", "postgres.port=28832", "--set", "postgres.mode=attach"];
    refusal::run(&project, &said).expect(0, &[]);
    std::fs::create_dir_all(project.state().join("run")).unwrap();
    std::fs::write(project.state().join("run/password"), "pw").unwrap();
    refusal::run(&project, &said).expect(78, &["\"attach\", but DATABASE_URL (.env:"]);
}

#[test]
fn psql_enters_as_the_superuser_over_the_unix_socket() {
    let project = Project::app_with("plain:app", BARE);
    let mut tandem = Tandem::up(&project);
    let sql = "SELECT current_user || ' ' || current_database() || ' ' || coalesce(inet_server_addr()::text, 'socket')";
    let said = control::run(&project, &["psql", "--superuser", "-XAtc", sql]);
    said.expect(0, &["postgres app socket"]);
    control::run(&project, &["psql", "-XAtc", "SELECT current_user"]).expect(0, &["app"]);
    let url = format!("postgres.url=postgresql://a:b@127.0.0.1:{}/x", project.postgres + 1);
    refusal::run(&project, &["--set", &url, "psql", "--superuser"]).expect(64, &["run by somebody else"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
