//! Alembic and Django as migration tools: the commands for status and rollback that follow from `migrations.run`. Pure.

use std::path::Path;

use crate::exit::{Code, Failure};
use crate::plan::in_one_line;

/// A tool whose commands Tandem knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Alembic,
    Django,
}

/// The command of `migrations.run`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTool {
    pub tool: Tool,
    /// All that stands before the word for migrating: the program, and options such as `-c alembic.ini`.
    before: Vec<String>,
    /// Options behind it that other words of the tool take as well.
    options: Vec<String>,
}

/// Options of Django's `migrate` that say where, not what.
const DJANGO_OPTIONS: [&str; 3] = ["--database", "--settings", "--pythonpath"];

impl KnownTool {
    /// The tool in `command`, if Tandem knows it.
    pub fn of(command: &[String]) -> Option<Self> {
        let place = |names: &[&str]| {
            command.iter().position(|word| {
                Path::new(word).file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(&name))
            })
        };
        let known = |tool, program: usize, verb: &str| {
            let verb = program + 1 + command.get(program + 1..)?.iter().position(|word| word == verb)?;
            let options = match tool {
                Tool::Alembic => Vec::new(),
                Tool::Django => django_options(&command[verb + 1..]),
            };
            Some(Self { tool, before: command[..verb].to_vec(), options })
        };
        if command.iter().any(|word| word == "--sql") {
            // It only prints.
            return None;
        }
        place(&["alembic"])
            .and_then(|program| known(Tool::Alembic, program, "upgrade"))
            .or_else(|| known(Tool::Django, place(&["manage.py", "django-admin", "django"])?, "migrate"))
    }

    fn with(&self, words: &[&str]) -> Vec<String> {
        let words = words.iter().map(|&word| word.to_owned());
        self.before.iter().cloned().chain(words).chain(self.options.iter().cloned()).collect()
    }

    /// The commands that tell where the database is.
    pub fn status(&self) -> Vec<Vec<String>> {
        match self.tool {
            Tool::Alembic => vec![self.with(&["current"]), self.with(&["heads"])],
            Tool::Django => vec![self.with(&["showmigrations"])],
        }
    }

    /// The command that takes the last `steps` revisions back.
    ///
    /// # Errors
    /// The tool takes nothing back by number.
    pub fn down(&self, steps: u32) -> Result<Vec<String>, Failure> {
        match self.tool {
            Tool::Alembic => Ok(self.with(&["downgrade", &format!("-{steps}")])),
            Tool::Django => {
                let example = self.with(&["migrate", "APP", "NAME"]).join(" ");
                let message = format!(
                    "Django takes migrations back by application and name, not by number: `tandem migrate status` lists \
                     them; `tandem run {example}`"
                );
                Err(Failure::new(Code::Usage, message))
            }
        }
    }
}

fn django_options(words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.split('=').next().unwrap_or_default();
        if DJANGO_OPTIONS.contains(&name) {
            kept.push(word.clone());
            if name == word {
                kept.extend(words.next().cloned());
            }
        }
    }
    kept
}

/// The error of `tandem migrate WORD` for a command that Tandem does not know.
pub fn unknown(command: &[String], word: &str) -> Failure {
    let message = format!(
        "migrations.run is `{}`, and Tandem knows `migrate {word}` of Alembic (… upgrade …), of Django (manage.py migrate) and \
         of its own migrations only: ask that tool with `tandem run`",
        in_one_line(command)
    );
    Failure::new(Code::Usage, message)
}

/// One migration as Django's `showmigrations` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub application: String,
    pub name: String,
    pub applied: bool,
}

/// Read what `showmigrations` printed: an application's name, and below it its migrations with `[X]` or `[ ]`.
pub fn listed(printed: &str) -> Vec<Listed> {
    let (mut application, mut listed) = (String::new(), Vec::new());
    for line in printed.lines() {
        let mark = line.trim_start();
        let found = [("[X] ", true), ("[ ] ", false)].into_iter().find_map(|(start, applied)| {
            // A squashed one is followed by how many it stands for.
            let name = mark.strip_prefix(start)?.split(' ').next()?;
            Some((name.to_owned(), applied))
        });
        match found {
            Some((name, applied)) => listed.push(Listed { application: application.clone(), name, applied }),
            None if !line.starts_with(' ') => application = line.trim().to_owned(),
            None => {}
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_tool_is_known_by_its_command() {
        let cases = [
            ("alembic upgrade head", "alembic current", "alembic downgrade -2"),
            (
                "/app/venv/bin/alembic -c a.ini -n main upgrade heads",
                "/app/venv/bin/alembic -c a.ini -n main current",
                "/app/venv/bin/alembic -c a.ini -n main downgrade -2",
            ),
            ("python -m alembic upgrade head", "python -m alembic current", "python -m alembic downgrade -2"),
            ("uv run alembic upgrade head", "uv run alembic current", "uv run alembic downgrade -2"),
        ];
        for (command, status, down) in cases {
            let known = KnownTool::of(&words(command)).unwrap();
            assert_eq!((known.tool, &known.status()[0]), (Tool::Alembic, &words(status)));
            assert_eq!(known.down(2).unwrap(), words(down));
        }
        let django = KnownTool::of(&words("python manage.py migrate --noinput --settings a.b --database=x")).unwrap();
        assert_eq!(django.status(), [words("python manage.py showmigrations --settings a.b --database=x")]);
        assert_eq!(django.down(1).unwrap_err().code, Code::Usage);
        assert_eq!(KnownTool::of(&words("python -m django migrate")).unwrap().tool, Tool::Django);
        for command in ["sh -c alembic-upgrade", "alembic upgrade head --sql", "flask db upgrade", "alembic", "migrate"]
        {
            assert_eq!(KnownTool::of(&words(command)), None, "{command}");
        }
    }

    #[test]
    fn what_django_lists_is_read() {
        let printed = "admin\n [X] 0001_initial\n [ ] 0002_more (2 squashed migrations)\nempty\n (no migrations)\n";
        let of = |name: &str, applied| Listed { application: "admin".into(), name: name.into(), applied };
        assert_eq!(listed(printed), [of("0001_initial", true), of("0002_more", false)]);
    }
}
