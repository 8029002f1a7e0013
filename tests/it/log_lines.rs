//! What the JSON log has in its fields, and what `tandem logs` shows of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpStream;

use ::tandem::telemetry::FIELDS;
use expect_test::expect_file;
use serde_json::Value;

use super::tidy::{files, source};
use crate::common::backups::as_superuser;
use crate::common::exchange;
use crate::common::project::{Project, root};
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, wait_for};

/// Logs each request as JSON, as applications do, and answers with the headers that it got.
const LOGGING: &str = r#"
import json, sys

async def app(scope, receive, send):
    if scope['type'] == 'lifespan':
        await receive()
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        return await send({'type': 'lifespan.shutdown.complete'})
    headers = {name.decode(): value.decode() for name, value in scope['headers']}
    line = {'time': 1, 'level': 'warning', 'msg': 'paid', 'service.name': 'shop', 'amount': 1e22, 'note': 'ü\x1b[2J'}
    line['request_id'] = headers.get('x-request-id')
    line['traceparent'] = headers.get('traceparent')
    text = json.dumps(line, ensure_ascii=False).replace('1e+22', '12345678901234567890123.10')
    print(text, flush=True)
    body = json.dumps(headers).encode()
    await send({'type': 'http.response.start', 'status': 200, 'headers': [(b'content-length', str(len(body)).encode())]})
    await send({'type': 'http.response.body', 'body': body})
"#;

