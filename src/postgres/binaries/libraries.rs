//! Check what the programs need from the system (shared libraries, a new enough C library, time zones), and name the
//! packages to install.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::Installation;
use crate::config::libraries::{self, Distribution};
use crate::exit::{Code, Failure};
use crate::install::last_lines;
use crate::plan::CommandLine;
use crate::process::{self, Finished, RunError};

/// Limit for one program to report what it needs. Its first start reads it from disk.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Programs that together load every library that any of them loads.
const ASKED: &[&str] = &["postgres", "initdb", "psql", "pg_dump", "pg_basebackup"];

/// Where the system keeps the time zones that the pinned package is built to read.
const SYSTEM_UTC: &str = "/usr/share/zoneinfo/UTC";

/// Something that the system lacks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lack {
    /// A shared library, by the name that the loader looks for.
    Library(String),
    /// A newer C library: the version that is asked for.
    Glibc(String),
    /// The system's C library is not glibc at all.
    OtherLibc,
    /// The time zone database.
    TimeZones,
}

/// Check that every program of `installation` can start and that time zones are there; returns the server's version.
///
/// # Errors
/// All that is missing, at once, with the packages to install ([`Code::Config`]).
pub(super) async fn check(installation: &Installation) -> anyhow::Result<String> {
    let mut lacks = BTreeSet::new();
    if cfg!(target_os = "linux") {
        for tool in ASKED {
            lacks.extend(ask_loader(installation, tool).await?);
        }
    }
    if !has_time_zones(&installation.bin) {
        lacks.insert(Lack::TimeZones);
    }
    if !lacks.is_empty() {
        return Err(failure(&lacks));
    }
    let said = say_version(installation, "postgres").await?;
    super::find::parse_version(&said).with_context(|| format!("`postgres --version` names no version: {said:?}"))
}

/// What `tool --version` prints.
///
/// # Errors
/// When it does not start; what the loader misses is named with its package.
pub(super) async fn say_version(installation: &Installation, tool: &str) -> anyhow::Result<String> {
    let finished = run(installation, installation.command(tool).arg("--version")).await?;
    if finished.exit.success() {
        return Ok(finished.stdout);
    }
    let lacks: BTreeSet<Lack> = lacks_in(&finished.stderr).into_iter().collect();
    if lacks.is_empty() {
        let lines = last_lines(&finished.stdout, &finished.stderr);
        return Err(anyhow::anyhow!("`{tool} --version` ended with {}:\n{lines}", finished.exit));
    }
    Err(failure(&lacks))
}

/// Ask the loader itself, which names everything that is missing and starts nothing (ld.so(8)): starting the program
/// would name the first missing library only.
async fn ask_loader(installation: &Installation, tool: &str) -> anyhow::Result<Vec<Lack>> {
    let finished = run(installation, installation.command(tool).env("LD_TRACE_LOADED_OBJECTS", "1")).await?;
    Ok(lacks_in(&finished.stdout).into_iter().chain(lacks_in(&finished.stderr)).collect())
}

async fn run(installation: &Installation, command: CommandLine) -> anyhow::Result<Finished> {
    match process::run(&command, ANSWER_LIMIT).await {
        // execve(2) says "not found" of a program whose loader is not there: no glibc.
        Err(RunError::NotFound(_)) if cfg!(target_os = "linux") && command.program().is_file() => {
            Err(failure(&BTreeSet::from([Lack::OtherLibc])))
        }
        result => Ok(result.with_context(|| format!("start a program in {}", installation.bin.display()))?),
    }
}

/// What modules of the server lack, in a line for each library: an extension needs them only where it is used.
///
/// # Errors
/// The loader cannot be asked.
pub(super) async fn of_modules(installation: &Installation) -> anyhow::Result<Vec<String>> {
    let prefix = installation.bin.parent().unwrap_or(&installation.bin).join("lib");
    let places = [prefix.clone(), prefix.join("postgresql")];
    let entries = places.iter().filter_map(|place| place.read_dir().ok()).flatten().flatten();
    let is_module = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".so") && !name.starts_with("lib")
    };
    let mut modules: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_module).collect();
    modules.sort();
    if modules.is_empty() || cfg!(not(target_os = "linux")) {
        return Ok(Vec::new());
    }
    let command = CommandLine::new("ldd").args(&modules).env("LC_ALL", "C").env("LD_LIBRARY_PATH", &prefix);
    match process::run(&command, ANSWER_LIMIT).await {
        Err(RunError::NotFound(_)) => Ok(Vec::new()),
        result => Ok(lacking_modules(&result.context("ask what PostgreSQL's modules need")?.stdout)),
    }
}

