//! `environment:` and `env_file:`, as `[workers.env]`: what leads to the database by reference, what `.env` has left there,
//! secrets told and not printed.

use super::database::DatabasePlace;
use super::service::{Role, Service};
use super::yaml::{Node, Place, Value};
use super::{Sketch, is_secret, published};
use crate::config::references;
use crate::scaffold::draft::string;
use crate::scaffold::names::of_database;

/// A variable that is to be written.
pub struct Variable {
    pub name: String,
    pub value: String,
    pub comment: String,
}

/// The scheme and the host of a URL.
pub fn url(value: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = value.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?;
    Some((scheme, host.split(':').next()?))
}

impl Sketch<'_> {
    /// The variables of `service` that are to be written.
    pub fn variables(
        &mut self,
        service: &Service,
        services: &[Service],
        database: Option<&DatabasePlace>,
    ) -> Vec<Variable> {
        let environment = service.environment();
        let from_file = self.env_files(service);
        let text = |node: &Node| node.text().unwrap_or_default().to_owned();
        let all: Vec<(String, String)> = environment
            .iter()
            .map(|(name, node)| (name.clone(), text(node)))
            .chain(from_file.into_iter().filter(|(name, _)| !environment.iter().any(|(it, _)| it == name)))
            .collect();
        let is_database = |host: &str| database.is_some_and(|place| place.names.iter().any(|name| name == host));
        let pairs = all.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let references = of_database(pairs, |_, value| is_database(value));
        let mut found = Vec::new();
        for (name, value) in &all {
            let node = environment.iter().find(|(it, _)| it == name).map(|(_, node)| node);
            let place = node.map_or(service.place, |node| node.place);
            let file = self.read.names.get(place.file).map(|path| path.display().to_string()).unwrap_or_default();
            let comment = format!("{file}:{}", place.line);
            let scheme = url(value).filter(|(_, host)| is_database(host)).map(|(scheme, _)| scheme.to_owned());
            if let Some(scheme) = scheme.as_ref().filter(|scheme| scheme.contains('+')) {
                self.draft.set("workers", "url_scheme", string(scheme), format!("of {name}"));
            }
            match (references.get(name), scheme) {
                // Tandem sets it to its own server's.
                _ if references::NAMES.contains(&name.as_str()) => {}
                (Some(reference), _) => {
                    found.push(Variable { name: name.clone(), value: (*reference).to_owned(), comment });
                }
                (None, Some(_)) => {
                    found.push(Variable { name: name.clone(), value: "${DATABASE_URL}".to_owned(), comment });
                }
                (None, None) => {
                    // Without a node it stands in a file that Tandem reads too, or that is told of.
                    let Some(node) = node else { continue };
                    found.extend(self.variable(service, services, name, node, comment));
                }
            }
        }
        found
    }

    /// A variable that has nothing to do with the database.
    fn variable(
        &mut self,
        service: &Service,
        services: &[Service],
        name: &str,
        node: &Node,
        comment: String,
    ) -> Option<Variable> {
        let key = format!("{}.environment.{name}", service.name);
        let Value::Scalar { text, raw, uses } = &node.value else {
            // A name alone is handed through, as Tandem's workers get its environment.
            return None;
        };
        if !uses.is_empty() && self.read.variables.get(name) == Some(text) {
            // `.env` says the same under the same name.
            return None;
        }
        if text.is_empty() && uses.iter().any(|used| used == name) {
            // Handed through, and nobody sets it.
            return None;
        }
        if !uses.is_empty() && is_secret(name, text) {
            self.tell(node.place, &key, format!("a secret: write the line {name}={raw} into .env"));
            return None;
        }
        if is_secret(name, text) {
            self.tell(
                node.place,
                &key,
                format!("a secret, which is not printed: write {name}=… into .env, with this line's value"),
            );
            return None;
        }
        if self.read.variables.get(name).is_some_and(|value| value != text) {
            self.tell(node.place, &key, "`.env` has another value under this name, and overrides [workers.env]");
        }
        let (value, note) = self.other_hosts(text, services);
        if let Some(note) = note {
            self.tell(node.place, &key, note);
        }
        Some(Variable { name: name.to_owned(), value: references::literal(&value), comment })
    }

    /// `text` with the names of other services replaced by where they are reached from this machine.
    fn other_hosts(&self, text: &str, services: &[Service]) -> (String, Option<String>) {
        for other in services.iter().filter(|other| other.role != Role::Database) {
            for name in other.names() {
                let is_url = url(text).is_some_and(|(_, host)| host == name);
                let rest = text.strip_prefix(&name).filter(|rest| rest.is_empty() || rest.starts_with(':'));
                // A bare word may be a word and not a host.
                let is_host = rest.is_some_and(|rest| !rest.is_empty() || matches!(other.role, Role::Elsewhere(_)));
                if !is_url && !is_host {
                    continue;
                }
                let Some((_, outside, inside)) = published(other.node.get("ports"), None) else {
                    let note = format!(
                        "{name} is a name of Compose's network; its service publishes no port, so say where it is"
                    );
                    return (text.replacen(&name, "127.0.0.1", 1), Some(note));
                };
                let inside = format!("{name}:{inside}");
                let value = match text.contains(&inside) {
                    true => text.replacen(&inside, &format!("127.0.0.1:{outside}"), 1),
                    false => text.replacen(&name, "127.0.0.1", 1),
                };
                return (value, Some(format!("{name} is a name of Compose's network: 127.0.0.1 here")));
            }
        }
        (text.to_owned(), None)
    }

    /// What `env_file:` names. `.env` beside the file is Tandem's too; others are told of.
    fn env_files(&mut self, service: &Service) -> Vec<(String, String)> {
        let Some(node) = service.node.get("env_file") else { return Vec::new() };
        let listed: Vec<&Node> = if node.items().is_empty() { vec![node] } else { node.items().iter().collect() };
        let mut found = Vec::new();
        for item in listed {
            let Some(path) = item.text().or_else(|| item.get("path").and_then(Node::text)) else { continue };
            let plain = path.trim_start_matches("./");
            let text = std::fs::read_to_string(self.base.join(path));
            if plain != ".env" {
                let key = format!("{}.env_file", service.name);
                self.tell(item.place, &key, format!("Tandem reads .env alone: `cat {plain} >> .env`"));
            }
            match text {
                Ok(text) => found.extend(crate::config::dotenv_variables(&text)),
                Err(error) => {
                    let place: Place = item.place;
                    self.tell(place, &format!("{}.env_file", service.name), format!("{path}: {error}"));
                }
            }
        }
        found
    }
}
