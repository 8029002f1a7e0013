//! What `tandem settings` takes.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum SettingsCommand {
    /// Print a setting: its value, where that comes from, what a change of it asks for
    Get {
        /// The setting's name, such as work_mem [default: all that differ from PostgreSQL's defaults]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change a setting, durably: it wins over [postgres.settings] until it is reset
    Set {
        /// The setting's name
        name: String,
        /// Its value, as postgresql.conf has it: 64MB, 1s, on
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// Let it hold at once: by a reload of the server, or by a restart where the setting needs one
        #[arg(long)]
        apply: bool,
    },
    /// Take a change back: the value of tandem.toml holds again, or else the default
    Reset {
        /// The setting's name
        name: String,
        /// Let it hold at once: by a reload of the server, or by a restart where the setting needs one
        #[arg(long)]
        apply: bool,
    },
}
