//! Functions that the application's role has made run with that role's rights and never with a superuser's: not while its
//! database is backed up, verified, restored or looked at. And one that fails is no reason to have no backup.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::common::backups::{as_superuser, backup, running_with, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{Tandem, wait_for};

/// The file that the function of [`robber`] leaves.
struct Marker(tempfile::TempDir);

impl Marker {
    /// Make that function in the project's database.
    fn of_robber(project: &Project) -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let marker = Self(place);
        sql(project, &robber(marker.path().to_str().unwrap()));
        marker
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("marker")
    }

    fn exists(&self) -> bool {
        self.path().exists()
    }
}

/// A function that leaves a file if a superuser runs it, wherever it is called from; `rob` takes the place of constants.
fn robber(marker: &str) -> String {
    format!(
        "CREATE FUNCTION loot() RETURNS void LANGUAGE plpgsql AS $$BEGIN
             IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user) THEN
                 COPY (SELECT 1) TO PROGRAM 'cat > {marker}';
             END IF; END$$;
         CREATE FUNCTION rob(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM public.loot(); RETURN $1; END';"
    )
}

#[test]
fn a_backup_and_its_proof_run_no_function_of_a_tables_owner_as_the_superuser() {
    let (project, mut tandem) = running_with("backup.verify = 'content'");
    let marker = Marker::of_robber(&project);
    sql(
        &project,
        "CREATE TABLE indexed (n int); CREATE INDEX ON indexed ((n + rob(0))); INSERT INTO indexed VALUES (1), (2);
         CREATE TABLE counted (n int); CREATE STATISTICS s ON (n + rob(0)), n FROM counted; INSERT INTO counted VALUES (3);
         CREATE TABLE split (n int) PARTITION BY RANGE (n); CREATE TABLE split_1 PARTITION OF split FOR VALUES FROM (0) TO (9);
         CREATE INDEX ON split ((rob(n) + rob(1))); INSERT INTO split VALUES (4)",
    );
    // It robs whoever asks.
    as_superuser(&project, "app", "SELECT count(*) FROM indexed");
    assert!(marker.exists());
    let unharmed = |what: &str| assert!(!marker.exists(), "{what} ran it as the superuser");
    fs::remove_file(marker.path()).unwrap();
    for format in ["plain", "custom"] {
        let manifest = backup(&project, &["--format", format]);
        unharmed("a backup");
        let rows = &manifest["census"]["rows"];
        assert_eq!((&rows["public.indexed"], &rows["public.counted"]), (&2.into(), &1.into()));
        assert!(manifest["census"]["contents"]["public.split"].is_string(), "{manifest}");
    }
    refusal::run(&project, &["backup", "verify", "--all"]).expect(0, &["verified"]);
    unharmed("a verification");
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);
    unharmed("a restore");
    // No role is left, and none is in the roles that were backed up.
    let roles = as_superuser(&project, "app", "SELECT rolname FROM pg_roles WHERE rolname ~ '^tandem_'");
    assert_eq!(roles, "");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_look_at_the_database_runs_no_function_of_its_owner_as_the_superuser() {
    let (project, mut tandem) = running_with("");
    let marker = Marker::of_robber(&project);
    // A view in the place of a table that Tandem reads, and functions in front of PostgreSQL's own.
    sql(
        &project,
        "ALTER TABLE alembic_version RENAME TO real_version;
         CREATE VIEW alembic_version AS SELECT version_num FROM real_version WHERE rob(0) = 0;
         CREATE SCHEMA first;
         CREATE FUNCTION first.pg_is_in_recovery() RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM public.loot(); RETURN false; END';
         ALTER DATABASE app SET search_path = first, pg_catalog, public",
    );
    as_superuser(&project, "app", "SELECT pg_is_in_recovery()");
    assert!(marker.exists());
    fs::remove_file(marker.path()).unwrap();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    project.configure("migrations.run = 'none'");
    let mut tandem = Tandem::up(&project);
    wait_for("a look at the tables", || tandem.health().to_string().contains("real_version"));
    backup(&project, &[]);
    assert!(!marker.exists(), "a look at the server ran a function of the database's owner as the superuser");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Such as one that relies on a search path, and one that wants to be called by one role alone.
#[test]
fn a_function_that_fails_keeps_no_table_from_being_backed_up() {
    let (project, mut tandem) = running_with("backup.verify = 'content'");
    sql(
        &project,
        "CREATE FUNCTION half(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 / 2';
         CREATE FUNCTION quarter(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT half(half($1))';
         CREATE TABLE pathless (n int, body text); CREATE INDEX ON pathless (quarter(n));
         INSERT INTO pathless SELECT n, E'two\\nlines' FROM generate_series(1, 40) AS n;
         CREATE FUNCTION jealous(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN
             ASSERT current_user = 'app', 'called by ' || current_user; RETURN $1; END$$;
         CREATE TABLE guarded (n int); CREATE INDEX ON guarded ((n + jealous(0))); INSERT INTO guarded VALUES (1), (2);
         CREATE TABLE empty (); INSERT INTO empty DEFAULT VALUES; INSERT INTO empty DEFAULT VALUES",
    );
    let manifest = backup(&project, &[]);
    let rows = &manifest["census"]["rows"];
    assert_eq!((&rows["public.pathless"], &rows["public.guarded"]), (&40.into(), &2.into()));
    let contents = &manifest["census"]["contents"];
    assert!(contents["public.pathless"].is_null() && contents["public.api_keys"].is_string(), "{contents}");
    // Somebody who lets nobody in.
    as_superuser(
        &project,
        "app",
        "REVOKE CONNECT ON DATABASE app FROM PUBLIC; DROP INDEX pathless_quarter_idx; DROP TABLE guarded",
    );
    backup(&project, &[]);
    let roles = as_superuser(&project, "app", "SELECT rolname FROM pg_roles WHERE rolname ~ '^tandem_'");
    let access = as_superuser(&project, "app", "SELECT datacl::text FROM pg_database WHERE datname = 'app'");
    assert!(roles.is_empty() && !access.contains("tandem"), "{roles}, {access}");
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    // And where no other session is let in, rows are counted all the same.
    as_superuser(&project, "app", "ALTER DATABASE app CONNECTION LIMIT 0");
    let manifest = backup(&project, &[]);
    assert_eq!(manifest["census"]["rows"]["public.api_keys"], 2000);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_restore_stands_though_some_statistics_cannot_be_gathered() {
    let (project, mut tandem) = running_with("");
    sql(
        &project,
        "CREATE TABLE numbers (n text); INSERT INTO numbers VALUES ('x');
         CREATE STATISTICS s ON (n::int), (n || 'y') FROM numbers",
    );
    backup(&project, &[]);
    let said = refusal::run(&project, &["restore", "latest", "--yes"]);
    said.expect(0, &["holds", "no statistics of public.numbers could be gathered"]);
    let gathered = "SELECT count(*) > 0 FROM pg_stats WHERE tablename = 'api_keys'";
    assert_eq!(sql(&project, gathered), "t");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
