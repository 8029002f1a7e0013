//! The status page: in a real browser, and its events as any client reads them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::project::{Project, root};
use crate::common::python;
use crate::common::skip::skip;
use crate::common::tandem::{LIMIT, Tandem, command_as, run, wait_for};

/// Debian's package `chromium`.
const CHROMIUM: &str = "/usr/bin/chromium";
/// How long a viewer's end may take to be noticed.
const VANISH_LIMIT: Duration = Duration::from_secs(20);

/// `tests/fixtures/page/browser.py` with the browser on the page of `project`.
fn browse(project: &Project, what: &str) -> Option<Child> {
    if !Path::new(CHROMIUM).exists() {
        skip("there is no Chromium (Debian's package chromium)");
        return None;
    }
    let python = python::browser().join("bin/python");
    let script = root().join("tests/fixtures/page/browser.py");
    let mut command = command_as(&python.display().to_string(), project.dir());
    let url = format!("http://127.0.0.1:{}", project.health);
    command.arg(script).args([&url, env!("CARGO_BIN_EXE_tandem")]).arg(project.dir()).arg(what);
    // Its profile, and what it caches, go with the project.
    command.env("TMPDIR", project.dir()).env("HOME", project.dir());
    Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// Wait until the browser has seen everything.
fn seen(browser: Option<Child>) {
    let Some(browser) = browser else { return };
    let output = browser.wait_with_output().unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim_end().ends_with("ok"), "{said}\n{wrong}");
}

fn project() -> Project {
    Project::app_with("plain:app", "migrations.run = 'none'\nworkers.count = 2\npool.size = 1\npool.overflow = 1")
}

#[test]
fn the_page_shows_a_death_a_return_a_roll_and_a_database_that_stops() {
    let project = project();
    let _tandem = Tandem::up(&project);
    seen(browse(&project, "live"));
}

#[test]
fn the_page_can_be_read_by_everybody_and_without_javascript() {
    let project = project();
    let _tandem = Tandem::up(&project);
    seen(browse(&project, "readable"));
}

