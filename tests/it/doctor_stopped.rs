//! `tandem doctor` on projects that do not run: what is wrong with their files, their configuration, their rights.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use crate::common::backups;
use crate::common::bare::Bare;
use crate::common::certificates::Authority;
use crate::common::doctor::{Report, doctor, of};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::skip::skip;
use crate::common::tandem::{self, wait_for};
use ::tandem::process::identity;

const LINES: &str = "workers.count = 1\nbackup.schedule = 'never'";

/// A project whose cluster was made, and that does not run.
fn stopped() -> Project {
    let project = Project::app_with("plain:app", LINES);
    refusal::run(&project, &["migrate", "up"]).expect(0, &["applied"]);
    project
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The report of a command that the test has changed.
fn with(project: &Project, change: impl FnOnce(&mut Command)) -> Report {
    let mut command = tandem::command(project);
    command.args(["doctor", "--json", "--skip", "machine"]);
    change(&mut command);
    of(command)
}

#[test]
fn what_is_open_to_others_is_found_and_closed_on_demand() {
    let project = stopped();
    doctor(&project, &[]).expect_well();
    mode(&project.state().join("run/password"), 0o644);
    mode(&project.state().join("run"), 0o777);
    let report = doctor(&project, &[]);
    report.expect(
        "permissions",
        "error",
        &["the password file", "mode 0644", "the run directory", "mode 0777", "--fix"],
    );
    assert_eq!(report.code, 70);
    let fixed = doctor(&project, &["--fix"]);
    fixed.expect("permissions", "ok", &[]);
    assert!(fixed.all["changed"].to_string().contains("run/password"), "{:#}", fixed.all);
    assert_eq!(project.state().join("run/password").metadata().unwrap().mode() & 0o777, 0o600);
    assert!(tandem::left_in(project.dir()).is_empty());
    // A directory above, in which others could exchange it.
    mode(project.dir(), 0o777);
    doctor(&project, &[]).expect("permissions", "warning", &["a directory above the state directory"]);
}

#[test]
fn who_listens_on_a_port_is_named() {
    let project = stopped();
    let _held = TcpListener::bind(("127.0.0.1", project.app)).unwrap();
    let pid = std::process::id();
    let report = doctor(&project, &[]);
    report.expect(
        "ports",
        "error",
        &[&format!("port {} is taken by", project.app), &format!("(pid {pid})"), "workers.listen"],
    );
    let text = refusal::run(&project, &["doctor", "--skip", "machine"]);
    text.expect(
        70,
        &["error    ports: port ", "next: stop that program", "see: tandem docs troubleshooting a-port-is-taken"],
    );
    refusal::run(&project, &["docs", "troubleshooting", "a-port-is-taken"]).expect(0, &["Another program listens"]);
    refusal::run(&project, &["doctor", "--skip", "machine", "--skip", "ports"]).expect(0, &[" checks: "]);
}

#[test]
fn a_data_directory_that_must_not_be_used_is_told_and_left_alone() {
    let project = stopped();
    let data = project.data();
    let bad = |words: &[&str]| {
        let report = doctor(&project, &[]);
        report.expect("data-directory", "error", words);
        assert_eq!(report.code, 70);
    };
    fs::write(data.join("postmaster.pid"), "garbage\n").unwrap();
    doctor(&project, &[]).expect("locks", "notice", &["postmaster.pid is damaged"]);
    fs::write(data.join("postmaster.pid"), "999999\n/nowhere\n").unwrap();
    doctor(&project, &[]).expect("locks", "notice", &["it was killed, or runs where it cannot be seen"]);
    fs::remove_file(data.join("postmaster.pid")).unwrap();

    mode(&data, 0o755);
    bad(&["chmod 0700"]);
    mode(&data, 0o700);
    let control = data.join("global/pg_control");
    let whole = fs::read(&control).unwrap();
    let mut torn = whole.clone();
    torn[64..96].fill(0xa5);
    fs::write(&control, torn).unwrap();
    bad(&["the control file", "CRC", "restore a backup"]);
    fs::write(&control, whole).unwrap();
    fs::write(data.join("PG_VERSION"), "15\n").unwrap();
    bad(&["belongs to PostgreSQL 15", "pg_dumpall"]);
    fs::remove_file(data.join("PG_VERSION")).unwrap();
    bad(&["holds no PostgreSQL cluster"]);
    fs::write(data.join("PG_VERSION"), "16\n").unwrap();
    let rules = data.join("pg_hba.conf");
    fs::write(&rules, format!("{}local all all trust\n", fs::read_to_string(&rules).unwrap())).unwrap();
    let report = doctor(&project, &[]);
    report.expect("access", "warning", &["local all all trust"]);
    if identity::is_root() {
        chown(data.join("PG_VERSION"), Some(12_345), None).unwrap();
        chown(&data, Some(12_345), None).unwrap();
        bad(&["belongs to user id 12345", "chown -R"]);
    }
}

#[test]
fn passwords_and_addresses_that_let_others_in_are_told() {
    let project = Project::app_with("plain:app", LINES);
    let guide = |change: &[&str]| {
        with(&project, |command| {
            command.env("POSTGRES_PASSWORD", "changeme").args(change);
        })
    };
    let near = guide(&[]);
    near.expect("passwords", "warning", &["is one that is tried first", "take it out of .env"]);
    assert_eq!((near.code, near.bad()), (1, vec!["passwords"]), "{:#}", near.all);
    let far = guide(&["--set", "postgres.listen=0.0.0.0", "--set", "workers.listen=0.0.0.0:8000"]);
    far.expect("passwords", "error", &["other than this machine's own"]);
    far.expect("listening", "warning", &["PostgreSQL listens on 0.0.0.0 without TLS", "0.0.0.0:8000 without TLS"]);
    let secured = ["--set", "postgres.listen=0.0.0.0", "--set", "postgres.tls=self-signed"];
    doctor(&project, &secured).expect("listening", "ok", &[]);
    let elsewhere =
        |url: &str| doctor(&project, &["--set", "postgres.mode=attach", "--set", &format!("postgres.url={url}")]);
    let report = elsewhere("postgresql://app:longenough-and-random@192.0.2.1:5432/app");
    report.expect("listening", "warning", &["need not be encrypted", "sslmode=verify-full"]);
    report.expect("database", "error", &["does not answer"]);
}

#[test]
fn a_database_elsewhere_that_refuses_or_says_nothing_is_told_within_limits() {
    let project = stopped();
    let (running, url) =
        (tandem::Tandem::up(&project), String::from_utf8(tandem::run(&project, &["url"]).stdout).unwrap());
    let other = Project::app_with("plain:app", &format!("{LINES}\nmigrations.run = 'none'"));
    let attached =
        |url: &str| doctor(&other, &["--set", "postgres.mode=attach", "--set", &format!("postgres.url={url}")]);
    let report = attached(url.trim());
    report.expect("database", "ok", &["gets in"]);
    assert!(!report.bad().contains(&"connections"), "{:#}", report.all);
    let wrong =
        url.trim().replace(fs::read_to_string(project.state().join("run/password")).unwrap().trim(), "wrong-but-long");
    attached(&wrong).expect("database", "error", &["does not take this role or its password", "DATABASE_URL"]);
    drop(running);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("postgresql://app:longenough-and-random@127.0.0.1:{port}/app");
    let report = attached(&url);
    report.expect("database", "error", &["no answer within", "hangs"]);
    assert_eq!(report.bad(), ["database"], "told once: {:#}", report.all);
}

#[test]
fn a_configuration_with_mistakes_keeps_nothing_else_from_being_looked_at() {
    let project = stopped();
    project.configure("wrokers.count = 2");
    let report = doctor(&project, &[]);
    report.expect("configuration", "error", &["wrokers", "tandem.toml"]);
    report.expect("data-directory", "ok", &["shut down"]);
    report.expect("passwords", "ok", &["made the password"]);
    assert_eq!(report.code, 70);
    project.write("tandem.toml", "this is [no TOML");
    let report = doctor(&project, &[]);
    report.expect("configuration", "error", &["tandem.toml:1", "TOML"]);
    report.expect("data-directory", "ok", &[]);
    assert!(report.check("python")["not_looked"].as_str().unwrap().contains("cannot be used"), "{:#}", report.all);
    doctor(&project, &["--fix"]).expect("configuration", "error", &["TOML"]);
}

#[test]
fn where_there_is_no_project_that_is_said_and_wrong_words_are_refused() {
    let bare = Bare::new(&[]);
    let mut command = bare.command();
    command.args(["doctor", "--json", "--skip", "machine"]);
    let report = of(command);
    report.expect("configuration", "notice", &["there is no project", "tandem init"]);
    report.expect_well();
    assert_eq!(bare.path().read_dir().unwrap().count(), 0, "nothing was made");
    let project = Project::app_with("plain:app", LINES);
    refusal::run(&project, &["doctor", "--skip", "prots"]).expect(64, &["prots", "ports"]);
    refusal::run(&project, &["doctor", "--yes"]).expect(64, &["--fix"]);
    refusal::run(&project, &["doctor", "--set", "nothing"]).expect(64, &["KEY=VALUE"]);
}

#[test]
fn python_and_certificates_that_do_not_fit_are_told() {
    let project = Project::app_with("plain:app", LINES).without("python.venv").without("python.requirements");
    project.configure("python.requirements = 'requirements.txt'\npython.installer = 'pip'");
    project.write("requirements.txt", "");
    let install = refusal::run(&project, &["install"]);
    if install.code == 0 {
        doctor(&project, &[]).expect("uvicorn", "error", &["has no uvicorn"]);
        project.write("requirements.txt", "# more\nuvicorn\n");
        doctor(&project, &[]).expect("python", "warning", &["not made from", "requirements.txt", "tandem deploy"]);
    } else {
        install.expect(78, &["uvicorn"]);
    }
    let bare = Project::app_with("plain:app", "python.interpreter = '/no/such/python'");
    let bare = bare.without("python.venv").without("python.requirements");
    doctor(&bare, &[]).expect("python", "error", &["/no/such/python", "python.interpreter"]);
    let authority = Authority::new();
    let days = |days| {
        authority.make(days).write(project.dir());
        let (cert, key) = (project.dir().join("cert.pem"), project.dir().join("key.pem"));
        let set = [format!("workers.tls_cert={}", cert.display()), format!("workers.tls_key={}", key.display())];
        doctor(&project, &["--set", &set[0], "--set", &set[1]])
    };
    days(5).expect("certificates", "warning", &["ends in 5 days", "tandem reload"]);
    days(90).expect("certificates", "ok", &["ends in 90 days"]);
    days(-3).expect("certificates", "error", &["has ended"]);
}

#[test]
fn backups_that_are_bad_or_cannot_be_copied_are_told() {
    let (project, mut running) = backups::running();
    let manifest = backups::backup(&project, &[]);
    backups::rewrite(&project, &manifest, |it| it["census"]["rows"]["public.api_keys"] = 1_999.into());
    let _bad = refusal::run(&project, &["backup", "verify"]);
    let report = doctor(&project, &[]);
    report.expect("proof", "error", &["does not restore", "tandem backup"]);
    let copies = with(&project, |command| {
        command.args(["--set", "backup.destinations=[\"s3://nowhere\"]", "--set", "backup.retry_limit=1s"]);
        let keys = [
            ("ACCESS_KEY_ID", "a"),
            ("SECRET_ACCESS_KEY", "b"),
            ("REGION", "r"),
            ("ENDPOINT_URL", "http://127.0.0.1:1"),
        ];
        command.envs(keys.map(|(name, value)| (format!("TANDEM_BACKUP_AWS_{name}"), value)));
        command.env("TANDEM_BACKUP_AWS_ALLOW_HTTP", "true");
    });
    copies.expect("copies", "error", &["s3://nowhere", "cannot be reached"]);
    // One that nobody could finish.
    fs::write(backups::dir(&project).join("app_backup_20990101_000000.sql.gz"), "no dump").unwrap();
    let report = doctor(&project, &[]);
    report.expect("leftovers", "warning", &["no backup: ", "tandem backup import"]);
    assert_eq!(running.stop(), 0, "{}", running.log());
}

#[test]
fn wal_that_cannot_be_archived_is_told() {
    let project = Project::app_with("plain:app", &format!("{LINES}\nbackup.pitr.enabled = true"));
    let mut running = tandem::Tandem::up(&project);
    doctor(&project, &[]).expect("recovery", "warning", &["no base backup", "tandem backup base"]);
    let archive = project.state().join("pitr");
    fs::rename(&archive, project.state().join("elsewhere")).unwrap();
    fs::write(&archive, "").unwrap();
    backups::as_superuser(&project, "app", "CREATE TABLE t (); SELECT pg_switch_wal()");
    wait_for("the failure", || doctor(&project, &[]).check("wal-archive")["verdict"] == "error");
    doctor(&project, &[]).expect("wal-archive", "error", &["WAL cannot be archived"]);
    assert_eq!(running.stop(), 0, "{}", running.log());
}

#[test]
fn another_user_is_told_what_it_may_not_see() {
    if !identity::is_root() {
        return skip("only root can be somebody else");
    }
    let project = stopped();
    let program = tandem::program_in(project.dir());
    let as_another = || {
        let mut command = tandem::command_as("setpriv", project.dir());
        command.args(["--reuid", "65534", "--clear-groups", &program, "doctor", "--json", "--skip", "machine"]);
        command.env("HOME", project.dir()).env("TANDEM_CACHE_DIR", project.dir().join("cache"));
        of(command)
    };
    let report = as_another();
    report.expect("data-directory", "unknown", &["may not read", "as root"]);
    assert!(report.code != 0 && report.all["verdict"].is_string(), "{:#}", report.all);
    let mut running = tandem::Tandem::up(&project);
    as_another().expect("tandem", "unknown", &["only the user who started it and root may ask"]);
    assert_eq!(running.stop(), 0, "{}", running.log());
}
