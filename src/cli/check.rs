//! The arguments of `tandem check`.

use clap::Args;

#[derive(Debug, Args)]
pub struct Check {
    /// Print JSON, also about a configuration that has problems
    #[arg(long)]
    pub json: bool,
    /// Print each variable of the workers in a line of its own, however many there are
    #[arg(long)]
    pub all: bool,
    /// Print only what something sets, and no defaults
    #[arg(long)]
    pub changed: bool,
    /// Print the JSON Schema of tandem.toml, for editors, and check nothing
    #[arg(long, conflicts_with_all = ["json", "all", "changed"])]
    pub schema: bool,
}
