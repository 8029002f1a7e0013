//! What each service is. Pure.

use super::command::{self, Script};
use super::files::{Read, as_map};
use super::server::{self, Server};
use super::yaml::{Node, Place};
use crate::exit::{Code, Failure};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// PostgreSQL, which Tandem runs.
    Database,
    /// What the workers serve.
    Application,
    /// A process beside the workers.
    Process,
    /// It migrates the database and ends.
    Once,
    /// Something that Tandem does not run, in words.
    Elsewhere(&'static str),
    /// It is left out, and why.
    Left(String),
}

/// A service and what it was taken for.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub place: Place,
    pub node: Node,
    pub role: Role,
    /// What its command starts.
    pub script: Script,
    pub server: Option<Server>,
}

/// Images that are PostgreSQL.
const POSTGRES: [&str; 7] =
    ["postgres", "postgis", "pgvector", "timescaledb", "timescaledb-ha", "postgresql", "supabase-postgres"];

/// Images of what runs elsewhere, by the end of their name, and what they are.
const ELSEWHERE: [(&str, &str); 30] = [
    ("redis", "Redis"),
    ("redis-stack", "Redis"),
    ("valkey", "Valkey"),
    ("keydb", "KeyDB"),
    ("dragonfly", "Dragonfly"),
    ("memcached", "memcached"),
    ("rabbitmq", "RabbitMQ"),
    ("kafka", "Kafka"),
    ("zookeeper", "ZooKeeper"),
    ("nats", "NATS"),
    ("mysql", "MySQL"),
    ("mariadb", "MariaDB"),
    ("mongo", "MongoDB"),
    ("elasticsearch", "Elasticsearch"),
    ("opensearch", "OpenSearch"),
    ("meilisearch", "Meilisearch"),
    ("qdrant", "Qdrant"),
    ("minio", "MinIO"),
    ("localstack", "LocalStack"),
    ("ollama", "Ollama"),
    ("nginx", "nginx (in front of workers.listen)"),
    ("traefik", "Traefik (in front of workers.listen)"),
    ("caddy", "Caddy (in front of workers.listen)"),
    ("mailhog", "MailHog"),
    ("mailpit", "Mailpit"),
    ("mailcatcher", "MailCatcher"),
    ("prometheus", "Prometheus (it reads http://127.0.0.1:8001/metrics)"),
    ("grafana", "Grafana"),
    ("jaeger", "Jaeger"),
    ("selenium", "Selenium"),
];

/// Images that show a database, for which psql is there.
const VIEWERS: [&str; 4] = ["adminer", "pgadmin4", "pgweb", "pgbouncer"];

/// Names that an application's service usually has.
const USUAL: [&str; 8] = ["backend", "api", "app", "web", "server", "fastapi", "django", "application"];

/// Find out what each service is.
///
/// # Errors
/// Several of them look like the application, or `app` is none of them.
pub fn sort(read: &Read, profiles: &[String], app: Option<&str>) -> anyhow::Result<Vec<Service>> {
    let mut services: Vec<Service> = read.services.iter().map(|(name, node)| one(read, name, node, profiles)).collect();
    if let Some(app) = app {
        let Some(chosen) = services.iter_mut().find(|service| service.name == app) else {
            let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
            let text = format!("--app {app}: there is no such service; there are {}", names.join(", "));
            return Err(Failure::new(Code::Usage, text).into());
        };
        chosen.role = Role::Application;
        for other in services.iter_mut().filter(|it| it.name != app && it.role == Role::Application) {
            other.role = Role::Process;
        }
        return Ok(services);
    }
    if !services.iter().any(|service| service.role == Role::Application)
        && let [at] = built_as_usual(&services)[..]
    {
        services[at].role = Role::Application;
    }
    let candidates: Vec<usize> = (0..services.len()).filter(|&at| services[at].role == Role::Application).collect();
    let sure: Vec<usize> = candidates.iter().copied().filter(|&at| services[at].server.is_some()).collect();
    let chosen = match (sure.as_slice(), candidates.as_slice()) {
        ([one], _) | ([], [one]) => Some(*one),
        ([], []) => None,
        (several, _) if !several.is_empty() => usual(&services, several)?,
        (_, several) => usual(&services, several)?,
    };
    for at in candidates {
        if Some(at) != chosen {
            services[at].role = match services[at].script.main.is_empty() {
                true => {
                    Role::Left("it has no command, so nothing is known of it: write a [[process]] for it".to_owned())
                }
                false => Role::Process,
            };
        }
    }
    Ok(services)
}

/// Services that are built from the project, and have an application's usual name, whatever their command is.
fn built_as_usual(services: &[Service]) -> Vec<usize> {
    let is_it = |at: &usize| {
        let service = &services[*at];
        service.role == Role::Process && service.has_build() && USUAL.contains(&service.name.as_str())
    };
    (0..services.len()).filter(is_it).collect()
}

/// The one of several that has an application's usual name.
fn usual(services: &[Service], several: &[usize]) -> anyhow::Result<Option<usize>> {
    let is_usual = |at: &&usize| USUAL.contains(&services[**at].name.as_str());
    let named: Vec<&usize> = several.iter().filter(is_usual).collect();
    if let [one] = named.as_slice() {
        return Ok(Some(**one));
    }
    let names: Vec<&str> = several.iter().map(|&at| services[at].name.as_str()).collect();
    let text = format!("several services look like the application: {}; say which with --app NAME", names.join(", "));
    Err(Failure::new(Code::Usage, text).into())
}

