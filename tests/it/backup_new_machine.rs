//! What a new machine gets from a backup beside the rows: what belongs to the database's name and to the roles.

use std::fs;

use crate::common::backups::{as_superuser, backup, dir, running, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem};

/// Grants, settings, connection limit and comment of a database.
const OF_DATABASE: &str = "
    SELECT concat_ws(E'\n', datconnlimit, shobj_description(oid, 'pg_database'),
               (SELECT string_agg(grantee::regrole || ' ' || privilege_type || ' ' || is_grantable, ', '
                                  ORDER BY grantee::regrole::text, privilege_type) FROM aclexplode(datacl)),
               (SELECT string_agg(setrole::regrole || ' ' || setconfig::text, E'\n' ORDER BY setrole::regrole::text)
                FROM pg_db_role_setting WHERE setdatabase = database.oid))
    FROM pg_database AS database WHERE datname = ";
/// What a role may and has set, but for its password.
const OF_ROLES: &str = "
    SELECT string_agg(concat_ws(' ', rolname, rolconfig::text, rolcanlogin, rolbypassrls, rolcreatedb, rolconnlimit,
               shobj_description(oid, 'pg_authid'),
               (SELECT string_agg(roleid::regrole::text, ',' ORDER BY roleid) FROM pg_auth_members WHERE member = role.oid)), E'\n' ORDER BY rolname)
    FROM pg_roles AS role WHERE rolname IN ('app', 'reader')";
const GIVEN: &str = "
    CREATE SCHEMA app; CREATE ROLE reader LOGIN PASSWORD 'x';
    ALTER DATABASE app SET search_path = app, public; ALTER DATABASE app SET app.words = E'it''s \\\\, \"a\"';
    ALTER ROLE app SET timezone = 'UTC'; ALTER ROLE app SET search_path = '$user', public; ALTER ROLE app BYPASSRLS CREATEDB CONNECTION LIMIT 50;
    GRANT pg_read_all_stats TO app; COMMENT ON ROLE app IS 'ours';
    ALTER ROLE app IN DATABASE app SET statement_timeout = '90s'; ALTER ROLE reader IN DATABASE app SET work_mem = '8MB';
    REVOKE CONNECT ON DATABASE app FROM PUBLIC; GRANT CONNECT ON DATABASE app TO reader WITH GRANT OPTION;
    ALTER DATABASE app CONNECTION LIMIT 60; COMMENT ON DATABASE app IS E'it''s \\\\ ours'";

fn database(project: &Project, name: &str) -> String {
    as_superuser(project, "postgres", &format!("{OF_DATABASE}'{name}'"))
}

#[test]
fn a_new_machine_gets_what_belongs_to_the_database_and_to_the_applications_role() {
    let (project, _tandem) = running();
    as_superuser(&project, "app", GIVEN);
    let (of_database, of_roles) = (database(&project, "app"), as_superuser(&project, "postgres", OF_ROLES));
    assert_eq!(of_database.lines().count(), 6, "{of_database}");
    for format in ["plain", "directory"] {
        backup(&project, &["--format", format]);
        let key = project.dir().join("key");
        fs::write(&key, tandem::run(&project, &["backup", "key"]).stdout).unwrap();
        let lines =
            format!("workers.count = 1\nrestore.if_empty = 'latest'\nbackup.dir = '{}'", dir(&project).display());
        let other = Project::app_with("plain:app", &lines);
        refusal::run(&other, &["backup", "key", "--import", key.to_str().unwrap()]).expect(0, &["accepted"]);
        let _other = Tandem::up(&other);
        assert_eq!(database(&other, "app"), of_database, "{format}");
        assert_eq!(as_superuser(&other, "postgres", OF_ROLES), of_roles, "{format}");
        // The role has this machine's password.
        assert_eq!(sql(&other, "SELECT count(*) FROM api_keys"), "2000", "{format}");
    }
}

/// Its roles and databases were changed since, and it knows best.
#[test]
fn a_live_server_keeps_what_was_changed_since_the_backup() {
    let (project, _tandem) = running();
    as_superuser(&project, "app", GIVEN);
    let had = database(&project, "app");
    let manifest = backup(&project, &[]);
    let changes = "ALTER ROLE app NOBYPASSRLS; ALTER ROLE app RESET timezone; ALTER ROLE reader NOLOGIN;
         ALTER DATABASE app RESET search_path; REVOKE CONNECT ON DATABASE app FROM reader; ALTER DATABASE app CONNECTION LIMIT 40";
    as_superuser(&project, "app", changes);
    let (of_database, of_roles) = (database(&project, "app"), as_superuser(&project, "postgres", OF_ROLES));
    assert_ne!(of_database, had);
    refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);
    assert_eq!(database(&project, "app"), of_database);
    // A database that was not there gets its own, and the roles of the server stay as they are.
    let second = [
        "--set",
        "postgres.database=second",
        "restore",
        manifest["file"].as_str().unwrap(),
        "--yes",
        "--other-database",
    ];
    refusal::run(&project, &second).expect(0, &["second holds"]);
    assert_eq!(database(&project, "second"), had);
    assert_eq!(as_superuser(&project, "postgres", OF_ROLES), of_roles);
}
