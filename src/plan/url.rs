//! Secrets and database URLs. Pure.
//!
//! A URL is read once, in `parse`; whatever else needs a part of it takes the field. Nothing reads the text again.

mod parse;

use std::fmt::{self, Write as _};

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

pub use parse::InvalidUrl;

/// What may stand unencoded in a URL's user, password and database (RFC 3986, section 2.3, unreserved).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// What may not stand unencoded in a query. `+` is a plus to libpq and a space to Python, so it never stands for itself;
/// the rest stays readable, and free of `%`, which Alembic's configuration chokes on.
const QUERY_ENCODED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'&').add(b'+').add(b'<').add(b'>').add(b'?').add(b'\'');
/// The same for libpq, which takes no second `=` in a parameter. SQLAlchemy alone reads a scheme that names a driver.
const LIBPQ_QUERY_ENCODED: &AsciiSet = &QUERY_ENCODED.add(b'=');

/// What libpq 16 takes in a URL's query (PostgreSQL documentation, "Parameter Key Words") beside the parts that
/// [`DatabaseUrl`] has fields for, and the variable that says the same, where there is one.
const LIBPQ: [(&str, Option<&str>); 33] = [
    ("application_name", None),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("client_encoding", Some("PGCLIENTENCODING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("fallback_application_name", None),
    ("gssdelegation", None),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("gsslib", Some("PGGSSLIB")),
    ("keepalives", None),
    ("keepalives_count", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("krbsrvname", Some("PGKRBSRVNAME")),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("options", Some("PGOPTIONS")),
    ("replication", None),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("requirepeer", Some("PGREQUIREPEER")),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslcertmode", Some("PGSSLCERTMODE")),
    ("sslcompression", Some("PGSSLCOMPRESSION")),
    ("sslcrl", Some("PGSSLCRL")),
    ("sslcrldir", Some("PGSSLCRLDIR")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", None),
    ("sslpassword", None),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslsni", Some("PGSSLSNI")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("tcp_user_timeout", None),
];

/// A value that no log, error or `Debug` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("********")
    }
}

/// Where a database is and how to get in. `Display` and `Debug` hide the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    pub scheme: String,
    pub user: String,
    pub password: Option<Secret>,
    /// A name, an address without brackets, or the directory of a unix socket.
    pub host: String,
    pub port: u16,
    pub database: String,
    /// What else the query says, decoded, under libpq's names where libpq has one.
    pub parameters: Vec<(String, String)>,
}

impl DatabaseUrl {
    /// The same place under another scheme, such as `postgresql+psycopg2`. What only the old driver knows stays behind.
    pub fn with_scheme(&self, scheme: &str) -> Self {
        let mut url = Self { scheme: scheme.to_owned(), ..self.clone() };
        if is_asyncpg(&self.scheme) && !is_asyncpg(scheme) {
            url.parameters.retain(|(name, _)| is_libpq(name));
        }
        url
    }

    /// Whether the scheme names the driver, as SQLAlchemy's `postgresql+psycopg2` does.
    pub fn names_driver(&self) -> bool {
        self.scheme.contains('+')
    }

    /// The value of one parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Say `name` in the query, which does not say it yet.
    ///
    /// # Errors
    /// `value` is none that `name` can have.
    pub fn add(&mut self, name: &str, value: String) -> Result<(), InvalidUrl> {
        let value = if name == "sslmode" { parse::ssl_mode(name, value)? } else { value };
        self.parameters.push((name.to_owned(), value));
        Ok(())
    }

    /// libpq's variables that say what the parameters say, for programs that are not handed the URL
    /// (PostgreSQL documentation, "Environment Variables").
    pub fn variables(&self) -> Vec<(&'static str, &str)> {
        let variables = LIBPQ.iter().filter_map(|&(name, variable)| Some((variable?, self.parameter(name)?)));
        variables.collect()
    }

    /// The settings of the session that the parameter `options` asks for, as in `-c search_path=app`.
    pub fn session_settings(&self) -> Vec<(String, String)> {
        self.parameter("options").map(session_settings).unwrap_or_default()
    }

    /// The same place, with `name` = `value` for its sessions beside the settings that the URL asks for.
    pub fn with_session_setting(&self, name: &str, value: &str) -> Self {
        let mut url = self.clone();
        let setting = format!("-c {name}={value}");
        match url.parameters.iter_mut().find(|(known, _)| known == "options") {
            // Of two settings of one name the server takes the second.
            Some((_, options)) => *options = format!("{options} {setting}"),
            None => url.parameters.push(("options".to_owned(), setting)),
        }
        url
    }

    /// The URL with its password, percent-encoded where it must be.
    pub fn expose(&self) -> Secret {
        Secret::new(self.render(self.password.as_ref().map(|password| encode(password.expose())), &[]))
    }

    fn render(&self, password: Option<String>, hidden: &[&str]) -> String {
        let (host, port) = (&self.host, self.port);
        // A socket's directory goes into the query: Alembic's configuration chokes on the `%` that a path has elsewhere.
        let (server, mut query) = match host {
            host if host.starts_with('/') => (String::new(), vec![("host", host.clone()), ("port", port.to_string())]),
            // The zone of a link-local address stands behind a `%`, which a URL encodes. SQLAlchemy takes it as it is.
            host if host.contains(':') && self.names_driver() => (format!("[{host}]:{port}"), Vec::new()),
            host if host.contains(':') => (format!("[{}]:{port}", host.replace('%', "%25")), Vec::new()),
            host => (format!("{host}:{port}"), Vec::new()),
        };
        let asyncpg = is_asyncpg(&self.scheme);
        for (name, value) in &self.parameters {
            match name.as_str() {
                name if hidden.contains(&name) => {}
                "sslmode" if asyncpg => query.push(("ssl", value.clone())),
                // asyncpg refuses what it does not know, and reads the rest of libpq's from the environment.
                name if asyncpg && is_libpq(name) && name != "target_session_attrs" => {}
                name => query.push((name, value.clone())),
            }
        }
        let mut text = format!("{}://{}", self.scheme, encode(&self.user));
        text.extend(password.map(|password| format!(":{password}")));
        let _ = write!(text, "@{server}/{}", encode(&self.database));
        let encoded = if self.names_driver() { QUERY_ENCODED } else { LIBPQ_QUERY_ENCODED };
        for (index, (name, value)) in query.into_iter().enumerate() {
            let between = if index == 0 { '?' } else { '&' };
            let [name, value] = [name, &value].map(|part| utf8_percent_encode(part, encoded));
            let _ = write!(text, "{between}{name}={value}");
        }
        text
    }
}

fn is_asyncpg(scheme: &str) -> bool {
    scheme.ends_with("+asyncpg")
}

fn is_libpq(name: &str) -> bool {
    LIBPQ.iter().any(|(known, _)| *known == name)
}

fn encode(part: &str) -> String {
    utf8_percent_encode(part, ENCODED).to_string()
}

/// Read `-c name=value`, `-cname=value` and `--name=value`; a backslash keeps the character that follows it
/// (PostgreSQL's pg_split_opts).
fn session_settings(options: &str) -> Vec<(String, String)> {
    let (mut words, mut word, mut letters) = (Vec::new(), String::new(), options.chars());
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.extend(letters.next()),
            letter if letter.is_ascii_whitespace() => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let pair = match word.strip_prefix("-c").or_else(|| word.strip_prefix("--")) {
            Some("") => words.next(),
            Some(pair) => Some(pair.to_owned()),
            None => None,
        };
        let pair = pair.as_deref().and_then(|pair| pair.split_once('='));
        settings.extend(pair.map(|(name, value)| (name.replace('-', "_"), value.to_owned())));
    }
    settings
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.render(self.password.as_ref().map(|_| "********".into()), &["sslpassword"]))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DatabaseUrl({self})")
    }
}

#[cfg(test)]
mod tests;
