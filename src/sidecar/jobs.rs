//! What each step of the boot does: one async function a step, made of calls into the rooms.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};

use super::{Context, attached, counting, init_scripts, migration_run, preflight};
use crate::backup::catalog::Catalog;
use crate::backup::load;
use crate::backup::pitr;
use crate::backup::reach::Reach;
use crate::backup::restore::{self, Restoring};
use crate::config::{Loaded, MigrationRun, Migrations, Postgres, PostgresMode, Settings, memory};
use crate::event_loop::{Hangs, elsewhere};
use crate::exit::{CANNOT_CONNECT_NOW, Code, code_of, in_words, is_broken_off, sql_state};
use crate::health::picture;
use crate::plan::{CommandLine, DatabaseUrl, in_one_line};
use crate::postgres::binaries::Installation;
use crate::postgres::cluster::Making;
use crate::postgres::home::Home;
use crate::postgres::provision::Wanted;
use crate::postgres::secret::{self, Password};
use crate::postgres::service::DatabaseStage;
use crate::postgres::settings::{self, Inputs, Purpose};
use crate::postgres::{address, adopt, binaries, cluster, conf, port, provision, shared_memory, tls};
use crate::process::{self, RunError};
use crate::schema::{self, sql_files};
use crate::workers::serving::{self, ServingCheck};
use crate::workers::surroundings::{NO_MODULE, Surroundings};
use crate::workers::{environment, launch};

/// How often a database that another Tandem fills is looked at again.
const FILLED_POLL: Duration = Duration::from_millis(200);
/// How often a server that broke a step of the start off is asked again.
const RECOVERY_POLL: Duration = Duration::from_millis(200);
/// How often it may do so.
const BROKEN_OFF_MAX: u32 = 4;

/// What must be known of the database before the first process.
pub struct Resolved {
    pub url: DatabaseUrl,
    /// The password that the role shall have, where the server is ours.
    pub password: Option<Password>,
    /// Until when the server's certificate holds, where the server is ours and serves over TLS.
    pub certificate: Option<SystemTime>,
}

/// Find out where the application's database is, and put the server's certificate in place.
///
/// # Errors
/// The port is taken and was chosen by hand; the certificate cannot be served; a file cannot be written.
pub fn resolve_database(loaded: &Loaded, home: &Home) -> anyhow::Result<Resolved> {
    let postgres = &loaded.settings.postgres;
    if let (PostgresMode::Attach, Some(url)) = (postgres.mode, &postgres.url) {
        return Ok(Resolved { url: url.clone(), password: None, certificate: None });
    }
    let certificate = tls::look(postgres, loaded, home, SystemTime::now())?;
    let password = secret::ensure(home, postgres.password.as_ref())?;
    let port = port::choose(postgres.listen, postgres.port)?;
    if let Some(certificate) = &certificate {
        certificate.notices.iter().for_each(|notice| tracing::warn!("{notice}"));
        // No server runs that could show another one.
        certificate.put(home)?;
        certificate.settle(home)?;
    }
    let parameters = certificate.as_ref().map(|certificate| certificate.parameters.clone()).unwrap_or_default();
    let url = address::of_application(postgres, password.secret.clone(), port, parameters);
    Ok(Resolved { url, password: Some(password), certificate: certificate.and_then(|it| it.not_after) })
}

/// [`super::Step::Install`]: both at once, since neither needs the other. `serves`: an application is to be served.
pub async fn install(context: Rc<Context>, serves: bool) -> anyhow::Result<()> {
    let (settings, home) = ((*context.settings()).clone(), context.home.clone());
    let found = elsewhere(move || async move {
        let postgres = async {
            match settings.postgres.mode {
                PostgresMode::Attach => Ok(None),
                PostgresMode::Managed => installation(&settings).await.map(Some),
            }
        };
        // Blocks: elsewhere.
        let python = environment::ensure(&settings.python, &home.state, &settings.directory);
        let (installation, environment) = tokio::try_join!(postgres, python)?;
        let identity = launch::identity_for(&settings, &home.run, &environment.python)?;
        anyhow::Ok((installation, environment.python, identity))
    });
    let (installation, python, identity) = found.await?;
    *context.installation.borrow_mut() = installation;
    *context.worker_identity.borrow_mut() = identity;
    *context.python.borrow_mut() = python;
    preflight::debugger(&context).await?;
    preflight::migrations(&context).await?;
    if serves {
        preflight::uvicorn(&context).await?;
        let verdict = check_serving(&context, &context.started()).await?;
        verdict.notices.iter().for_each(|notice| tracing::warn!("{notice}"));
        context.certificate.set(verdict.not_after);
    }
    Ok(())
}

