//! Rows as `COPY` writes them.
//!
//! `COPY` of a table plans nothing: no function of whoever owns the table runs with the rights of who reads it, as one in a
//! view in its place, or in an expression of its indexes, would. So this is how a superuser reads a table of the application's.

use futures_util::TryStreamExt;
use sea_orm::sqlx::{self, PgConnection};

/// How many lines `copy`, a `COPY … TO STDOUT`, writes; `see` gets them. Each is a row: an end of a line within one is escaped.
///
/// # Errors
/// What is copied is no table, or cannot be read.
pub async fn lines(session: &mut PgConnection, copy: &str, mut see: impl FnMut(&[u8])) -> Result<i64, sqlx::Error> {
    let mut stream = session.copy_out_raw(copy).await?;
    let mut rows: i64 = 0;
    while let Some(chunk) = stream.try_next().await? {
        rows += chunk.iter().map(|&byte| i64::from(byte == b'\n')).sum::<i64>();
        see(&chunk);
    }
    Ok(rows)
}

/// What the table `public.alembic_version` says, its rows joined by commas.
///
/// # Errors
/// There is no such table, or it cannot be read.
pub async fn alembic_version(session: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    let mut text = Vec::new();
    let copy = "COPY public.alembic_version (version_num) TO STDOUT";
    lines(session, copy, |chunk| text.extend_from_slice(chunk)).await?;
    let text = String::from_utf8_lossy(&text);
    let mut versions: Vec<&str> = text.lines().collect();
    versions.sort_unstable();
    Ok((!versions.is_empty()).then(|| versions.join(", ")))
}
