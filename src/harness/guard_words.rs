//! What is said of a process of the tests that was connected to a server that is not theirs.

use super::watched::Server;
use crate::config::Settings;
use crate::process::sockets::Owner;

/// What happened, and what to do. `is_ended`: the process, and the run.
pub fn words(settings: &Settings, owner: &Owner, server: &Server, is_ended: bool) -> String {
    let (what, port) = match server {
        Server::Live { port } => (format!("this project's own live database (port {port})"), port),
        Server::Other { host, port } => {
            (format!("the database server that this project's configuration names ({host}, port {port})"), port)
        }
    };
    let text = port.to_string();
    let speaks = |value: &str| value == text || value.contains(&format!(":{text}"));
    let all = settings.workers.env.iter().chain(&settings.inherited.0);
    let mut names: Vec<&str> =
        all.filter(|(name, value)| !name.starts_with("PG") && speaks(value)).map(|(name, _)| name.as_str()).collect();
    names.retain(|name| !crate::config::references::NAMES.contains(name));
    names.dedup();
    let hint = match names.first() {
        Some(name) => format!("{} holds its port: write {name} = \"${{PGPORT}}\" in [workers.env]", names.join(", ")),
        None => "give it the tests' server under the names that it reads, in [workers.env]: DB_PORT = \"${PGPORT}\""
            .to_owned(),
    };
    let what = if is_ended {
        format!("a process of the tests was connected to {what} and was ended, and the run with it")
    } else {
        format!("a process of the tests is already connected to {what}; no test was run")
    };
    format!(
        "{what}: process {} (`{}`). It takes the address from somewhere else than DATABASE_URL, PG* and POSTGRES_*: {hint}",
        owner.pid, owner.program
    )
}
