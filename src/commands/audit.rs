//! Tell the running Tandem, which logs it, what a person does beside it as PostgreSQL's superuser.

use std::fs;
use std::path::Path;

use nix::unistd::{Uid, User};

use crate::control::client;
use crate::exit::in_words;
use crate::telemetry::say_aside;

/// What /proc/self/loginuid holds where nobody has logged in (proc_pid_loginuid(5)).
const NO_LOGIN: u32 = u32::MAX;

/// Have the Tandem behind `control` log that this process does `what`.
///
/// Where it cannot be told, the person hears that and goes on: whoever may ask is the superuser by the socket alone.
pub async fn tell(control: &Path, what: &str) {
    let told = client::audit(control, &format!("{} {what}", who())).await;
    if let Err(error) = told {
        say_aside(&format!("tandem: this is not in the log of a running Tandem: {}", in_words(&error)));
    }
}

/// Who runs this process, as far as the system tells.
fn who() -> String {
    let name = |uid: u32| {
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        user.map_or_else(|| format!("user id {uid}"), |user| user.name)
    };
    let own = Uid::current().as_raw();
    let login = fs::read_to_string("/proc/self/loginuid").ok().and_then(|text| text.trim().parse().ok());
    let login = login.filter(|&uid: &u32| uid != NO_LOGIN && uid != own);
    let login = login.map_or_else(String::new, |uid| format!(", logged in as {}", name(uid)));
    let terminal = fs::read_link("/proc/self/fd/0").ok().filter(|path| path.starts_with("/dev/pts"));
    let terminal = terminal.map_or_else(String::new, |path| format!(", at {}", path.display()));
    format!("{} (process {}{login}{terminal})", name(own), std::process::id())
}
