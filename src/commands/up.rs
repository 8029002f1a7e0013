//! `tandem up`

use crate::boot;
use crate::cli::Common;
use crate::commands::{looked, open};
use crate::config::{Debugger, LogFormat, Preload, Workers};
use crate::exit::{Code, Failure};
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::process;
use crate::sidecar::{self, Configuration, Goal};
use crate::telemetry;

/// Run everything until stopped.
///
/// # Errors
/// What kept it from starting, or made it end.
pub async fn run(
    common: &Common,
    workers: Option<u32>,
    listen: Option<String>,
    reload: bool,
    attach: Option<u16>,
) -> anyhow::Result<Code> {
    let workers = workers.map(|count| open::flag("workers.count", count.to_string(), "--workers"));
    let listen = listen.map(|address| open::flag("workers.listen", address, "--listen"));
    let source = open::source(common, [workers, listen].into_iter().flatten().collect())?;
    // Whoever collects its lines collects the last one too.
    telemetry::expect(LogFormat::Auto);
    let configuration = open::configure(looked::ask(source)?)?;
    looked::tell(&configuration.loaded);
    for remark in &configuration.loaded.remarks {
        tracing::info!("{remark}");
    }
    if let Some(notice) = boot::stop_ladder(&configuration.loaded.settings).notice() {
        tracing::warn!("{notice}");
    }
    let debugger = debugger(&configuration.loaded.settings.workers, reload, attach)?;
    let configuration = Configuration { reload, debugger, ..configuration };
    telemetry::ring().keep(usize::try_from(configuration.loaded.settings.log.ring).unwrap_or(usize::MAX));
    let home = Home::resolve(&configuration.loaded.settings)?;
    home.prepare()?;
    let _lock = StateLock::take(&home, "tandem up")?;
    sidecar::run(configuration, home, Goal::Serve).await?;
    Ok(Code::Stopped)
}

/// How the workers can be debugged: through a port where that is asked for, else on the terminal, if all that a person
/// develops with is there.
fn debugger(workers: &Workers, reload: bool, attach: Option<u16>) -> anyhow::Result<Debugger> {
    let refuse = |why: &str| Err(Failure::new(Code::Usage, format!("--attach-debugger: {why}")).into());
    let is_plain = workers.preload == Preload::Off && workers.command.is_none();
    match attach {
        Some(_) if workers.command.is_some() => {
            refuse("another server runs the workers (workers.command): start debugpy there")
        }
        Some(_) if workers.preload != Preload::Off => {
            refuse("workers that are forked cannot be debugged: --set workers.preload=false")
        }
        Some(_) if workers.count != 1 => refuse("one port is one worker's: --workers 1"),
        Some(port) => Ok(Debugger::Listen(port)),
        None if reload && is_plain && workers.count == 1 && process::has_terminal() => Ok(Debugger::Terminal),
        None => Ok(Debugger::None),
    }
}
