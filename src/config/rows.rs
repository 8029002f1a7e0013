//! What `tandem check` shows: every key, its value, where it comes from. Secrets are hidden here, once.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::keys::{self, Default, Key, Kind};
use super::layers::{Entry, Layer};
use super::problem::Origin;
use super::settings::{PostgresMode, Settings};
use super::value::Typed;
use super::values::Values;
use crate::plan::DatabaseUrl;
use crate::plan::libpq::{is_libpq, stays_attached};

pub use crate::scrub::HIDDEN;

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub key: String,
    pub value: String,
    pub origin: String,
    /// What the key means, in one line.
    pub doc: &'static str,
}

/// All rows, in the order of the sections.
pub fn rows(values: &Values, settings: &Settings) -> Vec<Row> {
    let mut rows = Vec::new();
    for key in keys::all() {
        let is_shown = |(name, entry): &(&str, &Entry)| !(entry.is_of(Layer::Workers) && is_libpq(name));
        let entries: Vec<_> = values.entries(key.name).filter(is_shown).collect();
        for (name, entry) in &entries {
            let plain = entry.raw.to_plain().unwrap_or_else(|| entry.raw.to_string());
            let value = if key.kind == Kind::SecretTable { HIDDEN.to_owned() } else { plain };
            rows.push(Row {
                key: format!("{}.{name}", key.name),
                value,
                origin: entry.origin.to_string(),
                doc: key.doc,
            });
        }
        if entries.is_empty() {
            let value = shown(key, values, settings);
            rows.push(Row {
                key: key.name.to_owned(),
                value,
                origin: values.origin(key.name).to_string(),
                doc: key.doc,
            });
        }
    }
    rows
}

/// libpq's variables that the environment or a `.env` says, and what Tandem does with them.
pub fn libpq(environment: &BTreeMap<String, String>, values: &Values, settings: &Settings) -> Vec<Row> {
    let row = |name: &str, origin: String| {
        let stays = settings.postgres.mode == PostgresMode::Attach && stays_attached(name);
        let value = if stays { "kept" } else { "ignored" }.to_owned();
        let doc =
            "libpq's variables say nothing to Tandem and its children; attached, what makes a connection safe stays";
        Row { key: name.to_owned(), value, origin, doc }
    };
    let inherited = environment.keys().filter(|name| is_libpq(name));
    let written = values.entries("workers.env").filter(|(name, entry)| entry.is_of(Layer::Workers) && is_libpq(name));
    let inherited = inherited.map(|name| row(name, Origin::Environment(name.clone()).to_string()));
    inherited.chain(written.map(|(name, entry)| row(name, entry.origin.to_string()))).collect()
}

fn shown(key: &Key, values: &Values, settings: &Settings) -> String {
    let settled = match key.name {
        "name" => Some(settings.name.clone()),
        "cache_dir" => Some(settings.cache_dir.display().to_string()),
        "postgres.max_connections" if settings.postgres.max_connections_auto => {
            Some(format!("auto: {}", settings.postgres.max_connections))
        }
        "migrations.run" if values.word(key.name) == "auto" => Some("auto: none".to_owned()),
        "postgres.mode" if values.word(key.name) == "auto" => {
            Some(format!("auto: {}", format!("{:?}", settings.postgres.mode).to_lowercase()))
        }
        _ => None,
    };
    match (settled, values.typed(key.name), key.default) {
        (Some(settled), _, _) => settled,
        (None, Typed::Nothing, Default::Words(words)) => format!("({words})"),
        (None, _, _) if key.kind == Kind::Secret => HIDDEN.to_owned(),
        // Whoever knows the address may call it.
        (None, Typed::Text(_), _) if key.kind == Kind::UrlOrCommand => HIDDEN.to_owned(),
        (None, Typed::Text(text), _) if key.kind == Kind::Url => {
            DatabaseUrl::parse(text).map_or_else(|_| HIDDEN.to_owned(), |url| url.to_string())
        }
        (None, typed, _) => typed.to_string(),
    }
}

/// The origin of each key that is set.
pub fn origins(values: &Values) -> BTreeMap<String, Origin> {
    let tables = keys::all().flat_map(|key| {
        values.entries(key.name).map(|(name, entry)| (format!("{}.{name}", key.name), entry.origin.clone()))
    });
    keys::all().map(|key| (key.name.to_owned(), values.origin(key.name).clone())).chain(tables).collect()
}

/// So many variables of the workers are shown one by one.
const VARIABLES_SHOWN_MAX: usize = 6;

/// The rows, where many variables of the workers are one: their values are hidden, and hide all others.
pub fn folded(rows: &[Row]) -> Vec<Row> {
    let is_variable = |row: &&Row| row.key.starts_with("workers.env.");
    let count = rows.iter().filter(is_variable).count();
    if count <= VARIABLES_SHOWN_MAX {
        return rows.to_vec();
    }
    let place = |row: &Row| match row.origin.rsplit_once(':') {
        Some((file, line)) if line.parse::<usize>().is_ok() => file.to_owned(),
        _ => row.origin.split(' ').next().unwrap_or_default().to_owned(),
    };
    let places: BTreeSet<String> = rows.iter().filter(is_variable).map(place).collect();
    let origin = format!("of {}", places.into_iter().collect::<Vec<_>>().join(", "));
    let mut folded = Vec::new();
    for row in rows {
        if !is_variable(&row) {
            folded.push(row.clone());
        } else if !folded.iter().any(|it| it.key == "workers.env") {
            let value = format!("{count} variables, shown by --all");
            folded.push(Row { key: "workers.env".to_owned(), value, origin: origin.clone(), doc: row.doc });
        }
    }
    folded
}

/// The rows in aligned columns.
pub fn table(rows: &[Row]) -> String {
    let width = |column: fn(&Row) -> &str| rows.iter().map(|row| column(row).chars().count()).max().unwrap_or_default();
    // One long value must not push every origin off the screen.
    let (key, value) = (width(|row| &row.key), width(|row| &row.value).min(48));
    rows.iter().map(|row| format!("{:key$}  {:value$}  {}\n", row.key, row.value, row.origin)).collect()
}
