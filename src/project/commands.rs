//! Commands that start a server, where a project has written one down: in a `Procfile`, a `Dockerfile`, a task of
//! `pyproject.toml`, or as `uvicorn.run` in a file that is run as a program.

use std::path::Path;

use super::module::{Module, names_app};
use super::{Found, Manifest, Seen, files};

/// Servers of ASGI applications.
const SERVERS: [&str; 4] = ["uvicorn", "hypercorn", "granian", "daphne"];

/// Tables of `pyproject.toml` in which tools keep commands.
const TASKS: [&[&str]; 6] = [
    &["tool", "poe", "tasks"],
    &["tool", "taskipy", "tasks"],
    &["tool", "pdm", "scripts"],
    &["tool", "rye", "scripts"],
    &["tool", "hatch", "envs"],
    &["tool", "pixi", "tasks"],
];

/// Files that are run as programs.
const PROGRAMS: [&str; 6] = ["main.py", "app.py", "run.py", "server.py", "__main__.py", "asgi.py"];

/// The applications that commands in `root` of the project in `directory` start, in the order of how much they say.
pub fn applications(directory: &Path, root: &Path, manifest: &Manifest) -> Vec<Found<String>> {
    let file = |name: &str| Some((root.join(name), files::text(&directory.join(root).join(name))?));
    let mut found = Vec::new();
    if let Some((path, text)) = file("Procfile") {
        for (at, line) in text.lines().enumerate() {
            let is_web = |name: &str| name.trim() == "web" || name.trim() == "api" || name.trim() == "app";
            let command = line.split_once(':').filter(|(name, _)| is_web(name)).map(|(_, command)| command);
            let app = command.and_then(|command| application(&words(command), directory, root));
            found.extend(app.map(|app| Found::new(app, Seen::at(&path, at + 1))));
        }
    }
    for tasks in TASKS {
        for text in manifest.texts(tasks) {
            let app = application(&words(&text.value), directory, root);
            found.extend(app.map(|app| Found::new(app, text.seen)));
        }
    }
    if let Some((path, text)) = file("Dockerfile") {
        found.extend(of_dockerfile(&text, directory, root).map(|(line, app)| Found::new(app, Seen::at(&path, line))));
    }
    for program in PROGRAMS {
        let Some((path, text)) = file(program) else { continue };
        let run = Module::read(&text).run;
        found.extend(run.into_iter().map(|(line, app)| Found::new(app, Seen::at(&path, line))));
    }
    // One place says it: others may be of another time.
    let first = found.first().map(|it: &Found<String>| file_of(&it.seen));
    found.retain(|it| Some(file_of(&it.seen)) == first);
    found
}

fn file_of(seen: &Seen) -> String {
    match seen {
        Seen::File(file, _) => file.display().to_string(),
        Seen::Variable(name) => name.clone(),
    }
}

/// The words of a command line, without quotes.
fn words(command: &str) -> Vec<String> {
    shlex::split(command).unwrap_or_else(|| command.split_whitespace().map(str::to_owned).collect())
}

/// The last `CMD` or `ENTRYPOINT` of a Dockerfile that starts a server.
fn of_dockerfile(text: &str, directory: &Path, root: &Path) -> Option<(usize, String)> {
    let mut found = None;
    let (mut start, mut whole) = (0, String::new());
    for (at, line) in text.lines().enumerate() {
        if whole.is_empty() {
            start = at + 1;
        }
        let line = line.trim();
        if let Some(rest) = line.strip_suffix('\\') {
            whole.push_str(rest);
            whole.push(' ');
            continue;
        }
        let instruction = std::mem::take(&mut whole) + line;
        let command = ["CMD ", "ENTRYPOINT "].iter().find_map(|word| instruction.strip_prefix(word));
        let Some(command) = command else { continue };
        let listed: Option<Vec<String>> = serde_json::from_str(command.trim()).ok();
        let command = listed.unwrap_or_else(|| words(command));
        if let Some(app) = application(&command, directory, root) {
            found = Some((start, app));
        }
    }
    found
}

/// The application that the command of these `words` starts, if it starts one.
fn application(words: &[String], directory: &Path, root: &Path) -> Option<String> {
    // `sh -c "…"` and the like.
    if let Some(inner) = words.iter().find(|word| word.contains(char::is_whitespace)) {
        return application(&self::words(inner), directory, root);
    }
    let base = |word: &String| word.rsplit('/').next().unwrap_or(word).to_owned();
    let at = words.iter().position(|word| {
        let name = base(word);
        SERVERS.contains(&name.as_str()) || name == "gunicorn" || name == "fastapi"
    })?;
    let (server, rest) = (base(&words[at]), &words[at + 1..]);
    if server == "fastapi" {
        // `fastapi run app/main.py`
        let file = rest.iter().find(|word| word.ends_with(".py"))?;
        let module = file.trim_start_matches("./").trim_start_matches("/").strip_suffix(".py")?.replace('/', ".");
        let text = files::text(&directory.join(root).join(file))?;
        let name = Module::read(&text).assigned.into_iter().find(|it| it.name == "app" || it.name == "api")?.name;
        return Some(format!("{module}:{name}"));
    }
    // Gunicorn's own workers speak WSGI.
    if server == "gunicorn" && !rest.iter().any(|word| word.contains("uvicorn") || word.contains("UvicornWorker")) {
        return None;
    }
    let named = rest.iter().map(|word| word.trim_end_matches("()"));
    named.map(str::to_owned).find(|word| names_app(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_command_says_which_application_it_starts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("app")).unwrap();
        std::fs::write(dir.path().join("app/main.py"), "app = FastAPI()\n").unwrap();
        let cases = [
            ("uvicorn shop.main:app --host 0.0.0.0:8000", Some("shop.main:app")),
            ("uv run uvicorn --factory shop:make --port 80", Some("shop:make")),
            ("/venv/bin/hypercorn -b 0.0.0.0:80 'shop:make()'", Some("shop:make")),
            ("gunicorn -k uvicorn.workers.UvicornWorker -b :80 a:b", Some("a:b")),
            ("gunicorn shop.wsgi:application", None),
            ("sh -c 'alembic upgrade head && exec uvicorn a.b:c'", Some("a.b:c")),
            ("fastapi run app/main.py --port 80", Some("app.main:app")),
            ("python worker.py", None),
        ];
        for (command, expected) in cases {
            assert_eq!(application(&words(command), dir.path(), Path::new("")).as_deref(), expected, "{command}");
        }
        let dockerfile = "FROM python\nCMD [\"uvicorn\", \"old:app\"]\nFROM x\nRUN pip install \\\n  uvicorn\n\
                          CMD [\"fastapi\", \"run\", \\\n  \"app/main.py\"]\n";
        assert_eq!(of_dockerfile(dockerfile, dir.path(), Path::new("")), Some((6, "app.main:app".to_owned())));
    }
}
