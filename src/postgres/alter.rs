//! PostgreSQL's settings as ALTER SYSTEM changes them: looked up, written, tried before the server has to start with them.
//!
//! ALTER SYSTEM checks one value by itself. Whether the server starts with all of them together only a start tells, so a copy
//! of its configuration is tried first: a server that does not come back takes the application with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sea_orm::sqlx::{AssertSqlSafe, PgConnection, Row, query, query_scalar, raw_sql};
use serde::Serialize;

use super::binaries::Installation;
use super::home::{Home, make_dir};
use super::log::{Line, Severity};
use super::{conf, server};
use crate::config::memory;
use crate::durable::{self, WriteOptions};
use crate::exit::{Code, Failure};
use crate::process;
use crate::schema::{ANSWER_LIMIT, answered};

/// The file that ALTER SYSTEM writes.
const ALTERED: &str = "postgresql.auto.conf";
/// How long the trial may take: it loads libraries, and maps no memory.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);
/// How long the server may take to let a setting hold after a reload, and how often that is looked at.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
const RELOAD_POLL: Duration = Duration::from_millis(50);

/// Settings that are lists of names, each to be quoted by itself (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c).
const LISTS: [&str; 4] = ["local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"];

/// A setting as the server has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub name: String,
    /// As a person writes it, with its unit.
    pub value: String,
    /// PostgreSQL's own default, in the setting's base unit.
    pub default: Option<String>,
    pub unit: Option<String>,
    /// Such as `configuration file`.
    pub source: String,
    /// The file and the line that set it.
    pub file: Option<String>,
    /// When a change takes effect: `internal`, `postmaster`, `sighup`, `superuser`, `user`, `backend`, `superuser-backend`.
    pub context: String,
    /// The least and the greatest value, or the words that it may be.
    pub range: Option<String>,
    /// Whether a change waits for a restart.
    pub pending_restart: bool,
    pub about: String,
}

/// Asked in a session that may have set some for itself: what others get counts.
const SETTING: &str = "
    SELECT name, CASE WHEN setting IS DISTINCT FROM reset_val THEN reset_val ELSE current_setting(name) END AS value,
           boot_val AS default, unit, source, regexp_replace(sourcefile, '^.*/', '') || ':' || sourceline AS file, context,
           CASE WHEN enumvals IS NOT NULL THEN array_to_string(enumvals, ', ')
                WHEN min_val IS NOT NULL THEN min_val || ' to ' || max_val END AS range,
           pending_restart, short_desc AS about
    FROM pg_catalog.pg_settings WHERE lower(name) = lower($1)";

impl Setting {
    /// The setting called `name`.
    ///
    /// # Errors
    /// There is none, with the one that is probably meant; the server does not answer.
    pub async fn find(session: &mut PgConnection, name: &str) -> anyhow::Result<Self> {
        let asked = query(SETTING).bind(name).fetch_optional(&mut *session);
        if let Some(row) = answered(ANSWER_LIMIT, "ask for the setting", asked).await? {
            return Ok(Self {
                name: row.try_get("name")?,
                value: row.try_get::<Option<String>, _>("value")?.unwrap_or_default(),
                default: row.try_get("default")?,
                unit: row.try_get("unit")?,
                source: row.try_get("source")?,
                file: row.try_get("file")?,
                context: row.try_get("context")?,
                range: row.try_get("range")?,
                pending_restart: row.try_get("pending_restart")?,
                about: row.try_get("about")?,
            });
        }
        let names = query_scalar("SELECT name FROM pg_catalog.pg_settings").fetch_all(session);
        let names: Vec<String> = answered(ANSWER_LIMIT, "list the settings", names).await?;
        let near = names.iter().map(|known| (strsim::damerau_levenshtein(known, &name.to_lowercase()), known)).min();
        let meant =
            near.filter(|(distance, _)| *distance <= 3).map(|(_, known)| format!("; {known} is probably meant"));
        let meant = meant.unwrap_or_else(|| match name.contains('.') {
            true => "; one of an extension is there once its library is loaded (shared_preload_libraries)".to_owned(),
            false => String::new(),
        });
        let text = format!("PostgreSQL has no setting {name}{meant}");
        Err(Failure::new(Code::Usage, text).into())
    }

