//! Which PostgreSQL server is used and how to log in: `postgres.mode`, `DATABASE_URL` and the password of all layers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use super::PostgresMode;
use super::layers::{Entry, Merged};
use super::problem::{Origin, Problems};
use super::value::Raw;
use super::{Source, compose, keys, own, text};
use crate::plan::{DatabaseUrl, Secret, libpq};

/// The result.
pub struct Database {
    pub mode: PostgresMode,
    /// The server to attach to.
    pub url: Option<DatabaseUrl>,
    /// The scheme that the URL was written with, its server used or not.
    pub scheme: Option<String>,
    /// What to do where the server's name does not resolve; `None` for an address.
    pub unresolved_help: Option<String>,
}

const MANAGED: Database = Database { mode: PostgresMode::Managed, url: None, scheme: None, unresolved_help: None };

/// The rank of the parts of the URL of an attached server: they win over user and password from anywhere else.
const RANK_ATTACHED: u8 = u8::MAX;

/// Settle mode, user, password and database; the winners are left in `merged`.
pub fn settle(
    merged: &mut Merged,
    place: (&Source, &Path),
    problems: &mut Problems,
    notices: &mut Vec<String>,
) -> Database {
    let mode = merged.get("postgres.mode").cloned();
    let word = mode.as_ref().map_or("auto", |entry| entry.raw.as_text().unwrap_or_default());
    let mut database = match (word, merged.get("postgres.url").cloned()) {
        ("attach", None) => {
            let origin = mode.map_or(Origin::Default, |entry| entry.origin);
            let help = "write postgres.url = \"postgresql://user:password@host:5432/database\", or set DATABASE_URL";
            let message = "postgres.mode is \"attach\", but nothing says where";
            problems.add_to("postgres.mode", &origin, message, Some(help.into()));
            MANAGED
        }
        (_, None) => MANAGED,
        (word, Some(entry)) => with_url(word, &entry, (merged, place), problems, notices),
    };
    password("postgres.password", merged, problems, notices);
    password("health.page_password", merged, problems, notices);
    if let (Some(url), Some(entry)) = (&mut database.url, merged.get("postgres.url").cloned()) {
        complete(url, &entry, merged);
    }
    database
}

fn with_url(
    mode: &str,
    entry: &Entry,
    (merged, place): (&mut Merged, (&Source, &Path)),
    problems: &mut Problems,
    notices: &mut Vec<String>,
) -> Database {
    let name = entry.origin.name_of("postgres.url");
    let Some(text) = entry.raw.as_text() else { return MANAGED };
    let url = match DatabaseUrl::parse(text) {
        Ok(url) => url,
        Err(error) => {
            let message = format!("{name} cannot be used: {error}");
            problems.add_to(&entry.key, &entry.origin, message, Some(error.help().to_owned()));
            return MANAGED;
        }
    };
    match mode {
        "managed" => {
            spread(&url, entry, entry.rank, merged, notices);
            let server = format!("{}:{}", url.host, url.port);
            notices.push(format!(
                "postgres.mode is \"managed\": user, password and database are those of {name} ({}), its server {server} \
                 is ignored",
                entry.origin.place()
            ));
            Database { scheme: Some(url.scheme), ..MANAGED }
        }
        "auto" if compose::is_composes((&url, entry), merged, place, own::has_cluster(merged, place.1)) => {
            spread(&url, entry, entry.rank, merged, notices);
            notices.push(format!(
                "{name} ({}) names the server {}, which does not resolve here and is taken for Docker Compose's: Tandem runs \
                 PostgreSQL itself, with the user, password and database of that line (postgres.mode = \"managed\" says so \
                 without a look-up, \"attach\" waits for that server)",
                entry.origin.place(),
                url.host
            ));
            Database { scheme: Some(url.scheme), ..MANAGED }
        }
        "auto" | "attach" => {
            if mode == "auto" {
                notices.push(format!(
                    "{name} ({}) names the server {}:{}: Tandem attaches to it and starts no PostgreSQL of its own \
                     (postgres.mode = \"managed\" starts one)",
                    entry.origin.place(),
                    url.host,
                    url.port
                ));
            }
            spread(&url, entry, RANK_ATTACHED, merged, notices);
            let (scheme, unresolved_help) = (Some(url.scheme.clone()), unresolved_help(&url, entry));
            Database { mode: PostgresMode::Attach, scheme, unresolved_help, url: Some(url) }
        }
        // A mistyped mode is told where keys are read; guessing on would only add noise.
        _ => MANAGED,
    }
}

