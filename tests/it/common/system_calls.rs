//! Records what a command and its descendants do to files, with strace(1). A library before libc would not do: rustix
//! and tempfile call the kernel themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::power_cut::Step;

/// The calls that change files, names or flushes; `?`: where the kernel has it.
const CALLS: &str = "trace=?open,openat,?openat2,?creat,lseek,write,pwrite64,writev,pwritev,?pwritev2,copy_file_range,\
                     sendfile,splice,?truncate,ftruncate,fallocate,fsync,fdatasync,syncfs,sync,?rename,?renameat,\
                     renameat2,?link,linkat,?symlink,symlinkat,?unlink,unlinkat,?rmdir,?mkdir,mkdirat";
/// Longer than any write: what is cut short cannot be replayed.
const TEXT_MAX: &str = "1000000000";

/// Why nothing can be recorded here, if so.
pub fn refused() -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    let tried = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("strace: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Some(format!("strace: {error}")),
    }
}

/// What a command did below a directory, and what it answered.
pub struct Recording {
    pub steps: Vec<Step>,
    pub output: Output,
}

/// Run `command` and record what it and its descendants do below `root`. It acknowledges when it first writes to its
/// standard output, at the latest when it has ended.
pub fn record(command: &Command, root: &Path) -> Recording {
    let temp = tempfile::tempdir().unwrap();
    let (log, answer) = (temp.path().join("calls"), temp.path().join("answer"));
    let mut traced = super::tandem::command_as("strace", command.get_current_dir().unwrap_or(root));
    traced.args(["-f", "-qq", "-y", "-xx", "--seccomp-bpf", "-e", "signal=none", "-e", CALLS, "-s", TEXT_MAX, "-o"]);
    traced.arg(&log).arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    let mut output = traced.stdout(fs::File::create(&answer).unwrap()).output().unwrap();
    output.stdout = fs::read(&answer).unwrap();
    let [root, dir, answer] =
        [root, command.get_current_dir().unwrap_or(root), &answer].map(|path| fs::canonicalize(path).unwrap());
    let mut steps = read(&fs::read_to_string(&log).unwrap(), &root, &dir, &answer);
    steps.push(Step::Acknowledge);
    Recording { steps, output }
}

/// What the `log` of a command tells that worked in `dir` and answered into the file `answer`, below `root`.
pub fn read(log: &str, root: &Path, dir: &Path, answer: &Path) -> Vec<Step> {
    let [root, dir, answer] = [root, dir, answer].map(Path::to_owned);
    let mut reader = Reader { root, dir, answer, steps: Vec::new(), begun: BTreeMap::new(), dirs: BTreeMap::new() };
    log.lines().for_each(|line| reader.line(line));
    reader.steps
}

struct Reader {
    root: PathBuf,
    /// Where the command works.
    dir: PathBuf,
    answer: PathBuf,
    steps: Vec<Step>,
    /// Calls that have begun, by process, with the step at which their flush began.
    begun: BTreeMap<String, (String, Option<usize>)>,
    /// Where each process works, by its last call that said so: those without a descriptor of a directory do not.
    dirs: BTreeMap<String, PathBuf>,
}

/// One call: its name, its arguments as strace shows them, and what it returned.
struct Call<'a> {
    name: &'a str,
    args: Vec<&'a str>,
    result: &'a str,
}

impl Reader {
    /// `123 fsync(4<\x2f\x61>) = 0`, or the two halves of it, between which others' lines stand.
    fn line(&mut self, line: &str) {
        let Some((process, text)) = line.split_once(' ') else { return };
        let text = text.trim_start();
        if let Some(dir) = text.split_once("(AT_FDCWD").and_then(|(_, rest)| of_descriptor(rest)) {
            self.dirs.insert(process.to_owned(), dir);
        }
        if let Some(first) = text.strip_suffix(" <unfinished ...>") {
            let flush = self.flush(first);
            self.begun.insert(process.to_owned(), (first.to_owned(), flush));
        } else if let Some((_, rest)) = text.strip_prefix("<... ").and_then(|text| text.split_once(" resumed>")) {
            let Some((first, flush)) = self.begun.remove(process) else { return };
            self.whole(process, &format!("{first}{rest}"), flush);
        } else {
            let flush = self.flush(text);
            self.whole(process, text, flush);
        }
    }

    /// If a flush begins here, the step at which it does.
    fn flush(&mut self, text: &str) -> Option<usize> {
        let (name, args) = text.split_once('(')?;
        let path = match name {
            "sync" | "syncfs" => None,
            "fsync" | "fdatasync" => Some(self.below(&of_descriptor(args)?)?),
            _ => return None,
        };
        self.steps.push(Step::Flushing { path });
        Some(self.steps.len() - 1)
    }

    fn whole(&mut self, process: &str, text: &str, flush: Option<usize>) {
        let Some(call) = Call::read(text) else { return };
        if call.result.starts_with('-') {
            return;
        }
        if let Some(begun) = flush {
            return self.steps.push(Step::Flushed { begun });
        }
        let is_write = matches!(call.name, "write" | "writev");
        if is_write && of_descriptor(call.args[0]).is_some_and(|path| path == self.answer) {
            return self.steps.push(Step::Acknowledge);
        }
        if let Some(step) = self.step(process, &call) {
            self.steps.push(step);
        }
    }

