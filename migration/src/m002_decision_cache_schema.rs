//! Cached trading decisions and how often the cache was hit.

use sea_orm_migration::prelude::*;

use crate::table::{counter, create, drop, index, integer, ratio, text, timestamp, timestamp_now, varchar};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let decision_cache = create("decision_cache")
            .col(varchar("asset_pair", 20).not_null())
            .col(timestamp("timestamp").not_null())
            .col(varchar("timeframe", 10).not_null())
            .col(varchar("decision_hash", 64).not_null())
            .col(text("decision_json").not_null())
            .col(integer("confidence").not_null())
            .col(varchar("market_regime", 20))
            .col(timestamp_now("created_at"))
            .col(timestamp("expires_at"))
            .take();
        manager.create_table(decision_cache).await?;
        let unique = index("ix_decision_cache_decision_hash", "decision_cache", &["decision_hash"]).unique().take();
        manager.create_index(unique).await?;
        // `expires_at` has two: the model says `index=True` and names another.
        for (name, columns) in [
            ("ix_decision_cache_asset_pair", &["asset_pair"][..]),
            ("ix_decision_cache_asset_timestamp", &["asset_pair", "timestamp"]),
            ("ix_decision_cache_expires", &["expires_at"]),
            ("ix_decision_cache_expires_at", &["expires_at"]),
            ("ix_decision_cache_timestamp", &["timestamp"]),
        ] {
            manager.create_index(index(name, "decision_cache", columns)).await?;
        }

        let cache_stats = create("cache_stats")
            .col(varchar("asset_pair", 20).not_null())
            .col(counter("total_entries", 0))
            .col(counter("hits", 0))
            .col(counter("misses", 0))
            .col(ratio("hit_rate", "0.0"))
            .col(timestamp_now("updated_at"))
            .take();
        manager.create_table(cache_stats).await?;
        manager.create_index(index("ix_cache_stats_asset_pair", "cache_stats", &["asset_pair"])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(drop("cache_stats")).await?;
        manager.drop_table(drop("decision_cache")).await
    }
}
