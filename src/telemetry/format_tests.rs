//! Lines as a captured writer sees them.

use std::io;
use std::sync::{Arc, Mutex};

use expect_test::{Expect, expect};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::telemetry::json::Json;
use crate::telemetry::{Stream, child_line};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_790_000_000_007)
}

/// What `speak` logs, in text (with colours or without) or in JSON.
fn captured(colour: Option<bool>, speak: impl FnOnce()) -> String {
    let lines = Captured::default();
    let writer = lines.clone();
    let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
    let layer = match colour {
        Some(colour) => layer.event_format(Text { colour, clock: noon }).boxed(),
        None => layer.event_format(Json { clock: noon }).boxed(),
    };
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), speak);
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn everything() {
    tracing::info!(port = 8000_u16, "listening");
    tracing::warn!(service.name = "worker-0", exit.code = -1, words = "two words", "worker \"ended\"");
    tracing::error!(error = %"bad\nthing", ready = false, share = 0.5, "start failed:\nTraceback\n  File \"x\"");
    child_line("postgres", Stream::Stderr, "LOG:  ready");
    child_line("worker-12", Stream::Stdout, "\x1b[32mINFO\x1b[0m:     \"GET /\x1b[2J\x1b]0;x\x07 HTTP/1.1\"\r");
}

fn check(actual: &str, expected: &Expect) {
    expected.assert_eq(&actual.replace('\x1b', "␛"));
}

#[test]
fn text_without_colours() {
    check(
        &captured(Some(false), everything),
        &expect![[r#"
            14:13:20.007  tandem    | listening port=8000
            14:13:20.007  tandem    | WARN worker "ended" service.name=worker-0 exit.code=-1 words="two words"
            14:13:20.007  tandem    | ERROR start failed: error="bad thing" ready=false share=0.5
            14:13:20.007  tandem    |   Traceback
            14:13:20.007  tandem    |     File "x"
            14:13:20.007  postgres  | LOG:  ready
            14:13:20.007  worker-12 | INFO:     "GET / HTTP/1.1" 
        "#]],
    );
}

#[test]
fn text_with_colours_keeps_those_of_children_and_nothing_else() {
    check(
        &captured(Some(true), everything),
        &expect![[r#"
        ␛[2m14:13:20.007␛[0m  ␛[1mtandem   ␛[0m ␛[2m|␛[0m listening ␛[2mport=␛[0m8000
        ␛[2m14:13:20.007␛[0m  ␛[1mtandem   ␛[0m ␛[2m|␛[0m ␛[33mWARN␛[0m worker "ended" ␛[2mservice.name=␛[0mworker-0 ␛[2mexit.code=␛[0m-1 ␛[2mwords=␛[0m"two words"
        ␛[2m14:13:20.007␛[0m  ␛[1mtandem   ␛[0m ␛[2m|␛[0m ␛[1;31mERROR␛[0m start failed: ␛[2merror=␛[0m"bad thing" ␛[2mready=␛[0mfalse ␛[2mshare=␛[0m0.5
        ␛[2m14:13:20.007␛[0m  ␛[1mtandem   ␛[0m ␛[2m|␛[0m   Traceback
        ␛[2m14:13:20.007␛[0m  ␛[1mtandem   ␛[0m ␛[2m|␛[0m     File "x"
        ␛[2m14:13:20.007␛[0m  ␛[94mpostgres ␛[0m ␛[2m|␛[0m LOG:  ready
        ␛[2m14:13:20.007␛[0m  ␛[96mworker-12␛[0m ␛[2m|␛[0m ␛[32mINFO␛[0m:     "GET / HTTP/1.1" ␛[0m
    "#]],
    );
}

#[test]
fn json_is_flat_and_clean() {
    let lines = captured(None, everything);
    for line in lines.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    check(
        &lines,
        &expect![[r#"
        {"timestamp":"2026-09-21T14:13:20.007Z","level":"INFO","target":"tandem::telemetry::format::tests","service.name":"tandem","message":"listening","port":8000}
        {"timestamp":"2026-09-21T14:13:20.007Z","level":"WARN","target":"tandem::telemetry::format::tests","service.name":"worker-0","message":"worker \"ended\"","exit.code":-1,"words":"two words"}
        {"timestamp":"2026-09-21T14:13:20.007Z","level":"ERROR","target":"tandem::telemetry::format::tests","service.name":"tandem","message":"start failed:\nTraceback\n  File \"x\"","error":"bad thing","ready":false,"share":0.5}
        {"timestamp":"2026-09-21T14:13:20.007Z","level":"INFO","target":"output","service.name":"postgres","message":"LOG:  ready","output.stream":"stderr"}
        {"timestamp":"2026-09-21T14:13:20.007Z","level":"INFO","target":"output","service.name":"worker-12","message":"INFO:     \"GET / HTTP/1.1\" ","output.stream":"stdout"}
    "#]],
    );
}

#[test]
fn a_child_cannot_write_in_another_column() {
    let forged = "x\n14:13:20.007  tandem    | all is well\u{2028}14:13:20.007  tandem    | really";
    let lines = captured(Some(true), || child_line("worker-0", Stream::Stdout, forged));
    assert!(lines.lines().all(|line| line.contains("worker-0")), "{lines:?}");
}

#[test]
fn a_field_cannot_stand_for_the_frame() {
    let line = captured(None, || tracing::info!(level = "ERROR", timestamp = "never", target = "x", "said"));
    let object: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&object["level"], &object["message"]), (&"INFO".into(), &"said".into()));
    assert_eq!(object["timestamp"], "2026-09-21T14:13:20.007Z");
    assert_eq!(line.matches("\"level\"").count(), 1);
}

#[test]
fn names_have_stable_colours_and_neighbours_differ() {
    let workers: std::collections::HashSet<_> = (0..8).map(|slot| colour_of(&format!("worker-{slot}"))).collect();
    assert_eq!(workers.len(), 8);
    assert_eq!(colour_of("migrate"), colour_of("migrate"));
    assert!(!workers.contains(colour_of("postgres")) && !workers.contains(colour_of("tandem")));
}

#[test]
fn any_clock_can_be_written() {
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(5);
    assert_eq!((clock_time(before), rfc3339(before)), ("00:00:00.000".into(), "1970-01-01T00:00:00.000Z".into()));
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(400_000_000_000);
    assert_eq!(rfc3339(far), "9999-12-31T23:59:59.000Z");
}

#[test]
fn what_the_message_says_is_not_said_twice() {
    let applied =
        || tracing::info!(migration.name = "m001_first", duration_ms = 3, "applied migration m001_first: 3 tables");
    let line = captured(Some(false), applied);
    assert!(line.ends_with("| applied migration m001_first: 3 tables duration_ms=3\n"), "{line}");
    assert!(captured(None, applied).contains("\"migration.name\":\"m001_first\""));
}
