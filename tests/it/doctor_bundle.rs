//! `tandem doctor --bundle`: what is in the archive, and that no secret is.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::backups::{as_superuser, sql};
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem};

/// The files of an archive.
fn unpacked(path: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(path).unwrap()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name, text)
    });
    entries.collect()
}

const SECRETS: [(&str, &str); 7] = [
    ("a key of the workers", "sk_live_51HqWORKERS"),
    ("a short one", "pw7#"),
    ("one in .env", "dotenv-Sesame-99"),
    ("one in an address", "redis-p4ss-42"),
    ("one of the environment", "env-t0ken-of-the-shell"),
    ("one of the cloud", "cloud/secret+of=backups"),
    ("one in the address that is called", "T0KENhookT0KENhook"),
];

fn project() -> Project {
    let [workers, short, _, address, _, _, hook] = SECRETS.map(|(_, secret)| secret);
    let project = Project::app_with(
        "plain:app",
        &format!(
            "workers.count = 1\nbackup.schedule = 'never'\nbackup.on_failure = 'http://127.0.0.1:9/{hook}'\n\
             workers.env = {{ STRIPE_KEY = '{workers}', ADMIN_PASSWORD = '{short}', CACHE = 'redis://:{address}@127.0.0.1/0' }}"
        ),
    );
    project.write(".env", &format!("OTHER_TOKEN={}\n", SECRETS[2].1));
    project
}

fn command(project: &Project) -> std::process::Command {
    let mut command = tandem::command(project);
    command.env("SHELL_TOKEN", SECRETS[4].1);
    command
        .env("TANDEM_BACKUP_AWS_SECRET_ACCESS_KEY", SECRETS[5].1)
        .env("TANDEM_BACKUP_AWS_ACCESS_KEY_ID", "AKIDofTheTest");
    command
}

#[test]
fn an_archive_for_a_report_has_what_helps_and_no_secret() {
    let project = project();
    let mut tandem = Tandem::start_as(&project, command(&project));
    tandem.wait_ready();
    let password = fs::read_to_string(project.state().join("run/password")).unwrap();
    // They stand in the server's log, as an application may have put them there.
    let all: Vec<&str> = SECRETS.iter().map(|(_, secret)| *secret).chain([password.trim()]).collect();
    sql(&project, &format!("DO $$ BEGIN RAISE WARNING 'all of them: {}'; END $$", all.join(" ")));
    as_superuser(&project, "app", "ALTER SYSTEM SET primary_conninfo = 'password=conninfo-Sesame'");
    as_superuser(&project, "app", "SELECT pg_reload_conf()");
    let file = project.dir().join("report.tar.gz");
    let write = || {
        let mut command = command(&project);
        refusal::said(command.args(["doctor", "--skip", "machine", "--bundle", "report.tar.gz"]).output().unwrap())
    };
    let wrote = write();
    assert!(file.exists() && wrote.said.contains("report.tar.gz is written; look through it"), "{}", wrote.said);
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
    let parts = unpacked(&file);
    for (name, words) in [
        ("doctor.json", "\"checks\""),
        ("configuration.json", "workers.count"),
        ("versions.txt", "PostgreSQL 16"),
        ("status.json", "worker-0"),
        ("pg_controldata.txt", "Database cluster state: in production"),
        ("settings.txt", "max_connections = "),
        ("log.txt", "all of them: ********"),
        ("README.txt", "Look through it"),
    ] {
        let text = parts.get(name).unwrap_or_else(|| panic!("no {name}: {:?}", parts.keys()));
        assert!(text.contains(words), "{name}: {text}");
    }
    for (name, text) in &parts {
        for secret in all.iter().chain(&["conninfo-Sesame"]) {
            assert!(!text.contains(secret), "{secret} is in {name}:\n{text}");
        }
    }
    assert!(!wrote.said.contains(password.trim()));
    // What is there is not written over.
    let before = fs::read(&file).unwrap();
    let again = write();
    again.expect(73, &["is there already, and stays as it is"]);
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn an_archive_is_written_whatever_is_wrong() {
    let project = project();
    project.configure("this = is not");
    let mut broken = command(&project);
    let broken = refusal::said(broken.args(["doctor", "--bundle", "broken.tar.gz"]).output().unwrap());
    broken.expect(70, &["broken.tar.gz is written"]);
    let parts = unpacked(&project.dir().join("broken.tar.gz"));
    assert!(
        parts["doctor.json"].contains("\"configuration\"") && parts["log.txt"].starts_with("not known: "),
        "{parts:?}"
    );
    for (_, secret) in SECRETS {
        assert!(parts.values().all(|text| !text.contains(secret)), "{secret}: {parts:?}");
    }
    let nowhere = refusal::run(&project, &["doctor", "--bundle", "no/such/dir/x.tar.gz"]);
    nowhere.expect(73, &["cannot write"]);
}
