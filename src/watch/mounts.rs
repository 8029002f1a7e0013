//! File systems on which the kernel does not tell of every change: what another machine, the host of a container or a lower
//! layer changes there, inotify(7) never hears of.

use std::path::Path;

use nix::sys::statfs::statfs;

/// The number that statfs(2) gives for each (linux/magic.h and the file systems' own sources), and what people call it.
/// virtiofs, Docker Desktop's shares among it, calls itself FUSE.
const DEAF: &[(u32, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p"),
    (0x6573_5546, "FUSE"),
    (0x00c3_6400, "Ceph"),
    (0x786f_4256, "a VirtualBox share"),
    (0x794c_7630, "overlayfs"),
    (0x5346_414f, "AFS"),
    (0x0bd0_0bd0, "Lustre"),
];

/// What the file system at `dir` is called, if it is one of those.
pub fn deaf(dir: &Path) -> Option<&'static str> {
    let kind = statfs(dir).ok()?.filesystem_type().0;
    DEAF.iter().find(|(magic, _)| i64::from(*magic) == kind as i64 & 0xffff_ffff).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_of_this_machine_hears() {
        assert_eq!(deaf(Path::new("/proc")), None);
        assert_eq!(deaf(Path::new("/dev/shm")), None);
    }
}
