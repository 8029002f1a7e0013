//! What is made, what is filled and what is left out. Pure.

use std::collections::BTreeSet;

use super::Wish;
use super::kind::Kind;
use super::profile::{Profile, TableProfile};
use super::shape::{Shape, Table};
use super::statements;
use super::target::{BOOKKEEPING, Target, TargetTable};
use crate::exit::{Code, Failure, Reason};

/// Where rows go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Destination {
    /// Into the table of the same name where there is one; else it is made.
    #[default]
    Auto,
    /// Every table is made.
    New,
    /// Every table is there.
    Existing,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub schema: String,
    pub tables: Vec<TablePlan>,
    /// What changes or is left out, in words.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct TablePlan {
    /// Its place in the file's shape.
    pub(super) source: usize,
    /// Its name in the database.
    pub name: String,
    pub action: Action,
    pub columns: Vec<ColumnPlan>,
    pub rows: u64,
    pub(super) key: Vec<String>,
    /// The largest number that AUTOINCREMENT gave.
    pub(super) given: Option<i64>,
    /// Constraints and indexes that are made after the rows.
    pub(super) after: Vec<String>,
    pub(super) keys: Vec<KeyPlan>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Make,
    /// Into a table that is there, after the rows that it `replaces` are deleted.
    Fill {
        replaces: u64,
    },
    /// Left out, and why.
    Leave(String),
}

#[derive(Clone, Debug)]
pub struct ColumnPlan {
    /// Its place in the table of the file.
    pub(super) source: usize,
    pub name: String,
    pub kind: Kind,
    pub declared: String,
    pub(super) not_null: bool,
    /// Whether it numbers the rows.
    pub(super) identity: bool,
    pub(super) default: Option<String>,
}

/// A foreign key whose rows are checked; `made` says whether the database gets it by this import.
#[derive(Clone, Debug)]
pub struct KeyPlan {
    pub columns: Vec<String>,
    pub parent: String,
    pub parent_columns: Vec<String>,
    pub(super) sources: Vec<String>,
    pub(super) parent_source: String,
    pub(super) parent_sources: Vec<String>,
    pub on_update: String,
    pub on_delete: String,
    pub made: bool,
}

/// Tables that Django's `migrate` fills by itself. Their rows are referred to by number, so those of the file are the right ones.
const FILLED_BY_DJANGO: [&str; 3] = ["django_content_type", "auth_permission", "django_site"];

/// PostgreSQL cuts longer names (PostgreSQL documentation, 4.1.1).
const NAME_MAX: usize = 63;

impl TablePlan {
    /// Whether rows of it are written.
    pub fn is_written(&self) -> bool {
        !matches!(self.action, Action::Leave(_))
    }
}

/// Decide.
///
/// # Errors
/// A [`Failure`] with everything that keeps the two from going together.
pub fn plan(shape: &Shape, profiles: &[TableProfile], target: &Target, wish: &Wish) -> anyhow::Result<Plan> {
    let mut decision = Decision { shape, target, wish, problems: Vec::new(), notes: Vec::new() };
    if shape.tables.is_empty() {
        decision.problems.push("it has no tables".to_owned());
    }
    decision.migrations();
    let mut tables = Vec::new();
    for (source, (table, profile)) in shape.tables.iter().zip(profiles).enumerate() {
        tables.extend(decision.table(source, table, profile));
    }
    decision.keys(&mut tables);
    decision.notes.extend(shape.left.iter().map(|left| format!("not carried over: {left}")));
    let Decision { problems, notes, .. } = decision;
    if problems.is_empty() {
        return Ok(Plan { schema: wish.schema.clone(), tables, notes });
    }
    let text = format!("{} cannot be imported:\n  {}", wish.file.display(), problems.join("\n  "));
    let reasons = problems.into_iter().map(Reason::of_message).collect();
    Err(Failure::for_reasons(Code::Failed, text, reasons).into())
}

struct Decision<'a> {
    shape: &'a Shape,
    target: &'a Target,
    wish: &'a Wish,
    problems: Vec<String>,
    notes: Vec<String>,
}

