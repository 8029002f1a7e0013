//! The address at which the application reaches the database of our own server.

use super::settings::client_address;
use crate::config::Postgres;
use crate::plan::{DatabaseUrl, Secret};

/// The URL of the application's database; `parameters` are what it says beside ([`super::tls`]).
pub fn of_application(
    postgres: &Postgres,
    password: Secret,
    port: u16,
    parameters: Vec<(String, String)>,
) -> DatabaseUrl {
    DatabaseUrl {
        scheme: "postgresql".to_owned(),
        user: postgres.user.clone(),
        password: Some(password),
        host: client_address(postgres.listen).to_string(),
        port,
        database: postgres.database.clone(),
        parameters,
    }
}
