//! API keys and the audit of their use.

use sea_orm_migration::prelude::*;

use crate::table::{PUBLIC, boolean, counter, create, drop, index, integer, text, timestamp, timestamp_now, varchar};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let api_keys = create("api_keys")
            .col(varchar("name", 255).not_null())
            .col(varchar("key_hash", 255).not_null())
            .col(timestamp_now("created_at"))
            .col(timestamp("last_used_at"))
            .col(boolean("is_active").not_null().default(true))
            .col(counter("rate_limit_per_minute", 100))
            .col(text("description"))
            .take();
        manager.create_table(api_keys).await?;
        manager.create_index(index("ix_api_keys_key_hash", "api_keys", &["key_hash"]).unique().take()).await?;

        let auth_audit = create("auth_audit")
            .col(varchar("api_key_id", 36))
            .col(timestamp_now("timestamp"))
            .col(varchar("ip_address", 45))
            .col(varchar("user_agent", 255))
            .col(varchar("endpoint", 255))
            .col(varchar("method", 10))
            .col(integer("status_code"))
            .col(boolean("success").not_null())
            .col(text("error_message"))
            .foreign_key(
                ForeignKey::create()
                    .name("auth_audit_api_key_id_fkey")
                    .from((PUBLIC, "auth_audit"), "api_key_id")
                    .to((PUBLIC, "api_keys"), "id")
                    .on_delete(ForeignKeyAction::Cascade),
            )
            .take();
        manager.create_table(auth_audit).await?;
        manager.create_index(index("ix_auth_audit_api_key_id", "auth_audit", &["api_key_id"])).await?;
        manager.create_index(index("ix_auth_audit_timestamp", "auth_audit", &["timestamp"])).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(drop("auth_audit")).await?;
        manager.drop_table(drop("api_keys")).await
    }
}
