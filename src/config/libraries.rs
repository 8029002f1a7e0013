//! Shared libraries of the system, the packages that bring them, and what to do where PostgreSQL misses one. Pure but for
//! the name of the distribution.

/// What PostgreSQL says of a module whose libraries are not all there (its dfmgr.c), before the module's path.
const NOT_LOADED: &str = "could not load library \"";

/// A library, and the packages that bring it: Debian and Ubuntu, Fedora and RHEL.
const PACKAGES: &[(&str, &str, &str)] = &[
    ("libssl.so.3", "libssl3", "openssl-libs"),
    ("libcrypto.so.3", "libssl3", "openssl-libs"),
    ("libxml2.so.2", "libxml2", "libxml2"),
    ("libgssapi_krb5.so.2", "libgssapi-krb5-2", "krb5-libs"),
    ("libzstd.so.1", "libzstd1", "libzstd"),
    ("liblz4.so.1", "liblz4-1", "lz4-libs"),
    ("libz.so.1", "zlib1g", "zlib"),
    ("libreadline.so.8", "libreadline8", "readline"),
    ("libtinfo.so.6", "libtinfo6", "ncurses-libs"),
    ("libstdc++.so.6", "libstdc++6", "libstdc++"),
    ("libldap", "libldap-2.5-0", "openldap"),
    ("libpam.so.0", "libpam0g", "pam-libs"),
    ("libsystemd.so.0", "libsystemd0", "systemd-libs"),
    ("libuuid.so.1", "libuuid1", "libuuid"),
    ("libllvm", "libllvm", "llvm-libs"),
    ("libossp-uuid.so.16", "libossp-uuid16", "uuid"),
    ("libxslt.so.1", "libxslt1.1", "libxslt"),
    ("libtcl8.6.so", "libtcl8.6", "tcl"),
    ("libpython3.11.so", "libpython3.11", "python3.11-libs"),
    ("libpython3.12.so", "libpython3.12", "python3-libs"),
    ("libpython3.13.so", "libpython3.13", "python3-libs"),
    ("libperl.so.5.36", "libperl5.36", "perl-libs"),
    ("libperl.so.5.38", "libperl5.38", "perl-libs"),
    ("libperl.so.5.40", "libperl5.40", "perl-libs"),
    ("libselinux.so.1", "libselinux1", "libselinux"),
];

/// The families of Linux distributions whose package names we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    Debian,
    Fedora,
    Alpine,
    Other,
}

impl Distribution {
    /// Read from the content of os-release(5): `ID`, and `ID_LIKE` for the derived ones.
    pub fn of(release: &str) -> Self {
        let words: Vec<&str> = release
            .lines()
            .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
            .flat_map(|value| value.trim_matches('"').split_whitespace())
            .collect();
        let is = |names: &[&str]| words.iter().any(|word| names.contains(word));
        match () {
            () if is(&["debian", "ubuntu"]) => Self::Debian,
            () if is(&["fedora", "rhel", "centos", "amzn"]) => Self::Fedora,
            () if is(&["alpine"]) => Self::Alpine,
            () => Self::Other,
        }
    }

    /// The one that this system is.
    pub fn here() -> Self {
        Self::of(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    /// The package that brings the library `name`, if it is known.
    pub fn package(self, name: &str) -> Option<&'static str> {
        let (_, debian, fedora) = PACKAGES.iter().find(|(library, ..)| name.starts_with(library))?;
        match self {
            Self::Debian => Some(debian),
            Self::Fedora => Some(fedora),
            Self::Alpine | Self::Other => None,
        }
    }
}

/// The library `name`, and how it comes to this system.
pub fn way(name: &str) -> String {
    let distribution = Distribution::here();
    match (distribution, distribution.package(name)) {
        (Distribution::Debian, Some(package)) => format!("{name}: `apt-get install {package}`"),
        (Distribution::Fedora, Some(package)) => format!("{name}: `dnf install {package}`"),
        _ => format!("{name}: install the package that brings it"),
    }
}

/// What to do about the first module in `text` that PostgreSQL could not load for the want of a library.
pub fn hint(text: &str) -> Option<String> {
    let (_, after) = text.split_once(NOT_LOADED)?;
    let (path, why) = after.split_once("\": ")?;
    let (library, rest) = why.split_once(':')?;
    let is_missing = rest.trim_start().starts_with("cannot open shared object file") && library.contains(".so");
    let module = path.rsplit('/').next()?.trim_end_matches(".so");
    is_missing.then(|| format!("PostgreSQL's module {module} lacks {}", way(library.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_was_not_loaded_is_named_with_its_library() {
        let said = "ERROR:  could not load library \"/x/lib/uuid-ossp.so\": libossp-uuid.so.16: cannot open shared object file: No such file or directory";
        let hint = hint(said).unwrap();
        assert!(hint.starts_with("PostgreSQL's module uuid-ossp lacks libossp-uuid.so.16: "), "{hint}");
        assert_eq!(super::hint("could not load library \"/x/y.so\": undefined symbol: z"), None);
        assert_eq!(Distribution::Debian.package("libossp-uuid.so.16"), Some("libossp-uuid16"));
        assert_eq!(Distribution::Debian.package("libpython3.11.so.1.0"), Some("libpython3.11"));
    }
}
