//! Databases whose texts were sorted by other rules where they were made: a volume of another Linux distribution.
//!
//! musl and each release of glibc or ICU sort in their own way. An index that was made in one order and is searched in another
//! misses rows, and nothing fails. PostgreSQL itself warns of another version, but not where none was recorded, as in
//! its image for Alpine.

use sea_orm::sqlx::postgres::PgConnection;
use sea_orm::sqlx::{ConnectOptions, Connection, query_as};

use super::home::Home;
use super::provision::{identifier, superuser_options};
use super::settings::SUPERUSER;
use crate::exit::in_words;
use crate::schema::{ANSWER_LIMIT, answered};

/// The collations C and POSIX have no version on either side. Catalogs are sorted by C: templates have nothing else.
const SORTED_OTHERWISE: &str = "
    SELECT datname::text, coalesce(daticulocale, datcollate::text), datcollversion,
           pg_catalog.pg_database_collation_actual_version(oid)
    FROM pg_catalog.pg_database
    WHERE datallowconn AND NOT datistemplate
          AND datcollversion IS DISTINCT FROM pg_catalog.pg_database_collation_actual_version(oid)
    ORDER BY 1";

/// A database, its collation, and the version of it there and here.
type Row = (String, String, Option<String>, Option<String>);

/// Warn of each database that was sorted otherwise where it was made.
pub async fn warn(connection: &mut PgConnection) {
    match look(connection).await {
        Ok(sentences) => sentences.iter().for_each(|sentence| tracing::warn!("{sentence}")),
        // Such as a collation that this ICU does not know. The server serves all the same.
        Err(error) => tracing::warn!("{}", in_words(&error)),
    }
}

/// What there is to say of each database of the server of `home` on `port` that was sorted otherwise where it was made.
///
/// # Errors
/// It cannot be asked.
pub async fn sorted_otherwise(home: &Home, port: u16) -> anyhow::Result<Vec<String>> {
    let options = superuser_options(home, port, SUPERUSER);
    let mut session = answered(ANSWER_LIMIT, "connect to PostgreSQL", options.connect()).await?;
    let sentences = look(&mut session).await;
    let _closed = answered(ANSWER_LIMIT, "close", session.close()).await;
    sentences
}

/// What there is to say of each database of the server behind `connection` that was sorted otherwise where it was made.
///
/// # Errors
/// It cannot be asked.
pub async fn look(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    let asked = query_as(SORTED_OTHERWISE).fetch_all(connection);
    let rows: Vec<Row> = answered(ANSWER_LIMIT, "ask by which rules texts were sorted", asked).await?;
    Ok(rows.iter().map(in_sentence).collect())
}

fn in_sentence((name, collation, there, here): &Row) -> String {
    let database = identifier(name);
    let refresh = match (there, here) {
        (Some(_), Some(_)) => format!("ALTER DATABASE {database} REFRESH COLLATION VERSION"),
        // PostgreSQL refuses to record a version where there was none.
        _ => format!(
            "UPDATE pg_database SET datcollversion = pg_database_collation_actual_version(oid) WHERE datname = '{}'",
            name.replace('\'', "''")
        ),
    };
    let [there, here] = [there, here].map(|version| version.as_deref().unwrap_or("none"));
    format!(
        "PostgreSQL here sorts texts otherwise than where the database {name} was made (collation {collation}, version {there} \
         there, {here} here): its indexes on texts may miss rows, and let in twice what must be unique. Make them anew in that \
         database, as its superuser (`tandem psql --superuser`): `REINDEX DATABASE {database}; {refresh}`"
    )
}
