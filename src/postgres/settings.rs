//! The server's three configuration files, rendered. Pure.
//!
//! They are written whole at every start, so that they never differ from what the operator configured.

mod access;
mod told;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use super::{conf, log, tls};
use crate::config::Postgres;
use crate::exit::{Code, Failure};

pub use told::{overrides, unseen};

/// The database superuser. It has no password: Tandem gets in by peer authentication over the unix socket.
pub const SUPERUSER: &str = "postgres";

const MB: u64 = 1024 * 1024;
/// Upper limit of the default page cache: each GB of it costs the server some 20 ms at its start, at its recovery
/// and, a little less, at its stop. Beyond it the kernel's own cache serves as well, until the database outgrows it.
const SHARED_BUFFERS_MAX: u64 = 1024 * MB;
/// How each of the files begins.
pub const HEADER: &str = "# Made by Tandem at every start: changes in this file are lost.\n";
/// Settings that say where things are or what Tandem relies on.
const OWNED: [&str; 11] = [
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "max_connections",
    "port",
    "unix_socket_directories",
];

/// Settings that Tandem sets where `postgres.tls` asks for TLS. `ssl_ca_file` is not among them: whose clients have certificates
/// is the operator's to say.
const OF_TLS: [&str; 3] = ["ssl", "ssl_cert_file", "ssl_key_file"];

/// Where the log goes. An operator may send it elsewhere in `[postgres.settings]`, and Tandem then reads nothing of it.
const LOG_PLACE: [(&str, &str); 2] = [("log_destination", "stderr"), ("logging_collector", "off")];
const LINE_PREFIX: &str = "log_line_prefix";
/// What `postgres.slow_query` sets.
const SLOW_QUERY: &str = "log_min_duration_statement";
const LANGUAGE: &str = "lc_messages";

/// What the files depend on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub postgres: &'a Postgres,
    pub socket_dir: &'a Path,
    pub port: u16,
    /// Bytes that the machine or container offers.
    pub memory: u64,
    /// Bytes that the server may share by shm_open(3); `None`: as much as it needs.
    pub shared: Option<u64>,
    /// Operating-system users that may be the superuser.
    pub trusted_users: &'a [String],
    /// What becomes of the WAL, where it is to be archived.
    pub archiving: Option<&'a Archiving>,
    /// Whether the installation has `pg_stat_statements`.
    pub statements: bool,
    /// The server's certificate and key ([`super::tls`]), where it serves over TLS.
    pub tls: Option<&'a Path>,
    pub purpose: Purpose<'a>,
}

/// How WAL is archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archiving {
    /// `archive_command`; empty: WAL is kept until there is one.
    pub command: String,
    /// How long an unfinished segment may hold changes that are not archived.
    pub timeout: Duration,
}

/// What the server is for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose<'a> {
    /// Data that must survive everything.
    Durable,
    /// Tests, whose data may go with the machine; with settings that win over all others.
    Throwaway(&'a BTreeMap<String, String>),
    /// Durable data on its way to an earlier moment; with settings that win over all others.
    Recovery(&'a [(&'static str, String)]),
}

/// The files' contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// postgresql.conf
    pub conf: String,
    /// pg_hba.conf
    pub hba: String,
    /// pg_ident.conf
    pub ident: String,
    /// What the operator should know of a choice that was made.
    pub notice: Option<String>,
}