    /// Whether a change of it takes effect only after a restart of the server.
    pub fn needs_restart(&self) -> bool {
        self.context == "postmaster"
    }

    /// The statement that sets it to `value`, or takes a change back.
    ///
    /// # Errors
    /// It cannot be changed at all.
    pub fn statement(&self, value: Option<&str>) -> Result<String, Failure> {
        if self.context == "internal" {
            let text = format!("{} is built into this PostgreSQL or follows from others; it cannot be set", self.name);
            return Err(Failure::new(Code::Usage, text));
        }
        // The name is the server's own, and may hold dots.
        let name = self.name.split('.').map(super::provision::identifier).collect::<Vec<_>>().join(".");
        Ok(match value {
            None => format!("ALTER SYSTEM RESET {name}"),
            Some(value) => format!("ALTER SYSTEM SET {name} = {}", literals(&self.name, value)),
        })
    }

    /// Write `value` into postgresql.auto.conf, or take what is there away.
    ///
    /// # Errors
    /// The server refuses the value.
    pub async fn write(&self, session: &mut PgConnection, value: Option<&str>) -> anyhow::Result<()> {
        let statement = self.statement(value)?;
        let written = raw_sql(AssertSqlSafe(statement)).execute(session);
        answered(ANSWER_LIMIT, &format!("change {}", self.name), written).await.map(drop)
    }
}

/// `value` as SQL's literals.
fn literals(name: &str, value: &str) -> String {
    let literal = |text: &str| {
        let doubled = text.replace('\'', "''");
        // Whatever standard_conforming_strings is.
        if doubled.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
    };
    if !LISTS.contains(&name) {
        return literal(value);
    }
    let parts: Vec<String> = value.split(',').map(|part| literal(part.trim().trim_matches('"'))).collect();
    parts.join(", ")
}

/// Have the server read its files again, and wait until `setting` holds what they say.
///
/// # Errors
/// The server does not take it within the limit, with what it says of its files.
pub async fn reload(session: &mut PgConnection, setting: &Setting) -> anyhow::Result<()> {
    let reloaded = query_scalar::<_, bool>("SELECT pg_catalog.pg_reload_conf()").fetch_one(&mut *session);
    answered(ANSWER_LIMIT, "reload the server's settings", reloaded).await?;
    let refused = "SELECT error FROM pg_catalog.pg_file_settings WHERE lower(name) = lower($1) AND error IS NOT NULL
                   AND error <> 'setting could not be applied'";
    // A session reads the files by itself, between two statements. What a role or a database sets wins over them.
    let holds = "SELECT now.source NOT IN ('configuration file', 'default')
                        OR (now.sourcefile, now.sourceline) IS NOT DISTINCT FROM (file.sourcefile, file.sourceline)
                 FROM pg_catalog.pg_settings AS now LEFT JOIN pg_catalog.pg_file_settings AS file
                      ON lower(file.name) = lower(now.name) AND file.applied
                 WHERE lower(now.name) = lower($1)";
    let began = Instant::now();
    loop {
        let asked = query_scalar::<_, String>(refused).bind(&setting.name).fetch_optional(&mut *session);
        if let Some(why) = answered(ANSWER_LIMIT, "look at the server's files", asked).await? {
            bail!(Failure::new(Code::Failed, format!("{}: {why}", setting.name)));
        }
        let asked = query_scalar::<_, bool>(holds).bind(&setting.name).fetch_one(&mut *session);
        if answered(ANSWER_LIMIT, "look at the setting", asked).await? {
            return Ok(());
        }
        if began.elapsed() >= RELOAD_LIMIT {
            let text = format!(
                "{} does not hold {RELOAD_LIMIT:?} after a reload; `tandem logs postgres` may say why",
                setting.name
            );
            bail!(Failure::new(Code::Temporary, text));
        }
        tokio::time::sleep(RELOAD_POLL).await;
    }
}

