//! One file per subcommand: it turns flags into one call and the result into words. No logic.

mod asks;
mod audit;
mod backup;
mod backup_base;
mod backup_send;
mod check;
mod connect;
mod database;
mod deploy;
mod docs;
mod doctor;
mod health;
mod import;
mod init;
mod install;
mod logs;
mod logs_file;
mod looked;
mod looking;
mod man;
mod migrate;
mod migrate_tool;
mod moments;
mod open;
mod password;
mod reload;
mod restart;
mod restore;
mod restore_part;
mod restore_point;
mod run;
mod running;
mod scale;
mod settings;
mod stats;
mod stats_words;
mod status;
mod stop;
mod table;
mod test;
mod top;
mod up;
mod up_detached;
mod wal;

use crate::cli::{Cli, Command, Password, completions};
use crate::exit::Code;
use crate::telemetry;

pub use wal::run as wal;

/// Run the command and return the exit code.
///
/// # Errors
/// Whatever the command says; `exit::code_of` knows the exit code.
pub async fn run(cli: Cli) -> anyhow::Result<u8> {
    let common = cli.common;
    let code = match cli.command {
        // In the background, it ends as what was to run there ended.
        Command::Up(args) => return up::run(&common, &args).await,
        Command::Check(args) => check::run(&common, args).await,
        Command::Doctor(args) => doctor::run(&common, args).await,
        Command::Migrate { command } => migrate::run(&common, command).await,
        Command::Backup { command, create } => backup::run(&common, command, create).await,
        Command::Restore(args) => restore::run(&common, args).await,
        Command::Psql { test: Some(test), args, .. } => connect::psql_of_test(&common, &test, &args).await,
        Command::Psql { superuser, args, .. } => connect::psql(&common, superuser, &args).await,
        Command::Stats(args) => stats::run(&common, &args).await,
        Command::Settings { command } => settings::run(&common, command).await,
        Command::Url { json, scheme } => connect::url(&common, scheme.as_deref(), json),
        Command::Env { json } => connect::env(&common, json),
        // As is this one's.
        Command::Run(args) => return run::run(&common, &args.command).await,
        Command::Health { ready, json, limit } => health::run(&common, ready, json, limit).await,
        Command::Status { json, watch } => status::run(&common, json, watch).await,
        Command::Top => top::run(&common).await,
        Command::Deploy { dry_run } => deploy::run(&common, dry_run).await,
        Command::Docs { page, section } => docs::run(page.as_deref(), section.as_deref()),
        Command::Reload => reload::run(&common).await,
        Command::Restart { service } => restart::run(&common, service).await,
        Command::Scale { workers } => scale::run(&common, &workers).await,
        Command::Password { command: Password::Rotate } => password::rotate(&common).await,
        Command::Stop => stop::run(&common).await,
        Command::Logs(args) => logs::run(&common, args).await,
        Command::Init(args) => init::run(&common, &args),
        Command::Import { command } => import::run(&common, command).await,
        Command::Install { json } => install::run(&common, json).await,
        Command::Wal { command } => return Ok(wal(&command)),
        Command::Completions { shell } => {
            telemetry::print(&completions::script(shell)?)?;
            Ok(Code::Stopped)
        }
        Command::Man { dir } => man::run(&dir),
        Command::Database { command } => database::run(&common, command).await,
        // Its exit code is its command's own.
        Command::Test(args) => return test::run(&common, args).await,
    };
    code.map(|code| code as u8)
}
