//! `log.file`: a second place for the log, kept below a size, that holds up nothing when it cannot be written.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::project::Project;
use crate::common::refusal::{self, Refusal};
use crate::common::tandem::{self, Tandem, get, wait_for};

/// Prints as many numbered lines as it is asked for, `/N`, after those that it has printed.
const COUNTING: &str = "
printed = 0

async def app(scope, receive, send):
    global printed
    if scope['type'] == 'lifespan':
        await receive()
        await send({'type': 'lifespan.startup.complete'})
        await receive()
        return await send({'type': 'lifespan.shutdown.complete'})
    for _ in range(int(scope['path'][1:] or 0)):
        printed += 1
        print('number', printed, 'x' * 200, flush=True)
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'ok'})
";

/// A project whose application counts, and its log file.
fn counting(lines: &str) -> (Project, PathBuf) {
    let bare =
        "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1\nlog.file = 'logs/app.log'";
    let project = Project::app_with("mine:app", &format!("{bare}\n{lines}")).without("workers.app_dir");
    project.write("mine.py", COUNTING);
    let file = project.dir().join("logs/app.log");
    (project, file)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The numbers in lines that begin so, in their order.
fn numbers(text: &str) -> Vec<u32> {
    let after = text.lines().filter_map(|line| line.split("number ").nth(1));
    after.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn it_is_rotated_by_size_and_count_and_read_back_without_a_gap_while_tandem_runs_and_when_it_is_stopped() {
    let (project, file) = counting("log.file_size_max = '300KB'\nlog.file_count = 4\nlog.ring = '64KB'");
    let mut tandem = Tandem::up(&project);
    let older = |number| PathBuf::from(format!("{}.{number}", file.display()));
    get(tandem.app(), "/1500").unwrap();
    wait_for("lines in the file", || text(&file).contains("number 1500 "));
    assert!(older(1).exists() && !older(4).exists(), "{:?}", refusal::names(file.parent().unwrap()));
    for path in [&file, &older(1)] {
        assert!(fs::metadata(path).unwrap().len() <= 300 << 10);
        for line in text(path).lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            assert!(line["timestamp"].is_string() && line["message"].is_string(), "{line}");
        }
    }
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "nobody else reads it");

    // Memory has the last few hundred; what is older comes from the files, and each line once.
    let all: Vec<u32> = (1..=1500).collect();
    let shown = refusal::run(&project, &["logs", "-n", "9999", "--grep", "^number"]);
    assert_eq!(numbers(&shown.said), all, "{:.2000}", shown.said);
    let shown = refusal::run(&project, &["logs", "worker-0", "-n", "1400", "--grep", "^number"]);
    assert_eq!(numbers(&shown.said), all[100..]);
    let shown = refusal::run(&project, &["logs", "--since", "1h", "--json"]);
    assert_eq!(numbers(&shown.said), all, "all that --since names, though there are more than the default");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let stopped = refusal::run(&project, &["logs", "-n", "1"]);
    stopped.expect(0, &["no tandem runs here; this is what", "logs/app.log has", "stopped in"]);
    let shown = refusal::run(&project, &["logs", "--service", "worker-0", "-n", "9999", "--grep", "number"]);
    assert_eq!((shown.code, numbers(&shown.said)), (0, all));
    refusal::run(&project, &["logs", "nosuch"]).expect(0, &["no line of nosuch"]);
    refusal::run(&project, &["logs", "-f", "-n", "1"]).expect(1, &["stopped in", "no tandem runs here", "`tandem up`"]);
    fs::remove_dir_all(file.parent().unwrap()).unwrap();
    refusal::run(&project, &["logs"]).expect(1, &["no tandem runs here"]);
}

