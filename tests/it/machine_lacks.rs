//! Backups on a machine that lacks something which the one has where they were made: a tablespace, a locale.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use crate::common::backups::{as_superuser, backup, replace_sql, rewrite, running, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem;
use serde_json::{Value, json};

fn state(project: &Project) -> String {
    let list: Value = serde_json::from_slice(&tandem::run(project, &["backup", "list", "--json"]).stdout).unwrap();
    list.as_array().unwrap().last().unwrap()["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_dump_is_restored_where_its_tablespaces_are_not_and_they_are_named() {
    let (project, mut tandem) = running();
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let owner = project.data().metadata().unwrap();
    chown(place.path(), Some(owner.uid()), Some(owner.gid())).unwrap();
    // The server's user must get there.
    let on_the_way = place.path().parent().unwrap();
    assert!(on_the_way.metadata().unwrap().mode() & 0o001 != 0, "{}", on_the_way.display());
    let make = |name: &str, dir: &str| {
        fs::create_dir(place.path().join(dir)).unwrap();
        chown(place.path().join(dir), Some(owner.uid()), Some(owner.gid())).unwrap();
        let at = place.path().join(dir);
        as_superuser(&project, "postgres", &format!("CREATE TABLESPACE {name} LOCATION '{}'", at.display()));
        as_superuser(&project, "postgres", &format!("GRANT CREATE ON TABLESPACE {name} TO app"));
    };
    make("fast", "fast");
    make("\"odd one\"", "odd");
    sql(
        &project,
        "CREATE TABLE quick (n int PRIMARY KEY USING INDEX TABLESPACE \"odd one\", s text) TABLESPACE fast;
         INSERT INTO quick SELECT n, 'SET default_tablespace = fast;' FROM generate_series(1, 10) AS n;
         CREATE TABLE kept (n int) TABLESPACE \"odd one\"; INSERT INTO kept VALUES (1)",
    );
    let kinds = ["plain", "custom", "directory"];
    let made: Vec<String> = kinds
        .iter()
        .map(|format| backup(&project, &["--format", format])["file"].as_str().unwrap().to_owned())
        .collect();
    refusal::run(&project, &["backup", "verify", "--all"]).expect(0, &["verified, 2021 rows in 12 tables"]);
    sql(&project, "DROP TABLE quick, kept");
    for tablespace in ["fast", "\"odd one\""] {
        as_superuser(&project, "postgres", &format!("DROP TABLESPACE {tablespace}"));
    }
    make("\"odd one\"", "another");
    let places = "SELECT relname || ' ' || coalesce(spcname, 'default') FROM pg_class LEFT JOIN pg_tablespace own \
                  ON own.oid = reltablespace WHERE relname IN ('quick', 'quick_pkey', 'kept') ORDER BY 1";
    for (format, file) in kinds.iter().zip(&made) {
        let restored = refusal::run(&project, &["restore", file, "--yes"]);
        restored.expect(0, &["2021 rows in 12 tables", "lacks the tablespace fast:", "SET TABLESPACE"]);
        assert_eq!(sql(&project, "SELECT count(*), min(s) FROM quick"), "10|SET default_tablespace = fast;");
        // pg_restore takes all of them or none.
        let other = if *format == "directory" { "default" } else { "odd one" };
        let expected = format!("kept {other}\nquick default\nquick_pkey {other}");
        assert_eq!(as_superuser(&project, "app", places), expected, "{format}");
    }
    // The kept databases lie in it.
    refusal::run(&project, &["restore", "--drop-kept", "--yes"]).expect(0, &["dropped"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_backup_whose_locale_this_machine_lacks_is_proven_with_another_and_what_fails_there_is_no_verdict() {
    let (project, mut tandem) = running();
    let manifest = backup(&project, &[]);
    let elsewhere = |it: &mut Value| it["census"]["properties"]["collate"] = json!("xx_XX.utf8");
    rewrite(&project, &manifest, elsewhere);
    let proven = refusal::run(&project, &["backup", "verify"]);
    proven.expect(0, &["tried with locale C.UTF-8: this machine lacks xx_XX.utf8", "verified, 2010 rows"]);
    assert_eq!(state(&project), "verified");
    // ICU is not in every PostgreSQL.
    rewrite(&project, &manifest, |it| {
        it["census"]["properties"]["provider"] = json!("i");
        it["census"]["properties"]["icu_locale"] = json!("no-such-locale-anywhere");
    });
    let without = refusal::run(&project, &["backup", "verify"]);
    assert!(matches!(without.code, 0 | 75), "bad for no fault of its own: {}", without.said);
    // What holds in its own locale alone.
    replace_sql(&project, &manifest, |text| {
        text.replacen("CREATE TABLE", "CREATE TABLE public.own (n int CHECK ('a' > 'B'));\nCREATE TABLE", 1).replace(
            "--\n-- PostgreSQL database dump complete",
            "INSERT INTO public.own VALUES (1);\n--\n-- PostgreSQL database dump complete",
        )
    });
    let beside =
        project.state().join("backups").join(manifest["file"].as_str().unwrap().replace(".sql.gz", ".manifest.json"));
    let mut changed: Value = serde_json::from_slice(&fs::read(&beside).unwrap()).unwrap();
    elsewhere(&mut changed);
    changed["census"]["properties"]["ctype"] = json!("C");
    fs::write(&beside, changed.to_string()).unwrap();
    let untried = refusal::run(&project, &["backup", "verify"]);
    untried.expect(75, &["could not be tried here, which says nothing against it", "xx_XX.utf8", "locale-gen"]);
    assert_ne!(state(&project), "bad");
    // Nor is a collation of the machine's that a column has.
    replace_sql(&project, &manifest, |text| {
        text.replacen(
            "CREATE TABLE",
            "CREATE TABLE public.own (s text COLLATE pg_catalog.\"xx_XX.utf8\");\nCREATE TABLE",
            1,
        )
    });
    refusal::run(&project, &["backup", "verify"]).expect(75, &["could not be tried here", "xx_XX.utf8"]);
    assert_ne!(state(&project), "bad");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
