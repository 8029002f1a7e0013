//! Deployments whose base backups and WAL go off the machine, as tests look at them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;
use tokio::runtime::Runtime;

use super::pitr::{self, pitr as state, succeed, superuser};
use super::project::Project;
use super::tandem::{Tandem, wait_for};
use crate::s3_server::{KEY_ID, SECRET, Server};

/// The destination in the server's bucket.
pub const PLACE: &str = "s3://copies/prod";

/// A server, and the runtime that it runs in.
pub fn server() -> (Runtime, Server) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start());
    (runtime, server)
}

/// A project that archives its WAL to `destinations`, with more lines of configuration.
pub fn project(server: &Server, destinations: &[&str], lines: &str) -> Project {
    let quoted: Vec<String> = destinations.iter().map(|place| format!("'{place}'")).collect();
    let project = pitr::project(&format!(
        "backup.destinations = [{}]\nbackup.credentials_file = 'copies.keys'\nbackup.retry_limit = '1s'\n{lines}",
        quoted.join(", ")
    ));
    let endpoint = format!("http://{}", server.address);
    let text = format!("AWS_ACCESS_KEY_ID={KEY_ID}\nAWS_SECRET_ACCESS_KEY={SECRET}\nAWS_ENDPOINT_URL={endpoint}\n");
    project.write("copies.keys", &text);
    fs::set_permissions(project.dir().join("copies.keys"), fs::Permissions::from_mode(0o600)).unwrap();
    project
}

/// What health says of the destination `address`.
pub fn destination(tandem: &Tandem, address: &str) -> Value {
    let destinations = state(tandem)["destinations"].clone();
    let found = destinations.as_array().and_then(|all| all.iter().find(|one| one["address"] == address).cloned());
    found.unwrap_or(Value::Null)
}

/// End this segment, and wait until the archive of this machine has it; its name.
pub fn switch(project: &Project) -> String {
    // At the very beginning of a segment, PostgreSQL names the one before it. What was emitted is not written yet.
    superuser(project, "SELECT pg_logical_emit_message(false, 'test', 'x')");
    let name = superuser(project, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    superuser(project, "SELECT pg_switch_wal()");
    let path = pitr::archive(project).join("wal").join(&name[..16]).join(format!("{name}.zst"));
    wait_for("a segment in the archive", || path.exists());
    name
}

/// Where the segment `name` is in the destination, by its key.
pub fn key(name: &str) -> String {
    format!("prod/pitr/wal/{}/{name}.zst", &name[..16])
}

/// Let `other` accept what `project` has signed.
pub fn share_key(project: &Project, other: &Project) {
    let path = project.dir().join("key");
    fs::write(&path, succeed(project, &["backup", "key"])).unwrap();
    succeed(other, &["backup", "key", "--import", path.to_str().unwrap()]);
}

/// The base backups in a directory that is a destination.
pub fn bases_in(dir: &Path) -> Vec<String> {
    super::refusal::names(&dir.join("pitr/base"))
}
