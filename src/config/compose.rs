//! Whether a `DATABASE_URL` of `.env` names Docker Compose's PostgreSQL, which is not there outside Compose's network.
//!
//! The guide's `.env` has such a line beside `POSTGRES_USER` and `POSTGRES_DB`, by which Compose makes that server: then Tandem
//! makes it instead. Where a name only fails to be looked up for the moment, a server of that name may well be there, and an
//! empty one in its place would be worse than none: then more must speak for Compose.

use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::layers::{Entry, Merged};
use super::problem::Origin;
use super::{Source, text};
use crate::plan::DatabaseUrl;

/// The longest wait for the resolver, which may itself be out of reach.
const LOOKUP_LIMIT: Duration = Duration::from_secs(2);

/// Variables by which a cluster manager is known: there a name resolves as soon as its service is there.
const OF_CLUSTERS: [&str; 3] = ["KUBERNETES_SERVICE_HOST", "NOMAD_ALLOC_ID", "ECS_CONTAINER_METADATA_URI_V4"];

/// Compose's files.
const FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    Resolves,
    /// There is no such name.
    Unknown,
    /// No answer, for now.
    Unanswered,
}

/// What looks names up.
#[derive(Clone, Copy)]
pub struct Resolver(pub fn(&str) -> Lookup);

impl Default for Resolver {
    fn default() -> Self {
        Self(look_up)
    }
}

/// Ask the system's resolver, on a thread of its own: it may block for minutes.
fn look_up(name: &str) -> Lookup {
    let (answer, answers) = mpsc::channel();
    let name = name.to_owned();
    let asked = std::thread::Builder::new().name("lookup".into()).spawn(move || {
        let _ = answer.send((name.as_str(), 0).to_socket_addrs().map(drop).map_err(|error| error.to_string()));
    });
    match asked.ok().and_then(|_| answers.recv_timeout(LOOKUP_LIMIT).ok()) {
        Some(Ok(())) => Lookup::Resolves,
        // EAI_NONAME and EAI_NODATA, as glibc and musl say them (gai_strerror(3)).
        Some(Err(why))
            if ["not known", "No address associated", "does not resolve"].iter().any(|it| why.contains(it)) =>
        {
            Lookup::Unknown
        }
        Some(Err(_)) | None => Lookup::Unanswered,
    }
}

/// Whether the server that `url` names, by its `entry`, is Compose's. `has_cluster`: this project had a server of Tandem's before.
pub fn is_composes(
    (url, entry): (&DatabaseUrl, &Entry),
    merged: &Merged,
    (source, directory): (&Source, &Path),
    has_cluster: bool,
) -> bool {
    let is_bare = !url.host.is_empty()
        && url.host != "localhost"
        && url.host.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_".contains(letter));
    let is_of_dotenv = matches!(&entry.origin, Origin::Line { name: Some(_), .. });
    let is_in_cluster = OF_CLUSTERS.iter().any(|name| source.environment.contains_key(*name));
    let says = |key: &str| merged.get(key).and_then(|entry| entry.raw.to_plain());
    let is_same = says("postgres.user").as_deref() == Some(&url.user)
        && says("postgres.database").as_deref() == Some(&url.database);
    if !is_bare || !is_of_dotenv || is_in_cluster || !is_same {
        return false;
    }
    match (source.resolver.0)(&url.host) {
        Lookup::Resolves => false,
        Lookup::Unknown => true,
        Lookup::Unanswered => has_cluster || is_service(directory, &url.host),
    }
}

/// Whether a Compose file of the project has a service called `name`.
fn is_service(directory: &Path, name: &str) -> bool {
    let texts = FILES.iter().filter_map(|file| text::read(&directory.join(file)).ok());
    texts.into_iter().any(|text| services(&text).iter().any(|service| service == name))
}

/// The services in a Compose file, by their lines: what stands one step below `services:`.
fn services(text: &str) -> Vec<String> {
    let below = text.lines().skip_while(|line| line.trim_end() != "services:").skip(1);
    let below: Vec<&str> = below.take_while(|line| line.is_empty() || line.starts_with([' ', '\t', '#'])).collect();
    let step = |line: &str| line.len() - line.trim_start().len();
    let is_content = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let Some(first) = below.iter().find(is_content).map(|line| step(line)) else { return Vec::new() };
    let names = below.iter().filter(is_content).filter(|line| step(line) == first);
    names.filter_map(|line| Some(line.trim().split_once(':')?.0.trim_matches(['"', '\'']).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_of_a_compose_file_are_read() {
        let text = "version: '3'\n# why\nservices:\n\n  # the database\n  postgres:\n    image: postgres:16\n    ports:\n      - \"5432:5432\"\n\
                    \x20 \"backend\":\n    build: .\nvolumes:\n  data:\n";
        assert_eq!(services(text), ["postgres", "backend"]);
        assert!(services("name: x\n").is_empty());
    }
}
