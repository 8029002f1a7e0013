//! What a server has already of what a dump makes or names. Pure.

use std::sync::Arc;

use super::only::Only;
use super::tokens::unquoted;

/// How pg_dump chooses the tablespace of what it makes next.
pub const CHOOSES_TABLESPACE: &str = "SET default_tablespace = ";

/// What the database has already of what the dump makes, and what is therefore left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    /// Extensions and what is said of them, as the dump writes their names.
    pub extensions: Vec<String>,
    /// Schemas, likewise.
    pub schemas: Vec<String>,
    /// The tablespaces of the server, where they are known: what the dump puts into another goes into the database's own.
    pub tablespaces: Option<Vec<String>>,
    /// The tables whose rows are wanted, where not all are.
    pub only: Option<Arc<Only>>,
}

impl Existing {
    /// Whether the dump makes nothing that is there.
    pub fn is_empty(&self) -> bool {
        self.extensions.is_empty() && self.schemas.is_empty()
    }

    /// The tablespace that `statement` chooses and the server lacks.
    pub fn lacks(&self, statement: &[u8]) -> Option<String> {
        let there = self.tablespaces.as_ref()?;
        let chosen = std::str::from_utf8(statement).ok()?.strip_prefix(CHOOSES_TABLESPACE)?.strip_suffix(';')?;
        // No name is written as an empty text.
        let name = Some(unquoted(chosen)).filter(|_| !chosen.starts_with('\''))?;
        (!there.contains(&name)).then_some(name)
    }

    /// Whether `statement` makes something that is there.
    pub fn makes(&self, statement: &[u8]) -> bool {
        let begins = |start: String| statement.starts_with(start.as_bytes());
        self.schemas.iter().any(|name| statement == format!("CREATE SCHEMA {name};").as_bytes())
            || self.extensions.iter().any(|name| {
                let make = format!("CREATE EXTENSION IF NOT EXISTS {name}");
                begins(format!("{make};"))
                    || begins(format!("{make} "))
                    || begins(format!("COMMENT ON EXTENSION {name} "))
            })
    }
}
