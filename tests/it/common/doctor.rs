//! What `tandem doctor` says of a project.

use std::process::Command;

use serde_json::Value;

use super::project::Project;
use super::tandem;

/// A report of it.
#[derive(Debug)]
pub struct Report {
    pub code: i32,
    pub all: Value,
}

/// Of the project, its database and its rights: what is wrong with the machine is none of these tests' business.
pub fn doctor(project: &Project, args: &[&str]) -> Report {
    let mut command = tandem::command(project);
    command.args(["doctor", "--json", "--skip", "machine"]).args(args);
    of(command)
}

/// Of what `command` says.
pub fn of(mut command: Command) -> Report {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let all = serde_json::from_str(&text);
    let all = all.unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    Report { code: output.status.code().unwrap(), all }
}

impl Report {
    /// What the check `name` says.
    pub fn check(&self, name: &str) -> &Value {
        let all = self.all["checks"].as_array().unwrap();
        all.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no check {name}: {:#}", self.all))
    }

    /// Panics unless the check `name` has this verdict, and says all of `words` in what it found or what to do next.
    pub fn expect(&self, name: &str, verdict: &str, words: &[&str]) {
        let check = self.check(name);
        assert_eq!(check["verdict"], verdict, "{check:#}");
        let said = check.to_string();
        for word in words {
            assert!(said.contains(word), "{word:?} is not in {check:#}");
        }
    }

    /// The checks that are worse than a notice.
    pub fn bad(&self) -> Vec<&str> {
        let all = self.all["checks"].as_array().unwrap().iter();
        let bad = all.filter(|check| !["ok", "notice"].contains(&check["verdict"].as_str().unwrap()));
        bad.map(|check| check["name"].as_str().unwrap()).collect()
    }

    /// Panics unless nothing is worse than a notice.
    pub fn expect_well(&self) {
        assert_eq!((self.code, self.bad()), (0, Vec::<&str>::new()), "{:#}", self.all);
    }
}
