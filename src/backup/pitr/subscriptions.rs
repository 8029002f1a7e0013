//! Replication and a cluster that was restored to a moment. Its subscriptions would go on from where their publishers are now,
//! without what came in between: so they are disabled, as in what a dump restores. Slots are in no base backup.

use std::path::Path;

use anyhow::Context;
use sea_orm::sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, query_as, raw_sql};
use serde::Serialize;

use super::archive::list;
use crate::postgres::home::Home;
use crate::postgres::provision::{identifier, superuser_options};

/// Those that act, in databases that anybody can connect to: no worker of theirs can in another.
const ENABLED: &str = "
    SELECT datname::text, subname::text FROM pg_catalog.pg_subscription
    JOIN pg_catalog.pg_database AS own ON own.oid = subdbid WHERE subenabled AND datallowconn ORDER BY 1, 2";

/// A subscription that was disabled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Disabled {
    pub database: String,
    pub name: String,
}

/// Disable every subscription of the recovered server on `port`; `session` is one of its superuser's. The caller sets a limit.
///
/// # Errors
/// The server refuses: with them the cluster must not be put in place.
pub async fn disable(home: &Home, port: u16, session: &mut PgConnection) -> anyhow::Result<Vec<Disabled>> {
    let enabled: Vec<(String, String)> =
        query_as(ENABLED).fetch_all(session).await.context("list the subscriptions of the recovered cluster")?;
    let mut disabled = Vec::new();
    for (database, name) in enabled {
        let context = || format!("disable subscription {} of database {database}", identifier(&name));
        let mut inside = superuser_options(home, port, &database).connect().await.with_context(context)?;
        // One by one: both together would be one transaction, which is read-only already where that is the default.
        for statement in [
            "SET default_transaction_read_only = off".to_owned(),
            format!("ALTER SUBSCRIPTION {} DISABLE", identifier(&name)),
        ] {
            raw_sql(AssertSqlSafe(statement)).execute(&mut inside).await.with_context(context)?;
        }
        inside.close().await.with_context(context)?;
        disabled.push(Disabled { database, name });
    }
    Ok(disabled)
}

/// The replication slots of the cluster in `data`, which no server runs on.
pub fn slots(data: &Path) -> Vec<String> {
    let places = list(&data.join("pg_replslot")).unwrap_or_default();
    let mut names: Vec<String> =
        places.iter().filter_map(|place| Some(place.file_name()?.to_str()?.to_owned())).collect();
    names.sort();
    names
}

/// What a person has to know of the subscriptions that were `disabled`, and of the `slots` that are gone.
pub fn told(disabled: &[Disabled], slots: &[String]) -> Vec<String> {
    let of_one = |Disabled { database, name }: &Disabled| {
        let id = identifier(name);
        format!(
            "subscription {id} of database {database} is disabled: its publisher sends nothing again that was confirmed after this \
             moment. If its tables need nothing of that, as superuser in {database}: ALTER SUBSCRIPTION {id} ENABLE; else make it \
             anew: ALTER SUBSCRIPTION {id} SET (slot_name = NONE); DROP SUBSCRIPTION {id}; TRUNCATE its tables; CREATE \
             SUBSCRIPTION {id} …"
        )
    };
    let of_slots = (!slots.is_empty()).then(|| {
        format!(
            "replication slots are in no base backup, and the cluster that was here had {}: whoever reads from them makes them \
             anew, and begins anew too",
            slots.join(", ")
        )
    });
    disabled.iter().map(of_one).chain(of_slots).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_disabled_and_what_is_gone_is_told_with_what_to_do() {
        let disabled = [Disabled { database: "app".into(), name: "their \"orders\"".into() }];
        let [of_one, of_slots] = &told(&disabled, &["ours".into(), "theirs".into()])[..] else { panic!("two") };
        assert!(of_one.contains("ALTER SUBSCRIPTION \"their \"\"orders\"\"\" ENABLE;"), "{of_one}");
        assert!(of_slots.contains("had ours, theirs:"), "{of_slots}");
        assert!(told(&[], &[]).is_empty());
        assert!(slots(Path::new("/no/such/cluster")).is_empty());
    }
}
