//! Logical replication and the databases that restores replace: subscriptions and slots belong to one database, and stay
//! with it when it gets another name.

use sea_orm::sqlx::{AssertSqlSafe, Connection, PgConnection, query_as, query_scalar, raw_sql};
use serde::Serialize;

use super::database_level::literal;
use super::reach::Reach;
use crate::postgres::provision::identifier;
use crate::schema::{ANSWER_LIMIT, MAKE_LIMIT, answered};

/// A subscription that fills a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Subscription {
    pub name: String,
    pub enabled: bool,
    /// Its slot at the publisher.
    pub slot: Option<String>,
}

/// What logical replication holds of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeptReplication {
    pub subscriptions: Vec<Subscription>,
    /// From which others read what changes in it.
    pub slots: Vec<String>,
}

/// What holds `database`.
///
/// # Errors
/// The connection is lost.
pub async fn of(session: &mut PgConnection, database: &str) -> anyhow::Result<KeptReplication> {
    let subscriptions = query_as::<_, (String, bool, Option<String>)>(
        "SELECT subname::text, subenabled, subslotname::text FROM pg_catalog.pg_subscription
         WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = $1) ORDER BY 1",
    );
    let subscriptions = subscriptions.bind(database).fetch_all(&mut *session);
    let subscriptions = answered(ANSWER_LIMIT, "look for subscriptions", subscriptions).await?;
    let slots = query_scalar(
        "SELECT slot_name::text FROM pg_catalog.pg_replication_slots WHERE database = $1 AND NOT temporary ORDER BY 1",
    );
    let slots = slots.bind(database).fetch_all(&mut *session);
    let slots = answered(ANSWER_LIMIT, "look for replication slots", slots).await?;
    let subscription = |(name, enabled, slot)| Subscription { name, enabled, slot };
    Ok(KeptReplication { subscriptions: subscriptions.into_iter().map(subscription).collect(), slots })
}

/// Let go of `database` what holds it, so that it can be dropped; the slots at publishers stay, which another subscription may
/// read. Its own slots go with it.
///
/// # Errors
/// The server refuses.
pub async fn release(reach: &Reach, database: &str, held: &KeptReplication) -> anyhow::Result<()> {
    if held.subscriptions.is_empty() {
        return Ok(());
    }
    let mut session = reach.session(database).await?;
    for Subscription { name, .. } in &held.subscriptions {
        let id = identifier(name);
        // One by one: none of them may stand in a transaction with the others.
        for statement in [
            "SET default_transaction_read_only = off".to_owned(),
            format!("ALTER SUBSCRIPTION {id} DISABLE"),
            format!("ALTER SUBSCRIPTION {id} SET (slot_name = NONE)"),
            format!("DROP SUBSCRIPTION {id}"),
        ] {
            let what = format!("run {statement} in {database}");
            answered(MAKE_LIMIT, &what, raw_sql(AssertSqlSafe(statement)).execute(&mut session)).await?;
        }
    }
    answered(ANSWER_LIMIT, "close the connection to PostgreSQL", session.close()).await
}

impl KeptReplication {
    /// What a person has to know after `kept` was replaced by another database called `live`.
    pub fn after_swap(&self, live: &str, kept: &str) -> Vec<String> {
        let mut told = Vec::new();
        for Subscription { name, .. } in self.subscriptions.iter().filter(|subscription| subscription.enabled) {
            let id = identifier(name);
            told.push(format!(
                "subscription {id} goes on filling {kept}, and is disabled in {live}. To let {live} have it, as superuser:\n  \
                 in {kept}: ALTER SUBSCRIPTION {id} DISABLE; ALTER SUBSCRIPTION {id} SET (slot_name = NONE);\n  \
                 in {live}: TRUNCATE its tables, which are copied anew; ALTER SUBSCRIPTION {id} ENABLE; \
                 ALTER SUBSCRIPTION {id} REFRESH PUBLICATION;"
            ));
        }
        for slot in &self.slots {
            told.push(format!(
                "logical slot {slot} stays with {kept}, and keeps WAL: who reads from it reads what changes there. Make it anew:\n  \
                 SELECT pg_drop_replication_slot({slot}); and in {live}: \
                 SELECT pg_create_logical_replication_slot({slot}, …);",
                slot = literal(slot)
            ));
        }
        told
    }

    /// What goes with the database when it is dropped.
    pub fn before_drop(&self) -> Option<String> {
        let subscriptions = self.subscriptions.iter().map(|it| format!("subscription {}", identifier(&it.name)));
        let slots = self.slots.iter().map(|slot| format!("logical slot {slot}"));
        let all: Vec<String> = subscriptions.chain(slots).collect();
        (!all.is_empty()).then(|| format!("with {}", all.join(", ")))
    }

    /// What is left elsewhere when it was dropped.
    pub fn after_drop(&self) -> Vec<String> {
        let left = |it: &Subscription| {
            let (name, slot) = (identifier(&it.name), literal(it.slot.as_ref()?));
            Some(format!(
                "the slot of subscription {name} is left at its publisher, and keeps WAL there unless another subscription reads \
                 it; to drop it there: SELECT pg_drop_replication_slot({slot})"
            ))
        };
        self.subscriptions.iter().filter_map(left).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_named_with_its_quotes() {
        let subscription = |name: &str, enabled| Subscription { name: name.into(), enabled, slot: Some("it's".into()) };
        let held = KeptReplication {
            subscriptions: vec![subscription("a \"b\"", true), subscription("off", false)],
            slots: vec![],
        };
        let told = held.after_swap("app", "app_before_restore_x");
        assert!(told.len() == 1 && told[0].contains("ALTER SUBSCRIPTION \"a \"\"b\"\"\" DISABLE"), "{told:?}");
        assert_eq!(held.before_drop().unwrap(), "with subscription \"a \"\"b\"\"\", subscription \"off\"");
        assert!(held.after_drop()[0].ends_with("pg_drop_replication_slot('it''s')"));
        let none = KeptReplication::default();
        assert!(none.before_drop().is_none() && none.after_swap("a", "b").is_empty() && none.after_drop().is_empty());
    }
}
