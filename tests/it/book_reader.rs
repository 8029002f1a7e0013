//! The shell blocks of a page of documentation, typed in order as a reader types them, in a project of their own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::common::ports::free_port;
use crate::common::project::{root, venv};
use crate::common::tandem::{self, LIMIT, get, pause, wait_for};

/// Longest time for a block without a server, in seconds, for timeout(1).
const BLOCK_LIMIT: &str = "120";

/// One block between fences.
#[derive(Clone, Debug)]
pub struct Block {
    /// What stands behind the language: why the block is not run.
    pub not_run: Option<String>,
    pub text: String,
}

/// The shell blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut in_other = false;
    for line in page.lines() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, Some(info)) if !in_other && (info == "sh" || info.starts_with("sh ")) => {
                let reason = info.strip_prefix("sh not-run=\"").and_then(|rest| rest.strip_suffix('"'));
                assert!(info == "sh" || reason.is_some(), "a block is ```{info}; write ```sh not-run=\"REASON\"");
                open = Some(Block { not_run: reason.map(str::to_owned), text: String::new() });
            }
            (None, Some(_)) => in_other = !in_other,
            (None, None) => {}
        }
    }
    blocks
}

/// What is done with a line of a block.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It runs to its end.
    Run(String),
    /// It serves until it is stopped.
    Serve(String),
    /// It prints until Ctrl-C.
    Follow(String),
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let lines = text.replace("\\\n", " ");
    let commands = lines.lines().map(|line| line.split(" #").next().unwrap().trim());
    for line in commands.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.rsplit("&&").next().unwrap().trim_end_matches('&').split_whitespace().collect();
        let has = |options: [&str; 2]| words.iter().any(|word| options.contains(word));
        steps.push(match words[..] {
            ["tandem", "up", ..] if !has(["-d", "--detach"]) && !has(["--wait", "--wait-for"]) => {
                Step::Serve(line.trim_end_matches('&').trim().to_owned())
            }
            ["tandem", "logs", ..] if has(["-f", "--follow"]) => Step::Follow(line.to_owned()),
            ["tandem", "status", ..] if has(["--watch", "-w"]) => Step::Follow(line.to_owned()),
            _ => Step::Run(line.to_owned()),
        });
    }
    steps
}

/// What a page needs beside the project.
pub struct Setting {
    /// Whether the project has a `tandem.toml`.
    pub configured: bool,
    /// Whether a Tandem runs while the page is read.
    pub serves: bool,
    /// More of `tandem.toml`.
    pub configuration: &'static str,
    /// What is typed before the first block.
    pub before: &'static str,
    /// Words of the page that stand for something of the reader's, and what they are here; `{dir}` is the project.
    pub words: &'static [(&'static str, &'static str)],
}

pub const SERVING: Setting = Setting { configured: true, serves: true, configuration: "", before: "", words: &[] };

/// A reader confirms what is asked on a terminal.
const CONFIRM: &str = "tandem() { case \"$* \" in *--dry-run* | *--yes*) command tandem \"$@\" ;; \
                       'restore '* | 'import sqlite '*) command tandem \"$@\" --yes ;; *) command tandem \"$@\" ;; esac; }";

struct Reader {
    dir: tempfile::TempDir,
    /// What makes the machine fit for several readers at once: the environment of all commands.
    environment: Vec<(&'static str, String)>,
    health: u16,
    setting: Setting,
    server: Option<(Child, PathBuf)>,
}

/// Read the page, a path from the root, and run its blocks.
pub fn read(page: &str, setting: Setting) {
    let mut reader = Reader::new(setting);
    if !reader.setting.before.is_empty() {
        reader.serve_again();
        reader.run(&reader.own_words(reader.setting.before));
    }
    let mut count = 0;
    for block in blocks(&fs::read_to_string(root().join(page)).unwrap()).iter().filter(|block| block.not_run.is_none())
    {
        let began = Instant::now();
        reader.serve_again();
        steps(&reader.own_words(&block.text)).into_iter().for_each(|step| reader.act(step));
        println!("{page}, in {:.1?}: {}", began.elapsed(), block.text.lines().next().unwrap_or_default());
        count += 1;
    }
    assert!(count > 0, "{page} has no block that is run: it needs no test");
    reader.stop();
    assert_eq!(tandem::left_in(reader.dir.path()).len(), 0, "{page} leaves processes");
}

impl Reader {
    fn new(setting: Setting) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let everybody = fs::Permissions::from_mode(0o755);
        let dir = tempfile::Builder::new().prefix("tandem-book-").permissions(everybody).tempdir().unwrap();
        let [app, health, postgres] = [(); 3].map(|()| free_port());
        let requirements = root().join("tests/fixtures/requirements.txt");
        let environment = vec![
            ("TANDEM_WORKERS__LISTEN", format!("127.0.0.1:{app}")),
            ("TANDEM_HEALTH__LISTEN", format!("127.0.0.1:{health}")),
            ("TANDEM_POSTGRES__PORT", postgres.to_string()),
            ("TANDEM_PYTHON__VENV", venv().display().to_string()),
            ("TANDEM_PYTHON__REQUIREMENTS", requirements.display().to_string()),
            ("TANDEM_WORKERS__COUNT", "2".to_owned()),
            ("TANDEM_POOL__SIZE", "2".to_owned()),
            ("TANDEM_POOL__OVERFLOW", "2".to_owned()),
            ("TANDEM_DISK__WARN_FREE", "0%".to_owned()),
            ("TANDEM_LOG__FORMAT", "text".to_owned()),
        ];
        let reader = Self { dir, environment, health, setting, server: None };
        copy(&root().join("tests/fixtures/book"), reader.dir.path());
        // Where root reads, the application's user writes a migration all the same.
        fs::set_permissions(reader.dir.path().join("alembic/versions"), fs::Permissions::from_mode(0o777)).unwrap();
        if reader.setting.configured {
            let own = "[workers]\napp = \"main:app\"\n[migrations]\nrun = [\"alembic\", \"upgrade\", \"head\"]\n";
            let more = reader.own_words(reader.setting.configuration);
            fs::write(reader.dir.path().join("tandem.toml"), format!("{own}{more}")).unwrap();
        }
        reader
    }

