//! `tandem doctor`: is anything wrong with this project, this machine or the server, and what to do about it.
//!
//! ```text
//! subject    the configuration and the directories, as far as they can be read
//! look/      looks at the project, the machine and the server, side by side, each behind a limit: facts, no opinions
//! judge/     from facts to findings: pure
//! checks     THE list of checks: a name, what it looks at, where the documentation says more, and its judge
//! verdict    how bad a finding is, and the exit code of the worst one
//! report     the outcome of all checks, as text and as JSON
//! bundle     an archive to attach to a report of a fault, without secrets
//! ```
//!
//! Looking changes nothing: it writes no file, takes no lock that another process waits for, and starts no server. What
//! `--fix` may do is in [`mend`]. A disk, a server or a program that does not answer makes its own checks unknown, and no other.

mod bundle;
mod checks;
mod facts;
mod judge;
mod look;
mod mend;
#[cfg(test)]
mod page;
mod report;
mod subject;
mod verdict;

pub use bundle::write as write_bundle;
pub use checks::{CHECKS, Check, Group};
pub use facts::{Facts, Look, Unseen};
pub use look::look;
pub use mend::close_to_others;
pub use report::{Checked, Diagnosis};
pub use subject::Subject;
pub use verdict::{Finding, Verdict};