fn up(format: &str, lines: &str) -> (Project, Tandem) {
    let bare = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1";
    let project = Project::app_with("mine:app", &format!("{bare}\n{lines}")).without("workers.app_dir");
    project.write("mine.py", LOGGING);
    let mut tandem = Tandem::start_with(&project, tandem::command(&project), &["up", "--log-format", format]);
    tandem.wait_ready();
    (project, tandem)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The first line of the log that `is_it`, once it is there.
fn line(tandem: &Tandem, is_it: impl Fn(&Value) -> bool) -> Value {
    let mut found = None;
    wait_for("a line", || {
        found = lines(&tandem.log()).into_iter().find(|line| is_it(line));
        found.is_some()
    });
    found.unwrap()
}

const ID: &str = r#"r/17 "a\b""#;
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn the_id_of_a_request_passes_through_and_a_line_of_json_keeps_its_fields() {
    let (project, mut tandem) = up("json", "");
    let stream = TcpStream::connect(("127.0.0.1", tandem.app())).unwrap();
    let headers = format!("X-Request-ID: {ID}\r\ntraceparent: {TRACE}\r\n");
    let echoed = exchange::get(stream, "/", &headers).unwrap().json();
    assert_eq!((&echoed["x-request-id"], &echoed["traceparent"]), (&ID.into(), &TRACE.into()));

    let said = line(&tandem, |line| line["message"] == "paid");
    assert_eq!((&said["level"], &said["service.name"]), (&"WARN".into(), &"worker-0".into()), "{said}");
    let fields = &said["output.fields"];
    assert_eq!((&fields["request_id"], &fields["traceparent"]), (&ID.into(), &TRACE.into()), "{said}");
    assert_eq!((&fields["service.name"], &fields["note"]), (&"shop".into(), &"ü\u{1b}[2J".into()), "{said}");
    assert!(tandem.log().contains(r#""amount": 12345678901234567890123.10"#), "as it was written:\n{}", tandem.log());
    // In text it is the line that it was.
    let logs = refusal::run(&project, &["logs", "worker-0", "--level", "warn", "--grep", "r/17"]);
    logs.expect(0, &[r#"| {"time": 1, "level": "warning", "msg": "paid""#]);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_message_of_postgresql_is_one_line_with_its_parts_as_fields_and_without_passwords() {
    let (project, mut tandem) = up("json", "log.file = 'log'");
    let wrong = |statement: &str| assert!(!tandem::run(&project, &["psql", "-Xqc", statement]).status.success());
    wrong("SELECT 1\n  FROM nosuch");
    let said = line(&tandem, |line| line["postgres.sqlstate"] == "42P01");
    let field = |name: &str| said[format!("postgres.{name}")].as_str().unwrap_or_default().to_owned();
    assert!(said["message"].as_str().unwrap().starts_with("relation \"nosuch\" does not exist"), "{said}");
    assert_eq!((said["level"].as_str(), said["service.name"].as_str()), (Some("WARN"), Some("postgres")));
    assert_eq!((field("severity"), field("user"), field("database")), ("ERROR".into(), "app".into(), "app".into()));
    assert_eq!(field("statement"), "SELECT 1\n  FROM nosuch");
    assert!(said["postgres.pid"].as_i64().unwrap() > 1, "{said}");

    as_superuser(&project, "postgres", "DO $$ BEGIN RAISE LOG 'a word' USING DETAIL = 'more', HINT = 'so'; END $$");
    let said = line(&tandem, |line| line["message"] == "a word");
    assert_eq!((&said["postgres.detail"], &said["postgres.hint"]), (&"more".into(), &"so".into()), "{said}");
    assert!(said.get("postgres.sqlstate").is_none() && said["postgres.context"].is_string(), "{said}");

    wrong("ALTER ROLE nosuch\n PASSWORD 'hunter2hunter2'");
    let said = line(&tandem, |line| line["postgres.statement"].to_string().contains("ALTER ROLE nosuch"));
    assert!(said["postgres.statement"].as_str().unwrap().ends_with("PASSWORD '********'"), "{said}");
    let logs = refusal::run(&project, &["logs", "postgres", "-n", "999"]);
    logs.expect(0, &["ERROR:  role \"nosuch\" does not exist", "STATEMENT:  ALTER ROLE nosuch", "HINT:  so"]);
    let file = fs::read_to_string(project.dir().join("log")).unwrap();
    assert!(file.contains("ALTER ROLE nosuch"), "{file}");
    for text in [tandem.log(), logs.said, file] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn logs_are_chosen_by_time_level_words_and_service_and_a_bad_choice_names_the_next_step() {
    let (project, mut tandem) = up("text", "");
    assert!(!tandem::run(&project, &["psql", "-Xqc", "SELECT 1/0"]).status.success());
    let run = |args: &[&str]| refusal::run(&project, &[&["logs"], args].concat());
    wait_for("the line", || run(&["--grep", "division"]).said.contains("division by zero"));
    run(&["--since", "10m", "--level", "WARNING", "--service", "postgres"]).expect(0, &["division by zero"]);
    let json = run(&["--level", "warn", "--json", "-n", "999"]);
    assert!(!json.said.contains("\"INFO\"") && json.said.contains("division by zero"), "{}", json.said);
    for nothing in [
        &["--grep", "^division"][..],
        &["--level", "error", "--grep", "division"],
        &["--until", "2h"],
        &["--service", "worker-0", "--grep", "division"],
    ] {
        let shown = run(nothing);
        assert_eq!((shown.code, shown.said.contains("division by zero")), (0, false), "{nothing:?}: {}", shown.said);
    }
    for (wrong, words) in [
        (&["--since", "soon"][..], &["neither an age such as 10m", "14:30", "2026-01-02 15:04:05"][..]),
        (&["--since", "5m", "--until", "10m"], &["--since is after --until", "exchange them"]),
        (&["--grep", "a(b"], &["unclosed group", "write \\( for"]),
        (&["--level", "loud"], &["loud", "error, warn, info, debug, trace"]),
        (&["--follow", "--until", "5m"], &["cannot be used with"]),
        (&["postgres", "--service", "worker-0"], &["cannot be used with"]),
        (&["-n", "many"], &["invalid digit"]),
    ] {
        run(wrong).expect(64, words);
    }
    run(&["nosuch"]).expect(64, &["no service \"nosuch\"", "worker-0"]);

    // New lines are chosen alike.
    let mut following = tandem::command(&project);
    let file = project.dir().join("followed");
    following.args(["logs", "-f", "-n", "0", "--grep", "0.*zero"]).stdout(fs::File::create(&file).unwrap());
    let mut following = following.spawn().unwrap();
    wait_for("a line that is followed", || {
        assert!(!tandem::run(&project, &["psql", "-Xqc", "SELECT 2/0 AS zero"]).status.success());
        fs::read_to_string(&file).unwrap().contains("division by zero")
    });
    let followed = fs::read_to_string(&file).unwrap();
    assert!(!followed.contains("SELECT 1/0") && !followed.contains("tandem    |"), "{followed}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert_eq!(following.wait().unwrap().code(), Some(0));
}

fn known() -> BTreeSet<&'static str> {
    FIELDS.iter().map(|(name, _)| *name).collect()
}

#[test]
fn every_field_of_a_real_log_is_in_the_table() {
    let (project, mut tandem) = up("json", "log.file = 'log'\nlog.filter = 'info,tandem=debug'");
    assert!(!tandem::run(&project, &["psql", "-Xqc", "SELECT 1/0"]).status.success());
    tandem.get("/").unwrap();
    assert_eq!(tandem::run(&project, &["reload"]).status.code(), Some(0));
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    let file = fs::read_to_string(project.dir().join("log")).unwrap();
    let mut seen = BTreeMap::new();
    for line in lines(&tandem.log()).into_iter().chain(lines(&file)) {
        for frame in ["timestamp", "level", "target", "service.name", "message"] {
            assert!(line[frame].is_string(), "{line}");
        }
        seen.extend(line.as_object().unwrap().keys().map(|name| (name.clone(), line.to_string())));
    }
    for (name, line) in &seen {
        assert!(known().contains(name.as_str()), "{name} is not in src/telemetry/fields.rs: {line}");
    }
    for name in ["output.stream", "output.fields", "postgres.pid", "postgres.statement", "process.pid", "banner"] {
        assert!(seen.contains_key(name), "{name} was not seen among {:?}", seen.keys());
    }
    // The file has the lines of standard error.
    for words in ["is ready after", "division by zero", "stopped in"] {
        assert!(file.contains(words) && tandem.log().contains(words), "{words}");
    }
}

/// The fields that the arguments of a `tracing` macro name before the text: `name = value`, `%name`, `?name`, `name`.
fn named(arguments: &str) -> Vec<String> {
    let head = arguments.split('"').next().unwrap();
    let head = head.trim().trim_start_matches('{');
    let parts = head.split([',', '}']).map(str::trim).filter(|part| !part.is_empty());
    let names = parts.map(|part| part.split(" = ").next().unwrap().trim_start_matches(['%', '?']).trim().to_owned());
    let is_field = |name: &String| {
        name.starts_with(|letter: char| letter.is_ascii_lowercase())
            && name.chars().all(|letter| letter.is_ascii_lowercase() || matches!(letter, '.' | '_'))
    };
    names.filter(is_field).collect()
}

#[test]
fn every_field_in_the_code_is_in_the_table() {
    let mut seen = 0;
    for path in files(&source(), ".rs").into_iter().filter(|path| !path.ends_with("format_tests.rs")) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for level in ["error!(", "warn!(", "info!(", "debug!(", "trace!(", "event!("] {
            for arguments in code.split(&format!("tracing::{level}")).skip(1) {
                for name in named(arguments) {
                    seen += 1;
                    assert!(
                        known().contains(name.as_str()),
                        "{}: {name} is not in telemetry/fields.rs",
                        path.display()
                    );
                }
            }
        }
    }
    assert!(seen > 40, "only {seen} fields were seen: the test reads the wrong words");
}

const HEADING: &str = "### Fields of the JSON log\n";

/// `UPDATE_EXPECT=1` writes the table anew.
#[test]
fn the_documentation_has_the_table_of_fields() {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let begin = page.find(HEADING).unwrap();
    let table = begin + page[begin..].find("\n| field").unwrap() + 1;
    let end = table + page[table..].find("\n\n").unwrap();
    let rows: String = FIELDS.iter().map(|(name, meaning)| format!("\n| `{name}` | {meaning} |")).collect();
    let page = format!("{}| field | meaning |\n|---|---|{rows}{}", &page[..table], &page[end..]);
    expect_file!["../../docs/operations.md"].assert_eq(&page);
}