/// From what ldd(1) says of several files. Pure.
fn lacking_modules(said: &str) -> Vec<String> {
    let mut lacking: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut module = "";
    for line in said.lines() {
        if let Some(path) = line.strip_suffix(".so:") {
            module = path.rsplit('/').next().unwrap_or(path);
        } else if let Some(Lack::Library(name)) = lack_in_line(line) {
            lacking.entry(name).or_default().push(module);
        }
    }
    let line = |(name, modules): (String, Vec<&str>)| format!("{} lacks {}", modules.join(", "), libraries::way(&name));
    lacking.into_iter().map(line).collect()
}

/// What the loader's messages in `text` say is missing.
pub(super) fn lacks_in(text: &str) -> Vec<Lack> {
    text.lines().filter_map(lack_in_line).collect()
}

fn lack_in_line(line: &str) -> Option<Lack> {
    // "…: version `GLIBC_2.34' not found (required by …)"
    if let Some(rest) = line.split("version `GLIBC_").nth(1) {
        return rest.split('\'').next().map(|version| Lack::Glibc(version.to_owned()));
    }
    // "	libxml2.so.2 => not found"
    if let Some(name) = line.trim().strip_suffix("=> not found") {
        return Some(Lack::Library(name.trim().to_owned()));
    }
    // "…: error while loading shared libraries: libxml2.so.2: cannot open shared object file: …"
    if let Some(rest) = line.split("error while loading shared libraries: ").nth(1) {
        return rest.split(':').next().map(|name| Lack::Library(name.to_owned()));
    }
    // macOS: "dyld[1]: Library not loaded: /opt/…/libzstd.1.dylib"
    let path = line.split("Library not loaded: ").nth(1)?.trim();
    Some(Lack::Library(path.rsplit('/').next().unwrap_or(path).to_owned()))
}

/// Whether time zones are there: the installation's own, or the system's.
fn has_time_zones(bin: &Path) -> bool {
    let prefix = bin.parent().unwrap_or(bin);
    ["share/timezone/UTC", "share/postgresql/timezone/UTC"].iter().any(|own| prefix.join(own).exists())
        || Path::new(SYSTEM_UTC).exists()
}

fn failure(lacks: &BTreeSet<Lack>) -> anyhow::Error {
    Failure::new(Code::Config, describe(lacks, Distribution::here())).into()
}

/// The package that provides what is missing.
fn package(distribution: Distribution, lack: &Lack) -> Option<&'static str> {
    match lack {
        Lack::Library(name) => distribution.package(name),
        Lack::TimeZones => Some("tzdata"),
        Lack::Glibc(_) | Lack::OtherLibc => None,
    }
}

/// All that is missing, and what to do. Pure.
fn describe(lacks: &BTreeSet<Lack>, distribution: Distribution) -> String {
    const OTHER_WAY: &str =
        "or bring a PostgreSQL 16 that is made for this system: `postgres.source = \"system\"` or \"path\"";
    if lacks.contains(&Lack::OtherLibc) || (distribution == Distribution::Alpine && !lacks.contains(&Lack::TimeZones)) {
        return format!(
            "the PostgreSQL package is built for glibc, and this system has another C library (Alpine's musl?). \
             Use an image with glibc, such as Debian, {OTHER_WAY} (Alpine: `apk add postgresql16`)"
        );
    }
    if let Some(Lack::Glibc(version)) = lacks.iter().rfind(|lack| matches!(lack, Lack::Glibc(_))) {
        return format!(
            "the PostgreSQL package needs glibc {version} or newer, and this system's is older. \
             Debian 12, Ubuntu 22.04 and RHEL 9 have it; upgrade, {OTHER_WAY}"
        );
    }
    let names: Vec<&str> = lacks.iter().map(Lack::name).collect();
    let packages: BTreeSet<&str> = lacks.iter().filter_map(|lack| package(distribution, lack)).collect();
    let packages = packages.into_iter().collect::<Vec<_>>().join(" ");
    let install = match distribution {
        _ if packages.is_empty() => "install the packages that bring them".to_owned(),
        Distribution::Debian => format!("`apt-get install {packages}`"),
        Distribution::Fedora => format!("`dnf install {packages}`"),
        Distribution::Alpine => format!("`apk add {packages}`"),
        Distribution::Other => format!("install {packages} and the packages that bring the libraries"),
    };
    // As on Debian 14, whose package is libxml2-16.
    let newer = if names.contains(&"libxml2.so.2") {
        " (where libxml2 is 2.14 or newer, there is libxml2.so.16 instead, and only the other way is left)"
    } else {
        ""
    };
    format!("PostgreSQL cannot run on this system yet; it lacks {}: {install}, {OTHER_WAY}{newer}", names.join(", "))
}

