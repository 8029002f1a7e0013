//! PostgreSQL over TLS: checked in full by clients, nothing in the clear from beyond this machine, new files at a reload
//! while sessions go on, and files that cannot be served refused before anything changes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::common::certificates::{Authority, Made};
use crate::common::control;
use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::tandem::{self, Tandem};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1\n";

fn project(lines: &str) -> Project {
    Project::app_with("connects:app", &format!("{BARE}{lines}"))
}

/// What psql prints for `sql`; `place` overrides where and how it connects.
fn psql(project: &Project, place: &str, sql: &str) -> Refusal {
    control::run(project, &["psql", "-XAtc", sql, place])
}

/// Passes on what it gets to `port`, as a client of another address than 127.0.0.1.
fn from_elsewhere(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            server.bind(&"127.0.0.2:0".parse::<SocketAddr>().unwrap().into()).unwrap();
            if server.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).is_err() {
                continue;
            }
            let server = TcpStream::from(server);
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    relay
}

#[test]
fn a_certificate_of_tandems_own_is_checked_in_full_without_ceremony() {
    let lines = "postgres.tls = 'self-signed'\npostgres.listen = '0.0.0.0'\npostgres.tls_names = ['db.example.org']";
    let project = Project::backend_with(&format!("workers.count = 1\n{lines}"));
    let mut tandem = Tandem::up(&project);
    let root = project.state().join("tls/ca.crt").display().to_string();
    let url = control::run(&project, &["url"]);
    url.expect(0, &[&format!("?sslmode=verify-full&sslrootcert={root}")]);
    control::run(&project, &["env"]).expect(0, &["export PGSSLMODE='verify-full'", "export PGSSLROOTCERT='"]);
    let asyncpg = control::run(&project, &["url", "--scheme", "postgresql+asyncpg"]);
    asyncpg.expect(0, &["?ssl=verify-full"]);
    assert!(!asyncpg.said.contains("sslrootcert"), "{}", asyncpg.said);

    let encrypted = "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    psql(&project, "dbname=app", encrypted).expect(0, &["t|TLSv1.3"]);
    psql(&project, "host=localhost hostaddr=127.0.0.1", encrypted).expect(0, &["t|TLSv1.3"]);
    psql(&project, "host=db.example.org hostaddr=127.0.0.1", encrypted).expect(0, &["t|TLSv1.3"]);
    psql(&project, "dbname=app", "SHOW ssl_library").expect(0, &["OpenSSL"]);
    let stranger = Authority::new();
    project.write("stranger.crt", stranger.pem());
    let other = format!("sslrootcert={}", project.dir().join("stranger.crt").display());
    psql(&project, &other, "SELECT 1").expect(2, &["certificate verify failed"]);
    psql(&project, "host=other.example.org hostaddr=127.0.0.1", "SELECT 1").expect(2, &["does not match host name"]);

    // On this machine a client may do without; from beyond it none gets in that does.
    psql(&project, "sslmode=disable", encrypted).expect(0, &["f|"]);
    let relay = from_elsewhere(project.postgres);
    let refused = psql(&project, &format!("port={relay} sslmode=disable"), "SELECT 1");
    refused.expect(2, &["no pg_hba.conf entry for host \"127.0.0.2\"", "no encryption"]);
    psql(&project, &format!("port={relay}"), encrypted).expect(0, &["t|TLSv1.3"]);

    // The application and Tandem's own commands.
    assert_eq!(tandem.get("/ready").unwrap().0, 200, "{}", tandem.log());
    let workers = "SELECT bool_and(ssl), count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                   WHERE application_name LIKE '%-worker-%'";
    psql(&project, "dbname=app", workers).expect(0, &["t|t"]);
    for args in [&["migrate", "status"][..], &["migrate", "up"], &["backup"], &["health", "--ready"]] {
        control::run(&project, args).expect(0, &[]);
    }
    let test = [
        "test",
        "--migrations",
        "none",
        "--",
        "sh",
        "-c",
        "case $PGSSLMODE$DATABASE_URL in *ssl*) exit 1;; *) echo plain; esac",
    ];
    control::run(&project, &test).expect(0, &["plain"]);
    let certificate = &control::status(&project)["certificates"][0];
    assert_eq!(certificate["of"], "postgres");
    assert!(certificate["days_left"].as_i64().unwrap() > 360, "{certificate}");
    control::run(&project, &["status"]).expect(0, &["certificates: postgres 36"]);

    let mode = |name: &str| {
        let meta = fs::metadata(project.state().join("tls").join(name)).unwrap();
        (meta.mode() & 0o777, meta.uid())
    };
    let (own, server) = (nix::unistd::Uid::effective().as_raw(), fs::metadata(project.data()).unwrap().uid());
    assert_eq!([mode("ca.key"), mode("ca.crt"), mode("server.pem")], [(0o600, own), (0o644, own), (0o600, server)]);
    let before = fs::read(project.state().join("tls/server.pem")).unwrap();
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    // What was made holds for the next start, and what is made anew is signed by the same authority.
    project.reconfigure(|text| text.replace("'db.example.org'", "'db.example.org', 'other.example.org'"));
    let mut tandem = Tandem::up(&project);
    psql(&project, "host=other.example.org hostaddr=127.0.0.1", encrypted).expect(0, &["t|TLSv1.3"]);
    assert_ne!(fs::read(project.state().join("tls/server.pem")).unwrap(), before);
    project.reconfigure(|text| text.replace(", 'other.example.org'", ", 'third.example.org'"));
    control::run(&project, &["reload"]).expect(0, &["postgres.tls_names: holds at once", "the new certificate"]);
    psql(&project, "host=third.example.org hostaddr=127.0.0.1", encrypted).expect(0, &["t|TLSv1.3"]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// The certificate that PostgreSQL shows.
fn shown(client: &Arc<ClientConfig>, port: u16) -> CertificateDer<'static> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"S");
    let connection = ClientConnection::new(client.clone(), "localhost".try_into().unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    stream.conn.complete_io(&mut stream.sock).unwrap();
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

/// A session that stays open.
struct Session {
    psql: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Session {
    fn open(project: &Project) -> Self {
        let mut command = tandem::command(project);
        command.args(["psql", "-XAtq"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut psql = command.spawn().unwrap();
        let (input, output) = (psql.stdin.take().unwrap(), BufReader::new(psql.stdout.take().unwrap()));
        Self { psql, input, output }
    }

    /// The server process behind it.
    fn backend(&mut self) -> String {
        writeln!(self.input, "SELECT pg_backend_pid();").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

fn with_files(authority: &Authority, made: &Made) -> Project {
    let lines = "postgres.tls = 'files'\npostgres.tls_cert = 'cert.pem'\npostgres.tls_key = 'key.pem'\npostgres.tls_ca = 'ca.pem'";
    let project = project(lines);
    project.write("ca.pem", authority.pem());
    made.write(project.dir());
    project
}

#[test]
fn a_reload_takes_new_files_and_no_session_ends() {
    let authority = Authority::new();
    let (first, second) = (authority.make(30), authority.make(90));
    let project = with_files(&authority, &first);
    let mut tandem = Tandem::up(&project);
    let client = authority.client(None);
    assert!(first.is(&shown(&client, project.postgres)));
    control::run(&project, &["url"]).expect(0, &["sslmode=verify-full"]);
    let mut session = Session::open(&project);
    let backend = session.backend();
    let reload = control::run(&project, &["reload"]);
    assert!(reload.code == 0 && !reload.said.contains("certificate"), "{}", reload.said);

    second.write(project.dir());
    assert!(first.is(&shown(&client, project.postgres)), "nothing was asked for yet");
    control::run(&project, &["reload"])
        .expect(0, &["PostgreSQL shows new sessions the new certificate, which holds until"]);
    assert!(second.is(&shown(&client, project.postgres)));
    assert_eq!(session.backend(), backend);
    assert_eq!(control::status(&project)["certificates"][0]["days_left"], 90);

    // An authority after the other: who connects in the middle believes both.
    let next = Authority::new();
    let third = next.make(60);
    project.write("ca.pem", next.pem());
    third.write(project.dir());
    control::run(&project, &["reload"]).expect(0, &["the new certificate"]);
    assert!(third.is(&shown(&next.client(None), project.postgres)));
    assert_eq!(fs::read_to_string(project.state().join("tls/ca.crt")).unwrap().matches("BEGIN").count(), 1);
    assert_eq!((session.backend(), tandem.get("/").unwrap().1.as_str()), (backend, "ok"));

    // A server that is started again serves it too.
    let postmaster = tandem.postmaster(&project);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(postmaster), nix::sys::signal::Signal::SIGKILL).unwrap();
    tandem::wait_for("another server", || {
        tandem.health()["status"] == "healthy" && tandem.postmaster(&project) != postmaster
    });
    assert!(third.is(&shown(&next.client(None), project.postgres)));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn files_that_cannot_be_served_are_refused_before_anything_changes() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let good = authority.make(30);
    let project = with_files(&authority, &good);
    let mut tandem = Tandem::up(&project);
    let (workers, client) = (tandem.workers(), authority.client(None));
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| project.dir().join(name));
    let refused = |words: &[&str]| {
        refusal::run(&project, &["check"]).expect(78, &[&["tandem.toml:"], words].concat());
        control::run(&project, &["reload"]).expect(78, &[words, &["nothing was changed"]].concat());
        assert!(good.is(&shown(&client, project.postgres)));
    };
    fs::write(&key, &authority.make(30).key).unwrap();
    refused(&["postgres.tls_key", "is not the key of the certificate in"]);
    authority.make(-3).write(project.dir());
    refused(&["postgres.tls_cert", "expired at 20", "renew it"]);
    authority.make_for(&["localhost", "127.0.0.1"], 3, 30).write(project.dir());
    refused(&["postgres.tls_cert", "is not valid before 20", "clock"]);
    stranger.make(30).write(project.dir());
    refused(&["postgres.tls_ca", "does not lead to", "name the authority that signed it"]);
    fs::write(&cert, "no PEM").unwrap();
    refused(&["postgres.tls_cert", "holds no certificate"]);
    good.write(project.dir());
    fs::write(&key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n").unwrap();
    refused(&["postgres.tls_key", "encrypted", "openssl pkey"]);
    fs::remove_file(&key).unwrap();
    refused(&["postgres.tls_key", "cannot read", "No such file"]);
    good.write(project.dir());
    if !nix::unistd::Uid::effective().is_root() {
        fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).unwrap();
        refused(&["postgres.tls_key", "cannot read"]);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }
    // It can be served, and the workers that run would not take it.
    authority.make_for(&["db.example.org"], -3, 30).write(project.dir());
    control::run(&project, &["reload"]).expect(78, &["sslmode=verify-full", "sslmode=verify-ca", "restart Tandem"]);
    assert!(good.is(&shown(&client, project.postgres)));
    assert_eq!((tandem.workers(), tandem.get("/").unwrap().1.as_str()), (workers, "ok"), "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let mut tandem = Tandem::up(&project);
    control::run(&project, &["url"]).expect(0, &["sslmode=verify-ca"]);
    assert_eq!((tandem.get("/").unwrap().1.as_str(), tandem.stop()), ("ok", 0), "{}", tandem.log());
    authority.make(-3).write(project.dir());
    let refused = refusal::up(&project);
    refused.expect(78, &["postgres.tls_cert", "expired at 20"]);
    assert!(!refused.said.contains("database system is ready"), "{}", refused.said);
}

/// Root alone reads the key, and PostgreSQL runs as another user.
#[test]
fn without_an_authority_clients_encrypt_and_a_key_of_roots_alone_will_do() {
    let project = project("postgres.tls = 'files'\npostgres.tls_cert = 'cert.pem'\npostgres.tls_key = 'key.pem'");
    Authority::new().make_for(&["db.example.org"], -3, 30).write(project.dir());
    fs::set_permissions(project.dir().join("key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut tandem = Tandem::up(&project);
    control::run(&project, &["url"]).expect(0, &["?sslmode=require"]);
    let session: serde_json::Value = serde_json::from_str(&tandem.get("/session").unwrap().1).unwrap();
    assert_eq!((&session[0], &session[2]), (&"app".into(), &true.into()));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn keys_that_do_not_go_together_are_told() {
    for (lines, words) in [
        ("postgres.tls = 'files'", &["postgres.tls", "nothing says which", "postgres.tls_cert"][..]),
        ("postgres.tls_key = 'key.pem'", &["postgres.tls_key", "has no effect with postgres.tls = \"off\""]),
        ("postgres.tls_names = ['a']", &["postgres.tls_names", "has no effect"]),
        ("postgres.tls = 'self-signed'\npostgres.tls_names = ['a b']", &["\"a b\" is neither a name nor an address"]),
        ("postgres.tls = 'on'", &["postgres.tls", "off", "self-signed", "files"]),
        (
            "postgres.tls = 'self-signed'\npostgres.settings.ssl = 'off'",
            &["ssl settings cannot be set", "postgres.tls"],
        ),
    ] {
        refusal::run(&project(lines), &["check"]).expect(78, words);
    }
    let told = refusal::run(&project("postgres.listen = '0.0.0.0'"), &["check"]);
    told.expect(0, &["listens on 0.0.0.0 without TLS", "postgres.tls = \"self-signed\""]);
    for lines in ["", "postgres.listen = '0.0.0.0'\npostgres.tls = 'self-signed'"] {
        let quiet = refusal::run(&project(lines), &["check"]);
        assert!(quiet.code == 0 && !quiet.said.contains("without TLS"), "{}", quiet.said);
    }
    let attached = project("postgres.url = 'postgresql://u:pw-of-somebody@localhost/d'\npostgres.tls = 'self-signed'");
    refusal::run(&attached, &["check"]).expect(0, &["postgres.tls has no effect", "sslmode"]);
}
