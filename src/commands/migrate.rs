//! `tandem migrate`

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
use crate::schema;
use crate::sidecar::{self, Errand, Goal};

/// Run one of the migrate commands. If no server runs, start one for it and stop it afterwards.
///
/// # Errors
/// What the migrations or the start of the server said.
pub async fn run(common: &Common, command: Migrate) -> anyhow::Result<Code> {
    let configuration = open::configuration(common, Vec::new())?;
    let settings = configuration.loaded.settings.clone();
    if let Migrate::New { name } = &command {
        let path = schema::new(&settings.directory.join("migration"), name)?;
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
    match &sidecar::migration_run::of_database(url, &settings.migrations).await? {
        MigrationRun::Command(run) => return migrate_tool::act(&Place { settings, home, url, run }, command).await,
        MigrationRun::None => return Err(nothing_to_run(settings).into()),
        MigrationRun::SeaOrm => {}
    }
    let (lock_limit, limit) = (settings.migrations.lock_limit, settings.migrations.limit);
    match command {
        Migrate::Up => {
            let outcome = schema::up(url, lock_limit, limit).await?;
            if let Some(revision) = &outcome.adopted {
                say(&format!("adopted a database that Alembic brought to {revision}"))?;
            }
            for name in &outcome.applied {
                say(&format!("applied {name}"))?;
            }
            if outcome.applied.is_empty() {
                say(&format!(
                    "nothing to apply; the schema is at {}",
                    outcome.revision.as_deref().unwrap_or("nothing")
                ))?;
            }
        }
        Migrate::Down { steps } => {
            let taken = schema::down(url, steps as usize, lock_limit, limit).await?;
            for name in &taken.rolled_back {
                say(&format!("took back {name}"))?;
            }
            if taken.rolled_back.is_empty() {
                say("nothing to take back")?;
            }
        }
        Migrate::Status { json } => {
            let rows = schema::status(url).await?;
            if json {
                let rows: Vec<_> = rows
                    .iter()
                    .map(
                        |row| serde_json::json!({ "name": row.name, "revision": row.revision, "applied": row.applied }),
                    )
                    .collect();
                say(&serde_json::to_string_pretty(&rows)?)?;
            } else {
                for row in &rows {
                    say(&format!("{:<8} {}", if row.applied { "applied" } else { "pending" }, row.revision))?;
                }
            }
        }
        Migrate::New { .. } => {}
    }
    Ok(())
}
