//! What a container's command starts: a server for Python, a migration, or something else. Pure.

use super::yaml::{Node, Value};

/// A command line taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// The last command, without shells, package managers and the like around it.
    pub main: Vec<String>,
    /// Commands before it that migrate the database, with the directory that they change to.
    pub migrations: Vec<(Option<String>, Vec<String>)>,
    /// Other commands before it, but for those that wait.
    pub others: Vec<String>,
    /// `NAME=value` in front of the last command.
    pub environment: Vec<(String, String)>,
    /// Programs around it that do something of their own, such as `ddtrace-run`.
    pub around: Vec<String>,
    /// It is more of a program than a list of commands.
    pub is_shell: bool,
}

/// The words of `command:` or `entrypoint:`.
pub fn words(node: &Node) -> Vec<String> {
    match &node.value {
        Value::Scalar { text, .. } => shlex::split(text).unwrap_or_else(|| vec![text.clone()]),
        Value::List(items) => items.iter().filter_map(|item| item.text().map(str::to_owned)).collect(),
        Value::Map(_) | Value::Null => Vec::new(),
    }
}

/// Take `words` apart.
pub fn script(words: &[String]) -> Script {
    let name = words.first().map(|word| base(word)).unwrap_or_default();
    let is_shell = ["sh", "bash", "ash", "dash"].contains(&name);
    let at = words.iter().position(|word| word.starts_with('-') && word.ends_with('c') && !word.starts_with("--"));
    match at.filter(|_| is_shell).and_then(|at| words.get(at + 1)) {
        Some(text) => of_text(text),
        None => {
            let mut script = Script::default();
            script.take(words.to_vec());
            script
        }
    }
}

fn of_text(text: &str) -> Script {
    let mut script = Script::default();
    let mut dir = None;
    for part in split(text) {
        let Some(words) = shlex::split(&part) else {
            script.is_shell = true;
            continue;
        };
        match words.first().map(String::as_str) {
            None => {}
            Some("cd") => dir = words.get(1).cloned(),
            Some("set" | "echo" | "true" | "export" | "source" | ".") => {}
            Some("if" | "then" | "else" | "fi" | "for" | "while" | "until" | "do" | "done" | "case" | "{" | "(") => {
                script.is_shell = true;
            }
            Some(_) => {
                let before = std::mem::take(&mut script.main);
                script.before(before, dir.as_deref());
                script.take(words);
            }
        }
    }
    if is_migration(&script.main) {
        let main = std::mem::take(&mut script.main);
        script.before(main, dir.as_deref());
    }
    script
}

/// The commands of a script: `;`, `&&`, `||` and ends of lines stand between them, unless they are quoted.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut part, mut quote) = (Vec::new(), String::new(), None);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\'' | '"', None) => quote = Some(letter),
            (_, Some(open)) if open == letter => quote = None,
            ('\\', None) if letters.peek() == Some(&'\n') => {
                letters.next();
                continue;
            }
            (';' | '\n' | '&' | '|', None) => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(letter);
    }
    parts.push(part);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

impl Script {
    /// `words` as the main command, without what stands around it.
    fn take(&mut self, mut words: Vec<String>) {
        self.environment.clear();
        loop {
            let skip = match words.first().map(|word| base(word)) {
                Some("exec" | "env" | "tini" | "dumb-init" | "--" | "nohup") => 1,
                Some("uv" | "poetry" | "pipenv" | "pdm" | "rye" | "hatch")
                    if words.get(1).is_some_and(|it| it == "run") =>
                {
                    // Options of the package manager's.
                    2 + words.iter().skip(2).take_while(|word| word.starts_with("--")).count()
                }
                Some("ddtrace-run" | "opentelemetry-instrument") => {
                    self.around.push(words[0].clone());
                    1
                }
                Some("newrelic-admin") if words.len() > 2 => {
                    self.around.push(words[0].clone());
                    2
                }
                Some(name) if is_python(name) && words.get(1).is_some_and(|it| it == "-m") => 2,
                Some(_) => match words[0].split_once('=') {
                    Some((name, value)) if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                        self.environment.push((name.to_owned(), value.to_owned()));
                        1
                    }
                    _ => 0,
                },
                None => 0,
            };
            if skip == 0 {
                break;
            }
            words.drain(..skip.min(words.len()));
        }
        self.main = words;
    }

    /// A command that comes before the main one.
    fn before(&mut self, words: Vec<String>, dir: Option<&str>) {
        let waits = |word: &str| word == "sleep" || word.contains("wait") || ["nc", "pg_isready"].contains(&word);
        match words.first() {
            None => {}
            Some(_) if is_migration(&words) => self.migrations.push((dir.map(str::to_owned), words)),
            Some(first) if waits(base(first)) => {}
            Some(_) => self.others.push(words.join(" ")),
        }
    }
}

/// Whether `words` migrate a database.
pub fn is_migration(words: &[String]) -> bool {
    let has = |word: &str| words.iter().any(|it| it == word);
    match words.first().map(|word| base(word)) {
        Some("alembic") => has("upgrade"),
        Some("yoyo") => has("apply"),
        Some("aerich" | "piccolo" | "tortoise") => has("upgrade") || has("forwards") || has("migrate"),
        Some(name) if is_python(name) || name == "manage.py" || name == "django-admin" => has("migrate"),
        _ => false,
    }
}

/// Whether it is Python's own program.
pub fn is_python(name: &str) -> bool {
    name.strip_prefix("python").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// The name of a program without its directory.
pub fn base(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(command: &str) -> Script {
        script(&shlex::split(command).unwrap())
    }

    #[test]
    fn the_server_is_found_inside_of_what_stands_around_it() {
        for (command, main) in [
            ("uvicorn main:app --host 0.0.0.0", "uvicorn main:app --host 0.0.0.0"),
            ("sh -c 'alembic upgrade head && exec uvicorn main:app'", "uvicorn main:app"),
            (
                "bash -lc \"cd /app; ./wait-for-it.sh db:5432 -- ; FOO=1 uv run --no-sync uvicorn main:app\"",
                "uvicorn main:app",
            ),
            ("poetry run python -m gunicorn app:app", "gunicorn app:app"),
            ("/usr/local/bin/python3.12 -m uvicorn main:app", "uvicorn main:app"),
            ("ddtrace-run uvicorn main:app", "uvicorn main:app"),
            ("sh -c 'python manage.py migrate'", ""),
        ] {
            assert_eq!(of(command).main.join(" "), main, "{command}");
        }
    }

    #[test]
    fn what_comes_before_is_sorted() {
        let script =
            of("sh -c 'sleep 5; cd backend && alembic upgrade head && python seed.py && A=1 uvicorn main:app'");
        assert_eq!(
            script.migrations,
            [(Some("backend".to_owned()), ["alembic", "upgrade", "head"].map(str::to_owned).to_vec())]
        );
        assert_eq!(script.others, ["python seed.py"]);
        assert_eq!(script.environment, [("A".to_owned(), "1".to_owned())]);
        assert!(of("sh -c 'until nc -z db 5432; do sleep 1; done; uvicorn main:app'").is_shell);
        assert!(of("sh -c 'echo \"a; b\" && uvicorn main:app'").others.is_empty());
    }
}
