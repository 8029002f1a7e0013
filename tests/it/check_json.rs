//! `tandem check --json`: one shape, whether the configuration is sound or not; and how errors look without a log.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem;

/// The exit code, and what was printed on standard output and on standard error.
fn run(project: &Project, args: &[&str]) -> (i32, String, String) {
    let output = tandem::run(project, args);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn checked(project: &Project) -> (i32, Value) {
    let (code, stdout, stderr) = run(project, &["check", "--json"]);
    assert_eq!(stderr, "", "what is in the JSON is said once");
    (code, serde_json::from_str(&stdout).unwrap())
}

fn members(told: &Value) -> BTreeSet<&str> {
    told.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_sound_configuration_and_one_with_problems_have_one_shape() {
    let project = Project::app("plain:app");
    let (code, sound) = checked(&project);
    assert_eq!((code, &sound["ok"], &sound["problems"]), (0, &json!(true), &json!([])), "{sound}");
    assert!(sound["keys"].as_array().unwrap().iter().any(|key| key["key"] == "postgres.port"), "{sound}");

    let project = project.without("postgres.port");
    project.configure("workers.cuont = 3\npostgres.port = 70000");
    project.reconfigure(|text| format!("{text}[[process]]\nname = 'x'\n"));
    project.write(".env", "TANDEM_POOL__SIZE=many\n");
    let (code, told) = checked(&project);
    assert_eq!((code, &told["ok"]), (78, &json!(false)), "{told}");
    assert_eq!(members(&told), members(&sound));
    assert_eq!(told["see"], "tandem docs troubleshooting exit-code-78");
    let of_key = |key: &str| {
        let problems = told["problems"].as_array().unwrap();
        problems.iter().find(|problem| problem["key"] == key).unwrap_or_else(|| panic!("{key}: {told}")).clone()
    };
    let expected = json!({
        "file": "tandem.toml",
        "line": 1,
        "variable": null,
        "flag": null,
        "key": "workers.cuont",
        "message": "unknown key `workers.cuont`",
        "help": "did you mean `workers.count`?",
    });
    assert_eq!(of_key("workers.cuont"), expected);
    assert_eq!(of_key("postgres.port")["line"], 2);
    assert!(of_key("process.command")["line"].as_u64().unwrap() > 5);
    let pool = of_key("pool.size");
    assert_eq!((&pool["file"], &pool["variable"]), (&json!(".env"), &json!("TANDEM_POOL__SIZE")), "{pool}");

    let flag = run(&project, &["check", "--json", "--set", "pool.size=0"]).1;
    assert!(flag.contains(r#""flag": "--set""#), "{flag}");
}

#[test]
fn a_file_that_is_not_toml_is_a_problem_with_its_line() {
    let project = Project::app("plain:app");
    project.write("tandem.toml", "[workers]\napp = main:app\n");
    let (code, told) = checked(&project);
    assert_eq!((code, &told["problems"][0]["line"]), (78, &json!(2)), "{told}");
    project.write("tandem.toml", "");
    let (_, stdout, _) = run(&project, &["check", "--json", "--config", "nowhere.toml"]);
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert!(told["problems"][0]["message"].as_str().unwrap().contains("nowhere.toml"), "{told}");
}

#[test]
fn errors_of_commands_without_a_log_follow_its_format() {
    let project = Project::app("plain:app");
    for command in [&["status"][..], &["scale", "2"], &["logs"], &["stop"]] {
        let (code, _, stderr) = run(&project, command);
        assert_ne!(code, 0, "{stderr}");
        assert!(stderr.starts_with("tandem: no tandem runs here"), "{stderr}");
        assert!(stderr.ends_with(" (see: tandem docs troubleshooting no-tandem-runs-here)\n"), "{stderr}");
        project.configure("log.format = 'json'");
        let (_, _, stderr) = run(&project, command);
        let line: Value = serde_json::from_str(stderr.lines().next().unwrap()).unwrap_or_else(|_| panic!("{stderr}"));
        assert!(line["message"].as_str().unwrap().contains("no tandem runs here"), "{line}");
        assert_eq!(line["see"], "tandem docs troubleshooting no-tandem-runs-here");
        project.reconfigure(|text| text.replace("log.format = 'json'\n", ""));
    }
}

#[test]
fn the_section_that_an_error_names_is_printed() {
    let project = Project::app_with("plain:app", "workers.cuont = 3\nlog.format = 'text'");
    let refused = refusal::run(&project, &["check"]);
    refused.expect(78, &["unknown key"]);
    let line = refused.said.lines().last().unwrap();
    let command = line.trim_end_matches(')').split_once("(see: tandem ").unwrap_or_else(|| panic!("{line}")).1;
    let words: Vec<&str> = command.split(' ').collect();
    refusal::run(&project, &words).expect(0, &["Exit code 78"]);
    refusal::run(&project, &["docs"]).expect(0, &["troubleshooting", "Configuration"]);
    refusal::run(&project, &["docs", "backups", "Room on the disk"]).expect(0, &["disk.stop_free"]);
    refusal::run(&project, &["docs", "troubleshooting.md#a-port-is-taken"]).expect(0, &["workers.listen"]);
    refusal::run(&project, &["docs", "a-port-is-taken"]).expect(0, &["workers.listen"]);
    refusal::run(&project, &["docs", "operation"]).expect(64, &["did you mean operations?"]);
    refusal::run(&project, &["docs", "backups", "rooms-on-the-disk"]).expect(64, &["did you mean room-on-the-disk?"]);
}
