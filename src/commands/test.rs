//! `tandem test`

use std::collections::BTreeMap;

use crate::cli::{Common, TestArgs};
use crate::commands::open;
use crate::config::{self, LogFormat, MigrationRun, Origin, Purpose, Settings, Source};
use crate::exit::{Code, Failure, code_of};
use crate::harness::run::{self, Job, Keep};
use crate::harness::serve::{self, Offer};
use crate::plan::DatabaseUrl;
use crate::telemetry;

/// Run a command with a throwaway server and return its exit code.
///
/// # Errors
/// What kept the command from being started.
pub async fn run(common: &Common, args: TestArgs) -> anyhow::Result<u8> {
    let Some(runner) = args.serve else { return around(common, args).await };
    match serve(common, args, runner).await {
        Ok(code) => Ok(code),
        // The runner tells it, in the place where its errors are looked for.
        Err(error) => {
            Offer::refuse(&error)?;
            Ok(code_of(&error) as u8)
        }
    }
}

/// What every run needs to know.
struct Known {
    settings: Settings,
    other: Option<DatabaseUrl>,
    environment: BTreeMap<String, String>,
    migrations: MigrationRun,
    keep: Keep,
}

fn known(common: &Common, args: &TestArgs) -> anyhow::Result<Known> {
    // The project's own database does not matter: tests get a server of their own.
    let managed = open::flag("postgres.mode", "managed", "tandem test");
    // What is asked for, however many tools the project has.
    let asked = args.migrations.as_ref().map(|_| open::flag("migrations.run", "none", "--migrations"));
    let purpose = if args.workers { Purpose::Serve } else { Purpose::Test };
    let mut source = Source { purpose, ..open::source(common, [managed].into_iter().chain(asked).collect())? };
    let other = config::attached(&open::source(common, Vec::new())?);
    // Its URL need not even be PostgreSQL's.
    source.environment.remove("DATABASE_URL");
    let loaded = config::load(&source)?;
    loaded.settings.hide_secrets();
    let settings = loaded.settings;
    let is_default = |key: &str| matches!(loaded.origins.get(key), None | Some(Origin::Default));
    // The command's output matters, not Tandem's log.
    let filter = if is_default("log.filter") { "warn" } else { &settings.log.filter };
    let format = if is_default("log.format") { LogFormat::Text } else { settings.log.format };
    telemetry::init(format, filter, settings.log.colour)?;
    let migrations = match &args.migrations {
        Some(words) => migrations(words)?,
        None => settings.migrations.run.clone(),
    };
    let keep = match (args.keep, args.keep_on_failure) {
        (true, _) => Keep::Always,
        (false, true) => Keep::OnFailure,
        (false, false) => Keep::Never,
    };
    Ok(Known { settings, other, environment: source.environment, migrations, keep })
}

async fn around(common: &Common, args: TestArgs) -> anyhow::Result<u8> {
    let Known { settings, other, environment, migrations, keep } = known(common, &args)?;
    let command = if args.command.is_empty() { vec!["pytest".to_owned()] } else { args.command };
    run::run(Job {
        inherited: environment,
        migrations,
        seeds: args.seed,
        command,
        keep,
        rebuild: args.rebuild,
        integresql: args.integresql,
        workers: args.workers.then(|| common.as_args()),
        settings,
        other,
    })
    .await
}

async fn serve(common: &Common, args: TestArgs, runner: i32) -> anyhow::Result<u8> {
    let Known { settings, other, environment, migrations, keep } = known(common, &args)?;
    serve::serve(serve::Job {
        inherited: environment,
        migrations,
        seeds: args.seed,
        keep,
        rebuild: args.rebuild,
        runner,
        collects: args.collects,
        settings,
        other,
    })
    .await
}

/// Parse `--migrations`: a word, or a command line.
fn migrations(words: &str) -> Result<MigrationRun, Failure> {
    match words.trim() {
        "none" => Ok(MigrationRun::None),
        "seaorm" | "sea-orm" => Ok(MigrationRun::SeaOrm),
        "sql" => Ok(MigrationRun::Sql),
        line => match shlex::split(line) {
            Some(words) if !words.is_empty() => Ok(MigrationRun::Command(words)),
            _ => {
                let text =
                    format!("--migrations {line:?}: write none, seaorm, sql, or a command line with closed quotes");
                Err(Failure::new(Code::Usage, text))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_a_word_or_a_command_line() {
        assert_eq!(migrations("none").unwrap(), MigrationRun::None);
        assert_eq!(migrations("sea-orm").unwrap(), MigrationRun::SeaOrm);
        let words = ["alembic", "-c", "my dir/alembic.ini", "upgrade", "head"].map(str::to_owned).to_vec();
        assert_eq!(migrations("alembic -c 'my dir/alembic.ini' upgrade head").unwrap(), MigrationRun::Command(words));
        assert!(migrations("").is_err() && migrations("a 'b").is_err());
    }
}
