//! The application over TLS: checked before it is served, new files without a failed request, days left told.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use ::tandem::process::identity;
use rustls::ClientConfig;

use crate::common::certificates::{self, Authority};
use crate::common::control;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 2\npool.size = 1\npool.overflow = 1\nworkers.tls_cert = 'cert.pem'\n\
                    workers.tls_key = 'key.pem'";

fn project(lines: &str) -> Project {
    Project::app_with("reflect:app", &format!("{BARE}\n{lines}"))
}

/// Clients that make a new connection for each request, and count what fails.
struct Crowd {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Crowd {
    fn start(client: &Arc<ClientConfig>, port: u16) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let work = |_| {
            let (client, stop, answers) = (client.clone(), stop.clone(), answers.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Relaxed) {
                    match certificates::get(&client, port, "/") {
                        Ok((answer, _)) if answer.status == 200 => drop(answers.fetch_add(1, Relaxed)),
                        other => failures.push(format!("{other:?}")),
                    }
                }
                failures
            })
        };
        let threads = (0..4).map(work).collect();
        Self { stop, answers, threads }
    }

    fn failures(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

fn days_left(tandem: &Tandem, project: &Project) -> i64 {
    let (_, metrics) = tandem::get(project.health, "/metrics").unwrap();
    let line = metrics.lines().find(|line| line.starts_with("tandem_tls_certificate_days_left "));
    let line = line.unwrap_or_else(|| panic!("no such metric:\n{metrics}\n{}", tandem.log()));
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_reload_takes_new_files_and_fails_no_request() {
    for lines in ["workers.event_loop = 'asyncio'", "workers.event_loop = 'uvloop'", "workers.preload = true"] {
        let authority = Authority::new();
        let (first, second) = (authority.make(30), authority.make(90));
        let project = project(lines);
        first.write(project.dir());
        let mut tandem = Tandem::up(&project);
        let client = authority.client(None);
        let (answer, shown) = certificates::get(&client, project.app, "/").unwrap();
        assert!(first.is(&shown));
        assert_eq!((&answer.json()["scheme"], days_left(&tandem, &project)), (&"https".into(), 30));
        assert!(tandem.log().contains("https://127.0.0.1:"), "{}", tandem.log());

        let crowd = Crowd::start(&client, project.app);
        second.write(project.dir());
        for _ in 0..3 {
            // Accepted, and its client takes its time to begin with TLS.
            let slow = TcpStream::connect(("127.0.0.1", project.app)).unwrap();
            let before = crowd.answers.load(Relaxed);
            wait_for("answers", || crowd.answers.load(Relaxed) > before + 30);
            control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
            assert_eq!(certificates::get_over(&client, slow, "/").unwrap().0.status, 200, "{lines}: {}", tandem.log());
        }
        assert_eq!(crowd.failures(), [""; 0], "{lines}: {}", tandem.log());
        wait_for("the new certificate alone", || {
            (0..8).all(|_| second.is(&certificates::get(&client, project.app, "/").unwrap().1))
        });
        assert_eq!(days_left(&tandem, &project), 90);
        // Who knocks and says nothing keeps no stop up.
        let _silent = TcpStream::connect(("127.0.0.1", project.app)).unwrap();
        assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    }
}

#[test]
fn what_cannot_be_served_is_refused_at_the_start_and_at_a_reload() {
    let authority = Authority::new();
    let (good, other, expired) = (authority.make(30), authority.make(30), authority.make(-3));
    let project = project("");
    good.write(project.dir());
    let mut tandem = Tandem::up(&project);
    let workers = tandem.workers();
    let refused = |words: &[&str]| {
        let words = [&["tandem.toml:"], words].concat();
        refusal::run(&project, &["check"]).expect(78, &words);
        control::run(&project, &["reload"]).expect(78, &[&words[..], &["nothing was changed"]].concat());
    };
    let (cert, key) = (project.dir().join("cert.pem"), project.dir().join("key.pem"));
    let [shown_cert, shown_key] = [&cert, &key].map(|path| path.display().to_string());

    fs::write(&key, &other.key).unwrap();
    refused(&["workers.tls_key", &shown_key, "is not the key of the certificate in", &shown_cert]);
    expired.write(project.dir());
    refused(&["workers.tls_cert", &shown_cert, "expired at 20"]);
    good.write(project.dir());
    fs::write(&cert, "no PEM").unwrap();
    refused(&["workers.tls_cert", "holds no certificate", "BEGIN CERTIFICATE"]);
    good.write(project.dir());
    fs::write(&key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n").unwrap();
    refused(&["workers.tls_key", "encrypted", "openssl pkey"]);
    fs::remove_file(&key).unwrap();
    refused(&["workers.tls_key", "cannot read", "No such file"]);
    good.write(project.dir());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let runs_as = |pid: i32| fs::metadata(format!("/proc/{pid}")).unwrap().uid();
    if identity::is_root() {
        // Where only root reaches the code, workers run as root.
        if runs_as(workers[0]) != 0 {
            refused(&["workers.tls_key", "who may not read", "chmod g+r"]);
        }
    } else {
        fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).unwrap();
        refused(&["workers.tls_key", "cannot read"]);
    }
    // What was served is served on, by the same workers.
    assert!(good.is(&certificates::get(&authority.client(None), project.app, "/").unwrap().1));
    assert_eq!((tandem.workers(), tandem.stop()), (workers, 0), "{}", tandem.log());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    expired.write(project.dir());
    let refused = refusal::up(&project);
    refused.expect(78, &["workers.tls_cert", "expired at 20", "renew it"]);
    assert!(!refused.said.contains("database system is ready"), "{}", refused.said);
}

#[test]
fn what_is_about_to_go_wrong_is_told() {
    let authority = Authority::new();
    let project = project("");
    authority.make(5).write(project.dir());
    let words = ["expires at 20", "in 5 days", "every user of this machine may read"];
    refusal::run(&project, &["check"]).expect(0, &words);
    if identity::is_root() {
        let key = project.dir().join("key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        // The group of the workers' user, whoever that is: each of these has one of the name.
        let group = identity::lookup("www-data").or_else(|| identity::lookup("nobody")).unwrap().gid;
        chown(&key, None, Some(group)).unwrap();
        let said = refusal::run(&project, &["check"]);
        said.expect(0, &[]);
        assert!(!said.said.contains("every user"), "{}", said.said);
    }
    for (lines, words) in [
        ("workers.tls_client = 'require'", &["workers.tls_client", "no authority is named"][..]),
        ("workers.tls_ca = 'ca.pem'", &["workers.tls_ca", "clients are not asked"]),
    ] {
        let project = self::project(lines);
        authority.make(30).write(project.dir());
        refusal::run(&project, &["check"]).expect(78, words);
    }
    let bare = Project::app_with("reflect:app", "workers.tls_key = 'key.pem'");
    refusal::run(&bare, &["check"]).expect(78, &["workers.tls_key", "without workers.tls_cert"]);
}

#[test]
fn a_client_without_a_certificate_is_turned_away_where_one_is_required() {
    let (authority, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let project = project("workers.tls_ca = 'ca.pem'\nworkers.tls_client = 'require'");
    project.write("ca.pem", clients.pem());
    authority.make(30).write(project.dir());
    let mut tandem = Tandem::up(&project);
    let get = |client: &Arc<ClientConfig>| certificates::get(client, project.app, "/").map(|(answer, _)| answer.status);
    assert_eq!(get(&authority.client(Some(&clients.make(30)))).unwrap(), 200, "{}", tandem.log());
    assert!(get(&authority.client(None)).is_err());
    assert!(get(&authority.client(Some(&strangers.make(30)))).is_err());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// Tandem asks it over TLS whether it is ready.
#[tokio::test]
async fn another_server_is_ready_when_it_answers_over_tls() {
    let command =
        "['uvicorn', 'plain:app', '--fd', '{fd}', '--ssl-certfile', '{tls_cert}', '--ssl-keyfile', '{tls_key}']";
    let lines = "workers.ready = '/'\nworkers.tls_cert = 'cert.pem'\nworkers.tls_key = 'key.pem'";
    let project = crate::other_servers::project(command, lines).await;
    let authority = Authority::new();
    authority.make(30).write(project.dir());
    let mut tandem = Tandem::up(&project);
    let (answer, _) = certificates::get(&authority.client(None), project.app, "/").unwrap();
    assert_eq!(answer.body, "ok");
    control::run(&project, &["reload"]).expect(0, &["replaced 2 workers"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
