//! Variables that would lead the tests to the project's own live database, found before anything of theirs runs.
//!
//! The watch over the live server ([`super::guard`]) ends what it sees; a session of a few milliseconds has done its work by
//! then. An application that takes its address from DB_HOST and DB_PORT is therefore refused while these name the live server.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::config::Settings;
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;
use crate::postgres::home::Home;
use crate::postgres::server;
use crate::postgres::settings::client_address;
use crate::workers::surroundings::Surroundings;

/// How long a server of this machine may take to let a connection in.
const CONNECT_LIMIT: Duration = Duration::from_millis(200);

/// Refuse where a variable of the tests, or of their migrations, holds the address of the project's live server; `python` is
/// their interpreter, `other` the server elsewhere that the project attaches to.
///
/// # Errors
/// [`Code::Config`] with the variables, and what to write.
pub fn refuse(settings: &Settings, python: &Path, other: Option<&DatabaseUrl>) -> anyhow::Result<()> {
    let live = match other {
        Some(url) => Some((url.host.clone(), url.port)),
        None => live(settings)?.map(|address| (address.ip().to_string(), address.port())),
    };
    let Some((host, port)) = live else { return Ok(()) };
    // Its port is none that a server has: what holds the live one does not come from here.
    let url = DatabaseUrl {
        scheme: "postgresql".into(),
        user: settings.postgres.user.clone(),
        password: None,
        host: "127.0.0.1".into(),
        port: 0,
        database: settings.postgres.database.clone(),
        parameters: Vec::new(),
    };
    let around = Surroundings { settings, url: &url, python, identity: None, of_tests: true };
    let mut all = settings.inherited.0.clone();
    // The tests get neither of these.
    all.retain(|name, _| !name.starts_with("TANDEM_") && !settings.workers.drop_env.matches(name));
    all.extend(around.variables("leads").values());
    // Another server's port is often the usual one, which says nothing without its host.
    if other.is_some() && !all.values().any(|value| names(value, &host)) {
        return Ok(());
    }
    let leads: Vec<&str> = all.iter().filter(|(_, value)| holds(value, port)).map(|(name, _)| name.as_str()).collect();
    let Some(first) = leads.first() else { return Ok(()) };
    let text = format!(
        "{} would lead the tests to this project's own live database (port {port}), which they could empty: write {first} = \
         \"${{PGPORT}}\" in [workers.env], and its host, user, password and database with ${{PGHOST}}, ${{PGUSER}}, ${{PGPASSWORD}} \
         and ${{PGDATABASE}}; or take it away for the tests ({first}= tandem test ...)",
        leads.join(", ")
    );
    Err(Failure::new(Code::Config, text).into())
}

/// Where the project's own server answers, if it does.
fn live(settings: &Settings) -> anyhow::Result<Option<SocketAddr>> {
    let home = Home::resolve(settings)?;
    // Where another user runs it, only the configuration tells.
    let port = server::own_running_port(&home).unwrap_or(settings.postgres.port.number);
    let address = SocketAddr::from((client_address(settings.postgres.listen), port));
    Ok(TcpStream::connect_timeout(&address, CONNECT_LIMIT).is_ok().then_some(address))
}

/// Whether `value` is `port`, or an address that ends in it.
fn holds(value: &str, port: u16) -> bool {
    let value = value.trim().trim_matches(['"', '\'']);
    let text = port.to_string();
    value == text
        || value.split_once(&format!(":{text}")).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('/'))
}

/// Whether `value` is `host`, by itself or in an address.
fn names(value: &str, host: &str) -> bool {
    let same = |word: &str| word.eq_ignore_ascii_case(host);
    value.split(|letter: char| "/@:, ;\"'".contains(letter)).any(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_told_by_its_port_and_its_host() {
        for value in ["5433", " 5433", "'5433'", "localhost:5433", "tcp://db:5433/app", "db:5433"] {
            assert!(holds(value, 5433), "{value}");
        }
        for value in ["", "15433", "54330", "localhost:54331", "a5433", "5433 items"] {
            assert!(!holds(value, 5433), "{value}");
        }
        assert!(names("DB.example.org", "db.example.org") && names("db:5432", "db") && !names("mydb", "db"));
    }
}