fn one(read: &Read, name: &str, node: &Node, profiles: &[String]) -> Service {
    let command = node.get("command").map(command::words).unwrap_or_default();
    let entrypoint = node.get("entrypoint").map(command::words).unwrap_or_default();
    let mut words: Vec<String> = entrypoint.into_iter().chain(command).collect();
    if words.is_empty() {
        words = of_dockerfile(read, node);
    }
    let script = command::script(&words);
    let server = server::read(&script.main);
    let mut service = Service {
        name: name.to_owned(),
        place: node.place,
        node: node.clone(),
        role: Role::Application,
        script,
        server,
    };
    service.role = role(&service, profiles);
    service
}

fn role(service: &Service, profiles: &[String]) -> Role {
    let wanted: Vec<&str> =
        service.node.get("profiles").map(Node::items).unwrap_or_default().iter().filter_map(Node::text).collect();
    if !wanted.is_empty() && !wanted.iter().any(|profile| profiles.iter().any(|it| it == profile || it == "*")) {
        return Role::Left(format!("it is of profile {}: `--profile {}` takes it", wanted.join(", "), wanted[0]));
    }
    let image = service.image();
    let script = &service.script;
    if !service.has_build() {
        if POSTGRES.contains(&image.as_str()) {
            return Role::Database;
        }
        if VIEWERS.contains(&image.as_str()) {
            return Role::Left(
                "`tandem psql` opens psql; other viewers connect to the URL that `tandem url` prints".to_owned(),
            );
        }
        if let Some((_, what)) =
            ELSEWHERE.iter().find(|(end, _)| image == *end || image.starts_with(&format!("{end}-")))
        {
            return Role::Elsewhere(what);
        }
    }
    let is_code = service.has_build() || service.server.is_some() || image.starts_with("python");
    match script.main.is_empty() {
        _ if service.server.is_some() => Role::Application,
        true if !script.migrations.is_empty() => Role::Once,
        true if service.has_build() => Role::Application,
        false if command::is_migration(&script.main) => Role::Once,
        false if is_code => Role::Process,
        // The image of another service that is built, or one from a registry: its command is the project's.
        false => Role::Process,
        true => Role::Elsewhere("its image"),
    }
}

impl Service {
    pub fn has_build(&self) -> bool {
        self.node.get("build").is_some()
    }

    /// The name of the image, without registry, owner and tag.
    pub fn image(&self) -> String {
        let image = self.node.get("image").and_then(Node::text).unwrap_or_default();
        let name = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        name.split(':').next().unwrap_or_default().to_owned()
    }

    /// The tag of the image.
    pub fn tag(&self) -> Option<String> {
        let image = self.node.get("image").and_then(Node::text)?;
        let name = image.split('@').next()?.rsplit('/').next()?;
        name.split_once(':').map(|(_, tag)| tag.to_owned())
    }

    /// The environment as pairs.
    pub fn environment(&self) -> Vec<(String, Node)> {
        let node = self.node.get("environment").cloned();
        node.map(|node| as_map(node).entries().to_vec()).unwrap_or_default()
    }

    /// The directory that it is built from, as it is written.
    pub fn context(&self) -> Option<&str> {
        let build = self.node.get("build")?;
        build.text().or_else(|| build.get("context").and_then(Node::text))
    }

    /// The names by which other services reach it.
    pub fn names(&self) -> Vec<String> {
        let more = ["container_name", "hostname"].iter().filter_map(|key| self.node.get(key).and_then(Node::text));
        let networks = self.node.get("networks").map(Node::entries).unwrap_or_default();
        let aliases = networks.iter().flat_map(|(_, node)| node.get("aliases").map(Node::items).unwrap_or_default());
        let aliases = aliases.filter_map(Node::text);
        std::iter::once(self.name.as_str()).chain(more).chain(aliases).map(str::to_owned).collect()
    }
}

/// The command of the Dockerfile that a service is built from: its last ENTRYPOINT and CMD.
fn of_dockerfile(read: &Read, node: &Node) -> Vec<String> {
    let Some(build) = node.get("build") else { return Vec::new() };
    let Some(file) = read.names.get(build.place.file) else { return Vec::new() };
    let context = build.text().or_else(|| build.get("context").and_then(Node::text)).unwrap_or(".");
    let name = build.get("dockerfile").and_then(Node::text).unwrap_or("Dockerfile");
    let path = file.parent().unwrap_or(std::path::Path::new("")).join(context).join(name);
    let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
    let text = text.replace("\\\n", " ");
    let last = |word: &str| {
        let is_it = |line: &&str| line.trim_start().to_uppercase().starts_with(&format!("{word} "));
        let line = text.lines().rfind(is_it)?.trim_start()[word.len()..].trim();
        let listed = line.starts_with('[').then(|| serde_json::from_str::<Vec<String>>(line).ok()).flatten();
        listed.or_else(|| Some(vec!["sh".to_owned(), "-c".to_owned(), line.to_owned()]))
    };
    // A shell's ENTRYPOINT hands on no arguments (Docker documentation, "Understand how CMD and ENTRYPOINT interact").
    let (entry, command) = (last("ENTRYPOINT"), last("CMD"));
    let is_script = entry.as_ref().is_some_and(|words| words.first().is_some_and(|word| word.ends_with(".sh")));
    match entry {
        Some(entry) if !is_script => entry.into_iter().chain(command.unwrap_or_default()).collect(),
        // A script of the image's runs what it is given, as a rule.
        _ => command.unwrap_or_default(),
    }
}
