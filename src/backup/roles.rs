//! Make the roles of a globals file that a server lacks. Those that it has keep their passwords, settings and memberships.
//!
//! The file is read as SQL, not as lines, and no statement of it is run as it stands: what is known (CREATE ROLE, ALTER ROLE,
//! COMMENT ON ROLE, GRANT of a role, CREATE TABLESPACE) is written anew, and all else is left out.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, PgConnection, query_scalar, raw_sql};

use super::tokens::{self, Token, name, word};
use super::{reader, rights};
use crate::exit::in_words;
use crate::postgres::provision::identifier;
use crate::postgres::settings::SUPERUSER;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// The largest globals file that is read, in bytes.
const SIZE_MAX: u64 = 64 << 20;

/// With what the roles are made that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attributes {
    /// All that the file says: the server is new, and the file is trusted.
    All,
    /// The same, and the roles that are there already get what the file says of them too, but for their passwords: nothing but
    /// Tandem's own first start has made them.
    WholeServer,
    /// Only so that things can belong to them: a live server that lacks a role has dropped it, and whoever could log in as
    /// that role or was a member of it no longer shall. A file that is not trusted may say anything.
    None,
}

/// A statement of a globals file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Statement {
    Create {
        role: String,
    },
    /// `ALTER ROLE`, with what follows on the name as it stands, and what of it is for a role that is there already.
    Alter {
        role: String,
        rest: String,
        if_there: String,
    },
    Comment {
        role: String,
        text: String,
    },
    Grant {
        role: String,
        member: String,
        rest: String,
    },
    Tablespace {
        name: String,
        owner: String,
    },
}

/// Make what is missing. Returns the roles that were made.
///
/// # Errors
/// The file cannot be read, or the server refuses.
pub async fn complete(
    session: &mut PgConnection,
    globals: &Path,
    attributes: Attributes,
) -> anyhow::Result<BTreeSet<String>> {
    let statements = read(globals)?;
    let there = there(session).await?;
    for (what, statement) in missing(&statements, &there, attributes) {
        answered(MAKE_LIMIT, &what, raw_sql(AssertSqlSafe(statement)).execute(&mut *session)).await?;
    }
    Ok(made(&statements, &there))
}

/// The same on a server that is thrown away afterwards: what it does not bear shows in what is restored. Tablespaces come to lie in its own
/// data directory: their real places are the live server's.
///
/// # Errors
/// The file cannot be read, or the connection is lost.
pub async fn complete_throwaway(
    session: &mut PgConnection,
    globals: &Path,
    attributes: Attributes,
) -> anyhow::Result<()> {
    let statements = read(globals)?;
    let there = there(session).await?;
    let places = statements.iter().filter_map(|statement| match statement {
        Statement::Tablespace { name, owner } => Some((
            format!("make tablespace {name}"),
            format!("CREATE TABLESPACE {} OWNER {} LOCATION ''", identifier(name), identifier(owner)),
        )),
        _ => None,
    });
    for (what, statement) in missing(&statements, &there, attributes).into_iter().chain(places) {
        if let Err(refused) =
            answered(MAKE_LIMIT, &what, raw_sql(AssertSqlSafe(statement)).execute(&mut *session)).await
        {
            tracing::debug!("{}", in_words(&refused));
        }
    }
    Ok(())
}

fn read(globals: &Path) -> anyhow::Result<Vec<Statement>> {
    let name = || format!("read {}", globals.display());
    let mut text = String::new();
    std::fs::File::open(globals).with_context(name)?.take(SIZE_MAX).read_to_string(&mut text).with_context(name)?;
    Ok(statements(&text))
}

async fn there(session: &mut PgConnection) -> anyhow::Result<BTreeSet<String>> {
    // The texts below are written as the standard has it.
    let standard = raw_sql("SET standard_conforming_strings = on").execute(&mut *session);
    answered(ANSWER_LIMIT, "read texts as the standard has it", standard).await?;
    let asked = query_scalar("SELECT rolname::text FROM pg_catalog.pg_roles").fetch_all(&mut *session);
    let there: Vec<String> = answered(ANSWER_LIMIT, "list the roles", asked).await?;
    Ok(there.into_iter().collect())
}

/// The roles of `statements` that are not `there`.
fn made(statements: &[Statement], there: &BTreeSet<String>) -> BTreeSet<String> {
    let created = statements.iter().filter_map(|statement| match statement {
        Statement::Create { role } => Some(role.clone()),
        _ => None,
    });
    let is_ours = |role: &String| ["pg_", rights::ROLE_START, reader::ROLE_START].iter().any(|it| role.starts_with(it));
    created.filter(|role| !there.contains(role) && !is_ours(role)).collect()
}

