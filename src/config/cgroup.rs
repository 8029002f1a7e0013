//! The memory control groups that this process is in: which directories say what they may use and what became of them.

use std::fs;
use std::path::{Path, PathBuf};

/// Which hierarchy a group is of (cgroups(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    One,
    Two,
}

/// A group of this process, with all that it lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryGroup {
    pub version: Version,
    /// From the group itself up to the root of its hierarchy: each limits what lies in it. In a container without a
    /// namespace of its own the path is the host's and does not exist there; the root then is the container's own group.
    pub dirs: Vec<PathBuf>,
}

/// The groups of this process; `proc` and `cgroups` are `/proc` and `/sys/fs/cgroup`.
pub fn memory_groups(proc: &Path, cgroups: &Path) -> Vec<MemoryGroup> {
    let own = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    let groups = own.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        let (version, root) = match controllers {
            "" => (Version::Two, cgroups.to_path_buf()),
            _ if controllers.split(',').any(|name| name == "memory") => (Version::One, cgroups.join("memory")),
            _ => return None,
        };
        let own = root.join(path);
        let dirs = own.ancestors().take_while(|dir| dir.starts_with(&root)).map(Path::to_path_buf).collect();
        Some(MemoryGroup { version, dirs })
    });
    groups.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_followed_up_to_their_roots() {
        let temp = tempfile::tempdir().unwrap();
        let root = Path::new("/groups");
        assert_eq!(memory_groups(temp.path(), root), []);
        fs::create_dir(temp.path().join("self")).unwrap();
        let text = "9:name=systemd:/x\n4:cpu,memory:/docker/abc\n0::/app.slice/tandem.service\n1:cpu:/y\n0::/\n";
        fs::write(temp.path().join("self/cgroup"), text).unwrap();
        let dirs = |names: &[&str]| names.iter().map(|name| root.join(name)).collect::<Vec<_>>();
        assert_eq!(
            memory_groups(temp.path(), root),
            [
                MemoryGroup { version: Version::One, dirs: dirs(&["memory/docker/abc", "memory/docker", "memory"]) },
                MemoryGroup { version: Version::Two, dirs: dirs(&["app.slice/tandem.service", "app.slice", ""]) },
                MemoryGroup { version: Version::Two, dirs: dirs(&[""]) },
            ]
        );
    }
}
