//! Where and how the application is served: what cannot be listened on, TLS that lacks a part, options that are not Uvicorn's
//! to have.

use super::Checker;
use crate::config::settings::{PostgresMode, Readiness, WorkerSocket};
use crate::config::{Origin, TlsClient, uvicorn};
use crate::plan::{Place, SOCKET_PATH_MAX};

/// The shortest password of the status page, in bytes: it can be guessed at over the network.
const PAGE_PASSWORD_MIN: usize = 12;

/// Whether `name` can be the name in a browser's address.
fn is_host(name: &str) -> bool {
    let is_fit = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
    !name.is_empty() && name.chars().all(is_fit)
}

impl Checker<'_> {
    pub(super) fn serving(&mut self) {
        self.listeners();
        self.socket_files();
        self.page();
        self.other_server();
        self.tls();
        self.uvicorn();
    }

    fn listeners(&mut self) {
        let (workers, health, postgres) = (&self.settings.workers, &self.settings.health, &self.settings.postgres);
        if workers.listen.iter().any(|place| place.overlaps(&health.listen)) {
            let keys = ("health.listen", "workers.listen");
            let (key, other) = if self.values.chosen(keys.0) { keys } else { (keys.1, keys.0) };
            self.wrong(key, &format!("the port is that of {other} too"), Some("give each its own port"));
        }
        let server = Place::At((postgres.listen, postgres.port.number).into());
        let listens = workers.listen.iter().map(|place| ("workers.listen", place));
        for (key, place) in listens.chain([("health.listen", &health.listen)]) {
            if postgres.mode == PostgresMode::Managed && postgres.port.chosen && server.overlaps(place) {
                let message = format!("the port is that of {key} too");
                self.wrong("postgres.port", &message, Some("give each its own port"));
            }
        }
        for (at, place) in workers.listen.iter().enumerate() {
            if let Some(other) = workers.listen[..at].iter().find(|other| other.overlaps_beside(place)) {
                let message = format!("{place} and {other} are one place, which only one socket can have");
                self.wrong("workers.listen", &message, Some("leave one of them out"));
            }
        }
    }

    /// The status page: nobody beyond this machine sees it without a password.
    fn page(&mut self) {
        let health = &self.settings.health;
        let password = health.page_password.as_ref().map(|password| password.expose());
        if !health.has_page() {
            for key in ["health.page_password", "health.page_password_file", "health.page_hosts"] {
                if self.values.chosen(key) {
                    let why = "there is no page (health.page)";
                    self.notices.push(format!("{key} has no effect: {why}"));
                }
            }
            return;
        }
        let listen = &health.listen;
        match password {
            None if !health.is_loopback() => self.wrong(
                "health.page",
                &format!("whoever reaches {listen} would see the status page"),
                Some(
                    "set health.page_password_file, or let health.listen be a loopback address such as 127.0.0.1:8001",
                ),
            ),
            Some(password) if password.len() < PAGE_PASSWORD_MIN => self.wrong(
                "health.page_password",
                &format!("it has fewer than {PAGE_PASSWORD_MIN} characters"),
                Some("make a long one, such as with `openssl rand -base64 24`"),
            ),
            Some(_) | None => {}
        }
        for name in health.page_hosts.iter().filter(|name| !is_host(name)) {
            let help = "write the name alone, without port and path, such as \"status.example.org\"";
            self.wrong("health.page_hosts", &format!("{name:?} is no host name"), Some(help));
        }
    }

    fn socket_files(&mut self) {
        let workers = &self.settings.workers;
        let mut any = false;
        for place in &workers.listen {
            let Place::Unix(path) = place else { continue };
            any = true;
            let length = path.as_os_str().len();
            if length > SOCKET_PATH_MAX {
                let message = format!(
                    "{} has {length} bytes, and a unix socket's path at most {SOCKET_PATH_MAX}",
                    path.display()
                );
                self.wrong("workers.listen", &message, Some("choose a shorter one, such as unix:/run/app.sock"));
            }
        }
        for key in ["workers.socket_mode", "workers.socket_owner"] {
            if !any && self.values.chosen(key) {
                self.notices.push(format!("{key} has no effect: workers.listen names no unix socket"));
            }
        }
    }

    /// What `workers.command` can be given of all this.
    fn other_server(&mut self) {
        let workers = &self.settings.workers;
        let Some(command) = &workers.command else { return };
        let has = |word: &str| command.iter().any(|said| said.contains(word));
        match (workers.socket, &workers.listen[..]) {
            (WorkerSocket::Own, [Place::Unix(_)] | [_, _, ..]) => {
                let help = "with workers.socket = \"own\" give one address, or let the command inherit the sockets";
                self.wrong("workers.listen", "the command is told one address, {host} and {port}", Some(help));
            }
            (WorkerSocket::Inherited, [_, more @ ..]) => {
                let left = (2..more.len() + 2).find(|number| !has(&format!("{{fd{number}}}")));
                if let Some(number) = left {
                    let message = format!("the command would leave {} unserved", workers.listen[number - 1]);
                    let help = format!("name its socket in workers.command: {{fd{number}}}, beside {{fd}}");
                    self.wrong("workers.listen", &message, Some(&help));
                }
            }
            (WorkerSocket::Own, [_]) | (_, []) => {}
        }
        let file_of = |entry: &Origin| !matches!(entry, Origin::Environment(name) if name.starts_with("UVICORN_"));
        if self.values.entries(uvicorn::TABLE).any(|(_, entry)| file_of(&entry.origin)) {
            self.notices.push("[workers.uvicorn] has no effect: workers.command starts the workers".into());
        }
    }

    fn tls(&mut self) {
        let workers = &self.settings.workers;
        let Some(tls) = &workers.serving.tls else {
            for key in ["workers.tls_key", "workers.tls_ca", "workers.tls_client"] {
                // A certificate that cannot be read has been told already.
                if self.values.chosen(key) && !self.values.chosen("workers.tls_cert") {
                    self.wrong(
                        key,
                        "without workers.tls_cert nothing is served over TLS",
                        Some("name the certificate too"),
                    );
                }
            }
            return;
        };
        let (client, has_ca) = (tls.client, tls.ca.is_some());
        if client != TlsClient::Nothing && !has_ca {
            let help = "write the authority's certificate in workers.tls_ca";
            self.wrong(
                "workers.tls_client",
                "no authority is named, so no client's certificate could be good",
                Some(help),
            );
        } else if client == TlsClient::Nothing && has_ca {
            let help = "write tls_client = \"require\", or \"optional\"";
            self.wrong("workers.tls_ca", "clients are not asked for a certificate", Some(help));
        }
        if workers.command.is_some() && client == TlsClient::Require && matches!(workers.ready, Readiness::Http(_)) {
            let help =
                "let the server say READY=1 (workers.ready = \"notify\"), or leave the clients' certificates to it";
            self.wrong("workers.ready", "Tandem's own request has no client certificate to show", Some(help));
        }
    }

    fn uvicorn(&mut self) {
        for (written, entry) in self.values.entries(uvicorn::TABLE) {
            let name = uvicorn::name(written);
            if let Some(instead) = uvicorn::instead(&name) {
                let shown = entry.origin.name_of(&entry.key);
                let message = format!("{shown}: Uvicorn's {name} is not set here");
                self.problems.add_to(&entry.key, &entry.origin, message, Some(instead));
            }
        }
    }
}
