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
    /// What followed `?`, as it was written.
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
        let url = url::Url::parse(text).map_err(|error| InvalidUrl(format!("not a URL: {error}")))?;
        if !url.scheme().starts_with("postgres") {
            return Err(InvalidUrl(format!("scheme `{}` is not PostgreSQL's (postgresql://…)", url.scheme())));
        }
        let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let socket = url.query_pairs().find(|(name, _)| name == "host").map(|(_, host)| host.into_owned());
        let host = url.host_str().map(decode).filter(|host| !host.is_empty()).or(socket);
        let Some(host) = host else {
            return Err(InvalidUrl("has no host".into()));
        };
        Ok(Self {
            scheme: url.scheme().to_owned(),
            user: decode(url.username()),
            password: url.password().map(|password| Secret::new(decode(password))),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(5432),
            database: decode(url.path().trim_start_matches('/')),
            query: url.query().map(str::to_owned),
        })
    }

    /// The same place under another scheme, such as `postgresql+psycopg2`.
    pub fn with_scheme(&self, scheme: &str) -> Self {
        Self { scheme: scheme.to_owned(), ..self.clone() }
    }

    /// The URL with its password, percent-encoded where it must be.
    pub fn expose(&self) -> Secret {
        Secret::new(self.render(self.password.as_ref().map(|password| encode(password.expose()))))
    }

    fn render(&self, password: Option<String>) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let password = password.map(|password| format!(":{password}")).unwrap_or_default();
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        let (scheme, port) = (&self.scheme, self.port);
        format!("{scheme}://{}{password}@{host}:{port}/{}{query}", encode(&self.user), encode(&self.database))
    }
}

fn encode(part: &str) -> String {
    utf8_percent_encode(part, ENCODED).to_string()
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.render(self.password.as_ref().map(|_| "********".into())))
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
        assert_eq!((url.host.as_str(), url.port), ("/run/pg", 5432));
        assert!(DatabaseUrl::parse("mysql://h/db").is_err());
    }
}
