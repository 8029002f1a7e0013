//! Files for a project that has none yet: a commented `tandem.toml` of what was found, and what goes with it.
//!
//! ```text
//! names        which variables the code reads, and which of them lead to the database
//! draft        the text of a configuration (pure)
//! configuration · texts · systemd    what each file says (pure)
//! put          a file that is there stays as it is
//! ```
//!
//! Must not decide what a project is: `project` finds that. Nothing that a person wrote is changed; `.gitignore` alone gets a
//! line more.

mod configuration;
pub mod draft;
pub mod names;
mod put;
pub mod systemd;
mod texts;

pub use put::{Outcome, put};

use std::path::{Path, PathBuf};

use crate::project::Project;
use names::Variable;

/// What a person asks for beside the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    pub ci: bool,
    pub dockerfile: bool,
    pub systemd: bool,
    pub editor: bool,
}

/// What is known of the project and of this machine.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub directory: PathBuf,
    pub project: Project,
    /// The one application that is meant, if any is.
    pub chosen: Option<usize>,
    pub variables: Vec<Variable>,
    /// This program, and the user that runs it.
    pub program: PathBuf,
    pub user: String,
}

/// A file that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// From the project's directory.
    pub path: PathBuf,
    pub content: Content,
    /// What it is for, or what to do with it.
    pub note: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it, unless the file is there.
    Whole(String),
    /// Lines that are added where the file lacks them; and what a new file says.
    Lines { lines: Vec<String>, new: String },
}

/// The files for `facts`.
pub fn pieces(facts: &Facts, wish: Wish) -> Vec<Piece> {
    let whole = |path: &str, text: String, note: &str| Piece {
        path: PathBuf::from(path),
        content: Content::Whole(text),
        note: note.to_owned(),
    };
    let mut pieces = vec![
        whole(
            "tandem.toml",
            configuration::text(facts, wish),
            "read it through; `tandem check` shows what it comes to",
        ),
        Piece {
            path: PathBuf::from(".gitignore"),
            content: Content::Lines { lines: vec![".tandem/".to_owned()], new: texts::GITIGNORE.to_owned() },
            note: "the database, its password and the Python environment lie in .tandem/".to_owned(),
        },
        whole(".env.example", texts::env_example(&facts.variables), "what each machine puts into its own .env"),
    ];
    if wish.ci {
        pieces.push(whole(".github/workflows/tandem.yml", texts::ci(facts), "the tests, at each push"));
    }
    if wish.dockerfile {
        pieces.push(whole("Dockerfile", texts::dockerfile(facts), "`docker build -t app .`"));
        pieces.push(whole(".dockerignore", texts::DOCKERIGNORE.to_owned(), "what stays out of the image"));
    }
    if wish.systemd {
        let note = "`sudo cp tandem.service /etc/systemd/system/ && sudo systemctl enable --now tandem`";
        pieces.push(whole("tandem.service", texts::service(facts), note));
    }
    if wish.editor {
        let note = "editors complete and check tandem.toml by it";
        pieces.push(whole("tandem.schema.json", crate::config::json_schema::text(), note));
        pieces.push(whole(
            ".vscode/settings.json",
            texts::EDITOR.to_owned(),
            "VS Code finds the tests and the Python environment",
        ));
    }
    pieces
}

/// The configuration that `directory` has in another place than `tandem.toml`, which would take its place.
pub fn elsewhere(directory: &Path) -> Option<&'static str> {
    if directory.join("config/tandem.toml").is_file() {
        return Some("config/tandem.toml");
    }
    let (manifest, _) = crate::project::read_manifest(directory);
    manifest.get(&["tool", "tandem"]).map(|_| "[tool.tandem] in pyproject.toml")
}

/// Whether `directory` lies inside of a project that has a configuration already, and where that is.
pub fn above(directory: &Path) -> Option<PathBuf> {
    let places =
        directory.ancestors().skip(1).flat_map(|dir| [dir.join("tandem.toml"), dir.join("config/tandem.toml")]);
    places.into_iter().find(|path| path.is_file())
}
