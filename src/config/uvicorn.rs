//! Every option of `uvicorn --help`, and what it is called here. A test writes `docs/uvicorn.md` from it, and fails when an
//! installed Uvicorn has an option that is not in this list.

use super::keys;

/// The table whose entries Uvicorn gets.
pub const TABLE: &str = "workers.uvicorn";

/// Where an option of Uvicorn's has its home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// `[workers.uvicorn]`: it is handed to Uvicorn.
    Table,
    /// Keys of Tandem's, the first of which is the one to write; and what is different.
    Keys(&'static [&'static str], &'static str),
    /// None, and why.
    Nowhere(&'static str),
}

use Home::{Keys, Nowhere, Table};

/// All options from Uvicorn 0.22 to 0.54, by the names that `uvicorn.Config` has for them.
pub const OPTIONS: &[(&str, Home)] = &[
    ("app", Keys(&["workers.app"], "")),
    ("host", Keys(&["workers.listen"], "Tandem opens the socket")),
    ("port", Keys(&["workers.listen"], "Tandem opens the socket")),
    (
        "uds",
        Keys(&["workers.listen"], "`\"unix:/run/app.sock\"`, with `workers.socket_mode` and `workers.socket_owner`"),
    ),
    ("fd", Keys(&["workers.listen"], "systemd hands sockets down by itself (`LISTEN_FDS`)")),
    ("reload", Nowhere("`tandem up --reload` rolls the workers whenever a file is saved")),
    ("reload_dirs", Keys(&["workers.reload_dirs"], "beside `workers.app_dir`")),
    ("reload_includes", Keys(&["workers.reload_include"], "")),
    ("reload_excludes", Keys(&["workers.reload_include"], "as `\"!glob\"`")),
    ("reload_delay", Nowhere("Tandem waits until saves have come to rest")),
    ("workers", Keys(&["workers.count"], "`WEB_CONCURRENCY` counts too")),
    ("loop", Keys(&["workers.event_loop"], "")),
    ("http", Table),
    ("http2", Nowhere("what lets a reload fail no request knows HTTP/1.1; a proxy in front speaks HTTP/2")),
    ("ws", Table),
    ("ws_max_size", Table),
    ("ws_max_queue", Table),
    ("ws_ping_interval", Table),
    ("ws_ping_timeout", Table),
    ("ws_per_message_deflate", Table),
    ("lifespan", Keys(&["workers.lifespan"], "")),
    ("interface", Keys(&["workers.interface"], "")),
    ("env_file", Nowhere("`.env` in the project directory is read, and `[workers.env]`")),
    ("log_config", Table),
    ("log_level", Table),
    ("access_log", Keys(&["workers.access_log"], "")),
    ("use_colors", Table),
    ("proxy_headers", Table),
    ("server_header", Table),
    ("date_header", Table),
    ("forwarded_allow_ips", Table),
    ("root_path", Table),
    ("limit_concurrency", Table),
    ("backlog", Keys(&["workers.backlog"], "")),
    ("limit_max_requests", Keys(&["workers.max_requests"], "the worker is replaced, not only ended")),
    ("limit_max_requests_jitter", Keys(&["workers.max_requests_jitter"], "")),
    ("timeout_keep_alive", Table),
    ("timeout_graceful_shutdown", Keys(&["stop.grace", "workers.drain_busy"], "")),
    ("timeout_worker_healthcheck", Keys(&["workers.watchdog"], "")),
    ("ssl_keyfile", Keys(&["workers.tls_key"], "")),
    ("ssl_certfile", Keys(&["workers.tls_cert"], "")),
    (
        "ssl_keyfile_password",
        Nowhere("a password beside its key protects nothing; `openssl pkey` writes the key without one"),
    ),
    ("ssl_version", Nowhere("Python's default: TLS 1.2 and 1.3")),
    ("ssl_cert_reqs", Keys(&["workers.tls_client"], "`\"require\"` is 2, `\"optional\"` 1")),
    ("ssl_ca_certs", Keys(&["workers.tls_ca"], "")),
    ("ssl_ciphers", Table),
    ("headers", Table),
    ("version", Nowhere("it is no setting")),
    ("app_dir", Keys(&["workers.app_dir"], "")),
    ("h11_max_incomplete_event_size", Table),
    ("reset_contextvars", Table),
    ("factory", Keys(&["workers.factory"], "`\"auto\"` finds one by itself")),
];

