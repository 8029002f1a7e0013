//! Reading a `.env` as python-dotenv and Docker Compose do, with line numbers. Pure.
//!
//! `NAME=value`, `NAME: value`, each with `export` before it or not; a `NAME` alone stands for what the environment has
//! under it, which children get anyway. A value in quotes may span lines. `# comments` begin a line or follow white space.
//!
//! The two dialects differ, and here the choice is:
//!
//! | written | read as | as |
//! |---|---|---|
//! | `'…'` | as it stands, but `\'` and `\\`; `${…}` is not replaced | Compose; the escapes are python-dotenv's |
//! | `"…"` | `\\ \' \" \a \b \f \n \r \t \v` and `\$` are escapes, other backslashes stay | python-dotenv; `\$` is Compose's |
//! | `${NAME:-default}` | the default also where `NAME` is set and empty; `:+` and `:?` too | Compose |
//! | `$NAME`, `$$` | as it stands: passwords hold it | python-dotenv |
//! | `A=#x`, `A= #x` | `#x`, and nothing | python-dotenv |
//! | `NAME: value` | a variable | Compose |
//! | a lone carriage return | the end of a line | python-dotenv |
//!
//! `unset NAME`, which `tandem env` prints for shells, sets nothing. What both dialects skip or stop at is refused, with its
//! line.

use std::collections::BTreeMap;

/// One variable and the line on which it begins. `Debug` does not show its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    pub value: String,
    pub line: usize,
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} in line {}", self.name, self.line)
    }
}

/// A line that cannot be read, and why; never its text, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    pub line: usize,
    pub message: &'static str,
}

/// Read `text`; `outer` are the variables of the process environment, which win in `${NAME}`.
pub fn parse(text: &str, outer: &dyn Fn(&str) -> Option<String>) -> (Vec<Variable>, Vec<BadLine>) {
    let (mut variables, mut bad): (Vec<Variable>, Vec<BadLine>) = (Vec::new(), Vec::new());
    // Python reads a file's line ends so, also those inside quotes.
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace('\r', "\n");
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((line, content)) = lines.next() {
        let content = content.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let known = |wanted: &str| {
            let earlier = || variables.iter().rev().find(|variable| variable.name == wanted);
            outer(wanted).or_else(|| earlier().map(|variable| variable.value.clone()))
        };
        match variable(content, &mut lines.by_ref().map(|(_, more)| more), &known) {
            Ok(Some((name, value))) => variables.push(Variable { name, value, line }),
            Ok(None) => {}
            Err(message) => bad.push(BadLine { line, message }),
        }
    }
    (variables, bad)
}

/// The variables of `text`, without what cannot be read and without the process environment.
pub fn variables(text: &str) -> BTreeMap<String, String> {
    let (variables, _) = parse(text, &|_| None);
    variables.into_iter().map(|variable| (variable.name, variable.value)).collect()
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;
type Lines<'a, 'b> = &'a mut dyn Iterator<Item = &'b str>;

/// The variable that begins with the line `content`; `None` for a name alone.
fn variable(content: &str, more: Lines<'_, '_>, known: Lookup<'_>) -> Result<Option<(String, String)>, &'static str> {
    let unset = content.strip_prefix("unset ").is_some_and(|names| names.split_whitespace().all(is_name));
    if unset {
        return Ok(None);
    }
    let exported = content.strip_prefix("export").filter(|rest| rest.starts_with(char::is_whitespace));
    let content = exported.map_or(content, str::trim_start);
    let quoted = content.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
    let (name, rest) = quoted
        .unwrap_or_else(|| content.split_at(content.find(|letter| "=:#".contains(letter)).unwrap_or(content.len())));
    let name = name.trim_end();
    let rest = rest.trim_start();
    let Some(value_of) = rest.strip_prefix(['=', ':']) else {
        let alone = rest.is_empty() || rest.starts_with('#');
        return if alone && is_name(name) { Ok(None) } else { Err("expected NAME=value") };
    };
    if !is_name(name) {
        return Err("what stands before = is not a variable's name");
    }
    let value = value(value_of, more, known)?;
    if value.contains('\0') {
        return Err("a NUL byte is in the value, and no variable can hold one");
    }
    Ok(Some((name.to_owned(), value)))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|letter| letter.is_alphanumeric() || "_.-[]".contains(letter))
}

/// The value that `rest` holds and that, when it is quoted, may go on over `more` lines.
fn value(rest: &str, more: Lines<'_, '_>, known: Lookup<'_>) -> Result<String, &'static str> {
    let text = rest.trim_start();
    let Some(quote) = text.chars().next().filter(|first| "\"'".contains(*first)) else {
        let is_comment = text.starts_with('#') && text.len() < rest.len();
        return if is_comment { Ok(String::new()) } else { replace(before_comment(text), known) };
    };
    let mut text = text[1..].to_owned();
    let end = loop {
        if let Some(end) = closing(&text, quote) {
            break end;
        }
        text.push('\n');
        text.push_str(more.next().ok_or("the quote is never closed")?);
    };
    let after = text[end + 1..].trim_start();
    if !after.is_empty() && !after.starts_with('#') {
        return Err("there is more after the closing quote; write \\\" or \\' for a quote inside the quotes");
    }
    let inner = &text[..end];
    if quote == '\'' { Ok(escapes(inner, "\\'")) } else { unescape(inner, known) }
}

/// Where the text ends: at the first quote without a backslash before it.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, letter)| {
        if escaped {
            escaped = false;
            return None;
        }
        escaped = letter == '\\';
        (letter == quote).then_some(at)
    })
}

