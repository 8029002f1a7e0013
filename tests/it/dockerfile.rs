//! What the Dockerfile promises. Building it is the work of CI; this keeps it true in between.

use std::fs;
use std::path::Path;

use crate::common::project::Project;
use crate::common::python::yaml;
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

const STAGES: [&str; 5] =
    ["${RUST_IMAGE} AS builder", "${PYTHON_IMAGE} AS runtime", "runtime AS packages", "runtime AS slim", "runtime"];

/// The instructions of the stage of this number in [`STAGES`], `FROM` first.
fn stage(number: usize) -> Vec<String> {
    let instructions = instructions();
    let from = format!("FROM {}", STAGES[number]);
    let begin = instructions.iter().position(|line| *line == from).unwrap_or_else(|| panic!("no line {from}"));
    let length = instructions[begin + 1..].iter().position(|line| line.starts_with("FROM ")).map(|length| length + 1);
    instructions[begin..].iter().take(length.unwrap_or(usize::MAX)).cloned().collect()
}

fn all<'a>(instructions: &'a [String], name: &str) -> Vec<&'a str> {
    instructions.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).collect()
}

#[test]
fn both_base_images_are_arguments_of_one_debian_release() {
    let instructions = instructions();
    let arguments = all(&instructions, "ARG");
    assert_eq!(all(&instructions, "FROM"), STAGES);
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
    let (packages, images) = (stage(2), [stage(3), stage(4)]);
    let installs = "RUN --mount=type=secret,id=ca if [ -f /run/secrets/ca ]; then export PIP_CERT";
    assert!(packages.iter().any(|line| line.starts_with(installs) && line.ends_with("tandem install")));
    for image in &images {
        // What is copied is root's, and the application's user may not write it.
        assert!(image.ends_with(&["USER 10001:10001".to_owned(), "VOLUME /var/lib/tandem".to_owned()]), "{image:?}");
        assert!(image.iter().any(|line| line == "COPY --from=packages /opt/tandem /opt/tandem"), "{image:?}");
    }
    assert_eq!(all(&instructions, "USER").len(), 2);
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
fn no_image_has_a_compiler_and_the_slim_one_installs_nothing_of_its_own() {
    let compiler =
        |lines: &[String]| lines.iter().any(|line| line.split(' ').any(|word| ["gcc", "g++"].contains(&word)));
    assert!(compiler(&stage(2)), "packages without a wheel are compiled");
    let (slim, full) = (stage(3), stage(4));
    assert!(!compiler(&stage(1)) && !compiler(&slim) && !compiler(&full));
    assert!(slim.iter().all(|line| !line.starts_with("RUN ")), "{slim:?}");
    // What lies in both is the same.
    let copies = |lines: &[String]| lines.iter().filter(|line| line.starts_with("COPY ")).cloned().collect::<Vec<_>>();
    assert_eq!(copies(&slim), copies(&full));
    assert!(
        copies(&slim)[0].contains("/usr/lib/locale/locale-archive"),
        "with the locale of docker-library's clusters"
    );
    // Neither list of packages nor pip's cache stays in a layer of an image.
    for install in [&stage(1), &full].into_iter().flatten().filter(|line| line.contains("apt-get install")) {
        assert!(install.ends_with("rm -rf /var/lib/apt/lists/*"), "{install}");
    }
    assert!(stage(2).iter().any(|line| line.contains("PIP_NO_CACHE_DIR=1 tandem install")));
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
    let needed = "libgssapi-krb5-2 liblz4-1 libnss-wrapper libreadline8 libssl3 libxml2 libzstd1 tzdata zlib1g";
    for package in needed.split(' ') {
        assert!(install.split(' ').any(|word| word == package), "{package}");
    }
    // What the clusters of docker-library/postgres are made with.
    assert!(stage(2).iter().any(|line| line.contains("localedef -i en_US -c -f UTF-8 ")));
    assert!(stage(4)[1].contains(" locales "), "for localedef in an image that is built on this one");
}

/// The file by itself, and the image with what it adds.
#[tokio::test]
async fn the_compose_file_is_one_service_that_fits_the_image() {
    let file = yaml(&Path::new(env!("CARGO_MANIFEST_DIR")).join("compose.yaml")).await;
    let services = file["services"].as_object().unwrap();
    assert_eq!(services.keys().collect::<Vec<_>>(), ["backend"]);
    let service = &services["backend"];
    let instructions = instructions();
    let exposed = all(&instructions, "EXPOSE")[0];
    let ports =
        service["ports"].as_array().unwrap().iter().map(|port| port.as_str().unwrap().rsplit(':').next().unwrap());
    assert_eq!(ports.collect::<Vec<_>>().join(" "), exposed);
    let volume = format!("state:{}", all(&instructions, "VOLUME")[0]);
    assert_eq!(
        (&service["volumes"], &file["volumes"]),
        (&serde_json::json!([volume]), &serde_json::json!({"state": null}))
    );
    assert_eq!((&service["read_only"], &service["cap_drop"][0]), (&true.into(), &"ALL".into()));
    assert_eq!(service["build"]["context"], ".");
    assert_eq!(all(&instructions, "FROM").iter().filter(|from| from.ends_with(" AS slim")).count(), 1);
    let project = Project::app("plain:app");
    let mut check = tandem::command(&project);
    for (name, value) in service["environment"].as_object().unwrap() {
        check.env(name, value.as_str().unwrap());
    }
    let checked = refusal::said(check.args(["check", "--json"]).output().unwrap());
    let plan: serde_json::Value = serde_json::from_str(&checked.said).unwrap();
    assert_eq!((&plan["problems"], &plan["notices"]), (&serde_json::json!([]), &serde_json::json!([])));
    let granted = service["stop_grace_period"].as_str().unwrap().trim_end_matches('s').parse::<f64>().unwrap();
    assert_eq!(plan["stop"]["platform_seconds"], granted);
    assert!(plan["stop"]["orderly_seconds"].as_f64().unwrap() <= granted, "{}", plan["stop"]);
}
