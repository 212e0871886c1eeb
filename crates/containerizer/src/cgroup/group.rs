//! One container's group.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Layout, cpu, freezer, make, memory, pids};
use crate::{Error, Usage};

/// What a container may use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) cpus_milli: u64,
    /// 0 for no limit.
    pub(crate) memory_bytes: u64,
    pub(crate) pids_max: u64,
}

/// How a process is put into a group.
#[derive(Debug)]
pub(crate) enum Entry {
    /// v2: the directory, which clone3 enters.
    Directory(OwnedFd),
    /// v1: the `cgroup.procs` of each hierarchy, to write the pid to.
    Procs(Vec<OwnedFd>),
}

/// What the kernel counted of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) oom_kills: u64,
    pub(crate) memory_peak_bytes: Option<u64>,
}

/// A group, made or not: a path in each hierarchy.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    layout: Layout,
    path: PathBuf,
}

impl Group {
    pub(super) fn new(layout: Layout, path: &Path) -> Self {
        Self { layout, path: path.to_owned() }
    }

    /// Makes the group and sets its limits, before anything runs in it.
    pub(crate) fn create(&self, limits: Limits) -> Result<(), Error> {
        let v2 = self.layout.is_v2();
        for dir in self.dirs() {
            make(&dir)?;
        }
        cpu::set_share(&self.dir("cpu"), limits.cpus_milli, v2)?;
        cpu::set_limit(&self.dir("cpu"), limits.cpus_milli, v2)?;
        if limits.memory_bytes > 0 {
            memory::set_limit(&self.dir("memory"), limits.memory_bytes, v2)?;
        }
        // Init is a process too, and not the task's.
        pids::set_limit(&self.dir("pids"), limits.pids_max.saturating_add(1), v2)
    }

