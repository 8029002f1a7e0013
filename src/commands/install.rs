//! `tandem install`

use crate::cli::Common;
use crate::commands::open;
use crate::commands::running::say;
use crate::config::{Purpose, Source};
use crate::exit::Code;
use crate::postgres::binaries;
use crate::postgres::home::Home;
use crate::workers::environment;

/// Fetch PostgreSQL and make the Python environment, for image layers and air-gapped hosts.
///
/// # Errors
/// What fetching or installing said.
pub async fn run(common: &Common, json: bool) -> anyhow::Result<Code> {
    let source = Source { purpose: Purpose::Install, ..open::source(common, Vec::new())? };
    let settings = open::configure(source)?.loaded.settings;
    let home = Home::resolve(&settings)?;
    let python = &settings.python.interpreter;
    let (installation, environment) = tokio::try_join!(
        binaries::ensure(&settings.postgres.source, &settings.cache_dir, python, settings.search_path.as_ref()),
        environment::ensure(&settings.python, &home.state, &settings.directory),
    )?;
    let lacking = installation.lacking().await?;
    let (bin, python) = (installation.bin.display().to_string(), environment.python.display().to_string());
    if json {
        let installed = serde_json::json!({
            "postgres": { "version": installation.version, "bin": bin, "origin": installation.origin, "lacking": lacking },
            "python": python,
        });
        say(&installed.to_string())?;
    } else {
        say(&format!("PostgreSQL {} in {bin} ({})\nPython {python}", installation.version, installation.origin))?;
        for line in lacking {
            say(&format!("an extension that needs more of this system: {line}"))?;
        }
    }
    Ok(Code::Stopped)
}
