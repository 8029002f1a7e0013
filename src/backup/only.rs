//! What alone is wanted of a dump: the rows of some tables. Pure.
//!
//! The definitions of everything are still loaded, for a table's defaults, checks and types need them, and an empty table costs
//! a moment. What cannot hold when only some rows are there is left out: foreign keys that lead to or from other tables, and the
//! content of materialized views.

use std::collections::BTreeSet;

use super::tokens::{self, Token, name, word};

/// The tables whose rows are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Only {
    /// Schema and name of each.
    pub tables: BTreeSet<(String, String)>,
    /// All tables of this schema.
    pub schema: Option<String>,
}

impl Only {
    /// Whether the rows of the table are wanted. A dump that an old pg_dump wrote names no schema.
    pub fn holds(&self, schema: Option<&str>, table: &str) -> bool {
        match schema {
            Some(schema) => {
                self.schema.as_deref() == Some(schema) || self.tables.contains(&(schema.to_owned(), table.to_owned()))
            }
            None => self.schema.is_some() || self.tables.iter().any(|(_, name)| name == table),
        }
    }

    /// Whether the rows that follow on `copy`, a COPY, are wanted.
    pub fn wants_rows(&self, copy: &[u8]) -> bool {
        let Some(tokens) = tokens_of(copy) else { return false };
        let [_copy, rest @ ..] = tokens.as_slice() else { return false };
        relation(rest).is_some_and(|(schema, table, _)| self.holds(schema.as_deref(), &table))
    }

    /// Whether `statement` would fail, or cost time for nothing, when only these rows are there.
    pub fn leaves_out(&self, statement: &[u8]) -> bool {
        let Some(tokens) = tokens_of(statement) else { return false };
        let words: Vec<Option<String>> = tokens.iter().take(3).map(word).collect();
        let first: Vec<&str> = words.iter().map_while(Option::as_deref).collect();
        match first.as_slice() {
            ["REFRESH", "MATERIALIZED", "VIEW"] => true,
            ["ALTER", "TABLE", ..] => foreign_key(&tokens)
                .is_some_and(|ends| !ends.iter().all(|(schema, table)| self.holds(schema.as_deref(), table))),
            _ => false,
        }
    }
}

/// A table as a statement names it: its schema, where that is said, and its name.
type Named = (Option<String>, String);

fn tokens_of(statement: &[u8]) -> Option<Vec<Token>> {
    tokens::statements(std::str::from_utf8(statement).ok()?).into_iter().next()
}

/// The relation that `tokens` begin with, and what follows.
fn relation(tokens: &[Token]) -> Option<(Option<String>, String, &[Token])> {
    match tokens {
        [schema, Token::Other('.'), table, rest @ ..] => Some((Some(name(schema)?), name(table)?, rest)),
        [table, rest @ ..] => Some((None, name(table)?, rest)),
        [] => None,
    }
}

/// The two tables of `ALTER TABLE ONLY one ADD CONSTRAINT … FOREIGN KEY (…) REFERENCES other(…)`.
fn foreign_key(tokens: &[Token]) -> Option<[Named; 2]> {
    let after = &tokens[2..];
    let after = if after.first().and_then(word).as_deref() == Some("ONLY") { &after[1..] } else { after };
    let (schema, table, rest) = relation(after)?;
    let [add, constraint, _name, foreign, key, rest @ ..] = rest else { return None };
    let said = [add, constraint, foreign, key].map(word);
    if said != ["ADD", "CONSTRAINT", "FOREIGN", "KEY"].map(|word| Some(word.to_owned())) {
        return None;
    }
    // The columns before it are no words of their own where they are called so: pg_dump quotes a keyword.
    let at = rest.iter().position(|token| word(token).as_deref() == Some("REFERENCES"))?;
    let (other_schema, other, _) = relation(&rest[at + 1..])?;
    Some([(schema, table), (other_schema, other)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(tables: &[(&str, &str)], schema: Option<&str>) -> Only {
        let tables = tables.iter().map(|&(schema, name)| (schema.to_owned(), name.to_owned())).collect();
        Only { tables, schema: schema.map(str::to_owned) }
    }

    #[test]
    fn the_rows_of_a_table_are_known_by_its_exact_name() {
        let orders = only(&[("public", "orders"), ("my schema", "Odd \"one\"")], None);
        for (copy, wanted) in [
            ("COPY public.orders (id, \"from\") FROM stdin;", true),
            ("COPY \"my schema\".\"Odd \"\"one\"\"\" (id) FROM stdin;", true),
            ("COPY public.orders_old (id) FROM stdin;", false),
            ("COPY public.\"Orders\" (id) FROM stdin;", false),
            ("COPY other.orders (id) FROM stdin;", false),
            ("COPY orders (id) FROM stdin;", true),
            ("COPY public.none FROM stdin;", false),
        ] {
            assert_eq!(orders.wants_rows(copy.as_bytes()), wanted, "{copy}");
        }
        let sales = only(&[], Some("sales"));
        assert!(sales.wants_rows(b"COPY sales.a (id) FROM stdin;") && !sales.wants_rows(b"COPY public.a FROM stdin;"));
        assert!(!sales.wants_rows(b"COPY sales.\xff FROM stdin;"));
    }

    #[test]
    fn a_foreign_key_is_kept_where_both_of_its_tables_are_wanted() {
        let both = only(&[("public", "orders"), ("public", "Lines")], None);
        let key = |table: &str, other: &str| {
            let only = if table == "public.orders" { "ONLY " } else { "" };
            format!(
                "ALTER TABLE {only}{table}\n    ADD CONSTRAINT \"a key\" FOREIGN KEY (\"references\", id) REFERENCES {other}(id) \
                 ON DELETE CASCADE;"
            )
        };
        for (table, other, left_out) in [
            ("public.orders", "public.orders", false),
            ("public.\"Lines\"", "public.orders", false),
            ("public.orders", "public.customers", true),
            ("public.customers", "public.orders", true),
            ("public.customers", "public.shops", true),
        ] {
            assert_eq!(both.leaves_out(key(table, other).as_bytes()), left_out, "{table} {other}");
        }
        for (statement, left_out) in [
            ("ALTER TABLE ONLY public.shops ADD CONSTRAINT shops_pkey PRIMARY KEY (id);", false),
            ("ALTER TABLE public.shops OWNER TO app;", false),
            ("ALTER TABLE public.shops ADD CONSTRAINT c CHECK (a <> ' FOREIGN KEY REFERENCES b');", false),
            ("REFRESH MATERIALIZED VIEW public.totals;", true),
            ("ALTER TABLE", false),
        ] {
            assert_eq!(both.leaves_out(statement.as_bytes()), left_out, "{statement}");
        }
    }
}
