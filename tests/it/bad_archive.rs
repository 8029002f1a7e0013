//! A PostgreSQL that the operator brings along as an archive, whole and altered.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::project::Project;
use crate::common::refusal;
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};

/// The pinned package's installation as an archive, packed without compression: it costs no time here.
fn archive(project: &Project) -> PathBuf {
    let installed = refusal::run(project, &["install", "--json", "--set", "postgres.source=package"]);
    installed.expect(0, &["\"bin\""]);
    let line = installed.said.lines().find(|line| line.starts_with('{')).unwrap();
    let installed: serde_json::Value = serde_json::from_str(line).unwrap();
    let prefix = Path::new(installed["postgres"]["bin"].as_str().unwrap()).parent().unwrap().to_path_buf();
    let path = project.dir().join("postgresql.tar.gz");
    let mut tar = tar::Builder::new(GzEncoder::new(File::create(&path).unwrap(), Compression::none()));
    tar.follow_symlinks(false);
    tar.append_dir_all("postgresql-16", prefix).unwrap();
    tar.into_inner().unwrap().finish().unwrap();
    path
}

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn an_altered_archive_is_refused_with_both_digests_and_the_old_installation_stays() {
    let project = Project::app_with("plain:app", "workers.count = 1");
    let archive = archive(&project);
    let good = sha256(&archive);
    let cache = project.dir().join("cache");
    fs::create_dir(&cache).unwrap();
    fs::set_permissions(&cache, Permissions::from_mode(0o755)).unwrap();
    project.configure(&format!(
        "cache_dir = 'cache'\npostgres.source = './postgresql.tar.gz'\npostgres.source_sha256 = '{good}'"
    ));
    refusal::run(&project, &["install"]).expect(0, &["PostgreSQL 16", "postgresql.tar.gz"]);
    let slots = cache.join("postgresql");
    let before = refusal::names(&slots);

    let mut bytes = fs::read(&archive).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&archive, &bytes).unwrap();
    let found = sha256(&archive);
    for refused in [refusal::run(&project, &["install"]), refusal::up(&project)] {
        refused.expect(1, &["postgresql.tar.gz", &good, &found, "nothing was installed"]);
    }
    assert_eq!(refusal::names(&slots), before, "the old installation stays, and nothing half-made beside it");
    let kept = before.iter().map(|name| slots.join(name).join("bin/postgres"));
    assert_eq!(kept.filter(|postgres| postgres.is_file()).count(), 1, "{before:?}");

    // Without a digest to compare with, its own checksum gives it away.
    project.reconfigure(|text| {
        text.lines().filter(|line| !line.contains("source_sha256")).map(|line| format!("{line}\n")).collect()
    });
    let refused = refusal::run(&project, &["install"]);
    assert!(refused.code != 0 && refused.said.contains("postgresql.tar.gz"), "{}", refused.said);
    assert_eq!(refusal::names(&slots), before);
}