#[test]
fn a_page_left_open_over_a_restart_says_so_and_goes_on() {
    let project = project();
    let mut tandem = Tandem::up(&project);
    let Some(mut browser) = browse(&project, "left-open") else { return };
    let words = BufReader::new(browser.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    for word in words {
        match word.as_str() {
            "stop" => assert_eq!(tandem.stop(), 0),
            "start" => tandem = Tandem::start(&project),
            _ => {}
        }
        said.push(word);
    }
    let output = browser.wait_with_output().unwrap();
    assert!(output.status.success(), "{said:?}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, ["stop", "start", "ok"]);
}

/// The answer to a request as it stands, as far as it has come when `enough` says so, and the connection.
fn ask(port: u16, request: &str, enough: impl Fn(&str) -> bool) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let (began, mut read) = (Instant::now(), Vec::new());
    while !enough(&String::from_utf8_lossy(&read)) {
        assert!(began.elapsed() < LIMIT, "{}", String::from_utf8_lossy(&read));
        let mut some = [0; 8192];
        match stream.read(&mut some).unwrap() {
            0 => break,
            length => read.extend_from_slice(&some[..length]),
        }
    }
    (String::from_utf8_lossy(&read).into_owned(), stream)
}

/// The descriptors of a process.
fn descriptors(pid: i32) -> usize {
    procfs::process::Process::new(pid).unwrap().fd_count().unwrap()
}

#[test]
fn fifty_viewers_that_vanish_leave_no_descriptor_and_no_task() {
    let project = project();
    let tandem = Tandem::up(&project);
    let follow = "GET /events?page HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let has_event = |text: &str| text.contains("\n\n") && text.contains("event: page");
    // One comes and goes, so that what is opened once is open.
    drop(ask(project.health, follow, has_event));
    let settled = || {
        wait_for("descriptors that stay the same", || {
            let before = descriptors(tandem.pid());
            let began = Instant::now();
            wait_for("a moment", || began.elapsed() > Duration::from_millis(300));
            before == descriptors(tandem.pid())
        });
        descriptors(tandem.pid())
    };
    let before = settled();
    let mut looking = Vec::new();
    for _ in 0..50 {
        let (text, stream) = ask(project.health, follow, |text| has_event(text) || text.contains("HTTP/1.1 503"));
        looking.push((text.contains("HTTP/1.1 200"), stream));
    }
    let let_in = looking.iter().filter(|(let_in, _)| *let_in).count();
    assert_eq!(let_in, 20, "so many may look at a time");
    assert!(descriptors(tandem.pid()) >= before + 20);
    drop(looking);
    let began = Instant::now();
    wait_for("the descriptors of those who looked to be closed", || {
        assert!(began.elapsed() < VANISH_LIMIT, "{} descriptors, {before} before", descriptors(tandem.pid()));
        descriptors(tandem.pid()) <= before
    });
    // Their places are free again.
    let (text, _stream) = ask(project.health, follow, has_event);
    assert!(text.contains("HTTP/1.1 200"), "{text}");
}

#[test]
fn the_control_socket_tells_the_same_events_and_a_strange_name_gets_no_page() {
    let project = project();
    let tandem = Tandem::up(&project);
    let socket = project.state().join("run/control.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: tandem\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines();
    let data = lines.find_map(|line| Some(line.unwrap().strip_prefix("data: ")?.to_owned())).unwrap();
    let overview: tandem::health::overview::Overview = serde_json::from_str(&data).unwrap();
    assert_eq!((overview.phase.as_str(), overview.pid.cast_signed()), ("serving", tandem.pid()));
    let workers = overview.services.iter().filter(|service| service.kind == "worker" && service.state == "ready");
    assert_eq!(workers.count(), 2, "{overview:#?}");
    assert!(
        overview.boot.iter().all(|step| step.state == "done") && overview.log.iter().any(|line| !line.text.is_empty())
    );
    let to_the_end = |_: &str| false;
    let page = |host: &str| format!("GET / HTTP/1.1\r\nhost: {host}\r\naccept: text/html\r\nconnection: close\r\n\r\n");
    assert!(ask(project.health, &page("evil.example"), to_the_end).0.starts_with("HTTP/1.1 421 "));
    assert!(ask(project.health, &page("localhost"), to_the_end).0.starts_with("HTTP/1.1 200 "));
    let ready = "GET /ready HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert!(ask(project.health, ready, to_the_end).0.starts_with("HTTP/1.1 200 "), "a probe may ask by any name");
}

#[test]
fn beyond_loopback_there_is_no_page_unless_it_has_a_password() {
    let project = project();
    let listen = format!("0.0.0.0:{}", project.health);
    project.reconfigure(|text| text.replace(&format!("127.0.0.1:{}", project.health), &listen));
    let page = "GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/html\r\nconnection: close\r\n\r\n";
    let to_the_end = |_: &str| false;
    let mut tandem = Tandem::up(&project);
    let (answer, _) = ask(project.health, page, to_the_end);
    assert!(answer.contains("application/json") && !answer.contains("worker-0"), "{answer}");
    assert_eq!(tandem.stop(), 0);
    project.configure("health.page = 'on'");
    let refused = run(&project, &["check"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(78), "{said}");
    assert!(said.contains("would see the status page") && said.contains("health.page_password_file"), "{said}");
    project.write("page-password", "correct horse battery\n");
    project.configure("health.page_password_file = 'page-password'");
    let _tandem = Tandem::up(&project);
    let (answer, _) = ask(project.health, page, to_the_end);
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    let given = page.replace("accept:", "authorization: Bearer correct horse battery\r\naccept:");
    assert!(ask(project.health, &given, to_the_end).0.contains("worker-0"));
}

/// What `tandem psql` answers to a statement.
fn sql(project: &Project, statement: &str) -> String {
    let output = run(project, &["psql", "-qtAX", "-v", "ON_ERROR_STOP=1", "-c", statement]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The sessions by which the database is asked for statistics.
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tandem-page'";

#[test]
fn the_database_is_asked_while_somebody_looks_and_two_thousand_tables_with_odd_names_stay_readable() {
    let project = project();
    let _tandem = Tandem::up(&project);
    sql(&project, "DO $$ BEGIN FOR i IN 1..2000 LOOP EXECUTE format('CREATE TABLE t%s (id int)', i); END LOOP; END $$");
    let odd = ["<script>alert(1)</script>", "two\nlines", "\u{202e}gnp.exe", &"ü".repeat(31)];
    for name in odd {
        sql(&project, &format!("CREATE TABLE \"{name}\" AS SELECT repeat('x', 100) FROM generate_series(1, 1000)"));
    }
    assert_eq!(sql(&project, SESSIONS), "0", "nobody looks");
    let follow = "GET /events?page HTTP/1.1\r\nhost: localhost\r\n\r\n";
    // The end of the event, and that of its chunk.
    let is_whole = |text: &str| text.contains("gnp.exe") && text.trim_end_matches("\r\n").ends_with("\n\n");
    let (event, stream) = ask(project.health, follow, is_whole);
    assert_eq!(sql(&project, SESSIONS), "1");
    for shown in ["&lt;script&gt;alert(1)&lt;/script&gt;", "two\\nlines", "\\u{202e}gnp.exe", odd[3], "Largest tables"]
    {
        assert!(event.contains(shown), "{shown:?} is not in {event}");
    }
    assert!(!event.contains("<script>"));
    let page = "GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/html\r\nconnection: close\r\n\r\n";
    let (page, _) = ask(project.health, page, |_| false);
    assert!(page.len() < 200_000 && page.contains("gnp.exe"), "{}", page.len());
    drop(stream);
    wait_for("the session to be closed once nobody looks", || sql(&project, SESSIONS) == "0");
}
