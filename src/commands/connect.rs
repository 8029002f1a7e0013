//! `tandem psql`, `tandem url`, `tandem env`: connect with the right tool, user and password.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::cli::Common;
use crate::commands::running::say;
use crate::commands::{audit, open};
use crate::config::{PostgresMode, Purpose, Settings, Source};
use crate::exit::{Code, Failure};
use crate::harness;
use crate::plan::{CommandLine, DatabaseUrl};
use crate::postgres::home::Home;
use crate::postgres::settings::SUPERUSER;
use crate::process;
use crate::telemetry;
use crate::workers::environment;
use crate::workers::surroundings::Surroundings;

fn locate(common: &Common) -> anyhow::Result<(Settings, DatabaseUrl, PathBuf)> {
    let settings = open::settings(common, Vec::new())?;
    let home = Home::resolve(&settings)?;
    let url = open::url(&settings, &home)?;
    let python = environment::existing(&settings.python, &home.state, &settings.directory);
    Ok((settings, url, python))
}

fn around<'a>(settings: &'a Settings, url: &'a DatabaseUrl, python: &'a Path) -> Surroundings<'a> {
    Surroundings { settings, url, python, identity: None, of_tests: false }
}

/// Become psql. The password travels in the environment, which other users cannot read, and not in the arguments.
///
/// # Errors
/// No psql can be found or fetched; the superuser is asked for of a server that is not Tandem's.
pub async fn psql(common: &Common, superuser: bool, args: &[String]) -> anyhow::Result<Code> {
    let (settings, url, python) = locate(common)?;
    let asks_psql = args.iter().any(|arg| matches!(arg.as_str(), "--help" | "-?" | "--version" | "-V"));
    let home = Home::resolve(&settings)?;
    if settings.postgres.mode == PostgresMode::Managed && !asks_psql {
        open::refuse_stopped(&settings, &home)?;
    }
    let command = client(&settings).await?.args(args);
    let mut command = around(&settings, &url, &python).tool(command, "tandem-psql");
    if superuser {
        command = as_superuser(command, &settings, &home)?;
        if !asks_psql {
            audit::tell(&home.control, "opens a superuser's session (tandem psql --superuser)").await;
        }
    }
    telemetry::flush();
    let error = process::replace(&command);
    Err(anyhow::Error::new(error).context(format!("start {}", command.program().display())))
}

/// Become psql in the database of the test that `name` means.
///
/// # Errors
/// No run of this project has a database of it.
pub async fn psql_of_test(common: &Common, name: &str, args: &[String]) -> anyhow::Result<Code> {
    // As `tandem test`: whatever server the project has, its tests have another one.
    let managed = open::flag("postgres.mode", "managed", "tandem psql --test");
    let mut source = Source { purpose: Purpose::Test, ..open::source(common, vec![managed])? };
    source.environment.remove("DATABASE_URL");
    let settings = open::configure(source)?.loaded.settings;
    let url = harness::find_of_test(&settings, name).await?;
    let state = Home::resolve(&settings)?.state;
    let python = environment::existing(&settings.python, &state, &settings.directory);
    let around = Surroundings { of_tests: true, ..around(&settings, &url, &python) };
    let command = around.tool(client(&settings).await?.args(args), "tandem-psql");
    telemetry::flush();
    let error = process::replace(&command);
    Err(anyhow::Error::new(error).context(format!("start {}", command.program().display())))
}

/// Find psql: Tandem's own, or for an attached server the one in PATH, if there is one.
async fn client(settings: &Settings) -> anyhow::Result<CommandLine> {
    let in_path = std::env::split_paths(&settings.search_path).map(|dir| dir.join("psql")).find(|psql| psql.is_file());
    match (settings.postgres.mode, in_path) {
        (PostgresMode::Attach, Some(psql)) => Ok(CommandLine::new(psql)),
        _ => Ok(open::installation(settings).await?.command("psql")),
    }
}

/// What the superuser's session sets: its end, with how long it was open, is a line of the server's log. PostgreSQL lets
/// nobody else set that for one session (`log_disconnections`).
const AUDITED: &str = "-c log_disconnections=on";

/// Connect over the unix socket, where peer authentication accepts the server's user and root without a password.
fn as_superuser(command: CommandLine, settings: &Settings, home: &Home) -> anyhow::Result<CommandLine> {
    if settings.postgres.mode == PostgresMode::Attach {
        let text = "the server is run by somebody else: its superuser's name and password are theirs";
        return Err(Failure::new(Code::Usage, text).into());
    }
    let command = command.env("PGHOST", &home.socket_dir).env("PGUSER", SUPERUSER).env_remove("PGPASSWORD");
    Ok(command.env("PGOPTIONS", AUDITED))
}

/// Print the URL, by default with the plain scheme that `psql` and every driver accept.
///
/// # Errors
/// There is no database yet.
pub fn url(common: &Common, scheme: Option<&str>, json: bool) -> anyhow::Result<Code> {
    let (_, url, _) = locate(common)?;
    let url = url.with_scheme(scheme.unwrap_or("postgresql")).expose();
    if json {
        say(&serde_json::json!({ "url": url.expose() }).to_string())?;
    } else {
        say(url.expose())?;
    }
    Ok(Code::Stopped)
}

/// Print the database variables of a worker's environment as lines that a shell can read.
///
/// # Errors
/// There is no database yet.
pub fn env(common: &Common, json: bool) -> anyhow::Result<Code> {
    let (settings, url, python) = locate(common)?;
    let pairs = around(&settings, &url, &python).database(&settings.name).0;
    if json {
        let map: serde_json::Map<_, _> =
            pairs.into_iter().filter_map(|(name, value)| Some((name, value?.into()))).collect();
        say(&serde_json::to_string_pretty(&map)?)?;
        return Ok(Code::Stopped);
    }
    let mut text = String::new();
    for (name, value) in pairs {
        let _ = match value {
            Some(value) => writeln!(text, "export {name}='{}'", value.replace('\'', r"'\''")),
            None => writeln!(text, "unset {name}"),
        };
    }
    telemetry::print(&text)?;
    Ok(Code::Stopped)
}
