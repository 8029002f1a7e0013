//! Secrets and database URLs. Pure.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What may stand unencoded in a URL's user, password and database (RFC 3986, section 2.3, unreserved).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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
    pub host: String,
    pub port: u16,
    pub database: String,
    /// What followed `?`, as it was written; for a socket without its `host` and `port`.
    pub query: Option<String>,
}

/// Why a text is not a database URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(String);

impl DatabaseUrl {
    /// Read `scheme://user:password@host:port/database?query`, as SQLAlchemy and libpq write it
    /// (PostgreSQL documentation, "Connection URIs").
    ///
    /// # Errors
    /// [`InvalidUrl`], without the password in it.
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let (url, hostless) = parse_url(text).map_err(|error| InvalidUrl(format!("not a URL: {error}")))?;
        if !url.scheme().starts_with("postgres") {
            return Err(InvalidUrl(format!("scheme `{}` is not PostgreSQL's (postgresql://…)", url.scheme())));
        }
        let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let host = url.host_str().map(decode).filter(|host| !host.is_empty() && !hostless);
        let in_query =
            |wanted: &str| url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned());
        let (host, port, query) = match (host, in_query("host")) {
            (Some(host), _) => (host, url.port(), url.query().map(str::to_owned)),
            (None, Some(host)) => {
                let port = url.port().or_else(|| in_query("port")?.parse().ok());
                (host, port, url.query().and_then(|query| without(query, &["host", "port"])))
            }
            (None, None) => return Err(InvalidUrl("has no host".into())),
        };
        Ok(Self {
            scheme: url.scheme().to_owned(),
            user: decode(url.username()),
            password: url.password().map(|password| Secret::new(decode(password))),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: port.unwrap_or(5432),
            database: decode(url.path().trim_start_matches('/')),
            query,
        })
    }

    /// The same place under another scheme, such as `postgresql+psycopg2`.
    pub fn with_scheme(&self, scheme: &str) -> Self {
        Self { scheme: scheme.to_owned(), ..self.clone() }
    }

    /// The URL with its password, percent-encoded where it must be.
    pub fn expose(&self) -> Secret {
        Secret::new(
            self.render(self.password.as_ref().map(|password| encode(password.expose())), self.query.as_deref()),
        )
    }

    fn render(&self, password: Option<String>, query: Option<&str>) -> String {
        let (host, port) = (&self.host, self.port);
        // A socket's directory goes into the query, unencoded: Alembic's configuration chokes on `%`.
        let (server, socket) = match host {
            host if host.starts_with('/') => (String::new(), Some(format!("host={host}&port={port}"))),
            host if host.contains(':') => (format!("[{host}]:{port}"), None),
            host => (format!("{host}:{port}"), None),
        };
        let query: Vec<_> = socket.iter().map(String::as_str).chain(query).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let password = password.map(|password| format!(":{password}")).unwrap_or_default();
        format!("{}://{}{password}@{server}/{}{query}", self.scheme, encode(&self.user), encode(&self.database))
    }
}

/// Parse a URL. libpq and SQLAlchemy allow `user:password@/database` when the query names the host, the `url` crate
/// does not: it gets a host to look at, and the caller is told that there is none.
fn parse_url(text: &str) -> Result<(url::Url, bool), url::ParseError> {
    match url::Url::parse(text) {
        Err(url::ParseError::EmptyHost) => {
            let start = text.find("://").map_or(0, |colon| colon + 3);
            let end = text[start..].find(['/', '?', '#']).map_or(text.len(), |end| start + end);
            let host = text[start..end].rfind('@').map_or(start, |at| start + at + 1);
            Ok((url::Url::parse(&format!("{}none{}", &text[..host], &text[host..]))?, true))
        }
        parsed => Ok((parsed?, false)),
    }
}

/// The query without these names; `None` when nothing is left.
fn without(query: &str, names: &[&str]) -> Option<String> {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let rest: Vec<_> = query.split('&').filter(|pair| !names.contains(&name(pair).as_str())).collect();
    (!rest.is_empty()).then(|| rest.join("&"))
}

fn encode(part: &str) -> String {
    utf8_percent_encode(part, ENCODED).to_string()
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // libpq takes passwords in the query too.
        let query = self.query.as_ref().and_then(|query| without(query, &["password", "sslpassword"]));
        formatter.write_str(&self.render(self.password.as_ref().map(|_| "********".into()), query.as_deref()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DatabaseUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_special_character_survives_and_none_is_shown() {
        let password = "p@ss:w/o?r#d%[]&=+ \"'\\é`{}|^<>~-_.!$*(),;";
        let url = DatabaseUrl {
            scheme: "postgresql".into(),
            user: "ffe user".into(),
            password: Some(Secret::new(password)),
            host: "127.0.0.1".into(),
            port: 5433,
            database: "ffe".into(),
            query: None,
        };
        let back = DatabaseUrl::parse(url.expose().expose()).unwrap();
        assert_eq!(back, url);
        assert_eq!(url.to_string(), "postgresql://ffe%20user:********@127.0.0.1:5433/ffe");
        assert!(!format!("{url:?} {:?}", url.password).contains("p@ss"));
    }

    #[test]
    fn sockets_and_defaults_are_read() {
        let url = DatabaseUrl::parse("postgresql+psycopg2://u:p@/db?host=/run/pg").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.query.as_deref()), ("/run/pg", 5432, None));
        let text = "postgresql://u:p@/db?host=/run/pg&port=6000&sslmode=disable";
        let url = DatabaseUrl::parse(text).unwrap();
        assert_eq!((url.port, url.query.as_deref(), url.expose().expose()), (6000, Some("sslmode=disable"), text));
        assert_eq!(DatabaseUrl::parse("postgresql:///db?host=/run/pg").unwrap().host, "/run/pg");
        let shown = DatabaseUrl::parse("postgresql://u@h/db?password=secret&a=b").unwrap().to_string();
        assert_eq!(shown, "postgresql://u@h:5432/db?a=b");
        assert!(DatabaseUrl::parse("mysql://h/db").is_err());
    }
}
