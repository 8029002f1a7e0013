//! What a person asks for, found among what a backup holds. Pure.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

use super::super::manifest::Census;
use super::super::only::Only;
use super::super::tokens::{self, Token};
use crate::postgres::provision::identifier;

/// The longest name, in bytes (NAMEDATALEN - 1).
pub const NAME_MAX: usize = 63;
/// How many names are told that are close to one that is not there.
const CLOSE_MAX: usize = 3;
/// How alike they are at least, of 1.
const CLOSE: f64 = 0.5;

/// What is asked for, as it was typed, and what it is to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Tables(Vec<(String, Option<String>)>),
    Schema(String, Option<String>),
}

/// A relation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    pub schema: String,
    pub name: String,
}

impl Named {
    pub fn new(schema: &str, name: &str) -> Self {
        Self { schema: schema.to_owned(), name: name.to_owned() }
    }

    /// As a statement names it.
    pub fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

/// As a census names it.
impl fmt::Display for Named {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.schema, self.name)
    }
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A table of the backup, and what it becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub table: Named,
    pub into: Named,
}

/// What is asked for, as the backup has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Tables(Vec<Wanted>),
    /// A schema, and what it becomes.
    Schema(String, String),
}

/// Why a wish cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWish {
    #[error("the backup holds no {0} {1}{close}", close = close(.2))]
    NotThere(&'static str, String, Vec<String>),
    #[error("{1} is a {0}: only tables have rows of their own in a backup (--schema restores all that a schema has)")]
    NoTable(&'static str, String),
    #[error("{0} may be {all}: say which", all = .1.join(" or "))]
    Ambiguous(String, Vec<String>),
    #[error("{0} is asked for twice")]
    Twice(String),
    #[error("{0:?} is no name: it is empty, or longer than {NAME_MAX} bytes")]
    NoName(String),
}

fn close(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(": did you mean {}?", names.join(" or ")) }
}

impl Wish {
    /// What `part` means of a backup that holds what `census` counted.
    ///
    /// # Errors
    /// [`NoWish`].
    pub fn of(part: &Part, census: &Census) -> Result<Self, NoWish> {
        match part {
            Part::Schema(asked, into) => {
                let schema = schema(asked, census)?;
                let into = into.as_deref().map(whole_name).transpose()?;
                Ok(Self::Schema(schema.clone(), into.unwrap_or(schema)))
            }
            Part::Tables(tables) => {
                let mut wanted: Vec<Wanted> = Vec::new();
                for (asked, into) in tables {
                    let table = table(asked, census)?;
                    let into = into.as_deref().map_or(Ok(table.clone()), |into| target(into, &table))?;
                    for (one, other) in wanted.iter().flat_map(|it| [(&it.table, &table), (&it.into, &into)]) {
                        if one == other {
                            return Err(NoWish::Twice(one.to_string()));
                        }
                    }
                    wanted.push(Wanted { table, into });
                }
                Ok(Self::Tables(wanted))
            }
        }
    }

    /// The tables whose rows it takes.
    pub fn only(&self, census: &Census) -> Only {
        match self {
            Self::Schema(schema, _) => Only { tables: BTreeSet::new(), schema: Some(schema.clone()) },
            Self::Tables(wanted) => {
                let leaves = wanted.iter().flat_map(|it| leaves(&it.table, census));
                let tables = wanted.iter().map(|it| it.table.clone()).chain(leaves);
                Only { tables: tables.map(|it| (it.schema, it.name)).collect(), schema: None }
            }
        }
    }
}

/// The partitions of `root` that hold rows.
fn leaves(root: &Named, census: &Census) -> Vec<Named> {
    let (key, start) = (root.to_string(), format!("{}.", root.schema));
    let of_it = census.partitions.iter().filter(|(_, of)| **of == key).map(|(leaf, _)| leaf);
    of_it
        .filter_map(|leaf| match leaf.strip_prefix(&start) {
            Some(name) => Some(Named::new(&root.schema, name)),
            None => leaf.split_once('.').map(|(schema, name)| Named::new(schema, name)),
        })
        .collect()
}

