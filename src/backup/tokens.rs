//! SQL as tokens, as far as pg_dump's statements about roles, extensions and rows need it. Pure.

/// A word of SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Word(String),
    Name(String),
    /// A string, as it stands.
    Text(String),
    Other(char),
}

/// The tokens of each statement of `text`, up to a quote or a comment that does not end.
pub fn statements(text: &str) -> Vec<Vec<Token>> {
    let (mut found, mut tokens) = (Vec::new(), Vec::new());
    let mut rest = text;
    while let Some((token, after)) = token(rest) {
        rest = after;
        match token {
            Some(Token::Other(';')) => found.push(std::mem::take(&mut tokens)),
            // pg_dump's own restriction of psql.
            Some(Token::Other('\\')) => rest = rest.split_once('\n').map_or("", |(_, after)| after),
            Some(token) => tokens.push(token),
            None => {}
        }
    }
    found
}

/// The word that a token is, in capitals.
pub fn word(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) => Some(word.to_ascii_uppercase()),
        _ => None,
    }
}

/// The name that a token is: PostgreSQL folds those without quotes.
pub fn name(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) => Some(word.to_ascii_lowercase()),
        Token::Name(name) => Some(name.clone()),
        _ => None,
    }
}

/// The token that `text` begins with and what follows it, `None` where that is white space or a comment; nothing at the end,
/// or where a quote or a comment has none.
fn token(text: &str) -> Option<(Option<Token>, &str)> {
    let first = text.chars().next()?;
    let bytes = text.as_bytes();
    if first.is_whitespace() {
        return Some((None, text.trim_start()));
    }
    if let Some(rest) = text.strip_prefix("--") {
        return Some((None, rest.split_once('\n').map_or("", |(_, after)| after)));
    }
    if let Some(mut rest) = text.strip_prefix("/*") {
        let mut depth = 1;
        while depth > 0 {
            let (open, close) = (rest.find("/*"), rest.find("*/")?);
            let opens = open.is_some_and(|open| open < close);
            depth = if opens { depth + 1 } else { depth - 1 };
            rest = &rest[if opens { open? } else { close } + 2..];
        }
        return Some((None, rest));
    }
    let escape = matches!(bytes, [b'e' | b'E', b'\'', ..]);
    if escape || first == '\'' {
        let mut at = if escape { 2 } else { 1 };
        loop {
            match *bytes.get(at)? {
                b'\\' if escape => at += 2,
                b'\'' if bytes.get(at + 1) == Some(&b'\'') => at += 2,
                b'\'' => return Some((Some(Token::Text(text[..=at].to_owned())), &text[at + 1..])),
                _ => at += 1,
            }
        }
    }
    if first == '"' {
        let (name, rest) = quoted(&text[1..])?;
        return Some((Some(Token::Name(name)), rest));
    }
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
    if is_part(first) {
        let end = text.find(|letter| !is_part(letter) && letter != '$').unwrap_or(text.len());
        return Some((Some(Token::Word(text[..end].to_owned())), &text[end..]));
    }
    Some((Some(Token::Other(first)), &text[first.len_utf8()..]))
}

/// The name that goes on in `text`, behind its first quote, up to its last one, and what follows.
pub fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut name, mut rest) = (String::new(), text);
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None => return Some((name, rest)),
        }
    }
}

/// What a word, in psql's sense, consists of.
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Whether this is `COPY table (columns) FROM stdin;`, with nothing more to it.
pub fn is_copy_from_stdin(statement: &[u8]) -> bool {
    let (mut words, mut word, mut quoted, mut parens) = (Vec::new(), Vec::new(), false, 0_u32);
    for &byte in statement {
        match byte {
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'(' => parens += 1,
            b')' => {
                parens = parens.saturating_sub(1);
                word.clear();
            }
            _ if is_word(byte) || byte == b'$' => word.push(byte.to_ascii_lowercase()),
            b' ' | b'.' | b',' | b'\n' | b';' => {
                if !word.is_empty() && parens == 0 {
                    words.push(std::mem::take(&mut word));
                }
                word.clear();
            }
            // A string, a comment, an operator.
            _ => return false,
        }
    }
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    // A quoted name leaves no word.
    matches!(
        words.as_slice(),
        [b"copy", b"from", b"stdin"] | [b"copy", _, b"from", b"stdin"] | [b"copy", _, _, b"from", b"stdin"]
    )
}
/// The name that `name` is without its quotes.
pub fn unquoted(name: &str) -> String {
    match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => name.to_owned(),
    }
}
