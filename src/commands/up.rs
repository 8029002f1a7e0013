//! `tandem up`

use crate::boot;
use crate::cli::{Common, UpArgs};
use crate::commands::{looked, open, up_detached};
use crate::config::{self, Debugger, Loaded, LogFormat, Origin, Preload, Source, Workers};
use crate::exit::{Code, Failure};
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::process;
use crate::sidecar::{self, Configuration, Goal};
use crate::telemetry;

/// Run everything until stopped, or start it in the background and wait until it is ready. Returns the exit code.
///
/// # Errors
/// What kept it from starting, or made it end.
pub async fn run(common: &Common, args: &UpArgs) -> anyhow::Result<u8> {
    if let Some(log) = &args.detached_log {
        telemetry::log_to(log);
    }
    let workers = args.workers.map(|count| open::flag("workers.count", count.to_string(), "--workers"));
    let listen = args.listen.clone().map(|address| open::flag("workers.listen", address, "--listen"));
    let mut source = open::source(common, [workers, listen].into_iter().flatten().collect())?;
    // Whoever collects its lines collects the last one too.
    telemetry::expect(LogFormat::Auto);
    source = looked::ask(source)?;
    if args.reload {
        develop(&mut source)?;
    }
    if let Some(limit) = args.background() {
        return up_detached::run(common, args, source, limit).await;
    }
    let configuration = open::configure_with_file(source)?;
    looked::tell(&configuration.loaded);
    for remark in &configuration.loaded.remarks {
        tracing::info!("{remark}");
    }
    if let Some(notice) = boot::stop_ladder(&configuration.loaded.settings).notice() {
        tracing::warn!("{notice}");
    }
    if let Some(notice) = of_first_process(&configuration.loaded) {
        tracing::info!("{notice}");
    }
    let debugger = debugger(&configuration.loaded.settings.workers, args.reload, args.attach_debugger)?;
    let configuration = Configuration { reload: args.reload, debugger, ..configuration };
    telemetry::ring().keep(usize::try_from(configuration.loaded.settings.log.ring).unwrap_or(usize::MAX));
    let home = Home::resolve(&configuration.loaded.settings)?;
    home.prepare()?;
    let _lock = StateLock::take(&home, "tandem up")?;
    sidecar::run(configuration, home, Goal::Serve).await?;
    Ok(Code::Stopped as u8)
}

/// What one wants while one writes code, where nothing says otherwise: one worker, whose memory is the only one and which
/// a debugger can have, and a line for each request.
fn develop(source: &mut Source) -> anyhow::Result<()> {
    let loaded = config::load(source)?;
    if loaded.settings.workers.command.is_some() {
        return Ok(());
    }
    for (key, value) in [("workers.count", "1"), ("workers.access_log", "true")] {
        if loaded.origins.get(key) == Some(&Origin::Default) {
            source.flags.push(open::flag(key, value, "--reload"));
        }
    }
    Ok(())
}

/// What Docker does at a stop, where Tandem is the first process of a container and nobody has said what its platform grants.
fn of_first_process(loaded: &Loaded) -> Option<String> {
    let says = loaded.origins.get("stop.platform_grace").is_some_and(|origin| *origin != Origin::Default);
    let in_kubernetes = loaded.settings.inherited.0.contains_key("KUBERNETES_SERVICE_HOST");
    if says || in_kubernetes || std::process::id() != 1 {
        return None;
    }
    boot::stop_ladder(&loaded.settings).notice_of_first_process()
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
