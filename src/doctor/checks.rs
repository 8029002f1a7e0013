//! THE list of checks.

use serde::Serialize;

use super::facts::Facts;
use super::judge::{Judged, backups, data, machine, project, security, server, sessions};

/// What a check is about: people choose by it what is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    Project,
    Machine,
    Data,
    Server,
    Backups,
    Security,
}

impl Group {
    pub const ALL: [Self; 6] = [Self::Project, Self::Machine, Self::Data, Self::Server, Self::Backups, Self::Security];

    /// As it is written on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Machine => "machine",
            Self::Data => "data",
            Self::Server => "server",
            Self::Backups => "backups",
            Self::Security => "security",
        }
    }
}

/// One check.
#[derive(Debug)]
pub struct Check {
    /// As it is written on the command line.
    pub name: &'static str,
    pub group: Group,
    /// What it looks at, for the documentation.
    pub looks_at: &'static str,
    /// The page of the documentation and the section that say more.
    pub more: (&'static str, &'static str),
    pub judge: fn(&Facts) -> Judged,
}

const fn check(
    name: &'static str,
    group: Group,
    looks_at: &'static str,
    more: (&'static str, &'static str),
    judge: fn(&Facts) -> Judged,
) -> Check {
    Check { name, group, looks_at, more, judge }
}

const TROUBLE: &str = "troubleshooting";
const HERE: &str = "doctor";

