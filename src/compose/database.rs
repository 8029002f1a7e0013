//! The service that is PostgreSQL, as `[postgres]`.

use super::command;
use super::environment::url;
use super::service::{Role, Service};
use super::yaml::{Node, Place, Value};
use super::{Sketch, published};
use crate::scaffold::draft::string;

/// Where the containers find the database.
#[derive(Clone, Debug, Default)]
pub struct DatabasePlace {
    pub names: Vec<String>,
}

/// The names and the port by which the database is reached, if there is one.
pub fn place(services: &[Service]) -> Option<DatabasePlace> {
    let service = services.iter().find(|service| service.role == Role::Database)?;
    Some(DatabasePlace { names: service.names() })
}

/// Hosts by which a published port is reached.
const THIS_MACHINE: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The major version that Tandem runs.
const VERSION: &str = "16";

/// What is handled here.
const HANDLED: [&str; 16] = [
    "image",
    "build",
    "command",
    "entrypoint",
    "environment",
    "env_file",
    "ports",
    "volumes",
    "healthcheck",
    "restart",
    "container_name",
    "hostname",
    "networks",
    "profiles",
    "shm_size",
    "expose",
];

/// Settings of PostgreSQL's that are keys of `[postgres]`.
const OWN_KEYS: [&str; 2] = ["shared_buffers", "max_connections"];

