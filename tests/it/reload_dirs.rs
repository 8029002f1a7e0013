//! What `tandem up --reload` sees: other directories, hidden files, symbolic links, editable installs, what no event tells;
//! and what it says of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use crate::common::namespace::{in_namespace, in_user_namespace};
use crate::common::project::{Project, python, venv};
use crate::common::tandem::{self, Tandem, command_as, wait_for};

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1\npool.size = 1\npool.overflow = 1\n";

/// An application that answers with what `expression` comes to, after `imports`.
fn source(imports: &str, expression: &str) -> String {
    format!(
        "import os\n{imports}\nasync def app(scope, receive, send):\n    if scope['type'] != 'http': return\n    \
         await send({{'type': 'http.response.start', 'status': 200, 'headers': []}})\n    \
         await send({{'type': 'http.response.body', 'body': str({expression}).encode()}})\n"
    )
}

fn project(more: &str) -> Project {
    let project = Project::app_with("main:app", &format!("{BARE}{more}"));
    project.reconfigure(|text| {
        let lines = text.lines().map(|line| match line.starts_with("workers.app_dir") {
            true => "workers.app_dir = 'app'\n".to_owned(),
            false => format!("{line}\n"),
        });
        lines.collect()
    });
    fs::create_dir(project.dir().join("app")).unwrap();
    project
}

/// Where the tests' packages lie, no other user may come.
fn as_oneself() -> &'static str {
    if ::tandem::process::identity::is_root() { "workers.run_as = 'root'\n" } else { "" }
}

fn start(project: &Project) -> Tandem {
    let mut command = tandem::command(project);
    command.env_remove("PYTHONDONTWRITEBYTECODE");
    let mut tandem = Tandem::start_with(project, command, &["up", "--reload", "--log-format", "text"]);
    tandem.wait_ready();
    tandem
}

fn answers(tandem: &Tandem, body: &str) {
    wait_for(&format!("the answer {body:?}"), || {
        tandem.get("/").is_some_and(|(status, said)| status == 200 && said == body)
    });
}

#[test]
fn other_directories_and_named_hidden_files_are_watched() {
    let project = project("workers.reload_include = ['*.py', '.env']\nworkers.reload_dirs = ['shared']\n");
    project.write(
        "app/main.py",
        &source("import sys; sys.path.append('shared'); import lib", "lib.VALUE + os.environ['COLOUR']"),
    );
    project.write("shared/lib.py", "VALUE = 'one '\n");
    // As in most repositories.
    project.write(".gitignore", ".env\n");
    project.write(".env", "COLOUR=blue\n");
    let mut tandem = start(&project);
    answers(&tandem, "one blue");
    project.write("shared/lib.py", "VALUE = 'two '\n");
    answers(&tandem, "two blue");
    tandem.wait_log("lib.py changed: the workers are replaced");
    // Its values are read again.
    project.write(".env", "COLOUR=green\n");
    answers(&tandem, "two green");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
    assert!(tandem::left_in(project.dir()).is_empty());
}

