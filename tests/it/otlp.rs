//! Traces and metrics for an OpenTelemetry collector, in a binary with the feature `otlp`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message;

use crate::common::deployed;
use crate::common::project::Project;
use crate::common::tandem::{self, Tandem, wait_for};

/// One request: its first line, its headers, its body.
struct Request {
    line: String,
    headers: String,
    body: Vec<u8>,
}

/// A collector that answers `first` once, and 200 from then on.
fn collector(first: &'static str) -> (String, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (requests, taken) = channel();
    thread::spawn(move || {
        let mut answers = std::iter::once(first).chain(std::iter::repeat("200 OK"));
        for stream in listener.incoming() {
            let Ok(request) = read(&mut stream.unwrap(), answers.next().unwrap()) else { continue };
            if requests.send(request).is_err() {
                return;
            }
        }
    });
    (address, taken)
}

fn read(stream: &mut TcpStream, answer: &str) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut headers) = (String::new(), String::new());
    reader.read_line(&mut line)?;
    while reader.read_line(&mut headers)? > 2 {}
    let headers = headers.to_lowercase();
    let length = headers.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or("0");
    let mut body = vec![0; length.trim().parse().unwrap()];
    reader.read_exact(&mut body)?;
    write!(stream, "HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?;
    Ok(Request { line, headers, body })
}

fn up(project: &Project, variables: &[(&str, &str)]) -> Tandem {
    let mut command = tandem::command(project);
    command.envs(variables.iter().copied());
    let mut tandem = Tandem::start_as(project, command);
    tandem.wait_ready();
    tandem
}

/// Wait for a span that is called `name`.
fn span(taken: &Receiver<Request>, known: &mut Vec<Span>, name: &str) -> Span {
    let mut found = None;
    wait_for(&format!("the span {name:?}"), || {
        for request in taken.try_iter().filter(|request| request.line.starts_with("POST /v1/traces ")) {
            let message = ExportTraceServiceRequest::decode(&*request.body).unwrap();
            let scopes = message.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            known.extend(scopes.flat_map(|scope| scope.spans));
        }
        found = known.iter().find(|span| span.name == name).cloned();
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_boot_a_roll_and_a_backup_are_traces_and_everything_measured_is_sent() {
    // Throttled at first: the boot's trace is sent again.
    let (address, taken) = collector("503 Service Unavailable");
    let project =
        Project::app_with("plain:app", "workers.count = 1\nbackup.schedule = '* * * * * *'\nbackup.verify = 'never'");
    let tandem = up(
        &project,
        &[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &address),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken"),
            ("OTEL_SERVICE_NAME", "shop"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        ],
    );
    let mut spans = Vec::new();
    let boot = span(&taken, &mut spans, "boot");
    assert!(boot.end_time_unix_nano > boot.start_time_unix_nano && boot.parent_span_id.is_empty());
    let step = span(&taken, &mut spans, "workers");
    assert_eq!((step.trace_id, step.parent_span_id), (boot.trace_id, boot.span_id));
    assert!(tandem::run(&project, &["reload"]).status.success());
    assert_eq!(span(&taken, &mut spans, "roll").status, None);
    assert_eq!(span(&taken, &mut spans, "backup").status, None);
    let (mut request, mut sent) = (None, Vec::new());
    wait_for("the size of the database among what is measured", || {
        for one in taken.try_iter().filter(|request| request.line.starts_with("POST /v1/metrics ")) {
            let message = ExportMetricsServiceRequest::decode(&*one.body).unwrap();
            sent =
                message.resource_metrics[0].scope_metrics[0].metrics.iter().map(|metric| metric.name.clone()).collect();
            let service = &message.resource_metrics[0].resource.as_ref().unwrap().attributes[0];
            assert!(format!("{service:?}").contains("shop"), "{service:?}");
            request = Some(one);
        }
        sent.iter().any(|name| name == "pg_database_size_bytes")
    });
    assert!(sent.iter().any(|name| name == "tandem_rolls"), "{sent:?}");
    assert!(request.unwrap().headers.contains("authorization: bearer t0ken"));
    assert!(!tandem.log().contains("t0ken"));
}

#[test]
fn a_roll_that_is_given_up_is_an_error() {
    let (address, taken) = collector("200 OK");
    let project = deployed::project("workers.count = 1\nmigrations.run = 'none'", &deployed::plain("", "one"));
    let _tandem = up(&project, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &address)]);
    deployed::deploy(&project, "import nothing_of_this_name\n");
    assert!(!tandem::run(&project, &["reload"]).status.success());
    let status = span(&taken, &mut Vec::new(), "roll").status.unwrap();
    assert_eq!(status.code(), StatusCode::Error);
}

#[test]
fn a_collector_that_is_not_there_and_a_wrong_variable_cost_a_line_of_the_log() {
    let project = Project::app_with("plain:app", "workers.count = 1\nmigrations.run = 'none'");
    let mut tandem = up(&project, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")]);
    tandem.wait_log("the OTLP collector takes no messages");
    assert_eq!(tandem.stop(), 0);
    let mut tandem = up(&project, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://here")]);
    assert!(
        tandem.log().contains("OTLP is not sent: OTEL_EXPORTER_OTLP_ENDPOINT begins with grpc:"),
        "{}",
        tandem.log()
    );
    assert_eq!(tandem.stop(), 0);
}
