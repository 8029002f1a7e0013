//! What `--fix` does beside the removal of leftovers, which is in `backup::doctor`: it closes Tandem's own files to others.
//!
//! Nothing that a person wrote is changed, no process is ended, and nothing is removed here.

use std::os::unix::fs::PermissionsExt;

use super::look::LOOK_LIMIT;
use super::subject::Subject;
use crate::event_loop::within;
use crate::exit::in_words;
use crate::postgres::home::Home;

/// Take from others what they may not have of Tandem's own files and directories; which were changed, and what failed.
pub async fn close_to_others(subject: &Subject) -> (Vec<String>, Vec<String>) {
    let Ok(home) = subject.home.clone() else { return (Vec::new(), Vec::new()) };
    let closed = within(LOOK_LIMIT, "close Tandem's files to others", move || {
        if !home.state.is_dir() {
            return (Vec::new(), Vec::new());
        }
        let before = modes(&home);
        let failed = home.close_again().err().map(|error| in_words(&error));
        let after = modes(&home);
        let changed = before.into_iter().zip(after).filter(|(before, after)| before.1 != after.1);
        let words =
            |((path, was), (_, is)): (Mode, Mode)| format!("{path} closed to others (mode {was:04o}, now {is:04o})");
        (changed.map(words).collect(), failed.into_iter().collect())
    });
    closed.await.unwrap_or_else(|hangs| (Vec::new(), vec![hangs.to_string()]))
}

type Mode = (String, u32);

fn modes(home: &Home) -> Vec<Mode> {
    let inside = ["run", "run/password", "backups", "backup.key"].map(|name| home.state.join(name));
    let all = inside
        .into_iter()
        .chain([home.data.clone(), home.socket_dir.clone()])
        .chain(home.data.parent().map(Into::into));
    all.filter_map(|path| {
        let meta = path.symlink_metadata().ok()?;
        Some((path.display().to_string(), meta.permissions().mode() & 0o7777))
    })
    .collect()
}
