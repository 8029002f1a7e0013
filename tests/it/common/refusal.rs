//! A command of the binary that is expected to say no.

use std::path::Path;
use std::process::{Command, Output};

use super::project::Project;
use super::tandem::{self, Tandem};

/// How a command ended, and everything that it printed.
#[derive(Debug)]
pub struct Refusal {
    pub code: i32,
    pub said: String,
}

impl Refusal {
    /// Panics unless the exit code is `code` and every one of `words` was said.
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.said);
        for word in words {
            assert!(self.said.contains(word), "{word:?} is not in:\n{}", self.said);
        }
    }
}

/// `tandem up`, which is to end by itself and to leave no process behind.
pub fn up(project: &Project) -> Refusal {
    up_as(project, tandem::command(project))
}

/// As [`up`], from a command that the test has prepared.
pub fn up_as(project: &Project, command: Command) -> Refusal {
    let mut tandem = Tandem::start_as(project, command);
    let code = tandem.wait_code();
    let left = tandem::left_in(project.dir());
    assert!(left.is_empty(), "{left:?}");
    Refusal { code, said: tandem.log() }
}

/// Any other command of the binary.
pub fn run(project: &Project, args: &[&str]) -> Refusal {
    said(tandem::run(project, args))
}

/// What a finished command printed, on both streams.
pub fn said(output: Output) -> Refusal {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Refusal { code: output.status.code().expect("it ended by itself"), said }
}

/// The names in a directory, in order; none when there is no such directory.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
