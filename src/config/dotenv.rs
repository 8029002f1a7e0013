//! Reading a `.env` as python-dotenv and Docker Compose do, with line numbers. Pure.
//!
//! `NAME=value`, `export NAME=value`, single quotes (literal), double quotes (escapes, may span lines), `# comments`.
//! `${NAME}` and `${NAME:-default}` are replaced outside single quotes. A bare `$` stays: passwords hold it.

/// One variable and the line on which it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: String,
    pub value: String,
    pub line: usize,
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
    let text = text.trim_start_matches('\u{feff}');
    let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    while let Some((line, content)) = lines.next() {
        let content = content.trim_start();
        if content.trim_end().is_empty() || content.starts_with('#') {
            continue;
        }
        let content = content.strip_prefix("export ").unwrap_or(content);
        let Some((name, rest)) = content.split_once('=') else {
            bad.push(BadLine { line, message: "expected NAME=value" });
            continue;
        };
        let name = name.trim();
        if !is_name(name) {
            bad.push(BadLine { line, message: "what stands before = is not a variable's name" });
            continue;
        }
        let known = |wanted: &str| {
            let earlier = || variables.iter().rev().find(|variable| variable.name == wanted);
            outer(wanted).or_else(|| earlier().map(|variable| variable.value.clone()))
        };
        match value(rest.trim_start(), &mut lines.by_ref().map(|(_, more)| more), &known) {
            Ok(value) => variables.push(Variable { name: name.to_owned(), value, line }),
            Err(message) => bad.push(BadLine { line, message }),
        }
    }
    (variables, bad)
}

fn is_name(name: &str) -> bool {
    let first = name.chars().next();
    first.is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_.-".contains(letter))
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The value that begins with `rest` and, when it is quoted, may go on over `more` lines.
fn value(rest: &str, more: &mut dyn Iterator<Item = &str>, known: Lookup<'_>) -> Result<String, &'static str> {
    let Some(quote) = rest.chars().next().filter(|first| "\"'".contains(*first)) else {
        return Ok(replace(before_comment(rest), known));
    };
    let mut text = rest[1..].to_owned();
    let end = loop {
        if let Some(end) = closing(&text, quote) {
            break end;
        }
        text.push('\n');
        text.push_str(more.next().ok_or("the quote is never closed")?);
    };
    let after = text[end + 1..].trim_start();
    if !after.is_empty() && !after.starts_with('#') {
        return Err("there is more after the closing quote; write \\\" for a quote inside double quotes");
    }
    let inner = &text[..end];
    Ok(if quote == '\'' { inner.to_owned() } else { unescape(inner, known) })
}

fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, letter)| {
        if escaped {
            escaped = false;
            return None;
        }
        escaped = letter == '\\' && quote == '"';
        (letter == quote).then_some(at)
    })
}

/// `#` begins a comment only after white space, so that a password may hold one.
fn before_comment(rest: &str) -> &str {
    if rest.starts_with('#') {
        return "";
    }
    let comment =
        rest.char_indices().zip(rest.chars().skip(1)).find(|((_, space), next)| space.is_whitespace() && *next == '#');
    comment.map_or(rest, |((at, _), _)| &rest[..at]).trim_end()
}

/// Double quotes: `\n`, `\r`, `\t`, `\"`, `\\` and `\$` are read; other backslashes stay.
fn unescape(inner: &str, known: Lookup<'_>) -> String {
    let mut result = String::new();
    let mut plain = String::new();
    let mut letters = inner.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            plain.push(letter);
            continue;
        }
        result.push_str(&replace(&std::mem::take(&mut plain), known));
        match letters.next() {
            Some('n') => result.push('\n'),
            Some('r') => result.push('\r'),
            Some('t') => result.push('\t'),
            Some(same @ ('"' | '\\' | '$')) => result.push(same),
            Some(other) => result.extend(['\\', other]),
            None => result.push('\\'),
        }
    }
    result + &replace(&plain, known)
}

/// Put in the variables that `${NAME}` and `${NAME:-default}` name; an unknown one is empty.
fn replace(text: &str, known: Lookup<'_>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((inner, following)) = after.split_once('}') else { break };
        let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
        result.push_str(before);
        if is_name(name) {
            result.push_str(&known(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.to_owned()));
        } else {
            result.push_str(&rest[before.len()..rest.len() - following.len()]);
        }
        rest = following;
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(usize, String, String)> {
        let outer = |name: &str| (name == "HOME").then(|| "/home/ann".to_owned());
        let (variables, bad) = parse(text, &outer);
        assert_eq!(bad, []);
        variables.into_iter().map(|variable| (variable.line, variable.name, variable.value)).collect()
    }

    fn value_of(text: &str) -> String {
        values(&format!("A={text}")).remove(0).2
    }

    #[test]
    fn lines_are_read_as_python_dotenv_and_compose_read_them() {
        let read = values("\u{feff}# a comment\n\nexport A = one two \r\nB=\"x\ny\" # both\nC=${A}${NO:-!}${NO}$A\n");
        let expected = [(3, "A", "one two"), (4, "B", "x\ny"), (6, "C", "one two!$A")];
        assert_eq!(read, expected.map(|(line, name, value)| (line, name.to_owned(), value.to_owned())));
    }

    #[test]
    fn passwords_survive() {
        assert_eq!(value_of("pa$s#w'o\"r\\d%@"), "pa$s#w'o\"r\\d%@");
        assert_eq!(value_of("'a${HOME}#\"\\n'"), "a${HOME}#\"\\n");
        assert_eq!(value_of(r#""a\"b\\\$\x${HOME}" # comment"#), r#"a"b\$\x/home/ann"#);
        assert_eq!(value_of("a b # comment"), "a b");
        assert_eq!(value_of("# nothing"), "");
        assert_eq!(value_of("a${open"), "a${open");
        assert_eq!(value_of("${not a name}"), "${not a name}");
    }

    #[test]
    fn bad_lines_are_named_without_their_text() {
        let (variables, bad) = parse("no equals\n1A=x\nOK=1\nB='secret' x\nC=\"open\n", &|_| None);
        assert_eq!(variables.len(), 1);
        assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [1, 2, 4, 5]);
        assert!(bad.iter().all(|bad| !bad.message.contains("secret")));
    }
}