impl Sketch<'_> {
    pub fn database(&mut self, service: &Service) {
        let name = &service.name;
        let tag = service.tag().unwrap_or_default();
        let major: String = tag.trim_start_matches("pg").chars().take_while(char::is_ascii_digit).collect();
        if major != VERSION {
            let version = if major.is_empty() { "its own version".to_owned() } else { format!("version {major}") };
            let place = service.node.get("image").map_or(service.place, |node| node.place);
            self.tell(
                place,
                &format!("{name}.image"),
                format!("it is of {version}, Tandem runs {VERSION}; rows move with a dump (below)"),
            );
        }
        if service.image() != "postgres" && service.image() != "postgresql" {
            let place = service.node.get("image").map_or(service.place, |node| node.place);
            let what = format!(
                "the extensions of {} are not in Tandem's PostgreSQL: postgres.source = \"system\" takes that of the \
                                machine, with its packages",
                service.image()
            );
            self.tell(place, &format!("{name}.image"), what);
        }
        self.mode(service);
        self.login(service);
        self.server_settings(service);
        if let Some((host, outside, _)) = published(service.node.get("ports"), Some(5432)) {
            let place = service.node.get("ports").map_or(service.place, |node| node.place);
            self.draft.set("postgres", "port", outside.to_string(), "as it was published");
            if host == "0.0.0.0" {
                self.tell(
                    place,
                    &format!("{name}.ports"),
                    "it was open to other machines; Tandem's listens on 127.0.0.1 (postgres.listen)",
                );
            }
        }
        self.data(service);
        self.rest(service, &HANDLED);
    }

    /// A DATABASE_URL in `.env` that leads to this container would have Tandem attach to it.
    fn mode(&mut self, service: &Service) {
        let host = self.read.variables.get("DATABASE_URL").and_then(|value| url(value)).map(|(_, host)| host);
        let is_own = |host: &str| service.names().iter().any(|name| name == host) || THIS_MACHINE.contains(&host);
        if host.is_some_and(is_own) {
            let comment = "DATABASE_URL in .env leads to the container; Tandem runs its own server";
            self.draft.set("postgres", "mode", string("managed"), comment);
        }
    }

    /// User, password and database. What `.env` says under the same name, Tandem reads there.
    fn login(&mut self, service: &Service) {
        let environment = service.environment();
        let find = |name: &str| environment.iter().find(|(it, _)| it == name).map(|(_, node)| node);
        let own = |node: &Node| match &node.value {
            Value::Scalar { text, .. } => Some((text.clone(), node.place)),
            _ => None,
        };
        let user = find("POSTGRES_USER").and_then(own);
        let database = find("POSTGRES_DB").and_then(own).or_else(|| user.clone());
        let in_file =
            |sketch: &Self, name: &str, value: &str| sketch.read.variables.get(name).is_some_and(|it| it == value);
        for (key, variable, value) in [("user", "POSTGRES_USER", &user), ("database", "POSTGRES_DB", &database)] {
            if let Some((value, _)) = value
                && !value.is_empty()
                && !in_file(self, variable, value)
            {
                self.draft.set("postgres", key, string(value), "");
            }
        }
        if let Some((value, place)) = find("POSTGRES_PASSWORD").and_then(own)
            && !in_file(self, "POSTGRES_PASSWORD", &value)
        {
            let what = "Tandem makes a password of its own, and gives it to the application; to keep this one, write the line \
                        POSTGRES_PASSWORD=… into .env";
            self.tell(place, &format!("{}.environment.POSTGRES_PASSWORD", service.name), what);
        }
        for (name, node) in &environment {
            if name.starts_with("POSTGRES_INITDB") || ["POSTGRES_HOST_AUTH_METHOD", "PGDATA"].contains(&name.as_str()) {
                let what = "Tandem makes the cluster as it needs it; `tandem check` shows where";
                self.tell(node.place, &format!("{}.environment.{name}", service.name), what);
            }
        }
    }

    /// `command: postgres -c name=value`.
    fn server_settings(&mut self, service: &Service) {
        let Some(node) = service.node.get("command") else { return };
        let words = command::words(node);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let pair = match word.strip_prefix("-c").or_else(|| word.strip_prefix("--")) {
                Some("") => words.next().cloned().unwrap_or_default(),
                Some(rest) => rest.to_owned(),
                None if *word == "postgres" => continue,
                None => {
                    self.tell(node.place, &format!("{}.command", service.name), format!("{word} is left out"));
                    continue;
                }
            };
            let Some((name, value)) = pair.split_once('=') else { continue };
            let name = name.trim().replace('-', "_");
            match OWN_KEYS.contains(&name.as_str()) {
                true if value.parse::<u64>().is_ok() && name == "max_connections" => {
                    self.draft.set("postgres", &name, value, "");
                }
                true => self.draft.set("postgres", &name, string(value), ""),
                false => self.draft.set("postgres.settings", &name, string(value), ""),
            }
        }
    }

    /// Where its rows are, and how they move.
    fn data(&mut self, service: &Service) {
        let volumes = service.node.get("volumes").map(Node::items).unwrap_or_default();
        let environment = service.environment();
        let text = |name: &str| {
            let node = environment.iter().find(|(it, _)| it == name).map(|(_, node)| node);
            node.and_then(Node::text).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let user = text("POSTGRES_USER").unwrap_or_else(|| "postgres".to_owned());
        let database = text("POSTGRES_DB").unwrap_or_else(|| user.clone());
        let mut told = false;
        for volume in volumes {
            let (source, target) = mount(volume);
            let key = format!("{}.volumes", service.name);
            if target.starts_with("/docker-entrypoint-initdb.d") {
                let what = format!("{source} is not run: migrations.run, restore.if_empty or hooks.after_ready");
                self.tell(volume.place, &key, what);
            } else if target.contains("/postgresql") || target.contains("/pgdata") {
                told = true;
                self.rows(volume.place, &key, (&service.name, &user, &database));
            } else {
                self.tell(volume.place, &key, format!("{target} of the container has no equal"));
            }
        }
        if !told {
            self.rows(service.place, &service.name, (&service.name, &user, &database));
        }
    }

    fn rows(&mut self, place: Place, key: &str, (service, user, database): (&str, &str, &str)) {
        let quote = |word: &str| shlex::try_quote(word).map_or_else(|_| word.to_owned(), |word| word.into_owned());
        let what = format!(
            "its rows stay where they are. To move them, stop the application, and with this container running:\n    \
             docker compose exec -T {service} pg_dump -U {} -d {} | gzip > moved.sql.gz\n    \
             tandem backup import moved.sql.gz && tandem restore latest",
            quote(user),
            quote(database)
        );
        self.tell(place, key, what);
    }
}

/// Source and target of a volume, in either form.
pub fn mount(node: &Node) -> (String, String) {
    if let Some(target) = node.get("target").and_then(Node::text) {
        let source = node.get("source").and_then(Node::text).unwrap_or_default();
        return (source.to_owned(), target.to_owned());
    }
    let text = node.text().unwrap_or_default();
    let mut parts = text.split(':');
    match (parts.next(), parts.next()) {
        (Some(source), Some(target)) => (source.to_owned(), target.to_owned()),
        (Some(target), None) => (String::new(), target.to_owned()),
        _ => Default::default(),
    }
}
