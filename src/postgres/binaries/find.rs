//! Look for a PostgreSQL 16 that the machine already has. Starts nothing but `--version` and `pg_config --bindir`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::known::FileAnswerCache;
use super::manifest::MAJOR;
use super::{Installation, libraries};
use crate::plan::CommandLine;
use crate::process;

/// Limit for a program's `--version`.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// The programs that Tandem uses; a PostgreSQL without one of them is passed over.
const TOOLS: &[&str] = &["postgres", "initdb", "psql", "pg_dump", "pg_dumpall", "pg_restore", "pg_basebackup"];

/// Where distributions and Homebrew put version 16, which need not be in PATH.
const USUAL_DIRS: &[&str] = &[
    "/usr/lib/postgresql/16/bin",
    "/usr/pgsql-16/bin",
    "/usr/lib/postgresql16/bin",
    "/usr/libexec/postgresql16",
    "/usr/lib64/postgresql-16/bin",
    "/opt/homebrew/opt/postgresql@16/bin",
    "/usr/local/opt/postgresql@16/bin",
    "/Applications/Postgres.app/Contents/Versions/16/bin",
];

/// Where the server's modules are, as seen from its programs: in a directory of its own, with Debian, Fedora, Gentoo, Alpine.
const MODULE_DIRS: &[&str] = &[
    "../lib",
    "../lib/postgresql",
    "../lib64",
    "../lib64/pgsql",
    "../lib/pgsql",
    "../lib64/postgresql-16/lib64",
    "../lib64/postgresql",
    "../lib/postgresql16",
    "../../lib/postgresql16",
];

/// The result of a search.
#[derive(Debug, Default)]
pub(super) struct Search {
    pub found: Option<Installation>,
    /// The first that lacks nothing but the contrib modules.
    pub bare: Option<Installation>,
    /// Each PostgreSQL that was found and not chosen, with the reason.
    pub passed_over: Vec<String>,
}

/// The first PostgreSQL 16 in `search_path` (the value of PATH), where a `pg_config` points, or in the usual places.
pub(super) async fn system(known: &mut FileAnswerCache, search_path: &OsStr) -> Search {
    system_in(known, search_path, USUAL_DIRS).await
}

async fn system_in(known: &mut FileAnswerCache, search_path: &OsStr, usual: &[&str]) -> Search {
    let mut search = Search::default();
    let mut seen = Vec::new();
    let in_path: Vec<PathBuf> = std::env::split_paths(search_path).collect();
    let usual = usual.iter().map(PathBuf::from);
    for dir in in_path.iter().cloned().chain(usual) {
        if search.found.is_none() {
            consider(&dir, known, &mut seen, &mut search).await;
        }
    }
    for dir in in_path {
        if search.found.is_none()
            && let Some(dir) = configured_bin(&dir.join("pg_config"), known).await
        {
            consider(&dir, known, &mut seen, &mut search).await;
        }
    }
    search
}

/// Choose the PostgreSQL in `dir` if it has the right version and is complete, or note why not.
async fn consider(dir: &Path, known: &mut FileAnswerCache, seen: &mut Vec<PathBuf>, search: &mut Search) {
    // Debian links single programs into PATH: the directory they really lie in holds the others.
    let Ok(postgres) = dir.join("postgres").canonicalize() else { return };
    let Some(bin) = postgres.parent().map(Path::to_path_buf) else { return };
    if seen.contains(&bin) {
        return;
    }
    seen.push(bin.clone());
    match version(&bin, known).await {
        Err(error) => search.passed_over.push(format!("{}: {error:#}", bin.display())),
        Ok(version) if major(&version) != Some(MAJOR) => {
            search.passed_over.push(format!("{}: version {version}", bin.display()));
        }
        Ok(version) => match absent_tools(&bin) {
            absent if absent.is_empty() && lacks_contrib(&bin) => {
                search.passed_over.push(format!(
                    "{}: version {version} without pg_stat_statements, which comes with its contrib package",
                    bin.display()
                ));
                search.bare.get_or_insert(Installation::at(bin, version, "system".into(), false));
            }
            absent if absent.is_empty() => {
                search.found = Some(Installation::at(bin, version, "system".into(), false));
            }
            absent => {
                search.passed_over.push(format!("{}: version {version} without {}", bin.display(), absent.join(", ")));
            }
        },
    }
}

/// The programs that Tandem needs and `bin` lacks.
pub(super) fn absent_tools(bin: &Path) -> Vec<&'static str> {
    TOOLS.iter().copied().filter(|tool| !bin.join(tool).is_file()).collect()
}

/// Whether the modules of the server in `bin` are where they are expected, and `pg_stat_statements` is not among them.
pub(super) fn lacks_contrib(bin: &Path) -> bool {
    let suffix = std::env::consts::DLL_EXTENSION;
    let dirs = MODULE_DIRS.iter().map(|dir| bin.join(dir));
    // PL/pgSQL comes with the server itself, so its place is where modules are.
    let mut found = dirs.filter(|dir| dir.join(format!("plpgsql.{suffix}")).exists()).peekable();
    found.peek().is_some() && !found.any(|dir| dir.join(format!("pg_stat_statements.{suffix}")).exists())
}

/// The version that the server in `bin` reports; asked again only when the file has changed.
///
/// # Errors
/// When it does not start or does not name a version; a missing shared library is named with its package.
pub(super) async fn version(bin: &Path, known: &mut FileAnswerCache) -> anyhow::Result<String> {
    let postgres = bin.join("postgres");
    if let Some(version) = known.get("version", &postgres) {
        return Ok(version.to_owned());
    }
    let installation = Installation::at(bin.to_path_buf(), String::new(), String::new(), false);
    let said = libraries::say_version(&installation, "postgres").await?;
    let version = parse_version(&said)
        .ok_or_else(|| anyhow::anyhow!("`postgres --version` says {:?}, which names no version", said.trim()))?;
    known.remember("version", &postgres, &version);
    Ok(version)
}

