//! `tandem deploy`

use crate::cli::Common;
use crate::commands::running;
use crate::control::Order;
use crate::exit::Code;

/// Ask the running Tandem to take up new code, requirements and migrations included.
///
/// # Errors
/// No Tandem runs, or a step failed.
pub async fn run(common: &Common, dry_run: bool) -> anyhow::Result<Code> {
    running::order(common, Order::Deploy { dry_run }, "deployment").await
}
