//! Commands of Python servers, and the keys that say the same. Pure.

use super::command::{base, is_python};
use crate::config::uvicorn::{self, Home};
use crate::scaffold::draft::string;

/// A server's command, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    pub program: String,
    /// `module:attribute`, where the command says it.
    pub app: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// Keys by table, as literals of TOML's.
    pub keys: Vec<(&'static str, String, String)>,
    /// What is different or has no key.
    pub notes: Vec<String>,
}

/// Options of Uvicorn's that take no value.
const SWITCHES: [&str; 9] = [
    "reload",
    "factory",
    "proxy_headers",
    "access_log",
    "server_header",
    "date_header",
    "use_colors",
    "reset_contextvars",
    "version",
];
/// And of gunicorn's.
const GUNICORN_SWITCHES: [&str; 9] = [
    "preload",
    "reload",
    "daemon",
    "D",
    "capture-output",
    "no-sendfile",
    "reuse-port",
    "proxy-protocol",
    "enable-stdio-inheritance",
];

/// Read the command of a server; `None` for any other program.
pub fn read(words: &[String]) -> Option<Server> {
    let (first, rest) = words.split_first()?;
    let mut server = Server { program: base(first).to_owned(), ..Server::default() };
    match server.program.clone().as_str() {
        "uvicorn" => server.uvicorn(rest),
        "gunicorn" => server.gunicorn(rest),
        "fastapi" if matches!(rest.first().map(String::as_str), Some("run" | "dev")) => server.fastapi(&rest[1..]),
        "uwsgi" => server.uwsgi(rest),
        "hypercorn" | "granian" | "daphne" => server.other(rest),
        name if is_python(name) || name == "manage.py" => {
            let at = rest.iter().position(|word| word == "runserver")?;
            server.program = "manage.py runserver".to_owned();
            if let Some(address) = rest.get(at + 1).filter(|word| !word.starts_with('-')) {
                server.bind(address);
            }
        }
        _ => return None,
    }
    Some(server)
}

/// Options with their values, and what stands alone.
fn options(words: &[String], is_switch: impl Fn(&str) -> bool) -> (Vec<(String, String)>, Vec<String>) {
    let (mut found, mut alone) = (Vec::new(), Vec::new());
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix('-').filter(|name| !name.is_empty()) else {
            alone.push(word.clone());
            continue;
        };
        let (long, name) = name.strip_prefix('-').map_or((false, name), |name| (true, name));
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None if !long && name.len() > 1 => (name[..1].to_owned(), Some(name[1..].to_owned())),
            None => (name.to_owned(), None),
        };
        let value = match value {
            Some(value) => value,
            None if is_switch(&name) => String::new(),
            None => words.next().cloned().unwrap_or_default(),
        };
        found.push((name, value));
    }
    (found, alone)
}

impl Server {
    fn set(&mut self, table: &'static str, key: &str, value: impl Into<String>) {
        self.keys.push((table, key.to_owned(), value.into()));
    }

    fn number(&mut self, table: &'static str, key: &str, value: &str) {
        match value.parse::<u64>() {
            Ok(number) => self.set(table, key, number.to_string()),
            Err(_) => self.notes.push(format!("{value:?} is no number: {table}.{key} is left out")),
        }
    }

    /// `HOST:PORT`, `:PORT`, a port or a host alone.
    fn bind(&mut self, address: &str) {
        let (host, port) = address.rsplit_once(':').unwrap_or_else(|| {
            if address.bytes().all(|byte| byte.is_ascii_digit()) { ("", address) } else { (address, "") }
        });
        self.port = port.parse().ok().or(self.port);
        if !host.is_empty() {
            self.host = Some(host.to_owned());
        }
    }

    fn uvicorn(&mut self, words: &[String]) {
        let is_switch = |name: &str| {
            let name = uvicorn::name(name);
            SWITCHES.contains(&name.strip_prefix("no_").unwrap_or(&name))
        };
        let (options, alone) = options(words, is_switch);
        self.app = alone.into_iter().next();
        for (written, value) in options {
            let name = uvicorn::name(&written);
            let (name, on) = match name.strip_prefix("no_") {
                Some(name) => (name.to_owned(), false),
                None => (name, true),
            };
            self.option(&name, &value, on);
        }
    }

