//! What `tandem run` takes.

use clap::Args;

/// Arguments of `tandem run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The command and its arguments; a program of the Python environment is found first
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}