#[test]
fn symbolic_links_are_followed_and_rings_have_an_end() {
    let project = project("");
    project.write("app/main.py", &source("from linked import lib; import single", "lib.VALUE + single.VALUE"));
    project.write("elsewhere/package/lib.py", "VALUE = 'one '\n");
    project.write("files/single_1.py", "VALUE = 'a'\n");
    project.write("other/lib.py", "VALUE = 'three '\n");
    let path = |name: &str| project.dir().join(name);
    symlink(path("elsewhere/package"), path("app/linked")).unwrap();
    symlink(path("files/single_1.py"), path("app/single.py")).unwrap();
    // Rings: to itself, to the directory above, and through the other place.
    symlink(path("app"), path("app/itself")).unwrap();
    symlink(project.dir(), path("app/above")).unwrap();
    symlink(path("app"), path("elsewhere/package/back")).unwrap();
    let mut tandem = start(&project);
    answers(&tandem, "one a");
    project.write("elsewhere/package/lib.py", "VALUE = 'two '\n");
    answers(&tandem, "two a");
    tandem.wait_log("linked/lib.py changed");
    project.write("files/single_1.py", "VALUE = 'b'\n");
    answers(&tandem, "two b");
    // The link itself leads elsewhere now, as at a deployment by links.
    symlink(path("other"), path("app/linked.new")).unwrap();
    fs::rename(path("app/linked.new"), path("app/linked")).unwrap();
    answers(&tandem, "three b");
    project.write("other/lib.py", "VALUE = 'four '\n");
    answers(&tandem, "four b");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_editable_install_is_watched_wherever_it_lies() {
    python().await;
    let project = project("");
    project.write("app/main.py", &source("import lib", "lib.VALUE"));
    project.write("elsewhere/src/lib.py", "VALUE = 'one'\n");
    // An environment of the project's own, which has the packages of the tests' beside the editable one.
    let made = command_as("python3", project.dir())
        .args(["-m", "venv", "--without-pip", "own"])
        .stdout(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    let packages = |venv: &std::path::Path| {
        fs::read_dir(venv.join("lib")).unwrap().next().unwrap().unwrap().path().join("site-packages")
    };
    let own = packages(&project.dir().join("own"));
    fs::write(own.join("tests.pth"), format!("{}\n", packages(&venv()).display())).unwrap();
    fs::write(own.join("__editable__.lib-1.pth"), format!("{}\n", project.dir().join("elsewhere/src").display()))
        .unwrap();
    project.reconfigure(|text| {
        let text: String =
            text.lines().filter(|line| !line.starts_with("python.")).map(|line| format!("{line}\n")).collect();
        format!("python.venv = 'own'\npython.managed = false\n{}{text}", as_oneself())
    });
    let mut tandem = start(&project);
    answers(&tandem, "one");
    tandem.wait_log("elsewhere/src too, which is installed as editable");
    project.write("elsewhere/src/lib.py", "VALUE = 'two'\n");
    answers(&tandem, "two");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn a_change_that_causes_no_event_is_found_all_the_same() {
    let project = project("");
    project.write("lower/main.py", &source("", "'one'"));
    // What is written into the lower layer appears in the upper one, and the kernel tells nobody.
    let layers = "mkdir \"$0/over\"; mount -t tmpfs tmpfs \"$0/over\"; mkdir \"$0/over/upper\" \"$0/over/work\"; \
                  mount -t overlay overlay -o \"lowerdir=$0/lower,upperdir=$0/over/upper,workdir=$0/over/work\" \"$0/app\"; \
                  exec \"$@\"";
    let Some(command) = in_namespace(&project, layers) else { return };
    let mut tandem = Tandem::start_with(&project, command, &["up", "--reload", "--log-format", "text"]);
    tandem.wait_ready();
    answers(&tandem, "one");
    project.write("lower/main.py", &source("", "'two'"));
    answers(&tandem, "two");
    let log = tandem.log();
    assert_eq!(log.matches("files are compared every second").count(), 1, "{log}");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn where_no_watch_is_to_be_had_files_are_compared() {
    let project = project("");
    project.write("app/main.py", &source("", "'one'"));
    // Of this namespace's user, and of nobody else.
    let none = "echo 0 > /proc/sys/user/max_inotify_instances; exec \"$@\"";
    let Some(command) = in_user_namespace(&project, none) else { return };
    let mut tandem = Tandem::start_with(&project, command, &["up", "--reload", "--log-format", "text"]);
    tandem.wait_ready();
    project.write("app/main.py", &source("", "'two'"));
    answers(&tandem, "two");
    tandem.wait_log("Until then files are compared every second");
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}

#[test]
fn each_save_says_what_is_wrong_and_a_ring_of_rolls_says_why() {
    let project = project(as_oneself());
    project.write("app/main.py", &source("", "'good'"));
    let mut tandem = start(&project);
    answers(&tandem, "good");
    let told =
        |count: usize| wait_for(&format!("{count} tracebacks"), || tandem.log().matches("NameError").count() == count);
    for save in 1..=3 {
        project.write("app/main.py", &format!("{}\nboom\n#{}", source("", "'bad'"), " ".repeat(save)));
        told(save);
    }
    answers(&tandem, "good");
    // It writes a source whenever it is imported.
    let writes =
        "import pathlib, time\npathlib.Path(__file__).with_name('made.py').write_text(f'AT = {time.time()}\\n')";
    project.write("app/main.py", &source(writes, "'writes'"));
    tandem.wait_log("made.py has changed 3 times in a row while the workers started that were to read it");
    project.write("app/.gitignore", "made.py\n");
    project.write("app/main.py", &source(writes, "'left alone'"));
    answers(&tandem, "left alone");
    assert_eq!(tandem.log().matches("times in a row").count(), 1, "{}", tandem.log());
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());
}
