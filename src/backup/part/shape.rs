//! In a scratch database, give what is asked for its new names and cut it loose from the rest: PostgreSQL itself then writes it
//! down as it is to be in the live database. Whatever else a table belongs to there must not get it by the way: a table that
//! inherited from a live one would show its rows there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use sea_orm::sqlx::{PgConnection, Postgres, query_as, query_scalar};

use super::super::rights::run;
use super::names::renamed;
use super::wish::{Named, Wanted, Wish};
use crate::postgres::provision::identifier;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// A table with its partitions, each with whether it holds rows by itself.
const FAMILY: &str = "SELECT class.oid::bigint, namespace.nspname::text, class.relname::text, class.relkind = 'r'
     FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
     WHERE class.relkind IN ('r', 'p') AND class.oid IN (
         SELECT top.oid FROM pg_catalog.pg_class AS top JOIN pg_catalog.pg_namespace AS its ON its.oid = top.relnamespace
         WHERE its.nspname = $1 AND top.relname = $2
         UNION SELECT tree.relid
         FROM pg_catalog.pg_class AS top JOIN pg_catalog.pg_namespace AS its ON its.oid = top.relnamespace
         CROSS JOIN LATERAL pg_catalog.pg_partition_tree(top.oid) AS tree
         WHERE its.nspname = $1 AND top.relname = $2 AND top.relkind = 'p')
     ORDER BY (namespace.nspname = $1 AND class.relname = $2) DESC, 1";
const OF_SCHEMA: &str = "SELECT class.oid::bigint, namespace.nspname::text, class.relname::text, class.relkind = 'r'
     FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
     WHERE class.relkind IN ('r', 'p') AND namespace.nspname = $1 ORDER BY 1";
/// What ties tables to others that are not among them.
const TIES: &str = "SELECT CASE WHEN child.relispartition
         THEN 'ALTER TABLE ' || tie.inhparent::regclass || ' DETACH PARTITION ' || tie.inhrelid::regclass
         ELSE 'ALTER TABLE ' || tie.inhrelid::regclass || ' NO INHERIT ' || tie.inhparent::regclass END
     FROM pg_catalog.pg_inherits AS tie JOIN pg_catalog.pg_class AS child ON child.oid = tie.inhrelid
     WHERE child.relkind IN ('r', 'p') AND tie.inhrelid::bigint = ANY($1) AND NOT tie.inhparent::bigint = ANY($1) ORDER BY 1";
/// What of a table's own has a name in its schema: indexes, sequences, extended statistics.
const BELONGINGS: &str = "SELECT 'TABLE', belonging.relid, namespace.nspname::text, class.relname::text
     FROM (SELECT indexrelid AS oid, indrelid::bigint AS relid FROM pg_catalog.pg_index
           UNION ALL SELECT objid, refobjid::bigint FROM pg_catalog.pg_depend
           WHERE classid = 'pg_catalog.pg_class'::regclass AND refclassid = 'pg_catalog.pg_class'::regclass
             AND deptype IN ('a', 'i') AND refobjsubid > 0) AS belonging
     JOIN pg_catalog.pg_class AS class ON class.oid = belonging.oid
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
     WHERE belonging.relid = ANY($1) AND class.relkind IN ('i', 'I', 'S')
     UNION SELECT 'STATISTICS', stxrelid::bigint, namespace.nspname::text, stxname::text
     FROM pg_catalog.pg_statistic_ext JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = stxnamespace
     WHERE stxrelid::bigint = ANY($1) ORDER BY 1, 2, 4";
const NAMES: &str = "SELECT relname::text FROM pg_catalog.pg_class AS class
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace WHERE namespace.nspname = $1
     UNION SELECT stxname::text FROM pg_catalog.pg_statistic_ext
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = stxnamespace WHERE namespace.nspname = $1";
const EXTENSIONS: &str = "SELECT extname::text FROM pg_catalog.pg_extension AS extension
     JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = extension.extnamespace WHERE namespace.nspname = $1";

/// A table and what it is called now.
#[derive(Clone, Debug)]
pub struct Moved {
    pub from: Named,
    pub to: Named,
    /// Whether it holds rows by itself: a partitioned table does not.
    pub has_rows: bool,
    /// The table that was asked for, where this is its partition.
    pub of: Option<Named>,
}

/// What is to be brought into the live database.
#[derive(Debug)]
pub enum Shape {
    Tables(Vec<Moved>),
    Schema(String, Vec<Moved>),
}

impl Shape {
    /// The tables.
    pub fn moved(&self) -> &[Moved] {
        match self {
            Self::Tables(moved) | Self::Schema(_, moved) => moved,
        }
    }
}

/// A table with what it has in the scratch database.
struct Member {
    oid: i64,
    name: Named,
    has_rows: bool,
}