/// The settings of the rendered postgresql.conf `conf` that only Tandem may change: what reaches the server, its log and the
/// connection budget depend on them. `data` is the data directory.
pub fn owned(conf: &str, data: &Path) -> Vec<(String, String)> {
    let set = conf::parse(conf);
    let rendered = OWNED.iter().filter_map(|&name| Some((name.to_owned(), set.get(name)?.clone())));
    let beside = [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")];
    let beside = beside.iter().map(|(name, file)| ((*name).to_owned(), data.join(file).display().to_string()));
    let own_tls = set.get("ssl_cert_file").is_some_and(|path| tls::is_server_file(path));
    let of_tls = OF_TLS.iter().filter(|_| own_tls);
    let of_tls = of_tls.filter_map(|&name| Some((name.to_owned(), set.get(name)?.clone())));
    rendered.chain(of_tls).chain(beside).collect()
}

/// Render the files.
///
/// # Errors
/// [`Failure`] with [`Code::Config`] for a name in `[postgres.settings]` that is none, or that Tandem sets itself.
pub fn render(inputs: &Inputs<'_>) -> Result<Rendered, Failure> {
    let notice = (!fits_in_shared(inputs)).then(|| shared_notice(inputs));
    Ok(Rendered {
        conf: conf(inputs)?,
        hba: access::hba(inputs.postgres.listen, inputs.tls.is_some()),
        ident: access::ident(inputs.trusted_users),
        notice,
    })
}

/// The address under which this machine reaches a server that listens on `listen`.
pub fn client_address(listen: IpAddr) -> IpAddr {
    match listen {
        IpAddr::V6(address) if address.is_loopback() || address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(address) if address.is_loopback() => listen,
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

fn conf(inputs: &Inputs<'_>) -> Result<String, Failure> {
    let mut text = format!("{HEADER}# Change [postgres] or [postgres.settings] in Tandem's configuration instead.\n\n");
    let archiving = inputs.archiving.map(archiving).unwrap_or_default();
    let more = of_tls(inputs).into_iter().chain(archiving).chain(slow_query(inputs));
    for (name, value) in fixed(inputs).into_iter().chain(tuned(inputs)).chain(more) {
        line(&mut text, name, &value);
    }
    if !fits_in_shared(inputs) {
        line(&mut text, SHARED_KIND, "mmap");
    }
    text.push_str("\n# [postgres.settings]\n");
    for (name, value) in &inputs.postgres.settings {
        check(name)?;
        if name != "shared_preload_libraries" {
            line(&mut text, name, value);
        }
    }
    // The last line that names a setting holds.
    match inputs.purpose {
        Purpose::Durable => {}
        Purpose::Throwaway(settings) => {
            for (name, value) in THROWAWAY {
                line(&mut text, name, value);
            }
            text.push_str("\n# [test.settings]\n");
            for (name, value) in settings {
                check(name)?;
                line(&mut text, name, value);
            }
            own_log(&mut text);
        }
        Purpose::Recovery(settings) => {
            text.push_str("\n# Recovery\n");
            own_log(&mut text);
            for (name, value) in settings {
                line(&mut text, name, value);
            }
        }
    }
    Ok(text)
}

/// Such a server's log is read for what went wrong, or how far it came.
fn own_log(text: &mut String) {
    for (name, value) in LOG_PLACE.into_iter().chain([(LINE_PREFIX, log::PREFIX), (LANGUAGE, "C")]) {
        line(text, name, value);
    }
}

/// What a server without a future does without: whatever makes data survive a crash of the machine, and whatever runs by
/// itself in the background. It starts in 15 ms instead of 30, and `CREATE DATABASE` copies files instead of logging
/// every page.
const THROWAWAY: [(&str, &str); 19] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "16MB"),
    ("superuser_reserved_connections", "5"),
    ("autovacuum", "off"),
    ("bgwriter_lru_maxpages", "0"),
    ("checkpoint_timeout", "1d"),
    ("dynamic_shared_memory_type", "mmap"),
    ("jit", "off"),
    ("max_logical_replication_workers", "0"),
    ("max_parallel_workers_per_gather", "0"),
    ("max_prepared_transactions", "100"),
    ("max_wal_senders", "0"),
    ("max_wal_size", "1GB"),
    ("min_wal_size", "2MB"),
    ("max_worker_processes", "0"),
    ("wal_init_zero", "off"),
    ("wal_recycle", "off"),
];

/// What does not depend on the machine.
fn fixed(inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let locale = "C.UTF-8".to_owned();
    vec![
        ("listen_addresses", listen_addresses(inputs.postgres.listen)),
        ("port", inputs.port.to_string()),
        // A list: in double quotes a path may hold commas and spaces.
        ("unix_socket_directories", format!("\"{}\"", inputs.socket_dir.display().to_string().replace('"', "\"\""))),
        ("max_connections", inputs.postgres.max_connections.to_string()),
        ("password_encryption", "scram-sha-256".into()),
        ("shared_preload_libraries", preload(inputs)),
        // The default, fsync, opens every file before crash recovery: 2.6 s against 0.3 s on a busy disk.
        ("recovery_init_sync_method", if cfg!(target_os = "linux") { "syncfs" } else { "fsync" }.into()),
        (LOG_PLACE[0].0, LOG_PLACE[0].1.into()),
        (LOG_PLACE[1].0, LOG_PLACE[1].1.into()),
        // Tandem stamps each line with the time; what it cannot know is who.
        (LINE_PREFIX, log::PREFIX.into()),
        ("log_checkpoints", "off".into()),
        ("log_timezone", "UTC".into()),
        ("timezone", "UTC".into()),
        ("datestyle", "iso, mdy".into()),
        (LANGUAGE, locale.clone()),
        ("lc_monetary", locale.clone()),
        ("lc_numeric", locale.clone()),
        ("lc_time", locale),
        ("default_text_search_config", "pg_catalog.english".into()),
    ]
}

/// What follows from the memory there is. The workers live on the same machine, so PostgreSQL takes no more than half.
fn tuned(inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let memory = inputs.memory;
    let shared_buffers = inputs.postgres.shared_buffers.unwrap_or((memory / 4).clamp(16 * MB, SHARED_BUFFERS_MAX));
    vec![
        ("shared_buffers", kilobytes(shared_buffers)),
        ("effective_cache_size", kilobytes((memory / 2).max(32 * MB))),
        ("work_mem", kilobytes(work_mem(inputs))),
        ("maintenance_work_mem", kilobytes((memory / 16).clamp(16 * MB, 1024 * MB))),
        // Bounds both the disk that WAL takes and the work of crash recovery.
        ("max_wal_size", "1GB".into()),
        ("min_wal_size", "80MB".into()),
    ]
}

/// What makes the server serve over TLS.
fn of_tls(inputs: &Inputs<'_>) -> Vec<(&'static str, String)> {
    let Some(file) = inputs.tls else { return Vec::new() };
    let file = file.display().to_string();
    OF_TLS.into_iter().zip(["on".to_owned(), file.clone(), file]).collect()
}

/// From which duration on a statement of the application's is in the log.
fn slow_query(inputs: &Inputs<'_>) -> Option<(&'static str, String)> {
    let limit = inputs.postgres.slow_query.filter(|_| matches!(inputs.purpose, Purpose::Durable))?;
    Some((SLOW_QUERY, limit.as_millis().to_string()))
}

/// What makes the server archive its WAL, and serve base backups.
fn archiving(archiving: &Archiving) -> Vec<(&'static str, String)> {
    vec![
        ("wal_level", "replica".into()),
        ("max_wal_senders", "10".into()),
        ("archive_mode", "on".into()),
        ("archive_command", archiving.command.clone()),
        ("archive_timeout", archiving.timeout.as_secs().to_string()),
    ]
}

/// Where parallel queries share what they sort and hash. PostgreSQL's own choice is /dev/shm, which has 64 MB in a
/// container (`docker run --shm-size`); the other kinds need no place of their own.
const SHARED_KIND: &str = "dynamic_shared_memory_type";
/// How many processes of parallel queries may share memory at a time: `max_parallel_workers`, and as many that lead them.
const SHARERS: u64 = 16;
/// A hash may take this many times `work_mem` (`hash_mem_multiplier`).
const HASH_FACTOR: u64 = 2;

/// Whether /dev/shm has room for parallel queries, or is not what they will use.
fn fits_in_shared(inputs: &Inputs<'_>) -> bool {
    let settings = &inputs.postgres.settings;
    let chosen = settings.keys().any(|name| name.eq_ignore_ascii_case(SHARED_KIND));
    // A server for tests never uses it.
    let unasked = matches!(inputs.purpose, Purpose::Throwaway(_)) || chosen;
    unasked || inputs.shared.is_none_or(|shared| shared >= shared_need(inputs))
}

/// Bytes that parallel queries may share at a time.
fn shared_need(inputs: &Inputs<'_>) -> u64 {
    work_mem(inputs).saturating_mul(HASH_FACTOR * SHARERS)
}

fn shared_notice(inputs: &Inputs<'_>) -> String {
    let (free, need) = (inputs.shared.unwrap_or_default() / MB, shared_need(inputs) / MB);
    format!(
        "/dev/shm offers {free} MB and parallel queries may need {need} MB: they share files in the data directory instead \
         ({SHARED_KIND} = \"mmap\"); memory is faster: docker run --shm-size={need}m, or set {SHARED_KIND} under \
         [postgres.settings]"
    )
}

/// Bytes that a query may sort or hash in: the operator's word where it is understood.
fn work_mem(inputs: &Inputs<'_>) -> u64 {
    let given = inputs.postgres.settings.iter().find(|(name, _)| name.eq_ignore_ascii_case("work_mem"));
    given.and_then(|(_, value)| memory_of(value)).unwrap_or_else(|| {
        // A query may use it several times, and every connection runs one.
        let part = inputs.memory / 8 / u64::from(inputs.postgres.max_connections.max(1));
        part.clamp(4 * MB, 64 * MB)
    })
}

/// A size as postgresql.conf takes it: a number of kilobytes, or one with a unit.
fn memory_of(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match text[end..].trim() {
        "B" => 1,
        "" | "kB" => 1024,
        "MB" => MB,
        "GB" => 1024 * MB,
        "TB" => 1024 * 1024 * MB,
        _ => return None,
    };
    text[..end].parse::<u64>().ok()?.checked_mul(unit)
}

fn kilobytes(bytes: u64) -> String {
    if bytes.is_multiple_of(MB) { format!("{}MB", bytes / MB) } else { format!("{}kB", bytes / 1024) }
}

/// The configured address, and loopback beside it where Tandem and its workers would not reach it otherwise.
fn listen_addresses(listen: IpAddr) -> String {
    let local = client_address(listen);
    if listen == local || listen.is_unspecified() { listen.to_string() } else { format!("{local},{listen}") }
}

fn preload(inputs: &Inputs<'_>) -> String {
    let more = inputs.postgres.settings.get("shared_preload_libraries").map(String::as_str).unwrap_or_default();
    // A test server does without statistics, which slow its start.
    let wanted = inputs.statements && !matches!(inputs.purpose, Purpose::Throwaway(_));
    let ours = wanted.then_some("pg_stat_statements");
    let more = more.split(',').map(str::trim).filter(|name| !name.is_empty() && Some(*name) != ours);
    ours.into_iter().chain(more).collect::<Vec<_>>().join(",")
}

/// Names are `name` or `extension.name`; a line break in one would be a setting of its own.
fn check(name: &str) -> Result<(), Failure> {
    let word = |part: &str| {
        part.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
            && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "_$".contains(letter))
    };
    if !name.split('.').all(word) {
        return Err(Failure::new(Code::Config, format!("[postgres.settings]: {name:?} is not the name of a setting")));
    }
    let lower = name.to_ascii_lowercase();
    let goes_elsewhere = LOG_PLACE.iter().any(|(own, _)| *own == lower);
    if OWNED.contains(&lower.as_str()) && !goes_elsewhere {
        let message = format!("[postgres.settings]: `{name}` is set by Tandem; use the keys of [postgres] instead");
        return Err(Failure::new(Code::Config, message));
    }
    Ok(())
}

/// The line of a configuration file that sets `name`.
pub fn line_of(name: &str, value: &str) -> String {
    let mut text = String::new();
    line(&mut text, name, value);
    text
}

/// One line of postgresql.conf: in its quoted strings `\` escapes, and a quote is doubled.
fn line(text: &mut String, name: &str, value: &str) {
    let mut quoted = String::with_capacity(value.len());
    for letter in value.chars() {
        match letter {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            // The reader of the file is a C string's: a NUL cannot be in a value.
            '\0' => {}
            other => quoted.push(other),
        }
    }
    let _ = writeln!(text, "{name} = '{quoted}'");
}

#[cfg(test)]
mod tests;
