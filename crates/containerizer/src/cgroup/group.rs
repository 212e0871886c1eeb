//! One container's group.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proffer_types::Ranges;
use proffer_types::container::Io;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::files::{Dir, Open};
use super::{Layout, cpu, cpuset, freezer, hugetlb, io as disks, make, memory, pids};
use crate::{Error, Usage};

/// What every container has limits of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// What it is promised.
    pub(crate) cpus_milli: u64,
    /// What it may use; `None` for all that there is.
    pub(crate) cpus_milli_max: Option<u64>,
    /// What it is promised.
    pub(crate) memory_bytes: u64,
    /// What it may use; `None` for all that there is.
    pub(crate) memory_bytes_max: Option<u64>,
    pub(crate) pids_max: u64,
}

impl Limits {
    /// What is kept for it while others use what they were not promised.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let bursts = self.memory_bytes_max.is_none_or(|most| most > self.memory_bytes);
        if bursts { self.memory_bytes } else { 0 }
    }
}

/// Whether a limit of memory could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// It could.
    Made,
    /// Not yet: cache is being taken back.
    InParts,
    /// What stands in its way cannot be taken back.
    None,
}

/// How much the kernel counts that is not worth waiting for (bytes). A group that holds more after its last process is not
/// used again, for it would be charged to the next; and so much may be used above what cannot be taken back.
pub(super) const LEFT_MAX: u64 = 1 << 20;
/// How much cache is taken back at once (bytes).
const RECLAIM_MAX: u64 = 256 << 20;

/// What only some ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extras<'a> {
    pub(crate) cpuset: &'a Ranges,
    pub(crate) io: &'a Io,
    pub(crate) hugetlb: &'a BTreeMap<u64, u64>,
}

impl Extras<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.cpuset.is_empty() && *self.io == Io::default() && !self.asks_for_huge_pages()
    }

    fn asks_for_huge_pages(&self) -> bool {
        self.hugetlb.values().any(|bytes| *bytes > 0)
    }
}

/// How a process is put into a group.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    /// v2: the directory, which clone3 enters.
    Directory(Arc<OwnedFd>),
    /// v1: the `tasks` of each hierarchy. Who writes its own number, or 0, waits for nobody; through `cgroup.procs`
    /// it would wait until no process of the machine is forking.
    Tasks(Vec<Arc<OwnedFd>>),
}

/// What the kernel counted of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) oom_kills: u64,
    pub(crate) memory_peak_bytes: Option<u64>,
}

/// A group, made or not: a path in each hierarchy.
#[derive(Debug)]
pub(crate) struct Group {
    layout: Arc<Layout>,
    path: PathBuf,
    open: Option<Open>,
}

/// v1: a group that containers share in a hierarchy where all are alike.
#[derive(Debug)]
pub(super) struct Common {
    dir: PathBuf,
    tasks: Arc<OwnedFd>,
}

impl Common {
    pub(super) fn open(dir: PathBuf) -> Result<Self, Error> {
        Ok(Self { tasks: open_tasks(&dir)?, dir })
    }
}

impl Group {
    pub(super) fn new(layout: Arc<Layout>, path: &Path) -> Self {
        Self { layout, path: path.to_owned(), open: None }
    }

    /// Has its files stay open once they have been.
    pub(super) fn staying_open(self) -> Self {
        Self { open: Some(Open::default()), ..self }
    }

    pub(super) fn is_v2(&self) -> bool {
        self.layout.is_v2()
    }

    /// Makes the group, without limits.
    pub(super) fn create(&self) -> Result<(), Error> {
        self.paths().iter().try_for_each(|dir| make(dir))
    }

    /// Sets the limits, before anything runs in it. What it had `before` is not set again.
    pub(super) fn limit(&self, limits: &Limits, before: Option<&Limits>, fresh: bool) -> Result<(), Error> {
        let v2 = self.layout.is_v2();
        let differs = |of: fn(&Limits) -> Option<u64>| before.is_none_or(|before| of(before) != of(limits));
        if differs(|limits| Some(limits.cpus_milli)) {
            cpu::set_share(&self.path("cpu"), limits.cpus_milli, v2)?;
        }
        if differs(|limits| limits.cpus_milli_max) {
            cpu::set_limit(&self.path("cpu"), limits.cpus_milli_max, v2)?;
        }
        if differs(|limits| limits.memory_bytes_max) {
            memory::set_limit(&self.path("memory"), limits.memory_bytes_max, v2, fresh)?;
        }
        if differs(|limits| Some(limits.kept_bytes())) && !(fresh && limits.kept_bytes() == 0) {
            memory::set_kept(&self.path("memory"), limits.kept_bytes(), v2)?;
        }
        if differs(|limits| Some(limits.pids_max)) {
            // Init is a process too, and not the task's.
            pids::set_limit(&self.path("pids"), limits.pids_max.saturating_add(1), v2)?;
        }
        Ok(())
    }

