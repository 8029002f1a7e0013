//! Outcomes of trades, and the performance of each provider.

use sea_orm_migration::prelude::*;

use crate::table::{
    boolean, counter, create, double, drop, index, integer, ratio, text, timestamp, timestamp_now, varchar,
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let trade_outcomes = create("trade_outcomes")
            .col(varchar("asset_pair", 20).not_null())
            .col(varchar("provider_name", 50).not_null())
            .col(timestamp("decision_timestamp").not_null())
            .col(double("entry_price").not_null())
            .col(double("exit_price"))
            .col(double("profit_loss_pct"))
            .col(varchar("trade_direction", 10).not_null())
            .col(boolean("is_win"))
            .col(varchar("market_regime", 20))
            .col(integer("confidence_score"))
            .col(timestamp_now("trade_opened_at"))
            .col(timestamp("trade_closed_at"))
            .col(integer("hold_duration_seconds"))
            .col(text("notes"))
            .take();
        let thompson_stats = create("thompson_stats")
            .col(varchar("provider_name", 50).not_null())
            .col(varchar("market_regime", 20).not_null())
            .col(counter("alpha_wins", 1))
            .col(counter("beta_losses", 1))
            .col(ratio("mean_weight", "0.5"))
            .col(ratio("variance", "0.08"))
            .col(timestamp_now("last_updated_at"))
            .take();
        let provider_performance = create("provider_performance")
            .col(varchar("provider_name", 50).not_null())
            .col(varchar("asset_pair", 20).not_null())
            .col(varchar("market_regime", 20))
            .col(counter("total_trades", 0))
            .col(counter("winning_trades", 0))
            .col(counter("losing_trades", 0))
            .col(ratio("win_rate", "0.0"))
            .col(ratio("avg_profit_loss_pct", "0.0"))
            .col(double("sharpe_ratio"))
            .col(double("max_drawdown_pct"))
            .col(timestamp_now("last_updated_at"))
            .take();
        for table in [trade_outcomes, thompson_stats, provider_performance] {
            manager.create_table(table).await?;
        }

        let mut unique = index("ix_provider_performance_provider_name", "provider_performance", &["provider_name"]);
        manager.create_index(unique.unique().take()).await?;
        for (name, table, columns) in [
            ("ix_trade_outcomes_asset_pair", "trade_outcomes", &["asset_pair"][..]),
            ("ix_trade_outcomes_asset_provider", "trade_outcomes", &["asset_pair", "provider_name"]),
            ("ix_trade_outcomes_provider_name", "trade_outcomes", &["provider_name"]),
            ("ix_trade_outcomes_timestamp", "trade_outcomes", &["trade_opened_at"]),
            ("ix_thompson_stats_market_regime", "thompson_stats", &["market_regime"]),
            ("ix_thompson_stats_provider_name", "thompson_stats", &["provider_name"]),
            ("ix_thompson_stats_provider_regime", "thompson_stats", &["provider_name", "market_regime"]),
            ("ix_provider_performance_asset", "provider_performance", &["asset_pair"]),
            ("ix_provider_performance_asset_pair", "provider_performance", &["asset_pair"]),
        ] {
            manager.create_index(index(name, table, columns)).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["provider_performance", "thompson_stats", "trade_outcomes"] {
            manager.drop_table(drop(table)).await?;
        }
        Ok(())
    }
}