/// What a name may mean, the likeliest first: as SQL reads it, with its capitals as they are typed, and every letter of it.
fn readings(text: &str) -> Vec<Vec<String>> {
    let statement = tokens::statements(&format!("{text};"));
    let names = |fold: bool| -> Option<Vec<String>> {
        let [tokens] = statement.as_slice() else { return None };
        let name = |token: &Token| match token {
            Token::Word(word) if fold => Some(word.to_lowercase()),
            Token::Word(name) | Token::Name(name) => Some(name.clone()),
            _ => None,
        };
        match tokens.as_slice() {
            [one] => Some(vec![name(one)?]),
            [schema, Token::Other('.'), one] => Some(vec![name(schema)?, name(one)?]),
            _ => None,
        }
    };
    let mut readings: Vec<Vec<String>> =
        [names(true), names(false), Some(vec![text.to_owned()])].into_iter().flatten().collect();
    readings.dedup();
    readings
}

/// All tables of the backup, the partitioned ones too.
fn tables(census: &Census) -> BTreeSet<&str> {
    census.rows.keys().chain(census.partitions.values()).map(String::as_str).collect()
}

fn table(asked: &str, census: &Census) -> Result<Named, NoWish> {
    let tables = tables(census);
    let readings = readings(asked);
    for reading in &readings {
        match reading.as_slice() {
            [schema, name] if tables.contains(format!("{schema}.{name}").as_str()) => {
                return Ok(Named::new(schema, name));
            }
            [name] if tables.contains(format!("public.{name}").as_str()) => return Ok(Named::new("public", name)),
            [name] => {
                let end = format!(".{name}");
                let found: Vec<&str> = tables.iter().copied().filter(|table| table.ends_with(&end)).collect();
                match found.as_slice() {
                    [] => {}
                    [one] => return Ok(Named::new(&one[..one.len() - end.len()], name)),
                    several => {
                        let several = several.iter().map(|&it| it.to_owned()).collect();
                        return Err(NoWish::Ambiguous(asked.to_owned(), several));
                    }
                }
            }
            _ => {}
        }
    }
    if let Some(kind) = other_kind(&readings, census) {
        return Err(NoWish::NoTable(kind, asked.to_owned()));
    }
    let (last, qualified) = (readings[0].last().cloned().unwrap_or_default(), readings[0].len() > 1);
    let of = |table: &str| {
        if qualified { table.to_owned() } else { table.split_once('.').map_or(table, |it| it.1).to_owned() }
    };
    let asked_as = if qualified { readings[0].join(".") } else { last };
    let close = closest(&asked_as, tables.iter().map(|table| (of(table), (*table).to_owned())));
    Err(NoWish::NotThere("table", asked.to_owned(), close))
}

/// What else than a table is called so.
fn other_kind(readings: &[Vec<String>], census: &Census) -> Option<&'static str> {
    let objects = census.objects.as_deref().unwrap_or_default();
    let kinds = ["view", "materialized view", "foreign table", "sequence"];
    kinds.into_iter().find(|kind| {
        let of_kind = objects.iter().filter_map(|object| object.strip_prefix(kind)?.strip_prefix(' '));
        of_kind.map(|rest| rest.split([':']).next().unwrap_or_default()).any(|rest| {
            let name = rest.trim_end_matches(" with rows").trim_end_matches(" without rows");
            let found = self::readings(name).into_iter().next().unwrap_or_default();
            readings.iter().any(|reading| *reading == found || (reading.len() == 1 && found.last() == reading.last()))
        })
    })
}

fn schema(asked: &str, census: &Census) -> Result<String, NoWish> {
    let tables = tables(census);
    let readings = readings(asked);
    for reading in &readings {
        if let [schema] = reading.as_slice()
            && tables.iter().any(|table| table.starts_with(&format!("{schema}.")))
        {
            return Ok(schema.clone());
        }
    }
    let schemas: BTreeSet<&str> = tables.iter().filter_map(|table| Some(table.split_once('.')?.0)).collect();
    let close = closest(&readings[0].join("."), schemas.iter().map(|&it| (it.to_owned(), it.to_owned())));
    Err(NoWish::NotThere("table in a schema", asked.to_owned(), close))
}

/// The names that are closest to `asked`.
fn closest(asked: &str, names: impl Iterator<Item = (String, String)>) -> Vec<String> {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&asked.to_lowercase(), &name.to_lowercase());
    let mut close: Vec<(f64, String)> = names.map(|(name, told)| (likeness(&name), told)).collect();
    close.retain(|(likeness, _)| *likeness >= CLOSE);
    close.sort_by(|(one, a), (other, b)| other.total_cmp(one).then_with(|| a.cmp(b)));
    close.into_iter().take(CLOSE_MAX).map(|(_, told)| told).collect()
}

