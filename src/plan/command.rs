//! What to run, as data: a command line that `process/` can start. Pure.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The operating-system user a child runs as, resolved from the passwd database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
}

/// `words` as a message shows them: the first line, where a script follows.
pub fn in_one_line(words: &[String]) -> String {
    let text = words.join(" ");
    match text.trim().split_once('\n') {
        Some((first, _)) => format!("{} …", first.trim_end()),
        None => text.trim().to_owned(),
    }
}

/// A program, its arguments, its environment and its identity.
#[derive(Clone, PartialEq, Eq)]
pub struct CommandLine {
    pub program: PathBuf,
    pub args: Vec<OsString>,
    /// Whether the child starts from Tandem's own environment or from nothing.
    pub inherit_env: bool,
    /// Set after inheriting; a `None` removes the variable.
    pub env: Vec<(OsString, Option<OsString>)>,
    pub dir: Option<PathBuf>,
    /// `None`: the user Tandem runs as.
    pub identity: Option<Identity>,
    /// Whether neither the child nor what it starts can gain rights by a setuid program (prctl(2), PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
    /// Whether the child may have more files open than Tandem was started with: one that has a descriptor for every client.
    pub many_files: bool,
    /// Whether the child is Tandem itself, which gets the operator's `TANDEM_*` variables; no other child does.
    pub is_tandem: bool,
}

impl CommandLine {
    /// A command with no arguments that inherits Tandem's environment and identity.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            inherit_env: true,
            env: Vec::new(),
            dir: None,
            identity: None,
            no_new_privs: false,
            many_files: false,
            is_tandem: false,
        }
    }

    /// Another process of Tandem's: `program` is its own.
    pub fn tandem(program: impl Into<PathBuf>) -> Self {
        Self { is_tandem: true, ..Self::new(program) }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_os_string());
        self
    }

    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_os_string()));
        self
    }

    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_os_string(), Some(value.as_ref().to_os_string())));
        self
    }

    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_os_string(), None));
        self
    }

    /// Start the child from an empty environment.
    pub fn clean_env(mut self) -> Self {
        self.inherit_env = false;
        self
    }

    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    pub fn identity(mut self, identity: Option<Identity>) -> Self {
        self.identity = identity;
        self
    }

    pub fn no_new_privs(mut self, wanted: bool) -> Self {
        self.no_new_privs = wanted;
        self
    }

    pub fn many_files(mut self) -> Self {
        self.many_files = true;
        self
    }

    /// The program's file name, for messages.
    pub fn name(&self) -> String {
        self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy().into_owned()
    }

    /// The program's path.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

/// Shows the program and the arguments only: the environment holds passwords.
impl std::fmt::Debug for CommandLine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("CommandLine").field("program", &self.program).field("args", &self.args).finish()
    }
}
