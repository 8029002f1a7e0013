//! A `.env` as people have one: what python-dotenv and Docker Compose take is taken, and who wins is told.

use crate::common::control;
use crate::common::project::Project;
use crate::common::refusal;
use crate::common::tandem::{self, Tandem, command};
use nix::sys::stat::Mode;

const BARE: &str = "migrations.run = 'none'\nworkers.count = 1";

#[test]
fn lines_of_either_dialect_reach_the_workers_and_the_environment_wins_over_them() {
    let of_file = ["COLOUR = 'file'", "SHAPE = 'file'", "SIZE = 'file'", "LANG = 'C.UTF-8'"];
    let lines = of_file.map(|line| format!("workers.env.{line}")).join("\n");
    let lines = format!("{BARE}\n{lines}");
    let project = Project::app_with("plain:app", &lines);
    let dotenv = "PASSED\nexport\tTABBED=1\n'QUOTED'='it\\'s'\nYAML: 1\n2FA=#x\nCR=1\rAFTER_CR=2\n\
                  SHAPE=dotenv\nSIZE=dotenv\nSTYLE=dotenv\n";
    project.write(".env", dotenv);
    let mut command = command(&project);
    command.env("PASSED", "through").env("SIZE", "environment").env("STYLE", "environment").env("LANG", "de_DE.UTF-8");
    let mut tandem = Tandem::start_as(&project, command);
    tandem.wait_ready();
    let of = |name: &str| tandem.get(&format!("/env?name={name}")).unwrap().1;
    let expected = [
        ("PASSED", "through"),
        ("TABBED", "1"),
        ("QUOTED", "it's"),
        ("YAML", "1"),
        ("2FA", "#x"),
        ("CR", "1"),
        ("AFTER_CR", "2"),
        ("COLOUR", "file"),
        ("SHAPE", "dotenv"),
        ("SIZE", "environment"),
        ("STYLE", "environment"),
        ("LANG", "C.UTF-8"),
    ];
    for (name, value) in expected {
        assert_eq!(of(name), value, "{name}");
    }
    assert_eq!(tandem.stop(), 0, "{}", tandem.log());

    let mut check = crate::common::tandem::command(&project);
    let output = check.args(["check", "--all"]).env("SIZE", "environment").output().unwrap();
    let said = refusal::said(output);
    let words =
        ["environment SIZE", "SIZE (environment) wins over SIZE (.env:", "SHAPE (.env:", "wins over workers.env.SHAPE"];
    said.expect(0, &words);
    assert!(!said.said.contains("it's"), "{}", said.said);
    // One line for all of them, unless they are asked for.
    let said = control::run(&project, &["check"]);
    said.expect(0, &["variables, shown by --all", "of .env, tandem.toml"]);
    assert!(!said.said.contains("workers.env.YAML"), "{}", said.said);
}

#[test]
fn what_cannot_be_a_dotenv_is_refused_at_once_and_its_secret_never_shown() {
    let project = Project::app_with("plain:app", BARE);
    let path = project.dir().join(".env");
    let refused = |bytes: &[u8], words: &[&str]| {
        std::fs::write(&path, bytes).unwrap();
        let said = refusal::up(&project);
        said.expect(78, words);
        assert!(!said.said.contains("hunter2"), "{}", said.said);
    };
    refused(b"A=1\nPASSWORD=hunter2\0\n", &[".env:2", "a NUL byte"]);
    refused(b"PASSWORD='hunter2' hunter2\n", &[".env:1", "after the closing quote"]);
    refused(b"A=1\nPASSWORD=hunter2\xf6\n", &[".env", "line 2 is not UTF-8: save it as UTF-8"]);
    refused(b"\xff\xfeA\0=\x001\0", &[".env", "it is UTF-16: save it as UTF-8"]);
    std::fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    refusal::up(&project).expect(78, &[".env", "it is a pipe, and nothing came out of it"]);
    // A store of secrets that offers the file in this way is read.
    let writer = std::thread::spawn({
        let path = path.clone();
        move || std::fs::write(path, "TANDEM_WORKERS__COUNT=7\n").unwrap()
    });
    refusal::said(tandem::run(&project, &["check"])).expect(0, &["7 workers"]);
    writer.join().unwrap();
    // So is a configuration and a password that nobody writes into their pipes.
    let pipe = project.dir().join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    std::fs::remove_file(&path).unwrap();
    let set = format!("postgres.password_file={}", pipe.display());
    refusal::run(&project, &["check", "--set", &set]).expect(78, &["nothing came out of it"]);
    refusal::run(&project, &["check", "--config", "pipe"]).expect(78, &["pipe"]);
}