/// Advice for the case that the host name in `url` does not resolve. It is not looked up here: a resolver may block for a
/// long time, and a name that does not resolve now may resolve a minute later.
fn unresolved_help(url: &DatabaseUrl, entry: &Entry) -> Option<String> {
    let plain = url.host.starts_with('/') || url.host == "localhost" || url.host.parse::<IpAddr>().is_ok();
    if plain {
        return None;
    }
    let name = entry.origin.name_of("postgres.url");
    if url.host.contains('.') {
        return Some(format!(
            "correct the host in {name} ({}), or see to it that its name resolves",
            entry.origin.place()
        ));
    }
    let help = match &entry.origin {
        Origin::Environment(_) => format!("unset {name}"),
        Origin::Flag(_) => format!("leave {name} out"),
        Origin::Default | Origin::Found(_) | Origin::Line { .. } => {
            format!("delete the line {name} ({})", entry.origin.place())
        }
    };
    Some(format!(
        "a name without a dot is usually a Docker Compose service, which only resolves inside Compose's network. {help}: \
         Tandem runs PostgreSQL itself and gives the workers their DATABASE_URL; or set postgres.mode = \"managed\" \
         ({}=managed) to take user, password and database from it and ignore its server; or name a server that this \
         machine can reach",
        keys::variable("postgres.mode")
    ))
}

/// Let the parts of `url` compete as if each had been written by itself.
fn spread(url: &DatabaseUrl, entry: &Entry, rank: u8, merged: &mut Merged, notices: &mut Vec<String>) {
    let password = url.password.as_ref().map(Secret::expose).unwrap_or_default();
    let port = url.port.to_string();
    let attached = rank == RANK_ATTACHED;
    let parts = [
        ("postgres.user", url.user.as_str()),
        ("postgres.password", password),
        ("postgres.database", url.database.as_str()),
        ("postgres.port", if attached { port.as_str() } else { "" }),
    ];
    for (key, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
        let raw = Raw::Word(value.to_owned());
        merged.add(Entry { key: key.to_owned(), raw, rank, ..entry.clone() }, notices);
    }
}

/// Fill in what the URL leaves out.
fn complete(url: &mut DatabaseUrl, entry: &Entry, merged: &mut Merged) {
    let text = |key: &str| merged.get(key).and_then(|entry| entry.raw.as_text()).map(str::to_owned);
    if url.user.is_empty() {
        url.user = text("postgres.user").unwrap_or_else(|| "app".into());
    }
    if url.database.is_empty() {
        url.database = text("postgres.database").unwrap_or_else(|| url.user.clone());
    }
    url.password = url.password.take().or_else(|| text("postgres.password").map(Secret::new));
    // The other rooms read user and database from their own keys.
    for (key, value) in [("postgres.user", &url.user), ("postgres.database", &url.database)] {
        let raw = Raw::Word(value.clone());
        merged.0.entry(key.to_owned()).or_insert_with(|| Entry { key: key.to_owned(), raw, ..entry.clone() });
    }
}

/// Write into the URL of a server that is attached to what the environment or `[workers.env]` says of a safe connection
/// (PGSSLMODE and so on), so that Tandem's own sessions and its tools connect as the workers do.
pub fn secure(url: &mut DatabaseUrl, merged: &Merged, environment: &BTreeMap<String, String>, problems: &mut Problems) {
    for (name, key) in libpq::IN_QUERY {
        let said = || merged.get(&format!("workers.env.{name}"))?.raw.to_plain();
        let Some(value) = environment.get(name).cloned().or_else(said).filter(|value| !value.is_empty()) else {
            continue;
        };
        if url.parameter(key).is_some() {
            continue;
        }
        if let Err(error) = url.add(key, value) {
            let origin = Origin::Environment(name.to_owned());
            problems.add(&origin, format!("{name}: {error}"), Some(error.help().to_owned()));
        }
    }
}

/// Let the password `key` and the key of the file that may hold it compete, and read the file if it wins.
fn password(key: &str, merged: &mut Merged, problems: &mut Problems, notices: &mut Vec<String>) {
    let file_key = format!("{key}_file");
    let Some(file) = merged.get(&file_key).cloned() else { return };
    if let Some(plain) = merged.get(key) {
        let name = plain.origin.name_of(key).to_owned();
        let file_name = file.origin.name_of(&file_key);
        if plain.rank / 4 == file.rank / 4 {
            let message = format!("{name} ({}) and {file_name} both give the password", plain.origin.place());
            return problems.add_to(&file.key, &file.origin, message, Some("keep one of them".into()));
        }
        let (winner, loser) = if plain.rank > file.rank { (&name[..], file_name) } else { (file_name, &name[..]) };
        notices.push(format!("{winner} and {loser} both give the password: {winner} wins"));
        if plain.rank > file.rank {
            return;
        }
    }
    let Some(path) = file.raw.as_text().map(|path| file.base.join(path)) else { return };
    match text::read(&path) {
        Ok(text) => {
            // Editors and `echo` end a file with a newline that nobody means.
            let raw = Raw::Word(text.trim_end_matches(['\n', '\r']).to_owned());
            merged.0.insert(key.to_owned(), Entry { key: key.to_owned(), raw, ..file });
        }
        Err(error) => {
            let name = file.origin.name_of(&file_key);
            problems.add_to(&file.key, &file.origin, format!("{name}: cannot read {}: {error}", path.display()), None);
        }
    }
}