    /// An option that `uvicorn` knows.
    fn option(&mut self, name: &str, value: &str, on: bool) {
        let text = || string(value);
        match name {
            "host" => self.host = Some(value.to_owned()),
            "port" => self.port = value.parse().ok(),
            "uds" => self.set("workers", "listen", string(&format!("unix:{value}"))),
            "workers" => self.number("workers", "count", value),
            "backlog" => self.number("workers", "backlog", value),
            "limit_max_requests" => self.number("workers", "max_requests", value),
            "limit_max_requests_jitter" => self.number("workers", "max_requests_jitter", value),
            "timeout_graceful_shutdown" => self.set("stop", "grace", string(&format!("{value}s"))),
            "timeout_worker_healthcheck" => self.set("workers", "watchdog", string(&format!("{value}s"))),
            "loop" => self.set("workers", "event_loop", text()),
            "lifespan" | "interface" | "app_dir" => self.set("workers", name, text()),
            "factory" | "access_log" => self.set("workers", name, on.to_string()),
            "ssl_keyfile" | "ssl_certfile" | "ssl_ca_certs" => {
                let key = ["tls_key", "tls_cert", "tls_ca"]
                    [["ssl_keyfile", "ssl_certfile", "ssl_ca_certs"].iter().position(|it| *it == name).unwrap_or(0)];
                self.notes
                    .push(format!("{} {value}: write workers.{key}, with a path of this machine", uvicorn::flag(name)));
            }
            _ => match uvicorn::home(name) {
                Some(Home::Table) if SWITCHES.contains(&name) => self.set("workers.uvicorn", name, on.to_string()),
                Some(Home::Table) if value.parse::<u64>().is_ok() => self.set("workers.uvicorn", name, value),
                Some(Home::Table) if name == "headers" => {
                    let header = format!("[{}]", string(&value.replacen(':', ": ", 1)));
                    self.set("workers.uvicorn", name, header);
                }
                Some(Home::Table) => self.set("workers.uvicorn", name, text()),
                Some(_) => {
                    let instead = uvicorn::instead(name).unwrap_or_default();
                    self.notes.push(format!("{}: {instead}", uvicorn::flag(name)));
                }
                None => self.notes.push(format!("--{name} is no option of Uvicorn's that Tandem knows")),
            },
        }
    }

    fn gunicorn(&mut self, words: &[String]) {
        let (options, alone) = options(words, |name| GUNICORN_SWITCHES.contains(&name));
        let mut class = "sync".to_owned();
        for (name, value) in options {
            match name.as_str() {
                "w" | "workers" => self.number("workers", "count", &value),
                "b" | "bind" => match value.strip_prefix("unix:") {
                    Some(path) => self.set("workers", "listen", string(&format!("unix:{path}"))),
                    None => self.bind(&value),
                },
                "k" | "worker-class" => class = value,
                "max-requests" => self.number("workers", "max_requests", &value),
                "max-requests-jitter" => self.number("workers", "max_requests_jitter", &value),
                "graceful-timeout" => self.set("stop", "grace", string(&format!("{value}s"))),
                "keep-alive" => self.number("workers.uvicorn", "timeout_keep_alive", &value),
                "forwarded-allow-ips" => self.set("workers.uvicorn", "forwarded_allow_ips", string(&value)),
                "root-path" => self.set("workers.uvicorn", "root_path", string(&value)),
                "preload" => self.set("workers", "preload", "true"),
                "access-logfile" => self.set("workers", "access_log", "true"),
                "log-level" => self.set("workers.uvicorn", "log_level", string(&value)),
                "chdir" => self.set("workers", "app_dir", string(&value)),
                "backlog" => self.number("workers", "backlog", &value),
                "t" | "timeout" => self.notes.push(format!(
                    "--timeout {value}: workers.watchdog replaces a worker whose event loop is silent; a single slow request ends none"
                )),
                "c" | "config" => self.notes.push(format!("--config {value}: its settings were not read; write them as keys")),
                "reload" => self.notes.push("--reload: `tandem up --reload`".to_owned()),
                other => self.notes.push(format!("gunicorn's --{other} has no equal")),
            }
        }
        self.app =
            alone.into_iter().next().map(|app| if app.contains(':') { app } else { format!("{app}:application") });
        if !class.contains("uvicorn") {
            let wsgi = self.app.as_ref().and_then(|app| app.strip_suffix(".wsgi:application").map(str::to_owned));
            match wsgi {
                Some(project) => {
                    self.notes.push("it served WSGI; Tandem serves the ASGI entry beside it".to_owned());
                    self.app = Some(format!("{project}.asgi:application"));
                }
                None => {
                    self.notes.push(format!("--worker-class {class} serves WSGI: workers.interface = \"wsgi\" does"));
                    self.set("workers", "interface", string("wsgi"));
                }
            }
        }
    }

