//! Classify an error of the server: it passes, a disk is full, or it lasts until a person does something. Pure.
//!
//! A server that starts answers too: with 57P03 while it recovers, but with 28000 where there is no such role. The first is
//! waited for; waiting for the second would take the whole `ready_limit` and fill the server's log. [`lines`] is the same
//! for a server that ended before it answered.

pub mod lines;

use std::path::Path;

use sea_orm::sqlx;

use crate::exit::{Code, NoRoom, own_limit};
use crate::health::picture::Fault;
use crate::plan::DatabaseUrl;

/// How the server says so, with no SQLSTATE of its own. A detail that only the log has names the locale.
const LOCALE: &str = "database locale is incompatible with operating system";
/// What to do about it.
const LOCALE_WAY: &str = "the database was made with a locale that this machine does not have, and the server's DETAIL names: \
                          install it (on Debian: the package `locales`, and locale-gen), or dump the database where it is known \
                          and import that";

/// The way out where the server's text `said` is about a locale that the machine lacks.
pub fn of_locale(said: &str) -> Option<Lasting> {
    said.contains(LOCALE).then(|| Lasting { code: Code::Config, why: format!("{}: {LOCALE_WAY}", said.trim_end()) })
}

/// An error that kept a connection from being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub from: AnswerSource,
    /// Its text, without a password.
    pub text: String,
}

/// Where the error comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerSource {
    /// The server, with its SQLSTATE.
    Server([u8; 5]),
    /// The TLS handshake.
    Tls,
    /// The driver, about the URL.
    Url,
    /// The network: nothing answered.
    Network,
    /// Tandem, which could not ask.
    Own,
}

/// What the error means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The error may pass by itself.
    Passing,
    /// A disk is full, or a quota used up.
    Full,
    Lasting(Lasting),
}

/// An error that lasts until a person does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lasting {
    pub code: Code,
    /// What is wrong, and what to do.
    pub why: String,
}

/// The server that answered.
#[derive(Clone, Copy, Debug)]
pub enum AskedServer<'a> {
    /// Tandem runs it, with the program `postgres` on the cluster in `data`.
    Own { postgres: &'a Path, data: &'a Path },
    /// A server that Tandem attaches to.
    Other(&'a DatabaseUrl),
}

impl Answer {
    /// What `error` says.
    pub fn of(error: &sqlx::Error) -> Self {
        let text = error.as_database_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
        let sqlstate = error.as_database_error().and_then(|error| error.code());
        let sqlstate = sqlstate.and_then(|code| <[u8; 5]>::try_from(code.as_bytes()).ok());
        let from = match (sqlstate, error) {
            (Some(code), _) => AnswerSource::Server(code),
            (None, sqlx::Error::Tls(_)) => AnswerSource::Tls,
            // The handshake's own errors come as errors of the stream.
            (None, sqlx::Error::Io(error)) if error.to_string().contains("peer certificate") => AnswerSource::Tls,
            (None, sqlx::Error::Io(error)) if own_limit(error).is_some() => AnswerSource::Own,
            (None, sqlx::Error::Configuration(_)) => AnswerSource::Url,
            (None, _) => AnswerSource::Network,
        };
        Self { from, text }
    }

    /// The error as a [`Fault`] for the health port, which shows no free text.
    pub fn fault(&self) -> Fault {
        let sqlstate = match self.from {
            AnswerSource::Server(code) if &code == b"57P03" => return Fault::Starting,
            AnswerSource::Server(code) => Some(code),
            AnswerSource::Tls | AnswerSource::Url => None,
            AnswerSource::Network => return Fault::Unreachable,
            AnswerSource::Own => return Fault::NoDescriptors,
        };
        match (kind(self), sqlstate) {
            (Kind::NoRoom(NoRoom::Disk), _) => Fault::Full(None),
            (Kind::NoRoom(NoRoom::Quota), _) => Fault::QuotaUsed,
            (Kind::Lasting(_, brief), sqlstate) => Fault::Lasting(brief, sqlstate),
            (Kind::Passing, Some(code)) => Fault::Rejected(code),
            (Kind::Passing, None) => Fault::Unreachable,
        }
    }

    /// What the error means when it comes from `server`.
    pub fn meaning(&self, server: AskedServer<'_>) -> Meaning {
        match kind(self) {
            Kind::Passing => Meaning::Passing,
            Kind::NoRoom(_) => Meaning::Full,
            Kind::Lasting(code, _) => {
                let way = match server {
                    AskedServer::Own { postgres, data } => way_of_own(self, postgres, data),
                    AskedServer::Other(url) => way_of_other(self, url),
                };
                Meaning::Lasting(Lasting { code, why: format!("{}: {way}", self.text.trim_end_matches('.')) })
            }
        }
    }
}

