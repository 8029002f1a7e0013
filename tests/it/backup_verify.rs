//! `tandem backup verify`: what restores is proven, and what does not is named.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;

use crate::common::backups::{SLOW, as_superuser, backup, command, dir, path, replace_sql, running, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::small_disk::{on_a_small_disk, while_a_ready_server_stands_still_in};
use crate::common::tandem::{self, Tandem, still_lives, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The state of the newest backup.
fn state(project: &Project) -> String {
    let list: Value = serde_json::from_slice(&tandem::run(project, &["backup", "list", "--json"]).stdout).unwrap();
    list.as_array().unwrap().last().unwrap()["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_backup_of_every_format_is_verified_by_a_restore() {
    let (project, mut tandem) = running();
    let kinds = [("plain", "gzip"), ("plain", "zstd"), ("plain", "none"), ("custom", "zstd"), ("directory", "gzip")];
    for (format, compress) in kinds {
        backup(&project, &["--format", format, "--compress", compress]);
    }
    // None of it needs the server, which must not be touched.
    assert_eq!(tandem.stop(), 0);
    let verified = refusal::run(&project, &["backup", "verify", "--all"]);
    verified.expect(0, &["verified, 2010 rows in 10 tables"]);
    assert_eq!(verified.said.matches(": verified, 2010 rows").count(), kinds.len(), "{}", verified.said);
    let list = refusal::run(&project, &["backup", "list"]);
    assert_eq!(list.said.matches(" verified").count(), kinds.len(), "{}", list.said);
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn cut_altered_and_empty_files_are_found_and_named() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    let path = path(&project, &manifest);
    let whole = fs::read(&path).unwrap();
    let name = manifest["file"].as_str().unwrap();
    let mut altered = whole.clone();
    altered[whole.len() / 2] ^= 1;
    let table: [(&[u8], String); 4] = [
        (
            &whole[..whole.len() / 2],
            format!("{name} is cut short: it has {} of {} bytes", whole.len() / 2, whole.len()),
        ),
        (&whole[..whole.len() - 1], format!("{name} is cut short")),
        (&altered, format!("{name} was altered")),
        (b"", format!("{name} is empty")),
    ];
    for (bytes, words) in table {
        fs::write(&path, bytes).unwrap();
        refusal::run(&project, &["backup", "verify"]).expect(1, &["BAD", &words]);
        assert_eq!(state(&project), "bad");
    }
    fs::write(&path, &whole).unwrap();
    refusal::run(&project, &["backup", "verify", name]).expect(0, &["verified"]);
    fs::remove_file(&path).unwrap();
    refusal::run(&project, &["backup", "verify", name]).expect(64, &["there is no backup"]);
}

#[test]
fn a_dump_cut_inside_its_rows_is_found_though_its_digest_is_right() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    replace_sql(&project, &manifest, |text| {
        let rows = text.find("COPY public.api_keys").unwrap();
        text[..text[rows..].match_indices('\n').nth(100).unwrap().0 + rows + 1].to_owned()
    });
    refusal::run(&project, &["backup", "verify"]).expect(1, &["BAD", "cut short: pg_dump's last line is missing"]);
}

#[test]
fn rows_schema_version_and_constraints_are_compared() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    let again = "ALTER TABLE ONLY public.\"odd \"\" name\"\n    ADD CONSTRAINT";
    let first = "1\tkey 1\t";
    replace_sql(&project, &manifest, |text| {
        let row = text.find(first).unwrap();
        let end = row + text[row..].find('\n').unwrap() + 1;
        let text = format!("{}{}", &text[..row], &text[end..]).replace("004_add_indexes", "003_something");
        let constraint = text.find(again).unwrap();
        let end = constraint + text[constraint..].find(";\n").unwrap() + 2;
        format!("{}{}", &text[..constraint], &text[end..])
    });
    refusal::run(&project, &["backup", "verify"]).expect(
        1,
        &[
            "table public.api_keys has 1999 rows, not 2000",
            "the schema's version is 003_something, not 004_add_indexes",
            "constraint public.\"odd \"\" name\" odd \" name_pkey PRIMARY KEY (id) is missing",
        ],
    );
}

#[test]
fn sql_that_does_not_run_and_a_missing_manifest_are_named() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    replace_sql(&project, &manifest, |text| text.replacen("CREATE TABLE", "CREATE TABEL", 1));
    let bad = refusal::run(&project, &["backup", "verify"]);
    bad.expect(1, &["it does not restore: psql failed (exit status 3)", "syntax error"]);
    let stem = manifest["file"].as_str().unwrap().split('.').next().unwrap();
    fs::remove_file(dir(&project).join(format!("{stem}.manifest.json"))).unwrap();
    refusal::run(&project, &["backup", "verify", stem]).expect(1, &["BAD", "it has no manifest"]);
    refusal::run(&project, &["backup", "list"]).expect(0, &["incomplete: it has no manifest"]);
}

