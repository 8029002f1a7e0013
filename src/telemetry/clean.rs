//! Removes from a text what would control a terminal. Pure.
//!
//! A child's output, and errors that quote it, can hold text of any origin: a request's path in an access log can move the
//! cursor, rename the window or print a line that looks like Tandem's.

use std::borrow::Cow;

/// Whether colours (SGR, `ESC [ … m`) stay in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    /// Colours stay, and are reset at the end of the text.
    Keep,
    Drop,
}

/// `text` without escape sequences and control characters, tabs excepted; line breaks become spaces.
pub(super) fn clean(text: &str, colours: Colours) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut coloured = false;
    let mut rest = text;
    while let Some(at) = rest.find(steers) {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let (sequence, after) = rest.split_at(sequence_length(rest));
        if is_colour(sequence) {
            if colours == Colours::Keep {
                kept.push_str(sequence);
                coloured = true;
            }
        } else if matches!(sequence, "\n" | "\r" | "\x0b" | "\x0c" | "\u{85}" | "\u{2028}" | "\u{2029}") {
            kept.push(' ');
        }
        rest = after;
    }
    kept.push_str(rest);
    if coloured {
        kept.push_str("\x1b[0m");
    }
    Cow::Owned(kept)
}

/// As [`clean`], of a text whose line breaks stay.
pub(super) fn clean_lines(text: &str, colours: Colours) -> String {
    let lines: Vec<_> = text.lines().map(|line| clean(line, colours)).collect();
    lines.join("\n")
}

/// An object of JSON, on one line, with its meaning as it is: what would control a terminal is written by its number.
pub(super) fn clean_json(object: &str) -> Cow<'_, str> {
    if !object.contains(steers) {
        return Cow::Borrowed(object);
    }
    let mut kept = String::with_capacity(object.len());
    for letter in object.chars() {
        match letter {
            // Inside a text JSON has none of these as they are.
            '\0'..'\x20' => kept.push(' '),
            letter if steers(letter) => kept.push_str(&format!("\\u{:04x}", u32::from(letter))),
            letter => kept.push(letter),
        }
    }
    Cow::Owned(kept)
}

/// Whether a terminal may do something else with `letter` than show it: control characters, and marks that change the
/// reading direction.
pub fn steers(letter: char) -> bool {
    (letter.is_control() && letter != '\t')
        || matches!(letter, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// The length in bytes of the control sequence that `text` begins with (ECMA-48).
fn sequence_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let run = |from: usize, range: std::ops::RangeInclusive<u8>| {
        bytes.iter().skip(from).take_while(|byte| range.contains(byte)).count()
    };
    match bytes {
        [0x1b, b'[', ..] => {
            let parameters = 2 + run(2, 0x30..=0x3f);
            let intermediates = parameters + run(parameters, 0x20..=0x2f);
            intermediates + bytes.get(intermediates).filter(|byte| (0x40..=0x7e).contains(*byte)).map_or(0, |_| 1)
        }
        // A string for the terminal (title, clipboard), up to BEL or ESC \; one without an end loses its begin only.
        [0x1b, b']' | b'P' | b'X' | b'^' | b'_', ..] => {
            let bell = text.find('\x07').map(|at| at + 1);
            let end = text.find("\x1b\\").map(|at| at + 2);
            bell.into_iter().chain(end).min().unwrap_or(2)
        }
        [0x1b, ..] => {
            let intermediates = 1 + run(1, 0x20..=0x2f);
            intermediates + bytes.get(intermediates).filter(|byte| (0x30..=0x7e).contains(*byte)).map_or(0, |_| 1)
        }
        _ => text.chars().next().map_or(0, char::len_utf8),
    }
}

fn is_colour(sequence: &str) -> bool {
    sequence
        .strip_prefix("\x1b[")
        .and_then(|rest| rest.strip_suffix('m'))
        .is_some_and(|numbers| numbers.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b';' | b':')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colours_survive_and_only_where_they_are_wanted() {
        // (text, without colours, with colours)
        let table = [
            ("plain\twith tab, Grüße, 日本", "plain\twith tab, Grüße, 日本", "plain\twith tab, Grüße, 日本"),
            ("\x1b[31mred\x1b[0m", "red", "\x1b[31mred\x1b[0m\x1b[0m"),
            ("\x1b[1;38:2:1:2:3mx", "x", "\x1b[1;38:2:1:2:3mx\x1b[0m"),
            ("\x1b[mx", "x", "\x1b[mx\x1b[0m"),
            // Cursor movement, clear, private modes, `m` with a private mark.
            ("a\x1b[2Jb\x1b[1;1Hc\x1b[?1049hd\x1b[>4me", "abcde", "abcde"),
            // Title and clipboard.
            ("a\x1b]0;title\x07b\x1b]52;c;AAAA\x1b\\c", "abc", "abc"),
            ("a\x1b]0;never ends", "a0;never ends", "a0;never ends"),
            ("a\x1bPq data\x1b\\b", "ab", "ab"),
            // Reset, character set, a lone escape, one cut off.
            ("a\x1bcb\x1b(Bc\x1b", "abc", "abc"),
            ("a\x1b[", "a", "a"),
            ("a\x1b[31", "a", "a"),
            ("a\x1b[3\x1b[31mb", "ab", "a\x1b[31mb\x1b[0m"),
            ("a\x1b[31é", "aé", "aé"),
            ("a\x1bé", "aé", "aé"),
            // Overwriting what stands there.
            ("10%\r20%\x08\x00\x7f", "10% 20%", "10% 20%"),
            ("one\ntwo\u{2028}three", "one two three", "one two three"),
            // 8-bit control sequence introducer, and reading direction.
            ("a\u{9b}31mb\u{202e}c\u{2066}d\u{200f}", "a31mbcd", "a31mbcd"),
            ("\x1b", "", ""),
            ("", "", ""),
        ];
        for (text, dropped, kept) in table {
            assert_eq!(clean(text, Colours::Drop), dropped, "{text:?}");
            assert_eq!(clean(text, Colours::Keep), kept, "{text:?}");
        }
    }

    #[test]
    fn json_keeps_its_meaning_and_steers_nothing() {
        let object = "{\"a\":\t\"b\u{9b}31m\u{202e}c\\u001b[31m\"}\r";
        let shown = clean_json(object);
        assert_eq!(shown, "{\"a\": \"b\\u009b31m\\u202ec\\u001b[31m\"} ");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&shown), value(object));
    }

    #[test]
    fn whatever_comes_in_nothing_that_steers_goes_out() {
        // Every text of four letters from those that mean something to the parser.
        let letters = ['\x1b', '[', ']', 'm', '3', ';', '\x07', '\\', ' ', 'é', '\u{9b}', '\r', '?'];
        let count = letters.len();
        for number in 0..count.pow(4) {
            let text: String = (0..4).map(|digit| letters[number / count.pow(digit) % count]).collect();
            assert!(!clean(&text, Colours::Drop).contains(steers), "{text:?}");
            let kept = clean(&text, Colours::Keep).into_owned();
            assert!(kept.split('\x1b').skip(1).all(|part| part.starts_with('[') && part.contains('m')), "{text:?}");
        }
    }
}
