//! What the Dockerfile promises. Building it is the work of CI; this keeps it true in between.

use std::fs;
use std::path::Path;

use crate::common::project::Project;
use crate::common::{refusal, tandem};

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The instructions, each with its continued lines on one.
fn instructions() -> Vec<String> {
    let text = read("Dockerfile");
    assert!(!text.contains("# syntax="), "a frontend would be fetched from a registry before anything else");
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    joined
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn all<'a>(instructions: &'a [String], name: &str) -> Vec<&'a str> {
    instructions.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).collect()
}

#[test]
fn both_base_images_are_arguments_of_one_debian_release() {
    let instructions = instructions();
    let arguments = all(&instructions, "ARG");
    assert_eq!(all(&instructions, "FROM"), ["${RUST_IMAGE} AS builder", "${PYTHON_IMAGE}"]);
    let release = |argument: &str| argument.rsplit('-').next().unwrap().to_owned();
    assert_eq!(arguments.len(), 2, "{arguments:?}");
    assert_eq!(release(arguments[0]), release(arguments[1]));
    let manifest = read("Cargo.toml");
    let version =
        manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")).unwrap().trim_end_matches('"');
    assert!(arguments.iter().any(|argument| argument.starts_with(&format!("RUST_IMAGE=rust:{version}"))));
}

#[test]
fn it_runs_as_an_ordinary_user_with_its_state_in_a_volume() {
    let instructions = instructions();
    let place = |start: &str| {
        instructions.iter().position(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no line {start}"))
    };
    assert!(place("RUN --mount=type=secret,id=ca if [ -f /run/secrets/ca ]; then export PIP_CERT") < place("USER"));
    assert!(instructions.iter().any(|line| line.starts_with("RUN ") && line.ends_with("tandem install")));
    assert!(place("USER 10001:10001") < place("ENTRYPOINT"));
    assert_eq!(all(&instructions, "USER").len(), 1);
    assert_eq!(all(&instructions, "ENTRYPOINT"), [r#"["tandem"]"#]);
    assert_eq!(all(&instructions, "CMD"), [r#"["up"]"#]);
    let health = all(&instructions, "HEALTHCHECK")[0];
    // The recovery of a large database is no failure.
    assert!(health.contains("--start-period=30m ") && health.ends_with(r#"CMD ["tandem", "health"]"#), "{health}");
    assert_eq!(all(&instructions, "STOPSIGNAL"), ["SIGTERM"]);
    assert_eq!(all(&instructions, "EXPOSE"), ["8000 8001"]);
    let environment = all(&instructions, "ENV").join(" ");
    let volume = all(&instructions, "VOLUME")[0];
    assert!(environment.contains(&format!("TANDEM_STATE_DIR={volume}")), "{environment}");
    let pairs = [
        "TANDEM_WORKERS__LISTEN=0.0.0.0:8000",
        "TANDEM_HEALTH__LISTEN=0.0.0.0:8001",
        // Who starts it as root gets a server that an ordinary start finds its own data in, and workers whose files it
        // may write.
        "TANDEM_POSTGRES__RUN_AS=tandem",
        "TANDEM_WORKERS__RUN_AS=tandem",
    ];
    for pair in pairs {
        assert!(environment.contains(pair), "{environment}");
    }
    // In the volume they would be hidden by whatever is mounted there.
    assert!(!environment.contains(&format!("_DIR={volume}/")) && !environment.contains(&format!("VENV={volume}")));
}

#[test]
fn an_arbitrary_user_of_group_0_may_write_into_the_volume() {
    let instructions = instructions();
    let volume = all(&instructions, "VOLUME")[0];
    let made = format!("-g 0 -m 0775 {volume}");
    assert!(instructions.iter().any(|line| line.contains(&made)), "{made}");
}

/// The image as Tandem sees it: its ENV, in a directory like its own.
#[test]
fn what_docker_grants_by_default_is_enough_for_an_orderly_stop() {
    let project = Project::app("plain:app");
    let mut check = tandem::command(&project);
    for pair in all(&instructions(), "ENV").iter().flat_map(|line| line.split(' ')) {
        let (name, value) = pair.split_once('=').unwrap();
        if name.starts_with("TANDEM_STOP__") {
            check.env(name, value);
        }
    }
    let checked = refusal::said(check.args(["check", "--json"]).output().unwrap());
    let plan: serde_json::Value = serde_json::from_str(&checked.said).unwrap();
    assert_eq!(plan["stop"]["platform_seconds"], 10.0);
    // What follows PostgreSQL's fast shutdown is for a server that is deaf to it, as the platform's SIGKILL is.
    assert!(plan["stop"]["orderly_seconds"].as_f64().unwrap() < 10.0, "{}", plan["stop"]);
    assert_eq!(plan["notices"], serde_json::json!([]));
}

#[test]
fn every_build_is_locked_and_everything_copied_is_there_and_let_in() {
    let instructions = instructions();
    for build in instructions.iter().filter(|line| line.contains("cargo build")) {
        assert!(build.contains("--profile dist --locked"), "{build}");
    }
    let ignored = read(".dockerignore");
    let let_in: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    for copy in all(&instructions, "COPY").iter().filter(|copy| !copy.starts_with("--from")) {
        let (sources, _) = copy.rsplit_once(' ').unwrap();
        for source in sources.split(' ') {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(source).exists(), "{source}");
            assert!(let_in.iter().any(|path| Path::new(source).starts_with(path)), "{source} is ignored");
        }
    }
}

#[test]
fn the_libraries_that_postgres_loads_are_installed() {
    let instructions = instructions();
    let install = instructions.iter().find(|line| line.contains("apt-get install")).unwrap();
    let needed = "libgssapi-krb5-2 liblz4-1 libnss-wrapper libreadline8 libssl3 libxml2 libzstd1 locales tzdata zlib1g";
    for package in needed.split(' ') {
        assert!(install.split(' ').any(|word| word == package), "{package}");
    }
    // What the clusters of docker-library/postgres are made with.
    assert!(install.contains("localedef -i en_US -c -f UTF-8 "), "{install}");
}
