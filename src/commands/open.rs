//! The first steps of most commands: load the configuration, start the log, find the state directory.

use crate::backup::reach::Reach;
use crate::cli::Common;
use crate::config::{self, Debugger, Flag, Loaded, LogFile, LogFormat, PostgresMode, Settings, Source};
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;
use crate::postgres::binaries::{self, Installation};
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::postgres::{address, lookup, secret, server, tls};
use crate::process::ports;
use crate::sidecar::{self, Configuration, Errand, Goal};
use crate::telemetry::{self, FileBounds};

/// The variable that sets `log.format`.
const LOG_FORMAT: &str = "TANDEM_LOG__FORMAT";

/// A flag that sets a key.
pub fn flag(key: &str, value: impl Into<String>, name: &str) -> Flag {
    Flag { key: key.to_owned(), value: value.into(), name: name.to_owned() }
}

/// Load the configuration with `flags` on top and start the log.
///
/// # Errors
/// Every error of the configuration at once.
pub fn settings(common: &Common, flags: Vec<Flag>) -> anyhow::Result<Settings> {
    Ok(configuration(common, flags)?.loaded.settings)
}

/// As [`settings`], with all that the configuration can be read from again.
///
/// # Errors
/// As [`settings`].
pub fn configuration(common: &Common, flags: Vec<Flag>) -> anyhow::Result<Configuration> {
    configure(source(common, flags)?)
}

/// As [`configuration`], read from `source`.
///
/// # Errors
/// As [`settings`].
pub fn configure(source: Source) -> anyhow::Result<Configuration> {
    begin(source, false)
}

/// As [`configure`], for the process whose log goes to `log.file`, which is that of `tandem up`.
///
/// # Errors
/// As [`settings`].
pub fn configure_with_file(source: Source) -> anyhow::Result<Configuration> {
    begin(source, true)
}

fn begin(source: Source, writes_file: bool) -> anyhow::Result<Configuration> {
    let loaded = config::load(&source)?;
    loaded.settings.hide_secrets();
    let log = &loaded.settings.log;
    if let Some(file) = log.file.as_ref().filter(|_| writes_file) {
        telemetry::log_to_file(file_bounds(file));
    }
    telemetry::init(log.format, &log.filter, log.colour)?;
    for notice in &loaded.notices {
        tracing::warn!("{notice}");
    }
    Ok(Configuration { source, loaded, reload: false, debugger: Debugger::None })
}

/// `file`, as the log knows it.
pub fn file_bounds(file: &LogFile) -> FileBounds {
    FileBounds { path: file.path.clone(), size_max: file.size_max, count: file.count }
}

/// Load the configuration, with `--set` and `flags` on top, and start no log.
///
/// # Errors
/// Every error of the configuration at once.
pub fn load(common: &Common, flags: Vec<Flag>) -> anyhow::Result<Loaded> {
    let loaded = config::load(&source(common, flags)?)?;
    loaded.settings.hide_secrets();
    // What only asks starts no log and prints text, but what fails looks as the log was configured to look.
    if loaded.settings.log.format != LogFormat::Auto {
        telemetry::expect(loaded.settings.log.format);
    }
    Ok(loaded)
}

/// What the configuration is read from, with `--set` and `flags` on top.
///
/// # Errors
/// A `--set` that sets nothing.
pub fn source(common: &Common, mut flags: Vec<Flag>) -> anyhow::Result<Source> {
    for pair in &common.set {
        let Some((key, value)) = pair.split_once('=') else {
            let text = format!("--set {pair}: write KEY=VALUE, such as --set postgres.port=5433");
            return Err(Failure::new(Code::Usage, text).into());
        };
        flags.push(flag(key.trim(), value.trim(), "--set"));
    }
    if let Some(format) = &common.log_format {
        flags.push(flag("log.format", format.clone(), "--log-format"));
    }
    let source = Source::of_process(common.config.clone(), flags)?;
    // An error of the configuration is printed in the format that the flag or the environment asks for.
    let format = common.log_format.as_ref().or_else(|| source.environment.get(LOG_FORMAT));
    match format.map(String::as_str) {
        Some("json") => telemetry::expect(LogFormat::Json),
        Some("text") => telemetry::expect(LogFormat::Text),
        _ => {}
    }
    Ok(source)
}

