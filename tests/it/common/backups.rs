//! Backups as tests take and look at them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::project::Project;
use super::refusal::names;
use super::tandem::{self, Tandem};

/// A table that takes a second to load: whoever waits for the program that loads it does not miss it on a fast machine.
pub const SLOW: &str = "CREATE TABLE slow (n int CHECK (pg_sleep(1)::text = '')); INSERT INTO slow VALUES (1)";

/// A project with a server that runs, and FFE's tables with rows in them.
pub fn running() -> (Project, Tandem) {
    running_with("")
}

/// As [`running`], with more lines of configuration.
pub fn running_with(lines: &str) -> (Project, Tandem) {
    let project = Project::app_with("plain:app", &format!("workers.count = 1\n{lines}"));
    let tandem = Tandem::up(&project);
    sql(
        &project,
        "INSERT INTO api_keys (id, name, key_hash, is_active)
             SELECT n, 'key ' || n, md5(n::text) || md5((-n)::text), true FROM generate_series(1, 2000) AS n;
         CREATE TABLE \"odd \"\" name\" (id int PRIMARY KEY, body text CHECK (body <> 'never'));
         INSERT INTO \"odd \"\" name\" SELECT n, repeat('x', n) FROM generate_series(1, 5) AS n",
    );
    (project, tandem)
}

pub fn sql(project: &Project, sql: &str) -> String {
    let output = tandem::run(project, &["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

pub fn as_superuser(project: &Project, database: &str, sql: &str) -> String {
    let socket = project.state().join("run/postgres");
    let options = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql, "-h"];
    let output = tandem::command(project).args(options).arg(socket).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

pub fn backup(project: &Project, args: &[&str]) -> Value {
    let output = tandem::run(project, &[&["backup", "--json"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn dir(project: &Project) -> PathBuf {
    project.state().join("backups")
}

/// A command of the system.
pub fn command(program: &str) -> Command {
    #[expect(clippy::disallowed_methods, reason = "a test starts what it tests")]
    Command::new(program)
}

/// What lies in the directory of backups under final names.
pub fn finals(project: &Project) -> Vec<String> {
    names(&dir(project)).into_iter().filter(|name| !name.starts_with('.')).collect()
}

/// All that is in a file compressed by gzip.
pub fn read_gzip(path: &Path) -> String {
    use std::io::Read;
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text
}

pub fn path(project: &Project, manifest: &Value) -> PathBuf {
    dir(project).join(manifest["file"].as_str().unwrap())
}

/// Change a backup's manifest.
pub fn rewrite(project: &Project, manifest: &Value, change: impl FnOnce(&mut Value)) {
    let stem = manifest["file"].as_str().unwrap().split('.').next().unwrap().to_owned();
    let mut changed = manifest.clone();
    change(&mut changed);
    fs::write(dir(project).join(format!("{stem}.manifest.json")), changed.to_string()).unwrap();
}

/// `text` compressed by gzip, and the digest of that.
pub fn compressed_sql(text: &str) -> (Vec<u8>, String) {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let bytes = gzip.finish().unwrap();
    let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    (bytes, digest)
}

/// Put other SQL into a backup, and make its manifest say that this is right; it is as one that an older Tandem made, which
/// signed nothing.
pub fn replace_sql(project: &Project, manifest: &Value, change: impl FnOnce(String) -> String) {
    let path = path(project, manifest);
    let text = change(read_gzip(&path));
    let (bytes, digest) = compressed_sql(&text);
    fs::write(&path, &bytes).unwrap();
    rewrite(project, manifest, |it| {
        it["sha256"] = digest.into();
        it["size_bytes"] = bytes.len().into();
        it["sql_bytes"] = text.len().into();
    });
}
