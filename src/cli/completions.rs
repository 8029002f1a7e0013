//! Completion scripts. Those of most shells ask the binary itself at each Tab, so that services and backups are offered too.

use clap::{CommandFactory, ValueEnum};
use clap_complete::env::{CompleteEnv, Shells};
use clap_complete_nushell::Nushell;

use super::Cli;

/// Set by the script, it makes the binary answer what may come next.
const VARIABLE: &str = "_TANDEM_COMPLETE";
const NAME: &str = "tandem";

/// A shell that there is a script for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Elvish,
    Fish,
    /// Nushell; without services and backups
    #[value(alias = "nushell")]
    Nu,
    Powershell,
    Zsh,
}

/// The script of `shell`.
///
/// # Errors
/// It cannot be written.
pub fn script(shell: Shell) -> std::io::Result<String> {
    let mut script = Vec::new();
    let name = match shell {
        Shell::Nu => {
            clap_complete::generate(Nushell, &mut Cli::command(), NAME, &mut script);
            return Ok(String::from_utf8_lossy(&script).into_owned());
        }
        Shell::Bash => "bash",
        Shell::Elvish => "elvish",
        Shell::Fish => "fish",
        Shell::Powershell => "powershell",
        Shell::Zsh => "zsh",
    };
    if let Some(completer) = Shells::builtins().completer(name) {
        completer.write_registration(VARIABLE, NAME, NAME, NAME, &mut script)?;
    }
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// Answer a script that asks what may come next; whether one did.
///
/// # Errors
/// The answer cannot be printed, or the script is another version's.
pub fn answered() -> clap::error::Result<bool> {
    let directory = std::env::current_dir().ok();
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).try_complete(std::env::args_os(), directory.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_a_script() {
        for shell in Shell::value_variants() {
            let script = script(*shell).unwrap();
            assert!(script.contains("tandem"), "{shell:?}");
            assert_eq!(script.contains(VARIABLE), *shell != Shell::Nu, "{shell:?}: {script}");
        }
    }
}