/// The directory of the programs that `pg_config` reports; asked again only when the file has changed.
async fn configured_bin(pg_config: &Path, known: &mut FileAnswerCache) -> Option<PathBuf> {
    if !pg_config.is_file() {
        return None;
    }
    if let Some(dir) = known.get("bindir", pg_config) {
        return Some(PathBuf::from(dir));
    }
    let finished = process::run(&CommandLine::new(pg_config).arg("--bindir"), VERSION_LIMIT).await.ok()?;
    let dir = finished.stdout.trim().to_owned();
    known.remember("bindir", pg_config, &dir);
    (finished.exit.success() && !dir.is_empty()).then(|| PathBuf::from(dir))
}

/// The version in `postgres (PostgreSQL) 16.4 (Debian 16.4-1)`.
pub(super) fn parse_version(said: &str) -> Option<String> {
    let version = said.split("(PostgreSQL)").nth(1)?.split_whitespace().next()?;
    version.starts_with(|first: char| first.is_ascii_digit()).then(|| version.to_owned())
}

/// The major version in `16.4`, or in `16beta1`.
pub(super) fn major(version: &str) -> Option<u32> {
    version.split(|char: char| !char.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forks::script;

    /// A directory with programs that say they are PostgreSQL `version`.
    async fn pretend(dir: &Path, version: &str, tools: &[&str]) {
        std::fs::create_dir_all(dir).unwrap();
        for tool in tools {
            script(&dir.join(tool), &format!("#!/bin/sh\necho '{tool} (PostgreSQL) {version}'"));
        }
    }

    #[test]
    fn versions_are_read_as_postgres_writes_them() {
        assert_eq!(parse_version("postgres (PostgreSQL) 16.4 (Debian 16.4-1)\n").as_deref(), Some("16.4"));
        assert_eq!(parse_version("postgres (EnterpriseDB) 16"), None);
        assert_eq!((major("16.4"), major("17beta1"), major("devel")), (Some(16), Some(17), None));
    }

    #[tokio::test]
    async fn other_versions_and_incomplete_ones_are_passed_over_with_the_reason() {
        let root = tempfile::tempdir().unwrap();
        let dirs: Vec<PathBuf> = ["old", "part", "good"].iter().map(|name| root.path().join(name)).collect();
        pretend(&dirs[0], "15.18", TOOLS).await;
        pretend(&dirs[1], "16.1", &TOOLS[..2]).await;
        pretend(&dirs[2], "16.4", TOOLS).await;
        let mut known = FileAnswerCache::open(root.path());
        let path = std::env::join_paths(&dirs[..2]).unwrap();
        let search = system_in(&mut known, &path, &[]).await;
        assert_eq!(search.found, None);
        assert!(search.passed_over[0].ends_with("version 15.18"), "{:?}", search.passed_over);
        assert!(search.passed_over[1].contains("16.1 without psql"), "{:?}", search.passed_over);

        let found = system_in(&mut known, &path, &[dirs[2].to_str().unwrap()]).await.found.unwrap();
        assert_eq!((found.version.as_str(), &found.bin, found.lib), ("16.4", &dirs[2], None));
    }

    #[tokio::test]
    async fn a_server_without_contrib_is_passed_over_and_kept_in_mind() {
        let root = tempfile::tempdir().unwrap();
        let (bin, lib) = (root.path().join("bin"), root.path().join("lib"));
        pretend(&bin, "16.4", TOOLS).await;
        std::fs::create_dir(&lib).unwrap();
        let module = |name: &str| lib.join(format!("{name}.{}", std::env::consts::DLL_EXTENSION));
        assert!(!lacks_contrib(&bin), "where the modules are is not known");
        std::fs::write(module("plpgsql"), "").unwrap();
        let mut known = FileAnswerCache::open(root.path());
        let search = system_in(&mut known, bin.as_os_str(), &[]).await;
        assert_eq!((search.found, search.bare.unwrap().bin), (None, bin.clone()));
        assert!(search.passed_over[0].contains("without pg_stat_statements"), "{:?}", search.passed_over);
        std::fs::write(module("pg_stat_statements"), "").unwrap();
        assert!(system_in(&mut known, bin.as_os_str(), &[]).await.found.is_some());
    }

    #[tokio::test]
    async fn a_linked_program_and_pg_config_lead_to_the_real_directory() {
        let root = tempfile::tempdir().unwrap();
        let (real, linked, config) = (root.path().join("16"), root.path().join("bin"), root.path().join("config"));
        pretend(&real, "16.4", TOOLS).await;
        std::fs::create_dir(&linked).unwrap();
        std::os::unix::fs::symlink(real.join("postgres"), linked.join("postgres")).unwrap();
        std::fs::create_dir(&config).unwrap();
        script(&config.join("pg_config"), &format!("#!/bin/sh\necho {}", real.display()));
        for path in [linked, config] {
            let mut known = FileAnswerCache::open(root.path());
            assert_eq!(system_in(&mut known, path.as_os_str(), &[]).await.found.unwrap().bin, real);
        }
    }

    #[tokio::test]
    async fn a_known_version_costs_no_process() {
        let root = tempfile::tempdir().unwrap();
        pretend(root.path(), "16.4", TOOLS).await;
        let mut known = FileAnswerCache::open(root.path());
        known.remember("version", &root.path().join("postgres"), "16.99");
        let found = system_in(&mut known, root.path().as_os_str(), &[]).await.found.unwrap();
        assert_eq!(found.version, "16.99");
    }
}
