//! The documentation, as the binary carries it: its pages, their sections, and the section that explains a message.
//!
//! It is for somebody who has the binary and nothing else. Pure.

/// One page of `docs/`.
#[derive(Debug)]
pub struct Page {
    /// The file's name without `.md`.
    pub name: &'static str,
    /// Markdown.
    pub text: &'static str,
}

macro_rules! pages {
    ($($name:literal)*) => {
        &[$(Page { name: $name, text: include_str!(concat!("../docs/", $name, ".md")) }),*]
    };
}

/// Every page, in the order of the contents (`docs/SUMMARY.md`).
pub const PAGES: &[Page] = pages! {
    "start" "install" "configuration" "every-key" "uvicorn" "workers" "migrations" "backups" "tests" "operations" "commands"
    "systemd" "containers" "compose" "sqlite" "doctor" "troubleshooting" "how-it-works" "states" "promises"
};

/// What stands in a quoted message for text that differs from case to case.
const ANYTHING: char = '…';

/// A quote with fewer letters of its own fits too many messages.
const LETTERS_MIN: usize = 8;

/// The page called `name`.
pub fn page(name: &str) -> Option<&'static Page> {
    PAGES.iter().find(|page| page.name == name)
}

/// The page's title.
pub fn title(text: &str) -> &str {
    text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or_default()
}

/// The anchor of a heading, as mdBook and sites that show repositories make it.
pub fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect()
}

/// The headings of a page: the byte that each begins at, its level and its words.
pub fn headings(text: &str) -> Vec<(usize, usize, &str)> {
    let (mut found, mut at, mut in_code) = (Vec::new(), 0, false);
    for line in text.split_inclusive('\n') {
        in_code ^= line.trim_start().starts_with("```");
        let level = line.bytes().take_while(|byte| *byte == b'#').count();
        if level > 0 && !in_code {
            found.push((at, level, line[level..].trim()));
        }
        at += line.len();
    }
    found
}

/// The section of a page with this anchor, its heading and its subsections included.
pub fn section<'a>(text: &'a str, wanted: &str) -> Option<&'a str> {
    let headings = headings(text);
    let first = headings.iter().position(|(_, _, words)| anchor(words) == wanted)?;
    let (begin, level, _) = headings[first];
    let end = headings[first + 1..].iter().find(|(_, other, _)| *other <= level);
    Some(text[begin..end.map_or(text.len(), |(at, _, _)| *at)].trim_end())
}

/// The anchor of the section of `page` that explains `message`: the one with the longest quote (`> …`) that fits it.
pub fn explaining(page: &str, message: &str) -> Option<String> {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let (mut section, mut best) = ("", None);
    for line in page.lines() {
        if line.starts_with('#') {
            section = line.trim_start_matches('#');
        }
        let letters = line.strip_prefix("> ").and_then(|quote| fits(quote, &message));
        if letters > best.map(|(letters, _)| letters) {
            best = letters.map(|letters| (letters, section));
        }
    }
    best.map(|(_, section)| anchor(section))
}

/// How many letters of `quote` stand in `message`, if all its parts do, one after another, and are enough to tell it by.
fn fits(quote: &str, message: &str) -> Option<usize> {
    let (mut rest, mut letters) = (message, 0);
    let parts = quote.split(ANYTHING).map(|part| part.trim_matches(|letter: char| !letter.is_alphanumeric()));
    for part in parts.filter(|part| !part.is_empty()) {
        rest = &rest[rest.find(part)? + part.len()..];
        letters += part.chars().count();
    }
    (letters >= LETTERS_MIN).then_some(letters)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Page\n\n## One\n\n> `port … is taken`\n\n```sh\n# no heading\n```\n\n### Below it\n\n> `port … is taken by …: \
                        stop it`\n\n## The other's\n\n> `…: BAD`\n\nEnd.\n";

    #[test]
    fn a_section_ends_at_the_next_one_of_its_level() {
        assert_eq!(title(TEXT), "Page");
        assert_eq!(section(TEXT, "the-others"), Some("## The other's\n\n> `…: BAD`\n\nEnd."));
        let one = section(TEXT, "one").unwrap();
        assert!(one.contains("# no heading") && one.contains("Below it") && !one.contains("other"), "{one}");
        assert_eq!(section(TEXT, "no-heading"), None);
    }

    #[test]
    fn the_longest_quote_that_fits_explains_a_message() {
        let by = |message| explaining(TEXT, message);
        assert_eq!(by("start: port 8000 is taken").as_deref(), Some("one"));
        assert_eq!(by("port 8000 is taken by\n  python: stop it, or go").as_deref(), Some("below-it"));
        assert_eq!(by("is taken: port"), None, "in this order only");
        assert_eq!(by("a.sql: BAD"), None, "too short to tell a message by");
    }

    #[test]
    fn every_page_has_a_title() {
        assert!(PAGES.iter().all(|page| !title(page.text).is_empty()));
    }
}
