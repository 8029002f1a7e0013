//! What a worker, a migration command or a person's tool gets in its environment. Pure.

use crate::config::Settings;
use crate::plan::DatabaseUrl;

/// The variables that say where the database is: `DATABASE_URL` in the application's dialect, libpq's own
/// (PostgreSQL documentation, "Environment Variables"), the pool's size, and what the URL's query says of TLS and the like.
pub fn database(settings: &Settings, url: &DatabaseUrl, application: &str) -> Vec<(String, String)> {
    let dialect = url.with_scheme(&settings.workers.url_scheme);
    let pool = &settings.pool;
    let pairs = [
        ("DATABASE_URL", dialect.expose().expose().to_owned()),
        ("PGHOST", url.host.clone()),
        ("PGPORT", url.port.to_string()),
        ("PGUSER", url.user.clone()),
        ("PGPASSWORD", url.password.as_ref().map(|password| password.expose().to_owned()).unwrap_or_default()),
        ("PGDATABASE", url.database.clone()),
        ("PGAPPNAME", application.to_owned()),
        ("DB_POOL_SIZE", pool.size.to_string()),
        ("DB_POOL_OVERFLOW", pool.overflow.to_string()),
        ("DB_POOL_RECYCLE", pool.recycle.as_secs().to_string()),
        ("DB_POOL_TIMEOUT", pool.timeout.as_secs().to_string()),
    ];
    let more = url.variables().into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(more).collect()
}

/// Everything the worker in `slot` gets: the operator's variables first, so that the database's own win.
pub fn worker(settings: &Settings, url: &DatabaseUrl, slot: usize) -> Vec<(String, String)> {
    let own = settings.workers.env.iter().map(|(name, value)| (name.clone(), value.clone()));
    own.chain(database(settings, url, &format!("{}-worker-{slot}", settings.name))).collect()
}