/// The settings whose change waits for a restart.
///
/// # Errors
/// The server does not answer.
pub async fn pending(session: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    let names = query_scalar("SELECT name FROM pg_catalog.pg_settings WHERE pending_restart ORDER BY name");
    answered(ANSWER_LIMIT, "look for changes that wait for a restart", names.fetch_all(session)).await
}

/// Let a server of `installation` come as far as its memory with the configuration of `home`, and `name` set to `value` by
/// ALTER SYSTEM: it reads all settings, holds them against each other, and loads its libraries.
///
/// # Errors
/// [`Failure`] with why it would not start.
pub async fn try_start(home: &Home, installation: &Installation, name: &str, value: &str) -> anyhow::Result<()> {
    let mut altered = conf::altered(&home.data);
    let before = altered.insert(name.to_lowercase(), value.to_owned());
    let trial = Trial::make(home, &altered)?;
    // The first of PostgreSQL's settings that it computes from all others, after it has loaded the libraries.
    let command = server::program(home, installation, &[("LC_ALL".to_owned(), "C".to_owned())]);
    let command = command.args(["-C", "shared_memory_size", "-D"]).arg(trial.0.path());
    let conf = fs::read_to_string(home.data.join("postgresql.conf")).unwrap_or_default();
    let own = super::settings::owned(&conf, trial.0.path()).into_iter();
    let command = own.fold(command, |command, (name, value)| command.arg("-c").arg(format!("{name}={value}")));
    let finished = process::run(&command, TRIAL_LIMIT).await.context("try the settings")?;
    let refuse = |why: &str| {
        let stands = before.as_deref().map_or_else(String::new, |before| format!(", it stays {before:?}"));
        Failure::new(Code::Config, format!("PostgreSQL would not start with {name} = {value:?}: {why}{stands}"))
    };
    if !finished.exit.success() {
        bail!(refuse(&why(&finished.stderr)));
    }
    let megabytes = finished.stdout.trim().parse::<u64>().unwrap_or_default();
    // Blocks: a command's.
    let available = memory::available() >> 20;
    if megabytes > available {
        bail!(refuse(&format!("it would share {megabytes} MB of memory, and there are {available} MB")));
    }
    let huge = altered.get("huge_pages").is_some_and(|value| matches!(value.as_str(), "on" | "true" | "yes" | "1"));
    // Blocks: a command's.
    let reserved = reserved_megabytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    if huge && megabytes > reserved {
        bail!(refuse(&format!(
            "it would share {megabytes} MB in huge pages, and the machine reserves {reserved} MB for these (sysctl vm.nr_hugepages)"
        )));
    }
    Ok(())
}

/// Megabytes that /proc/meminfo says are set aside for huge pages.
fn reserved_megabytes(meminfo: &str) -> u64 {
    let number = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    number("HugePages_Total").unwrap_or_default() * number("Hugepagesize").unwrap_or_default() / 1024
}

/// Why a server ended, from what it printed.
fn why(stderr: &str) -> String {
    let lines: Vec<Line<'_>> = stderr.lines().map(Line::of).collect();
    let told = lines.iter().find(|line| line.text.contains("parameter \"") && line.severity == Some(Severity::Log));
    let last = || lines.iter().rev().find(|line| line.is_fatal());
    told.or_else(last).map_or_else(|| stderr.trim().to_owned(), |line| line.text.to_owned())
}

/// As much of a data directory as a server needs to try its settings; it goes when this is dropped.
struct Trial(tempfile::TempDir);

