//! The topics there are, and each one's SQL. Pure.

mod indexes;
mod server;
mod sessions;
mod statements;
mod tables;
mod upkeep;

use super::table::Kind;

/// What is known of the server that a question is for.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// `server_version_num`: 160004 is 16.4.
    pub version: i32,
    /// The session's role.
    pub role: String,
    pub database: String,
    pub is_superuser: bool,
    /// Whether the role sees what other roles' sessions do (`pg_read_all_stats`).
    pub reads_all_stats: bool,
    /// pg_stat_statements, where the database has it.
    pub statements: Option<Statements>,
}

impl Server {
    /// The session's role, as SQL writes it.
    pub fn quoted_role(&self) -> String {
        format!("\"{}\"", self.role.replace('"', "\"\""))
    }
}

/// The view of pg_stat_statements.
#[derive(Clone, Debug)]
pub(super) struct Statements {
    /// Its schema, quoted where that is needed.
    pub schema: String,
    /// Its columns, with a blank between them: they differ with the extension's version, which need not be the server's.
    pub columns: String,
}

/// How sizes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sizes {
    /// From the files, which takes a lock on each table and a look at each file.
    Measured,
    /// From what the last VACUUM or ANALYZE noted, which takes neither.
    Estimated,
}

/// What is sent, and what comes back.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub columns: &'static [(&'static str, Kind)],
    /// One statement, to which a LIMIT is added.
    pub sql: String,
    /// A statement whose rows are one text each, for the notes.
    pub remarks: Option<String>,
}

impl Question {
    fn new(columns: &'static [(&'static str, Kind)], sql: impl Into<String>) -> Self {
        Self { columns, sql: sql.into(), remarks: None }
    }

    fn with_remarks(self, sql: impl Into<String>) -> Self {
        Self { remarks: Some(sql.into()), ..self }
    }
}

macro_rules! topics {
    ($($topic:ident $name:literal $title:literal $(, $alias:literal)*;)*) => {
        /// Something to ask a server about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Topic {
            $(#[doc = $title] $topic,)*
        }

        impl Topic {
            /// All topics, in the order in which they are listed.
            pub const ALL: &[Self] = &[$(Self::$topic,)*];

            /// What people type.
            pub fn name(self) -> &'static str {
                match self { $(Self::$topic => $name,)* }
            }

            /// What the table is about.
            pub fn title(self) -> &'static str {
                match self { $(Self::$topic => $title,)* }
            }

            /// Other names of it.
            pub fn aliases(self) -> &'static [&'static str] {
                match self { $(Self::$topic => &[$($alias),*],)* }
            }
        }
    };
}

topics! {
    DatabaseSize "database-size" "Databases: size, sessions, transactions, cache hits", "size", "databases";
    Connections "connections" "Connections by application, role and state", "user-connections";
    TableSize "table-size" "Largest tables: rows, and bytes of the table and of its indexes", "total-table-size", "table-indexes-size";
    SlowQueries "slow-queries" "Statements by their longest run";
    Outliers "outliers" "Statements by their share of all execution time";
    Calls "calls" "Statements by how often they ran";
    LongRunningQueries "long-running-queries" "Open transactions, the oldest first", "long-transactions", "ps";
    Locks "locks" "Locks that others may wait for, and who waits", "all-locks";
    Blocking "blocking" "Who waits for a lock, and who holds it";
    CacheHit "cache-hit" "How much was read from PostgreSQL's own cache", "index-cache-hit", "table-cache-hit";
    IndexUsage "index-usage" "How often tables are read through an index", "table-index-scans";
    IndexSize "index-size" "Largest indexes", "index-scans";
    TotalIndexSize "total-index-size" "Bytes of all indexes together";
    UnusedIndexes "unused-indexes" "Indexes that are hardly read, the largest first";
    DuplicateIndexes "duplicate-indexes" "Indexes on the same columns of the same table";
    NullIndexes "null-indexes" "Indexes whose first column is mostly NULL";
    SeqScans "seq-scans" "Tables that are read from end to end: an index may be missing", "missing-indexes";
    RecordsRank "records-rank" "Tables by their number of rows";
    Bloat "bloat" "Room that dead rows have left in tables and indexes, estimated";
    VacuumStats "vacuum-stats" "Dead rows, and when a table was last vacuumed and analyzed";
    VacuumProgress "vacuum-progress" "VACUUMs that run now";
    Freeze "freeze" "Age of the oldest transactions, up to the wraparound", "wraparound";
    Sequences "sequences" "Sequences, the nearest to their end first";
    Replication "replication" "Servers that follow this one, and how far behind they are";
    Slots "slots" "Replication slots, and the WAL that they keep", "replication-slots";
    Checkpoints "checkpoints" "Checkpoints, and who wrote pages", "bgwriter", "checkpointer";
    Io "io" "Reads and writes by kind of process";
    Settings "settings" "Settings that differ from PostgreSQL's defaults", "db-settings";
    Extensions "extensions" "Extensions: installed and newest versions";
}

impl Topic {
    /// What is shown where no topic is named.
    pub const OVERVIEW: [Self; 4] = [Self::DatabaseSize, Self::Connections, Self::TableSize, Self::SlowQueries];

    /// The topic called `name`, with `-` or `_` between words.
    pub fn find(name: &str) -> Option<Self> {
        let name = name.replace('_', "-").to_ascii_lowercase();
        Self::ALL.iter().copied().find(|topic| topic.name() == name || topic.aliases().contains(&name.as_str()))
    }

