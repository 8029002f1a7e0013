use std::process::Command;

use super::*;

/// The network of a process that has ended is a directory that can be opened and not read (proc(5)).
#[test]
fn backups_that_cannot_be_listed_are_not_taken_for_none() {
    #[expect(clippy::disallowed_methods, reason = "a process to be looked at when it has ended")]
    let mut ended = Command::new("true").spawn().unwrap();
    let dir = format!("/proc/{}/net", ended.id());
    // It stays there until it is waited for.
    while fs::read_dir(&dir).is_ok_and(|mut names| names.all(|name| name.is_ok())) {
        std::thread::yield_now();
    }
    let catalog = Catalog::at(Path::new(&dir));
    // Else what lies beside the backups that were not seen would be swept away.
    assert_eq!(catalog.dumps().unwrap_err().raw_os_error(), Some(nix::libc::EINVAL));
    assert!(catalog.entries(None).is_err() && catalog.unfinished().is_empty());
    ended.wait().unwrap();
}
