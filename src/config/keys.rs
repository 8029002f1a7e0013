//! What a key is, and how one is looked up: for the unknown-key check, for suggestions, for the environment's names, for
//! defaults and for `tandem check`.

use std::sync::LazyLock;

use super::every_key::GROUPS;
pub use super::every_name::{GUIDE_NAMES, INJECTED_NAMES, PROCESS_KEYS};

/// What a key's value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// Text that is never shown.
    Secret,
    /// A database URL; shown without its password.
    Url,
    Choice(&'static [&'static str]),
    /// One of the words, or a path.
    ChoiceOrPath(&'static [&'static str]),
    /// One of the words, or a command as a list.
    ChoiceOrCommand(&'static [&'static str]),
    /// A whole number of at least this.
    Count(u32),
    /// A whole number of at least this, or one of the words.
    CountOr(u32, &'static [&'static str]),
    /// A whole number from the first to the second.
    Between(u32, u32),
    Port,
    Boolean,
    /// True, false, or one of the words.
    BooleanOr(&'static [&'static str]),
    Duration,
    /// A duration, or `never`.
    DurationOrNever,
    Size,
    /// Free space on a disk: a percentage or a size.
    Room,
    /// An http address, never shown, or a command as a list.
    UrlOrCommand,
    Ip,
    /// One address and port.
    Address,
    /// Addresses and unix sockets: one, or a list.
    Addresses,
    /// A file's mode, in octal digits.
    Mode,
    Path,
    /// A program: a name in PATH, or a path.
    Program,
    List,
    /// A program and its arguments, as a list.
    Command,
    /// A table whose keys are free; its values are text.
    Table,
    /// The same, with values that are never shown.
    SecretTable,
    /// A table whose keys are free; its values are any TOML but tables and dates.
    Options,
}

impl Kind {
    /// Whether its keys are free.
    pub fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::SecretTable | Self::Options)
    }
}

/// The value of a key that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Default {
    /// A TOML value.
    Value(&'static str),
    /// Found out later, or nothing; in words.
    Words(&'static str),
}

/// What a changed value asks of a Tandem that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Only the supervisor uses it: it holds from now on.
    Live,
    /// It reaches the workers as they start: they must be replaced.
    Roll,
    /// It is built in at the start of Tandem.
    Restart,
}

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Default,
    /// What a change of it asks for. What a worker's environment or launcher holds asks for a roll.
    pub effect: Effect,
    /// What it means, in one line.
    pub doc: &'static str,
}

/// A key with a default.
pub(super) const fn key(
    effect: Effect,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, kind, default: Default::Value(default), effect, doc }
}

/// A key without one, or with one that is found out later.
pub(super) const fn open(
    effect: Effect,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
) -> Key {
    Key { name, kind, default: Default::Words(default), effect, doc }
}

/// All keys, in the order in which they are shown.
pub fn all() -> impl DoubleEndedIterator<Item = &'static Key> {
    GROUPS.iter().copied().flatten()
}

/// The key called `name`.
pub fn find(name: &str) -> Option<&'static Key> {
    all().find(|key| key.name == name)
}

/// The table key that `name` lies in, and the free part: `postgres.settings` and `work_mem`.
pub fn find_table(name: &str) -> Option<(&'static Key, &str)> {
    // Asked for each variable of the environment and each entry of a file.
    static TABLES: LazyLock<Vec<&Key>> = LazyLock::new(|| all().filter(|key| key.kind.is_table()).collect());
    TABLES.iter().copied().find_map(|key| {
        let free = name.strip_prefix(key.name)?.strip_prefix('.')?;
        (!free.is_empty()).then_some((key, free))
    })
}

/// Whether `name` is a section: what stands before a dot in a key.
pub fn is_section(name: &str) -> bool {
    all().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The sections, each once, in order.
pub fn sections() -> Vec<&'static str> {
    let mut sections: Vec<_> = all().filter_map(|key| Some(key.name.rsplit_once('.')?.0)).collect();
    sections.dedup();
    sections
}

/// The variable that sets the key `name`: `workers.count` is `TANDEM_WORKERS__COUNT`.
pub fn variable(name: &str) -> String {
    format!("TANDEM_{}", name.replace('.', "__").to_uppercase())
}

/// Whether every process has the variable `name`, from its login or its service manager.
pub fn is_ambient(name: &str) -> bool {
    const NAMES: [&str; 16] = [
        "HOME", "HOSTNAME", "LANG", "LANGUAGE", "LOGNAME", "MAIL", "OLDPWD", "PATH", "PWD", "SHELL", "SHLVL", "TERM",
        "TMPDIR", "TZ", "USER", "_",
    ];
    NAMES.contains(&name) || name.starts_with("LC_") || name.starts_with("XDG_")
}

/// What people write who know a key by another server's name for it, and the key that it is here.
const ELSEWHERE: [(&str, &str); 14] = [
    ("workers.port", "workers.listen"),
    ("workers.host", "workers.listen"),
    ("workers.bind", "workers.listen"),
    ("workers.address", "workers.listen"),
    ("workers.workers", "workers.count"),
    ("workers.reload", "workers.reload_dirs"),
    ("workers.timeout", "workers.watchdog"),
    ("workers.module", "workers.app"),
    ("postgres.host", "postgres.listen"),
    ("postgres.name", "postgres.database"),
    ("postgres.username", "postgres.user"),
    ("health.port", "health.listen"),
    ("health.host", "health.listen"),
    ("python.version", "python.interpreter"),
];

/// The known key that `name` most likely means, if one is close.
pub fn closest(name: &str) -> Option<&'static str> {
    let meant = ELSEWHERE.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours);
    // Keys come and go: never one that is none.
    meant.filter(|ours| find(ours).is_some()).or_else(|| closest_among(all(), name))
}

/// The one of these keys that `name` most likely means, if one is close.
pub fn closest_among(among: impl Iterator<Item = &'static Key>, name: &str) -> Option<&'static str> {
    let (section, last) = name.rsplit_once('.').unwrap_or(("", name));
    let score = |key: &str| {
        let (key_section, key_last) = key.rsplit_once('.').unwrap_or(("", key));
        let both = strsim::normalized_damerau_levenshtein(section, key_section)
            * strsim::normalized_damerau_levenshtein(last, key_last);
        // A right key in the wrong section is a likely slip, a merely similar one is not.
        if last == key_last { f64::max(both, 0.75) } else { both }
    };
    most(among.map(|key| key.name), score)
}

/// The section that `name` most likely means, if one is close.
pub fn closest_section(name: &str) -> Option<&'static str> {
    most(sections().into_iter().chain(["process"]), |section| strsim::normalized_damerau_levenshtein(name, section))
}

/// The name with the highest score, if that is high enough to be worth a suggestion.
pub fn most<'a>(names: impl Iterator<Item = &'a str>, score: impl Fn(&str) -> f64) -> Option<&'a str> {
    let scored = names.map(|name| (score(name), name)).filter(|(score, _)| *score >= 0.6);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