enum Kind {
    Passing,
    NoRoom(NoRoom),
    /// With the exit code, and a few words.
    Lasting(Code, &'static str),
}

/// The SQLSTATEs are in PostgreSQL's documentation, appendix A. An error that is not listed here counts as passing.
fn kind(answer: &Answer) -> Kind {
    let text = answer.text.as_str();
    let code = match answer.from {
        AnswerSource::Network | AnswerSource::Own => return Kind::Passing,
        AnswerSource::Tls => return Kind::Lasting(Code::Config, "the two sides do not agree on TLS"),
        AnswerSource::Url => return Kind::Lasting(Code::Config, "the database URL cannot be used"),
        AnswerSource::Server(code) => code,
    };
    let sqlstate = std::str::from_utf8(&code).unwrap_or_default();
    if let Some(why) = NoRoom::answered(sqlstate, text) {
        return Kind::NoRoom(why);
    }
    let file = text.starts_with("could not open") || text.starts_with("could not read");
    match &code {
        b"28P01" => Kind::Lasting(Code::Config, "the password is refused"),
        b"28000" => Kind::Lasting(Code::Config, "the role is refused, or there is none"),
        b"3D000" => Kind::Lasting(Code::Config, "there is no such database"),
        b"42501" if file => Kind::Lasting(Code::GaveUp, "the server may not read its own files"),
        b"42501" => Kind::Lasting(Code::Config, "the role lacks a right"),
        b"58P01" if file => Kind::Lasting(Code::GaveUp, "a file of the cluster is missing"),
        b"58P01" => Kind::Lasting(Code::Config, "a library that is to be loaded is missing"),
        b"XX000" if text.starts_with(LOCALE) => {
            Kind::Lasting(Code::Config, "the machine lacks the locale of a database")
        }
        b"XX001" | b"XX002" => Kind::Lasting(Code::GaveUp, "data of the cluster is damaged"),
        // PgBouncer's answer to what it does not pass on. Its others of this SQLSTATE may pass.
        b"08P01" if text.contains("unsupported startup parameter") => {
            Kind::Lasting(Code::Config, "a pooler stands before the server")
        }
        // Features that are not there, values and names that are wrong.
        [b'0', b'A', ..] | [b'2', b'2', ..] | [b'4', b'2', ..] | [b'F', b'0', ..] => {
            Kind::Lasting(Code::Config, "a setting or a name is wrong")
        }
        _ => Kind::Passing,
    }
}

fn way_of_own(answer: &Answer, postgres: &Path, data: &Path) -> String {
    if answer.text.starts_with(LOCALE) {
        return LOCALE_WAY.to_owned();
    }
    let (postgres, shown) = (postgres.display(), data.display());
    let alone = |statement: &str| {
        format!("as the server's user: echo '{statement}' | {postgres} --single -D {shown} template1")
    };
    match answer.from {
        AnswerSource::Server(code) if &code == b"28000" && answer.text.contains("does not exist") => {
            let make = alone("CREATE ROLE postgres SUPERUSER LOGIN");
            format!("Tandem administers the cluster as the role `postgres`. Make it, {make}")
        }
        AnswerSource::Server(code) if &code == b"28000" && answer.text.contains("not permitted to log in") => {
            format!("Tandem administers the cluster as that role. Let it in, {}", alone("ALTER ROLE postgres LOGIN"))
        }
        AnswerSource::Server(code) if &code == b"3D000" => {
            format!("Tandem administers the cluster from that database. Make it, {}", alone("CREATE DATABASE postgres"))
        }
        AnswerSource::Server(code) if &code == b"42501" && answer.text.starts_with("could not") => {
            format!("every file in {shown} must belong to the user that PostgreSQL runs as: chown -R it")
        }
        AnswerSource::Server(code) if &code == b"58P01" && !answer.text.starts_with("could not open") => {
            format!("look at the preload libraries in [postgres.settings] and in {shown}/postgresql.auto.conf")
        }
        AnswerSource::Server([b'X' | b'5', ..]) => "restore a backup (`tandem restore`)".to_owned(),
        _ => format!("look at [postgres.settings], and at {shown}/postgresql.auto.conf, where ALTER SYSTEM writes"),
    }
}

fn way_of_other(answer: &Answer, url: &DatabaseUrl) -> String {
    let (user, database) = (&url.user, &url.database);
    match answer.from {
        AnswerSource::Server(code) => match &code {
            b"28P01" if url.password.is_none() => "the URL has no password: give it one".to_owned(),
            b"28P01" => format!("look at the user and the password in the URL ({user})"),
            b"28000" => format!("look at the user in the URL ({user}), and at that server's pg_hba.conf"),
            b"3D000" => format!("look at the URL, or make it there: CREATE DATABASE \"{database}\" OWNER \"{user}\""),
            b"42501" => format!("let the role in there: GRANT CONNECT ON DATABASE \"{database}\" TO \"{user}\""),
            b"08P01" => {
                "this is a connection pooler in transaction mode, and migrations need a session: give the server's own \
                 address"
                    .to_owned()
            }
            _ => "look at the URL, and at that server's settings".to_owned(),
        },
        AnswerSource::Tls => "look at sslmode and sslrootcert in the URL".to_owned(),
        AnswerSource::Url | AnswerSource::Network | AnswerSource::Own => "look at the URL".to_owned(),
    }
}

#[cfg(test)]
mod tests;
