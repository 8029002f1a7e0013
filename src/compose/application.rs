//! The service that is the application, as `[workers]`; those beside it, as `[[process]]`; those that migrate.

use std::net::Ipv6Addr;

use super::database::{DatabasePlace, mount};
use super::service::Service;
use super::yaml::Node;
use super::{Sketch, command, published};
use crate::scaffold::draft::{inline, string, strings};

/// What is handled here.
const HANDLED: [&str; 20] = [
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
    "working_dir",
    "depends_on",
    "deploy",
    "scale",
    "stop_grace_period",
    "expose",
];

/// The port of a server that says none.
const PORT: u16 = 8000;

impl Sketch<'_> {
    pub fn application(&mut self, service: &Service, services: &[Service], database: Option<&DatabasePlace>) {
        let name = service.name.clone();
        self.serves(service);
        self.directory(service);
        self.listens(service);
        self.commands_before(service);
        if let Some(path) = health_path(service) {
            self.draft.set("workers", "check", string(&path), "of its healthcheck");
        } else if let Some(node) = service.node.get("healthcheck") {
            self.tell(
                node.place,
                &format!("{name}.healthcheck"),
                "the workers say by themselves when they are ready; workers.check asks a path as well",
            );
        }
        for (name, value) in &service.script.environment {
            self.draft.set("workers.env", name, string(value), "in front of the command");
        }
        for variable in self.variables(service, services, database) {
            self.draft.set("workers.env", &variable.name, string(&variable.value), variable.comment);
        }
        self.scale(service);
        if let Some(node) = service.node.get("stop_grace_period")
            && let Some(text) = node.text()
        {
            self.draft.set("stop", "grace", string(text), "");
        }
        self.mounts(service);
        self.rest(service, &HANDLED);
    }

    /// What is served, and with which options.
    fn serves(&mut self, service: &Service) {
        let place = service.node.get("command").map_or(service.place, |node| node.place);
        let key = format!("{}.command", service.name);
        let app = service.server.as_ref().and_then(|server| server.app.clone());
        match app {
            Some(app) => self.draft.set("workers", "app", string(&app), format!("of service {}", service.name)),
            None => {
                let words = service.script.main.join(" ");
                let words = if words.is_empty() { "it has no command here".to_owned() } else { format!("`{words}`") };
                self.tell(
                    place,
                    &key,
                    format!("{words}: the application is not named; Tandem looks for it, or write workers.app"),
                );
            }
        }
        let Some(server) = &service.server else { return };
        for (table, name, value) in &server.keys {
            self.draft.set(table, name, value.clone(), "");
        }
        for note in &server.notes {
            self.tell(place, &key, note.clone());
        }
        for around in &service.script.around {
            self.tell(place, &key, format!("{around} was around the server; it has no place in Tandem's launcher"));
        }
    }

    /// The directory of the code.
    fn directory(&mut self, service: &Service) {
        let context = service.context().map(|path| path.trim_start_matches("./").trim_end_matches('/').to_owned());
        if let Some(dir) = context.filter(|dir| !dir.is_empty() && dir != "." && self.base.join(dir).is_dir()) {
            self.draft.set("workers", "app_dir", string(&dir), "what the image was built from");
            for file in ["uv.lock", "requirements.txt", "pyproject.toml"] {
                if self.base.join(&dir).join(file).is_file() {
                    self.draft.set("python", "requirements", string(&format!("{dir}/{file}")), "");
                    break;
                }
            }
        }
        if let Some(build) = service.node.get("build") {
            let what = "no image is built: Tandem installs the Python packages; what the Dockerfile installs with apt-get or apk, \
                        install on the machine";
            self.tell(build.place, &format!("{}.build", service.name), what);
        }
    }

    /// Where it listens: the port that was published, else the one of the command, of this machine alone.
    fn listens(&mut self, service: &Service) {
        let inside = service.server.as_ref().and_then(|server| server.port);
        let listen = match published(service.node.get("ports"), inside) {
            Some((host, port, _)) => {
                let place = service.node.get("ports").map_or(service.place, |node| node.place);
                if host == "0.0.0.0" {
                    let what = "it is open to other machines, as it was; \"127.0.0.1:…\" in workers.listen keeps it to this one";
                    self.tell(place, &format!("{}.ports", service.name), what);
                }
                if host.parse::<Ipv6Addr>().is_ok() { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
            }
            None => format!("127.0.0.1:{}", inside.unwrap_or(PORT)),
        };
        self.draft.set("workers", "listen", string(&listen), "");
    }

    /// What the container did before it served.
    fn commands_before(&mut self, service: &Service) {
        let place = service.node.get("command").map_or(service.place, |node| node.place);
        let key = format!("{}.command", service.name);
        for (dir, words) in &service.script.migrations {
            self.migration(dir.as_deref(), words);
        }
        for other in &service.script.others {
            self.tell(
                place,
                &key,
                format!("`{other}` is not run: make it a part of migrations.run, or of hooks.after_ready"),
            );
        }
        if service.script.is_shell {
            self.tell(place, &key, "it is a script with branches or loops, of which only the plain commands were read");
        }
    }

    fn migration(&mut self, dir: Option<&str>, words: &[String]) {
        self.draft.set("migrations", "run", strings(words), "");
        // A directory of the container's is none of this machine's.
        if let Some(dir) = dir.filter(|dir| !dir.starts_with('/') && self.base.join(dir).is_dir()) {
            self.draft.set("migrations", "dir", string(dir), "");
        }
    }

    /// A service that migrates and ends.
    pub fn once(&mut self, service: &Service) {
        let main = (!service.script.main.is_empty()).then(|| (None, service.script.main.clone()));
        for (dir, words) in service.script.migrations.iter().cloned().chain(main) {
            self.migration(dir.as_deref(), &words);
        }
        let what = "it migrates the database: migrations.run does, before each start";
        self.tell(service.place, &service.name, what);
    }

    /// A service beside the application.
    pub fn process(&mut self, service: &Service, services: &[Service], database: Option<&DatabasePlace>) {
        let mut words = service.script.main.clone();
        if words.is_empty() {
            words.extend(service.server.as_ref().map(|server| server.program.clone()));
        }
        let environment = service.script.environment.iter().cloned();
        let variables = self.variables(service, services, database);
        let pairs: Vec<(String, String)> =
            environment.chain(variables.into_iter().map(|variable| (variable.name, variable.value))).collect();
        let mut keys = vec![
            ("name", string(&name_of(&service.name)), format!("service {}", service.name)),
            ("command", strings(&words), String::new()),
        ];
        let dir = service.context().map(|path| path.trim_start_matches("./").trim_end_matches('/').to_owned());
        if let Some(dir) = dir.filter(|dir| !dir.is_empty() && dir != "." && self.base.join(dir).is_dir()) {
            keys.push(("dir", string(&dir), String::new()));
        }
        if !pairs.is_empty() {
            keys.push(("env", inline(&pairs), String::new()));
        }
        if let Some(text) = service.node.get("stop_grace_period").and_then(Node::text) {
            keys.push(("stop_grace", string(text), String::new()));
        }
        self.draft.process(keys);
        for (_, words) in &service.script.migrations {
            let place = service.node.get("command").map_or(service.place, |node| node.place);
            self.tell(
                place,
                &format!("{}.command", service.name),
                format!("`{}`: migrations.run does it for all", words.join(" ")),
            );
        }
        if let Some(node) = service.node.get("healthcheck") {
            self.tell(
                node.place,
                &format!("{}.healthcheck", service.name),
                "a [[process]] is running or it is restarted; nothing asks it",
            );
        }
        let replicas = replicas(service);
        if let Some((count, place)) = replicas.filter(|(count, _)| *count > 1) {
            let what = format!("{count} of them: write one [[process]] for each");
            self.tell(place, &format!("{}.deploy", service.name), what);
        }
        self.mounts(service);
        self.rest(service, &HANDLED);
    }

    fn scale(&mut self, service: &Service) {
        if let Some((count, _)) = replicas(service) {
            self.draft.set("workers", "count", count.to_string(), "as many as there were containers");
        }
        if let Some(node) = service.node.get("deploy").and_then(|deploy| deploy.get("resources")) {
            let what = "limits are the service manager's (MemoryMax= of a systemd unit); workers.max_memory replaces a worker that grows";
            self.tell(node.place, &format!("{}.deploy.resources", service.name), what);
        }
    }

    fn mounts(&mut self, service: &Service) {
        for volume in service.node.get("volumes").map(Node::items).unwrap_or_default() {
            let (source, target) = mount(volume);
            let key = format!("{}.volumes", service.name);
            // The code itself is where it is.
            if source == "."
                || source == "./"
                || service
                    .context()
                    .is_some_and(|context| source.trim_end_matches('/') == context.trim_end_matches('/'))
            {
                continue;
            }
            let what = match source.starts_with(['.', '/', '~']) {
                true => format!("{target} of the container is {source} here: the application must look for it there"),
                false => format!(
                    "{target} of the container was the volume {source}: make it a directory here, and copy what is in it"
                ),
            };
            self.tell(volume.place, &key, what);
        }
        for (name, node) in service.node.get("depends_on").map(Node::entries).unwrap_or_default() {
            if node.get("condition").and_then(Node::text) == Some("service_completed_successfully") {
                let what = format!("{name} has to be over first: migrations are, other things are hooks");
                self.tell(node.place, &format!("{}.depends_on", service.name), what);
            }
        }
    }
}

/// How many containers there are to be.
fn replicas(service: &Service) -> Option<(u32, super::Place)> {
    let node =
        service.node.get("deploy").and_then(|deploy| deploy.get("replicas")).or_else(|| service.node.get("scale"))?;
    Some((node.text()?.parse().ok()?, node.place))
}

/// The path that a healthcheck asks for.
fn health_path(service: &Service) -> Option<String> {
    let test = service.node.get("healthcheck")?.get("test")?;
    let text = command::words(test).join(" ");
    let (_, rest) = text.split_once("http://")?;
    let at = rest.find('/')?;
    let path: String =
        rest[at..].chars().take_while(|letter| !letter.is_whitespace() && !"'\")|;".contains(*letter)).collect();
    (rest.starts_with("localhost") || rest.starts_with("127.0.0.1") || rest.starts_with("0.0.0.0")).then_some(path)
}

/// A name that a `[[process]]` may have.
fn name_of(service: &str) -> String {
    let name: String = service
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '-' })
        .collect();
    match name.as_str() {
        "postgres" | "template" | "tandem" | "workers" | "migrate" => format!("{name}-service"),
        _ => name,
    }
}
