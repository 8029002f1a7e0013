//! `tandem docs`

use crate::book::{self, PAGES, Page};
use crate::commands::running::say;
use crate::exit::{Code, Failure};

/// A name that is less like the one that was written is not worth a suggestion.
const LIKENESS_MIN: f64 = 0.6;

/// Print the list of pages, a page, or a section of it. A section may be asked for without its page.
///
/// # Errors
/// There is no such page or section.
pub fn run(page: Option<&str>, section: Option<&str>) -> anyhow::Result<Code> {
    let Some(wanted) = page else {
        say(&contents())?;
        return Ok(Code::Stopped);
    };
    // As a link has them: troubleshooting.md#a-port-is-taken
    let (wanted, section) = wanted.split_once('#').map_or((wanted, section), |(page, anchor)| (page, Some(anchor)));
    let text = match (book::page(wanted.trim_end_matches(".md")), section) {
        (Some(page), None) => page.text,
        (Some(page), Some(section)) => section_of(page, section)?,
        (None, _) => {
            let found = PAGES.iter().find_map(|page| book::section(page.text, &book::anchor(wanted)));
            found.ok_or_else(|| unknown("page", wanted, PAGES.iter().map(|page| page.name.to_owned()).collect()))?
        }
    };
    say(text.trim_end())?;
    Ok(Code::Stopped)
}

fn contents() -> String {
    let width = PAGES.iter().map(|page| page.name.len()).max().unwrap_or_default();
    let pages: Vec<_> =
        PAGES.iter().map(|page| format!("  {:width$}  {}", page.name, book::title(page.text))).collect();
    format!("Pages, for `tandem docs PAGE`:\n\n{}", pages.join("\n"))
}

fn section_of(page: &'static Page, wanted: &str) -> Result<&'static str, Failure> {
    let text = page.text;
    let all = || book::headings(text).iter().map(|(_, _, words)| book::anchor(words)).collect();
    book::section(text, &book::anchor(wanted))
        .ok_or_else(|| unknown(&format!("section of {}", page.name), wanted, all()))
}

fn unknown(what: &str, wanted: &str, all: Vec<String>) -> Failure {
    let likeness = |name: &String| strsim::normalized_damerau_levenshtein(name, wanted);
    let closest = all.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    let help = match closest.filter(|name| likeness(name) >= LIKENESS_MIN) {
        Some(name) => format!("did you mean {name}?"),
        None => format!("there are {}", all.join(", ")),
    };
    Failure::new(Code::Usage, format!("{wanted:?} is no {what}: {help}"))
}
