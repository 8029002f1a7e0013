//! What a saved file leads to under `tandem up --reload`: new workers, and where the configuration is read from that file, a
//! new reading of it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::orders::{Operator, RollReport};
use super::tree_view::TreeView;
use crate::event_loop::within;
use crate::supervise::tree::Scope;
use crate::watch::Watch;
use crate::workers::environment;

/// How long the removal of byte code may take.
const BYTE_CODE_LIMIT: Duration = Duration::from_secs(2);
/// How long a look for editable installs, and at their files, may take.
const EDITABLE_LIMIT: Duration = Duration::from_secs(30);
/// How soon after a roll a change counts as one that the new workers made.
const ECHO_LIMIT: Duration = Duration::from_secs(1);
/// So many rolls in a row that the application itself caused are worth a word.
const ECHOES: u32 = 3;

impl Operator {
    /// Replace every worker whenever sources are saved, for ever. What is saved meanwhile is one more change.
    pub async fn follow(self: Rc<Self>, mut sources: Watch) {
        let mut tree = self.tree.subscribe();
        let (mut is_complete, mut echo, mut ended) = (false, Echo::default(), None::<Instant>);
        loop {
            let changed = tokio::select! {
                changed = sources.next() => changed,
                // The Python environment is there by then.
                () = serving(&mut tree), if !is_complete => {
                    is_complete = true;
                    self.add_editable(&mut sources).await;
                    continue;
                }
            };
            let Some(changed) = changed else { return };
            let is_soon = ended.is_some_and(|ended| ended.elapsed() < ECHO_LIMIT);
            let what = match &changed[..] {
                [one] => sources.short(one).display().to_string(),
                more => format!("{} files", more.len()),
            };
            if let Some(file) = echo.hear(&changed, is_soon) {
                tracing::warn!(
                    "{0} has changed {ECHOES} times in a row while the workers started that were to read it: the application \
                     seems to write it itself. Name it in a .gitignore, or write \"!{0}\" into workers.reload_include",
                    sources.short(&file).display()
                );
            }
            tracing::info!("{what} changed: the workers are replaced");
            // After a failure a person saves again at once.
            ended = self.take_up(changed, &what).await.then(Instant::now);
        }
    }

    /// Replace every worker because `what` changed, the files `changed`; whether that was done.
    async fn take_up(&self, changed: Vec<PathBuf>, what: &str) -> bool {
        let reads = changed.iter().any(|file| self.context.reads(file));
        let forget = move || changed.iter().for_each(|source| forget_byte_code(source));
        // What cannot be removed is compiled anew when its source is a second older.
        let _ = within(BYTE_CODE_LIMIT, "remove the byte code of changed sources", forget).await;
        self.roster.lives().iter().for_each(|life| life.note(format!("{what} changed")));
        // What is wrong with the code is said once a save, however often it was said before.
        self.roster.forget_start_error();
        let began = Instant::now();
        if reads && self.tree.borrow().serving {
            // It logs what goes wrong.
            let answer = self.reload().await;
            if let Some(last) = answer.words.last().filter(|_| answer.is_done()) {
                tracing::info!("{last}");
            }
            return answer.is_done();
        }
        let report = self.roll(Scope::All).await;
        if let RollReport::Done(count) = report {
            tracing::info!("replaced {count} workers in {:.1?}", began.elapsed());
        }
        matches!(report, RollReport::Done(_))
    }

    /// Watch what the environment has as editable installs elsewhere.
    async fn add_editable(&self, sources: &mut Watch) {
        let (rule, python) = (sources.rule(), self.context.python.borrow().clone());
        let roots: Vec<PathBuf> = sources.roots().into_iter().map(Path::to_owned).collect();
        let look = move || {
            let dirs = environment::editable(&python);
            let new = dirs.into_iter().filter(|dir| !roots.iter().any(|root| dir.starts_with(root)));
            new.map(|dir| (rule.begin(&dir), dir)).collect::<Vec<_>>()
        };
        let found = match within(EDITABLE_LIMIT, "look for editable installs", look).await {
            Ok(found) => found,
            Err(hangs) => return tracing::warn!("{hangs}; saves in editable installs are not noticed"),
        };
        for (part, dir) in found {
            match part {
                Ok(part) => {
                    if sources.take(part) {
                        tracing::info!("watching {} too, which is installed as editable", dir.display());
                    }
                }
                Err(error) => tracing::warn!("{error}; saves there are not noticed"),
            }
        }
    }
}

/// Wait until `tree` serves.
async fn serving(tree: &mut watch::Receiver<TreeView>) {
    // What it returns holds a lock of the tree's.
    let _ = tree.wait_for(|tree| tree.serving).await;
}

/// Changes that come with new workers, over and over.
#[derive(Debug, Default)]
struct Echo {
    files: BTreeSet<PathBuf>,
    times: u32,
}

impl Echo {
    /// Take in that the files `changed`, soon after a roll or not. Returns the file that the application itself writes, once
    /// that is likely.
    fn hear(&mut self, changed: &[PathBuf], is_soon: bool) -> Option<PathBuf> {
        if !is_soon {
            *self = Self::default();
            return None;
        }
        let again: BTreeSet<PathBuf> = changed.iter().filter(|file| self.files.contains(*file)).cloned().collect();
        (self.files, self.times) =
            if again.is_empty() { (changed.iter().cloned().collect(), 1) } else { (again, self.times + 1) };
        self.files.first().filter(|_| self.times == ECHOES).cloned()
    }
}

/// Remove what Python compiled from `source`: it takes that for new when size and second of the source are the same, which
/// two saves in a row can be.
fn forget_byte_code(source: &Path) {
    let (Some(dir), Some(stem)) = (source.parent(), source.file_stem().and_then(OsStr::to_str)) else { return };
    let starts = format!("{stem}.");
    // Blocks: called by `within`.
    for entry in std::fs::read_dir(dir.join("__pycache__")).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&starts) && name.ends_with(".pyc")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_comes_with_every_roll_is_named_once() {
        let file = |name: &str| PathBuf::from(name);
        let (written, other) = (file("generated.py"), file("main.py"));
        let mut echo = Echo::default();
        // A person saves; the workers that come write a file, and again.
        assert_eq!(echo.hear(std::slice::from_ref(&other), false), None);
        assert_eq!(echo.hear(std::slice::from_ref(&written), true), None);
        assert_eq!(echo.hear(&[other.clone(), written.clone()], true), None);
        assert_eq!(echo.hear(std::slice::from_ref(&written), true), Some(written.clone()));
        assert_eq!(echo.hear(std::slice::from_ref(&written), true), None);
        // A person who saves quickly saves other files, or later.
        for (file, is_soon) in [(&other, true), (&written, true), (&other, true), (&other, true), (&other, false)] {
            assert_eq!(echo.hear(std::slice::from_ref(file), is_soon), None);
        }
    }
}
