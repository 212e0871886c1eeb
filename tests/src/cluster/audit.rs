//! What a cluster has on the machine, and what is left of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A process id.
pub type RawPid = i32;

/// The processes whose command line names `dir`, or that work in it.
pub fn processes(dir: &Path) -> Vec<RawPid> {
    let name = dir.to_string_lossy().into_owned();
    let own = i32::try_from(std::process::id()).expect("a process id is small");
    let ours = |&pid: &RawPid| {
        let names = fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(&name));
        let works = fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        pid != own && (names || works)
    };
    all_processes().into_iter().filter(ours).collect()
}

/// Every process of the machine.
pub fn all_processes() -> Vec<RawPid> {
    let names = entries(Path::new("/proc")).filter_map(|path| path.file_name()?.to_str()?.parse().ok());
    names.collect()
}

/// A process's arguments, or nothing.
pub fn arguments(pid: RawPid) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// What the kernel says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `Z`, …
    pub state: char,
    /// Its parent.
    pub parent: RawPid,
    /// When it started, in ticks since the machine did.
    pub start: u64,
    /// The time it has used, in ticks.
    pub used: u64,
}

/// What the kernel says of a process, if there is one.
pub fn stat(pid: RawPid) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, rest) = text.rsplit_once(") ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    Some(Stat {
        state: words.first()?.chars().next()?,
        parent: words.get(1)?.parse().ok()?,
        start: number(19)?,
        used: number(11)? + number(12)?,
    })
}

/// How much memory a process has in the machine (bytes); 0 if it is gone.
pub fn resident_bytes(pid: nix::unistd::Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// How an agent with this work directory names its cgroups.
pub fn instance(work_dir: &Path) -> String {
    let path = fs::canonicalize(work_dir).unwrap_or_else(|_| work_dir.to_owned());
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The groups of an agent, one for each hierarchy that has one.
pub fn groups(work_dir: &Path) -> Vec<PathBuf> {
    let below = Path::new("proffer").join(instance(work_dir));
    hierarchies().iter().map(|top| top.join(&below)).filter(|group| group.is_dir()).collect()
}

/// The containers' groups below an agent's, by hierarchy.
pub fn containers(work_dir: &Path) -> Vec<PathBuf> {
    let below = groups(work_dir).into_iter().flat_map(|group| entries(&group).collect::<Vec<_>>());
    below.filter(|path| path.is_dir() && !path.ends_with("supervisors")).collect()
}

/// The processes in the containers of an agent.
pub fn contained(work_dir: &Path) -> BTreeSet<RawPid> {
    let files = containers(work_dir).into_iter().map(|group| group.join("cgroup.procs"));
    let texts = files.filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Everything of a cluster that is still there: processes, cgroups, mounts, files.
pub fn left(dir: &Path, instances: &[String]) -> Vec<String> {
    let mut left: Vec<String> = processes(dir)
        .into_iter()
        .filter(|&pid| stat(pid).is_some_and(|stat| stat.state != 'Z'))
        .map(|pid| format!("process {pid}: {}", arguments(pid).join(" ")))
        .collect();
    for top in hierarchies() {
        let groups = instances.iter().map(|instance| top.join("proffer").join(instance));
        left.extend(groups.filter(|group| group.is_dir()).map(|group| format!("cgroup {}", group.display())));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let name = dir.to_string_lossy();
    left.extend(mounts.lines().filter(|line| line.contains(&*name)).map(|line| format!("mount {line}")));
    if dir.exists() {
        left.push(format!("directory {}", dir.display()));
    }
    left
}

/// One look at the machine, to be compared with a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    files: BTreeSet<PathBuf>,
    mounts: BTreeSet<String>,
}

/// Where files of ours might be left.
const PLACES: [&str; 6] = ["/tmp", "/var/tmp", "/run", "/dev/shm", "/var/lib", "/run/netns"];

impl Look {
    /// What there is that bears our name, with `not` in none of it: other tests run beside.
    pub fn now(ours: impl Fn(&str) -> bool) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // The first words are the mounts' numbers, which others may get later.
        let mounts = mounts.lines().filter_map(|line| line.splitn(3, ' ').nth(2)).filter(|line| ours(line));
        let files = PLACES.iter().flat_map(|place| entries(Path::new(place)));
        Self {
            files: files.filter(|path| ours(&path.to_string_lossy())).collect(),
            mounts: mounts.map(str::to_owned).collect(),
        }
    }

    /// What there is now and was not before.
    pub fn new_since(&self, before: &Self) -> Vec<String> {
        let files = self.files.difference(&before.files).map(|path| format!("file {}", path.display()));
        let mounts = self.mounts.difference(&before.mounts).map(|mount| format!("mount {mount}"));
        files.chain(mounts).collect()
    }
}

/// A digest of every file below `dir`: names, modes and contents.
pub fn digest(dir: &Path) -> String {
    let mut hash = Sha256::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        hash.update(path.as_os_str().as_encoded_bytes());
        if path.is_dir() {
            let mut below: Vec<PathBuf> = entries(&path).collect();
            below.sort();
            waiting.extend(below);
        } else {
            hash.update(fs::read(&path).unwrap_or_default());
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the cgroup hierarchies are mounted.
pub fn hierarchies() -> BTreeSet<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let at = |line: &str| {
        let mut words = line.split(' ').skip(1);
        let (at, kind) = (words.next()?, words.next()?);
        kind.starts_with("cgroup").then(|| PathBuf::from(at))
    };
    mounts.lines().filter_map(at).collect()
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}
