//! `tandem check`

use crate::boot;
use crate::cli::Common;
use crate::commands::open;
use crate::commands::running::say;
use crate::config::{Loaded, PostgresMode, Settings};
use crate::exit::Code;
use crate::postgres::home::Home;
use crate::postgres::{binaries, lookup, tried};
use crate::workers::{environment, launch, serving};

/// Let PostgreSQL check `[postgres.settings]`, if it is installed already; a notice where it cannot.
async fn try_settings(settings: &Settings) -> anyhow::Result<Option<String>> {
    let postgres = &settings.postgres;
    if postgres.mode == PostgresMode::Attach || postgres.settings.is_empty() {
        return Ok(None);
    }
    match binaries::present(&postgres.source, &settings.cache_dir, settings.search_path.as_ref()).await {
        Some(installation) => {
            let home = Home::resolve(settings).ok();
            let state = home.as_ref().map(|home| home.state.as_path());
            tried::try_settings(&installation, postgres, state).await
        }
        None => Ok(None),
    }
}

/// Hold how the application is served against this machine, as far as its Python environment is there already.
async fn check_serving(loaded: &Loaded) -> anyhow::Result<Vec<String>> {
    let settings = &loaded.settings;
    let serving = &settings.workers.serving;
    if serving.uvicorn.is_empty() && serving.tls.is_none() {
        return Ok(Vec::new());
    }
    // Where the state directory cannot be used, `tandem up` says why.
    let Ok(home) = Home::resolve(settings) else { return Ok(Vec::new()) };
    let python = environment::existing(&settings.python, &home.state, &settings.directory);
    let user = launch::identity_for(settings, &home.run, &python)?;
    let question = serving::question(settings, &python).map(|command| command.identity(user.clone()));
    Ok(serving::verify(loaded, question, user).await?.notices)
}

/// Print the plan, each value with its origin, secrets hidden; many variables of the workers in one line unless `all`, and no
/// default where only what was `changed` is asked for.
///
/// # Errors
/// Every error of the configuration at once.
pub async fn run(common: &Common, json: bool, all: bool, changed: bool) -> anyhow::Result<Code> {
    let mut loaded = open::load(common, Vec::new())?;
    loaded.check_credentials()?;
    let untried = try_settings(&loaded.settings).await?;
    loaded.notices.extend(untried);
    // Now and on this machine: it may resolve where the deployment runs.
    loaded.notices.extend(lookup::unresolved(&loaded.settings.postgres).await);
    loaded.notices.extend(check_serving(&loaded).await?);
    let set = loaded.changed();
    if changed {
        loaded.only_changed();
    }
    let stop = boot::stop_ladder(&loaded.settings);
    let notices: Vec<String> = loaded.notices.iter().chain(&loaded.remarks).cloned().chain(stop.notice()).collect();
    if json {
        let mut told = loaded.to_json();
        told["stop"] = serde_json::json!({
            "seconds": stop.total().as_secs_f64(),
            "orderly_seconds": stop.orderly().as_secs_f64(),
            "platform_seconds": stop.platform_grace.as_secs_f64(),
        });
        told["notices"] = notices.into();
        say(&serde_json::to_string_pretty(&told)?)?;
        return Ok(Code::Stopped);
    }
    let platform = humantime::format_duration(stop.platform_grace);
    say(&format!("{}\n{}stop: {stop}, the platform grants {platform}\n", loaded.table(all), loaded.connections()))?;
    for notice in &notices {
        say(&format!("notice: {notice}"))?;
    }
    say(&verdict(set, notices.len()))?;
    Ok(Code::Stopped)
}

/// The last line: that nothing is wrong, and what to look at.
fn verdict(set: usize, notices: usize) -> String {
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let notices = match notices {
        0 => String::new(),
        count => format!(", {}", plural(count, "notice")),
    };
    format!("the configuration is good: {} set, the rest are defaults{notices}", plural(set, "value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_counts() {
        assert_eq!(verdict(1, 0), "the configuration is good: 1 value set, the rest are defaults");
        assert_eq!(verdict(3, 2), "the configuration is good: 3 values set, the rest are defaults, 2 notices");
    }
}
