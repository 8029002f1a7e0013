//! Uvicorn's own options: each has a home, and reaches the Uvicorn that is installed or is refused with its line.

use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ::tandem::config::uvicorn;

use crate::common::control;
use crate::common::exchange::{self, Answer};
use crate::common::project::{self, Project};
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};
use crate::common::worker::Flavour;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1";

fn with(options: &str) -> Project {
    let project = Project::app_with("reflect:app", BARE);
    let text = format!("\n[workers.uvicorn]\n{options}\n");
    project.reconfigure(|before| format!("{before}{text}"));
    project
}

fn get(tandem: &Tandem, headers: &str) -> Answer {
    let stream = TcpStream::connect(("127.0.0.1", tandem.app())).unwrap();
    exchange::get(stream, "/", headers).unwrap()
}

fn flags(python: &Path) -> Vec<String> {
    #[expect(clippy::disallowed_methods, reason = "a test asks what it compares with")]
    let help = Command::new(python).args(["-m", "uvicorn", "--help"]).env("COLUMNS", "200").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    // A line of an option begins with it; what stands behind a slash turns it off.
    let lines =
        help.lines().filter_map(|line| line.trim_start().strip_prefix("--").filter(|_| line.starts_with("  --")));
    let word = |line: &str| line.split([' ', '/']).next().unwrap_or_default().to_owned();
    lines.map(word).filter(|flag| flag != "help").collect()
}

/// `docs/uvicorn.md` is written from the same list.
#[tokio::test]
async fn every_option_of_uvicorn_has_a_home_or_a_reason_why_not() {
    let mut python = vec![project::python().await];
    for flavour in [Flavour::OLDEST, Flavour::NEWEST] {
        python.push(flavour.python().await);
    }
    for python in python {
        let flags = flags(&python);
        assert!(flags.len() > 35, "{flags:?}");
        for flag in flags {
            assert!(uvicorn::home(&uvicorn::name(&flag)).is_some(), "--{flag} of {} has no row", python.display());
        }
    }
}

