//! Helpers for the revisions: tables and indexes of `public`, and frequent kinds of columns.
//!
//! SQLAlchemy's models give the names: `ix_<table>_<column>` for `index=True`, and with `unique=True` beside it a
//! unique index, not a constraint.

use sea_orm_migration::prelude::*;

/// The schema of every table here.
pub const PUBLIC: &str = "public";

/// `name` in `public`, to be created.
pub fn create(name: &'static str) -> TableCreateStatement {
    Table::create().table((PUBLIC, name)).col(varchar("id", 36).not_null().primary_key()).take()
}

/// `name` in `public`, to be dropped.
pub fn drop(name: &'static str) -> TableDropStatement {
    Table::drop().table((PUBLIC, name)).take()
}

/// An index called `name` on `columns` of `table`, to be created.
pub fn index(name: &'static str, table: &'static str, columns: &[&'static str]) -> IndexCreateStatement {
    let mut index = Index::create().name(name).table((PUBLIC, table)).take();
    for &column in columns {
        index.col(column);
    }
    index
}

/// The index called `name`, to be dropped.
pub fn drop_index(name: &'static str, table: &'static str) -> IndexDropStatement {
    Index::drop().name(name).table((PUBLIC, table)).to_owned()
}

pub fn varchar(name: &'static str, length: u32) -> ColumnDef {
    ColumnDef::new(name).string_len(length).take()
}

pub fn text(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).text().take()
}

pub fn integer(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).integer().take()
}

pub fn double(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).double().take()
}

pub fn boolean(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).boolean().take()
}

/// A point in time, without time zone: the application stores UTC.
pub fn timestamp(name: &'static str) -> ColumnDef {
    ColumnDef::new(name).timestamp().take()
}

/// A point in time that the server fills in.
pub fn timestamp_now(name: &'static str) -> ColumnDef {
    timestamp(name).not_null().default(Expr::cust("now()")).take()
}

/// A whole number that starts at `default`.
pub fn counter(name: &'static str, default: i32) -> ColumnDef {
    integer(name).not_null().default(default).take()
}

/// A number that starts at `default`, which PostgreSQL keeps as it is written (`0.0` is not `0`).
pub fn ratio(name: &'static str, default: &'static str) -> ColumnDef {
    double(name).not_null().default(Expr::cust(default)).take()
}