/// Hold what the application is to be served with, as `loaded` says it, against this machine.
///
/// # Errors
/// Everything that is wrong, with its line; a disk does not answer.
pub async fn check_serving(context: &Context, loaded: &Loaded) -> anyhow::Result<ServingCheck> {
    let python = context.python.borrow().clone();
    let question = serving::question(&loaded.settings, &python);
    let question = question.map(|command| context.around(|around| around.as_worker(command, Path::new("/"))));
    let user = context.worker_identity.borrow().clone();
    serving::verify(loaded, question, user).await
}

/// The PostgreSQL that `settings` ask for.
async fn installation(settings: &Settings) -> anyhow::Result<Installation> {
    let (source, python) = (&settings.postgres.source, &settings.python.interpreter);
    // Blocks: for jobs that run elsewhere.
    binaries::ensure(source, &settings.cache_dir, python, settings.search_path.as_ref()).await
}

/// [`super::Step::Cluster`].
pub async fn cluster(context: Rc<Context>) -> anyhow::Result<()> {
    let installation = context.installation.borrow().clone().context("no PostgreSQL was installed")?;
    let (settings, home, port) = ((*context.settings()).clone(), context.home.clone(), context.url().port);
    let fresh = elsewhere(move || async move { make_cluster(&settings, &home, &installation, port).await }).await?;
    context.fresh.set(fresh);
    Ok(())
}

/// Make or open the cluster in `home` and write its settings; whether it was made.
async fn make_cluster(
    settings: &Settings,
    home: &Home,
    installation: &Installation,
    port: u16,
) -> anyhow::Result<bool> {
    // Blocks: for a job that runs elsewhere, as all of this.
    let (initdb_args, has_scripts) = (&*settings.postgres.initdb_args, settings.postgres.init_scripts.is_some());
    let fresh = cluster::ensure(home, installation, Making { initdb_args, has_scripts }).await?.fresh;
    if !installation.has_statements() {
        let bin = installation.bin.display();
        tracing::warn!(
            "the PostgreSQL in {bin} has no pg_stat_statements (contrib): it runs without statistics of statements"
        );
    }
    let archiving = pitr::archiving(settings, home)?;
    let files = settings::render(&Inputs {
        postgres: &settings.postgres,
        socket_dir: &home.socket_dir,
        port,
        // Blocks: elsewhere.
        memory: memory::available(),
        shared: shared_memory::available(home.server.as_ref()),
        trusted_users: &home.trusted_users()?,
        archiving: archiving.as_ref(),
        statements: installation.has_statements(),
        tls: (!settings.postgres.tls.is_off()).then(|| tls::server_file(home)).as_deref(),
        purpose: Purpose::Durable,
    })?;
    if !fresh {
        adopt::adopt(home, installation, &files).await?;
    }
    cluster::configure(home, &files)?;
    // Blocks: elsewhere.
    for told in settings::overrides(&conf::altered(&home.data), &settings.postgres) {
        tracing::warn!("{told}");
    }
    // Blocks: elsewhere.
    for told in settings::unseen(&conf::altered(&home.data), &settings.postgres) {
        tracing::info!("{told}");
    }
    Ok(fresh)
}

/// [`super::Step::Provision`].
pub async fn provision(context: Rc<Context>) -> anyhow::Result<()> {
    let Some(password) = context.password.borrow().clone() else { return Ok(()) };
    let (url, reads_all_stats) = (context.url(), context.settings().postgres.read_all_stats);
    let wanted = Wanted { user: &url.user, password: &password, database: &url.database, reads_all_stats };
    // A second attempt may find what the first has made.
    let mut provide =
        async || provision::provision(&context.home, url.port, &wanted, context.fresh.replace(false)).await;
    across_recoveries(&context.settings().postgres, &mut provide).await?;
    if init_scripts::run(&context).await? {
        // They may have changed what was made for the application.
        across_recoveries(&context.settings().postgres, &mut provide).await?;
        init_scripts::finish(&context).await?;
    }
    context.database.set(DatabaseStage::Provisioned);
    Ok(())
}

