//! `tandem reload`

use crate::cli::Common;
use crate::commands::running;
use crate::control::Order;
use crate::exit::Code;

/// Ask the running Tandem to read its configuration again and to replace every worker.
///
/// # Errors
/// No Tandem runs, or the old workers had to stay.
pub async fn run(common: &Common) -> anyhow::Result<Code> {
    running::order(common, Order::Reload, "reload").await
}
