//! How bad a finding is, and what the worst one makes of the exit code. Pure.

use serde::Serialize;

use crate::exit::Code;

/// From the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Good to know, and nothing has to be done.
    Notice,
    /// It could not be looked at.
    Unknown,
    /// It works now, and may not for long.
    Warning,
    /// It does not work, or the data are in danger.
    Error,
}

impl Verdict {
    pub const ALL: [Self; 5] = [Self::Ok, Self::Notice, Self::Unknown, Self::Warning, Self::Error];

    /// As it is shown, in text and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Notice => "notice",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }

    /// The exit code of a `tandem doctor` whose worst verdict this is.
    pub fn code(self) -> Code {
        match self {
            Self::Ok | Self::Notice => Code::Stopped,
            Self::Unknown | Self::Warning => Code::Failed,
            Self::Error => Code::Unwell,
        }
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub verdict: Verdict,
    /// What was seen, in one sentence.
    pub evidence: String,
    /// What to do, as the beginning of a sentence or a command; `None` where nothing has to be done.
    pub next: Option<String>,
}

impl Finding {
    /// It is as it should be, and this is what was seen.
    pub fn ok(evidence: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, evidence: printable(&evidence.into()), next: None }
    }

    pub fn notice(evidence: impl Into<String>) -> Self {
        Self { verdict: Verdict::Notice, ..Self::ok(evidence) }
    }

    pub fn warning(evidence: impl Into<String>, next: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, ..Self::ok(evidence) }.then(next)
    }

    pub fn error(evidence: impl Into<String>, next: impl Into<String>) -> Self {
        Self { verdict: Verdict::Error, ..Self::ok(evidence) }.then(next)
    }

    pub fn unknown(evidence: impl Into<String>, next: impl Into<String>) -> Self {
        Self { verdict: Verdict::Unknown, ..Self::ok(evidence) }.then(next)
    }

    /// With the next step.
    pub fn then(self, next: impl Into<String>) -> Self {
        Self { next: Some(printable(&next.into())), ..self }
    }

    /// With another verdict.
    pub fn as_bad_as(self, verdict: Verdict) -> Self {
        Self { verdict, ..self }
    }
}

/// `text` without what would steer a terminal: names of tables, roles and files may hold anything. Lines stay.
fn printable(text: &str) -> String {
    let shown = |letter: char| if letter.is_control() && letter != '\n' { char::REPLACEMENT_CHARACTER } else { letter };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_steers_no_terminal() {
        assert_eq!(Finding::notice("a\u{1b}[2J\nb").evidence, "a\u{fffd}[2J\nb");
    }

    #[test]
    fn the_worst_verdict_makes_the_exit_code() {
        assert!(Verdict::ALL.is_sorted());
        let codes = Verdict::ALL.map(|verdict| verdict.code() as u8);
        assert_eq!(codes, [0, 0, 1, 1, 70]);
        assert_eq!(serde_json::to_value(Verdict::Warning).unwrap(), Verdict::Warning.word());
    }
}