/// Do `step`, and do it again where our own server broke it off: when one of its processes dies, the server throws every
/// session out, recovers and goes on. Each step is one that every start does, so it may begin again.
async fn across_recoveries<T>(
    postgres: &Postgres,
    mut step: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (mut broken_off, mut recovers_since) = (0, None);
    loop {
        let error = match step().await {
            Err(error) if postgres.mode == PostgresMode::Managed && is_broken_off(&error) => error,
            ended => return ended,
        };
        if sql_state(&error).as_deref() == Some(CANNOT_CONNECT_NOW) {
            // That takes as long as a start.
            if recovers_since.get_or_insert_with(Instant::now).elapsed() >= postgres.ready_limit {
                return Err(error);
            }
        } else {
            (broken_off, recovers_since) = (broken_off + 1, None);
            // What is asked may itself be what ends the server, for want of memory.
            if broken_off == BROKEN_OFF_MAX {
                return Err(error);
            }
            tracing::warn!("{}; PostgreSQL is asked again", in_words(&error));
        }
        tokio::time::sleep(RECOVERY_POLL).await;
    }
}

/// [`super::Step::Migrate`].
pub async fn migrate(context: Rc<Context>) -> anyhow::Result<()> {
    let (postgres, migrations) = (&context.settings().postgres, &context.settings().migrations);
    across_recoveries(postgres, async || restore_if_empty(&context).await).await?;
    let began = Instant::now();
    let ran = across_recoveries(postgres, async || apply(&context, migrations).await).await;
    counting::migrations(ran.is_ok());
    let (run, applied) = match ran {
        Ok(applied) => applied,
        Err(error) => return Err(attached::of_absence(&context, error).await),
    };
    *context.migrations.borrow_mut() = picture::Migrations {
        newest: (run == MigrationRun::SeaOrm).then(schema::head),
        applied,
        took: Some(began.elapsed()),
        finished: Some(SystemTime::now()),
    };
    context.database.set(DatabaseStage::Migrated);
    Ok(())
}

/// Bring a backup into a database that holds nothing, where that is wanted: before the migrations, which go on from there.
async fn restore_if_empty(context: &Context) -> anyhow::Result<()> {
    let settings = context.settings();
    let Some(source) = settings.restore_if_empty.clone() else { return Ok(()) };
    let installed = context.installation.borrow().clone();
    let (settings, home, url) = ((*settings).clone(), context.home.clone(), context.url());
    elsewhere(move || async move { restore_from(&source, &settings, &home, &url, installed).await }).await
}

async fn restore_from(
    source: &str,
    settings: &Settings,
    home: &Home,
    url: &DatabaseUrl,
    installed: Option<Installation>,
) -> anyhow::Result<()> {
    let installation = match installed {
        Some(installation) => installation,
        None => installation(settings).await?,
    };
    let reach = match settings.postgres.mode {
        PostgresMode::Managed => Reach::superuser(home, url.port, installation),
        PostgresMode::Attach => Reach::url(url, home, installation),
    };
    let database = &url.database;
    if !restore::is_empty(&reach, database).await? {
        return Ok(());
    }
    let catalog = Catalog::of(settings, home);
    let found = restore::source(&catalog, settings, (source, false), database).await;
    let (catalog, entry) = match found {
        Ok(found) => found,
        // The very first start has nothing to restore. If the backups could not be looked at, that is not known, and an
        // empty database must not be begun.
        Err(error) if source == "latest" && error.is::<restore::NoBackup>() => {
            tracing::warn!("restore.if_empty: {}; database {database} starts empty", in_words(&error));
            return Ok(());
        }
        Err(error) => return Err(error.context("restore.if_empty")),
    };
    restore::check((&catalog, &entry), settings, database, false).await.context("restore.if_empty")?;
    let Some(mut restoring) = begin_if_empty(&reach, database, settings.migrations.lock_limit).await? else {
        return Ok(());
    };
    let restored = restoring.restore(&reach, (&catalog, &entry), settings, database, Duration::ZERO).await?;
    if let Some(kept) = &restored.kept {
        // It held nothing.
        load::drop(&reach, kept).await?;
    }
    restoring.end().await;
    tracing::info!(
        "restored {} ({} rows in {} tables) into {database}",
        restored.backup,
        restored.rows,
        restored.tables
    );
    Ok(())
}