/// The URL of the application's database, found without starting anything: with the port of the running server, else with the
/// configured one.
///
/// # Errors
/// There is no password yet, because nothing was ever started here.
pub fn url(settings: &Settings, home: &Home) -> anyhow::Result<DatabaseUrl> {
    if let Some(url) = &settings.postgres.url {
        return Ok(url.clone());
    }
    let postgres = &settings.postgres;
    let Some(password) = secret::existing(home, postgres.password.as_ref())? else {
        let text = format!("there is no database in {} yet: `tandem up` makes it", home.state.display());
        return Err(Failure::new(Code::Failed, text).into());
    };
    let port = server::running_port(&home.data).unwrap_or(postgres.port.number);
    Ok(address::of_application(postgres, password.secret, port, tls::of_url(postgres, home)))
}

/// Refuse to look for a server of Tandem's own that does not run.
///
/// # Errors
/// It is stopped, with the command that starts it.
pub fn refuse_stopped(settings: &Settings, home: &Home) -> anyhow::Result<()> {
    let port = || server::running_port(&home.data);
    // In another container, or of another user, it runs unseen: then its port says so.
    if port().is_some() || ports::is_listened_to(settings.postgres.port.number) {
        return Ok(());
    }
    let text = "the database is stopped, as no tandem runs here: start it with `tandem up` (or `tandem up --detach`)";
    Err(Failure::new(Code::Failed, text).into())
}

/// The application's database on a server that answers.
pub struct Database {
    pub settings: Settings,
    pub home: Home,
    pub reach: Reach,
    /// The database's name.
    pub name: String,
}

/// Run `work` with the application's database. If no server runs, start one for it and stop it afterwards.
///
/// # Errors
/// What `work` or the start of the server said.
pub async fn with_database<F>(
    common: &Common,
    flags: Vec<Flag>,
    command: &str,
    work: impl FnOnce(Database) -> F + 'static,
) -> anyhow::Result<Code>
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    with_database_of(configuration(common, flags)?, command, work).await
}

/// As [`with_database`], with a configuration that was read already.
///
/// # Errors
/// As [`with_database`].
pub async fn with_database_of<F>(
    configuration: Configuration,
    command: &str,
    work: impl FnOnce(Database) -> F + 'static,
) -> anyhow::Result<Code>
where
    F: Future<Output = anyhow::Result<()>> + 'static,
{
    let settings = configuration.loaded.settings.clone();
    let home = Home::resolve(&settings)?;
    if settings.postgres.mode == PostgresMode::Attach {
        lookup::check(&settings.postgres).await?;
        work(database(settings, home, None).await?).await?;
        return Ok(Code::Stopped);
    }
    home.prepare()?;
    // The server's files may be left over from a Tandem that was killed; the lock tells whether one runs.
    let _lock = match (StateLock::take(&home, command), server::own_running_port(&home)) {
        (Ok(lock), _) => lock,
        (Err(_), Some(port)) => {
            work(database(settings, home, Some(port)).await?).await?;
            return Ok(Code::Stopped);
        }
        (Err(held), None) => return Err(held),
    };
    let place = home.clone();
    let errand = |url: &DatabaseUrl| -> Errand {
        let port = url.port;
        Box::pin(async move { work(database(settings, place, Some(port)).await?).await })
    };
    sidecar::run(configuration, home, Goal::Errand(Box::new(errand))).await?;
    Ok(Code::Stopped)
}

/// How to reach the database; `port` is our own server's.
async fn database(settings: Settings, home: Home, port: Option<u16>) -> anyhow::Result<Database> {
    let installation = installation(&settings).await?;
    let name = database_name(&settings);
    let reach = match (port, &settings.postgres.url) {
        (None, Some(url)) => Reach::url(url, &home, installation),
        (port, _) => Reach::superuser(&home, port.unwrap_or(settings.postgres.port.number), installation),
    };
    Ok(Database { settings, home, reach, name })
}

/// The name of the application's database.
pub fn database_name(settings: &Settings) -> String {
    settings.postgres.url.as_ref().map_or(&settings.postgres.database, |url| &url.database).clone()
}

/// PostgreSQL 16's programs, fetched if need be.
///
/// # Errors
/// There are none, and none can be fetched.
pub async fn installation(settings: &Settings) -> anyhow::Result<Installation> {
    let (source, python) = (&settings.postgres.source, &settings.python.interpreter);
    binaries::ensure(source, &settings.cache_dir, python, settings.search_path.as_ref()).await
}