#[test]
fn without_a_file_it_is_said_that_memory_has_no_older_lines() {
    let (project, _) = counting("log.ring = '64KB'");
    project.reconfigure(|text| text.replace("log.file = 'logs/app.log'\n", ""));
    let mut tandem = Tandem::up(&project);
    let told = "older lines are no longer in memory";
    assert!(!refusal::run(&project, &["logs", "--since", "1h"]).said.contains(told));
    get(tandem.app(), "/1500").unwrap();
    wait_for("lines that are overwritten", || {
        let shown = refusal::run(&project, &["logs", "--since", "1h"]);
        shown.code == 0 && shown.said.contains(told) && shown.said.contains("with log.file they are kept")
    });
    assert!(!refusal::run(&project, &["logs"]).said.contains(told), "what was asked for is there");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn what_others_rotate_goes_on_in_the_file_of_that_name() {
    let (project, file) = counting("");
    let mut tandem = Tandem::up(&project);
    get(tandem.app(), "/1").unwrap();
    wait_for("the first line", || text(&file).contains("number 1 "));
    // As logrotate moves it.
    let moved = file.with_extension("moved");
    fs::rename(&file, &moved).unwrap();
    get(tandem.app(), "/1").unwrap();
    wait_for("a new file", || text(&file).contains("number 2 "));
    assert!(!text(&file).contains("number 1 ") && text(&moved).contains("number 1 "));
    // As its `copytruncate` does.
    fs::copy(&file, &moved).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len(0).unwrap();
    get(tandem.app(), "/1").unwrap();
    wait_for("the line in the file that was cut off", || text(&file).contains("number 3 "));
    assert!(text(&file).starts_with('{'), "no hole before it");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

/// How often the log says that the file cannot be written.
fn told(tandem: &Tandem) -> usize {
    tandem.log().matches(" cannot be written: ").count()
}

#[test]
fn a_full_disk_and_a_directory_that_vanishes_stop_nothing_and_are_told_once() {
    let (project, _) = counting("");
    project.reconfigure(|text| text.replace("'logs/app.log'", "'/dev/full'"));
    let mut tandem = Tandem::up(&project);
    get(tandem.app(), "/50").unwrap();
    tandem.wait_log("log.file /dev/full cannot be written: No space left on device");
    tandem.wait_log("number 50 ");
    assert_eq!(told(&tandem), 1, "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let (project, file) = counting("");
    let mut tandem = Tandem::up(&project);
    wait_for("the file", || file.exists());
    let (dir, away) = (file.parent().unwrap(), project.dir().join("away"));
    fs::rename(dir, &away).unwrap();
    fs::remove_dir_all(&away).unwrap();
    get(tandem.app(), "/50").unwrap();
    tandem.wait_log("make its directory, or mount it again");
    tandem.wait_log("number 50 ");
    assert!(!dir.exists(), "it may be a mount that is gone");
    fs::create_dir(dir).unwrap();
    wait_for("the file again", || {
        get(tandem.app(), "/1").unwrap();
        file.exists()
    });
    tandem.wait_log("is written again; ");
    assert_eq!(told(&tandem), 1, "{}", tandem.log());
    let first: Value = serde_json::from_str(text(&file).lines().next().unwrap()).unwrap();
    assert!(first["log.dropped"].as_u64().unwrap() >= 50, "{first}");
    assert!(tandem.health()["supervisor"]["log_lines_dropped"].as_u64().unwrap() >= 50);
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_background_tandem_writes_it_too_and_its_last_error_is_in_it() {
    let (project, file) = counting("");
    refusal::run(&project, &["up", "-d"]).expect(0, &["runs in the background"]);
    refusal::run(&project, &["stop"]).expect(0, &["stopped"]);
    assert!(text(&file).contains("is ready after") && text(&file).contains("stopped in"), "{}", text(&file));
    project.write("mine.py", "raise ValueError('SECRET_KEY is not set')");
    let Refusal { code, said } = refusal::up(&project);
    assert_eq!(code, 69, "{said}");
    let text = text(&file);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert!(last["level"] == "ERROR" && last["message"].to_string().contains("SECRET_KEY"), "{last}");
    assert!(tandem::left_in(project.dir()).is_empty());
}
