//! What is shown where no command was named, and where one was that Tandem has under another name.

use clap::CommandFactory;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::Cli;

/// The commands that one needs, with what they are for.
const FIRST: [(&str, &str); 5] = [
    ("up", "run everything until Ctrl-C; -d: in the background"),
    ("status", "what runs, and how it is"),
    ("logs -f", "what all of it says, as it comes"),
    ("test", "run your tests, each with a fresh database"),
    ("stop", "stop what runs"),
];

/// What other tools call a command, and what it is here. A name that Tandem has itself is found before.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (&["start", "serve", "server", "launch", "begin"], "tandem up"),
    (&["dev", "develop", "watch", "runserver", "live"], "tandem up --reload"),
    (&["down", "kill", "shutdown", "halt", "quit", "exit"], "tandem stop"),
    (&["ps", "ls", "list", "info", "services", "htop"], "tandem status"),
    (&["log", "tail", "attach"], "tandem logs -f"),
    (&["exec", "shell", "sh", "bash", "python"], "tandem run"),
    (&["db", "dbshell", "sql", "console", "connect"], "tandem psql"),
    (&["upgrade", "migrations", "makemigrations", "alembic", "head"], "tandem migrate up"),
    (&["downgrade", "rollback"], "tandem migrate down"),
    (&["build", "sync", "pull", "setup", "bootstrap"], "tandem install"),
    (&["config", "validate", "lint", "settings", "plan"], "tandem check"),
    (&["pytest", "tests"], "tandem test"),
    (&["dump", "pg_dump", "snapshot", "save"], "tandem backup"),
    (&["load", "pg_restore"], "tandem restore"),
    (&["update", "release", "push"], "tandem deploy"),
    (&["ready", "ping", "healthcheck"], "tandem health --ready"),
    (&["clean", "prune", "gc", "diagnose"], "tandem doctor"),
    (&["completion"], "tandem completions"),
    (&["new", "create", "scaffold", "generate"], "tandem init"),
    (&["migrate-compose", "convert"], "tandem import"),
];

/// The command that `word` stands for with people who know it from another tool.
fn elsewhere(word: &str) -> Option<&'static str> {
    let word = word.to_lowercase();
    ELSEWHERE.iter().find(|(names, _)| names.contains(&&*word)).map(|(_, ours)| *ours)
}

/// `error` as it is shown: of an unknown command, what it is called here.
pub fn improved(mut error: clap::Error) -> clap::Error {
    let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
    else {
        return error;
    };
    if let Some(ours) = elsewhere(word) {
        error.remove(ContextKind::SuggestedSubcommand);
        let tip = StyledStr::from(format!("here that is `{ours}`"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// What is shown instead of `error` where no command was named: the ones that one needs.
pub fn first_help(error: &clap::Error) -> Option<String> {
    let kinds = [ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, ErrorKind::MissingSubcommand];
    // Not of a command that wants another below it.
    let is_bare = kinds.contains(&error.kind()) && error.to_string().contains("Usage: tandem [OPTIONS] <COMMAND>");
    is_bare.then(|| {
        let rows: String = FIRST.iter().map(|(name, what)| format!("  tandem {name:8}  {what}\n")).collect();
        let about = Cli::command().get_about().map(ToString::to_string).unwrap_or_default();
        format!(
            "{about}\n\n{rows}\nIn a new project, `tandem up` looks for what it needs, and `tandem init` writes that down.\n\
             `tandem --help` shows all commands, `tandem COMMAND --help` one of them."
        )
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn said(args: &[&str]) -> (i32, String) {
        let error = improved(Cli::try_parse_from(["tandem"].iter().chain(args)).unwrap_err());
        (error.exit_code(), error.to_string())
    }

    #[test]
    fn every_command_that_is_named_is_one() {
        let cli = Cli::command();
        let named = FIRST
            .iter()
            .map(|(name, _)| *name)
            .chain(ELSEWHERE.iter().filter_map(|(_, ours)| ours.strip_prefix("tandem ")));
        for name in named {
            let first = name.split(' ').next().unwrap();
            assert!(cli.find_subcommand(first).is_some(), "{name}");
        }
        for (names, _) in ELSEWHERE {
            for name in *names {
                assert_eq!(name.to_lowercase(), *name);
            }
        }
    }

    #[test]
    fn a_word_of_another_tool_is_told_what_it_is_here_and_a_slip_what_was_meant() {
        for (word, ours) in [
            ("start", "here that is `tandem up`"),
            ("serve", "`tandem up`"),
            ("dev", "`tandem up --reload`"),
            ("ps", "`tandem status`"),
            ("PS", "`tandem status`"),
            ("shell", "`tandem run`"),
            ("new", "`tandem init`"),
            ("statsu", "some similar subcommands exist: 'settings', 'stats', 'status'"),
            ("passwrd", "a similar subcommand exists: 'password'"),
        ] {
            let (code, said) = said(&[word]);
            assert!(code != 0 && said.contains(ours), "{word}: {said}");
        }
        assert!(!said(&["xyzzy"]).1.contains("tip:"));
    }

    #[test]
    fn without_a_command_the_five_that_one_needs_are_shown() {
        let text = first_help(&Cli::try_parse_from(["tandem"]).unwrap_err()).unwrap();
        for (name, _) in FIRST {
            assert!(text.contains(&format!("tandem {name}")), "{text}");
        }
        assert!(text.lines().count() < 12, "{text}");
        assert_eq!(first_help(&Cli::try_parse_from(["tandem", "migrate"]).unwrap_err()), None);
        assert_eq!(first_help(&Cli::try_parse_from(["tandem", "--version"]).unwrap_err()), None);
    }
}