    fn fastapi(&mut self, words: &[String]) {
        let (options, alone) =
            options(words, |name| ["reload", "no-reload", "proxy-headers", "no-proxy-headers"].contains(&name));
        let mut attribute = None;
        for (name, value) in options {
            match name.as_str() {
                "app" => attribute = Some(value),
                "host" | "port" | "workers" | "root-path" => self.option(&uvicorn::name(&name), &value, true),
                "proxy-headers" => self.option("proxy_headers", "", true),
                "reload" | "no-reload" => self.notes.push("--reload: `tandem up --reload`".to_owned()),
                other => self.notes.push(format!("fastapi's --{other} has no equal")),
            }
        }
        let module = alone.first().and_then(|path| path.strip_suffix(".py"));
        let module = module.map(|path| path.trim_start_matches("./").replace('/', "."));
        self.app = module.map(|module| format!("{module}:{}", attribute.as_deref().unwrap_or("app")));
        if self.app.is_some() && attribute.is_none() {
            self.notes.push("fastapi looks for the application's name by itself; `app` is the usual one".to_owned());
        }
    }

    fn uwsgi(&mut self, words: &[String]) {
        let (options, _) = options(words, |name| ["master", "M", "enable-threads", "die-on-term"].contains(&name));
        for (name, value) in options {
            match name.as_str() {
                "http" | "http-socket" => self.bind(&value),
                "w" | "wsgi" | "module" => self.app = Some(value),
                "p" | "processes" | "workers" => self.number("workers", "count", &value),
                _ => {}
            }
        }
        self.notes.push("uWSGI's other settings were not read; Tandem serves with Uvicorn".to_owned());
        if self.app.is_some() {
            self.set("workers", "interface", string("wsgi"));
        }
    }

    fn other(&mut self, words: &[String]) {
        let (options, alone) =
            options(words, |name| ["reload", "debug", "access-log", "no-access-log"].contains(&name));
        self.app = alone.into_iter().next();
        for (name, value) in options {
            match name.as_str() {
                "b" | "bind" => self.bind(&value),
                "host" => self.host = Some(value),
                "p" | "port" => self.port = value.parse().ok(),
                "w" | "workers" => self.number("workers", "count", &value),
                other => self.notes.push(format!("{}'s --{other} is left out", self.program)),
            }
        }
        let (program, app) = (&self.program, self.app.as_deref().unwrap_or("APP"));
        self.notes.push(format!(
            "Tandem serves with Uvicorn; `workers.command = [\"{program}\", …, \"{app}\"]` keeps {program} (docs: Workers)"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &str) -> Server {
        read(&shlex::split(command).unwrap()).unwrap()
    }

    fn keys(server: &Server) -> String {
        server.keys.iter().map(|(table, key, value)| format!("{table}.{key}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_servers_command_becomes_keys() {
        for (command, app, host, port, expected) in [
            (
                "uvicorn main:app --host 0.0.0.0 --port 80 --workers 4 --proxy-headers --no-access-log --root-path=/api",
                "main:app",
                "0.0.0.0",
                80,
                "workers.count=4 workers.uvicorn.proxy_headers=true workers.access_log=false workers.uvicorn.root_path=\"/api\"",
            ),
            (
                "gunicorn -k uvicorn.workers.UvicornWorker -w4 -b :9000 --max-requests 1000 --preload app.main:app",
                "app.main:app",
                "-",
                9000,
                "workers.count=4 workers.max_requests=1000 workers.preload=true",
            ),
            ("gunicorn shop.wsgi --bind 0.0.0.0:8000", "shop.asgi:application", "0.0.0.0", 8000, ""),
            ("gunicorn flaskapp:app", "flaskapp:app", "-", 0, "workers.interface=\"wsgi\""),
            ("fastapi run app/main.py --port 80", "app.main:app", "-", 80, ""),
            ("hypercorn main:app --bind 0.0.0.0:8000", "main:app", "0.0.0.0", 8000, ""),
            ("python manage.py runserver 0.0.0.0:8000", "-", "0.0.0.0", 8000, ""),
            (
                "uwsgi --http :8000 --module shop.wsgi:application",
                "shop.wsgi:application",
                "-",
                8000,
                "workers.interface=\"wsgi\"",
            ),
            (
                "uvicorn --factory shop:make --timeout-graceful-shutdown 20",
                "shop:make",
                "-",
                0,
                "workers.factory=true stop.grace=\"20s\"",
            ),
        ] {
            let server = of(command);
            assert_eq!(server.app.as_deref().unwrap_or("-"), app, "{command}");
            assert_eq!((server.host.as_deref().unwrap_or("-"), server.port.unwrap_or(0)), (host, port), "{command}");
            assert_eq!(keys(&server), expected, "{command}");
        }
        assert!(read(&["celery".to_owned()]).is_none());
    }

    #[test]
    fn what_has_no_key_is_told() {
        assert!(of("uvicorn main:app --reload").notes[0].contains("tandem up --reload"));
        assert!(of("uvicorn main:app --ssl-keyfile /k").notes[0].contains("workers.tls_key"));
        assert!(of("uvicorn main:app --nonsense 1").notes[0].contains("nonsense"));
        assert!(of("gunicorn -c conf.py -k uvicorn.workers.UvicornWorker a:b").notes[0].contains("not read"));
    }
}