/// Give what is wished its shape in the `scratch` database. `live` is where it goes.
///
/// # Errors
/// The backup does not hold what its manifest says, or the server refuses.
pub async fn shape(scratch: &mut PgConnection, live: &mut PgConnection, wish: &Wish) -> anyhow::Result<Shape> {
    match wish {
        Wish::Tables(wanted) => tables(scratch, live, wanted).await.map(Shape::Tables),
        Wish::Schema(schema, into) => {
            let members = members(scratch, OF_SCHEMA, &[schema]).await?;
            cut_loose(scratch, &members).await?;
            if schema != into {
                rename_schema(scratch, schema, into).await?;
            }
            let moved = members.into_iter().map(|member| Moved {
                to: Named::new(into, &member.name.name),
                from: member.name,
                has_rows: member.has_rows,
                of: None,
            });
            Ok(Shape::Schema(into.clone(), moved.collect()))
        }
    }
}

async fn tables(scratch: &mut PgConnection, live: &mut PgConnection, wanted: &[Wanted]) -> anyhow::Result<Vec<Moved>> {
    let mut families = Vec::new();
    for wanted in wanted {
        let family = members(scratch, FAMILY, &[&wanted.table.schema, &wanted.table.name]).await?;
        let is_there = family.first().is_some_and(|top| top.name == wanted.table);
        anyhow::ensure!(is_there, "the backup holds no table {}, though its manifest says so", wanted.table);
        families.push((wanted, family));
    }
    cut_loose(scratch, families.iter().flat_map(|(_, family)| family)).await?;
    let mut names = Names::default();
    let (mut moved, mut last) = (Vec::new(), Vec::new());
    for (number, (wanted, family)) in families.iter().enumerate() {
        let Wanted { table, into } = wanted;
        let called = (table.name.as_str(), into.name.as_str());
        let oids: Vec<i64> = family.iter().map(|member| member.oid).collect();
        for (kind, schema, name) in belongings(scratch, &oids).await? {
            let goes_to = if schema == table.schema { &into.schema } else { &schema };
            let new = names.free((&mut *scratch, &mut *live), (&schema, goes_to), &name, called).await?;
            let old = Named::new(&schema, &name);
            if new != name {
                rename(scratch, kind, &old, &new).await?;
            }
            if kind == STATISTICS && *goes_to != schema {
                change_schema(scratch, kind, &Named::new(&schema, &new), goes_to).await?;
            }
        }
        for (place, member) in family.iter().enumerate() {
            let Named { schema, name } = &member.name;
            let goes_to = if *schema == table.schema { &into.schema } else { schema };
            let new = match place {
                0 => into.name.clone(),
                _ if called.0 == called.1 => name.clone(),
                _ => names.free((&mut *scratch, &mut *live), (schema, goes_to), name, called).await?,
            };
            let to = Named::new(goes_to, &new);
            let of = (place > 0).then(|| table.clone());
            moved.push(Moved { from: member.name.clone(), to: to.clone(), has_rows: member.has_rows, of });
            if to == member.name {
                continue;
            }
            // What the backup has under the new name is out of the way once all have left their own.
            let between = Named::new(schema, &format!("tandem_moved_{number}_{place}"));
            rename(scratch, TABLE, &member.name, &between.name).await?;
            last.push((between, to));
        }
    }
    for (number, (between, to)) in last.iter().enumerate() {
        make_way(scratch, to, number).await?;
        if between.schema != to.schema {
            let make = format!("CREATE SCHEMA IF NOT EXISTS {}", identifier(&to.schema));
            run(scratch, "make a schema", make).await?;
            change_schema(scratch, TABLE, between, &to.schema).await?;
        }
        rename(scratch, TABLE, &Named::new(&to.schema, &between.name), &to.name).await?;
    }
    Ok(moved)
}

const TABLE: &str = "TABLE";
const STATISTICS: &str = "STATISTICS";

/// The names that are taken, by schema.
#[derive(Default)]
struct Names {
    scratch: BTreeMap<String, BTreeSet<String>>,
    live: BTreeMap<String, BTreeSet<String>>,
}

impl Names {
    /// A name for `name` of the schema `old` when it goes to the schema `new` with its table, which is called otherwise then: free in
    /// both, and in the live database.
    async fn free(
        &mut self,
        (scratch, live): (&mut PgConnection, &mut PgConnection),
        (old, new): (&str, &str),
        name: &str,
        called: (&str, &str),
    ) -> anyhow::Result<String> {
        for schema in [old, new] {
            if !self.scratch.contains_key(schema) {
                self.scratch.insert(schema.to_owned(), taken(scratch, schema).await?);
            }
        }
        if !self.live.contains_key(new) {
            let there = taken(live, new).await.context("look at the live database")?;
            self.live.insert(new.to_owned(), there);
        }
        let mut taken: BTreeSet<String> = self.scratch[old].iter().filter(|it| *it != name).cloned().collect();
        taken.extend(self.live[new].iter().cloned());
        if old != new {
            taken.extend(self.scratch[new].iter().cloned());
        }
        let free = renamed(name, called, &taken);
        for schema in [old, new] {
            self.scratch.entry(schema.to_owned()).or_default().insert(free.clone());
        }
        Ok(free)
    }
}

