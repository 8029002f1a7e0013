//! The one reader of a database URL.
//!
//! libpq, SQLAlchemy and the drivers differ in what they make of a URL, so what two of them would read differently is
//! settled here, or refused with the reason.

use std::net::IpAddr;

use percent_encoding::percent_decode_str;

use super::{DatabaseUrl, Secret};

/// What to do about a character that has a meaning in URLs.
const ENCODE: &str = "write postgresql://user:password@host:5432/database, with special characters of the password \
                      percent-encoded: @ is %40, : is %3A, / is %2F, # is %23, ? is %3F, % is %25";
/// What PostgreSQL's clients know of TLS.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
const PORT: u16 = 5432;

/// Why a text is not a database URL, and the way out. Neither shows any of a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidUrl {
    reason: String,
    help: String,
}

impl InvalidUrl {
    /// What to write instead.
    pub fn help(&self) -> &str {
        &self.help
    }
}

fn invalid(reason: impl Into<String>, help: impl Into<String>) -> InvalidUrl {
    InvalidUrl { reason: reason.into(), help: help.into() }
}

impl DatabaseUrl {
    /// Read `scheme://user:password@host:port/database?query`, as SQLAlchemy and libpq write it
    /// (PostgreSQL documentation, "Connection URIs"). Where the query names host, port, user, password or database, it
    /// wins over what stands before it, as it does for both.
    ///
    /// # Errors
    /// [`InvalidUrl`], without the password in it.
    pub fn parse(text: &str) -> Result<Self, InvalidUrl> {
        let Some((scheme, rest)) = text.trim().split_once("://") else {
            return Err(invalid("it has no scheme", ENCODE));
        };
        let scheme = scheme.to_ascii_lowercase();
        if !matches!(scheme.split('+').next(), Some("postgresql" | "postgres")) {
            return Err(invalid(format!("scheme `{scheme}` is not PostgreSQL's (postgresql://…)"), ENCODE));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place.split_once('/').unwrap_or((place, ""));
        // An unencoded `/`, `#` or `?` in the password ends the host early and leaves the `@` behind.
        if place.contains('#') || query.contains('#') || database.contains('@') {
            return Err(invalid("its parts cannot be told apart", ENCODE));
        }
        let (login, server) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').map_or((login, None), |(user, word)| (user, Some(word)));
        let (host, port) = server_of(server)?;
        let url = Self {
            scheme,
            user: decode(user)?,
            password: password.map(decode).transpose()?.map(Secret::new),
            host,
            port: port.unwrap_or(PORT),
            database: decode(database)?,
            parameters: Vec::new(),
        };
        settle(url, pairs(query)?)
    }
}

fn decode(part: &str) -> Result<String, InvalidUrl> {
    match percent_decode_str(part).decode_utf8() {
        Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
        _ => Err(invalid("what it percent-encodes is not UTF-8 text", ENCODE)),
    }
}

/// Host and port of `server`: `host:port`, `[address]:port`, or a socket directory with its slashes encoded.
fn server_of(server: &str) -> Result<(String, Option<u16>), InvalidUrl> {
    if server.contains(',') {
        return Err(several());
    }
    let (host, port) = match server.strip_prefix('[') {
        Some(literal) => match literal.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, rest)) if rest.starts_with(':') => (address, rest.strip_prefix(':')),
            _ => return Err(invalid("the `[` of its address is never closed", "write [address]:port")),
        },
        None => server.rsplit_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
    };
    if !server.starts_with('[') && host.contains(':') {
        let help = format!("write an IPv6 address in brackets, as in [::1]:5432; or, {ENCODE}");
        return Err(invalid("there is more than one `:` in its host", help));
    }
    Ok((decode(host)?, port.filter(|port| !port.is_empty()).map(port_of).transpose()?))
}

fn port_of(text: &str) -> Result<u16, InvalidUrl> {
    // Not shown: it may be a part of the password.
    text.parse().ok().filter(|&port| port > 0).ok_or_else(|| invalid("its port is not a number up to 65535", ENCODE))
}

