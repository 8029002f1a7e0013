//! `${NAME:-default}` in a Compose file, replaced by what `.env` says. Pure.

use std::collections::BTreeMap;

/// A text after the replacement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    pub text: String,
    /// The variables that were asked for.
    pub uses: Vec<String>,
    /// Those of them that have no value and no default.
    pub missing: Vec<String>,
}

/// Replace the references in `text` by the values of `variables`.
///
/// # Errors
/// A reference that Compose cannot read, or `${NAME:?message}` of a variable without a value.
pub fn replace(text: &str, variables: &BTreeMap<String, String>) -> Result<Replaced, String> {
    let mut done = Replaced::default();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        done.text.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            done.text.push('$');
            rest = after;
        } else if let Some(inside) = after.strip_prefix('{') {
            let end = closing(inside).ok_or("a `${` is not closed")?;
            braces(&inside[..end], variables, &mut done)?;
            rest = &inside[end + 1..];
        } else {
            let name = name_of(after);
            if name.is_empty() {
                return Err("a `$` stands alone; write `$$` for the character".to_owned());
            }
            plain(name, variables, &mut done);
            rest = &after[name.len()..];
        }
    }
    done.text.push_str(rest);
    Ok(done)
}

/// Where the brace that was opened closes.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    text.char_indices().find_map(|(at, letter)| match letter {
        '{' => {
            depth += 1;
            None
        }
        '}' if depth == 0 => Some(at),
        '}' => {
            depth -= 1;
            None
        }
        _ => None,
    })
}

/// The variable's name that `text` begins with.
fn name_of(text: &str) -> &str {
    let is_start = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
    if !text.starts_with(is_start) {
        return "";
    }
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(text.len());
    &text[..end]
}

fn plain(name: &str, variables: &BTreeMap<String, String>, done: &mut Replaced) {
    done.uses.push(name.to_owned());
    match variables.get(name) {
        Some(value) => done.text.push_str(value),
        None => done.missing.push(name.to_owned()),
    }
}

/// `NAME`, with an operator and a word after it or without.
fn braces(inside: &str, variables: &BTreeMap<String, String>, done: &mut Replaced) -> Result<(), String> {
    let name = name_of(inside);
    let rest = &inside[name.len()..];
    if name.is_empty() {
        return Err(format!("`${{{inside}}}` names no variable"));
    }
    if rest.is_empty() {
        plain(name, variables, done);
        return Ok(());
    }
    let (colon, rest) = rest.strip_prefix(':').map_or((false, rest), |rest| (true, rest));
    let (operator, word) = rest.split_at(rest.chars().next().map_or(0, char::len_utf8));
    done.uses.push(name.to_owned());
    let value = variables.get(name).filter(|value| !colon || !value.is_empty());
    let mut take = |word: &str| {
        let inner = replace(word, variables)?;
        done.text.push_str(&inner.text);
        done.uses.extend(inner.uses);
        done.missing.extend(inner.missing);
        Ok(())
    };
    match (operator, value) {
        ("-", None) | ("+", Some(_)) => take(word),
        ("-" | "?", Some(value)) => {
            done.text.push_str(value);
            Ok(())
        }
        ("+", None) => Ok(()),
        ("?", None) => Err(format!("{name} has no value: {word}")),
        _ => Err(format!("`${{{inside}}}` is no reference that Compose knows")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_as_compose_does() {
        let given = [("A", "one"), ("EMPTY", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let variables = BTreeMap::from(given);
        for (text, expected) in [
            ("$A-${A}", "one-one"),
            ("${B:-two}${EMPTY:-three}${EMPTY-four}", "twothree"),
            ("${B:-${A}}", "one"),
            ("${A:+set}${B:+set}${B+set}", "set"),
            ("${A:?must}", "one"),
            ("price $$5, $${A}", "price $5, ${A}"),
            ("${B}", ""),
            ("postgres://${B:-u}:${C:-p}@db/x", "postgres://u:p@db/x"),
        ] {
            assert_eq!(replace(text, &variables).unwrap().text, expected, "{text}");
        }
        assert_eq!(replace("${B}", &variables).unwrap().missing, ["B"]);
        assert_eq!(replace("${B:-${A}}", &variables).unwrap().uses, ["B", "A"]);
        for (text, why) in
            [("${B:?set it}", "set it"), ("${A", "not closed"), ("$ 5", "alone"), ("${A!x}", "no reference")]
        {
            assert!(replace(text, &variables).unwrap_err().contains(why), "{text}");
        }
    }
}
