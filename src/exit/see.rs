//! Where the documentation tells more of an error. No place that makes an error knows this: the troubleshooting page quotes
//! what Tandem says, and the quote that fits leads to its section; else the exit code does.

use super::{Code, code_of};
use crate::book;

/// The page that explains errors.
pub const PAGE: &str = "troubleshooting";

/// An error of more lines needs an explanation, whatever it is.
const LINES_MAX: usize = 2;

/// The command that shows more of `error`, whose words are `text`.
pub fn see(error: &anyhow::Error, text: &str) -> Option<String> {
    let page = book::page(PAGE)?;
    let by_code = || section_of(code_of(error)).or_else(|| (text.lines().count() > LINES_MAX).then_some("exit-code-1"));
    let section = book::explaining(page.text, text).or_else(|| by_code().map(str::to_owned))?;
    Some(format!("tandem docs {PAGE} {section}"))
}

/// The section of an exit code that says what to do next.
fn section_of(code: Code) -> Option<&'static str> {
    match code {
        Code::Stopped | Code::Failed | Code::Usage | Code::Unwell => None,
        Code::Schema => Some("exit-code-65"),
        Code::GaveUp => Some("exit-code-69"),
        Code::CannotCreate => Some("exit-code-73"),
        Code::Temporary => Some("exit-code-75"),
        Code::Config => Some("exit-code-78"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Failure;

    #[test]
    fn every_kind_of_failure_has_a_section_that_is_there() {
        let page = book::page(PAGE).unwrap();
        for code in Code::ALL {
            let expected = !matches!(code, Code::Stopped | Code::Failed | Code::Usage | Code::Unwell);
            assert_eq!(section_of(code).is_some(), expected, "{code:?}");
            if let Some(section) = section_of(code) {
                assert!(book::section(page.text, section).is_some(), "{PAGE} has no section {section}");
            }
        }
        assert!(book::section(page.text, "exit-code-1").is_some());
    }

    #[test]
    fn an_error_leads_to_what_explains_it_best() {
        let see = |code, text: &str| see(&Failure::new(code, text).into(), text);
        let shows = |section: &str| Some(format!("tandem docs {PAGE} {section}"));
        let port = "port 8000 is taken by python (pid 7): stop it, or set workers.listen";
        assert_eq!(see(Code::Temporary, port), shows("a-port-is-taken"));
        assert_eq!(see(Code::Temporary, "something else"), shows("exit-code-75"));
        assert_eq!(see(Code::Failed, "one line"), None);
        assert_eq!(see(Code::Failed, "one\ntwo\nthree"), shows("exit-code-1"));
        assert_eq!(see(Code::Usage, "no such thing"), None);
    }
}
