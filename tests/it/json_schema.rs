//! The JSON Schema of the configuration: what it says of configurations is what Tandem says.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use expect_test::expect;
use serde_json::Value;

use crate::common::project::{self, root};
use crate::common::refusal;
use crate::common::tandem;
use crate::tidy::files;
use ::tandem::config::{self, Source, json_schema};
use ::tandem::exit::reasons_of;

/// Reads documents as a JSON list, and answers for each what the schema has against it; null: nothing.
const VALIDATOR: &str = "
import json, sys, fastjsonschema
valid = fastjsonschema.compile(json.load(open(sys.argv[1])))
answers = []
for document in json.load(sys.stdin):
    try:
        valid(document)
        answers.append(None)
    except fastjsonschema.JsonSchemaException as wrong:
        answers.append(str(wrong))
json.dump(answers, sys.stdout)
";

fn schema() -> PathBuf {
    root().join("config/tandem.schema.json")
}

/// What the schema has against each of `documents`.
async fn objections(documents: &[String]) -> Vec<Option<String>> {
    let parsed = documents.iter().map(|text| toml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}")));
    let parsed: Vec<Value> = parsed.collect();
    let python = project::python().await;
    #[expect(clippy::disallowed_methods, reason = "a test runs what it compares with")]
    let mut command = Command::new(python);
    let command = command.args(["-c", VALIDATOR]).arg(schema()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(serde_json::to_string(&parsed).unwrap().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "the validator failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The blocks of `text` in TOML that are no part of a `pyproject.toml`.
fn toml_blocks(text: &str) -> Vec<String> {
    let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.filter(|block| !block.contains("[project]") && !block.contains("[tool.")).collect()
}

#[tokio::test]
async fn every_shipped_configuration_fits_the_schema() {
    let shipped = [files(&root().join("config"), ".toml"), files(&root().join("examples"), "tandem.toml")].concat();
    let pages = [files(&root().join("docs"), ".md"), vec![root().join("README.md")]].concat();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    let mut documents: Vec<String> = shipped.iter().map(read).collect();
    documents.extend(pages.iter().flat_map(|page| toml_blocks(&read(page))));
    assert!(documents.len() > 10, "only {} documents were read", documents.len());
    for (document, objection) in documents.iter().zip(objections(&documents).await) {
        assert_eq!(objection, None, "{document}");
    }
    let first = fs::read_to_string(root().join("config/tandem.toml")).unwrap();
    assert!(first.starts_with("#:schema ./tandem.schema.json\n"), "an editor finds no schema");
}

#[tokio::test]
async fn the_schema_refuses_what_is_wrong() {
    let wrong = [
        ("worker.count = 4", "worker"),
        ("workers.cuont = 4", "cuont"),
        ("workers.count = 0", "count"),
        ("workers.count = '4'", "count"),
        ("postgres.port = 70000", "port"),
        ("stop.grace = '10 parsecs'", "grace"),
        ("postgres.shared_buffers = '256'", "shared_buffers"),
        ("workers.tls_client = 'maybe'", "tls_client"),
        ("migrations.run = 'alembic upgrade head'", "run"),
        ("[[process]]\nname = 'frontend'", "command"),
        ("[process]\nname = 'frontend'", "process"),
        ("workers.env.LIST = ['a']", "env"),
    ];
    let documents: Vec<String> = wrong.iter().map(|(document, _)| (*document).to_owned()).collect();
    for ((document, part), objection) in wrong.iter().zip(objections(&documents).await) {
        let objection = objection.unwrap_or_else(|| panic!("the schema takes {document}"));
        assert!(objection.contains(part), "{document}: {objection}");
    }
}

/// Values of every sort, as TOML.
const VALUES: [&str; 58] = [
    "0",
    "1",
    "3",
    "5",
    "19",
    "20",
    "70000",
    "-1",
    "0.5",
    "-1.5",
    "true",
    "''",
    "'x'",
    "'auto'",
    "'never'",
    "'off'",
    "'10s'",
    "'1h 30m'",
    "'1 min 2s'",
    "'10'",
    "'1.5s'",
    "'1e3'",
    "'10 parsecs'",
    "'-5s'",
    "'256MB'",
    "'2 GiB'",
    "'1.5gb'",
    "'7k'",
    "'256'",
    "'10%'",
    "'2.5 %'",
    "'MB'",
    "'/a/b'",
    "'a/b'",
    "'127.0.0.1'",
    "'::1'",
    "'[::1]'",
    "'localhost'",
    "'*'",
    "'127.0.0.1:80'",
    "':80'",
    "'[::1]:80'",
    "'*:80'",
    "'8000'",
    "'unix:/run/x'",
    "'unix:'",
    "'0660'",
    "'0o660'",
    "'66'",
    "'999'",
    "'http://example.org/x'",
    "'ftp://example.org'",
    "[]",
    "['a', 'b']",
    "['127.0.0.1:80', 'unix:/run/x']",
    "[1]",
    "2026-01-02",
    "{ a = { b = 1 } }",
];

/// The keys in the schema; a table whose keys are free gets one.
fn keys(schema: &Value, above: &str, found: &mut Vec<String>) {
    for (name, schema) in schema["properties"].as_object().unwrap() {
        let name = format!("{above}{name}");
        if schema.get("properties").is_some() {
            keys(schema, &format!("{name}."), found);
        } else if schema.get("allOf").is_some() {
            found.push(format!("{name}.entry"));
        } else if name != "process" {
            found.push(name);
        }
    }
}

/// The keys whose value Tandem cannot read as what it should be, when each of them is `value`.
fn unreadable(keys: &[String], value: &str, dir: &Path) -> Vec<String> {
    let file = dir.join("tandem.toml");
    let lines: Vec<String> = keys.iter().map(|key| format!("{key} = {value}\n")).collect();
    fs::write(&file, lines.concat()).unwrap();
    let source = Source { file: Some(file), cwd: dir.to_path_buf(), ..Source::default() };
    let error = config::load(&source).expect_err("no value suits all keys");
    let reasons = reasons_of(&error).iter().filter(|reason| reason.message.contains(": expected "));
    reasons.filter_map(|reason| reason.key.clone()).collect()
}

/// An editor must never underline what Tandem takes; and what it does not underline though Tandem refuses it is known.
#[tokio::test]
async fn the_schema_and_tandem_agree_on_every_value_of_every_key() {
    let schema: Value = serde_json::from_str(&json_schema::text()).unwrap();
    let (mut names, dir) = (Vec::new(), tempfile::tempdir().unwrap());
    keys(&schema, "", &mut names);
    assert!(names.len() > 100, "only {} keys are in the schema", names.len());
    let pairs: Vec<(&String, &str)> =
        VALUES.iter().flat_map(|value| names.iter().map(move |key| (key, *value))).collect();
    let documents: Vec<String> = pairs.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let objections = objections(&documents).await;
    let mut loose = BTreeSet::new();
    let mut verdicts = pairs.iter().zip(objections);
    for value in VALUES {
        let refused = unreadable(&names, value, dir.path());
        for ((key, _), objection) in verdicts.by_ref().take(names.len()) {
            match (refused.contains(key), objection) {
                (false, Some(objection)) => panic!("Tandem takes {key} = {value}, the schema does not: {objection}"),
                (true, None) => {
                    loose.insert(format!("{value}: {key}"));
                }
                _ => {}
            }
        }
    }
    // What an address is takes more than a pattern, and JSON has no dates.
    expect![[r#"
        '0660': postgres.listen
        '10': postgres.listen
        '127.0.0.1:80': postgres.listen
        '1e3': postgres.listen
        '256': postgres.listen
        '66': postgres.listen
        '8000': postgres.listen
        '999': postgres.listen
        ':80': postgres.listen
        '::1': health.listen
        '::1': workers.listen
        2026-01-02: postgres.settings.entry
        2026-01-02: test.settings.entry
        2026-01-02: workers.env.entry
        2026-01-02: workers.uvicorn.entry"#]]
    .assert_eq(&loose.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn the_schema_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let printed = refusal::said(tandem::command_in(dir.path()).args(["check", "--schema"]).output().unwrap());
    printed.expect(0, &["json-schema.org/draft-07"]);
    assert_eq!(printed.said, fs::read_to_string(schema()).unwrap());
}
