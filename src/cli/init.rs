//! What `tandem init` takes.

use clap::Args;

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Write a workflow that runs the tests on GitHub too
    #[arg(long)]
    pub ci: bool,
    /// Write a Dockerfile too
    #[arg(long)]
    pub dockerfile: bool,
    /// Write a unit for systemd too
    #[arg(long)]
    pub systemd: bool,
    /// Write settings for VS Code too, and the schema by which editors check tandem.toml
    #[arg(long)]
    pub editor: bool,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub print: bool,
    /// The application, where several were found
    #[arg(long, value_name = "MODULE:ATTRIBUTE")]
    pub app: Option<String>,
}