impl Lack {
    fn name(&self) -> &str {
        match self {
            Self::Library(name) => name,
            Self::Glibc(_) => "a newer glibc",
            Self::OtherLibc => "glibc",
            Self::TimeZones => "the time zone database (/usr/share/zoneinfo)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_s_words_are_understood() {
        let trace = "\tlinux-vdso.so.1 (0x7f)\n\tlibxml2.so.2 => not found\n\tlibz.so.1 => /lib/libz.so.1 (0x7f)\n\tlibzstd.so.1 => not found";
        assert_eq!(lacks_in(trace), [Lack::Library("libxml2.so.2".into()), Lack::Library("libzstd.so.1".into())]);
        let started = "postgres: error while loading shared libraries: libssl.so.3: cannot open shared object file: No such file or directory";
        assert_eq!(lacks_in(started), [Lack::Library("libssl.so.3".into())]);
        let old =
            "bin/postgres: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by bin/postgres)";
        assert_eq!(lacks_in(old), [Lack::Glibc("2.34".into())]);
        let mac = "dyld[7]: Library not loaded: /opt/homebrew/lib/libzstd.1.dylib";
        assert_eq!(lacks_in(mac), [Lack::Library("libzstd.1.dylib".into())]);
        assert_eq!(lacks_in("postgres (PostgreSQL) 16.15"), []);
    }

    #[test]
    fn modules_are_named_with_what_they_lack() {
        let said = "/x/lib/hstore.so:\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n/x/lib/uuid-ossp.so:\n\tlibossp-uuid.so.16 => not found\n";
        let lacking = lacking_modules(said);
        assert_eq!(lacking.len(), 1);
        assert!(lacking[0].starts_with("uuid-ossp lacks libossp-uuid.so.16"), "{lacking:?}");
    }

    #[test]
    fn everything_missing_is_named_at_once_with_its_packages() {
        let lacks = BTreeSet::from([
            Lack::Library("libxml2.so.2".into()),
            Lack::Library("libssl.so.3".into()),
            Lack::Library("libcrypto.so.3".into()),
            Lack::TimeZones,
        ]);
        let debian = describe(&lacks, Distribution::of("NAME=x\nID=raspbian\nID_LIKE=debian\n"));
        assert!(debian.contains("`apt-get install libssl3 libxml2 tzdata`"), "{debian}");
        assert!(debian.contains("libcrypto.so.3, libssl.so.3, libxml2.so.2, the time zone database"), "{debian}");
        assert!(debian.contains("libxml2.so.16"), "{debian}");
        let rocky = describe(&lacks, Distribution::of("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"));
        assert!(rocky.contains("`dnf install libxml2 openssl-libs tzdata`"), "{rocky}");
        let arch = describe(&lacks, Distribution::of("ID=arch\n"));
        assert!(arch.contains("install tzdata and the packages"), "{arch}");
    }

    #[test]
    fn the_wrong_c_library_is_said_in_plain_words() {
        let old = BTreeSet::from([Lack::Glibc("2.33".into()), Lack::Glibc("2.34".into())]);
        assert!(describe(&old, Distribution::Debian).contains("glibc 2.34 or newer"));
        let musl = describe(&BTreeSet::from([Lack::OtherLibc]), Distribution::of("ID=alpine\n"));
        assert!(musl.contains("musl") && musl.contains("apk add postgresql16"), "{musl}");
    }
}
