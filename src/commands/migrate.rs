//! `tandem migrate`

use crate::backup::pitr::marks;
use crate::cli::{Common, Migrate};
use crate::commands::migrate_tool::{self, Place};
use crate::commands::open;
use crate::commands::running::say;
use crate::config::{MigrationRun, PostgresMode, Settings};
use crate::exit::{Code, Failure};
use crate::plan::DatabaseUrl;
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::postgres::{lookup, server};
use crate::schema::{self, MigrationOutcome, sql_files};
use crate::sidecar::{self, Errand, Goal};

/// Run one of the migrate commands. If no server runs, start one for it and stop it afterwards.
///
/// # Errors
/// What the migrations or the start of the server said.
pub async fn run(common: &Common, command: Migrate) -> anyhow::Result<Code> {
    let configuration = open::configuration(common, Vec::new())?;
    let settings = configuration.loaded.settings.clone();
    if let Migrate::New { name } = &command {
        let path = match settings.migrations.run {
            MigrationRun::Sql => sql_files::new(&settings.sql_dir(), name)?,
            _ => schema::new(&settings.directory.join("migration"), name)?,
        };
        say(&path.display().to_string())?;
        return Ok(Code::Stopped);
    }
    if settings.migrations.chosen && settings.migrations.run == MigrationRun::None {
        return Err(nothing_to_run(&settings).into());
    }
    let home = Home::resolve(&settings)?;
    if settings.postgres.mode == PostgresMode::Attach {
        lookup::check(&settings.postgres).await?;
        act(&settings, &home, &open::url(&settings, &home)?, command).await?;
        return Ok(Code::Stopped);
    }
    home.prepare()?;
    // The server's files may be left over from a Tandem that was killed; the lock tells whether one runs.
    let _lock = match (StateLock::take(&home, "tandem migrate"), server::own_running_port(&home)) {
        (Ok(lock), _) => lock,
        (Err(_), Some(_)) => {
            act(&settings, &home, &open::url(&settings, &home)?, command).await?;
            return Ok(Code::Stopped);
        }
        (Err(held), None) => return Err(held),
    };
    let place = home.clone();
    let errand = |url: &DatabaseUrl| -> Errand {
        let url = url.clone();
        Box::pin(async move { act(&settings, &place, &url, command).await })
    };
    sidecar::run(configuration, home, Goal::Errand(Box::new(errand))).await?;
    Ok(Code::Stopped)
}

/// The error where the project has no migrations.
fn nothing_to_run(settings: &Settings) -> Failure {
    let message = match settings.migrations.chosen {
        true => "migrations.run is \"none\": there is nothing that `tandem migrate` could run".to_owned(),
        false => {
            "no migrations were found: no alembic.ini, no manage.py, no yoyo.ini; write migrations.run = [\"alembic\", \
                  \"upgrade\", \"head\"], or another command that migrates"
                .to_owned()
        }
    };
    Failure::new(Code::Usage, message)
}

async fn act(settings: &Settings, home: &Home, url: &DatabaseUrl, command: Migrate) -> anyhow::Result<()> {
    if let Migrate::Up = command {
        marks::before(settings, home, "migrate").await;
    }
    match &sidecar::migration_run::of_database(url, &settings.migrations).await? {
        MigrationRun::Command(run) => return migrate_tool::act(&Place { settings, home, url, run }, command).await,
        MigrationRun::None => return Err(nothing_to_run(settings).into()),
        MigrationRun::Sql => return of_files(settings, url, command).await,
        MigrationRun::SeaOrm => {}
    }
    let (lock_limit, limit) = (settings.migrations.lock_limit, settings.migrations.limit);
    match command {
        Migrate::Up => {
            let outcome = schema::up(url, lock_limit, limit).await?;
            if let Some(revision) = &outcome.adopted {
                say(&format!("adopted a database that Alembic brought to {revision}"))?;
            }
            applied(&outcome)?;
        }
        Migrate::Down { steps } => taken_back(&schema::down(url, steps as usize, lock_limit, limit).await?)?,
        Migrate::Status { json } => {
            let rows = schema::status(url).await?;
            let rows = rows.iter().map(|row| {
                let json = serde_json::json!({ "name": row.name, "revision": row.revision, "applied": row.applied });
                (json, row.revision.as_str(), row.applied)
            });
            list(json, &rows.collect::<Vec<_>>())?;
        }
        Migrate::Adopt { .. } => {
            return Err(only_files("the built-in migrations adopt a database by themselves").into());
        }
        Migrate::New { .. } => {}
    }
    Ok(())
}

/// The same for numbered SQL files.
async fn of_files(settings: &Settings, url: &DatabaseUrl, command: Migrate) -> anyhow::Result<()> {
    let (dir, limits) = (settings.sql_dir(), (settings.migrations.lock_limit, settings.migrations.limit));
    match command {
        Migrate::Up => applied(&sql_files::up(url, &dir, limits, None).await?)?,
        Migrate::Down { steps } => taken_back(&sql_files::down(url, &dir, steps as usize, limits).await?)?,
        Migrate::Adopt { name } => {
            let outcome = sql_files::adopt(url, &dir, name.as_deref(), limits).await?;
            say(&format!("written down as applied, and not run: all up to {}", at(&outcome)))?;
        }
        Migrate::Status { json } => {
            let rows = sql_files::status(url, &dir).await?;
            let rows = rows.iter().map(|row| {
                (serde_json::json!({ "name": row.name, "applied": row.applied }), row.name.as_str(), row.applied)
            });
            list(json, &rows.collect::<Vec<_>>())?;
        }
        Migrate::New { .. } => {}
    }
    Ok(())
}

/// The error of `tandem migrate adopt` where no SQL files are run.
pub fn only_files(why: &str) -> Failure {
    Failure::new(Code::Usage, format!("`tandem migrate adopt` is for migrations.run = \"sql\": {why}"))
}

fn at(outcome: &MigrationOutcome) -> &str {
    outcome.revision.as_deref().unwrap_or("nothing")
}

fn applied(outcome: &MigrationOutcome) -> anyhow::Result<()> {
    for name in &outcome.applied {
        say(&format!("applied {name}"))?;
    }
    if outcome.applied.is_empty() {
        say(&format!("nothing to apply; the schema is at {}", at(outcome)))?;
    }
    Ok(())
}

fn taken_back(outcome: &MigrationOutcome) -> anyhow::Result<()> {
    for name in &outcome.rolled_back {
        say(&format!("took back {name}"))?;
    }
    if outcome.rolled_back.is_empty() {
        say("nothing to take back")?;
    }
    Ok(())
}

/// Show migrations: as JSON, or the name of each and whether it is applied.
fn list(as_json: bool, rows: &[(serde_json::Value, &str, bool)]) -> anyhow::Result<()> {
    if as_json {
        let rows: Vec<_> = rows.iter().map(|(json, ..)| json).collect();
        say(&serde_json::to_string_pretty(&rows)?)?;
        return Ok(());
    }
    for (_, name, applied) in rows {
        say(&format!("{:<8} {name}", if *applied { "applied" } else { "pending" }))?;
    }
    Ok(())
}
