//! What comes from elsewhere is not trusted: a destination, a file, a manifest.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::common::backups::{
    as_superuser, backup, compressed_sql, dir, finals, path, read_gzip, replace_sql, rewrite, running, sql,
};
use crate::common::project::Project;
use crate::common::refusal::{self, names};
use crate::common::tandem::{self, Tandem};
use serde_json::{Value, json};

/// A directory that every user may write to, and the file in it whose presence tells that a program ran.
struct Proof {
    _dir: tempfile::TempDir,
    file: PathBuf,
}

impl Proof {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Self { file: dir.path().join("ran"), _dir: dir }
    }

    fn ran(&self) -> bool {
        self.file.exists()
    }

    fn touch(&self) -> String {
        format!("touch {}", self.file.display())
    }
}

/// A copy's SQL and manifest, changed by whoever can write where it lies; the digests are right.
fn change_copy(place: &Path, change: impl Fn(String) -> String, also: impl Fn(&mut Value)) {
    let names = names(place);
    let dump = names.iter().find(|name| name.ends_with(".sql.gz")).unwrap();
    let manifest = place.join(format!("{}.manifest.json", dump.split('.').next().unwrap()));
    let (bytes, digest) = compressed_sql(&change(read_gzip(&place.join(dump))));
    let mut value: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    value["sql_bytes"] = json!(100_000_000);
    value["size_bytes"] = bytes.len().into();
    value["sha256"] = digest.into();
    also(&mut value);
    fs::write(place.join(dump), bytes).unwrap();
    fs::write(manifest, value.to_string()).unwrap();
}

fn unsign(value: &mut Value) {
    value.as_object_mut().unwrap().remove("signature");
}

#[test]
fn what_nobody_here_has_signed_is_not_restored_from_a_destination() {
    let temp = tempfile::tempdir().unwrap();
    let (place, proof) = (temp.path().join("place"), Proof::new());
    fs::create_dir(&place).unwrap();
    let (project, _tandem) = running();
    project.configure(&format!("backup.destinations = ['file://{}']", place.display()));
    backup(&project, &[]);
    let source = format!("file://{}/latest", place.display());
    let whole: Vec<(PathBuf, Vec<u8>)> =
        names(&place).iter().map(|name| (place.join(name), fs::read(place.join(name)).unwrap())).collect();
    let put_back = || whole.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    let forget = || fs::remove_dir_all(dir(&project)).unwrap();

    // Signed here, it is restored without a word; changed in any way, it is not even fetched.
    forget();
    refusal::run(&project, &["restore", &source, "--yes"]).expect(0, &["2010 rows in 10 tables"]);
    let command = format!("\\! {}\n", proof.touch());
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 3] = [
        (|_| (), "not signed with a key of this deployment"),
        (unsign, "not signed with a key of this deployment"),
        (|value| value["signature"]["key"] = json!("0"), "not signed with a key of this deployment"),
    ];
    for (also, words) in changes {
        forget();
        put_back();
        change_copy(&place, |text| format!("{command}{text}"), also);
        let refused = refusal::run(&project, &["restore", &source, "--yes"]);
        refused.expect(1, &[words, "tandem backup key", "--trust", "Nothing was changed."]);
        assert_eq!(finals(&project), Vec::<String>::new());
        // Whoever vouches for it gets no program run either.
        let vouched = refusal::run(&project, &["restore", &source, "--yes", "--trust"]);
        vouched.expect(1, &["line 1 of its SQL has the command", "database app is as it was"]);
        assert!(!proof.ran());
    }

    // A new machine needs the key, or somebody who vouches.
    put_back();
    let key = tandem::run(&project, &["backup", "key"]);
    let other = Project::app_with("plain:app", &format!("workers.count = 1\nrestore.if_empty = '{source}'"));
    refusal::up(&other).expect(1, &["restore.if_empty", "not signed with a key of this deployment"]);
    let file = other.dir().join("key");
    fs::write(&file, &key.stdout).unwrap();
    refusal::run(&other, &["backup", "key", "--import", file.to_str().unwrap()]).expect(0, &["1 accepted"]);
    let kept = other.state().join("backup.key").metadata().unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    let mut tandem = Tandem::up(&other);
    assert_eq!(sql(&other, "SELECT count(*) FROM api_keys"), "2000");
    assert_eq!(tandem.stop(), 0);
    let third = Project::app_with(
        "plain:app",
        &format!("workers.count = 1\nrestore.if_empty = '{source}'\nrestore.trust = true"),
    );
    let mut tandem = Tandem::up(&third);
    assert_eq!(sql(&third, "SELECT count(*) FROM api_keys"), "2000");
    assert_eq!(tandem.stop(), 0);
}