/// Where the option `name` has its home; `None` for one that is not in the list.
pub fn home(name: &str) -> Option<Home> {
    OPTIONS.iter().find(|(known, _)| *known == name).map(|(_, home)| *home)
}

/// The name that `uvicorn.Config` has for what was `written`, perhaps as the command line has it.
pub fn name(written: &str) -> String {
    let name = written.trim_start_matches("--").replace('-', "_");
    match name.as_str() {
        "header" | "reload_dir" | "reload_include" | "reload_exclude" => format!("{name}s"),
        _ => name,
    }
}

/// The header that `written` gives: `[workers.uvicorn.headers]` has one a line.
pub fn header(written: &str) -> Option<&str> {
    written.strip_prefix("headers.")
}

/// The option's name on Uvicorn's command line.
pub fn flag(name: &str) -> String {
    let singular = ["headers", "reload_dirs", "reload_includes", "reload_excludes"].contains(&name);
    let name = if singular { name.trim_end_matches('s') } else { name };
    format!("--{}", name.replace('_', "-"))
}

/// What to write in place of an option that Uvicorn does not get from here; `None` where it gets it.
pub fn instead(name: &str) -> Option<String> {
    match home(name)? {
        Table => None,
        Keys(keys, "") => Some(format!("write {}", keys.join(" and "))),
        Keys(keys, note) => Some(format!("write {}: {}", keys.join(" and "), note.replace('`', ""))),
        Nowhere(reason) => Some(reason.replace('`', "")),
    }
}

/// What the variable `UVICORN_...` that stands for the option `name` comes to, where Tandem does not take it.
pub fn without_effect(variable: &str, name: &str) -> String {
    let set = |key: &str| format!("{variable} has no effect on Tandem: set {} ({key})", keys::variable(key));
    match home(name) {
        Some(Keys([key, ..], _)) => set(key),
        Some(Table) => set(&format!("{TABLE}.{name}")),
        Some(Keys([], reason) | Nowhere(reason)) => {
            format!("{variable} has no effect on Tandem: {}", reason.replace('`', ""))
        }
        None => format!("{variable} has no effect: it is no option of Uvicorn's that Tandem knows"),
    }
}

/// The page about all of them.
pub fn page() -> String {
    let mut page = String::from(
        "# Uvicorn's options\n\nWhat `uvicorn` takes on its command line, and where it is written for Tandem. Options in \
         `[workers.uvicorn]` are checked\nagainst the Uvicorn that is installed, by `tandem check`, at the start and before a \
         reload, and handed to it as they are:\n\n```toml\n[workers.uvicorn]\nroot_path = \"/api\"\ntimeout_keep_alive = 75\n\
         headers = [\"X-Frame-Options: DENY\"]\n```\n\n`UVICORN_ROOT_PATH=/api` in the environment is taken as Uvicorn takes it; \
         what stands in the file wins. A variable for an\noption that is not handed on is named in a notice.\n\n\
         | `uvicorn` | Tandem |\n|---|---|\n",
    );
    for (name, home) in OPTIONS {
        let flag = if *name == "app" { "APP".to_owned() } else { flag(name) };
        let place = match home {
            Table => format!("`workers.uvicorn.{name}`"),
            Keys(keys, note) => {
                let keys = keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                if note.is_empty() { keys } else { format!("{keys}: {note}") }
            }
            Nowhere(reason) => format!("none: {reason}"),
        };
        page.push_str(&format!("| `{flag}` | {place} |\n"));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_about_uvicorns_options_is_written_from_the_list() {
        expect_test::expect_file!["../../docs/uvicorn.md"].assert_eq(&page());
    }

    #[test]
    fn every_key_that_is_named_is_one() {
        for (name, home) in OPTIONS {
            let Keys(keys, _) = home else { continue };
            assert!(keys.iter().all(|key| keys::find(key).is_some()), "{name}: {keys:?}");
        }
    }

    #[test]
    fn names_are_taken_as_either_side_writes_them() {
        for (written, meant) in
            [("root_path", "root_path"), ("timeout-keep-alive", "timeout_keep_alive"), ("--header", "headers")]
        {
            assert_eq!(name(written), meant);
        }
        assert_eq!((flag("headers").as_str(), flag("ws").as_str()), ("--header", "--ws"));
    }
}
