//! The JSON Schema of `tandem.toml`, from the table of all keys: for editors, which complete and check by it. Pure.
//!
//! Draft 7, which every TOML plugin of an editor understands, and regular expressions that every dialect reads alike. The
//! schema refuses nothing that Tandem takes; what it cannot express (a year as the longest duration, say), `tandem check` does.

use serde_json::{Map, Value, json};

use super::keys::{self, Default, Effect, Key, Kind, PROCESS_KEYS};
use super::processes::SECTION;

/// A table whose keys are free, by the values that it may hold: nested tables are names with a dot.
const FREE: &str = "#/definitions/free";
const OPTIONS: &str = "#/definitions/options";

/// Seconds as a plain number, or numbers with the units that humantime knows.
const DURATION: &str = "^\\s*([+]?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([eE][+-]?[0-9]+)?|([0-9]+(\\.[0-9]+)?\\s*(nanos|nsec|ns|usec|us|\
                        µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m|hours|hour|hrs|hr|h|days|day|d|\
                        weeks|week|wks|wk|w|months|month|M|years|year|yrs|yr|y)\\s*)+)\\s*$";
/// PostgreSQL would read a number without a unit as pages.
const SIZE: &str = "^\\s*[0-9][0-9_ ]*(\\.[0-9_ ]*)?([kKmMgGtTpPeE][iI]?[bB]?|[iI]?[bB])\\s*$";
const ROOM: &str = "^\\s*([0-9]+(\\.[0-9]*)?|\\.[0-9]+)\\s*%\\s*$";
/// An address and port, or a port.
const ADDRESS: &str = "^\\s*(.*:)?[0-9]+\\s*$";
const SECONDS_MAX: u64 = 366 * 24 * 60 * 60;

/// The schema as the file that is shipped: `config/tandem.schema.json`.
pub fn text() -> String {
    format!("{:#}\n", schema())
}

fn schema() -> Value {
    let mut properties = Map::new();
    for key in keys::all() {
        place(&mut properties, key.name, of_key(key));
    }
    properties.insert(SECTION.to_owned(), process());
    let free = |values: &[Value]| {
        let mut values = values.to_vec();
        values.extend([json!({ "type": "string" }), json!({ "type": "number" }), json!({ "type": "boolean" })]);
        values
    };
    let nested = |name: &str, values: Vec<Value>| {
        let mut any = values;
        any.push(json!({ "$ref": name }));
        json!({ "type": "object", "additionalProperties": { "anyOf": any } })
    };
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "tandem.toml",
        "description": "The configuration of Tandem, which runs PostgreSQL and a Python ASGI application as one process tree",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "definitions": {
            "free": nested(FREE, free(&[])),
            "options": nested(OPTIONS, free(&[texts()])),
        },
    })
}

/// Put `schema` where the dots of `name` lead, through a table for each section.
fn place(properties: &mut Map<String, Value>, name: &str, schema: Value) {
    let Some((section, rest)) = name.split_once('.') else {
        properties.insert(name.to_owned(), schema);
        return;
    };
    let table = properties
        .entry(section)
        .or_insert_with(|| json!({ "type": "object", "additionalProperties": false, "properties": {} }));
    if let Some(inner) = table["properties"].as_object_mut() {
        place(inner, rest, schema);
    }
}

/// The list of `[[process]]` tables.
fn process() -> Value {
    let mut properties = Map::new();
    for key in PROCESS_KEYS {
        let name = key.name.rsplit('.').next().unwrap_or(key.name);
        properties.insert(name.to_owned(), of_key(key));
    }
    json!({
        "description": "More processes beside the workers, each a [[process]] of its own",
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": false,
            "required": ["name", "command"],
            "properties": properties,
        },
    })
}

fn of_key(key: &Key) -> Value {
    let mut schema = of_kind(key.kind);
    let change = match key.effect {
        Effect::Live => "A change holds after `tandem reload`.",
        Effect::Roll => "A change holds after `tandem reload`, in the new workers.",
        Effect::Restart => "A change asks for a restart of Tandem.",
    };
    let default = match key.default {
        Default::Value(text) => format!("Default: {text}."),
        Default::Words(words) => format!("Default: {words}."),
    };
    schema["description"] = format!("{}. {default} {change}", key.doc).into();
    if let Default::Value(text) = key.default
        && let Some(value) = default_value(text)
    {
        schema["default"] = value;
    }
    schema
}

