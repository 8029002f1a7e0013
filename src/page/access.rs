//! Who gets the page: what a browser prefers, the name by which it asks, the password that it gives. Pure.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::{ACCEPT, AUTHORIZATION, HOST, HeaderName};
use hyper::http::Uri;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::plan::Secret;

/// Sent by browsers: how the page that asks is related to this one (Fetch Metadata, W3C).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whether HTML is wanted rather than JSON. A browser names `text/html`; tools and probes name nothing, or `*/*`.
pub fn prefers_html(headers: &HeaderMap) -> bool {
    let all: Vec<_> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let quality = |wanted: &str| {
        let entries = all.iter().flat_map(|value| value.split(','));
        let fitting = entries.filter_map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let is_it = parts.next()?.eq_ignore_ascii_case(wanted);
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            is_it.then(|| quality.map_or(Some(1.0), |quality| quality.parse::<f32>().ok()).unwrap_or(0.0))
        });
        fitting.fold(None, |best: Option<f32>, one| Some(best.map_or(one, |best| best.max(one))))
    };
    let html = quality("text/html").or_else(|| quality("application/xhtml+xml")).unwrap_or(0.0);
    html > 0.0 && html >= quality("application/json").unwrap_or(0.0)
}

/// Whether the name by which the page is asked for is one of this server's: an address, `localhost`, or one of `names`.
///
/// A page of somebody else's can let its own name lead here (DNS rebinding), and would then be of the same origin.
pub fn is_known_host(headers: &HeaderMap, uri: &Uri, names: &[String]) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (uri.authority(), hosts.next(), hosts.next()) {
        (Some(authority), _, _) => authority.as_str().to_owned(),
        (None, Some(host), None) => host.to_str().unwrap_or_default().to_owned(),
        (None, _, _) => return false,
    };
    let Some(name) = name_of(&host) else { return false };
    let is_address = name.parse::<IpAddr>().is_ok();
    let is_local = name == "localhost" || name.ends_with(".localhost");
    is_address || is_local || names.iter().any(|one| one.trim_end_matches('.').eq_ignore_ascii_case(&name))
}

/// The name in `host`, without port and brackets, in lower case.
fn name_of(host: &str) -> Option<String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let port = port.strip_prefix(':').unwrap_or(port);
    let is_port = port.chars().all(|digit| digit.is_ascii_digit());
    (is_port && !name.is_empty()).then(|| name.trim_end_matches('.').to_ascii_lowercase())
}

/// Whether another site's page asks. Its events would take the place of those of people who look.
pub fn is_of_another_site(headers: &HeaderMap) -> bool {
    headers.get(FETCH_SITE).is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"))
}

/// Whether the request gives `password`: as `Basic`, with any user name, or as `Bearer`.
pub fn is_let_in(headers: &HeaderMap, password: &Secret) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, rest) = value.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(rest.trim().as_bytes().to_vec());
        }
        let decoded = STANDARD.decode(rest.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
        let at = decoded.iter().position(|&byte| byte == b':')?;
        Some(decoded[at + 1..].to_vec())
    });
    // Digests have one length, so that the comparison tells none of the password's.
    let digest = |bytes: &[u8]| Sha256::digest(bytes);
    given.is_some_and(|given| digest(&given).ct_eq(&digest(password.expose().as_bytes())).into())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        values.iter().for_each(|value| {
            headers.append(name.clone(), HeaderValue::from_str(value).unwrap());
        });
        headers
    }

    #[test]
    fn browsers_get_html_and_all_others_json() {
        for (accept, html) in [
            (&[][..], false),
            (&["*/*"], false),
            (&["application/json"], false),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"], true),
            (&["text/html"], true),
            (&["TEXT/HTML; q=0.5, application/json; q=0.4"], true),
            (&["text/html;q=0.5, application/json"], false),
            (&["text/html;q=0"], false),
            (&["text/html;q=much"], false),
            (&["application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], false),
            (&["application/json;q=0.1", "text/html"], true),
            (&["text/plain;q=1,;;,"], false),
        ] {
            assert_eq!(prefers_html(&headers(ACCEPT, accept)), html, "{accept:?}");
        }
    }

    #[test]
    fn addresses_localhost_and_listed_names_are_known_and_no_others() {
        let names = ["status.example.org".to_owned()];
        let known = |hosts: &[&str], uri: &str| is_known_host(&headers(HOST, hosts), &uri.parse().unwrap(), &names);
        for host in [
            "127.0.0.1",
            "127.0.0.1:8001",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:8001",
            "localhost",
            "LOCALHOST:8001",
            "localhost.",
            "shop.localhost:1",
            "Status.Example.org:443",
            "status.example.org.",
        ] {
            assert!(known(&[host], "/"), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8001",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil-localhost",
            "x.status.example.org",
            "127.0.0.1:8001@evil.example",
            "localhost:evil",
            "[::1",
            "[::1]evil",
            ":8001",
        ] {
            assert!(!known(&[host], "/"), "{host}");
        }
        assert!(!known(&[], "/"), "HTTP/1.0 without a name");
        assert!(!known(&["localhost", "evil.example"], "/"), "two of them");
        assert!(known(&["evil.example"], "http://localhost/"), "what the request line says wins (RFC 9112, 3.2.2)");
        assert!(!known(&["localhost"], "http://evil.example/"));
    }

    #[test]
    fn another_sites_page_is_told_apart() {
        for (site, other) in [("same-origin", false), ("none", false), ("cross-site", true), ("same-site", true)] {
            assert_eq!(is_of_another_site(&headers(FETCH_SITE, &[site])), other, "{site}");
        }
        assert!(!is_of_another_site(&HeaderMap::new()), "curl, and old browsers");
    }

    #[test]
    fn the_password_lets_in_and_nothing_else() {
        let password = Secret::new("a long pass:word");
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        let lets = |value: &str| is_let_in(&headers(AUTHORIZATION, &[value]), &password);
        for good in [basic("tandem:a long pass:word"), basic(":a long pass:word"), "bearer a long pass:word".into()] {
            assert!(lets(&good), "{good}");
        }
        for bad in [
            basic("tandem:a long pass:wor"),
            basic("a long pass:word"),
            basic("tandem:"),
            basic(""),
            "Basic !!!".into(),
            "Basic".into(),
            "Digest a long pass:word".into(),
            "Bearer ".into(),
            String::new(),
        ] {
            assert!(!lets(&bad), "{bad}");
        }
        assert!(!is_let_in(&HeaderMap::new(), &password));
    }
}
