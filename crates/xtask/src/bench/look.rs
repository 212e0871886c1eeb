//! What the kernel says of processes and cgroups.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Of each process: the processor time of itself and of the children it has waited for (milliseconds).
pub(super) fn cpu_ms(pids: &[u32]) -> BTreeMap<u32, f64> {
    // USER_HZ is 100 on every Linux that we know.
    pids.iter()
        .filter_map(|&pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let ticks: u64 = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
            Some((pid, ticks as f64 * 10.0))
        })
        .collect()
}

/// A process's resident and proportional memory and its descriptors.
pub(super) fn process(pid: u32) -> Value {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = |key: &str| -> Option<u64> {
        rollup
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.trim().parse().ok())
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).map(|dir| dir.count()).unwrap_or(0);
    json!({
        "pid": pid, "rss_kib": kib("Rss:"), "pss_kib": kib("Pss:"), "private_dirty_kib": kib("Private_Dirty:"),
        "descriptors": descriptors,
    })
}

/// The resident memory of a process (KiB), 0 if it is gone.
pub(super) fn rss_kib(pid: u32) -> u64 {
    process(pid)["rss_kib"].as_u64().unwrap_or(0)
}

/// The command line.
pub(super) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// The parent.
pub(super) fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// All processes.
pub(super) fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Lets every thread of these processes use these processors only. What they start inherits it.
pub(super) fn pin(pids: &[u32], cores: &str) {
    let mut set = CpuSet::new();
    for core in cores.split(',').filter_map(|core| core.parse().ok()) {
        // A processor that cannot be numbered cannot be used either.
        let _ = set.set(core);
    }
    for pid in pids {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for thread in threads.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            // Ended meanwhile.
            let _ = sched_setaffinity(Pid::from_raw(thread), &set);
        }
    }
}

/// Where the memory of cgroups is counted, and how the file is called that tells it.
fn memory_hierarchy() -> (PathBuf, &'static str) {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    if v1.join("memory.usage_in_bytes").exists() {
        (v1.into(), "memory.usage_in_bytes")
    } else {
        ("/sys/fs/cgroup".into(), "memory.current")
    }
}

/// What is charged to each of the groups beside that of `pid` (bytes): those of the containers, when `pid` is a
/// supervisor.
pub(super) fn charged_beside(pid: u32) -> Vec<u64> {
    let (root, file) = memory_hierarchy();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let of_memory = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        (controllers.split(',').any(|name| name == "memory")
            || controllers.is_empty() && file == "memory.current")
            .then(|| path.to_owned())
    });
    let Some(own) = of_memory.map(|path| root.join(path.trim_start_matches('/'))) else { return Vec::new() };
    let beside = own.parent().and_then(|parent| fs::read_dir(parent).ok()).into_iter().flatten().flatten();
    beside
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && *path != own)
        .filter(|path| {
            fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| !text.trim().is_empty())
        })
        .filter_map(|path| fs::read_to_string(path.join(file)).ok()?.trim().parse().ok())
        .collect()
}

/// How many cgroups there are beside that of `pid`, in each hierarchy that has any.
pub(super) fn groups_beside(pid: u32) -> std::collections::BTreeMap<String, usize> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let roots = mounts.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        words.get(2)?.starts_with("cgroup").then(|| (PathBuf::from(words[1]), words[3].to_owned()))
    });
    let mut found = std::collections::BTreeMap::new();
    for (root, options) in roots {
        let own = text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let here = if controllers.is_empty() {
                !options.split(',').any(|option| option.starts_with("name="))
                    && root.join("cgroup.controllers").exists()
            } else {
                controllers.split(',').all(|name| options.split(',').any(|option| option == name))
            };
            here.then(|| root.join(path.trim_start_matches('/')))
        });
        let beside =
            own.as_deref().and_then(Path::parent).filter(|dir| dir.starts_with(&root) && **dir != *root);
        let entries = beside.and_then(|dir| fs::read_dir(dir).ok()).into_iter().flatten().flatten();
        let count = entries.filter(|entry| entry.path().is_dir()).count();
        if count > 0 {
            found.insert(root.to_string_lossy().into_owned(), count - 1);
        }
    }
    found
}

/// How many mounts this process sees.
pub(super) fn mounts() -> usize {
    fs::read_to_string("/proc/self/mountinfo").map(|text| text.lines().count()).unwrap_or(0)
}

/// How many mount, process, ipc and host name namespaces processes are in.
pub(super) fn namespaces() -> usize {
    let mut all = std::collections::BTreeSet::new();
    for pid in pids() {
        for kind in ["mnt", "pid", "ipc", "uts"] {
            all.extend(fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok());
        }
    }
    all.len()
}
