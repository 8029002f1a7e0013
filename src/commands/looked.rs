//! What `tandem up` found in a project that has no configuration, and what it has to ask a person about it.

use std::fs::File;
use std::io::{self, BufRead, IsTerminal, Write};

use crate::commands::open;
use crate::config::{self, Choice, ChoiceOption, Loaded, Source};
use crate::telemetry;

/// What a file that an answer is written into begins with.
const HEAD: &str = "# Written by `tandem up`, which asked. Every key is explained in Tandem's config/tandem.toml.\n";

/// Ask the person at the terminal what may be meant in more than one way; elsewhere nothing is asked, and it stays an error.
///
/// # Errors
/// The configuration cannot be read; the terminal was closed.
pub fn ask(mut source: Source) -> anyhow::Result<Source> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Ok(source);
    }
    let mut answers = Vec::new();
    for choice in config::choices(&source)? {
        let Some(answer) = answer(&choice)? else { return Ok(source) };
        let flags = answer.sets.iter().map(|(key, value)| open::flag(key, value.clone(), "your answer"));
        source.flags.extend(flags);
        answers.push(answer);
    }
    if !answers.is_empty() {
        keep(&source, &answers)?;
    }
    Ok(source)
}

/// The option that a person names by its number; `None`: none.
fn answer(choice: &Choice) -> io::Result<Option<ChoiceOption>> {
    let mut text = format!("More than one {} may be meant:\n", choice.what);
    for (at, option) in choice.options.iter().enumerate() {
        text.push_str(&format!("  {}  {}\n", at + 1, option.shown));
    }
    telemetry::prompt(&format!("{text}Which one? [1-{}] ", choice.options.len()));
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed)?;
    let number = typed.trim().parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    Ok(number.and_then(|at| choice.options.get(at)).cloned())
}

/// Write the answers down, so that no other command asks again. A file that is there is left as it is.
fn keep(source: &Source, answers: &[ChoiceOption]) -> anyhow::Result<()> {
    let lines: String = answers.iter().flat_map(|answer| &answer.sets).map(|(key, value)| line(key, value)).collect();
    let path = config::directory(source)?.join("tandem.toml");
    let written = File::options().write(true).create_new(true).open(&path).and_then(|mut file| {
        file.write_all(format!("{HEAD}{lines}").as_bytes())?;
        file.sync_all()
    });
    telemetry::say_aside(&match written {
        Ok(()) => format!("tandem: the answer is written in {}", path.display()),
        Err(_) => format!("tandem: to keep the answer, write into the configuration file:\n{}", lines.trim_end()),
    });
    Ok(())
}

/// A line of TOML; a list is written as it is.
fn line(key: &str, value: &str) -> String {
    let value = if value.starts_with('[') { value.to_owned() } else { toml::Value::from(value).to_string() };
    format!("{key} = {value}\n")
}

/// Say in one block what was found, where there is no configuration.
pub fn tell(loaded: &Loaded) {
    if loaded.settings.file.is_some() || loaded.found.is_empty() {
        return;
    }
    let mut rows: Vec<(&str, String)> = loaded.found.clone();
    rows.push((
        "to change it",
        "`tandem init` writes it into a tandem.toml; `tandem check` shows every value and its origin".to_owned(),
    ));
    telemetry::banner("There is no tandem.toml. This is what the project's own files say", &rows);
}
