use super::*;

const GLOBALS: &str = r#"--
-- PostgreSQL database cluster dump
--

\restrict abc

SET standard_conforming_strings = on;
CREATE ROLE app;
ALTER ROLE app WITH NOSUPERUSER INHERIT LOGIN PASSWORD 'SCRAM-SHA-256$1:old;--';
CREATE ROLE "new; one";
ALTER ROLE "new; one" WITH NOSUPERUSER INHERIT LOGIN CONNECTION LIMIT -1 PASSWORD 'x' VALID UNTIL '2030-01-01 00:00:00+00';
COMMENT ON ROLE "new; one" IS E'one
two; it''s \\ CREATE ROLE no;';
CREATE ROLE admins;
CREATE ROLE new1;
CREATE ROLE new10;
CREATE ROLE pg_hidden;
/* CREATE ROLE commented; /* deeper */ */
ALTER ROLE new1 SET "search_path" TO '$user', 'it''s';
ALTER ROLE new1 IN DATABASE "my db" SET app.words TO 'a;b';
ALTER ROLE app SET work_mem TO '1MB';
GRANT admins TO app WITH ADMIN OPTION, INHERIT TRUE GRANTED BY postgres;
GRANT app TO "new; one" WITH INHERIT TRUE GRANTED BY postgres;
GRANT new1 TO new10 WITH INHERIT FALSE GRANTED BY postgres;
GRANT app TO other;
GRANT SELECT ON TABLE x TO new1;
CREATE TABLESPACE fast OWNER "new; one" LOCATION '/mnt/it''s';
"#;

fn made_of(globals: &str, there: &[&str], attributes: Attributes) -> Vec<String> {
    let there = there.iter().map(|&name| name.to_owned()).collect();
    missing(&statements(globals), &there, attributes).into_iter().map(|(_, statement)| statement).collect()
}

#[test]
fn a_new_server_gets_every_role_with_all_that_it_had() {
    let made = made_of(GLOBALS, &["app", "postgres"], Attributes::All);
    let wanted = [
        r#"CREATE ROLE "new; one""#,
        r#"ALTER ROLE "new; one" WITH NOSUPERUSER INHERIT LOGIN CONNECTION LIMIT -1 PASSWORD 'x' VALID UNTIL '2030-01-01 00:00:00+00'"#,
        "COMMENT ON ROLE \"new; one\" IS E'one\ntwo; it''s \\\\ CREATE ROLE no;'",
        r#"CREATE ROLE "admins""#,
        r#"CREATE ROLE "new1""#,
        r#"CREATE ROLE "new10""#,
        r#"ALTER ROLE "new1" SET "search_path" TO '$user' , 'it''s'"#,
        r#"ALTER ROLE "new1" IN DATABASE "my db" SET app.words TO 'a;b'"#,
        r#"GRANT "admins" TO "app" WITH ADMIN OPTION , INHERIT TRUE GRANTED BY postgres"#,
        r#"GRANT "app" TO "new; one" WITH INHERIT TRUE GRANTED BY postgres"#,
        r#"GRANT "new1" TO "new10" WITH INHERIT FALSE GRANTED BY postgres"#,
    ];
    assert_eq!(made, wanted);
}

#[test]
fn on_a_new_server_the_roles_that_are_there_get_all_but_a_password() {
    let globals = r#"
        ALTER ROLE postgres WITH SUPERUSER LOGIN PASSWORD 'x';
        ALTER ROLE postgres SET work_mem TO '1MB';
        ALTER ROLE app WITH NOSUPERUSER BYPASSRLS LOGIN CONNECTION LIMIT 7 PASSWORD 'it''s LOGIN' VALID UNTIL '2020-01-01';
        ALTER ROLE app IN DATABASE app SET "TimeZone" TO 'UTC';
        ALTER ROLE app SET login.password TO 'x';
        COMMENT ON ROLE app IS 'ours';
        GRANT pg_read_all_stats TO app WITH INHERIT TRUE GRANTED BY postgres;
        GRANT app TO postgres;
    "#;
    let wanted = [
        r#"ALTER ROLE "app" WITH NOSUPERUSER BYPASSRLS CONNECTION LIMIT 7"#,
        r#"ALTER ROLE "app" IN DATABASE app SET "TimeZone" TO 'UTC'"#,
        r#"ALTER ROLE "app" SET login.password TO 'x'"#,
        r#"COMMENT ON ROLE "app" IS 'ours'"#,
        r#"GRANT "pg_read_all_stats" TO "app" WITH INHERIT TRUE GRANTED BY postgres"#,
    ];
    let there = ["app", "pg_read_all_stats", "postgres"];
    assert_eq!(made_of(globals, &there, Attributes::WholeServer), wanted);
    for attributes in [Attributes::All, Attributes::None] {
        assert_eq!(made_of(globals, &there, attributes), Vec::<String>::new(), "{attributes:?}");
    }
}

#[test]
fn what_a_live_server_has_revoked_or_dropped_is_not_granted_again() {
    let made = made_of(GLOBALS, &["app", "admins", "postgres"], Attributes::None);
    assert!(
        made.contains(&r#"CREATE ROLE "new; one""#.to_owned())
            && made.iter().any(|it| it.starts_with("COMMENT ON ROLE"))
    );
    assert!(
        made.iter().all(|it| !it.contains("ALTER ROLE") && !it.contains("PASSWORD") && !it.contains("\"app\"")),
        "{made:?}"
    );
    assert!(made.contains(&r#"GRANT "new1" TO "new10" WITH INHERIT FALSE GRANTED BY postgres"#.to_owned()));
    // Nor to a role whose name only begins like that of a new one.
    let made = made_of(GLOBALS, &["app", "admins", "new10", "postgres"], Attributes::All);
    assert!(!made.iter().any(|it| it.starts_with(r#"GRANT "admins""#)), "{made:?}");
}

#[test]
fn a_file_that_is_no_pg_dumpalls_makes_nothing_else() {
    for hostile in [
        "CREATE ROLE x SUPERUSER;",
        "CREATE ROLE x; COPY t FROM PROGRAM 'id';",
        "ALTER ROLE x RENAME TO y;",
        "ALTER ROLE x WITH SUPERUSER (SELECT 1);",
        "GRANT pg_read_all_data, x TO y;",
        "GRANT x TO y; DROP DATABASE app;",
        "ALTER SYSTEM SET work_mem = '1';",
        "CREATE ROLE 'x';",
        "CREATE ROLE \"x",
        "COMMENT ON ROLE x IS 'a' || version();",
        "\\! id\nCREATE FUNCTION f() RETURNS void;",
    ] {
        let made = made_of(hostile, &[], Attributes::All);
        assert!(made.is_empty() || made == [r#"CREATE ROLE "x""#], "{hostile}: {made:?}");
    }
}
