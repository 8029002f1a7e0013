//! The foreign keys between what is restored and what is not. Pure.

use serde::Serialize;

use super::super::manifest::Census;
use super::super::tokens;
use super::wish::Named;

const FOREIGN_KEY: &str = " FOREIGN KEY (";
const REFERENCES: &str = ") REFERENCES ";

/// A foreign key that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The table that has it, as the backup calls it.
    pub table: Named,
    pub key: String,
    /// The table that it leads to.
    pub references: Named,
    /// What follows on `ADD CONSTRAINT key`.
    pub definition: String,
}

/// The foreign keys of which one table is among those that `holds` and the other is not. Those of partitions are their table's.
pub fn left_out(census: &Census, holds: impl Fn(&Named) -> bool) -> Vec<LeftOut> {
    let constraints = census.constraints.as_deref().unwrap_or_default();
    let keys = constraints.iter().filter_map(|constraint| read(constraint));
    let keys = keys.filter(|key| !census.partitions.contains_key(&key.table.to_string()));
    keys.filter(|key| holds(&key.table) != holds(&key.references)).collect()
}

/// `schema.table name definition`, if it is a foreign key.
fn read(constraint: &str) -> Option<LeftOut> {
    let (table, rest) = relation(constraint)?;
    let rest = rest.strip_prefix(' ')?;
    let at = rest.find(FOREIGN_KEY)?;
    let (key, definition) = (rest[..at].to_owned(), rest[at + 1..].to_owned());
    let (references, _) = relation(definition.split_once(REFERENCES)?.1)?;
    Some(LeftOut { table, key, references, definition })
}

/// The relation that `text` begins with, and what follows.
fn relation(text: &str) -> Option<(Named, &str)> {
    let (schema, rest) = name(text)?;
    let (name, rest) = name(rest.strip_prefix('.')?)?;
    Some((Named { schema, name }, rest))
}

fn name(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '.', '(']).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    tokens::quoted(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_lead_in_or_out_are_told_and_others_are_not() {
        let constraints = [
            "public.orders orders_pkey PRIMARY KEY (id)",
            "public.orders of FOREIGN KEY (customer) REFERENCES public.customers(id) ON DELETE CASCADE",
            "public.orders itself FOREIGN KEY (parent) REFERENCES public.orders(id)",
            "public.\"odd \"\" lines\" a key FOREIGN KEY (\"order\") REFERENCES public.orders(id)",
            "public.lines_1 of FOREIGN KEY (n) REFERENCES public.orders(id)",
            "public.others o FOREIGN KEY (n) REFERENCES public.customers(id)",
            "public.others c CHECK ((a <> ' FOREIGN KEY ('::text))",
        ];
        let census = Census {
            constraints: Some(constraints.map(str::to_owned).into()),
            partitions: [("public.lines_1".to_owned(), "public.lines".to_owned())].into(),
            ..Census::default()
        };
        let keys = left_out(&census, |table| table.name == "orders");
        let told: Vec<String> =
            keys.iter().map(|it| format!("{} {} {}: {}", it.table, it.key, it.references, it.definition)).collect();
        assert_eq!(
            told,
            [
                "public.orders of public.customers: FOREIGN KEY (customer) REFERENCES public.customers(id) ON DELETE CASCADE",
                "public.odd \" lines a key public.orders: FOREIGN KEY (\"order\") REFERENCES public.orders(id)"
            ]
        );
        assert_eq!(left_out(&Census::default(), |_| true), []);
    }
}
