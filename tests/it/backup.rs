//! `tandem backup`: what it makes, and what it does not.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::backups::{as_superuser, backup, command, dir, finals, path, read_gzip, rewrite, running, sql};
use crate::common::namespace::mount_namespace;
use crate::common::project::Project;
use crate::common::refusal::{self, names};
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn a_backup_has_the_guides_name_and_zcat_and_psql_restore_it() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    let file = manifest["file"].as_str().unwrap();
    let stem = file.strip_suffix(".sql.gz").unwrap();
    assert!(stem.starts_with("app_backup_20") && stem.len() == "app_backup_20260102_150405".len(), "{file}");
    let expected = ["globals.sql", "manifest.json", "sql.gz"].map(|ending| format!("{stem}.{ending}"));
    assert_eq!(names(&dir(&project)), [&[".lock".to_owned()], &expected[..]].concat());
    for name in expected {
        assert_eq!(dir(&project).join(name).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(manifest["census"]["schema_version"], "004_add_indexes");
    assert_eq!(manifest["census"]["rows"]["public.api_keys"], 2000);
    assert_eq!(manifest["census"]["rows"]["public.odd \" name"], 5);
    let globals = fs::read_to_string(dir(&project).join(format!("{stem}.globals.sql"))).unwrap();
    assert!(globals.contains("CREATE ROLE app;"), "{globals}");

    as_superuser(&project, "postgres", "CREATE DATABASE back OWNER app");
    let script = "zcat \"$1\" | \"$0\" psql -Xq -v ON_ERROR_STOP=1 -h \"$2\" -U postgres -d back";
    let restored = command("sh")
        .args(["-euc", script, env!("CARGO_BIN_EXE_tandem")])
        .args([dir(&project).join(file), project.state().join("run/postgres")])
        .current_dir(project.dir())
        .output()
        .unwrap();
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(as_superuser(&project, "back", "SELECT count(*) FROM api_keys"), "2000");
}

#[test]
fn every_format_and_compression_is_made_and_listed() {
    let (project, _tandem) = running();
    let kinds = [
        ("plain", "zstd", ".sql.zst"),
        ("plain", "none", ".sql"),
        ("custom", "gzip", ".dump"),
        ("directory", "zstd", ".dir"),
    ];
    for (format, compress, ending) in kinds {
        let manifest = backup(&project, &["--format", format, "--compress", compress]);
        let file = manifest["file"].as_str().unwrap();
        assert!(file.ends_with(ending), "{file}");
        assert_eq!(manifest["census"]["rows"]["public.api_keys"], 2000);
    }
    let list: Value = serde_json::from_slice(&tandem::run(&project, &["backup", "list", "--json"]).stdout).unwrap();
    let states: Vec<_> = list.as_array().unwrap().iter().map(|entry| entry["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["unverified"; 4]);
    let table = refusal::run(&project, &["backup", "list"]);
    table.expect(0, &["NAME", ".dir", ".dump", ".sql.zst", "2010", "004_add_indexes", "unverified"]);
}

#[test]
fn without_a_server_one_is_started_for_the_backup_and_stopped_again() {
    let project = Project::app_with("plain:app", "workers.count = 1");
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    refusal::run(&project, &["backup"]).expect(0, &["app_backup_20", "5 rows in 9 tables", "004_add_indexes"]);
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn names_with_spaces_and_quotes_are_backed_up() {
    let project = Project::app_with("plain:app", "workers.count = 1\npostgres.database = \"it's = 50 % \\\"big\\\"\"");
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    let manifest = backup(&project, &[]);
    assert_eq!(manifest["database"], "it's = 50 % \"big\"");
    let file = manifest["file"].as_str().unwrap();
    assert!(file.starts_with("it%27s%20%3D%2050%20%25%20%22big%22_backup_20"), "{file}");
}

/// Lock a table for as long as the guard lives, so that a dump waits.
struct TableLock<'a>(&'a Project, std::process::Child);

impl<'a> TableLock<'a> {
    fn take(project: &'a Project) -> Self {
        let statement = "BEGIN; LOCK TABLE api_keys; SELECT pg_sleep(1000)";
        let child = tandem::command(project).args(["psql", "-XAtq", "-c", statement]).spawn().unwrap();
        let held = "SELECT count(*) FROM pg_locks WHERE relation = 'api_keys'::regclass AND mode = 'AccessExclusiveLock' AND granted";
        wait_for("the lock", || sql(project, held) == "1");
        Self(project, child)
    }
}

impl Drop for TableLock<'_> {
    fn drop(&mut self) {
        // The backend itself: it sleeps on when its client has gone.
        let ours = "query LIKE '%LOCK TABLE%' AND pid <> pg_backend_pid()";
        let end = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {ours}");
        tandem::run(self.0, &["psql", "-XAtqc", &end]);
        let _ = self.1.wait();
    }
}

/// Start a backup that waits for a lock, until its pg_dump is there.
fn waiting_backup(project: &Project) -> Tandem {
    let backup = Tandem::start_in(project.dir(), tandem::command(project), &["backup"]);
    wait_for("pg_dump", || backup.descendants().iter().any(|process| process.name == "pg_dump"));
    wait_for("the file", || names(&dir(project)).iter().any(|name| name.starts_with(".partial-")));
    backup
}

#[test]
fn two_backups_at_once_are_one_and_a_clear_word() {
    let (project, _tandem) = running();
    let lock = TableLock::take(&project);
    let mut first = waiting_backup(&project);
    refusal::run(&project, &["backup"]).expect(75, &["another backup (pid ", "wait for its end"]);
    drop(lock);
    assert_eq!(first.wait_code(), 0, "{}", first.log());
    assert_eq!(finals(&project).len(), 3);
}

#[test]
fn a_killed_dump_and_a_killed_tandem_leave_no_lie_and_the_next_run_sweeps() {
    let (project, _tandem) = running();
    let lock = TableLock::take(&project);
    let mut backup = waiting_backup(&project);
    let dump = backup.descendants().into_iter().find(|process| process.name == "pg_dump").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(dump.pid), Signal::SIGKILL).unwrap();
    assert_eq!(backup.wait_code(), 1);
    assert!(backup.log().contains("pg_dump failed (SIGKILL)"), "{}", backup.log());
    assert_eq!(names(&dir(&project)), [".lock"]);

    let mut backup = waiting_backup(&project);
    backup.signal(Signal::SIGKILL);
    backup.wait_exit();
    wait_for("the end of pg_dump", || !tandem::processes().iter().any(|it| it.args.contains("tandem-backup")));
    assert_eq!(finals(&project), Vec::<String>::new());
    assert!(names(&dir(&project)).iter().any(|name| name.starts_with(".partial-")));
    drop(lock);
    refusal::run(&project, &["backup"]).expect(0, &["app_backup_20", "an interrupted run left"]);
    assert_eq!(finals(&project).len(), 3);
    assert!(!names(&dir(&project)).iter().any(|name| name.starts_with(".partial-")));
}

#[test]
fn a_disk_that_fills_during_a_backup_leaves_nothing_under_a_final_name() {
    let Some(namespace) = mount_namespace() else { return };
    let (project, _tandem) = running();
    // What is there says that the last one took a byte: so the next is begun, and takes more than there is.
    let manifest = backup(&project, &[]);
    rewrite(&project, &manifest, |it| it["size_bytes"] = 1.into());
    fs::write(path(&project, &manifest), "").unwrap();
    let last = [manifest["file"].as_str().unwrap(), &finals(&project).remove(1)].map(str::to_owned);
    for format in ["plain", "custom", "directory"] {
        let script = "old=\"$0\".old; rm -rf \"$old\"; cp -a \"$0\" \"$old\"
            mount -t tmpfs -o size=40k,mode=0700 tmpfs \"$0\"; for name in $1 $2; do cp \"$old\"/$name \"$0\"; done; shift 2
            set +e; \"$@\"; code=$?; ls -A \"$0\"; exit $code";
        let binary = tandem::command(&project);
        let output = command("unshare")
            .args(namespace)
            .args(["sh", "-euc", script])
            .arg(dir(&project))
            .args(&last)
            .arg(binary.get_program())
            .args(["backup", "--format", format, "--set", "disk.stop_free=0%"])
            .current_dir(project.dir())
            .output()
            .unwrap();
        let left = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut expected = vec![".lock", &last[0], &last[1]];
        expected.sort_unstable();
        assert_eq!(left.lines().collect::<Vec<_>>(), expected, "{format}: {output:?}");
        refusal::said(output).expect(73, &["No space left on device"]);
    }
}

#[test]
fn a_clock_that_was_wrong_is_told_and_costs_no_backup() {
    let (project, _tandem) = running();
    let manifest = backup(&project, &[]);
    let (file, stem) = (manifest["file"].as_str().unwrap(), "app_backup_20990101_020000");
    for name in finals(&project) {
        let (from, ending) = (dir(&project).join(&name), name.strip_prefix(&file[..stem.len()]).unwrap());
        let to = dir(&project).join(format!("{stem}{ending}"));
        if ending == ".manifest.json" {
            let text = fs::read_to_string(&from).unwrap().replace(&file[..stem.len()], stem);
            let taken = manifest["taken"].as_str().unwrap();
            fs::write(&from, text.replace(taken, "2099-01-01T02:00:00Z")).unwrap();
        }
        fs::rename(from, to).unwrap();
    }
    refusal::run(&project, &["backup"]).expect(0, &["2099-01-01", "in the future", "app_backup_20"]);
    refusal::run(&project, &["backup", "verify", "--all"]).expect(0, &[stem, "verified"]);
    let before = finals(&project);
    refusal::run(&project, &["backup", "prune"]).expect(0, &[]);
    assert_eq!(finals(&project), before, "nobody is sent away for another's clock");
    refusal::run(&project, &["restore", &format!("{stem}.sql.gz"), "--yes"]).expect(0, &["2010 rows"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let project = Project::app_with("plain:app", "workers.count = 1\nbackup.dir = '/proc/no/such'");
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    refusal::run(&project, &["backup"]).expect(73, &["cannot create directory /proc/no"]);
}

#[test]
fn a_server_of_somebody_else_is_backed_up_as_its_own_role() {
    let (theirs, _server) = running();
    let url = String::from_utf8(tandem::run(&theirs, &["url"]).stdout).unwrap();
    let project = Project::app("plain:app");
    let mut binary = tandem::command(&project);
    binary.args(["backup", "--json"]).env("DATABASE_URL", url.trim());
    let output = binary.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let manifest: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(manifest["census"]["rows"]["public.api_keys"], 2000);
    let text = read_gzip(&dir(&project).join(manifest["file"].as_str().unwrap()));
    assert!(text.ends_with("-- PostgreSQL database dump complete\n--\n\n") || text.contains("\\unrestrict"), "{text}");
    let password = url.split(':').nth(2).unwrap().split('@').next().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains(password));
}