    fn step(&self, process: &str, call: &Call<'_>) -> Option<Step> {
        let args = &call.args;
        let dir = self.dirs.get(process).unwrap_or(&self.dir);
        let named = |at: usize| self.below(&dir.join(text(args[at])));
        let named_at = |at: usize| {
            let dir = of_descriptor(args[at]).unwrap_or_default();
            self.below(&dir.join(text(args[at + 1])))
        };
        let opened = || self.below(&of_descriptor(args[0])?);
        let number = |at: usize| args[at].parse::<usize>().unwrap();
        Some(match call.name {
            "open" | "openat" | "creat" | "openat2" => {
                let path = self.below(&of_descriptor(call.result)?)?;
                let flags = format!("{args:?}");
                assert!(!flags.contains("O_TMPFILE"), "a file without a name is not known here: {flags}");
                let (create, cut) = (flags.contains("O_CREAT"), flags.contains("O_TRUNC"));
                Step::Open { path, create, cut, append: flags.contains("O_APPEND") }
            }
            "lseek" => Step::Seek { path: opened()?, to: call.result.parse().unwrap() },
            "write" | "writev" => Step::Write { path: opened()?, at: None, bytes: written(call) },
            "pwrite64" => Step::Write { path: opened()?, at: Some(number(3)), bytes: written(call) },
            "pwritev" | "pwritev2" => {
                let at = args.iter().rposition(|arg| arg.ends_with(']')).unwrap() + 2;
                Step::Write { path: opened()?, at: Some(number(at)), bytes: written(call) }
            }
            "fallocate" => Step::Grow { path: opened()?, to: number(2) + number(3) },
            "copy_file_range" if args[1] == "NULL" && args[3] == "NULL" => {
                let target = self.below(&of_descriptor(args[2])?)?;
                Step::Copy { from: opened()?, to: target, count: call.result.parse().unwrap() }
            }
            "ftruncate" => Step::Resize { path: opened()?, to: number(1) },
            "rename" => Step::Rename { from: named(0)?, to: named(1)? },
            "renameat" | "renameat2" if call.args.last().is_some_and(|flags| flags.contains("EXCHANGE")) => {
                Step::Exchange { one: named_at(0)?, other: named_at(2)? }
            }
            "renameat" | "renameat2" => Step::Rename { from: named_at(0)?, to: named_at(2)? },
            "link" => Step::Link { from: named(0)?, to: named(1)? },
            "linkat" => Step::Link { from: named_at(0)?, to: named_at(2)? },
            "unlink" | "rmdir" => Step::Remove { path: named(0)? },
            "unlinkat" => Step::Remove { path: named_at(0)? },
            "mkdir" => Step::MakeDir { path: named(0)? },
            "mkdirat" => Step::MakeDir { path: named_at(0)? },
            // The final comparison of all files finds what these would have written.
            _ => return None,
        })
    }

    /// The path below the root, if it is there.
    fn below(&self, path: &Path) -> Option<String> {
        let inner = path.strip_prefix(&self.root).ok()?;
        let names: Vec<_> = inner.components().map(|part| part.as_os_str().to_str().unwrap()).collect();
        Some(names.into_iter().filter(|name| *name != ".").collect::<Vec<_>>().join("/"))
    }
}

impl<'a> Call<'a> {
    /// In strings there are hexadecimal digits alone, so that commas and parentheses stand for themselves.
    fn read(text: &'a str) -> Option<Self> {
        let (name, rest) = text.split_once('(')?;
        let (args, result) = rest.rsplit_once(" = ")?;
        let args = args.trim_end().strip_suffix(')')?;
        let result = result.split(" (").next()?;
        Some(Self { name, args: args.split(", ").collect(), result })
    }
}

/// What a descriptor is open for: `4<\x2f\x61>`.
fn of_descriptor(arg: &str) -> Option<PathBuf> {
    let (_, rest) = arg.split_once('<')?;
    Some(PathBuf::from(String::from_utf8(bytes(rest.split('>').next()?)).ok()?))
}

/// A string: `"\x2f\x61"`.
fn text(arg: &str) -> PathBuf {
    PathBuf::from(String::from_utf8(bytes(arg.trim_matches('"'))).unwrap())
}

/// All strings of a call that writes, as far as they were written.
fn written(call: &Call<'_>) -> Vec<u8> {
    let whole = call.args[1..].iter().filter_map(|arg| arg.split('"').nth(1));
    let mut all: Vec<u8> = whole.flat_map(bytes).collect();
    all.truncate(call.result.parse().unwrap());
    all
}

/// `\x2f\x61` as bytes.
fn bytes(escaped: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap();
    let read = |four: &[u8]| digit(four[2]) << 4 | digit(four[3]);
    escaped.as_bytes().chunks_exact(4).map(read).collect()
}
