//! Room on the disk of a server that serves and writes: what needs more than there is, is refused before it writes, and what
//! was estimated wrongly is ended while it writes. The server stays up.

use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};

use crate::common::backups::{backup, dir, rewrite, sql};
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal, names};
use crate::common::small_disk::Filling;
use crate::common::tandem::{self, Tandem, wait_for};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Small files, so that a small disk has room for them.
const LINES: &str = "workers.count = 1\nmigrations.run = 'none'\npostgres.shared_buffers = '16MB'\n\
    postgres.settings.max_wal_size = '48MB'\npostgres.settings.min_wal_size = '32MB'\nbackup.schedule = 'never'";
const COUNT: &str = "SELECT n FROM counter";
/// Rows that a dump makes smaller: some 70 MB of them.
const MUCH: &str = "CREATE TABLE much AS SELECT n, md5(n::text) AS text FROM generate_series(1, 900000) AS n";
/// Bytes that nothing makes smaller, in some 320 MB.
const NOISE: &str =
    "CREATE TABLE noise AS SELECT decode(md5(n::text) || md5((-n)::text), 'hex') FROM generate_series(1, 5000000) AS n";

/// A client that writes again and again, and ends with the first write that fails.
struct Writer(Child);

impl Writer {
    fn start(project: &Project) -> Self {
        let mut command = tandem::command(project);
        command.args(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        // Every 20 ms, for ever.
        child.stdin.as_mut().unwrap().write_all(b"UPDATE counter SET n = n + 1\n\\watch 0.02\n").unwrap();
        Self(child)
    }

    /// Wait until another write has succeeded; none has failed so far.
    fn goes_on(&mut self, project: &Project) {
        let before: u64 = sql(project, COUNT).parse().unwrap();
        wait_for("another write", || {
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none(), "a write failed: {ended:?}");
            sql(project, COUNT).parse::<u64>().unwrap() > before + 1
        });
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// A stopped project whose database has been written to by `statements`.
fn stopped(lines: &str, statements: &[&str]) -> Project {
    let project = Project::app_with("plain:app", &format!("{LINES}\n{lines}"));
    let mut tandem = Tandem::up(&project);
    sql(&project, "CREATE TABLE counter AS SELECT 0 AS n");
    for statement in statements {
        sql(&project, statement);
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    project
}

/// The server's process.
fn postmaster(disk: &Filling<'_>, tandem: &Tandem) -> String {
    disk.script(tandem, "head -n 1 \"$small\"/postgres/16/postmaster.pid")
}

fn databases(disk: &Filling<'_>, tandem: &Tandem) -> String {
    let names = "SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database";
    disk.run(tandem, &["psql", "--superuser", "-XAtqc", names]).said.trim_end().to_owned()
}

/// Refused before anything was written: with the exit code of a full disk, and the sum.
fn expect_none_begun(refused: &Refusal, what: &str) {
    refused.expect(73, &[&format!("no {what} is begun"), "MB free of", "MB are missing. Make room"]);
}

#[test]
fn what_needs_more_room_than_there_is_is_refused_beside_a_serving_writer() {
    let project = stopped("", &[MUCH]);
    let Some(disk) = Filling::prepare(&project, "420m") else { return };
    let mut tandem = disk.up();
    tandem.wait_ready();
    let outside = project.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let copies = format!("backup.destinations=[\"file://{}\"]", outside.display());
    disk.run(&tandem, &["backup", "--set", &copies]).expect(0, &["app_backup_20"]);
    let dump = names(&outside).into_iter().find(|name| name.ends_with(".sql.gz")).unwrap();
    disk.run(&tandem, &["backup", "list"]).expect(0, &[&dump]);
    let mut writer = Writer::start(&project);
    let server = postmaster(&disk, &tandem);

    // Enough for another compressed one, and not for one that is not compressed.
    disk.leave(&tandem, 100);
    let refused = disk.run(&tandem, &["backup", "--compress", "none"]);
    expect_none_begun(&refused, "backup");
    disk.run(&tandem, &["backup"]).expect(0, &["app_backup_20"]);

    let import = project.dir().join("elsewhere.sql.gz");
    fs::copy(outside.join(&dump), &import).unwrap();
    let there =
        disk.script(&tandem, "mkdir -m 700 \"$small\"/copies; rm \"$small\"/backups/app_backup_*; echo \"$small\"");
    disk.leave(&tandem, 60);
    let (import, from) = (import.display().to_string(), format!("file://{}/latest", outside.display()));
    let to = format!("backup.destinations=[\"file://{there}/copies\"]");
    let outside = outside.display().to_string();
    let local = format!("{outside}/{dump}");
    let whole: [(&str, &[&str]); 7] = [
        ("backup", &["backup"]),
        ("restore", &["restore", &local, "--yes"]),
        ("download", &["restore", &from, "--yes"]),
        ("import", &["backup", "import", &import]),
        ("copy", &["backup", "--dir", "other", "--set", &to]),
        ("verification", &["backup", "verify", "--set", &format!("backup.dir={outside}")]),
        ("restore", &["restore", &local, "--yes", "--set", "disk.stop_free=0%"]),
    ];
    for (what, args) in whole {
        expect_none_begun(&disk.run(&tandem, args), what);
        let free = disk.free_megabytes(&tandem);
        assert!(free >= 55, "{args:?} has written: {free} MB are free");
        writer.goes_on(&project);
    }
    assert_eq!(
        disk.script(&tandem, "ls \"$small\"/backups \"$small\"/copies"),
        format!("{there}/backups:\n\n{there}/copies:")
    );
    assert_eq!(databases(&disk, &tandem), "app postgres template0 template1");
    assert_eq!(postmaster(&disk, &tandem), server);
    assert!(!tandem.log().contains("No space left"), "{}", tandem.log());
    drop(writer);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_restore_that_takes_more_than_was_thought_is_ended_and_the_server_serves_on() {
    let project = stopped("", &[MUCH]);
    let mut first = Tandem::up(&project);
    let manifest = backup(&project, &[]);
    assert_eq!(first.stop(), 0, "{}", first.log());
    // As of a backup whose database was nearly empty.
    rewrite(&project, &manifest, |it| it["database_bytes"] = 1.into());
    let Some(disk) = Filling::prepare(&project, "420m") else { return };
    let mut tandem = disk.up();
    tandem.wait_ready();
    let mut writer = Writer::start(&project);
    disk.leave(&tandem, 110);
    let ended = disk.run(&tandem, &["restore", "latest", "--yes"]);
    ended.expect(73, &["the restore was ended", "is removed", "64 MB stay free for the server's WAL", "is as it was"]);
    assert_eq!(databases(&disk, &tandem), "app postgres template0 template1", "{}", ended.said);
    writer.goes_on(&project);
    assert!(!tandem.log().contains("No space left"), "{}", tandem.log());
    assert_eq!(sql(&project, "SELECT count(*) FROM much"), "900000");
    wait_for("the room that it took", || disk.free_megabytes(&tandem) >= 64);
    drop(writer);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_base_backup_on_the_datas_own_disk_is_refused_or_ended_and_writes_go_on() {
    let project = stopped("backup.pitr.enabled = true", &[]);
    let Some(disk) = Filling::prepare(&project, "1200m") else { return };
    let mut tandem = disk.up();
    tandem.wait_ready();
    // Of an empty cluster, which compresses well.
    disk.run(&tandem, &["backup", "base"]).expect(0, &["base_20"]);
    // Far more than is estimated, and its WAL is archived and removed before anything is measured.
    sql(&project, NOISE);
    let as_superuser = |sql| disk.run(&tandem, &["psql", "--superuser", "-XAtqc", sql]).said.trim().to_owned();
    as_superuser("SELECT pg_switch_wal()");
    let waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    wait_for("the archiving of all WAL", || as_superuser(waiting) == "0");
    as_superuser("CHECKPOINT");
    let mut writer = Writer::start(&project);
    disk.leave(&tandem, 62);
    expect_none_begun(&disk.run(&tandem, &["backup", "base"]), "base backup");
    writer.goes_on(&project);
    disk.script(&tandem, "rm \"$small\"/filler");
    // 64 MB stay free: more than is thought to be needed (87 MB), also after what is archived meanwhile; less than is (166 MB).
    disk.leave(&tandem, 200);
    let ended = disk.run(&tandem, &["backup", "base"]);
    ended.expect(73, &["the base backup was ended", "64 MB stay free for the server's WAL", "backup.pitr.dir"]);
    writer.goes_on(&project);
    assert_eq!(disk.script(&tandem, "ls \"$small\"/pitr/base").lines().count(), 1, "{}", ended.said);
    assert!(!tandem.log().contains("No space left"), "{}", tandem.log());
    drop(writer);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_verification_keeps_what_must_stay_free() {
    let project = stopped("", &[]);
    let mut first = Tandem::up(&project);
    backup(&project, &[]);
    assert_eq!(first.stop(), 0, "{}", first.log());
    let Some(disk) = Filling::prepare(&project, "700m") else { return };
    let mut tandem = disk.up();
    tandem.wait_ready();
    // There is room for the trial, and not beside what is to stay free.
    let refused = disk.run(&tandem, &["backup", "verify", "--set", "disk.stop_free=400MB"]);
    expect_none_begun(&refused, "verification");
    disk.run(&tandem, &["backup", "verify", "--set", "disk.stop_free=100MB"]).expect(0, &["verified"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_backup_whose_naming_or_removal_was_interrupted_is_cleared_away_by_the_next() {
    let project = stopped("", &[]);
    let stem = "app_backup_20260101_000000";
    fs::create_dir(dir(&project)).unwrap();
    // Killed between what lies beside it and its own name, or between its own name and what lies beside it.
    for name in ["globals.sql", "manifest.json", "verdict.json", "copies.json"].map(|ending| format!("{stem}.{ending}"))
    {
        fs::write(dir(&project).join(name), "").unwrap();
    }
    fs::write(dir(&project).join(format!(".partial-naming-{stem}")), "").unwrap();
    // Killed while it was fetched.
    fs::write(dir(&project).join(".tandem-abc.part"), "").unwrap();
    refusal::run(&project, &["backup"]).expect(0, &["an interrupted run left"]);
    let left = names(&dir(&project));
    assert!(!left.iter().any(|name| name.contains(stem) || name.ends_with(".part")), "{left:?}");
    // Killed after its own name, when all of it is there.
    let whole = left.iter().find(|name| name.ends_with(".sql.gz")).unwrap();
    let stem = whole.split('.').next().unwrap();
    fs::write(dir(&project).join(format!(".partial-naming-{stem}")), "").unwrap();
    refusal::run(&project, &["backup"]).expect(0, &[]);
    refusal::run(&project, &["backup", "verify", whole]).expect(0, &["verified"]);
}

#[test]
fn a_server_for_tests_leaves_the_serving_one_what_it_needs() {
    let project = stopped("", &[]);
    let Some(disk) = Filling::prepare(&project, "720m") else { return };
    let mut tandem = disk.up();
    tandem.wait_ready();
    let mut writer = Writer::start(&project);
    disk.script(&tandem, "mkdir -m 1777 \"$small\"/memory");
    // Of memory there is none for tests: it goes where temporary files do.
    let binary = env!("CARGO_BIN_EXE_tandem");
    let run = |script: &str| {
        let options = "--set test.dir=/proc --set test.spare=false --keep-on-failure";
        let line =
            format!("set +e; TMPDIR=\"$small\"/memory {binary} test {options} -- sh -c '{script}' 2>&1; echo code $?");
        disk.script(&tandem, &line)
    };
    disk.leave(&tandem, 400);
    let refused = run("true");
    assert!(refused.contains("no throwaway server is begun") && refused.contains("set test.dir"), "{refused}");
    assert!(refused.ends_with("code 73"), "{refused}");
    writer.goes_on(&project);
    disk.script(&tandem, "rm \"$small\"/filler");
    disk.leave(&tandem, 480);
    let small = project.dir().join("small");
    // It fills the disk, and looks whether there is a server until there is none.
    let ended = run(&format!(
        "while psql -XAtqc \"SELECT 1\" >/dev/null 2>&1; do head -c 4M /dev/zero >>{0}/memory/more; done; rm {0}/memory/more; exit 9",
        small.display()
    ));
    assert!(ended.contains("the throwaway server was ended") && ended.ends_with("code 9"), "{ended}");
    assert!(ended.contains("there is nothing to keep") && !ended.contains("PostgreSQL stays"), "{ended}");
    writer.goes_on(&project);
    assert!(!tandem.log().contains("No space left"), "{}", tandem.log());
    wait_for("the room that it took", || disk.free_megabytes(&tandem) >= 400);
    drop(writer);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
