//! Where this machine has the controllers we need.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// The controllers without which limits cannot be kept.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
/// v1 only, used where mounted: usage, and an orderly end.
const USEFUL: [&str; 2] = ["cpuacct", "freezer"];
/// Used where they are: what a task may ask for besides, and on v1 the devices that it may open.
const OPTIONAL: [&str; 4] = ["cpuset", "io", "hugetlb", "devices"];

/// Which version, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One tree.
    V2 {
        /// Where it is mounted.
        root: PathBuf,
        /// The controllers that we use of those it has.
        controllers: BTreeSet<String>,
    },
    /// A hierarchy for each controller, or for several.
    V1 {
        /// The mount point of each controller's hierarchy, by its name of v2 (`io` for blkio).
        mounts: BTreeMap<String, PathBuf>,
        /// A v2 tree beside them that has hugetlb, which then no v1 hierarchy can have.
        unified: Option<PathBuf>,
        /// The hierarchy by which systemd knows what belongs to its units.
        units: Option<PathBuf>,
    },
}

impl Layout {
    pub(crate) fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// The mount points in which every container has a group of its own, each once, that of pids first: who is being
    /// moved into a container is then counted by it before it is in any other.
    pub(crate) fn roots(&self) -> Vec<PathBuf> {
        match self {
            Self::V2 { root, .. } => vec![root.clone()],
            Self::V1 { mounts, .. } => {
                let mut roots: Vec<PathBuf> = Vec::new();
                for name in ["pids"].iter().chain(&NEEDED).chain(&USEFUL) {
                    roots.extend(mounts.get(*name).filter(|root| !roots.contains(root)).cloned());
                }
                roots
            }
        }
    }

    /// v1: the further mount points, in which only those containers have a group that ask for something there.
    pub(crate) fn further_roots(&self) -> Vec<PathBuf> {
        let Self::V1 { mounts, unified, .. } = self else { return Vec::new() };
        let standing = self.roots();
        let mut roots: Vec<PathBuf> = Vec::new();
        for root in OPTIONAL.iter().filter_map(|name| mounts.get(*name)).chain(unified) {
            if !standing.contains(root) && !roots.contains(root) {
                roots.push(root.clone());
            }
        }
        roots
    }

    /// Where a controller's files are, if it is there.
    pub(crate) fn root_of(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V2 { root, controllers } => controllers.contains(controller).then_some(root),
            Self::V1 { mounts, unified, .. } => {
                let beside = unified.as_ref().filter(|_| controller == "hugetlb");
                mounts.get(controller).or(beside).map(PathBuf::as_path)
            }
        }
    }

    /// Whether a controller's files are named as on v2.
    pub(crate) fn speaks_v2(&self, controller: &str) -> bool {
        match self {
            Self::V2 { .. } => true,
            Self::V1 { mounts, .. } => controller == "hugetlb" && !mounts.contains_key(controller),
        }
    }

    /// v1: where systemd knows what belongs to its units.
    pub(crate) fn units(&self) -> Option<&Path> {
        match self {
            Self::V2 { .. } => None,
            Self::V1 { units, .. } => units.as_deref(),
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
    let (mut unified, mut units) = (None, None);
    for line in mountinfo.lines() {
        let Some(mount) = Mount::parse(line) else { continue };
        if root.is_some_and(|root| !mount.point.starts_with(root)) {
            continue;
        }
        if mount.kind == "cgroup2" {
            let present = controllers_at(&mount.point);
            let has = |name: &&str| present.split_whitespace().any(|present| present == *name);
            if NEEDED.iter().all(&has) {
                let used = NEEDED.iter().chain(&OPTIONAL).filter(|name| has(name));
                let controllers = used.map(|name| (*name).to_owned()).collect();
                return Ok(Layout::V2 { root: mount.point, controllers });
            }
            if has(&"hugetlb") {
                unified.get_or_insert(mount.point);
            }
        } else {
            for option in mount.options.split(',') {
                let name = if option == "blkio" { "io" } else { option };
                if name == "name=systemd" {
                    units.get_or_insert_with(|| mount.point.clone());
                }
                if NEEDED.iter().chain(&USEFUL).chain(&OPTIONAL).any(|used| *used == name) {
                    v1.entry(name.to_owned()).or_insert_with(|| mount.point.clone());
                }
            }
        }
    }
    let missing: Vec<_> = NEEDED.into_iter().filter(|name| !v1.contains_key(*name)).collect();
    if missing.is_empty() {
        let unified = unified.filter(|_| !v1.contains_key("hugetlb"));
        return Ok(Layout::V1 { mounts: v1, unified, units });
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
        assert_eq!(v1.roots()[0], Path::new("/sys/fs/cgroup/pids"));
        assert_eq!(v1.units(), Some(Path::new("/sys/fs/cgroup/systemd")));
        let v2 = find(HYBRID, None, |_| "cpuset cpu io memory pids\n".into()).unwrap();
        assert!(v2.is_v2() && v2.root_of("hugetlb").is_none());
        assert_eq!(v2.root_of("io"), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(v2.roots(), [PathBuf::from("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn what_only_some_containers_need_is_kept_apart() {
        let more = "36 30 0:32 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
                    37 30 0:33 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";
        let v1 = find(&format!("{HYBRID}{more}"), None, |_| "hugetlb\n".into()).unwrap();
        assert_eq!(v1.roots().len(), 3);
        let further = ["cpuset", "blkio", "unified"].map(|name| Path::new("/sys/fs/cgroup").join(name));
        assert_eq!(v1.further_roots(), further);
        assert_eq!(v1.root_of("io"), Some(further[1].as_path()));
        assert!(v1.speaks_v2("hugetlb") && !v1.speaks_v2("io") && v1.root_of("devices").is_none());
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
