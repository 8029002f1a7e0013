//! The lines that come from a child.

use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::time::timeout;

/// Longest line kept whole, in bytes; a longer one is cut into several.
const LINE_LENGTH_MAX: usize = 64 * 1024;
/// How long text may wait for the end of its line before it is shown without.
const UNENDED_LIMIT: Duration = Duration::from_millis(500);

/// How long the lines of one stream may keep the event loop before other tasks get a turn: a flood of them comes as fast as it
/// is handed on, and a stream that always has something to read waits for nothing.
const LINES_TURN: Duration = Duration::from_millis(2);

/// Hand each line of `stream` to `on_line`, without its line end, until the stream ends.
pub async fn lines(stream: impl AsyncRead + Unpin, on_line: impl FnMut(&str)) {
    read(stream, None, on_line).await;
}

/// As [`lines`], for a person who reads along: text whose line does not end, such as a prompt, comes after a moment, and
/// what follows it as a line of its own.
pub async fn live_lines(stream: impl AsyncRead + Unpin, on_line: impl FnMut(&str)) {
    read(stream, Some(UNENDED_LIMIT), on_line).await;
}

async fn read(stream: impl AsyncRead + Unpin, patience: Option<Duration>, mut on_line: impl FnMut(&str)) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    // Whether the text that is there was looked at already, and is the beginning of a character.
    let mut is_looked_at = false;
    // Whether the beginning of the line was handed over already.
    let mut is_begun = false;
    let mut turn = Instant::now();
    loop {
        if turn.elapsed() > LINES_TURN {
            tokio::task::yield_now().await;
            turn = Instant::now();
        }
        let more = match patience.filter(|_| !line.is_empty() && !is_looked_at) {
            Some(patience) => timeout(patience, reader.fill_buf()).await,
            None => Ok(reader.fill_buf().await),
        };
        let Ok(more) = more else {
            is_begun |= give(&mut line, &mut on_line);
            is_looked_at = true;
            continue;
        };
        is_looked_at = false;
        let more = more.unwrap_or_default();
        if more.is_empty() {
            if !line.is_empty() {
                on_line(&String::from_utf8_lossy(&line));
            }
            return;
        }
        let room = LINE_LENGTH_MAX - line.len();
        let end = memchr::memchr(b'\n', more).map_or(more.len(), |end| end + 1).min(room);
        line.extend_from_slice(&more[..end]);
        reader.consume(end);
        if line.ends_with(b"\n") {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\n', '\r']);
            if !is_begun || !text.is_empty() {
                on_line(text);
            }
            line.clear();
            is_begun = false;
        } else if line.len() == LINE_LENGTH_MAX {
            is_begun |= give(&mut line, &mut on_line);
        }
    }
}

/// Hand over what there is of the line, without the beginning of a character at its end, which stays. Whether it was any.
fn give(line: &mut Vec<u8>, on_line: &mut impl FnMut(&str)) -> bool {
    let whole = line.len() - begun_character(line);
    if whole > 0 {
        on_line(String::from_utf8_lossy(&line[..whole]).trim_end_matches('\r'));
        line.drain(..whole);
    }
    whole > 0
}

/// How many bytes at the end of `text` are the beginning of a character in UTF-8 that is not whole.
fn begun_character(text: &[u8]) -> usize {
    let found = text.iter().rev().take(3).position(|byte| byte & 0b1100_0000 != 0b1000_0000);
    let Some(there) = found.map(|more| more + 1) else { return 0 };
    let length = match text[text.len() - there] {
        0b1100_0000..=0b1101_1111 => 2,
        0b1110_0000..=0b1110_1111 => 3,
        0b1111_0000..=0b1111_0111 => 4,
        _ => 1,
    };
    if there < length { there } else { 0 }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn of(bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        lines(bytes, |line| found.push(line.to_owned())).await;
        found
    }

    #[tokio::test]
    async fn a_long_line_is_cut_between_characters_and_nothing_is_lost() {
        for character in ["a", "é", "日", "🦀"] {
            for before in 0..4 {
                let long = format!("{}{}", "x".repeat(before), character.repeat(100_000 / character.len()));
                let found = of(format!("{long}\r\nnext\nlast").as_bytes()).await;
                let (parts, rest) = found.split_at(found.len() - 2);
                assert_eq!(rest, ["next", "last"]);
                assert_eq!(parts.concat(), long);
                assert_eq!(parts.len(), long.len().div_ceil(LINE_LENGTH_MAX));
            }
        }
        // What is no text is shown as such, whole all the same.
        let broken =
            of(&[&[0x80; 70_000][..], b"\n", &[b'x'; LINE_LENGTH_MAX - 1], &[0xff, b'y', b'\n']].concat()).await;
        assert_eq!(broken.iter().map(|line| line.chars().count()).collect::<Vec<_>>(), [65_536, 4464, 65_536, 1]);
        assert_eq!(of(&[&vec![b'z'; LINE_LENGTH_MAX][..], b"\n"].concat()).await, ["z".repeat(LINE_LENGTH_MAX)]);
    }

    #[tokio::test]
    async fn a_flood_of_lines_leaves_others_their_turns() {
        let flood = "a line of the flood\n".repeat(20_000);
        let (mut seen, done, mut longest) = (0, std::cell::Cell::new(false), Duration::ZERO);
        let read = async {
            lines(flood.as_bytes(), |_| {
                seen += 1;
                let began = Instant::now();
                while began.elapsed() < Duration::from_micros(20) {}
            })
            .await;
            done.set(true);
        };
        // Their first turn comes after the first of the reading.
        let mut before = Instant::now();
        let others = async {
            loop {
                longest = longest.max(before.elapsed());
                before = Instant::now();
                if done.get() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(read, others);
        assert_eq!(seen, 20_000);
        // All of it takes 400 ms and more.
        assert!(longest < Duration::from_millis(200), "{longest:?}");
    }

    #[test]
    fn only_the_beginning_of_a_character_is_held_back() {
        let text = "aé日🦀";
        for end in 0..=text.len() {
            let there = &text.as_bytes()[..end];
            assert_eq!(begun_character(there), end - text.floor_char_boundary(end), "{end}");
        }
        for other in [&b"\xff"[..], b"a\x80", b"\x80\x80\x80\x80", b""] {
            assert_eq!(begun_character(other), 0, "{other:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn text_without_an_end_is_shown_after_a_moment() {
        let (mut writer, reader) = tokio::io::duplex(1024);
        let shown = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let seen = shown.clone();
        let reading = live_lines(reader, move |line| seen.borrow_mut().push(line.to_owned()));
        let writing = async {
            writer.write_all("Password: \u{65e5}".as_bytes().split_last().unwrap().1).await.unwrap();
            tokio::time::sleep(UNENDED_LIMIT * 3).await;
            assert_eq!(*shown.borrow(), ["Password: "]);
            writer.write_all(&"\u{65e5}".as_bytes()[2..]).await.unwrap();
            writer.write_all(b"!\nand ").await.unwrap();
            tokio::time::sleep(UNENDED_LIMIT / 2).await;
            writer.write_all(b"more\n").await.unwrap();
            drop(writer);
        };
        tokio::join!(reading, writing);
        assert_eq!(*shown.borrow(), ["Password: ", "\u{65e5}!", "and more"]);
    }
}
