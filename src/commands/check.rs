//! `tandem check`

use crate::cli::Common;
use crate::commands::open;
use crate::exit::Code;

/// Print the plan, each value with its origin, secrets hidden; many variables of the workers in one line unless `all`.
///
/// # Errors
/// Every error of the configuration at once.
pub fn run(common: &Common, json: bool, all: bool) -> anyhow::Result<Code> {
    let loaded = open::load(common, Vec::new())?;
    if json {
        println!("{}", serde_json::to_string_pretty(&loaded.to_json())?);
        return Ok(Code::Stopped);
    }
    println!("{}\n{}", loaded.table(all), loaded.plan());
    for notice in &loaded.notices {
        println!("notice: {notice}");
    }
    Ok(Code::Stopped)
}
