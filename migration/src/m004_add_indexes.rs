//! Indexes for the hot queries, and bounds that the models promise.

use sea_orm_migration::prelude::*;

use crate::table::{drop_index, index};

/// Constraints, which the builders cannot add to a table that exists.
const CONSTRAINTS: [(&str, &str, &str); 4] = [
    ("api_keys", "check_rate_limit", "CHECK (rate_limit_per_minute > 0)"),
    ("cache_stats", "check_hit_rate", "CHECK (hit_rate >= 0 AND hit_rate <= 1)"),
    ("provider_performance", "check_win_rate", "CHECK (win_rate >= 0 AND win_rate <= 100)"),
    ("provider_performance", "unique_provider_asset_regime", "UNIQUE (provider_name, asset_pair, market_regime)"),
];

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let active = index("ix_api_keys_active", "api_keys", &["key_hash"])
            .and_where(Expr::col("is_active").eq(Expr::cust("true")))
            .take();
        manager.create_index(active).await?;
        let performance = index("ix_trade_outcomes_perf", "trade_outcomes", &["asset_pair", "trade_opened_at"])
            .include("profit_loss_pct")
            .include("is_win")
            .include("provider_name")
            .take();
        manager.create_index(performance).await?;
        for (table, name, constraint) in CONSTRAINTS {
            let sql = format!("ALTER TABLE public.{table} ADD CONSTRAINT {name} {constraint}");
            manager.get_connection().execute_unprepared(&sql).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, name, _) in CONSTRAINTS.into_iter().rev() {
            let sql = format!("ALTER TABLE public.{table} DROP CONSTRAINT {name}");
            manager.get_connection().execute_unprepared(&sql).await?;
        }
        manager.drop_index(drop_index("ix_trade_outcomes_perf", "trade_outcomes")).await?;
        manager.drop_index(drop_index("ix_api_keys_active", "api_keys")).await
    }
}
