//! Where this machine has the controllers we need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// The controllers without which limits cannot be kept.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// v1 only, used where mounted.
const USEFUL: [&str; 2] = ["cpuacct", "freezer"];

/// Which version, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One tree, mounted here.
    V2(PathBuf),
    /// The mount point of each controller's hierarchy; several controllers may share one.
    V1(BTreeMap<String, PathBuf>),
}

impl Layout {
    pub(crate) fn is_v2(&self) -> bool {
        matches!(self, Self::V2(_))
    }

    /// Every mount point, once.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        match self {
            Self::V2(root) => vec![root.clone()],
            Self::V1(mounts) => {
                let mut roots: Vec<_> = mounts.values().cloned().collect();
                roots.sort();
                roots.dedup();
                roots
            }
        }
    }

    /// Where a controller's files are, if it is there.
    pub(crate) fn root_of(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V2(root) => Some(root),
            Self::V1(mounts) => mounts.get(controller).map(PathBuf::as_path),
        }
    }

    pub(crate) fn cpu_root(&self) -> &Path {
        self.root_of("cpu").expect("detect() refuses a layout without cpu")
    }
}

/// Finds the controllers: v2 if its tree has all we need, else v1. With `root`, only mounts at or below it count.
pub(crate) fn detect(root: Option<&Path>) -> Result<Layout, Error> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let mounts =
        fs::read_to_string(&path).map_err(|source| Error::Path { operation: "read", path, source })?;
    let controllers = |mount: &Path| fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    find(&mounts, root, controllers)
}

fn find(
    mountinfo: &str,
    root: Option<&Path>,
    controllers_at: impl Fn(&Path) -> String,
) -> Result<Layout, Error> {
    let mut v1 = BTreeMap::new();
    for line in mountinfo.lines() {
        let Some(mount) = Mount::parse(line) else { continue };
        if root.is_some_and(|root| !mount.point.starts_with(root)) {
            continue;
        }
        if mount.kind == "cgroup2" {
            let present = controllers_at(&mount.point);
            if NEEDED.iter().all(|needed| present.split_whitespace().any(|name| name == *needed)) {
                return Ok(Layout::V2(mount.point));
            }
        } else {
            for name in mount.options.split(',').filter(|name| NEEDED.contains(name) || USEFUL.contains(name))
            {
                v1.entry(name.to_owned()).or_insert_with(|| mount.point.clone());
            }
        }
    }
    let missing: Vec<_> = NEEDED.into_iter().filter(|name| !v1.contains_key(*name)).collect();
    if missing.is_empty() {
        return Ok(Layout::V1(v1));
    }
    let root = root.map_or_else(|| "any mount".to_owned(), |root| root.display().to_string());
    Err(Error::Controllers { missing: missing.join(", "), root })
}

struct Mount<'a> {
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// One line of mountinfo, of a cgroup file system.
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        let kind = right.next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"))?;
        let options = right.nth(1)?;
        // Blanks in a mount point are octal escapes; nobody mounts cgroups at such a place.
        (!point.contains('\\')).then(|| Self { point: PathBuf::from(point), kind, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 22 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
35 30 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn v2_wins_only_with_all_controllers() {
        let v1 = find(HYBRID, None, |_| "hugetlb\n".into()).unwrap();
        assert!(!v1.is_v2());
        assert_eq!(v1.root_of("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!((v1.root_of("freezer"), v1.roots().len()), (None, 3));
        let v2 = find(HYBRID, None, |_| "cpuset cpu io memory pids\n".into()).unwrap();
        assert_eq!(v2, Layout::V2("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn what_is_missing_is_named() {
        let without: String =
            HYBRID.lines().filter(|l| !l.contains("pids")).map(|l| format!("{l}\n")).collect();
        let error = find(&without, None, |_| "cpu memory".into()).unwrap_err();
        assert!(error.to_string().contains("missing: pids"), "{error}");
        assert!(find(HYBRID, Some(Path::new("/elsewhere")), |_| String::new()).is_err());
    }
}
