//! Backups. `pitr/` is point-in-time recovery: an archive of WAL, base backups, and the way back to any moment between.

pub mod pitr;