/// `#` begins a comment only after white space, so that a password may hold one.
fn before_comment(text: &str) -> &str {
    let comment =
        text.char_indices().zip(text.chars().skip(1)).find(|((_, space), next)| space.is_whitespace() && *next == '#');
    comment.map_or(text, |((at, _), _)| &text[..at]).trim_end()
}

/// Take the backslash from before each of `letters`; other backslashes stay.
fn escapes(inner: &str, letters: &str) -> String {
    let (mut result, mut rest) = (String::new(), inner.chars());
    while let Some(letter) = rest.next() {
        match rest.clone().next() {
            Some(next) if letter == '\\' && letters.contains(next) => {
                result.push(next);
                rest.next();
            }
            _ => result.push(letter),
        }
    }
    result
}

/// What stands between double quotes: escapes are read, variables put in.
fn unescape(inner: &str, known: Lookup<'_>) -> Result<String, &'static str> {
    let mut result = String::new();
    let mut plain = String::new();
    let mut letters = inner.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            plain.push(letter);
            continue;
        }
        result.push_str(&replace(&std::mem::take(&mut plain), known)?);
        match letters.next() {
            Some('a') => result.push('\u{7}'),
            Some('b') => result.push('\u{8}'),
            Some('f') => result.push('\u{c}'),
            Some('n') => result.push('\n'),
            Some('r') => result.push('\r'),
            Some('t') => result.push('\t'),
            Some('v') => result.push('\u{b}'),
            Some(same @ ('"' | '\'' | '\\' | '$')) => result.push(same),
            Some(other) => result.extend(['\\', other]),
            None => result.push('\\'),
        }
    }
    Ok(result + &replace(&plain, known)?)
}

/// Put in the variables that `${NAME}` and its like name; an unknown one is empty.
fn replace(text: &str, known: Lookup<'_>) -> Result<String, &'static str> {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some(end) = brace(after) else { break };
        result.push_str(before);
        match one(&after[..end], known)? {
            Some(value) => result.push_str(&value),
            None => result.push_str(&rest[before.len()..rest.len() - after.len() + end + 1]),
        }
        rest = &after[end + 1..];
    }
    Ok(result + rest)
}

/// Where the brace that is open closes; what a default holds may have braces of its own.
fn brace(text: &str) -> Option<usize> {
    let mut depth = 0_u32;
    let mut letters = text.char_indices();
    letters.find_map(|(at, letter)| match (letter, depth) {
        ('}', 0) => Some(at),
        ('}', _) => {
            depth -= 1;
            None
        }
        ('{', _) if text[..at].ends_with('$') => {
            depth += 1;
            None
        }
        _ => None,
    })
}

/// What `${inner}` stands for; `None` where it names nothing.
fn one(inner: &str, known: Lookup<'_>) -> Result<Option<String>, &'static str> {
    let name_ends = inner.find(|letter: char| !(letter.is_alphanumeric() || "_.".contains(letter)));
    let (name, operator) = inner.split_at(name_ends.unwrap_or(inner.len()));
    // With a colon an empty variable counts as none.
    let (value, operator) = match operator.strip_prefix(':') {
        Some(operator) => (known(name).filter(|value| !value.is_empty()), operator),
        None => (known(name), operator),
    };
    let mut word = operator.chars();
    Ok(match (word.next(), value) {
        _ if name.is_empty() => None,
        (None, value) if name.len() == inner.len() => Some(value.unwrap_or_default()),
        (Some('-'), None) | (Some('+'), Some(_)) => Some(replace(word.as_str(), known)?),
        (Some('+'), None) => Some(String::new()),
        (Some('?'), None) => return Err("a variable that it asks for with ${NAME:?…} is not set"),
        (Some('-' | '?'), Some(value)) => Some(value),
        _ => None,
    })
}

#[cfg(test)]
#[path = "dotenv_tests.rs"]
mod tests;
