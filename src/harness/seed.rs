//! What fills the template beside the migrations: SQL files and Python callables.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use ignore::WalkBuilder;

use crate::exit::{Code, Failure};

/// One seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seed {
    /// A file that psql runs, in one transaction.
    Sql { named: String, path: PathBuf },
    /// `module:function`, called with the database's URL; and where the module is, if that could be found.
    Python { module: String, function: String, source: Option<PathBuf> },
}

impl Seed {
    /// Understand `text`; what it names lies in `directory` or is importable from there.
    ///
    /// # Errors
    /// [`Code::Config`] when it is neither a file nor a callable.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, Failure> {
        let path = directory.join(text);
        if path.is_file() {
            return Ok(Self::Sql { named: text.to_owned(), path });
        }
        let is_name =
            |part: &str| part.chars().all(|letter| letter.is_alphanumeric() || letter == '_') && !part.is_empty();
        match text.split_once(':') {
            Some((module, function)) if module.split('.').all(is_name) && is_name(function) => {
                let inside = directory.join(module.replace('.', "/"));
                let source = [inside.with_extension("py"), inside].into_iter().find(|path| path.exists());
                Ok(Self::Python { module: module.to_owned(), function: function.to_owned(), source })
            }
            _ => {
                let what = "is neither a file nor a callable such as tests.data:fill";
                Err(Failure::new(Code::Config, format!("test.seed: {text} {what}")))
            }
        }
    }

    /// The files that it consists of, as far as they are known.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        match self {
            Self::Sql { path, .. } => BTreeSet::from([path.clone()]),
            Self::Python { source: Some(source), .. } => WalkBuilder::new(source)
                .build()
                .flatten()
                .map(ignore::DirEntry::into_path)
                .filter(|path| path.is_file() && path.extension().is_some_and(|extension| extension == "py"))
                .collect(),
            Self::Python { source: None, .. } => BTreeSet::new(),
        }
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sql { named, .. } => formatter.write_str(named),
            Self::Python { module, function, .. } => write!(formatter, "{module}:{function}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_file_or_a_callable() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("tests")).unwrap();
        for name in ["rows.sql", "tests/data.py"] {
            std::fs::write(temp.path().join(name), "").unwrap();
        }
        let parse = |text: &str| Seed::parse(text, temp.path());
        assert_eq!(parse("rows.sql").unwrap().files(), BTreeSet::from([temp.path().join("rows.sql")]));
        let callable = parse("tests.data:fill").unwrap();
        assert_eq!((callable.to_string().as_str(), callable.files().len()), ("tests.data:fill", 1));
        assert!(parse("elsewhere:fill").unwrap().files().is_empty());
        for wrong in ["missing.sql", "tests.data:", ":fill", "a b:c", "tests.data"] {
            assert!(parse(wrong).unwrap_err().to_string().contains("test.seed"), "{wrong}");
        }
    }
}
