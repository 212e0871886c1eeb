//! What a cluster left behind on the machine: the same look before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The environment variable by which our processes are known; their own children inherit it, tasks do not.
pub(super) const MARK: &str = "PROFFER_XTASK_DEV";

/// Where files of ours might be left outside the cluster's own directory.
const PLACES: [&str; 6] = ["/tmp", "/var/tmp", "/run", "/dev/shm", "/var/lib", "/run/netns"];

/// One look at the machine.
#[derive(Debug, Default)]
pub(super) struct Look {
    mounts: BTreeSet<String>,
    files: BTreeSet<PathBuf>,
    links: BTreeSet<PathBuf>,
    groups: BTreeSet<PathBuf>,
}

impl Look {
    /// What there is now that could be ours.
    pub(super) fn now() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // The first word is the mount's number, which another mount may get later.
        let mounts = mounts.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest.to_owned());
        let ours = |path: &PathBuf| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().trim_start_matches('.').starts_with("proffer"))
        };
        Self {
            mounts: mounts.filter(|mount| mount.contains("proffer")).collect(),
            files: PLACES.iter().flat_map(|place| entries(Path::new(place))).filter(ours).collect(),
            links: entries(Path::new("/sys/class/net")).collect(),
            groups: hierarchies()
                .iter()
                .map(|top| top.join("proffer"))
                .filter(|group| group.is_dir())
                .collect(),
        }
    }
}

/// The processes that carry `mark`, or whose command line names `dir`, or that are in one of `groups`.
pub(super) fn processes(mark: &str, dir: &Path, groups: &BTreeSet<String>) -> Vec<u32> {
    let mark = format!("{MARK}={mark}");
    let dir = dir.to_string_lossy().into_owned();
    let own = std::process::id();
    let pids = entries(Path::new("/proc")).filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    let ours = |&pid: &u32| {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let has = |file: &str, text: &str| {
            fs::read(proc.join(file)).is_ok_and(|bytes| {
                bytes.split(|byte| *byte == 0).any(|word| String::from_utf8_lossy(word).contains(text))
            })
        };
        let in_group = || groups_of(&proc).iter().any(|group| groups.contains(group));
        pid != own && (has("environ", &mark) || has("cmdline", &dir) || in_group())
    };
    pids.filter(ours).collect()
}

/// The groups `proffer/<agent>` that processes of ours are in.
pub(super) fn agent_groups(mark: &str, dir: &Path) -> BTreeSet<String> {
    let pids = processes(mark, dir, &BTreeSet::new());
    pids.iter().flat_map(|pid| groups_of(Path::new(&format!("/proc/{pid}")))).collect()
}

fn groups_of(proc: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
    let paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.filter_map(agent_group).collect()
}

/// `proffer/<agent>` of `/proffer/<agent>/launches/x`.
fn agent_group(path: &str) -> Option<String> {
    let (_, below) = path.split_once("/proffer/")?;
    Some(format!("proffer/{}", below.split('/').next()?))
}

/// What is there now that was not there `before`: each is a leak.
pub(super) fn leaks(before: &Look, mark: &str, dir: &Path, groups: &BTreeSet<String>) -> Vec<String> {
    let now = Look::now();
    let mut leaks: Vec<String> = processes(mark, dir, groups)
        .into_iter()
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim())
        })
        .collect();
    for top in hierarchies() {
        let left = groups.iter().map(|group| top.join(group)).filter(|group| group.is_dir());
        leaks.extend(left.map(|group| format!("cgroup {}", group.display())));
    }
    // Somebody else's agent may have come meanwhile; an empty group is nobody's.
    let empty = |group: &&PathBuf| !entries(group).any(|entry| entry.is_dir());
    leaks.extend(
        now.groups
            .difference(&before.groups)
            .filter(empty)
            .map(|group| format!("cgroup {}", group.display())),
    );
    leaks.extend(now.mounts.difference(&before.mounts).map(|mount| format!("mount {mount}")));
    leaks.extend(now.links.difference(&before.links).map(|link| format!("interface {}", link.display())));
    let files = now.files.difference(&before.files).filter(|file| *file != dir);
    leaks.extend(files.map(|file| format!("file {}", file.display())));
    leaks
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Where the cgroup hierarchies are mounted.
fn hierarchies() -> BTreeSet<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let at = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        kind.starts_with("cgroup").then(|| PathBuf::from(at))
    };
    mounts.lines().filter_map(at).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_agents_group_is_cut_out() {
        assert_eq!(agent_group("/proffer/a1/launches/x"), Some("proffer/a1".into()));
        assert_eq!(agent_group("/user/proffer/a1"), Some("proffer/a1".into()));
        assert_eq!(agent_group("/"), None);
    }

    #[test]
    fn a_process_and_a_file_left_behind_are_found() {
        let mark = format!("test-{}", std::process::id());
        let dir = PathBuf::from(format!("/tmp/proffer-audit-{}", std::process::id()));
        let other = PathBuf::from(format!("/tmp/proffer-audit-{}-left", std::process::id()));
        let before = Look::now();
        let mut child =
            Command::new("sleep").arg("60").env(MARK, &mark).stdout(Stdio::null()).spawn().expect("sleep");
        fs::create_dir(&dir).expect("directory");
        fs::write(&other, "").expect("file");
        let process = format!("process {} (", child.id());
        let file = format!("file {}", other.display());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        // Until it has become `sleep`, the child still has our environment.
        let mut found = Vec::new();
        while !found.iter().any(|leak: &String| leak.starts_with(&process))
            && std::time::Instant::now() < deadline
        {
            found = leaks(&before, &mark, &dir, &BTreeSet::new());
        }
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_file(&other);
        let _ = fs::remove_dir(&dir);
        assert!(found.iter().any(|leak| leak.starts_with(&process)), "{found:?}");
        assert!(found.contains(&file) && !found.contains(&format!("file {}", dir.display())), "{found:?}");
        let after = leaks(&before, &mark, &dir, &BTreeSet::new());
        assert!(!after.contains(&file) && !after.iter().any(|leak| leak.starts_with(&process)), "{after:?}");
    }
}