impl Decision<'_> {
    /// Tables that migrations make should be made by them, and both sides be at the same one.
    fn migrations(&mut self) {
        let Some((name, _)) = BOOKKEEPING.into_iter().find(|(name, _)| self.shape.table(name).is_some()) else {
            return;
        };
        let others = self.shape.tables.iter().filter(|table| !BOOKKEEPING.iter().any(|(name, _)| table.name == *name));
        let none_there = others.clone().all(|table| self.target.table(&table.name).is_none());
        if self.wish.destination == Destination::Auto && none_there && others.count() > 0 {
            let program = if name == "alembic_version" { "Alembic" } else { "Django" };
            self.problems.push(format!(
                "{program} made its tables ({name}), and the database has none of them yet: run `tandem migrate up` first, so \
                 that they are made as your migrations say, and import again (`--into new` makes them from the file instead)"
            ));
        }
        for (name, applied) in &self.target.applied {
            let Some(file) = self.shape.applied.get(name) else { continue };
            let list = |names: Vec<&String>| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            let (only_file, only_here) =
                (list(file.difference(applied).collect()), list(applied.difference(file).collect()));
            for (only, side) in [(only_file, "the file alone"), (only_here, "the database alone")] {
                if !only.is_empty() && !applied.is_empty() {
                    self.notes.push(format!("{side} has these migrations ({name}): {only}"));
                }
            }
        }
    }

    fn table(&mut self, source: usize, table: &Table, profile: &TableProfile) -> Option<TablePlan> {
        let found = self.target.table(&table.name);
        let mut plan = TablePlan {
            source,
            name: found.map_or(&*table.name, |(name, _)| name).to_owned(),
            action: Action::Make,
            columns: Vec::new(),
            rows: profile.rows,
            key: table.key.iter().map(|&column| table.columns[column].name.clone()).collect(),
            given: table.given,
            after: Vec::new(),
            keys: Vec::new(),
        };
        match (found, self.wish.destination) {
            (Some((name, there)), _) if there.rows > 0 && BOOKKEEPING.iter().any(|(it, _)| *it == name) => {
                plan.action = Action::Leave("the database's own stays".to_owned());
            }
            (Some((name, _)), Destination::New) => {
                self.problems.push(format!("table {name} is there already, and --into new was asked for"));
                return None;
            }
            (Some((_, there)), _) => self.fill(table, profile, there, &mut plan),
            (None, Destination::Existing) => {
                self.problems
                    .push(format!("table {} is not in the database, and --into existing was asked for", table.name));
                return None;
            }
            (None, _) => self.make(table, profile, &mut plan),
        }
        Some(plan)
    }

    fn fill(&mut self, table: &Table, profile: &TableProfile, there: &TargetTable, plan: &mut TablePlan) {
        let name = &plan.name;
        if !there.is_table {
            self.problems.push(format!("{name} is a view in the database, not a table"));
        }
        if there.rows > 0 && !self.wish.replace && !FILLED_BY_DJANGO.contains(&name.as_str()) {
            self.problems
                .push(format!("table {name} holds {} rows already: `--replace` deletes them first", there.rows));
        }
        for (source, (column, values)) in table.columns.iter().zip(&profile.columns).enumerate() {
            let Some(into) = there.column(&column.name) else {
                if values.nulls == profile.rows {
                    self.notes.push(format!(
                        "{name}.{} is not in the database, and empty in the file: left out",
                        column.name
                    ));
                } else {
                    self.problems.push(format!(
                        "{name}.{} has values, and the database's table has no such column: are both at the same migration?",
                        column.name
                    ));
                }
                continue;
            };
            if !into.generated {
                plan.columns.push(ColumnPlan {
                    source,
                    name: into.name.clone(),
                    kind: into.kind.clone(),
                    declared: column.declared.clone(),
                    not_null: into.not_null,
                    identity: false,
                    default: None,
                });
            }
        }
        let missing = there.columns.iter().filter(|into| into.not_null && !into.has_default && !into.generated);
        let missing = missing.filter(|into| profile.rows > 0 && table.column(&into.name).is_none());
        self.problems.extend(missing.map(|into| {
            format!("{name}.{} may not be NULL in the database, and the file has no such column", into.name)
        }));
        plan.action = Action::Fill { replaces: there.rows };
    }

    fn make(&mut self, table: &Table, profile: &TableProfile, plan: &mut TablePlan) {
        let name = &table.name;
        let names = std::iter::once(name).chain(table.columns.iter().map(|column| &column.name));
        for long in names.filter(|name| name.len() > NAME_MAX) {
            self.problems
                .push(format!("{name}: the name {long} is longer than the {NAME_MAX} bytes that PostgreSQL keeps"));
        }
        if self.target.names.contains(name) {
            self.problems.push(format!("the name {name} is taken in the database, by something that is no table"));
        }
        for (source, (column, values)) in table.columns.iter().zip(&profile.columns).enumerate() {
            let identity = table.is_row_number(source);
            let kind = if identity { Kind::Integer(64) } else { Kind::of_declared(&column.declared, values) };
            let default = column.default.as_deref().filter(|_| !column.generated);
            let carried = default.map(|default| statements::default(default, &kind));
            if let (Some(default), Some(Err(()))) = (default, &carried) {
                self.notes.push(format!("not carried over: the default {default} of {name}.{}", column.name));
            }
            if column.generated {
                self.notes
                    .push(format!("{name}.{} is computed in the file: its values become plain ones", column.name));
            }
            self.notes.extend(chosen(name, &column.name, &column.declared, values, &kind));
            plan.columns.push(ColumnPlan {
                source,
                name: column.name.clone(),
                not_null: column.not_null || table.key.contains(&source),
                identity,
                default: carried.and_then(Result::ok).flatten(),
                declared: column.declared.clone(),
                kind,
            });
        }
        if table.has_check {
            self.notes.push(format!("not carried over: the CHECK constraints of {name}"));
        }
        if table.ignores_case {
            self.notes.push(format!(
                "{name} has text that compares without case (NOCASE); in PostgreSQL it is compared exactly"
            ));
        }
        let taken: BTreeSet<&str> = self
            .target
            .names
            .iter()
            .chain(self.shape.tables.iter().map(|table| &table.name))
            .map(String::as_str)
            .collect();
        plan.after =
            statements::indexes(&self.wish.schema, table, |name| name.len() <= NAME_MAX && !taken.contains(name));
    }

    /// Foreign keys: those of tables that are made are made too, where PostgreSQL can have them.
    fn keys(&mut self, tables: &mut [TablePlan]) {
        let known = tables.to_vec();
        for plan in tables.iter_mut().filter(|plan| plan.is_written()) {
            let table = &self.shape.tables[plan.source];
            for key in &table.foreign_keys {
                let told = format!("{}.{}", plan.name, key.columns.join(", "));
                let Some(parent) = self.shape.table(&key.parent) else {
                    self.notes.push(format!(
                        "not carried over: the foreign key of {told} to {}, which is not there",
                        key.parent
                    ));
                    continue;
                };
                let Some(to) = known.iter().find(|it| self.shape.tables[it.source].name == parent.name) else {
                    continue;
                };
                let parent_sources = match key.parent_columns.is_empty() {
                    true => parent.key.iter().map(|&column| parent.columns[column].name.clone()).collect(),
                    false => key.parent_columns.clone(),
                };
                let names = |plan: &TablePlan, table: &Table, wanted: &[String]| -> Option<Vec<(String, Kind)>> {
                    let find = |name: &String| {
                        let source = table.column(name)?;
                        let column = plan.columns.iter().find(|column| column.source == source)?;
                        Some((column.name.clone(), column.kind.clone()))
                    };
                    wanted.iter().map(find).collect()
                };
                let both = names(plan, table, &key.columns).zip(names(to, parent, &parent_sources));
                let Some((columns, parents)) = both.filter(|(from, to)| from.len() == to.len()) else { continue };
                let fits = columns.iter().zip(&parents).all(|((_, from), (_, to))| from.is_comparable(to));
                let columns: Vec<String> = columns.into_iter().map(|(name, _)| name).collect();
                let has_it = |there: &TargetTable| there.foreign_keys.contains(&columns);
                let made = plan.action == Action::Make && to.is_written();
                if made && !fits {
                    self.notes
                        .push(format!("not carried over: the foreign key of {told}, whose type is not its parent's"));
                    continue;
                }
                if made || self.target.tables.get(&plan.name).is_some_and(has_it) && to.is_written() {
                    plan.keys.push(KeyPlan {
                        columns,
                        parent: to.name.clone(),
                        parent_columns: parents.into_iter().map(|(name, _)| name).collect(),
                        sources: key.columns.clone(),
                        parent_source: parent.name.clone(),
                        parent_sources,
                        on_update: key.on_update.clone(),
                        on_delete: key.on_delete.clone(),
                        made,
                    });
                }
            }
        }
    }
}

/// What is worth knowing of a type that was chosen by the values.
fn chosen(table: &str, column: &str, declared: &str, values: &Profile, kind: &Kind) -> Option<String> {
    let lower = declared.to_lowercase();
    let is_time = matches!(kind, Kind::Date | Kind::Timestamp | Kind::TimestampTz);
    match kind {
        _ if is_time && values.integers + values.reals > 0 => Some(format!(
            "{table}.{column}: {} whole numbers are read as seconds (or milliseconds) since 1970, {} others as Julian days",
            values.integers, values.reals
        )),
        Kind::Text(None) if lower.contains("char(") && values.longest > 0 => Some(format!(
            "{table}.{column} becomes text: it is declared {declared}, and has texts of {} characters",
            values.longest
        ))
        .filter(|_| lower.split('(').nth(1).and_then(|it| it.trim_end_matches(')').parse::<usize>().ok()).is_some()),
        _ if declared.is_empty() => Some(format!("{table}.{column} has no type; by its values it becomes {kind}")),
        _ => None,
    }
}
