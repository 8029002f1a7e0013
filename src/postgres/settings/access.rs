//! Who gets in, and how: pg_hba.conf and pg_ident.conf, rendered. Pure.

use std::fmt::Write;
use std::net::IpAddr;

use super::{HEADER, SUPERUSER};

/// With TLS nothing that crosses a network comes in without it; what stays on this machine may.
pub(super) fn hba(listen: IpAddr, tls: bool) -> String {
    let beyond = if tls { "hostssl" } else { "host" };
    let mut text = format!("{HEADER}# The first line that fits decides.\n");
    let mut rule = |kind: &str, database: &str, user: &str, address: &str, method: &str| {
        let line = format!("{kind:<5} {database:<11} {user:<10} {address:<14} {method}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    rule("local", "all", SUPERUSER, "", "peer map=tandem");
    rule("local", "replication", SUPERUSER, "", "peer map=tandem");
    rule("local", "all", "all", "", "scram-sha-256");
    rule("host", "all", "all", "127.0.0.1/32", "scram-sha-256");
    rule("host", "all", "all", "::1/128", "scram-sha-256");
    match listen {
        IpAddr::V4(address) if !address.is_loopback() => rule(beyond, "all", "all", "0.0.0.0/0", "scram-sha-256"),
        IpAddr::V6(address) if !address.is_loopback() => rule(beyond, "all", "all", "::/0", "scram-sha-256"),
        _ => {}
    }
    text
}

pub(super) fn ident(users: &[String]) -> String {
    let mut text =
        format!("{HEADER}# Operating-system users that may be the database superuser over the unix socket.\n");
    for user in users {
        // A name that starts with a slash would be read as a regular expression.
        if !user.starts_with('/') && !user.contains(['"', '\n']) {
            let _ = writeln!(text, "tandem \"{user}\" {SUPERUSER}");
        }
    }
    text
}
