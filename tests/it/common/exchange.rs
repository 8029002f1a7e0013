//! One plain request over any stream, and its answer.

use std::io::{self, Read, Write};

/// An answer: its head as it came, and its body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// `GET path` with more `headers`, each with its line's end, on a stream that is closed after it.
///
/// # Errors
/// The stream's; `InvalidData` for what is no answer.
pub fn get(mut stream: impl Read + Write, path: &str, headers: &str) -> io::Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // TLS without a last word; the body's length is looked at below.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        read => drop(read?),
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("not an answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(wrong)?;
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
    if length.is_some_and(|length| length != body.len()) {
        return Err(wrong());
    }
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