/// A default, which is written as TOML, as JSON.
fn default_value(text: &str) -> Option<Value> {
    #[derive(serde::Deserialize)]
    struct Written {
        value: Value,
    }
    toml::from_str::<Written>(&format!("value = {text}")).ok().map(|written| written.value)
}

fn of_kind(kind: Kind) -> Value {
    match kind {
        Kind::Text | Kind::Secret | Kind::Url | Kind::Path | Kind::Program => {
            json!({ "type": "string", "minLength": 1 })
        }
        Kind::Choice(words) => json!({ "enum": words }),
        Kind::ChoiceOrPath(words) => any([json!({ "enum": words }), matching("/")]),
        Kind::ChoiceOrCommand(words) => any([json!({ "enum": words }), command()]),
        Kind::Count(least) => count(least, u32::MAX),
        Kind::CountOr(least, words) => any([count(least, u32::MAX), json!({ "enum": words })]),
        Kind::Between(least, most) => count(least, most),
        Kind::Port => count(0, u32::from(u16::MAX)),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::BooleanOr(words) => any([json!({ "type": "boolean" }), json!({ "enum": words })]),
        Kind::Duration => any([seconds(), matching(DURATION)]),
        Kind::DurationOrNever => any([seconds(), matching(DURATION), matching("^\\s*(never|off)\\s*$")]),
        Kind::Size => matching(SIZE),
        Kind::Room => any([matching(ROOM), matching(SIZE)]),
        Kind::UrlOrCommand => any([matching("^\\s*[hH][tT][tT][pP][sS]?:"), command()]),
        Kind::Ip => matching("^\\s*(localhost|\\*|\\[*[0-9A-Fa-f:.]+\\]*)\\s*$"),
        Kind::Address => any([count(0, u32::from(u16::MAX)), matching(ADDRESS)]),
        Kind::Addresses => {
            let one = format!("{ADDRESS}|^\\s*unix:.");
            let many = json!({ "type": "array", "minItems": 1, "items": matching(&one) });
            any([count(0, u32::from(u16::MAX)), matching(&one), many])
        }
        Kind::Mode => matching("^\\s*(0o)?[0-7]{3,}\\s*$"),
        Kind::List => texts(),
        Kind::Command => command(),
        Kind::Table | Kind::SecretTable => json!({ "allOf": [{ "$ref": FREE }] }),
        Kind::Options => json!({ "allOf": [{ "$ref": OPTIONS }] }),
    }
}

fn any<const N: usize>(of: [Value; N]) -> Value {
    json!({ "anyOf": of.to_vec() })
}

fn matching(pattern: &str) -> Value {
    json!({ "type": "string", "pattern": pattern })
}

fn count(least: u32, most: u32) -> Value {
    json!({ "type": "integer", "minimum": least, "maximum": most })
}

fn seconds() -> Value {
    json!({ "type": "number", "minimum": 0, "maximum": SECONDS_MAX })
}

fn texts() -> Value {
    json!({ "type": "array", "items": { "type": "string" } })
}

fn command() -> Value {
    json!({ "type": "array", "minItems": 1, "items": { "type": "string" } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_schema_is_that_of_the_keys() {
        expect_test::expect_file!["../../config/tandem.schema.json"].assert_eq(&text());
    }

    #[test]
    fn every_key_is_in_the_schema_with_its_default() {
        let schema = schema();
        for key in keys::all() {
            let pointer = key.name.replace('.', "/properties/");
            let of_key = schema.pointer(&format!("/properties/{pointer}")).unwrap_or_else(|| panic!("{}", key.name));
            let description = of_key["description"].as_str().unwrap();
            assert!(description.starts_with(key.doc), "{description}");
            let has_default = matches!(key.default, Default::Value(_));
            assert_eq!(of_key.get("default").is_some(), has_default, "{}", key.name);
        }
    }
}
