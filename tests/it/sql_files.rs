//! Numbered SQL files as migrations.

use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::Tandem;

const ONE: &str = "workers.count = 1\npool.size = 1\npool.overflow = 1";

/// A project with an application and these files in `migrations/`.
fn project(files: &[(&str, &str)]) -> Project {
    let project = Project::app_with("plain:app", ONE).without("migrations.run");
    files.iter().for_each(|(name, text)| write(&project, name, text));
    project
}

fn write(project: &Project, name: &str, text: &str) {
    std::fs::create_dir_all(project.dir().join("migrations")).unwrap();
    project.write(&format!("migrations/{name}"), text);
}

fn sql(project: &Project, statement: &str) -> String {
    let said = refusal::run(project, &["psql", "-XAtc", statement]);
    said.expect(0, &[]);
    said.said
}

#[test]
fn numbered_sql_files_are_found_and_applied_in_order_each_once() {
    let orders = "CREATE TABLE orders (id int PRIMARY KEY);\nINSERT INTO orders VALUES (1);\n";
    // What pg_dump writes at the top of its files; it is not for the next one.
    let path = "SELECT pg_catalog.set_config('search_path', '', false);\nALTER TABLE public.orders ADD note text;\n";
    let alone = "-- no-transaction\nCREATE INDEX CONCURRENTLY noted ON orders (note);\n";
    let project = project(&[("10_index.sql", alone), ("0001_orders.sql", orders), ("2_note.sql", path)]);
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    let places = ["0001_orders", "2_note", "10_index"].map(|name| log.find(&format!("applied migration {name}")));
    assert!(places.is_sorted() && places[0].is_some(), "{places:?}\n{log}");
    let status = refusal::run(&project, &["migrate", "status"]);
    status.expect(0, &["applied  0001_orders\napplied  2_note\napplied  10_index\n"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    write(&project, "0011_more.sql", "INSERT INTO orders VALUES (2);\n");
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert!(log.contains("applied migration 0011_more") && log.matches("applied migration ").count() == 1, "{log}");
    assert_eq!(sql(&project, "SELECT count(*) FROM orders"), "2\n");
    // With the workers serving.
    write(&project, "0012_deployed.sql", "ALTER TABLE orders ADD deployed int;\n");
    refusal::run(&project, &["deploy", "--dry-run"]).expect(0, &["1 that the database lacks"]);
    refusal::run(&project, &["deploy"]).expect(0, &[]);
    assert_eq!(sql(&project, "SELECT deployed FROM orders LIMIT 1"), "\n");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let tested = refusal::run(&project, &["test", "--", "sh", "-c", "psql -XAtc 'SELECT count(*) FROM orders'"]);
    tested.expect(0, &["2\n"]);
}

#[test]
fn a_file_that_fails_leaves_nothing_and_one_that_was_changed_is_refused() {
    let project = project(&[("1_a.sql", "CREATE TABLE a (x int);\n")]);
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied 1_a"]);
    write(&project, "2_b.sql", "CREATE TABLE b (x int);\nINSERT INTO nowhere VALUES (1);\n");
    let failed = refusal::up(&project);
    failed.expect(1, &["apply 2_b", "relation \"nowhere\" does not exist", "42P01"]);
    write(&project, "2_b.sql", "CREATE TABLE b (x int);\n");
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied 2_b"]);
    write(&project, "1_a.sql", "CREATE TABLE a (x bigint);\n");
    refusal::run(&project, &["migrate", "up"]).expect(65, &["1_a was changed after it was applied", "new file"]);
    std::fs::remove_file(project.dir().join("migrations/1_a.sql")).unwrap();
    refusal::run(&project, &["migrate", "up"]).expect(65, &["migration 1, which is not in"]);
    refusal::run(&project, &["migrate", "status"]).expect(0, &["applied  1_a\napplied  2_b\n"]);
}

#[test]
fn a_database_with_tables_and_no_record_is_adopted_on_demand_and_never_run_over() {
    let project = project(&[("1_a.sql", "CREATE TABLE a (x int);\nINSERT INTO a VALUES (1);\n")]);
    let mut tandem = Tandem::up(&project);
    sql(&project, "DROP TABLE _sqlx_migrations");
    write(&project, "2_b.sql", "INSERT INTO a VALUES (2);\n");
    refusal::run(&project, &["migrate", "up"]).expect(78, &["has tables, and no record", "`tandem migrate adopt`"]);
    refusal::run(&project, &["migrate", "adopt", "nothing"]).expect(64, &["has no nothing"]);
    refusal::run(&project, &["migrate", "adopt", "1_a"]).expect(0, &["all up to 1_a"]);
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied 2_b"]);
    assert_eq!(sql(&project, "SELECT string_agg(x::text, ',' ORDER BY x) FROM a"), "1,2\n");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn sql_files_go_back_by_their_down_files_alone() {
    let project = project(&[
        ("1_a.sql", "CREATE TABLE a (x int);\n"),
        ("2_b.up.sql", "CREATE TABLE b (x int);\n"),
        ("2_b.down.sql", "DROP TABLE b;\n"),
    ]);
    let mut tandem = Tandem::up(&project);
    refusal::run(&project, &["migrate", "down", "2"]).expect(64, &["1_a cannot be taken back", "1_a.down.sql"]);
    assert_eq!(sql(&project, "SELECT to_regclass('b') IS NOT NULL"), "t\n");
    refusal::run(&project, &["migrate", "down"]).expect(0, &["took back 2_b"]);
    assert_eq!(sql(&project, "SELECT to_regclass('b') IS NULL"), "t\n");
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied 2_b"]);
    let made = refusal::run(&project, &["migrate", "new", "next"]);
    made.expect(0, &["migrations/3_next.sql"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn sql_files_that_nobody_can_order_are_named_and_left_alone() {
    let project = project(&[("create.sql", "CREATE TABLE a (x int);\n")]);
    let mut tandem = Tandem::up(&project);
    let log = tandem.log();
    assert!(log.contains("migrations has SQL files, and nothing says what runs them"), "{log}");
    assert_eq!(sql(&project, "SELECT to_regclass('a') IS NULL"), "t\n");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    project.configure("migrations.run = 'sql'");
    refusal::up(&project).expect(78, &["there is no file such as 0001_create_orders.sql"]);
    write(&project, "1_a.sql", "");
    write(&project, "01_b.sql", "");
    refusal::run(&project, &["migrate", "status"]).expect(78, &["the same number"]);
}
