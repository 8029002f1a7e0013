//! In what a restored database differs from the one that was dumped, in words. Pure.
//!
//! Only what a dump and a reload keep is compared. PostgreSQL writes some definitions down in another way after a reload
//! (`CHECK (s IN ('a', 'b'))` on a varchar is one), chooses some names anew (the foreign keys of partitions), and puts rows
//! into other partitions where these depend on OIDs (PostgreSQL documentation, pg_dump, `--load-via-partition-root`).

use std::collections::{BTreeMap, BTreeSet};

use super::contents;
use super::manifest::Census;

/// What a constraint's definition begins with.
const KINDS: [&str; 6] = ["CHECK (", "FOREIGN KEY (", "PRIMARY KEY (", "UNIQUE ", "EXCLUDE ", "TRIGGER"];
/// What a definition may end with beside its expression.
const FLAGS: [&str; 5] =
    [" NOT VALID", " NO INHERIT", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED", " INITIALLY DEFERRED"];

impl Census {
    /// In what `found`, the restored database, differs from this; empty when in nothing.
    pub fn differences(&self, found: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        if self.schema_version != found.schema_version {
            let say = |version: &Option<String>| version.clone().unwrap_or_else(|| "none".to_owned());
            let (wanted, got) = (say(&self.schema_version), say(&found.schema_version));
            differences.push(format!("the schema's version is {got}, not {wanted}"));
        }
        differences.extend(self.rows_that_differ(found));
        differences.extend(contents::differences(self, found));
        if let (Some(wanted), Some(got)) = (&self.constraints, &found.constraints) {
            let (wanted, got) = as_inherited(wanted, got);
            differences.extend(lost_and_new("constraint ", &wanted, &got, comparable));
        }
        if let (Some(wanted), Some(got)) = (&self.objects, &found.objects) {
            let (wanted, got) = as_reloaded(wanted, got);
            differences.extend(lost_and_new("", &wanted, &got, str::to_owned));
        }
        differences
    }

    fn rows_that_differ(&self, found: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let root = |table: &str| self.partitions.get(table).or_else(|| found.partitions.get(table)).cloned();
        let mut totals = BTreeMap::<String, (u64, u64)>::new();
        for (table, &rows) in &self.rows {
            let Some(&got) = found.rows.get(table) else {
                differences.push(format!("table {table} is missing"));
                continue;
            };
            if let Some(root) = root(table) {
                let total = totals.entry(root).or_default();
                *total = (total.0 + rows, total.1 + got);
            } else if got != rows {
                differences.push(format!("table {table} has {got} rows, not {rows}"));
            }
        }
        let unequal = totals.iter().filter(|(_, (rows, got))| rows != got);
        differences.extend(unequal.map(|(root, (rows, got))| format!("table {root} has {got} rows, not {rows}")));
        let more = found.rows.keys().filter(|table| !self.rows.contains_key(*table));
        differences.extend(more.map(|table| format!("table {table} is not in the manifest")));
        differences
    }
}

/// What only one of two lists has, each counted as often as it is there; named as it stands, compared by `key`.
fn lost_and_new(what: &str, wanted: &[String], got: &[String], key: fn(&str) -> String) -> Vec<String> {
    let mut balance = BTreeMap::<String, (Vec<&String>, Vec<&String>)>::new();
    for one in wanted {
        balance.entry(key(one)).or_default().0.push(one);
    }
    for one in got {
        balance.entry(key(one)).or_default().1.push(one);
    }
    let (mut lost, mut new) = (Vec::new(), Vec::new());
    for (wanted, got) in balance.into_values() {
        let only = |these: &[&String], those: &[&String]| -> Vec<String> {
            // Of equal ones, those that have the same name in both are there.
            let (named, renamed): (Vec<&&String>, Vec<&&String>) = these.iter().partition(|one| those.contains(*one));
            let spare = those.len().saturating_sub(named.len());
            renamed.into_iter().skip(spare).map(|one| String::clone(one)).collect()
        };
        lost.extend(only(&wanted, &got).into_iter().map(|one| format!("{what}{one} is missing")));
        new.extend(only(&got, &wanted).into_iter().map(|one| format!("{what}{one} is not in the manifest")));
    }
    lost.sort();
    new.sort();
    lost.into_iter().chain(new).collect()
}

/// What every new database has (template0): pg_dump writes neither that it is there nor that it was dropped.
const GIVEN: &str = "extension plpgsql";
const MATERIALIZED: &str = "materialized view ";
const FILLED: &str = " with rows";
const NOT_FILLED: &str = " without rows";

/// Both lists without what a reload decides by itself. Where one materialized view is not filled, those that read it are not
/// either after a reload, though they were filled before that one was emptied.
fn as_reloaded(wanted: &[String], got: &[String]) -> (Vec<String>, Vec<String>) {
    let is_view = |object: &str| object.starts_with(MATERIALIZED);
    let may_be_empty = wanted.iter().any(|object| is_view(object) && object.ends_with(NOT_FILLED));
    let plain = |object: &String| {
        let name = object.strip_suffix(FILLED).or_else(|| object.strip_suffix(NOT_FILLED));
        name.filter(|_| may_be_empty && is_view(object)).unwrap_or(object).to_owned()
    };
    let [wanted, got] =
        [wanted, got].map(|objects| objects.iter().filter(|object| *object != GIVEN).map(plain).collect());
    (wanted, got)
}

/// What ends a check that its table has from another one, in the lists of this release.
const INHERITED: &str = " INHERITED";
const NOT_VALID: &str = " NOT VALID";

/// Both lists without what a reload makes of inherited checks: pg_dump writes them with the parent alone, and so they are as
/// proven as that one is.
fn as_inherited(wanted: &[String], got: &[String]) -> (Vec<String>, Vec<String>) {
    let name = |constraint: &str| constraint.split(" CHECK (").next().unwrap_or_default().to_owned();
    let inherited = wanted.iter().chain(got).filter(|constraint| constraint.ends_with(INHERITED));
    let inherited: BTreeSet<String> = inherited.map(|constraint| name(constraint)).collect();
    let plain = |constraint: &String| {
        let text = constraint.strip_suffix(INHERITED).unwrap_or(constraint);
        let is_inherited = text.contains(" CHECK (") && inherited.contains(&name(text));
        text.strip_suffix(NOT_VALID).filter(|_| is_inherited).unwrap_or(text).to_owned()
    };
    (wanted.iter().map(plain).collect(), got.iter().map(plain).collect())
}

/// A constraint without what a reload may change: its name, and the text of an expression.
fn comparable(constraint: &str) -> String {
    let (table, rest) = constraint.split_at(table_end(constraint));
    let kind = KINDS.iter().filter_map(|kind| Some((rest.find(&format!(" {kind}"))?, kind))).min();
    let Some((at, kind)) = kind else { return constraint.to_owned() };
    let definition = &rest[at + 1..];
    if !matches!(*kind, "CHECK (" | "EXCLUDE ") {
        return format!("{table} {definition}");
    }
    let flags: String = FLAGS.into_iter().filter(|flag| definition.ends_with(flag)).collect();
    format!("{table} {kind}…{flags}")
}

/// Where the qualified name ends that `text` begins with; quoted parts may hold blanks, and doubled quotes.
fn table_end(text: &str) -> usize {
    let mut quoted = false;
    for (at, char) in text.char_indices() {
        match char {
            '"' => quoted = !quoted,
            ' ' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn census(rows: &[(&str, u64)], constraints: &[&str], version: Option<&str>) -> Census {
        Census {
            schema_version: version.map(str::to_owned),
            rows: rows.iter().map(|(table, rows)| ((*table).to_owned(), *rows)).collect(),
            constraints: Some(constraints.iter().map(|&one| one.to_owned()).collect()),
            ..Census::default()
        }
    }

    #[test]
    fn each_difference_is_named() {
        let wanted = census(&[("public.a", 1), ("public.b", 2)], &["public.a a_pkey PRIMARY KEY (id)"], Some("004"));
        assert_eq!(wanted.differences(&wanted), Vec::<String>::new());
        let found = census(&[("public.a", 3), ("public.c", 0)], &["public.c x"], None);
        assert_eq!(
            wanted.differences(&found),
            [
                "the schema's version is none, not 004",
                "table public.a has 3 rows, not 1",
                "table public.b is missing",
                "table public.c is not in the manifest",
                "constraint public.a a_pkey PRIMARY KEY (id) is missing",
                "constraint public.c x is not in the manifest",
            ]
        );
        let unknown = Census { constraints: None, ..wanted.clone() };
        assert_eq!(unknown.differences(&Census { constraints: Some(vec![]), ..wanted }), Vec::<String>::new());
    }

    #[test]
    fn what_a_reload_writes_in_another_way_is_no_difference() {
        let as_made = census(
            &[],
            &[
                r#"public."odd "" CHECK (table" c1 CHECK (((s)::text = ANY ((ARRAY['a'::character varying])::text[])))"#,
                "public.child parent_fk_1 FOREIGN KEY (id) REFERENCES public.other(id)",
                "public.spans e EXCLUDE USING gist (span WITH &&) WHERE ((n > 0))",
            ],
            None,
        );
        let reloaded = census(
            &[],
            &[
                r#"public."odd "" CHECK (table" c1 CHECK (((s)::text = ANY (ARRAY[('a'::character varying)::text])))"#,
                "public.child child_id_fkey FOREIGN KEY (id) REFERENCES public.other(id)",
                "public.spans e EXCLUDE USING gist (span WITH &&) WHERE (n > 0)",
            ],
            None,
        );
        assert_eq!(as_made.differences(&reloaded), Vec::<String>::new());
        let fewer = census(&[], &["public.child child_id_fkey FOREIGN KEY (id) REFERENCES public.else(id)"], None);
        let differences = as_made.differences(&fewer);
        assert_eq!(differences.len(), 4, "{differences:#?}");
        let checks = |flag: &str| census(&[], &[&format!("public.t c CHECK ((n > 0)){flag}")], None);
        assert_eq!(checks("").differences(&checks(" NOT VALID")).len(), 2, "an unproven one is another one");
        let two = census(&[], &["public.t a CHECK ((n > 0))", "public.t b CHECK ((n > 1))"], None);
        let one = census(&[], &["public.t b CHECK ((n > 1))"], None);
        assert_eq!(two.differences(&one), ["constraint public.t a CHECK ((n > 0)) is missing"]);
    }

    #[test]
    fn an_inherited_check_is_as_proven_after_a_reload_as_that_of_the_parent() {
        let list = |parent: &str, child: &str| {
            let [parent, child] = [("parent", parent), ("child", child)]
                .map(|(table, rest)| format!("public.{table} c CHECK ((n > 0)){rest}"));
            census(&[], &[&parent, &child], None)
        };
        let made = list(" NOT VALID", " INHERITED");
        let reloaded = list(" NOT VALID", " NOT VALID INHERITED");
        assert_eq!(made.differences(&reloaded), Vec::<String>::new());
        // A manifest of an older Tandem does not say what is inherited.
        assert_eq!(list(" NOT VALID", "").differences(&reloaded), Vec::<String>::new());
        assert_eq!(list(" NOT VALID", " NOT VALID").differences(&reloaded), Vec::<String>::new());
        assert_eq!(made.differences(&list("", " INHERITED")).len(), 2, "the parent's own is another one");
        assert_eq!(made.differences(&census(&[], &["public.parent c CHECK ((n > 0)) NOT VALID"], None)).len(), 1);
    }

    #[test]
    fn what_every_database_has_and_views_of_an_empty_view_are_no_difference() {
        let objects = |objects: &[&str]| Census {
            objects: Some(objects.iter().map(|&one| one.to_owned()).collect()),
            ..Census::default()
        };
        let made = objects(&["materialized view s.a with rows", "materialized view s.b without rows"]);
        let reloaded =
            objects(&["extension plpgsql", "materialized view s.a without rows", "materialized view s.b without rows"]);
        assert_eq!(made.differences(&reloaded), Vec::<String>::new());
        assert_eq!(reloaded.differences(&made), Vec::<String>::new());
        let [filled, empty] = ["with", "without"].map(|rows| objects(&[&format!("materialized view s.a {rows} rows")]));
        assert_eq!(filled.differences(&empty).len(), 2, "nothing explains that it is empty");
        let [one, none] = [objects(&["extension hstore"]), objects(&[])];
        assert_eq!(one.differences(&none), ["extension hstore is missing"]);
        let fewer = objects(&["materialized view s.b without rows"]);
        assert_eq!(made.differences(&fewer), ["materialized view s.a is missing"]);
    }

    #[test]
    fn rows_may_lie_in_other_partitions_of_the_same_table() {
        let in_partitions = |rows: [u64; 2]| Census {
            partitions: [("s.p1", "s.p"), ("s.p2", "s.p")].map(|(leaf, root)| (leaf.into(), root.into())).into(),
            ..census(&[("s.p1", rows[0]), ("s.p2", rows[1])], &[], None)
        };
        assert_eq!(in_partitions([1, 5]).differences(&in_partitions([4, 2])), Vec::<String>::new());
        assert_eq!(in_partitions([1, 5]).differences(&in_partitions([4, 1])), ["table s.p has 5 rows, not 6"]);
    }
}