#[test]
fn a_manifest_names_no_file_but_its_own() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path().join("place");
    fs::create_dir(&place).unwrap();
    let (project, _tandem) = running();
    project.configure(&format!("backup.destinations = ['file://{}']", place.display()));
    backup(&project, &[]);
    let target = project.dir().join("precious");
    fs::write(&target, "precious").unwrap();
    let source = format!("file://{}/latest", place.display());
    for name in [target.display().to_string(), "../../precious".to_owned(), ".lock".to_owned()] {
        fs::remove_dir_all(dir(&project)).unwrap();
        let away = place.join(&name);
        if !away.exists() {
            let _ = fs::write(&away, "CREATE ROLE evil SUPERUSER;");
        }
        change_copy(&place, |text| text, |value| value["globals"]["file"] = json!(name));
        let refused = refusal::run(&project, &["restore", &source, "--yes", "--trust"]);
        refused.expect(1, &["its manifest names", "for its roles", "Nothing was changed."]);
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious", "{name}");
        assert_eq!(finals(&project), Vec::<String>::new());
    }
    // A link in the place leads nowhere; a file that is larger than its manifest says is not fetched.
    let dump = names(&place).into_iter().find(|name| name.ends_with(".sql.gz")).unwrap();
    change_copy(
        &place,
        |text| text,
        |value| {
            value["globals"]["file"] = json!(format!("{}.globals.sql", dump.split('.').next().unwrap()));
            value["size_bytes"] = json!(100);
        },
    );
    let refused = refusal::run(&project, &["restore", &source, "--yes", "--trust"]);
    refused.expect(1, &["and should have at most 100"]);
    fs::remove_file(place.join(&dump)).unwrap();
    symlink(&target, place.join(&dump)).unwrap();
    let name = format!("file://{}/{dump}", place.display());
    assert_ne!(refusal::run(&project, &["restore", &name, "--yes", "--trust"]).code, 0);
    assert_eq!(finals(&project), Vec::<String>::new());
}

#[test]
fn no_command_of_psqls_runs_from_a_backup_or_an_imported_file() {
    let (project, _tandem) = running();
    let proof = Proof::new();
    let manifest = backup(&project, &[]);
    let whole = fs::read(path(&project, &manifest)).unwrap();
    let touch = proof.touch();
    for command in [
        format!("\\! {touch}"),
        format!("\\o |{touch}\nSELECT 1;"),
        format!("\\copy api_keys to program '{touch}'"),
        format!("SELECT 1 \\g |{touch}"),
        format!("\\set x `{touch}`"),
        format!("\\setenv PAGER '{touch}'"),
        "\\i /etc/hostname".to_owned(),
        "\\connect postgres".to_owned(),
    ] {
        let hostile = |text: String| text.replacen("CREATE TABLE", &format!("{command}\nCREATE TABLE"), 1);
        replace_sql(&project, &manifest, hostile);
        refusal::run(&project, &["backup", "verify"]).expect(1, &["BAD", "which pg_dump does not write"]);
        let refused = refusal::run(&project, &["restore", manifest["file"].as_str().unwrap(), "--yes"]);
        refused.expect(1, &["which pg_dump does not write", "database app is as it was"]);
        let file = project.dir().join("file.sql");
        fs::write(path(&project, &manifest), &whole).unwrap();
        fs::write(&file, hostile(read_gzip(&path(&project, &manifest)))).unwrap();
        let imported = refusal::run(&project, &["backup", "import", file.to_str().unwrap()]);
        imported.expect(1, &["is refused", "which pg_dump does not write"]);
        assert!(!proof.ran(), "{command}");
    }
    let names = "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database";
    assert_eq!(as_superuser(&project, "postgres", names), "app,postgres,template0,template1");
}