/// The statements that make the roles which are not `there`, each with what it does in words that hold no password.
fn missing(statements: &[Statement], there: &BTreeSet<String>, attributes: Attributes) -> Vec<(String, String)> {
    let new = made(statements, there);
    let all = attributes != Attributes::None;
    // The superuser's are this server's own.
    let is_altered = |role: &String| {
        attributes == Attributes::WholeServer && there.contains(role) && role != SUPERUSER && !role.starts_with("pg_")
    };
    let wanted = statements.iter().filter_map(|statement| match statement {
        Statement::Create { role } if new.contains(role) => {
            Some((format!("make role {role}"), format!("CREATE ROLE {}", identifier(role))))
        }
        Statement::Alter { role, rest, .. } if all && new.contains(role) => {
            Some((format!("alter role {role}"), format!("ALTER ROLE {} {rest}", identifier(role))))
        }
        Statement::Alter { role, if_there, .. } if is_altered(role) => {
            Some((format!("alter role {role}"), format!("ALTER ROLE {} {if_there}", identifier(role))))
        }
        Statement::Comment { role, text } if new.contains(role) || is_altered(role) => {
            Some((format!("comment on role {role}"), format!("COMMENT ON ROLE {} IS {text}", identifier(role))))
        }
        // Of a role that was there already, its server knows best what it is a member of.
        Statement::Grant { role, member, rest } => {
            let both = |name: &String| new.contains(name) || (all && there.contains(name));
            let is_wanted = new.contains(member) || all && new.contains(role) || is_altered(member);
            let wanted = is_wanted && both(role) && both(member);
            let grant = || format!("GRANT {} TO {}{rest}", identifier(role), identifier(member));
            wanted.then(|| (format!("make {member} a member of {role}"), grant()))
        }
        _ => None,
    });
    wanted.collect()
}

/// The statements of a globals file that are known.
fn statements(text: &str) -> Vec<Statement> {
    tokens::statements(text).iter().filter_map(|tokens| statement(tokens)).collect()
}

fn statement(tokens: &[Token]) -> Option<Statement> {
    let words: Vec<String> = tokens.iter().map_while(word).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["CREATE", "ROLE", ..] if tokens.len() == 3 => Some(Statement::Create { role: name(&tokens[2])? }),
        ["ALTER", "ROLE", ..] => {
            let (role, rest) = (name(tokens.get(2)?)?, tokens.get(3..)?);
            Some(Statement::Alter { role, rest: altered(rest)?, if_there: written(&without_password(rest)) })
        }
        ["COMMENT", "ON", "ROLE", ..] => match tokens.get(3..)? {
            [role, is, Token::Text(text)] if word(is)? == "IS" => {
                Some(Statement::Comment { role: name(role)?, text: text.clone() })
            }
            _ => None,
        },
        ["GRANT", ..] => {
            let [_, role, to, member, rest @ ..] = tokens else { return None };
            (word(to)? == "TO").then_some(())?;
            Some(Statement::Grant { role: name(role)?, member: name(member)?, rest: granted(rest)? })
        }
        ["CREATE", "TABLESPACE", ..] => {
            let [_, _, place, owner, of, ..] = tokens else { return None };
            (word(owner)? == "OWNER").then_some(())?;
            Some(Statement::Tablespace { name: name(place)?, owner: name(of)? })
        }
        _ => None,
    }
}

/// What may follow on `ALTER ROLE name`: attributes or a setting.
fn altered(tokens: &[Token]) -> Option<String> {
    let first = word(tokens.first()?)?;
    let is_attributes = first == "WITH";
    let is_setting = first == "SET" || (first == "IN" && word(tokens.get(1)?)? == "DATABASE");
    let known = |token: &Token| match token {
        Token::Word(_) | Token::Text(_) => true,
        Token::Name(_) => is_setting,
        Token::Other(letter) => is_setting && matches!(letter, ',' | '.' | '=' | '-' | '+') || *letter == '-',
    };
    ((is_attributes || is_setting) && tokens.iter().all(known)).then(|| written(tokens))
}

/// What follows on `ALTER ROLE name` without a password, how long that is valid, and whether the role may log in.
fn without_password(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut rest = tokens.iter();
    let is_attributes = tokens.first().and_then(word).is_some_and(|word| word == "WITH");
    while let Some(token) = rest.next() {
        let word = word(token).filter(|_| is_attributes);
        match word.as_deref() {
            Some("LOGIN" | "NOLOGIN" | "VALID") => {}
            // Each has one text behind it, or `NULL`.
            Some("PASSWORD" | "UNTIL") => drop(rest.next()),
            _ => kept.push(token.clone()),
        }
    }
    kept
}

/// What may follow on `GRANT role TO member`.
fn granted(tokens: &[Token]) -> Option<String> {
    let known = |token: &Token| matches!(token, Token::Word(_) | Token::Name(_) | Token::Other(','));
    tokens
        .iter()
        .all(known)
        .then(|| written(tokens))
        .map(|rest| if rest.is_empty() { rest } else { format!(" {rest}") })
}

/// `tokens` as SQL.
fn written(tokens: &[Token]) -> String {
    let mut text = String::new();
    for token in tokens {
        let part = match token {
            Token::Word(word) => word.clone(),
            Token::Name(name) => identifier(name),
            Token::Text(text) => text.clone(),
            Token::Other(letter) => letter.to_string(),
        };
        // `-1` and `a.b` are one.
        let joins = part == "." || text.ends_with(['.', '-']);
        if !text.is_empty() && !joins {
            text.push(' ');
        }
        text.push_str(&part);
    }
    text
}

#[cfg(test)]
#[path = "roles_tests.rs"]
mod tests;
