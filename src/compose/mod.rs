//! A Compose file, made into a `tandem.toml`; and line by line what does not carry over.
//!
//! ```text
//! yaml ─> interpolate ─> files      text to a tree with lines; variables; several files and `extends`
//! service                           what each service is: the database, the application, a process, something else
//! command · server                  what a command starts, and the keys that say the same (pure)
//! database · application · environment ─> the draft; verdicts: what is said of all other keys
//! ```
//!
//! No secret of the file is printed: a value whose name or form is a secret's is told by its line.

mod application;
mod command;
mod database;
mod environment;
mod files;
mod interpolate;
mod server;
mod service;
mod verdicts;
mod yaml;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::scaffold::draft::{Draft, string};
use files::Read;
use service::{Role, Service};
use yaml::{Node, Place};

/// Something to know of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    place: Place,
    /// The key, from its service on.
    key: String,
    what: String,
}

/// What a person asks for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub files: Vec<PathBuf>,
    pub profiles: Vec<String>,
    /// The service that is the application.
    pub app: Option<String>,
}

/// What was made of the files.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The configuration.
    pub toml: String,
    /// `file:line: key: what to know`, in the order of the files.
    pub told: Vec<String>,
}

/// Convert.
///
/// # Errors
/// A [`crate::exit::Failure`] that names the file and the line.
pub fn convert(wish: &Wish) -> anyhow::Result<Converted> {
    let mut read = files::read(&wish.files)?;
    let told = std::mem::take(&mut read.told);
    let base = wish.files.first().and_then(|file| file.parent()).unwrap_or(Path::new(""));
    let mut sketch = Sketch { read: &read, base, draft: Draft::default(), told, later: Vec::new() };
    let services = service::sort(&read, &wish.profiles, wish.app.as_deref())?;
    sketch.head(&wish.files, &services);
    let place = database::place(&services);
    for service in &services {
        match &service.role {
            Role::Database => sketch.database(service),
            Role::Application => sketch.application(service, &services, place.as_ref()),
            Role::Process => sketch.process(service, &services, place.as_ref()),
            Role::Once => sketch.once(service),
            Role::Elsewhere(what) => {
                let what =
                    format!("{what} is not run by Tandem: start it by yourself, or let it run on in its container");
                sketch.tell(service.place, &service.name, what);
            }
            Role::Left(why) => sketch.tell(service.place, &service.name, why.clone()),
        }
    }
    sketch.top();
    let Sketch { draft, mut told, later, .. } = sketch;
    told.sort_by_key(|told| (told.place.file, told.place.line));
    let mut seen = BTreeSet::new();
    let told = told.iter().map(|Told { place, key, what }| {
        let file = read.names.get(place.file).map_or_else(String::new, |name| name.display().to_string());
        format!("{file}:{}: {key}: {what}", place.line)
    });
    let told = told.chain(later).filter(|line| seen.insert(line.clone())).collect();
    Ok(Converted { toml: draft.text(), told })
}

/// The configuration under way.
struct Sketch<'a> {
    read: &'a Read,
    /// The directory of the first file.
    base: &'a Path,
    draft: Draft,
    told: Vec<Told>,
    /// What belongs to no line.
    later: Vec<String>,
}

impl Sketch<'_> {
    fn tell(&mut self, place: Place, key: &str, what: impl Into<String>) {
        self.told.push(Told { place, key: key.to_owned(), what: what.into() });
    }

    fn head(&mut self, files: &[PathBuf], services: &[Service]) {
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        self.draft.head = vec![
            format!("Made by `tandem import compose` from {}.", names.join(", ")),
            "`tandem check` prints every value and where it comes from.".to_owned(),
        ];
        if !services.iter().any(|service| service.role == Role::Database) {
            let text = "no service is a PostgreSQL: Tandem runs one of its own, unless DATABASE_URL or postgres.url names another";
            self.later.push(text.to_owned());
        }
        if !services.iter().any(|service| service.role == Role::Application) {
            let text = "no service is recognised as the application: say --app NAME, or write workers.app";
            self.later.push(text.to_owned());
        }
    }

    /// Top-level keys.
    fn top(&mut self) {
        for (key, node) in &self.read.top {
            match key.as_str() {
                "version" => {}
                "name" => {
                    if let Some(name) = node.text() {
                        self.draft.set("", "name", string(name), "");
                    }
                }
                key if key.starts_with("x-") => {}
                key => {
                    let what = verdicts::top(key);
                    self.tell(node.place, key, what);
                }
            }
        }
    }

    /// What is said of the keys of `service` that are not `handled`.
    fn rest(&mut self, service: &Service, handled: &[&str]) {
        for (key, node) in service.node.entries() {
            if handled.contains(&key.as_str()) || key.starts_with("x-") {
                continue;
            }
            if let Some(what) = verdicts::key(key, node) {
                self.tell(node.place, &format!("{}.{key}", service.name), what);
            }
        }
    }
}

/// Whether a variable of this name holds a secret, or this value is one.
fn is_secret(name: &str, value: &str) -> bool {
    const WORDS: [&str; 10] =
        ["SECRET", "PASSWORD", "PASSWD", "TOKEN", "APIKEY", "API_KEY", "PRIVATE", "CREDENTIAL", "_KEY", "_DSN"];
    let upper = name.to_uppercase();
    let has_word = WORDS.iter().any(|word| upper.contains(word)) || upper.ends_with("_PASS") || upper.ends_with("_PWD");
    let has_login = value.split_once("://").is_some_and(|(_, rest)| {
        rest.split_once('@').is_some_and(|(login, _)| login.contains(':') && !login.contains('/'))
    });
    !value.is_empty() && (has_word || has_login)
}

/// The published port of `ports:`, and on which address, for the container's `port`; or for the first one.
fn published(node: Option<&Node>, port: Option<u16>) -> Option<(String, u16, u16)> {
    let found: Vec<(String, u16, u16)> = node?.items().iter().filter_map(one_port).collect();
    let wanted = found.iter().find(|(_, _, inside)| port.is_none_or(|port| port == *inside));
    wanted.or(found.first()).cloned()
}

/// Address, port outside, port inside.
fn one_port(node: &Node) -> Option<(String, u16, u16)> {
    let number = |text: &str| text.split('-').next()?.parse::<u16>().ok();
    if let Some(target) = node.get("target").and_then(Node::text) {
        let inside = number(target)?;
        let outside = node.get("published").and_then(Node::text).and_then(number).unwrap_or(inside);
        let host = node.get("host_ip").and_then(Node::text).unwrap_or("0.0.0.0");
        return Some((host.to_owned(), outside, inside));
    }
    let text = node.text()?.split('/').next()?;
    let (rest, inside) = text.rsplit_once(':').unwrap_or(("", text));
    let inside = number(inside)?;
    let (host, outside) = rest.rsplit_once(':').unwrap_or(("", rest));
    let outside = number(outside).unwrap_or(inside);
    Some((if host.is_empty() { "0.0.0.0" } else { host.trim_matches(['[', ']']) }.to_owned(), outside, inside))
}

#[cfg(test)]
mod tests;
