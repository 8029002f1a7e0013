//! The units of systemd: those of `config/systemd/` and the one that `tandem init --systemd` writes, from one text. Pure.

use std::fmt::Write as _;

/// Where a service of a system keeps what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In directories that systemd makes for it; the rest of the file system is closed, the application's directory excepted.
    OfSystem,
    /// Beside the configuration, wherever that is, and in the user's own cache.
    Beside,
}

/// One service.
#[derive(Clone, Debug)]
pub struct Service<'a> {
    pub description: &'a str,
    pub user: &'a str,
    /// The project's directory.
    pub dir: &'a str,
    pub program: &'a str,
    pub place: Place,
    /// Whether a socket unit of the same name holds the port.
    pub has_socket: bool,
}

/// What `config/systemd/tandem.service` says.
pub const PACKAGED: Service<'static> = Service {
    description: "The application and its PostgreSQL",
    user: "backend",
    dir: "/srv/backend",
    program: "/usr/local/bin/tandem",
    place: Place::OfSystem,
    has_socket: true,
};

/// What `config/systemd/tandem.socket` says.
pub const SOCKET: &str = "# systemd holds the port: even a restart of Tandem refuses no connection.
[Unit]
Description=The application's port

[Socket]
ListenStream=127.0.0.1:8000
FileDescriptorName=app

[Install]
WantedBy=sockets.target
";

/// What no Tandem needs, whatever the application is. The application itself may: a line less is no harm to Tandem.
/// MemoryDenyWriteExecute= is missing, because PostgreSQL compiles queries and Python's ctypes makes functions.
const CLOSED: &str = "NoNewPrivileges=yes
LockPersonality=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0027
";

/// systemd takes `%` for a specifier (systemd.unit(5)).
fn plain(text: &str) -> String {
    text.replace('%', "%%")
}

/// A word of a command line (systemd.service(5), "Command lines"): as it is where nothing in it has a meaning.
fn word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+".contains(letter);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("\"{}\"", plain(text).replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$"))
}

/// The unit of `service`.
pub fn unit(service: &Service<'_>) -> String {
    let Service { description, user, dir, program, place, has_socket } = service;
    let (description, dir, program) = (plain(description), plain(dir), word(program));
    let mut text = format!("[Unit]\nDescription={description}\n");
    text += if *has_socket {
        "Requires=tandem.socket\nAfter=network.target tandem.socket\n"
    } else {
        "After=network.target\n"
    };
    let _ = write!(
        text,
        "# It is tried again for ever, and not where the configuration or the database must be mended first (64, 65, 78).\n\
         StartLimitIntervalSec=0\n\n\
         [Service]\nType=notify\nNotifyAccess=main\nUser={user}\nWorkingDirectory={dir}\n\
         ExecStart={program} up\nExecReload={program} reload\n\
         Restart=on-failure\nRestartSec=2\nRestartPreventExitStatus=64 65 78\n\
         # Tandem extends these where a start, a reload or a stop takes longer.\n\
         TimeoutStopSec=60\nWatchdogSec=30\n\
         # Tandem stops its processes in order, and replaces a worker that the kernel took for want of memory.\n\
         KillMode=mixed\nOOMPolicy=continue\n\
         # Secrets are files that only Tandem gets (docs/operations.md, \"Secrets from files\"):\n\
         # LoadCredential=tandem.postgres.password:/etc/tandem/password\n\n"
    );
    text += &match place {
        Place::OfSystem => format!(
            "# What is written lies in /var/lib/tandem and /var/cache/tandem, and where the application is.\n\
             StateDirectory=tandem\nCacheDirectory=tandem\n\
             Environment=TANDEM_STATE_DIR=/var/lib/tandem TANDEM_CACHE_DIR=/var/cache/tandem\n\
             ProtectSystem=strict\nReadWritePaths={dir}\nProtectHome=yes\nPrivateTmp=yes\n"
        ),
        Place::Beside => "ProtectSystem=full\n".to_owned(),
    };
    text += CLOSED;
    // As root it changes to other users for PostgreSQL and the workers.
    if *user != "root" {
        text += "CapabilityBoundingSet=\n";
    }
    text += "\n[Install]\nWantedBy=multi-user.target\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_that_mean_something_to_systemd_are_taken_for_themselves() {
        let dir = "/home/a b/100%\"$x\\";
        let service = Service {
            description: "It's 100%",
            user: "me",
            dir,
            program: dir,
            place: Place::Beside,
            has_socket: false,
        };
        let text = unit(&service);
        assert!(
            text.contains("\nDescription=It's 100%%\n") && text.contains("\nWorkingDirectory=/home/a b/100%%\"$x\\\n"),
            "{text}"
        );
        assert!(text.contains("\nExecStart=\"/home/a b/100%%\\\"$$x\\\\\" up\n"), "{text}");
        let has_none = |user| unit(&Service { user, ..PACKAGED }).contains("\nCapabilityBoundingSet=\n");
        assert!(has_none("backend") && !has_none("root"), "root changes to other users");
    }
}