#[test]
fn killed_in_the_middle_a_verification_leaves_no_process_and_no_directory() {
    let (project, _tandem) = running();
    sql(&project, SLOW);
    backup(&project, &[]);
    let mut verify = Tandem::start_in(project.dir(), tandem::command(&project), &["backup", "verify"]);
    wait_for("psql", || verify.descendants().iter().any(|process| process.name == "psql"));
    let family = verify.descendants();
    let places: Vec<PathBuf> =
        family.iter().filter_map(|it| fs::read_link(format!("/proc/{}/cwd", it.pid)).ok()).collect();
    let place = places.into_iter().find(|place| place.ends_with("postgres/16")).unwrap();
    verify.signal(Signal::SIGKILL);
    verify.wait_exit();
    wait_for("the end of all it had started", || !family.iter().any(still_lives));
    wait_for("the end of its directory", || !place.exists());
    assert_eq!(state(&project), "unverified");
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
}

#[test]
fn a_disk_that_fills_during_a_verification_is_no_verdict_on_the_backup() {
    let (project, mut tandem) = running();
    sql(&project, "CREATE TABLE much AS SELECT n, md5(n::text) AS text FROM generate_series(1, 1000000) AS n");
    backup(&project, &[]);
    // It makes what later trials begin with.
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    backup(&project, &[]);
    assert_eq!(tandem.stop(), 0);
    let fill = while_a_ready_server_stands_still_in("tandem-test-*/run-");
    let Some(refused) = on_a_small_disk(&project, "800m", &fill, &["backup", "verify"]) else { return };
    refused.expect(73, &[]);
    // Whichever is seen first.
    let full = ["No space left on device", "the verification was ended", "no verification is begun"];
    assert!(full.iter().any(|words| refused.said.contains(words)), "{}", refused.said);
    assert_eq!(state(&project), "unverified");
    assert_eq!(servers(&project), ["postgres/16"], "the throwaway server's directory is gone");
    assert!(tandem::left_in(project.dir()).is_empty());
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
}

/// The data directories below the state directory.
fn servers(project: &Project) -> Vec<String> {
    let pattern = ["find", ".", "-name", "PG_VERSION", "-not", "-path", "*/base/*"];
    let found = command(pattern[0]).args(&pattern[1..]).current_dir(project.state()).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    found.lines().map(|line| line.trim_start_matches("./").trim_end_matches("/PG_VERSION").to_owned()).collect()
}

#[test]
fn roles_tablespaces_and_policies_do_not_keep_a_backup_from_being_verified() {
    let (project, _tandem) = running();
    let space = project.state().join("postgres/space");
    fs::create_dir(&space).unwrap();
    let owner = project.data().metadata().unwrap().uid();
    chown(&space, Some(owner), None).unwrap();
    let space = space.display();
    as_superuser(&project, "postgres", "CREATE ROLE \"other role\" PASSWORD 'secret' LOGIN");
    as_superuser(&project, "postgres", &format!("CREATE TABLESPACE near LOCATION '{space}'"));
    as_superuser(
        &project,
        "app",
        "CREATE TABLE theirs (id serial PRIMARY KEY) TABLESPACE near; ALTER TABLE theirs OWNER TO \"other role\";
         GRANT SELECT ON theirs TO app; INSERT INTO theirs DEFAULT VALUES; ALTER TABLE theirs ENABLE ROW LEVEL SECURITY",
    );
    sql(&project, "CREATE SCHEMA \"Sch\"; CREATE TABLE \"Sch\".\"T\" AS SELECT 1 AS one");
    let manifest = backup(&project, &[]);
    assert_eq!(manifest["census"]["rows"]["public.theirs"], 1);
    assert_eq!(manifest["census"]["rows"]["Sch.T"], 1);
    refusal::run(&project, &["backup", "verify"]).expect(0, &["verified"]);
    assert_eq!(fs::read_dir(space.to_string()).unwrap().count(), 1, "the live server's place is its own");
}