    /// `text` with what is the reader's own put in.
    fn own_words(&self, text: &str) -> String {
        let dir = self.dir.path().display().to_string();
        let own = |text: String, (word, own): &(&str, &str)| text.replace(word, own);
        let text = text.replace(".tandem/venv", &venv().display().to_string());
        self.setting.words.iter().fold(text, own).replace("{dir}", &dir)
    }

    /// `script` in a shell that finds the binary that was built, in a process group of its own.
    fn shell(&self, script: &str) -> Command {
        let mut command = tandem::command_as("bash", self.dir.path());
        let built = Path::new(env!("CARGO_BIN_EXE_tandem")).parent().unwrap();
        #[expect(clippy::disallowed_methods, reason = "what the test was started with")]
        let path = std::env::var("PATH").unwrap();
        command.args(["-euo", "pipefail", "-c", &format!("{CONFIRM}\n{script}")]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("PATH", format!("{}:{path}", built.display())).process_group(0);
        command
    }

    fn act(&mut self, step: Step) {
        match step {
            Step::Run(line) => {
                // In the background, beside the one that is stopped first.
                if line.starts_with("tandem up ") {
                    self.stop();
                }
                self.run(&line);
            }
            Step::Serve(line) => self.serve(&line),
            Step::Follow(line) => self.follow(&line),
        }
    }

    fn run(&self, script: &str) {
        let mut command = self.shell("exec timeout \"$LIMIT\" bash -euo pipefail -c \"$(declare -f tandem); $SCRIPT\"");
        let output = command.env("LIMIT", BLOCK_LIMIT).env("SCRIPT", script).output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(output.status.success(), "{script}\nended with {}:\n{}\n{}", output.status, said.concat(), self.log());
    }

    /// Let the server run that the page speaks of.
    fn serve_again(&mut self) {
        let lives = self.server.as_mut().is_some_and(|(child, _)| child.try_wait().unwrap().is_none());
        if self.setting.serves && !lives {
            self.serve("tandem up");
        }
    }

    fn serve(&mut self, line: &str) {
        let stops_itself = line.contains("tandem stop");
        let former = if stops_itself { self.server.take() } else { self.stop() };
        let log = self.dir.path().join(format!("up-{}.log", rand::random::<u32>()));
        let file = File::create(&log).unwrap();
        let mut command = self.shell(line);
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        self.server = Some((child, log));
        if let Some((mut former, _)) = former {
            wait_for("the end of the former server", || former.try_wait().unwrap().is_some());
        }
        let began = Instant::now();
        while get(self.health, "/ready").is_none_or(|(code, _)| code != 200) {
            let ended = self.server.as_mut().and_then(|(child, _)| child.try_wait().unwrap());
            assert!(ended.is_none() && began.elapsed() < LIMIT, "{line}\nended ({ended:?}):\n{}", self.log());
            pause();
        }
    }

    fn follow(&self, line: &str) {
        let path = self.dir.path().join("followed.log");
        let file = File::create(&path).unwrap();
        let mut child = self.shell(line).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        wait_for("what it prints", || fs::read(&path).unwrap().contains(&b'\n'));
        // Not SIGINT: whoever runs the tests in the background of a shell has it ignored, in all that is started.
        killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        wait_for("its end", || child.try_wait().unwrap().is_some());
    }

    /// Ctrl-C for the server. Returns none: it has ended.
    fn stop(&mut self) -> Option<(Child, PathBuf)> {
        let (mut child, log) = self.server.take()?;
        let _gone = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT);
        wait_for("the server's end", || child.try_wait().unwrap().is_some());
        let status = child.wait().unwrap();
        assert!(status.success(), "it ended with {status}:\n{}", fs::read_to_string(log).unwrap());
        None
    }

    fn log(&self) -> String {
        self.server.as_ref().map(|(_, log)| fs::read_to_string(log).unwrap()).unwrap_or_default()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let Some((mut child, _)) = self.server.take() else { return };
        let group = Pid::from_raw(child.id().cast_signed());
        let _gone = killpg(group, Signal::SIGTERM);
        let began = Instant::now();
        while child.try_wait().is_ok_and(|status| status.is_none()) && began.elapsed() < LIMIT / 8 {
            pause();
        }
        let _gone = killpg(group, Signal::SIGKILL);
        let _gone = child.wait();
    }
}

/// Copy a directory and what is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
