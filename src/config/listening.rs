//! Reads where a server listens. Pure.

use std::net::{Ipv4Addr, SocketAddr};

use super::value::{self, Raw};
use crate::plan::Place;

/// What stands before the path of a unix socket.
const UNIX: &str = "unix:";

/// One address and port: `127.0.0.1:8000`, `:8000` for every address, `8000` for this machine alone.
pub fn address(raw: &Raw) -> Option<Place> {
    let local = |port| Place::At(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    if let Some(port) = value::number(raw) {
        return Some(local(u16::try_from(port).ok()?));
    }
    let text = raw.as_text()?.trim();
    if let Ok(port) = text.parse() {
        return Some(local(port));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok()?;
    match host {
        "" | "*" => Some(Place::Every(port)),
        host => Some(Place::At(SocketAddr::new(value::ip(host)?, port))),
    }
}

/// One place, or a list of them: addresses, and unix sockets as `unix:/run/app.sock`.
pub fn places(raw: &Raw) -> Option<Vec<Place>> {
    let one = |text: &str| match text.trim().strip_prefix(UNIX) {
        Some("") => None,
        // As a URL has it.
        Some(path) if path.starts_with("///") => Some(Place::Unix(path.get(2..)?.into())),
        Some(path) => Some(Place::Unix(path.into())),
        None => address(&Raw::Word(text.to_owned())),
    };
    let texts = match raw {
        Raw::Integer(_) => return address(raw).map(|place| vec![place]),
        Raw::Text(text) => vec![text.clone()],
        other => value::list(other)?,
    };
    let places: Option<Vec<Place>> = texts.iter().map(|text| one(text)).collect();
    places.filter(|places| !places.is_empty())
}

/// A file's mode: octal digits, as chmod(1) takes them.
pub fn mode(raw: &Raw) -> Option<u32> {
    let text = raw.as_text()?.trim();
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777 && digits.len() >= 3)
}

/// The places as `tandem check` shows them.
pub fn text(places: &[Place]) -> String {
    match places {
        [one] => one.to_string(),
        several => format!("{:?}", several.iter().map(ToString::to_string).collect::<Vec<_>>()),
    }
}