#[test]
fn options_reach_uvicorn_and_change_with_a_reload() {
    let project = with(
        "root_path = '/api'\ntimeout-keep-alive = 1\nserver_header = false\nforwarded_allow_ips = ['10.0.0.0/8', '127.0.0.0/8']\n\
         log_level = 'warning'\nhttp = 'h11'\nws = 'none'\nh11_max_incomplete_event_size = 2000\nlimit_concurrency = 100\n\
         [workers.uvicorn.headers]\nX-Frame-Options = 'DENY'",
    );
    refusal::run(&project, &["check"]).expect(0, &["workers.uvicorn.root_path", "/api"]);
    let mut tandem = Tandem::up(&project);
    let answer = get(&tandem, "X-Forwarded-For: 203.0.113.9\r\n");
    let told = answer.json();
    assert_eq!((&told["root_path"], &told["client"][0]), (&"/api".into(), &"203.0.113.9".into()), "{told}");
    assert!(answer.head.contains("x-frame-options: DENY") && !answer.head.contains("server:"), "{}", answer.head);
    // What h11 holds of an incomplete head is bounded; httptools knows no such bound.
    let mut stream = TcpStream::connect(("127.0.0.1", tandem.app())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head = format!("GET / HTTP/1.1\r\nHost: test\r\nX-Long: {}", "x".repeat(5000));
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    let mut refused = [0; 12];
    stream.read_exact(&mut refused).unwrap();
    assert_eq!(&refused, b"HTTP/1.1 400");
    // An idle connection ends after its second.
    let mut idle = TcpStream::connect(("127.0.0.1", tandem.app())).unwrap();
    std::io::Write::write_all(&mut idle, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    idle.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let mut all = Vec::new();
    idle.read_to_end(&mut all).expect("Uvicorn's own 5 seconds were changed");
    assert!(!tandem.log().contains("Uvicorn running"), "the level holds:\n{}", tandem.log());

    project.reconfigure(|text| text.replace("/api", "/v2"));
    control::run(&project, &["reload"]).expect(0, &["workers.uvicorn.root_path", "replaced 1 workers"]);
    assert_eq!(get(&tandem, "").json()["root_path"], "/v2");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test]
async fn a_wrong_option_is_refused_with_its_line_and_a_suggestion() {
    project::python().await;
    let line = |project: &Project, word: &str| {
        let text = std::fs::read_to_string(project.dir().join("tandem.toml")).unwrap();
        let number = text.lines().position(|line| line.contains(word)).unwrap() + 1;
        format!("tandem.toml:{number}: workers.uvicorn.")
    };
    for (written, words) in [
        ("root_pth = '/api'", &["no such option", "did you mean `root_path`?"][..]),
        ("zebra = 1", &["no such option", "uvicorn --help"]),
        ("timeout_keep_alive = 'soon'", &["\"soon\": expected a whole number"]),
        ("timeout_keep_alive = true", &["expected a whole number"]),
        ("limit_concurrency = -1", &["expected a whole number"]),
        ("ws_ping_interval = 'x'", &["expected a number"]),
        ("proxy_headers = 'yes'", &["expected true or false"]),
        ("root_path = 7", &["expected text"]),
        ("log_level = 'loud'", &["expected one of critical"]),
        ("http = 'zttp'", &["expected one of auto, h11, httptools"]),
        ("ws = 'wsproto'", &["No module named 'wsproto'", "requirements"]),
        ("headers = ['no colon']", &["expected \"Name: value\""]),
        ("log_config = 'nowhere.json'", &["a file that is there"]),
        ("port = 80", &["Uvicorn's port is not set here", "write workers.listen"]),
        ("workers = 8", &["write workers.count"]),
        ("ssl_certfile = 'x'", &["write workers.tls_cert"]),
        ("http2 = true", &["HTTP/1.1"]),
    ] {
        let project = with(written);
        let place = line(&project, written);
        refusal::run(&project, &["check"]).expect(78, &[&[place.as_str()], words].concat());
    }
    // At the start, before there is a database; and at a reload, before anything is replaced.
    let project = with("root_pth = '/api'");
    let refused = refusal::up(&project);
    refused.expect(78, &[&line(&project, "root_pth"), "did you mean `root_path`?"]);
    assert!(!refused.said.contains("database system is ready"), "{}", refused.said);
    project.reconfigure(|text| text.replace("root_pth", "root_path"));
    let mut tandem = Tandem::up(&project);
    let before = tandem.workers();
    project.reconfigure(|text| text.replace("root_path = '/api'", "date_header = 'no'"));
    let place = line(&project, "date_header");
    control::run(&project, &["reload"]).expect(78, &[&place, "expected true or false", "nothing was changed"]);
    assert_eq!((tandem.workers(), get(&tandem, "").json()["root_path"].as_str()), (before, Some("/api")));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// The Uvicorn that is installed decides, whatever another one knows.
#[tokio::test]
async fn an_option_that_the_installed_uvicorn_lacks_is_refused() {
    let oldest = Flavour::OLDEST.python().await;
    let project = with("reset_contextvars = true").without("python.venv").without("python.requirements");
    let venv = oldest.parent().unwrap().parent().unwrap().display().to_string();
    project.configure(&format!("python.venv = '{venv}'\npython.managed = false"));
    let words = ["workers.uvicorn.reset_contextvars: Uvicorn 0.22.0 has no such option"];
    refusal::run(&project, &["check"]).expect(78, &words);
    refusal::up(&project).expect(78, &words);
    // What both know works there too.
    project.reconfigure(|text| text.replace("reset_contextvars = true", "root_path = '/old'\nuse_colors = false"));
    let mut tandem = Tandem::up(&project);
    assert_eq!(get(&tandem, "").json()["root_path"], "/old");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn what_uvicorns_command_reads_from_the_environment_is_taken_or_named() {
    let project = Project::app_with("reflect:app", BARE);
    let environment = [
        ("UVICORN_ROOT_PATH", "/env"),
        ("UVICORN_HEADERS", "X-One:1 X-Two:2"),
        ("UVICORN_PROXY_HEADERS", "false"),
        ("UVICORN_TIMEOUT_KEEP_ALIVE", "75"),
        ("UVICORN_SSL_KEYFILE", "/etc/key"),
        ("UVICORN_RELOAD", "1"),
        ("UVICORN_FD", "3"),
        ("UVICORN_ZEBRA", "1"),
        ("GUNICORN_CMD_ARGS", "--bind=:80"),
        ("TANDEM_WORKERS__UVICORN__DATE_HEADER", "off"),
    ];
    let mut command = tandem::command(&project);
    let mut tandem = {
        command.envs(environment);
        Tandem::start_as(&project, command)
    };
    tandem.wait_ready();
    let answer = get(&tandem, "X-Forwarded-For: 203.0.113.9\r\n");
    let told = answer.json();
    assert_eq!((&told["root_path"], &told["client"][0]), (&"/env".into(), &"127.0.0.1".into()), "{told}");
    assert!(answer.head.contains("x-one: 1") && answer.head.contains("x-two: 2"), "{}", answer.head);
    assert!(!answer.head.contains("date:"), "{}", answer.head);
    let log = tandem.log();
    for notice in [
        "UVICORN_SSL_KEYFILE has no effect on Tandem: set TANDEM_WORKERS__TLS_KEY (workers.tls_key)",
        "UVICORN_RELOAD has no effect on Tandem: tandem up --reload",
        "UVICORN_FD has no effect on Tandem: set TANDEM_WORKERS__LISTEN",
        "UVICORN_ZEBRA has no effect",
        "GUNICORN_CMD_ARGS has no effect on Tandem",
    ] {
        assert!(log.contains(notice), "{notice:?} is not in:\n{log}");
    }
    assert!(!log.contains("UVICORN_ROOT_PATH has no effect"), "{log}");
    assert_eq!(tandem.stop(), 0, "{log}");
    // The file wins, and says so.
    let project = with("root_path = '/file'");
    let mut command = tandem::command(&project);
    let said = refusal::said(command.env("UVICORN_ROOT_PATH", "/env").arg("check").output().unwrap());
    said.expect(0, &["UVICORN_ROOT_PATH has no effect: workers.uvicorn.root_path is set (tandem.toml:"]);
    let mut command = tandem::command(&project);
    let wrong = command.env("UVICORN_WS_MAX_SIZE", "big").arg("check").output().unwrap();
    refusal::said(wrong).expect(78, &["environment: UVICORN_WS_MAX_SIZE: \"big\": expected a whole number"]);
}

/// Lines as the application's own logging wants them, and as Uvicorn writes them.
#[test]
fn a_log_configuration_of_ones_own_is_used() {
    let project = with("log_config = 'log.json'");
    project.write(
        "log.json",
        r#"{"version": 1, "disable_existing_loggers": false, "formatters": {"own": {"format": "OWN %(message)s"}},
            "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
            "loggers": {"uvicorn": {"handlers": ["own"], "level": "INFO"}}}"#,
    );
    let mut tandem = Tandem::up(&project);
    wait_for("a line of the kind", || tandem.log().contains("OWN Application startup complete"));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
