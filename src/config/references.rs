//! `${PGHOST}` and its like in `.env`, `[workers.env]` and `[[process]].env`: where the server of this very run is. Pure.
//!
//! A server's address is known when its child is started and not when the configuration is read: `tandem test` has another
//! one for each run. So a reference travels as a mark, which [`resolve`] replaces. Any other `${…}` of `[workers.env]`
//! stays as it is written, and `$${PGHOST}` is the text `${PGHOST}`.

/// The names that can be referred to; each is also a variable that Tandem's children get.
pub const NAMES: [&str; 13] = [
    "DATABASE_URL",
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGPASSWORD",
    "PGDATABASE",
    "POSTGRES_HOST",
    "POSTGRES_SERVER",
    "POSTGRES_HOSTNAME",
    "POSTGRES_PORT",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "POSTGRES_DB",
];

/// In front of `{NAME}`, in place of the `$` that a person writes; no text has it.
const MARK: char = '\u{1}';

/// The mark of `name`, if it can be referred to.
pub fn mark_of(name: &str) -> Option<String> {
    NAMES.contains(&name).then(|| format!("{MARK}{{{name}}}"))
}

/// `text` with its references marked.
pub fn marked(text: &str) -> String {
    each(text, '$', |before, inner| {
        let mark = mark_of(name_in(inner))?;
        let literal = before.ends_with('$');
        if literal {
            before.pop();
        }
        Some(if literal { format!("${{{inner}}}") } else { mark })
    })
}

/// `text` written so that [`marked`] finds no reference in it and gives it back.
pub fn literal(text: &str) -> String {
    each(text, '$', |_, inner| mark_of(name_in(inner)).map(|_| format!("$${{{inner}}}")))
}

/// Whether `text` has a mark in it.
pub fn refers(text: &str) -> bool {
    text.contains(MARK)
}

/// `text` with the marks replaced by what `value` says.
pub fn resolve(text: &str, value: impl Fn(&str) -> String) -> String {
    each(text, MARK, |_, name| NAMES.contains(&name).then(|| value(name)))
}

/// `${NAME:-default}`: the default is never needed, because every name has a value.
fn name_in(inner: &str) -> &str {
    inner.split_once(":-").map_or(inner, |(name, _)| name)
}

/// Replace each `<sign>{inner}` for which `replace` gives something; it may also change what stands before.
fn each(text: &str, sign: char, replace: impl Fn(&mut String, &str) -> Option<String>) -> String {
    let opening = format!("{sign}{{");
    let (mut result, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once(&opening) {
        let Some((inner, following)) = after.split_once('}') else { break };
        result.push_str(before);
        match replace(&mut result, inner) {
            Some(new) => {
                result.push_str(&new);
                rest = following;
            }
            // Another reference may stand inside.
            None => {
                result.push_str(&opening);
                rest = after;
            }
        }
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(text: &str) -> String {
        resolve(&marked(text), |name| format!("<{}>", name.to_lowercase()))
    }

    #[test]
    fn references_are_replaced_and_everything_else_stays() {
        for (text, expected) in [
            ("${PGPORT}", "<pgport>"),
            ("tcp://${PGHOST}:${PGPORT:-5432}/x", "tcp://<pghost>:<pgport>/x"),
            ("${HOME} $PGHOST ${PGHOST", "${HOME} $PGHOST ${PGHOST"),
            ("$${PGHOST} $$${PGHOST}", "${PGHOST} $${PGHOST}"),
            ("${X${PGUSER}}", "${X<pguser>}"),
            ("pa$$w${}d", "pa$$w${}d"),
        ] {
            assert_eq!(resolved(text), expected, "{text}");
        }
        for text in ["${PGHOST}", "a$${PGHOST}b", "$$${PGPORT:-1}", "plain"] {
            let marked = marked(&literal(text));
            assert!(!refers(&marked), "{text}");
            assert_eq!(marked, text);
        }
    }
}
