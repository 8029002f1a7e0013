//! A deployment into a running Tandem: which steps it takes, and what holds when one of them fails. Pure.

use std::fmt;
use std::path::PathBuf;

/// What a deployment finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The requirements that the Python environment in use was not made from.
    pub requirements: Option<PathBuf>,
    /// The migrations, in words, where there are any.
    pub migrations: Option<String>,
    pub workers: u32,
}

/// One step of a deployment. A later one begins when those before it are done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the environment for these requirements, beside the one in use.
    Environment(PathBuf),
    /// Run these migrations, while the old workers serve.
    Migrations(String),
    /// Replace so many workers.
    Roll(u32),
}

/// The steps that `findings` ask for. What can fail without a trace comes first, and what nobody can take back, the
/// migrations, only when the code that needs them can be imported.
pub fn steps(findings: &Findings) -> Vec<Step> {
    let environment = findings.requirements.clone().map(Step::Environment);
    let migrations = findings.migrations.clone().map(Step::Migrations);
    environment.into_iter().chain(migrations).chain([Step::Roll(findings.workers)]).collect()
}

/// The steps as a person reads them before they are taken.
pub fn told(steps: &[Step]) -> Vec<String> {
    steps.iter().enumerate().map(|(index, step)| format!("{}. {step}", index + 1)).collect()
}

/// What holds once the step at `failed` has failed, after which `replaced` workers are new.
pub fn remains(steps: &[Step], failed: usize, replaced: usize) -> String {
    let before = &steps[..failed.min(steps.len())];
    let is_migrated = before.iter().any(|step| matches!(step, Step::Migrations(_)));
    let has_environment = before.iter().any(|step| matches!(step, Step::Environment(_)));
    let workers = match replaced {
        0 => "the workers that were there serve on".to_owned(),
        1 => "1 worker was replaced before, the others serve on".to_owned(),
        count => format!("{count} workers were replaced before, the others serve on"),
    };
    let environment = match (has_environment, replaced) {
        (false, _) => "",
        (true, 0) => ", in the environment that they have; the new one is kept for the next `tandem deploy`",
        (true, _) => ", and the new environment is the one in use",
    };
    let schema = if is_migrated { "; the migrations are in, and stay" } else { "" };
    format!("{workers}{environment}{schema}")
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(file) => {
                write!(formatter, "{} has changed: make the Python environment beside the one in use", file.display())
            }
            Self::Migrations(what) => write!(formatter, "run the migrations ({what}), while the workers serve"),
            Self::Roll(1) => formatter.write_str("replace the worker"),
            Self::Roll(count) => write!(formatter, "replace {count} workers, new before old"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Step> {
        let findings = Findings {
            requirements: Some("requirements.txt".into()),
            migrations: Some("alembic upgrade head".into()),
            workers: 2,
        };
        steps(&findings)
    }

    #[test]
    fn only_what_is_due_is_done_and_the_roll_is_last() {
        assert_eq!(steps(&Findings { workers: 3, ..Findings::default() }), [Step::Roll(3)]);
        assert!(matches!(all()[..], [Step::Environment(_), Step::Migrations(_), Step::Roll(2)]));
        assert_eq!(told(&all())[2], "3. replace 2 workers, new before old");
    }

    #[test]
    fn every_failure_says_what_holds() {
        let left = |failed, replaced| remains(&all(), failed, replaced);
        assert_eq!(left(0, 0), "the workers that were there serve on");
        assert!(left(1, 0).contains("kept for the next `tandem deploy`") && !left(1, 0).contains("migrations are in"));
        assert!(left(2, 0).contains("kept for the next") && left(2, 0).ends_with("the migrations are in, and stay"));
        assert!(left(2, 1).contains("1 worker was replaced") && left(2, 1).contains("is the one in use"));
        assert_eq!(remains(&[Step::Roll(1)], 0, 0), "the workers that were there serve on");
    }
}
