//! Settings of PostgreSQL that Tandem sets, or has to know of. Pure.

use super::{ARCHIVING, PROTECTED};

/// Settings that may stand in `[postgres.settings]` and that ALTER SYSTEM must not set beside it.
const CONFIGURED: &[(&str, &str)] = &[
    ("shared_preload_libraries", "use [postgres.settings], where Tandem adds pg_stat_statements to it"),
    ("ssl", "use postgres.tls"),
    ("ssl_cert_file", "use postgres.tls"),
    ("ssl_key_file", "use postgres.tls"),
    ("log_destination", "use [postgres.settings], so that Tandem knows where the log is"),
    ("logging_collector", "use [postgres.settings], so that Tandem knows where the log is"),
];

/// Why ALTER SYSTEM must not set PostgreSQL's `name` on a server of Tandem's own, or what to use instead; `archives` says that
/// `backup.pitr.enabled` is set.
pub fn owned_setting(name: &str, archives: bool) -> Option<&'static str> {
    let name = name.to_lowercase();
    if archives && ARCHIVING.contains(&name.as_str()) {
        return Some("it follows from [backup.pitr]");
    }
    PROTECTED.iter().chain(CONFIGURED).find(|(owned, _)| *owned == name).map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tandems_own_names_the_key_to_use() {
        for (name, archives, instead) in [
            ("max_connections", false, Some("postgres.max_connections")),
            ("FSYNC", false, Some("corrupts the cluster")),
            ("shared_preload_libraries", false, Some("[postgres.settings]")),
            ("wal_level", false, None),
            ("wal_level", true, Some("[backup.pitr]")),
            ("work_mem", true, None),
        ] {
            let found = owned_setting(name, archives);
            assert_eq!(found.is_some(), instead.is_some(), "{name}");
            assert!(found.unwrap_or_default().contains(instead.unwrap_or_default()), "{name}: {found:?}");
        }
    }
}
