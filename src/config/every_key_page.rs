//! That `docs/every-key.md` says what the table of keys does: it is made from it. `UPDATE_EXPECT=1` writes it anew.

use super::keys::{self, Default, Effect, Key, Kind, PROCESS_KEYS};

const BEGINNING: &str = r#"# Every key

This page lists every key of `tandem.toml`, with what it takes and its default. It is made from the code, and a test fails when the
two differ. [`config/tandem.toml`](../config/tandem.toml) says more about most keys. [Configuration](configuration.md) tells where
else they can be set.

## Values

- **A duration** is `"500ms"`, `"30s"`, `"10m"` or `"1h 30m"`; a plain number is seconds. None is longer than a year.
- **A size** is `"256MB"` or `"2GB"`; 1 MB is 1024 × 1024 bytes.
- **A path** that is relative starts in the project directory.
- **A command** is a list of the program and its arguments: `["npm", "run", "dev"]`.

The column *change* says what a new value asks of a Tandem that runs: *reload* holds after `tandem reload`, *workers* too, but only in
the new workers, and *restart* asks for a new start.
"#;

fn takes(kind: Kind) -> String {
    let words = |words: &[&str]| words.iter().map(|word| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ");
    match kind {
        Kind::Text | Kind::Program => "text".to_owned(),
        Kind::Secret => "text, never shown".to_owned(),
        Kind::Url => "a database URL".to_owned(),
        Kind::Choice(accepted) => words(accepted),
        Kind::ChoiceOrPath(accepted) => format!("{}, or a path with a `/` in it", words(accepted)),
        Kind::ChoiceOrCommand(accepted) => format!("{}, or a command", words(accepted)),
        Kind::Count(least) => format!("a number from {least} on"),
        Kind::CountOr(least, accepted) => format!("a number from {least} on, or {}", words(accepted)),
        Kind::Between(least, most) => format!("a number from {least} to {most}"),
        Kind::Port => "a port".to_owned(),
        Kind::Boolean => "true or false".to_owned(),
        Kind::BooleanOr(accepted) => format!("true, false or {}", words(accepted)),
        Kind::Duration => "a duration".to_owned(),
        Kind::DurationOrNever => "a duration, or `\"never\"`".to_owned(),
        Kind::Size => "a size".to_owned(),
        Kind::Room => "a part such as `\"10%\"`, or a size".to_owned(),
        Kind::UrlOrCommand => "a web address, or a command".to_owned(),
        Kind::Ip => "an IP address, `\"localhost\"` or `\"*\"`".to_owned(),
        Kind::Address => "an address and port".to_owned(),
        Kind::Addresses => "an address and port or `\"unix:PATH\"`, or a list of them".to_owned(),
        Kind::Mode => "a file's mode, such as `\"0660\"`".to_owned(),
        Kind::Path => "a path".to_owned(),
        Kind::List => "a list of texts".to_owned(),
        Kind::Command => "a command".to_owned(),
        Kind::Table => "a table".to_owned(),
        Kind::SecretTable => "a table, its values never shown".to_owned(),
        Kind::Options => "a table".to_owned(),
    }
}

fn row(key: &Key) -> String {
    let name = key.name.rsplit_once('.').map_or(key.name, |(_, name)| name);
    let default = match key.default {
        Default::Value(text) => format!("`{text}`"),
        Default::Words(words) => words.to_owned(),
    };
    let change = match key.effect {
        Effect::Live => "reload",
        Effect::Roll => "workers",
        Effect::Restart => "restart",
    };
    let doc = key.doc.replace('|', "\\|");
    format!("| `{name}` | {} | {default} | {change} | {doc} |\n", takes(key.kind))
}

fn page() -> String {
    let mut page = BEGINNING.to_owned();
    let mut add = |section: &str, keys: Vec<&Key>| {
        page.push_str(&format!(
            "\n## {section}\n\n| key | takes | default | change | what it is |\n|---|---|---|---|---|\n"
        ));
        keys.into_iter().for_each(|key| page.push_str(&row(key)));
    };
    add("Above all sections", keys::all().filter(|key| !key.name.contains('.')).collect());
    let mut sections: Vec<&str> = Vec::new();
    for section in keys::sections() {
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    for section in sections {
        let is_here = |key: &&Key| key.name.rsplit_once('.').is_some_and(|(own, _)| own == section);
        add(&format!("[{section}]"), keys::all().filter(is_here).collect());
    }
    add("[[process]]", PROCESS_KEYS.iter().collect());
    page
}

#[test]
fn the_page_lists_every_key_as_it_is() {
    expect_test::expect_file!["../../docs/every-key.md"].assert_eq(&page());
}