fn several() -> InvalidUrl {
    let help = "name one server: the primary, or an address that always leads to it. libpq parts hosts at commas, so a \
                socket directory with a comma in its path needs a symbolic link without one";
    invalid("it names several servers, and Tandem attaches to one", help)
}

/// The query's names and values, decoded; `+` is a plus.
fn pairs(query: &str) -> Result<Vec<(String, String)>, InvalidUrl> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some((name, value)) = pair.split_once('=') else {
            return Err(invalid("its query holds something that is not name=value", ENCODE));
        };
        let pair = (decode(name)?, decode(value)?);
        match pairs.iter().find(|(known, _)| *known == pair.0) {
            None => pairs.push(pair),
            Some(known) if *known == pair => {}
            Some(_) if pair.0 == "host" || pair.0 == "port" => return Err(several()),
            Some(_) => return Err(invalid(format!("its query says `{}` twice", pair.0), "keep one of them")),
        }
    }
    Ok(pairs)
}

/// Bring what the query says of the parts into the parts.
fn settle(mut url: DatabaseUrl, pairs: Vec<(String, String)>) -> Result<DatabaseUrl, InvalidUrl> {
    let (mut address, mut asked) = (None, None);
    for (name, value) in pairs {
        match name.as_str() {
            // Empty is as good as left out.
            "host" | "port" | "user" | "password" | "dbname" | "database" | "hostaddr" if value.is_empty() => {}
            "host" | "port" | "hostaddr" if value.contains(',') => return Err(several()),
            "host" => url.host = value,
            "port" => url.port = port_of(&value)?,
            "user" => url.user = value,
            "password" => url.password = Some(Secret::new(value)),
            "dbname" | "database" => url.database = value,
            "hostaddr" => address = Some(value),
            "ssl" | "sslmode" => {
                let mode = ssl_mode(&name, value)?;
                if let Some(other) = asked.replace(mode.clone()).filter(|other| *other != mode) {
                    let reason = format!("sslmode and ssl ask for {other} and {mode}");
                    return Err(invalid(reason, "keep one of them"));
                }
            }
            "service" | "servicefile" | "passfile" | "requiressl" => return Err(elsewhere(&name)),
            _ => url.parameters.push((name, value)),
        }
    }
    if let Some(mode) = asked {
        url.parameters.insert(0, ("sslmode".to_owned(), mode));
    }
    if let Some(address) = address {
        settle_address(&mut url, address)?;
    }
    match url.host.as_str() {
        "" => Err(invalid("it has no host", ENCODE)),
        host if host.starts_with('@') => {
            Err(invalid("its host is an abstract unix socket", "give the server a socket in a directory"))
        }
        host if host.contains(',') => Err(several()),
        _ => Ok(url),
    }
}

/// libpq connects to `hostaddr` and checks certificates against the host; the other clients know one host only.
fn settle_address(url: &mut DatabaseUrl, address: String) -> Result<(), InvalidUrl> {
    if address.parse::<IpAddr>().is_err() {
        return Err(invalid("its hostaddr is not an IP address", "write host=… for a name"));
    }
    if !url.host.is_empty() && url.host != address {
        let reason = format!("it names the server twice: host {} and hostaddr {address}", url.host);
        return Err(invalid(reason, "keep one of them: not every client of this URL knows hostaddr"));
    }
    url.host = address;
    Ok(())
}

pub(super) fn ssl_mode(name: &str, value: String) -> Result<String, InvalidUrl> {
    if SSL_MODES.contains(&value.as_str()) {
        return Ok(value);
    }
    let modes = SSL_MODES.join(", ");
    Err(invalid(format!("{name}={value} is none of {modes}"), format!("write one of them, such as {name}=require")))
}

/// What names a place outside the URL, which libpq alone would read.
fn elsewhere(name: &str) -> InvalidUrl {
    let help = match name {
        "passfile" => "write the password into the URL, or set postgres.password_file",
        "requiressl" => "write sslmode=require",
        _ => "write host, port, user and database into the URL itself",
    };
    invalid(format!("its query has `{name}`, which PostgreSQL's own clients alone understand"), help)
}