    /// Takes back a part of the cache that stands in the way of a limit of memory (bytes), and says the least limit that it
    /// can have now: below what is used v1 refuses one, and v2 kills for it.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(u64, Room), Error> {
        let (dir, v2) = (self.dir("memory"), self.layout.is_v2());
        let used = memory::current(&dir, v2)?;
        if used < bytes {
            return Ok((bytes, Room::Made));
        }
        memory::reclaim_to(&self.path("memory"), bytes.max(used.saturating_sub(RECLAIM_MAX)), v2)?;
        let left = memory::current(&dir, v2)?;
        if left < bytes {
            return Ok((bytes, Room::Made));
        }
        let room = if used.saturating_sub(left) > LEFT_MAX { Room::InParts } else { Room::None };
        Ok((left.saturating_add(LEFT_MAX), room))
    }

    /// Sets the limit of its memory alone; the kernel then ends single processes of it.
    pub(super) fn limit_memory(&self, bytes: Option<u64>) -> Result<(), Error> {
        memory::set_limit(&self.path("memory"), bytes, self.layout.is_v2(), false)
    }

    /// Sets what only some ask for, in a group that was just made.
    pub(super) fn set_extras(&self, extras: &Extras<'_>, huge_page_sizes: &[u64]) -> Result<(), Error> {
        let v2 = self.layout.is_v2();
        let further = |controller: &str, field: &str| -> Result<PathBuf, Error> {
            let Some(root) = self.layout.root_of(controller) else {
                let why = format!("this agent's kernel has no cgroup controller {controller}");
                return Err(Error::Refused { field: format!("container.{field}"), why });
            };
            let dir = root.join(&self.path);
            make(&dir).map(|()| dir)
        };
        if !extras.cpuset.is_empty() {
            let dir = further("cpuset", "cpuset")?;
            if !v2 {
                cpuset::inherit(&dir)?;
            }
            cpuset::set(&dir, dir.parent().unwrap_or(&dir), extras.cpuset, v2)?;
        }
        if *extras.io != Io::default() {
            disks::set(&further("io", "io")?, extras.io, v2)?;
        }
        hugetlb::check(huge_page_sizes, extras.hugetlb)?;
        let asks = extras.asks_for_huge_pages();
        // On v1 those that ask for none share a group; see `Tree`.
        if asks || (v2 && self.layout.root_of("hugetlb").is_some()) {
            let dir = further("hugetlb", "hugetlb")?;
            hugetlb::set(&dir, huge_page_sizes, extras.hugetlb, self.layout.speaks_v2("hugetlb"))?;
        }
        Ok(())
    }

    /// Opens what a process is put into the group by; on v1 into the groups `common` as well, but for those in whose
    /// hierarchy it has one of its own, which a `plain` one has not.
    pub(super) fn entry(&self, common: &[Common], plain: bool) -> Result<Entry, Error> {
        // One that is not plain may come to have further groups.
        let Some(open) = self.open.as_ref().filter(|_| plain) else { return self.open_entry(common, plain) };
        if let Some(entry) = open.entry.get() {
            return Ok(entry.clone());
        }
        let entry = self.open_entry(common, plain)?;
        Ok(open.entry.get_or_init(|| entry).clone())
    }

    fn open_entry(&self, common: &[Common], plain: bool) -> Result<Entry, Error> {
        if self.layout.is_v2() {
            let path = self.path("cpu");
            let dir = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path);
            let dir = dir.map_err(|source| Error::Path { operation: "open cgroup", path, source })?;
            return Ok(Entry::Directory(Arc::new(dir.into())));
        }
        let further = if plain { Vec::new() } else { self.layout.further_roots() };
        let further = further.iter().map(|root| root.join(&self.path)).filter(|dir| dir.is_dir());
        let own: Vec<PathBuf> = self.paths().into_iter().chain(further).collect();
        let mut tasks = own.iter().map(|dir| open_tasks(dir)).collect::<Result<Vec<_>, _>>()?;
        let others =
            common.iter().filter(|common| !own.iter().any(|own| own.parent() == common.dir.parent()));
        tasks.extend(others.map(|common| common.tasks.clone()));
        Ok(Entry::Tasks(tasks))
    }

    /// How many processes and threads are in it, none if it does not exist. What cannot be read is an error and not
    /// an empty group: a moment without descriptors must not make a running task look ended.
    pub(crate) fn population(&self) -> Result<usize, Error> {
        match pids::current(&self.dir("pids")) {
            Ok(0) => Ok(0),
            // What has ended and was not waited for still counts there.
            Ok(_) => self.processes().map(|processes| processes.len()),
            Err(Error::Path { source, .. }) if is_gone(&source) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// The processes in it, in any hierarchy: none if it does not exist.
    pub(crate) fn processes(&self) -> Result<BTreeSet<i32>, Error> {
        let mut processes = BTreeSet::new();
        for dir in self.paths() {
            let path = dir.join("cgroup.procs");
            match fs::read_to_string(&path) {
                // A process outside this pid namespace shows as 0 and could not be signalled by its number.
                Ok(text) => {
                    processes.extend(text.lines().filter_map(|l| l.parse().ok()).filter(|&p: &i32| p > 0))
                }
                Err(error) if is_gone(&error) => {}
                Err(source) => return Err(Error::Path { operation: "read", path, source }),
            }
        }
        Ok(processes)
    }

    /// Whether the group exists in any hierarchy.
    pub(crate) fn exists(&self) -> bool {
        self.paths().iter().any(|dir| dir.exists())
    }

    /// Sends SIGKILL to all that is in it. They are gone in the kernel's time; on v1 a process may have been born
    /// meanwhile, so that this is to be repeated until the group is empty.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        if self.layout.is_v2() {
            let path = self.path("cpu").join("cgroup.kill");
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
        let further = self.layout.further_roots().into_iter().map(|root| root.join(&self.path));
        for dir in self.paths().into_iter().chain(further) {
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

    /// What remains of it when nothing is counted in it any more, what has ended and was not waited for included: bytes,
    /// processes killed for want of memory, microseconds.
    pub(super) fn rest(&self) -> Result<Option<(u64, u64, u64)>, Error> {
        if pids::current(&self.dir("pids"))? > 0 {
            return Ok(None);
        }
        let (dir, v2) = (self.dir("memory"), self.layout.is_v2());
        let cpu_usec = cpu::used_usec(self)?;
        Ok(Some((memory::current(&dir, v2)?, memory::oom_kills(&dir, v2)?, cpu_usec)))
    }

    /// What it uses now.
    pub(crate) fn usage(&self) -> Result<Usage, Error> {
        let (dir, v2) = (self.dir("memory"), self.layout.is_v2());
        Ok(Usage {
            cpu_usec: cpu::used_usec(self)?,
            memory_bytes: memory::current(&dir, v2)?,
            memory_peak_bytes: memory::peak(&dir, v2)?,
            pids: pids::current(&self.dir("pids"))?,
        })
    }

    /// Begins the peak of its memory anew. v2: `before` is what told the last container's, if that is at hand.
    pub(super) fn reset_peak(&self, before: Option<Arc<File>>) -> Result<Option<Arc<File>>, Error> {
        memory::reset_peak(&self.dir("memory"), before, self.layout.is_v2())
    }

    /// The directory by which rules for devices are attached to it (v2).
    pub(super) fn directory(&self) -> PathBuf {
        self.path("cpu")
    }

    pub(super) fn dir(&self, controller: &str) -> Dir<'_> {
        self.dir_if_any(controller).expect("detect() refuses a layout without what limits need")
    }

    pub(super) fn dir_if_any(&self, controller: &str) -> Option<Dir<'_>> {
        let root = self.layout.root_of(controller)?;
        Some(Dir { root, group: &self.path, open: self.open.as_ref() })
    }

    fn path(&self, controller: &str) -> PathBuf {
        self.dir(controller).path()
    }

    fn paths(&self) -> Vec<PathBuf> {
        self.layout.roots().into_iter().map(|root| root.join(&self.path)).collect()
    }
}

fn open_tasks(dir: &Path) -> Result<Arc<OwnedFd>, Error> {
    let path = dir.join("tasks");
    let opened = match OpenOptions::new().write(true).open(&path) {
        // A v2 tree beside the hierarchies of v1.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new().write(true).open(dir.join("cgroup.procs"))
        }
        opened => opened,
    };
    opened.map(|file| Arc::new(file.into())).map_err(|source| Error::Path {
        operation: "open for writing",
        path,
        source,
    })
}

/// Never made, or removed between opening and reading.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
