//! The environment variables of libpq (PostgreSQL documentation, "Environment Variables"), and which of them may come
//! from outside. Pure.
//!
//! A service (PGSERVICE) beats PGHOST, and PGHOSTADDR beats the host of a URL: one variable of an operator's shell would send
//! Tandem's children to another server. So none of them is passed on, and Tandem sets those that it means.

/// Names the socket of the `tandem test` above: whatever has it in its environment is part of a test.
pub const TEST_SOCKET: &str = "TANDEM_TEST_SOCKET";

/// Whether `name` is one of libpq's: `PG` and capital letters, as all of them are but one. Debian's `psql` reads
/// PGCLUSTER besides. Names of other programs have an underscore (PGADMIN_DEFAULT_EMAIL, PG_COLOR).
pub fn is_libpq(name: &str) -> bool {
    let rest = name.strip_prefix("PG").unwrap_or_default();
    name == "PGCONNECT_TIMEOUT" || (!rest.is_empty() && rest.chars().all(|letter| letter.is_ascii_uppercase()))
}

/// Whether `name` says where a database is or which role to use there; only Tandem may say that.
pub fn says_where(name: &str) -> bool {
    const WHERE: [&str; 12] = [
        "PGHOST",
        "PGHOSTADDR",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGPASSFILE",
        "PGDATABASE",
        "PGAPPNAME",
        "PGSERVICE",
        "PGSERVICEFILE",
        "PGSYSCONFDIR",
        "PGCLUSTER",
    ];
    WHERE.contains(&name)
}

/// Whether `name` stays where Tandem attaches to a server: what makes the connection safe, and lets one in. It never says
/// where.
pub fn stays_attached(name: &str) -> bool {
    const OTHERS: [&str; 4] = ["PGCHANNELBINDING", "PGREQUIREAUTH", "PGREQUIRESSL", "PGGSSENCMODE"];
    (name.starts_with("PGSSL") && is_libpq(name)) || OTHERS.contains(&name)
}

/// Those of the kept ones that Tandem's own sessions understand, and what they are called in a URL's query.
pub const IN_QUERY: [(&str, &str); 4] =
    [("PGSSLMODE", "sslmode"), ("PGSSLROOTCERT", "sslrootcert"), ("PGSSLCERT", "sslcert"), ("PGSSLKEY", "sslkey")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libpqs_names_are_told_from_others() {
        for name in ["PGHOST", "PGSERVICE", "PGCONNECT_TIMEOUT", "PGTARGETSESSIONATTRS", "PGCLUSTER", "PGOAUTHDEBUG"] {
            assert!(is_libpq(name), "{name}");
        }
        for name in ["PG", "PGADMIN_DEFAULT_EMAIL", "PG_COLOR", "PGBOUNCER_PORT", "PAGER", "pghost", "MYPGHOST", "PGP2"]
        {
            assert!(!is_libpq(name), "{name}");
        }
        for name in ["PGSSLMODE", "PGSSLROOTCERT", "PGSSLCRLDIR", "PGCHANNELBINDING"] {
            assert!(stays_attached(name) && !says_where(name), "{name}");
        }
        for name in ["PGSERVICE", "PGHOSTADDR", "PGOPTIONS", "PGPASSFILE", "PGTARGETSESSIONATTRS", "PGSSL_X"] {
            assert!(!stays_attached(name), "{name}");
        }
        for (name, _) in IN_QUERY {
            assert!(stays_attached(name), "{name}");
        }
    }
}
