//! `tandem restart`

use crate::cli::Common;
use crate::commands::running;
use crate::control::Order;
use crate::exit::Code;

/// Ask the running Tandem to replace the processes of `service`.
///
/// # Errors
/// No Tandem runs, it has no such service, or the old process had to stay.
pub async fn run(common: &Common, service: String) -> anyhow::Result<Code> {
    running::order(common, Order::Restart { service }, "restart").await
}
