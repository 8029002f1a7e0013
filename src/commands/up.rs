//! `tandem up`

use crate::boot;
use crate::cli::Common;
use crate::commands::open;
use crate::config::LogFormat;
use crate::exit::Code;
use crate::postgres::home::Home;
use crate::postgres::lock::StateLock;
use crate::sidecar::{self, Configuration, Context, Goal};
use crate::telemetry;

/// Run everything until stopped.
///
/// # Errors
/// What kept it from starting, or made it end.
pub async fn run(common: &Common, workers: Option<u32>, listen: Option<String>, reload: bool) -> anyhow::Result<Code> {
    let workers = workers.map(|count| open::flag("workers.count", count.to_string(), "--workers"));
    let listen = listen.map(|address| open::flag("workers.listen", address, "--listen"));
    let source = open::source(common, [workers, listen].into_iter().flatten().collect())?;
    // Whoever collects its lines collects the last one too.
    telemetry::expect(LogFormat::Auto);
    let configuration = open::configure(source)?;
    for remark in &configuration.loaded.remarks {
        tracing::info!("{remark}");
    }
    if let Some(notice) = boot::stop_ladder(&configuration.loaded.settings).notice() {
        tracing::warn!("{notice}");
    }
    let configuration = Configuration { reload, ..configuration };
    telemetry::ring().keep(usize::try_from(configuration.loaded.settings.log.ring).unwrap_or(usize::MAX));
    let home = Home::resolve(&configuration.loaded.settings)?;
    home.prepare()?;
    let _lock = StateLock::take(&home, "tandem up")?;
    sidecar::run(Context::resolve(configuration, home).await?, Goal::Serve).await?;
    Ok(Code::Stopped)
}