/// The right to restore into `database`, waited for, or nothing where another Tandem has filled it meanwhile.
async fn begin_if_empty(reach: &Reach, database: &str, limit: Duration) -> anyhow::Result<Option<Restoring>> {
    let deadline = Instant::now() + limit;
    loop {
        match Restoring::begin(reach, database).await {
            // Only what is looked at under the lock stays so.
            Ok(restoring) if restore::is_empty(reach, database).await? => return Ok(Some(restoring)),
            Ok(restoring) => {
                restoring.end().await;
                return Ok(None);
            }
            Err(error) if code_of(&error) == Code::Temporary && Instant::now() < deadline => {
                tokio::time::sleep(FILLED_POLL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// What migrated, and how many migrations this start applied, where that is known.
async fn apply(context: &Context, migrations: &Migrations) -> anyhow::Result<(MigrationRun, Option<u32>)> {
    let run = migration_run::of_database(&context.url(), migrations).await?;
    let applied = match &run {
        MigrationRun::None => None,
        MigrationRun::SeaOrm => {
            let outcome = schema::up(&context.url(), migrations.lock_limit, migrations.limit).await?;
            u32::try_from(outcome.applied.len()).ok()
        }
        MigrationRun::Sql => {
            let (dir, limits) = (context.settings().sql_dir(), (migrations.lock_limit, migrations.limit));
            let outcome = sql_files::up(&context.url(), &dir, limits, None).await?;
            u32::try_from(outcome.applied.len()).ok()
        }
        MigrationRun::Command(words) => {
            preflight::program(context, words).await?;
            schema::locked(&context.url(), migrations.lock_limit, command(context, words)).await?;
            None
        }
    };
    Ok((run, applied))
}

/// The command of the companion in `place`: with the workers' environment, as their user.
///
/// # Errors
/// The disk that the Python environment is on does not answer.
pub async fn companion(context: Rc<Context>, place: usize) -> Result<CommandLine, Hangs> {
    context
        .around_aside(move |around| {
            let settings = around.settings;
            let companion = &settings.processes[place];
            let application = format!("{}-{}", settings.name, companion.name);
            let command = around.command(&companion.command, &application, &companion.dir);
            let command = command.unwrap_or_else(|| CommandLine::new("")).env("TANDEM_BASE_URL", settings.base_url());
            around.resolve(&companion.env, &application).apply(command)
        })
        .await
}

/// The command that `words` say, as a migration is run. As the workers' user: such a command imports all of the
/// application, and what that writes the workers must own.
///
/// # Errors
/// There are no words.
pub fn migration_command(around: &Surroundings<'_>, words: &[String]) -> anyhow::Result<CommandLine> {
    let application = format!("{}-migrate", around.settings.name);
    around.command(words, &application, around.settings.migrations_dir()).context("migrations.run is empty")
}

async fn command(context: &Context, words: &[String]) -> anyhow::Result<()> {
    let settings = &*context.settings();
    let owned = words.to_vec();
    let make = move |around: Surroundings<'_>| (migration_command(&around, &owned), around.import_help());
    let (command, import_help) = context.around_aside(make).await?;
    let ended = run_migrations(&context.url(), &command?, words, settings.migrations.limit).await;
    ended.map_err(|error| with_import_help(error, import_help))
}

/// `error`, with what helps where a command could not import a module because of Tandem.
pub(super) fn with_import_help(error: anyhow::Error, help: Option<String>) -> anyhow::Error {
    match help.filter(|_| format!("{error:#}").contains(NO_MODULE)) {
        Some(help) => error.context(help),
        None => error,
    }
}

/// Run `command`, which migrates and whose words are `words`, within `limit`.
pub(super) async fn run_migrations(
    url: &DatabaseUrl,
    command: &CommandLine,
    words: &[String],
    limit: Duration,
) -> anyhow::Result<()> {
    let on_line = |line: &str| crate::telemetry::child_line("migrate", crate::telemetry::Stream::Stderr, line);
    let what = format!("migrations: `{}`", in_one_line(words));
    let finished = match process::run_with(command, limit, on_line).await {
        Err(RunError::Limit(_, limit)) => {
            bail!("{what} did not end within {limit:?} (migrations.limit) and was killed")
        }
        ended => ended.with_context(|| what.clone())?,
    };
    if !finished.exit.success() {
        let failed = anyhow::anyhow!("{what} ended with {}\n{}", finished.exit, finished.last_lines());
        let printed = [&finished.stdout, &finished.stderr];
        return Err(match printed.iter().any(|text| LOCKED_OUT.iter().any(|words| text.contains(words))) {
            true => failed.context(LockedOut),
            false => failed,
        });
    }
    if schema::has_tables(url).await.is_ok_and(|any| !any) {
        tracing::warn!(
            "{what} succeeded, and database {} has no table: did it work on another one? It gets DATABASE_URL, PG* and \
             POSTGRES_*; what it reads under other names, write into [workers.env]: DB_PORT = \"${{PGPORT}}\"",
            url.database
        );
    }
    Ok(())
}

/// A statement waited for a lock as long as it may (SQLSTATE 55P03).
#[derive(Debug, thiserror::Error)]
#[error("a lock of the application's was not to be had in time")]
pub(super) struct LockedOut;

/// How PostgreSQL and the drivers of Python say so.
const LOCKED_OUT: [&str; 3] = ["due to lock timeout", "LockNotAvailable", "55P03"];