/// In the order in which they are shown.
pub const CHECKS: &[Check] = &[
    check(
        "configuration",
        Group::Project,
        "every mistake and notice of `tandem check`",
        (TROUBLE, "exit-code-78"),
        project::configuration,
    ),
    check(
        "tandem",
        Group::Project,
        "the Tandem that runs here: its version, services that gave up, what health complains of; another Tandem on the same directories",
        (TROUBLE, "another-tandem-runs"),
        project::tandem,
    ),
    check(
        "ports",
        Group::Project,
        "who listens on the ports that a start needs, and ports that need a privilege",
        (TROUBLE, "a-port-is-taken"),
        project::ports,
    ),
    check(
        "python",
        Group::Project,
        "the interpreter, and whether the environment was made from the requirements as they are",
        (TROUBLE, "the-interpreter-does-not-run"),
        project::python,
    ),
    check(
        "uvicorn",
        Group::Project,
        "whether it is there, and new enough",
        (TROUBLE, "uvicorn-is-missing"),
        project::uvicorn,
    ),
    check(
        "migrations",
        Group::Project,
        "revisions that are missing, unknown to the code, or have several heads",
        (TROUBLE, "exit-code-65"),
        project::migrations,
    ),
    check(
        "leftovers",
        Group::Project,
        "what killed runs and restores left, databases that restores replaced, files that are no backups",
        (HERE, "what-takes-room"),
        project::leftovers,
    ),
    check(
        "old-versions",
        Group::Project,
        "PostgreSQL's programs in the cache that earlier versions of Tandem used",
        (HERE, "what-takes-room"),
        project::caches,
    ),
    check(
        "libraries",
        Group::Machine,
        "shared libraries, the C library and the time zones that PostgreSQL's programs need; with `--deep` its modules too",
        (TROUBLE, "libraries-are-missing"),
        project::libraries,
    ),
    check(
        "time-zones",
        Group::Machine,
        "`/etc/localtime` and the time zone database",
        (HERE, "the-machine"),
        project::time_zones,
    ),
    check(
        "memory",
        Group::Machine,
        "`shared_buffers` against the machine's memory or the control group's limit",
        (HERE, "the-machine"),
        machine::memory,
    ),
    check(
        "out-of-memory",
        Group::Machine,
        "processes that the kernel killed for want of memory",
        (TROUBLE, "killed-for-want-of-memory"),
        machine::out_of_memory,
    ),
    check("swap", Group::Machine, "how much of it is in use", (HERE, "the-machine"), machine::swap),
    check("huge-pages", Group::Machine, "transparent huge pages", (HERE, "the-machine"), machine::hugepages),
    check(
        "shared-memory",
        Group::Machine,
        "`/dev/shm`, which a container has little of",
        (HERE, "the-machine"),
        machine::shared_memory,
    ),
    check(
        "open-files",
        Group::Machine,
        "the limits of open files and of a file's size",
        (HERE, "the-machine"),
        machine::open_files,
    ),
    check(
        "clock",
        Group::Machine,
        "a clock that was set back, that no service keeps, or that differs from the server's",
        (HERE, "the-machine"),
        machine::clock,
    ),
    check(
        "file-system",
        Group::Machine,
        "data and backups in memory, in a container's own layer, on a network file system, on a read-only mount",
        (HERE, "the-machine"),
        data::file_system,
    ),
    check(
        "disk",
        Group::Machine,
        "free room and free inodes, and when the disk will be full at the rate of the last backups",
        (TROUBLE, "no-room-on-the-disk"),
        data::room,
    ),
    check(
        "data-directory",
        Group::Data,
        "its owner, version and content, pg_controldata, and what ALTER SYSTEM has set",
        (TROUBLE, "the-data-directory-holds-something-else"),
        data::data_directory,
    ),
    check(
        "locks",
        Group::Data,
        "servers of earlier runs and of other containers, stale lock files",
        (TROUBLE, "a-postgresql-server-of-an-earlier-run"),
        data::locks,
    ),
    check(
        "checksums",
        Group::Data,
        "pages that the server found damaged; with `--deep` every page of a stopped cluster",
        (HERE, "damaged-data"),
        data::checksums,
    ),
    check(
        "amcheck",
        Group::Data,
        "with `--deep` every table and index of the application's database, by PostgreSQL's amcheck",
        (HERE, "damaged-data"),
        data::amcheck,
    ),
    check(
        "collation",
        Group::Data,
        "databases whose texts were sorted by other rules, as after an upgrade of the operating system",
        (HERE, "damaged-data"),
        data::collation,
    ),
    check(
        "indexes",
        Group::Data,
        "indexes that a failed CREATE INDEX CONCURRENTLY left invalid",
        (HERE, "damaged-data"),
        data::indexes,
    ),
    check(
        "permissions",
        Group::Security,
        "files and directories of Tandem's that others may open or exchange, and their owners",
        (HERE, "who-gets-in"),
        data::permissions,
    ),
    check(
        "database",
        Group::Server,
        "whether the application's role gets in: the server answers, and takes its password",
        (HERE, "the-database-server"),
        server::door,
    ),
    check(
        "connections",
        Group::Server,
        "those in use, and the workers' pools, against `max_connections`",
        (TROUBLE, "the-pools-need-more-connections"),
        server::connections,
    ),
    check(
        "transactions",
        Group::Server,
        "transactions that are open for long, idle, or prepared and forgotten",
        (HERE, "the-database-server"),
        sessions::transactions,
    ),
    check(
        "blocked",
        Group::Server,
        "sessions that wait for locks, such as a migration that holds up all that come after it",
        (HERE, "the-database-server"),
        sessions::blocked,
    ),
    check(
        "wraparound",
        Group::Server,
        "how far each database is from the end of its transaction numbers",
        (HERE, "the-database-server"),
        server::wraparound,
    ),
    check(
        "settings",
        Group::Server,
        "settings that endanger the data, and those that wait for a restart",
        (TROUBLE, "alter-system-has-set-what-does-not-hold"),
        server::settings,
    ),
    check(
        "replication",
        Group::Server,
        "slots without a client that keep WAL, or have lost it",
        (HERE, "the-database-server"),
        server::slots,
    ),
    check(
        "backups",
        Group::Backups,
        "the age of the newest one against the schedule, and why the last run failed",
        (TROUBLE, "the-last-backup-failed"),
        backups::backups,
    ),
    check(
        "proof",
        Group::Backups,
        "whether one was proven to restore, and which do not",
        (TROUBLE, "a-backup-is-bad"),
        backups::proof,
    ),
    check(
        "copies",
        Group::Backups,
        "whether each of `backup.destinations` answers and has the newest backup",
        (HERE, "late-and-unproven-backups"),
        backups::copies,
    ),
    check(
        "recovery",
        Group::Backups,
        "base backups, and what keeps the cluster from being recovered to a moment",
        (TROUBLE, "a-base-backup-cannot-be-read"),
        backups::recovery,
    ),
    check(
        "wal-archive",
        Group::Backups,
        "WAL that waits for its archive, or was given up",
        (TROUBLE, "wal-waits-for-the-archive"),
        backups::wal,
    ),
    check(
        "passwords",
        Group::Security,
        "a password that everybody tries first, such as `changeme`, or a short one",
        (HERE, "who-gets-in"),
        security::passwords,
    ),
    check(
        "access",
        Group::Security,
        "rules of pg_hba.conf that let clients in without a password",
        (HERE, "who-gets-in"),
        security::access,
    ),
    check(
        "listening",
        Group::Security,
        "addresses beyond this machine without TLS",
        (HERE, "who-gets-in"),
        security::listening,
    ),
    check(
        "certificates",
        Group::Security,
        "certificates of the application and of the database server: their files, and the days that are left",
        (HERE, "who-gets-in"),
        security::certificates,
    ),
    check(
        "superuser",
        Group::Security,
        "whether the application's role may do everything",
        (HERE, "who-gets-in"),
        security::superuser,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book;

    #[test]
    fn every_check_has_a_name_of_its_own_and_a_section_that_says_more() {
        let mut names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
        assert!(names.len() > 40, "{}", names.len());
        names.extend(Group::ALL.map(Group::word));
        names.sort_unstable();
        let doubled = names.windows(2).find(|pair| pair[0] == pair[1] && pair[0] != "backups");
        assert_eq!(doubled, None);
        for Check { name, more: (page, section), .. } in CHECKS {
            let text = book::page(page).unwrap_or_else(|| panic!("{name}: no page {page}")).text;
            assert!(book::section(text, section).is_some(), "{name}: {page} has no section {section}");
        }
    }

    #[test]
    fn a_look_that_saw_nothing_is_no_fault() {
        let facts = Facts::unseen();
        for check in CHECKS {
            let judged = (check.judge)(&facts);
            let worst = judged.map_or(None, |all| all.iter().map(|finding| finding.verdict).max());
            assert!(worst.is_none_or(|worst| worst <= crate::doctor::Verdict::Notice), "{}: {worst:?}", check.name);
        }
    }
}
