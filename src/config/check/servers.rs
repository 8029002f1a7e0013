//! What serves the application: Tandem's launcher and what it is told, or another server's command.

use super::Checker;
use crate::config::settings::{Preload, Readiness, WorkerSocket};

impl Checker<'_> {
    /// What a server other than Tandem's launcher can do, and what only one can.
    pub(super) fn commands(&mut self) {
        let workers = &self.settings.workers;
        if workers.command.is_none() {
            // A command that cannot be read has been told already.
            if workers.socket == WorkerSocket::Own && !self.values.chosen("workers.command") {
                let help = "give the server's command in workers.command, or leave this out";
                self.wrong("workers.socket", "without workers.command the socket is always Tandem's", Some(help));
            }
        } else if workers.preload != Preload::Off {
            let help = "leave one of them out: only Tandem's launcher can fork workers";
            self.wrong("workers.preload", "workers.command starts each worker anew", Some(help));
        }
        if let Readiness::Http(path) = &workers.ready
            && !is_path(path)
        {
            let help = "write the path alone, such as \"/health\"; it is asked for at the worker's own address";
            self.wrong("workers.ready", &format!("{path:?} is not a path"), Some(help));
        }
        if let Some(path) = &workers.check
            && !is_path(path)
        {
            let help = "write the path alone, such as \"/health\"";
            self.wrong("workers.check", &format!("{path:?} is not a path"), Some(help));
        }
        if self.settings.workers.command.is_some() && self.values.chosen("workers.check") {
            let help = "let workers.ready be the path: that server is ready once it answers there";
            self.wrong("workers.check", "only Tandem's launcher can be asked before it serves", Some(help));
        }
        for key in [
            "workers.preimport",
            "workers.access_log",
            "workers.event_loop",
            "workers.factory",
            "workers.lifespan",
            "workers.interface",
            "workers.drain_streams",
        ] {
            if self.settings.workers.command.is_some() && self.values.chosen(key) {
                self.notices.push(format!("{key} has no effect: workers.command starts the workers"));
            }
        }
    }
}

/// Whether it is what a request asks for.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}