    /// Opens what a process is put into the group by.
    pub(crate) fn entry(&self) -> Result<Entry, Error> {
        if let Layout::V2(_) = self.layout {
            let path = self.dir("cpu");
            let dir = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path);
            let dir = dir.map_err(|source| Error::Path { operation: "open cgroup", path, source })?;
            return Ok(Entry::Directory(dir.into()));
        }
        let files = self.dirs().into_iter().map(|dir| {
            let path = dir.join("cgroup.procs");
            let file: io::Result<File> = OpenOptions::new().write(true).open(&path);
            file.map(OwnedFd::from).map_err(|source| Error::Path {
                operation: "open for writing",
                path,
                source,
            })
        });
        files.collect::<Result<_, _>>().map(Entry::Procs)
    }

    /// The processes in it, in any hierarchy: none if it does not exist. What cannot be read is an error and not an
    /// empty group: a moment without descriptors must not make a running task look ended.
    pub(crate) fn processes(&self) -> Result<BTreeSet<i32>, Error> {
        let mut processes = BTreeSet::new();
        for dir in self.dirs() {
            let path = dir.join("cgroup.procs");
            match fs::read_to_string(&path) {
                // A process outside this pid namespace shows as 0 and could not be signalled by its number.
                Ok(text) => {
                    processes.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|&p: &i32| p > 0))
                }
                // Never made, or removed between opening and reading.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {}
                Err(source) => return Err(Error::Path { operation: "read", path, source }),
            }
        }
        Ok(processes)
    }

    /// Whether the group exists in any hierarchy.
    pub(crate) fn exists(&self) -> bool {
        self.dirs().iter().any(|dir| dir.exists())
    }

    /// Sends SIGKILL to all that is in it. They are gone in the kernel's time; on v1 a process may have been born
    /// meanwhile, so that this is to be repeated until the group is empty.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        if let Layout::V2(_) = self.layout {
            let path = self.dir("cpu").join("cgroup.kill");
            return match fs::write(&path, "1") {
                Ok(()) => Ok(()),
                // A kernel before 5.14, or the group is gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.kill_each(),
                Err(source) => Err(Error::Path { operation: "write", path, source }),
            };
        }
        let freezer =
            self.layout.root_of("freezer").map(|root| root.join(&self.path)).filter(|dir| dir.exists());
        let Some(freezer) = freezer else {
            return self.kill_each();
        };
        freezer::freeze(&freezer)?;
        let killed = self.kill_each();
        // Whatever happens, nothing stays frozen: SIGKILL takes effect only now.
        freezer::thaw(&freezer).and(killed)
    }

    /// Signals the processes one by one. A pid may be reused between reading and signalling: its process is pinned
    /// first, and signalled only if the pid is still listed afterwards, which then means the pinned process.
    fn kill_each(&self) -> Result<(), Error> {
        let pinned: Vec<_> = self
            .processes()?
            .into_iter()
            .filter_map(|raw| {
                let pid = Pid::from_raw(raw)?;
                Some((raw, pidfd_open(pid, PidfdFlags::empty()).ok()?))
            })
            .collect();
        let still = self.processes()?;
        for (_, process) in pinned.iter().filter(|(pid, _)| still.contains(pid)) {
            // Gone already is as good.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        Ok(())
    }

    /// Removes the group; `false` while the kernel holds it busy, which it may for a moment after the last process.
    pub(crate) fn remove(&self) -> Result<bool, Error> {
        let mut gone = true;
        for dir in self.dirs() {
            match fs::remove_dir(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => gone = false,
                Err(source) => return Err(Error::Path { operation: "remove cgroup", path: dir, source }),
            }
        }
        Ok(gone)
    }

    /// What the kernel counted.
    pub(crate) fn counters(&self) -> Result<Counters, Error> {
        let (dir, v2) = (self.dir("memory"), self.layout.is_v2());
        Ok(Counters { oom_kills: memory::oom_kills(&dir, v2)?, memory_peak_bytes: memory::peak(&dir, v2)? })
    }

    /// What it uses now.
    pub(crate) fn usage(&self) -> Result<Usage, Error> {
        let (dir, v2) = (self.dir("memory"), self.layout.is_v2());
        Ok(Usage {
            cpu_usec: cpu::used_usec(&self.layout, &self.path)?,
            memory_bytes: memory::current(&dir, v2)?,
            memory_peak_bytes: memory::peak(&dir, v2)?,
            pids: pids::current(&self.dir("pids"))?,
        })
    }

    fn dir(&self, controller: &str) -> PathBuf {
        let root =
            self.layout.root_of(controller).expect("detect() refuses a layout without what limits need");
        root.join(&self.path)
    }

    fn dirs(&self) -> Vec<PathBuf> {
        self.layout.roots().into_iter().map(|root| root.join(&self.path)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use proffer_types::LaunchId;

    use super::super::{Tree, detect, read_keyed};
    use super::*;

    const LIMITS: Limits = Limits { cpus_milli: 500, memory_bytes: 32 << 20, pids_max: 20 };

    /// A tree that is removed whatever becomes of the test.
    struct TestTree(Tree);

    impl std::ops::Deref for TestTree {
        type Target = Tree;
        fn deref(&self) -> &Tree {
            &self.0
        }
    }

    impl Drop for TestTree {
        fn drop(&mut self) {
            for group in self.0.launches().into_iter().map(|launch| self.0.group(launch)) {
                while group.processes().is_ok_and(|p| !p.is_empty()) || !group.remove().unwrap_or(true) {
                    let _ = group.kill();
                    std::thread::yield_now();
                }
            }
            let _ = self.0.remove();
        }
    }

    fn tree(name: &str) -> Option<TestTree> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: cgroup tests need root");
            return None;
        }
        let layout = match detect(None) {
            Ok(layout) => layout,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
        };
        eprintln!("RAN: cgroup v{}", if layout.is_v2() { 2 } else { 1 });
        let tree = Tree::create(layout, &format!("test-{name}-{}", std::process::id()));
        Some(TestTree(tree.expect("a cgroup tree")))
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "not within 20 s: {what}");
            std::thread::yield_now();
        }
    }

    fn enter(group: &Group, pid: u32) {
        for dir in group.dirs() {
            fs::write(dir.join("cgroup.procs"), pid.to_string()).expect("moved");
        }
    }

    #[test]
    fn a_group_is_made_limited_and_removed() {
        let Some(tree) = tree("limits") else { return };
        let group = tree.group(LaunchId(1));
        group.create(LIMITS).expect("made");
        group.create(LIMITS).expect("making it twice is fine");
        assert_eq!(tree.launches(), [LaunchId(1)]);
        let file = |controller: &str, v1: &str, v2: &str| {
            let name = if group.layout.is_v2() { v2 } else { v1 };
            fs::read_to_string(group.dir(controller).join(name)).expect(name).trim().to_owned()
        };
        assert_eq!(file("pids", "pids.max", "pids.max"), "21");
        assert_eq!(file("memory", "memory.limit_in_bytes", "memory.max"), (32 << 20).to_string());
        assert_eq!(file("cpu", "cpu.shares", "cpu.weight"), if group.layout.is_v2() { "50" } else { "512" });
        let quota = if group.layout.is_v2() { "50000 100000" } else { "50000" };
        assert_eq!(file("cpu", "cpu.cfs_quota_us", "cpu.max"), quota);
        cpu::set_limit(&group.dir("cpu"), 3, group.layout.is_v2()).expect("a very small limit");
        assert!(tree.remove().is_err(), "a tree with a container in it stays");
        until("removed", || group.remove().expect("removable"));
        assert!(group.remove().expect("again"), "removing it twice is fine");
        assert!(!group.exists() && group.usage().is_err());
        tree.remove().expect("the tree is removed");
    }

    #[test]
    fn killing_leaves_nothing() {
        let Some(tree) = tree("kill") else { return };
        let group = tree.group(LaunchId(2));
        group.create(LIMITS).expect("made");
        // It forks for as long as it may, ignores SIGTERM, and waits for a line before it begins.
        let script = "trap '' TERM; read go; f() { (trap '' TERM; f) & f & wait; }; f";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        enter(&group, child.id());
        use std::io::Write;
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        // The shell gives up where a fork fails: what tells is the kernel's count of such forks.
        let refused = || read_keyed(group.dir("pids").join("pids.events"), "max").expect("pids.events");
        until("the bomb meets its limit", || {
            assert!(group.usage().expect("usage").pids <= 21);
            refused().is_some_and(|count| count > 0)
        });
        until("empty", || {
            group.kill().expect("killed");
            let _ = child.try_wait();
            group.processes().expect("readable").is_empty()
        });
        until("removed", || group.remove().expect("removable"));
        tree.remove().expect("the tree is removed");
    }

    #[test]
    fn a_memory_hog_is_counted() {
        let Some(tree) = tree("oom") else { return };
        let group = tree.group(LaunchId(3));
        group.create(LIMITS).expect("made");
        assert_eq!(group.counters().expect("counters").oom_kills, 0);
        let script = "read go; exec tail /dev/zero";
        let mut child = Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        enter(&group, child.id());
        drop(child.stdin.take());
        let status = child.wait().expect("waited");
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(status.signal(), Some(9));
        let counters = group.counters().expect("counters");
        assert!(counters.oom_kills >= 1, "{counters:?}");
        assert!(
            counters.memory_peak_bytes.is_none_or(|peak| peak > 30 << 20 && peak <= 32 << 20),
            "{counters:?}"
        );
        until("removed", || group.remove().expect("removable"));
        tree.remove().expect("the tree is removed");
    }
}