async fn taken(session: &mut PgConnection, schema: &str) -> anyhow::Result<BTreeSet<String>> {
    let names = query_scalar::<_, String>(NAMES).bind(schema).fetch_all(session);
    Ok(answered(MAKE_LIMIT, "list the names of a schema", names).await?.into_iter().collect())
}

async fn members(scratch: &mut PgConnection, query: &'static str, names: &[&str]) -> anyhow::Result<Vec<Member>> {
    let query = query_as::<Postgres, (i64, String, String, bool)>(query);
    let bound = names.iter().fold(query, |query, name| query.bind((*name).to_owned()));
    let rows = answered(MAKE_LIMIT, "look for the tables", bound.fetch_all(scratch)).await?;
    let member = |(oid, schema, name, has_rows)| Member { oid, name: Named { schema, name }, has_rows };
    Ok(rows.into_iter().map(member).collect())
}

async fn cut_loose<'a>(
    scratch: &mut PgConnection,
    members: impl IntoIterator<Item = &'a Member>,
) -> anyhow::Result<()> {
    let oids: Vec<i64> = members.into_iter().map(|member| member.oid).collect();
    let ties = query_scalar::<_, String>(TIES).bind(&oids).fetch_all(&mut *scratch);
    for statement in answered(MAKE_LIMIT, "look what the tables belong to", ties).await? {
        run(scratch, &format!("run {statement}"), statement.clone()).await?;
    }
    Ok(())
}

async fn belongings(scratch: &mut PgConnection, tables: &[i64]) -> anyhow::Result<Vec<(&'static str, String, String)>> {
    let rows = query_as::<_, (String, i64, String, String)>(BELONGINGS).bind(tables).fetch_all(scratch);
    let rows = answered(MAKE_LIMIT, "look what belongs to the tables", rows).await?;
    let kind = |kind: &str| if kind == STATISTICS { STATISTICS } else { TABLE };
    Ok(rows.into_iter().map(|(what, _, schema, name)| (kind(&what), schema, name)).collect())
}

/// Rename a relation of whatever kind, or statistics.
async fn rename(scratch: &mut PgConnection, kind: &str, old: &Named, new: &str) -> anyhow::Result<()> {
    let statement = format!("ALTER {kind} {} RENAME TO {}", old.sql(), identifier(new));
    run(scratch, &format!("rename {old}"), statement).await
}

async fn change_schema(scratch: &mut PgConnection, kind: &str, named: &Named, schema: &str) -> anyhow::Result<()> {
    let statement = format!("ALTER {kind} {} SET SCHEMA {}", named.sql(), identifier(schema));
    run(scratch, &format!("move {named} to schema {schema}"), statement).await
}

/// Rename what else the backup has under the name `to`.
async fn make_way(scratch: &mut PgConnection, to: &Named, number: usize) -> anyhow::Result<()> {
    if taken(scratch, &to.schema).await?.contains(&to.name) {
        rename(scratch, TABLE, to, &format!("tandem_aside_{number}")).await?;
    }
    Ok(())
}

async fn rename_schema(scratch: &mut PgConnection, schema: &str, into: &str) -> anyhow::Result<()> {
    let extensions = query_scalar::<_, String>(EXTENSIONS).bind(schema).fetch_all(&mut *scratch);
    let extensions = answered(ANSWER_LIMIT, "list the extensions of the schema", extensions).await?;
    let there = query_scalar("SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)").bind(into);
    if answered(ANSWER_LIMIT, "look for a schema", there.fetch_one(&mut *scratch)).await? {
        let aside = format!("ALTER SCHEMA {} RENAME TO tandem_aside", identifier(into));
        run(scratch, "make way for the schema", aside).await?;
    }
    let rename = format!("ALTER SCHEMA {} RENAME TO {}", identifier(schema), identifier(into));
    run(scratch, &format!("rename schema {schema}"), rename).await?;
    // The live database has its extensions where they were.
    if !extensions.is_empty() {
        run(scratch, "make a schema", format!("CREATE SCHEMA {}", identifier(schema))).await?;
    }
    for extension in extensions {
        let back = format!("ALTER EXTENSION {} SET SCHEMA {}", identifier(&extension), identifier(schema));
        run(scratch, &format!("leave extension {extension} in schema {schema}"), back).await?;
    }
    Ok(())
}