/// The name that `--into` gives: in the schema of `table`, where it says no other.
fn target(into: &str, table: &Named) -> Result<Named, NoWish> {
    let reading = readings(into).into_iter().next().unwrap_or_default();
    let named = match reading.as_slice() {
        [schema, name] => Named::new(schema, name),
        [name] => Named::new(&table.schema, name),
        _ => return Err(NoWish::NoName(into.to_owned())),
    };
    for part in [&named.schema, &named.name] {
        check_name(part)?;
    }
    Ok(named)
}

fn whole_name(text: &str) -> Result<String, NoWish> {
    let name = match readings(text).into_iter().next().as_deref() {
        Some([name]) => name.clone(),
        _ => text.to_owned(),
    };
    check_name(&name).map(|()| name)
}

/// Whether PostgreSQL takes `name` as it is.
///
/// # Errors
/// It does not.
pub fn check_name(name: &str) -> Result<(), NoWish> {
    let is_one = (1..=NAME_MAX).contains(&name.len()) && !name.contains('\0');
    if is_one { Ok(()) } else { Err(NoWish::NoName(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census() -> Census {
        let rows = [
            "public.orders",
            "public.Orders",
            "public.order_lines",
            "sales.lines",
            "public.odd \" name",
            "old.lines",
            "public.p_1",
        ];
        Census {
            rows: rows.map(|table| (table.to_owned(), 1)).into(),
            partitions: [("public.p_1".to_owned(), "public.p".to_owned())].into(),
            objects: Some(vec![
                "view public.totals: n integer".to_owned(),
                "materialized view public.\"Sums\" with rows".to_owned(),
            ]),
            ..Census::default()
        }
    }

    #[test]
    fn a_table_is_found_as_sql_or_a_person_writes_it() {
        let found = |asked: &str| table(asked, &census()).map(|it| it.to_string());
        for (asked, expected) in [
            ("orders", "public.orders"),
            ("ORDERS", "public.orders"),
            ("\"Orders\"", "public.Orders"),
            ("public.orders", "public.orders"),
            ("Sales.Lines", "sales.lines"),
            ("odd \" name", "public.odd \" name"),
            ("public.\"odd \"\" name\"", "public.odd \" name"),
            ("p", "public.p"),
        ] {
            assert_eq!(found(asked).as_deref(), Ok(expected), "{asked}");
        }
    }

    #[test]
    fn what_is_no_table_of_the_backup_is_told_with_what_is_close() {
        let told = |asked: &str| table(asked, &census()).unwrap_err().to_string();
        assert_eq!(told("order"), "the backup holds no table order: did you mean public.Orders or public.orders?");
        assert_eq!(told("nothing_like_it"), "the backup holds no table nothing_like_it");
        assert_eq!(told("lines"), "lines may be old.lines or sales.lines: say which");
        assert!(told("totals").starts_with("totals is a view"), "{}", told("totals"));
        assert!(told("\"Sums\"").starts_with("\"Sums\" is a materialized view"), "{}", told("\"Sums\""));
        let part = Part::Schema("sale".to_owned(), None);
        let told = Wish::of(&part, &census()).unwrap_err().to_string();
        assert_eq!(told, "the backup holds no table in a schema sale: did you mean sales?");
    }

    #[test]
    fn a_new_name_stays_in_the_schema_of_its_table_and_is_given_once() {
        let wish = |tables: &[(&str, Option<&str>)]| {
            let tables = tables.iter().map(|(table, into)| ((*table).to_owned(), into.map(str::to_owned))).collect();
            Wish::of(&Part::Tables(tables), &census()).map_err(|error| error.to_string())
        };
        let wanted = |table: (&str, &str), into: (&str, &str)| Wanted {
            table: Named::new(table.0, table.1),
            into: Named::new(into.0, into.1),
        };
        assert_eq!(
            wish(&[("sales.lines", Some("copy")), ("orders", Some("aside.\"X\""))]),
            Ok(Wish::Tables(vec![
                wanted(("sales", "lines"), ("sales", "copy")),
                wanted(("public", "orders"), ("aside", "X"))
            ]))
        );
        assert_eq!(
            wish(&[("orders", None), ("public.orders", Some("x"))]),
            Err("public.orders is asked for twice".into())
        );
        assert_eq!(wish(&[("orders", Some("x")), ("p", Some("x"))]), Err("public.x is asked for twice".into()));
        assert!(wish(&[("orders", Some(""))]).unwrap_err().contains("no name"));
        assert!(wish(&[("orders", Some(&"x".repeat(64)))]).unwrap_err().contains("longer than 63 bytes"));
        let partitioned = wish(&[("p", None)]).unwrap().only(&census());
        assert!(partitioned.holds(Some("public"), "p_1") && partitioned.holds(Some("public"), "p"));
    }
}
