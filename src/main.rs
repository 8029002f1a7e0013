//! Parse, start tracing, run, map the outcome to an exit code.

#![deny(clippy::print_stderr, clippy::print_stdout)]

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tandem::cli::{self, Cli, Command};
use tandem::exit::{Code, code_of};
use tandem::process::{handed, heap, keeper, limits, umask};
use tandem::{commands, signals, telemetry};

/// How long work on other threads may go on after the end, before it is cut off.
const THREADS_LIMIT: Duration = Duration::from_millis(100);

#[expect(unsafe_code, reason = "the environment is changed before there is a second thread")]
fn main() -> ExitCode {
    // SAFETY: this is the first thread's first line.
    unsafe { tandem::config::set_libpq_aside() };
    umask::tighten();
    limits::raise();
    handed::seal();
    if let Some(duty) = keeper::asked_for(std::env::args_os()) {
        keeper::main(duty);
        return ExitCode::SUCCESS;
    }
    match cli::completions::answered() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => return ExitCode::from(shown(error) as u8),
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            return ExitCode::from(shown(error) as u8);
        }
    };
    if let Command::Wal { command } = cli.command {
        // Once a segment: what it does not need, it does not wait for.
        return ExitCode::from(commands::wal(&command));
    }
    if let Command::Up(_) = cli.command {
        heap::keep_little();
    }
    // Before the runtime, whose threads take over what is blocked.
    signals::block();
    telemetry::tell_panics();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            telemetry::say_aside(&format!("tandem: start the runtime: {error}"));
            return ExitCode::from(Code::Failed as u8);
        }
    };
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, commands::run(cli));
    runtime.shutdown_timeout(THREADS_LIMIT);
    let code = outcome.unwrap_or_else(|error| {
        telemetry::failure(&error);
        code_of(&error) as u8
    });
    telemetry::close();
    ExitCode::from(code)
}

/// Show what there is instead of a command: help that was asked for, or what is wrong with the arguments.
fn shown(answer: clap::Error) -> Code {
    if let Some(help) = cli::first_help(&answer) {
        telemetry::say_aside(&help);
        return Code::Usage;
    }
    let answer = cli::improved(answer);
    match answer.print().and_then(|()| std::io::stdout().flush()) {
        _ if answer.use_stderr() => Code::Usage,
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            telemetry::say_aside(&format!("tandem: write standard output: {error}"));
            Code::CannotCreate
        }
        Ok(()) | Err(_) => Code::Stopped,
    }
}
