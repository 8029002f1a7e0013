//! Exit codes and the error that carries one.
//!
//! Rooms return `anyhow::Result`; where the kind of failure decides what a supervisor above Tandem should do, the
//! chain holds a [`Failure`] and `main` exits with its code. Codes follow sysexits(3).

mod no_room;
mod reason;
mod see;
mod words;

use std::fmt;
use std::io;

pub use no_room::NoRoom;
pub use reason::Reason;
pub use see::see;
pub use words::{in_words, is_broken_off, own_limit, sql_state, what_the_server_said};

/// The SQLSTATE of a server that starts, recovers or ends (PostgreSQL documentation, appendix A).
pub const CANNOT_CONNECT_NOW: &str = "57P03";

/// What the exit code of the process says to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Stopped as asked.
    Stopped = 0,
    /// Failed, for a reason no other code names.
    Failed = 1,
    /// Bad usage of the command line (EX_USAGE).
    Usage = 64,
    /// The database is newer than this binary, or its schema is not what was recorded (EX_DATAERR).
    Schema = 65,
    /// A service gave up: it failed more often than its restart intensity allows (EX_UNAVAILABLE).
    GaveUp = 69,
    /// `tandem doctor` found an error (EX_SOFTWARE).
    Unwell = 70,
    /// A directory cannot be created, locked or used (EX_CANTCREAT).
    CannotCreate = 73,
    /// Temporary: the same command may succeed later (EX_TEMPFAIL).
    Temporary = 75,
    /// The configuration is wrong (EX_CONFIG).
    Config = 78,
}

impl Code {
    /// Every code, for a reader of another process's code.
    const ALL: [Self; 9] = [
        Self::Stopped,
        Self::Failed,
        Self::Usage,
        Self::Schema,
        Self::GaveUp,
        Self::Unwell,
        Self::CannotCreate,
        Self::Temporary,
        Self::Config,
    ];

    /// The code with this number; a number that is none is a failure all the same.
    pub fn of_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|&code| code as u8 == number).unwrap_or(Self::Failed)
    }
}

/// An error with an exit code. The message says what failed and what to do next.
#[derive(Debug)]
pub struct Failure {
    pub code: Code,
    message: String,
    reasons: Vec<Reason>,
}

impl Failure {
    /// A failure that ends the process with `code`; `message` is for a person.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), reasons: Vec::new() }
    }

    /// A failure for several reasons at once, whose `message` tells them all.
    pub fn for_reasons(code: Code, message: impl Into<String>, reasons: Vec<Reason>) -> Self {
        Self { reasons, ..Self::new(code, message) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The exit code that `error` asks for: that of the first [`Failure`] in its chain, else [`Code::CannotCreate`] for a full
/// disk, which can stop any write, [`Code::Temporary`] for a server that starts or recovers, else [`Code::Failed`].
pub fn code_of(error: &anyhow::Error) -> Code {
    // anyhow hides a context value from `chain()`'s downcasts but not from its own.
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.code;
    }
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    failure.map_or_else(|| code_of_cause(error), |failure| failure.code)
}

fn code_of_cause(error: &anyhow::Error) -> Code {
    if is_disk_full(error) {
        return Code::CannotCreate;
    }
    match sql_state(error).as_deref() {
        Some(CANNOT_CONNECT_NOW) => Code::Temporary,
        _ => Code::Failed,
    }
}

/// The reasons of an error that has several; none of one that is a sentence by itself.
pub fn reasons_of(error: &anyhow::Error) -> &[Reason] {
    error.downcast_ref::<Failure>().map_or(&[], |failure| &failure.reasons)
}

/// Whether a full disk or a used-up quota is the cause, here or where the database server writes.
pub fn is_disk_full(error: &anyhow::Error) -> bool {
    let no_room = |cause: &(dyn std::error::Error + 'static)| {
        let own = cause.downcast_ref::<io::Error>().and_then(NoRoom::of);
        own.or_else(|| words::no_room_answered(cause)).is_some()
    };
    error.chain().any(no_room)
}

/// Add a full disk or a used-up quota as the cause of `error` if what the program `said` reports it.
pub fn with_disk_full(error: anyhow::Error, said: &str) -> anyhow::Error {
    match NoRoom::said(said) {
        Some(why) => anyhow::Error::new(why.as_error()).context(error),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn every_code_is_found_by_its_number() {
        assert!(Code::ALL.into_iter().all(|code| Code::of_number(code as u8) == code));
        assert_eq!(Code::of_number(2), Code::Failed);
    }

    #[test]
    fn a_failure_keeps_its_code_under_and_as_context() {
        let under: anyhow::Result<()> = Err(Failure::new(Code::CannotCreate, "no").into());
        assert_eq!(code_of(&under.context("create data directory").unwrap_err()), Code::CannotCreate);
        let as_context: anyhow::Result<()> =
            Err(std::io::Error::other("disk")).context(Failure::new(Code::Temporary, "later"));
        assert_eq!(code_of(&as_context.unwrap_err()), Code::Temporary);
        assert_eq!(code_of(&anyhow::anyhow!("other")), Code::Failed);
        let full =
            anyhow::Error::new(std::io::Error::from(std::io::ErrorKind::StorageFull)).context("write the launcher");
        assert_eq!(code_of(&full), Code::CannotCreate);
    }
}
