//! `tandem init`

use std::io::{self, BufRead, IsTerminal};

use crate::cli::{Common, InitArgs};
use crate::commands::open;
use crate::commands::running::say;
use crate::exit::{Code, Failure};
use crate::project::{self, Project};
use crate::scaffold::{self, Content, Facts, Outcome, Piece, Wish, names};
use crate::telemetry::{print, prompt};

/// The configuration that is written.
const FILE: &str = "tandem.toml";

/// Look at this directory, and write what it lacks.
///
/// # Errors
/// Several applications were found and nobody says which; a file cannot be written.
pub fn run(common: &Common, args: &InitArgs) -> anyhow::Result<Code> {
    let source = open::source(common, Vec::new())?;
    let directory = source.cwd;
    let mut project = project::look(&directory);
    let chosen = choose(&mut project, args)?;
    let facts = Facts {
        variables: names::read_by(&directory),
        chosen,
        project,
        program: std::env::current_exe()?,
        user: user(),
        directory,
    };
    let wish = Wish { ci: args.ci, dockerfile: args.dockerfile, systemd: args.systemd, editor: args.editor };
    let pieces = scaffold::pieces(&facts, wish);
    if args.print {
        for piece in &pieces {
            print(&shown(piece))?;
        }
        return Ok(Code::Stopped);
    }
    if let Some(above) = scaffold::above(&facts.directory) {
        say(&format!("note: {} is there too; the one of this directory counts here", above.display()))?;
    }
    let elsewhere = scaffold::elsewhere(&facts.directory);
    for piece in &pieces {
        if let Some(place) = elsewhere.filter(|_| piece.path.ends_with(FILE)) {
            say(&format!(
                "{place} is there already and stays as it is; `tandem init --print` shows what {FILE} would say"
            ))?;
            continue;
        }
        let outcome = scaffold::put(&facts.directory, piece)?;
        let path = piece.path.display();
        say(&match outcome {
            Outcome::Made => format!("made {path}: {}", piece.note),
            Outcome::Added(lines) => format!("added {} to {path}: {}", lines.join(", "), piece.note),
            Outcome::Same => format!("{path} is there already, as it should be"),
            Outcome::Kept => {
                format!("{path} is there already and stays as it is; `tandem init --print` shows what it would get")
            }
        })?;
    }
    if facts.chosen.is_none() {
        say("no application was found: write workers.app into tandem.toml, as for uvicorn")?;
    }
    for trouble in &facts.project.troubles {
        say(&format!("{}: {}", trouble.seen, trouble.message))?;
    }
    say("next: `tandem check`, then `tandem up`")?;
    Ok(Code::Stopped)
}

/// Which of the applications is meant: the only one, the one of `--app`, or the one that a person names.
fn choose(project: &mut Project, args: &InitArgs) -> anyhow::Result<Option<usize>> {
    let found = &project.applications;
    let list: Vec<String> = found
        .iter()
        .map(|found| format!("{} ({}, {})", found.value.app, found.value.framework.name(), found.seen))
        .collect();
    if let Some(app) = &args.app {
        if let Some(at) = found.iter().position(|found| found.value.app == *app) {
            return Ok(Some(at));
        }
        let known =
            if list.is_empty() { "none was found".to_owned() } else { format!("there are: {}", list.join(", ")) };
        return Err(Failure::new(Code::Usage, format!("--app {app}: no such application was found; {known}")).into());
    }
    match list.len() {
        0 => return Ok(None),
        1 => return Ok(Some(0)),
        _ => {}
    }
    let ambiguous = || {
        let text = format!("several applications were found; say which with --app:\n  {}", list.join("\n  "));
        Failure::new(Code::Usage, text)
    };
    if !io::stdin().is_terminal() {
        return Err(ambiguous().into());
    }
    let numbered: Vec<String> = (1..).zip(&list).map(|(number, line)| format!("  {number}  {line}\n")).collect();
    prompt(&format!("Several applications were found:\n{}Which one? ", numbered.concat()));
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed)?;
    let number = typed.trim().parse::<usize>().ok().filter(|number| (1..=list.len()).contains(number));
    Ok(Some(number.ok_or_else(ambiguous)? - 1))
}

/// The user that runs this program, for a unit.
fn user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten();
    user.map_or_else(|| nix::unistd::Uid::effective().to_string(), |user| user.name)
}

fn shown(piece: &Piece) -> String {
    let (head, text) = match &piece.content {
        Content::Whole(text) => (piece.path.display().to_string(), text.clone()),
        Content::Lines { lines, .. } => {
            (format!("{} (a line more)", piece.path.display()), format!("{}\n", lines.join("\n")))
        }
    };
    format!("# ---- {head}\n{text}\n")
}