    /// The SQL for `server`; or why this server has no answer.
    pub(super) fn question(self, server: &Server, sizes: Sizes) -> Result<Question, String> {
        Ok(match self {
            Self::DatabaseSize => server::databases(server, sizes),
            Self::CacheHit => server::cache_hit(),
            Self::Checkpoints => server::checkpoints(server),
            Self::Io => return server::io(server),
            Self::Settings => server::settings(),
            Self::Extensions => server::extensions(),
            Self::Replication => server::replication(),
            Self::Slots => server::slots(),
            Self::Connections => sessions::connections(),
            Self::LongRunningQueries => sessions::long_running(),
            Self::Locks => sessions::locks(server),
            Self::Blocking => sessions::blocking(server),
            Self::SlowQueries => return statements::by(server, "max_exec_time"),
            Self::Outliers => return statements::by(server, "total_exec_time"),
            Self::Calls => return statements::by(server, "calls"),
            Self::TableSize => tables::sizes(sizes),
            Self::SeqScans => tables::seq_scans(sizes),
            Self::RecordsRank => tables::records(),
            Self::IndexUsage => indexes::usage(),
            Self::IndexSize => indexes::sizes(sizes),
            Self::TotalIndexSize => indexes::total(sizes),
            Self::UnusedIndexes => indexes::unused(sizes),
            Self::DuplicateIndexes => indexes::duplicate(sizes),
            Self::NullIndexes => indexes::null(sizes),
            Self::Bloat => upkeep::bloat(),
            Self::VacuumStats => upkeep::vacuum_stats(),
            Self::VacuumProgress => upkeep::vacuum_progress(),
            Self::Freeze => upkeep::freeze(),
            Self::Sequences => upkeep::sequences(),
        })
    }

    /// The rights that the server's role lacks for this topic, with the statement that gives them.
    pub(super) fn missing_rights(self, server: &Server) -> Option<String> {
        if server.is_superuser {
            return None;
        }
        let role = server.quoted_role();
        match self {
            Self::Connections
            | Self::LongRunningQueries
            | Self::Locks
            | Self::Blocking
            | Self::SlowQueries
            | Self::Outliers
            | Self::Calls
            | Self::VacuumProgress
            | Self::Replication
            | Self::DatabaseSize
                if !server.reads_all_stats =>
            {
                Some(format!(
                    "what other roles do is hidden from {role}: a superuser can run GRANT pg_read_all_stats TO {role}"
                ))
            }
            _ => None,
        }
    }
}

/// A statement's text in one line, and no more of it than a person reads.
fn query(column: &str) -> String {
    format!("left(regexp_replace(left({column}, 2000), '[[:space:]]+', ' ', 'g'), 500)")
}

/// A moment in UTC, as RFC 3339 has it.
fn moment(column: &str) -> String {
    format!(r#"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')"#)
}

/// Tables and indexes of the application's, and not of the server's own.
const OF_USERS: &str = "space.nspname !~ '^pg_' AND space.nspname <> 'information_schema'";

/// Remarks on tables that the role may not read: statistics of their columns are hidden from it.
fn unreadable() -> String {
    format!(
        "SELECT format('%s tables of schema %I are left out, as %I may not read them: their owner or a superuser can run \
                        GRANT SELECT ON ALL TABLES IN SCHEMA %I TO %I', count(*), space.nspname, current_user,
                       space.nspname, current_user)
         FROM pg_class AS class JOIN pg_namespace AS space ON space.oid = class.relnamespace
         WHERE class.relkind IN ('r', 'm') AND {OF_USERS} AND NOT has_any_column_privilege(class.oid, 'SELECT')
         GROUP BY space.nspname"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(version: i32) -> Server {
        Server {
            version,
            role: "we\"ird".into(),
            database: "app".into(),
            is_superuser: false,
            reads_all_stats: false,
            statements: None,
        }
    }

    #[test]
    fn every_name_means_one_topic() {
        let names = |topic: &Topic| topic.aliases().iter().copied().chain([topic.name()]).collect::<Vec<_>>();
        let mut all: Vec<&str> = Topic::ALL.iter().flat_map(names).collect();
        for &topic in Topic::ALL {
            for name in names(&topic) {
                assert_eq!(Topic::find(name), Some(topic), "{name}");
                assert_eq!(Topic::find(&name.replace('-', "_").to_uppercase()), Some(topic), "{name}");
            }
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!((all.len(), Topic::find("nonsense")), (count, None));
    }

    #[test]
    fn what_is_missing_is_told_with_the_statement_that_gives_it() {
        let told = Topic::Connections.missing_rights(&server(160_000)).unwrap();
        assert!(told.ends_with(r#"GRANT pg_read_all_stats TO "we""ird""#), "{told}");
        let sees = Server { reads_all_stats: true, ..server(160_000) };
        assert_eq!(Topic::Connections.missing_rights(&sees), None);
        let superuser = Server { is_superuser: true, ..server(160_000) };
        assert!(Topic::ALL.iter().all(|topic| topic.missing_rights(&superuser).is_none()));
        let told = Topic::Calls.question(&server(160_000), Sizes::Measured).unwrap_err();
        assert!(told.contains("CREATE EXTENSION pg_stat_statements"), "{told}");
        assert!(Topic::Io.question(&server(150_000), Sizes::Measured).unwrap_err().contains("16"));
    }
}