impl Trial {
    fn make(home: &Home, altered: &BTreeMap<String, String>) -> anyhow::Result<Self> {
        // Beside the data directory, where the server's user gets; what a killed process leaves there, the next start removes.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let parent = home.data.parent().context("the data directory has no parent")?;
        let dir = tempfile::Builder::new().prefix(".staging-settings-").permissions(private).tempdir_in(parent)?;
        let owner = home.server.as_ref().map(|owner| (owner.uid, owner.gid));
        let write = |name: &str, bytes: &[u8]| {
            let options = WriteOptions { owner, ..WriteOptions::default().unflushed() };
            durable::replace(&dir.path().join(name), bytes, &options).context("write the trial's files")
        };
        make_dir(&dir.path().join("global"), 0o700, home.server.as_ref())?;
        for name in ["PG_VERSION", "global/pg_control", "postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            let read =
                fs::read(home.data.join(name)).with_context(|| format!("read {name} of {}", home.data.display()));
            write(name, &read?)?;
        }
        let lines = altered.iter().map(|(name, value)| super::settings::line_of(name, value));
        write(ALTERED, lines.collect::<String>().as_bytes())?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid))
                .context("give the trial to the server's user")?;
        }
        Ok(Self(dir))
    }
}

/// What ALTER SYSTEM has written, to put it back where no server runs that could be asked to.
pub struct Written {
    bytes: Vec<u8>,
}

impl Written {
    /// As it is now.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(data: &Path) -> anyhow::Result<Self> {
        let path = data.join(ALTERED);
        Ok(Self { bytes: fs::read(&path).with_context(|| format!("read {}", path.display()))? })
    }

    /// Put it back.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put_back(&self, home: &Home) -> anyhow::Result<()> {
        let path = home.data.join(ALTERED);
        let owner = home.server.as_ref().map(|owner| (owner.uid, owner.gid));
        let options = WriteOptions { owner, ..WriteOptions::default() };
        durable::replace(&path, &self.bytes, &options).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, context: &str) -> Setting {
        Setting {
            name: name.into(),
            value: String::new(),
            default: None,
            unit: None,
            source: String::new(),
            file: None,
            context: context.into(),
            range: None,
            pending_restart: false,
            about: String::new(),
        }
    }

    #[test]
    fn a_value_is_one_literal_and_a_list_of_names_several() {
        for (name, value, statement) in [
            ("work_mem", Some("64MB"), r#"ALTER SYSTEM SET "work_mem" = '64MB'"#),
            ("auto_explain.log_format", Some("json"), r#"ALTER SYSTEM SET "auto_explain"."log_format" = 'json'"#),
            ("log_line_prefix", Some("it's 100 %"), r#"ALTER SYSTEM SET "log_line_prefix" = 'it''s 100 %'"#),
            ("log_line_prefix", Some(r"a\'; DROP"), r#"ALTER SYSTEM SET "log_line_prefix" = E'a\\''; DROP'"#),
            ("search_path", Some(r#""$user", public"#), r#"ALTER SYSTEM SET "search_path" = '$user', 'public'"#),
            ("datestyle", Some("iso, mdy"), r#"ALTER SYSTEM SET "datestyle" = 'iso, mdy'"#),
            ("work_mem", None, r#"ALTER SYSTEM RESET "work_mem""#),
        ] {
            assert_eq!(setting(name, "user").statement(value).unwrap(), statement);
        }
        assert!(setting("block_size", "internal").statement(Some("1")).is_err());
    }

    #[test]
    fn huge_pages_are_counted_as_the_kernel_reserves_them() {
        let meminfo = "HugePages_Total:      10\nHugePages_Free:        0\nHugepagesize:       2048 kB\n";
        assert_eq!((reserved_megabytes(meminfo), reserved_megabytes("")), (20, 0));
    }

    #[test]
    fn what_a_server_says_last_is_why() {
        let value = "2026-01-01 LOG:  invalid value for parameter \"x\": \"y\"\nFATAL:  configuration file \"f\" contains errors";
        assert!(why(value).contains("parameter \"x\""), "{}", why(value));
        let library = "[9] FATAL:  could not access file \"nosuch\": No such file or directory\nLOG:  database system is shut down";
        assert_eq!(why(library), "could not access file \"nosuch\": No such file or directory");
        assert_eq!(why("killed\n"), "killed");
    }
}