#[test]
fn no_program_of_the_servers_user_runs_for_a_dump() {
    let (project, _tandem) = running();
    let proof = Proof::new();
    let manifest = backup(&project, &[]);
    let whole = read_gzip(&path(&project, &manifest));
    let program = format!("COPY (SELECT 1) TO PROGRAM ''{}''", proof.touch());
    let runs = format!(
        "CREATE FUNCTION public.runs() RETURNS bool LANGUAGE plpgsql AS $$BEGIN EXECUTE '{program}'; RETURN true; END$$;"
    );
    for (statement, words) in [
        (format!("COPY (SELECT 1) TO PROGRAM '{}';", proof.touch()), "pg_dump does not write"),
        ("CREATE TABLE public.z (t text);\nCOPY public.z FROM '/etc/passwd';".to_owned(), "pg_dump does not write"),
        (format!("DO $$BEGIN {}; END$$;", program.replace("''", "'")), "permission denied"),
        (
            format!(
                "{runs}\nCREATE TABLE public.z (b bool CHECK (public.runs()));\nCOPY public.z (b) FROM stdin;\nt\n\\.\n"
            ),
            "permission denied",
        ),
        (format!("{runs}\nSELECT public.runs();"), "permission denied"),
        ("SELECT pg_catalog.pg_read_file('/etc/passwd');".to_owned(), "permission denied"),
        ("SELECT pg_catalog.lo_import('/etc/passwd');".to_owned(), "permission denied"),
        ("ALTER SYSTEM SET archive_command = 'x';".to_owned(), "permission denied"),
        ("ALTER ROLE postgres PASSWORD 'x';".to_owned(), "permission denied"),
        ("CREATE FUNCTION public.c() RETURNS void LANGUAGE c AS '/nowhere/x.so', 'x';".to_owned(), "permission denied"),
        (
            "CREATE FUNCTION public.c() RETURNS text LANGUAGE internal AS 'current_user';".to_owned(),
            "permission denied",
        ),
        ("SET SESSION AUTHORIZATION postgres;".to_owned(), "permission denied"),
        ("SET ROLE postgres;".to_owned(), "permission denied"),
    ] {
        let file = project.dir().join("file.sql");
        let hostile = whole.replacen(
            "\n--\n-- PostgreSQL database dump complete",
            &format!("\n{statement}\n\n--\n-- PostgreSQL database dump complete"),
            1,
        );
        assert_ne!(hostile, whole);
        fs::write(&file, &hostile).unwrap();
        let refused = refusal::run(&project, &["backup", "import", file.to_str().unwrap()]);
        assert_ne!(refused.code, 0, "{statement}");
        assert!(refused.said.contains(words), "{statement}: {}", refused.said);
        assert!(!proof.ran(), "{statement}");
        assert_eq!(finals(&project).len(), 3, "{statement}");
    }
    let roles = "SELECT string_agg(rolname, ',' ORDER BY rolname) FROM pg_roles WHERE rolname !~ '^pg_'";
    assert_eq!(as_superuser(&project, "postgres", roles), "app,postgres");
}

/// Whoever gets at the application's role plants a function, and waits for the next backup.
#[test]
fn what_the_applications_role_has_planted_gets_no_more_rights_from_a_backup() {
    let (project, _tandem) = running();
    let proof = Proof::new();
    sql(
        &project,
        &format!(
            "CREATE FUNCTION runs(b bool) RETURNS bool LANGUAGE plpgsql AS $$
             BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''{}'''; RETURN true;
             EXCEPTION WHEN insufficient_privilege THEN RETURN true; END$$;
             CREATE FUNCTION never(b bool) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN public.runs(b); END$$;
             CREATE TABLE planted (b bool CHECK (runs(b)), g bool GENERATED ALWAYS AS (never(b)) STORED);
             CREATE INDEX ON planted (never(b)); INSERT INTO planted VALUES (true);
             CREATE MATERIALIZED VIEW seen AS SELECT runs(b) FROM planted",
            proof.touch()
        ),
    );
    assert!(!proof.ran());
    for format in ["plain", "custom", "directory"] {
        backup(&project, &["--format", format]);
        refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
        refusal::run(&project, &["restore", "latest", "--yes"]).expect(0, &["holds"]);
        assert!(!proof.ran(), "{format}");
    }
    assert_eq!(
        as_superuser(&project, "postgres", "SELECT count(*) FROM pg_roles WHERE rolname ~ '^tandem_loading'"),
        "0"
    );
}

#[test]
fn a_dump_that_is_longer_than_its_manifest_says_ends_there() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    replace_sql(&project, &manifest, |text| format!("{text}{}", " \n".repeat(20_000_000)));
    let changed = fs::metadata(path(&project, &manifest)).unwrap().len();
    let digest = {
        let bytes = fs::read(path(&project, &manifest)).unwrap();
        use sha2::{Digest, Sha256};
        Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    rewrite(&project, &manifest, |it| {
        it["size_bytes"] = changed.into();
        it["sha256"] = digest.into();
    });
    refusal::run(&project, &["backup", "verify"]).expect(1, &["more than the", "bytes of SQL that its manifest says"]);
}
