//! The outcome of all checks. Pure.

use std::time::Duration;

use serde::Serialize;

use super::checks::{CHECKS, Check, Group};
use super::facts::{Facts, Unseen};
use super::verdict::{Finding, Verdict};

/// What one check said.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    pub name: &'static str,
    pub group: Group,
    pub verdict: Verdict,
    /// The worst first.
    pub findings: Vec<Finding>,
    /// Why there was nothing to look at; `null` where there was.
    pub not_looked: Option<String>,
    /// The command that shows more.
    pub see: String,
}

impl Checked {
    fn by(check: &Check, facts: &Facts) -> Self {
        let (mut findings, not_looked) = match (check.judge)(facts) {
            Ok(findings) => (findings, None),
            Err(Unseen::Nothing(why)) => (Vec::new(), Some(why)),
            Err(Unseen::Unknown(why)) => (vec![Finding::unknown(why, "see to that, and ask again")], None),
        };
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
        let verdict = findings.first().map_or(Verdict::Ok, |worst| worst.verdict);
        let (page, section) = check.more;
        let see = format!("tandem docs {page} {section}");
        Self { name: check.name, group: check.group, verdict, findings, not_looked, see }
    }

    /// Whether this check, or the group that it is in, is called so.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.group.word() == name
    }
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// The worst of all.
    pub verdict: Verdict,
    pub tandem_version: &'static str,
    pub checks: Vec<Checked>,
    pub took_ms: u64,
}

impl Diagnosis {
    /// What all checks say of `facts`, but those that are to be left out, by their names or their groups'.
    pub fn of(facts: &Facts, left_out: &[String], took: Duration) -> Self {
        let all = CHECKS.iter().map(|check| Checked::by(check, facts));
        let checks: Vec<Checked> = all.filter(|checked| !left_out.iter().any(|name| checked.is_called(name))).collect();
        let verdict = checks.iter().map(|checked| checked.verdict).max().unwrap_or(Verdict::Ok);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Self { verdict, tandem_version: env!("CARGO_PKG_VERSION"), checks, took_ms }
    }

    /// For people: what is not well, the worst last, as a terminal shows the last lines; with `all` what is well too.
    pub fn text(&self, all: bool) -> String {
        let mut shown: Vec<&Checked> =
            self.checks.iter().filter(|checked| all || checked.verdict > Verdict::Ok).collect();
        shown.sort_by_key(|checked| checked.verdict);
        let mut lines = Vec::new();
        for checked in shown {
            lines.extend(checked.lines(all));
        }
        lines.push(self.sum());
        lines.join("\n")
    }

    fn sum(&self) -> String {
        let count = |verdict: Verdict| self.checks.iter().filter(|checked| checked.verdict == verdict).count();
        let parts = Verdict::ALL.into_iter().rev().filter(|verdict| count(*verdict) > 0).map(|verdict| {
            let (count, word) = (count(verdict), verdict.word());
            match (verdict, count) {
                (Verdict::Ok | Verdict::Unknown, _) | (_, 1) => format!("{count} {word}"),
                _ => format!("{count} {word}s"),
            }
        });
        format!("{} checks: {}", self.checks.len(), parts.collect::<Vec<_>>().join(", "))
    }
}

impl Checked {
    fn lines(&self, all: bool) -> Vec<String> {
        const INDENT: &str = "         ";
        let head = |word: &str, text: &str| format!("{word:<8} {}: {text}", self.name);
        if let Some(why) = &self.not_looked {
            return vec![head("-", why)];
        }
        let shown = self.findings.iter().filter(|finding| all || finding.verdict > Verdict::Ok);
        let mut lines = Vec::new();
        for finding in shown {
            lines.push(head(finding.verdict.word(), &finding.evidence.replace('\n', &format!("\n{INDENT}"))));
            lines.extend(finding.next.as_ref().map(|next| format!("{INDENT}next: {next}")));
        }
        if lines.is_empty() {
            return vec![head("ok", "nothing found")];
        }
        if self.verdict > Verdict::Notice {
            lines.push(format!("{INDENT}see: {}", self.see));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Session;

    #[test]
    fn the_worst_stands_last_with_its_next_step_and_the_sum_below() {
        let idle =
            Session { pid: 7, state: "idle in transaction".into(), idle: 400.0, age: 400.0, ..Session::default() };
        let diagnosis = Diagnosis::of(&Facts::of_sessions(vec![idle]), &[], Duration::from_millis(3));
        assert_eq!((diagnosis.verdict, diagnosis.took_ms), (Verdict::Warning, 3));
        let text = diagnosis.text(false);
        let last: Vec<&str> = text.lines().rev().take(4).collect();
        assert!(last[0].ends_with(" ok") && last[0].contains(" checks: 1 warning, "), "{text}");
        assert_eq!(last[1], "         see: tandem docs doctor the-database-server");
        assert!(last[2].starts_with("         next: SELECT pg_terminate_backend(7)"), "{text}");
        assert!(last[3].starts_with("warning  transactions: a session (pid 7"), "{text}");
        assert!(diagnosis.text(true).contains("-        disk: this is a test"), "{}", diagnosis.text(true));
        let fewer = Diagnosis::of(&Facts::of_sessions(Vec::new()), &["server".into(), "disk".into()], Duration::ZERO);
        assert!(fewer.checks.iter().all(|it| it.group != Group::Server && it.name != "disk"));
    }
}
