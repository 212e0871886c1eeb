//! Groups as containers get them, and what one that is used again must not carry from one container to the next.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proffer_types::container::{Io, IoLimit};
use proffer_types::{FrameworkId, LaunchId, Ranges};

use super::{Entry, Extras, Layout, Limits, Room, Tree, detect};
use crate::Error;

const LIMITS: Limits = Limits {
    cpus_milli: 500,
    cpus_milli_max: Some(500),
    memory_bytes: 32 << 20,
    memory_bytes_max: Some(32 << 20),
    pids_max: 20,
};
const FRAMEWORK: FrameworkId = FrameworkId(5);

/// A tree that is removed whatever becomes of the test.
struct TestTree {
    tree: Tree,
    held: PathBuf,
    layout: Layout,
    instance: String,
}

impl std::ops::Deref for TestTree {
    type Target = Tree;
    fn deref(&self) -> &Tree {
        &self.tree
    }
}

impl Drop for TestTree {
    fn drop(&mut self) {
        for launch in self.tree.launches() {
            let group = self.tree.group(launch);
            self.tree.spoil(launch);
            while group.processes().is_ok_and(|p| !p.is_empty()) || !self.tree.release(launch).unwrap_or(true)
            {
                let _ = group.kill();
                std::thread::yield_now();
            }
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = self.tree.remove() {
            if Instant::now() > deadline {
                eprintln!("a tree is left: {error}");
                break;
            }
        }
        let _ = fs::remove_dir_all(&self.held);
    }
}

impl TestTree {
    fn take(&self, launch: u64, limits: &Limits) -> Entry {
        self.take_with(launch, limits, &Asked::default()).expect("a group")
    }

    fn take_with(&self, launch: u64, limits: &Limits, asked: &Asked) -> Result<Entry, Error> {
        let extras = Extras { cpuset: &asked.cpuset, io: &asked.io, hugetlb: &asked.hugetlb };
        self.tree.take((LaunchId(launch), FRAMEWORK), limits, &extras, None)
    }

    fn release(&self, launch: u64) {
        until("released", || self.tree.release(LaunchId(launch)).expect("releasable"));
    }

    /// A container's file of a controller; `None` if it has no group there.
    fn file(&self, launch: u64, controller: &str, v1: &str, v2: &str) -> Option<String> {
        let name = if self.layout.speaks_v2(controller) { v2 } else { v1 };
        let dir = self.layout.root_of(controller)?.join("proffer").join(&self.instance);
        let text = fs::read_to_string(dir.join(self.slot(launch)).join(name)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The name of its group.
    fn slot(&self, launch: u64) -> String {
        let text = fs::read_link(self.held.join(super::name(LaunchId(launch)))).expect("held");
        format!("slot-{:0>16}", text.to_str().expect("text").split(' ').next().expect("a word"))
    }

    /// Runs a script in a container's group, from its first byte on.
    fn run(&self, entry: Entry, script: &str) -> Child {
        let child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let files: Vec<Arc<OwnedFd>> = match entry {
            Entry::Tasks(files) => files,
            Entry::Directory(dir) => {
                let path = format!("/proc/self/fd/{}/cgroup.procs", std::os::fd::AsRawFd::as_raw_fd(&dir));
                vec![Arc::new(fs::OpenOptions::new().write(true).open(path).expect("cgroup.procs").into())]
            }
        };
        for file in files {
            rustix::io::write(&file, child.id().to_string().as_bytes()).expect("moved");
        }
        child.stdin.as_ref().expect("a pipe").write_all(b"go\n").expect("written");
        child
    }
}

#[derive(Default)]
struct Asked {
    cpuset: Ranges,
    io: Io,
    hugetlb: BTreeMap<u64, u64>,
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
    let instance = format!("test-{name}-{}", std::process::id());
    let held = std::env::temp_dir().join(format!("proffer-{instance}"));
    let tree = Tree::create(layout.clone(), &instance, &held, 0).expect("a cgroup tree");
    Some(TestTree { tree, held, layout, instance })
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_group_is_made_limited_and_removed() {
    let Some(tree) = tree("limits") else { return };
    tree.take(1, &LIMITS);
    tree.take(1, &LIMITS);
    assert_eq!(tree.launches(), [LaunchId(1)], "taking it twice is fine");
    let v2 = tree.layout.is_v2();
    let file = |controller: &str, v1: &str, v2: &str| tree.file(1, controller, v1, v2).expect(v2);
    assert_eq!(file("pids", "pids.max", "pids.max"), "21");
    assert_eq!(file("memory", "memory.limit_in_bytes", "memory.max"), (32 << 20).to_string());
    assert_eq!(file("cpu", "cpu.shares", "cpu.weight"), if v2 { "50" } else { "512" });
    assert_eq!(file("cpu", "cpu.cfs_quota_us", "cpu.max"), if v2 { "50000 100000" } else { "50000" });
    if v2 {
        assert_eq!(file("memory", "", "memory.oom.group"), "1");
    }
    assert!(tree.tree.remove().is_err(), "a tree with a container in it stays");
    tree.spoil(LaunchId(1));
    tree.release(1);
    assert!(tree.tree.release(LaunchId(1)).expect("again"), "releasing it twice is fine");
    assert!(!tree.group(LaunchId(1)).exists() && tree.usage(LaunchId(1)).is_err());
    tree.tree.remove().expect("the tree is removed");
}

#[test]
fn a_burst_is_above_what_is_promised() {
    let Some(tree) = tree("burst") else { return };
    let v2 = tree.layout.is_v2();
    let limits = Limits { cpus_milli_max: Some(1500), memory_bytes_max: Some(64 << 20), ..LIMITS };
    tree.take(1, &limits);
    tree.take(2, &Limits { cpus_milli: 3, cpus_milli_max: None, memory_bytes_max: None, ..LIMITS });
    let file =
        |launch, controller: &str, v1: &str, v2: &str| tree.file(launch, controller, v1, v2).expect(v2);
    assert_eq!(file(1, "cpu", "cpu.shares", "cpu.weight"), if v2 { "50" } else { "512" });
    assert_eq!(file(1, "cpu", "cpu.cfs_quota_us", "cpu.max"), if v2 { "150000 100000" } else { "150000" });
    assert_eq!(file(1, "memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    let kept = file(1, "memory", "memory.soft_limit_in_bytes", "memory.low");
    assert_eq!(kept, (32 << 20).to_string());
    assert_eq!(file(2, "cpu", "cpu.cfs_quota_us", "cpu.max"), if v2 { "max 100000" } else { "-1" });
    let most = file(2, "memory", "memory.limit_in_bytes", "memory.max");
    assert!(most == "max" || most.parse::<u64>().is_ok_and(|most| most > 1 << 60), "{most}");
    let above = || {
        let dir = tree.layout.root_of("memory").expect("memory").join("proffer").join(&tree.instance);
        super::read_number(dir.join("memory.low")).expect("memory.low")
    };
    if v2 {
        assert_eq!(above(), 64 << 20, "both promises are kept by the group above");
    }
    tree.release(1);
    if v2 {
        assert_eq!(above(), 32 << 20);
    }
    tree.release(2);
}

#[test]
fn a_container_is_made_larger_and_smaller() {
    let Some(tree) = tree("resize") else { return };
    let entry = tree.take(1, &LIMITS);
    let most = || tree.file(1, "memory", "memory.limit_in_bytes", "memory.max").expect("memory");
    tree.tree.resize(LaunchId(1), 1000, 64 << 20).expect("larger");
    assert_eq!(most(), (64 << 20).to_string());
    let v2 = tree.layout.is_v2();
    let quota = tree.file(1, "cpu", "cpu.cfs_quota_us", "cpu.max").expect("cpu");
    assert_eq!(quota, if v2 { "100000 100000" } else { "100000" });
    // 40 MiB in a shell's variable, held until it is told to go on.
    let script = "x=$(head -c 20971520 /dev/zero | tr '\\000' x); read go";
    let mut child = tree.run(entry, script);
    until("it holds its memory", || tree.usage(LaunchId(1)).expect("usage").memory_bytes > 20 << 20);
    tree.tree.resize(LaunchId(1), 500, 8 << 20).expect("smaller than what it uses");
    assert!(child.try_wait().expect("waited").is_none(), "what it uses is not taken away");
    assert!(most().parse::<u64>().is_ok_and(|most| most > 20 << 20 && most < 64 << 20), "{}", most());
    // What it used stands in nobody's way any more.
    child.kill().expect("killed");
    child.wait().expect("waited");
    assert_eq!(tree.tree.resize(LaunchId(1), 500, 8 << 20).expect("smaller"), Room::Made);
    assert_eq!(most(), (8 << 20).to_string());
    assert_eq!(tree.file(1, "pids", "pids.max", "pids.max").expect("pids"), "21");
    tree.spoil(LaunchId(1));
    tree.release(1);
    tree.tree.resize(LaunchId(1), 500, 8 << 20).expect("of one that is gone nothing happens");
}

#[test]
fn cache_stands_in_no_limits_way() {
    let Some(tree) = tree("cache") else { return };
    let entry = tree.take(1, &Limits { memory_bytes_max: Some(64 << 20), ..LIMITS });
    // Not on a tmpfs, whose files cannot be taken back.
    let file = format!("/var/tmp/proffer-cache-{}", std::process::id());
    let script = format!("dd if=/dev/zero of={file} bs=1M count=30 conv=fsync 2>/dev/null; read go");
    let mut child = tree.run(entry, &script);
    let used = || tree.usage(LaunchId(1)).expect("usage").memory_bytes;
    until("it has written", || used() > 25 << 20);
    until("there is room", || tree.tree.resize(LaunchId(1), 500, 8 << 20).expect("smaller") == Room::Made);
    let most = tree.file(1, "memory", "memory.limit_in_bytes", "memory.max").expect("memory");
    assert_eq!(most, (8 << 20).to_string());
    assert!(used() <= 8 << 20, "{}", used());
    assert!(child.try_wait().expect("waited").is_none(), "nothing is killed for it");
    child.kill().expect("killed");
    child.wait().expect("waited");
    fs::remove_file(&file).expect("our own");
    tree.spoil(LaunchId(1));
    tree.release(1);
}

#[test]
fn what_cannot_be_had_is_refused_by_its_field() {
    let Some(tree) = tree("refused") else { return };
    let refused = |launch, asked: Asked| match tree.take_with(launch, &LIMITS, &asked) {
        Err(Error::Refused { field, why }) => {
            tree.release(launch);
            eprintln!("{field}: {why}");
            field
        }
        other => panic!("{other:?}"),
    };
    let cpuset = Ranges::new("cpus", [(0, 4095)]).expect("a range");
    assert_eq!(refused(1, Asked { cpuset, ..Asked::default() }), "container.cpuset");
    let limit = IoLimit { read_bytes: 1 << 20, ..IoLimit::default() };
    let io = Io { weight: 0, limits: [("4095:1".to_owned(), limit)].into() };
    assert_eq!(refused(2, Asked { io, ..Asked::default() }), "container.io.limits[4095:1]");
    let hugetlb = [(3 << 20, 1)].into();
    assert_eq!(refused(3, Asked { hugetlb, ..Asked::default() }), "container.hugetlb[3145728]");
    assert!(tree.launches().is_empty());
}

#[test]
fn what_only_some_ask_for_is_set_and_not_passed_on() {
    let Some(tree) = tree("extras") else { return };
    let mut asked = Asked { cpuset: Ranges::new("cpus", [(0, 0)]).expect("a range"), ..Asked::default() };
    if let Some(device) = block_device() {
        let limit = IoLimit { read_bytes: 1 << 20, write_bytes: 2 << 20, read_ops: 3, write_ops: 4 };
        asked.io.limits.insert(device, limit);
    }
    let size = super::hugetlb::sizes().into_iter().find(|_| tree.layout.root_of("hugetlb").is_some());
    if let Some(size) = size {
        asked.hugetlb.insert(size, size * 2);
    }
    let entry = tree.take_with(1, &LIMITS, &asked).expect("all there");
    assert_eq!(tree.file(1, "cpuset", "cpuset.cpus", "cpuset.cpus").as_deref(), Some("0"));
    if let Some(device) = asked.io.limits.keys().next() {
        let rates = tree.file(1, "io", "blkio.throttle.write_bps_device", "io.max").expect("io");
        assert!(rates.contains(device.as_str()) && rates.contains("2097152"), "{rates}");
    }
    let huge = |launch| {
        let mib = size.unwrap_or(0) >> 20;
        let name = if mib >= 1024 { format!("{}GB", mib >> 10) } else { format!("{mib}MB") };
        let v1 = format!("hugetlb.{name}.limit_in_bytes");
        tree.file(launch, "hugetlb", &v1, &format!("hugetlb.{name}.max"))
    };
    if let Some(size) = size {
        assert_eq!(huge(1), Some((size * 2).to_string()));
    }
    // One that is there can be moved in, and sees what it may use.
    let mut child = tree.run(entry, "test \"$(nproc)\" = 1");
    assert!(child.wait().expect("waited").success());
    let first = tree.slot(1);
    tree.release(1);
    tree.take(2, &LIMITS);
    assert_ne!(tree.slot(2), first, "a group that had more than limits is not used again");
    assert!(tree.file(2, "cpuset", "cpuset.cpus", "cpuset.cpus").is_none_or(|cpus| cpus.is_empty()));
    for (v1, v2) in
        [("blkio.throttle.read_bps_device", "io.max"), ("blkio.throttle.write_iops_device", "io.max")]
    {
        assert!(tree.file(2, "io", v1, v2).is_none_or(|rates| rates.is_empty()));
    }
    assert!(huge(2).is_none_or(|bytes| bytes == "0" || tree.layout.is_v2() && size.is_none()));
    tree.release(2);
}

#[test]
fn disks_are_shared_by_weight_or_that_is_refused() {
    let Some(tree) = tree("weight") else { return };
    let asked = Asked { io: Io { weight: 5_000, ..Io::default() }, ..Asked::default() };
    match tree.take_with(1, &LIMITS, &asked) {
        Ok(_) => {
            let of = |v1, v2| tree.file(1, "io", v1, v2);
            let bfq = of("blkio.bfq.weight", "io.bfq.weight");
            let any = of("blkio.bfq.weight", "io.weight");
            let has =
                |weight: &Option<String>, value| weight.as_ref().is_some_and(|text| text.ends_with(value));
            assert!(has(&bfq, "545") || has(&any, "5000"), "{bfq:?} {any:?}");
        }
        Err(Error::Refused { field, why }) => {
            assert_eq!(field, "container.io.weight");
            eprintln!("refused: {why}");
        }
        Err(other) => panic!("{other:?}"),
    }
    tree.spoil(LaunchId(1));
    tree.release(1);
}

#[test]
fn a_group_used_again_carries_nothing_over() {
    let Some(tree) = tree("again") else { return };
    let entry = tree.take(1, &LIMITS);
    if !tree.tree.can_recycle() {
        eprintln!("SKIPPED: this kernel cannot reset the peak of a group's memory");
        return;
    }
    // Memory, processor time, and a process killed for want of memory that the rest survives.
    let eat = "(exec tail /dev/zero); i=0; while [ $i -lt 40000 ]; do i=$((i+1)); done; exit 0";
    let mut child = tree.run(entry, eat);
    child.wait().expect("waited");
    until("empty", || tree.group(LaunchId(1)).population().expect("population") == 0);
    let (counters, usage) =
        (tree.counters(LaunchId(1)).expect("counters"), tree.usage(LaunchId(1)).expect("usage"));
    assert!(counters.oom_kills > 0 && usage.cpu_usec > 0, "{counters:?} {usage:?}");
    assert!(counters.memory_peak_bytes.is_some_and(|peak| peak > 30 << 20), "{counters:?}");
    let first = tree.slot(1);
    tree.release(1);

    let other = Limits {
        cpus_milli: 250,
        cpus_milli_max: Some(300),
        memory_bytes: 16 << 20,
        memory_bytes_max: Some(16 << 20),
        pids_max: 7,
    };
    let entry = tree.take(2, &other);
    if tree.slot(2) != first {
        // What the kernel had not let go of yet was too much to be passed on.
        eprintln!("SKIPPED: the group kept more than may be passed on");
        return;
    }
    let v2 = tree.layout.is_v2();
    let file = |controller: &str, v1: &str, v2: &str| tree.file(2, controller, v1, v2).expect(v2);
    assert_eq!(file("pids", "pids.max", "pids.max"), "8");
    assert_eq!(file("memory", "memory.limit_in_bytes", "memory.max"), (16 << 20).to_string());
    assert_eq!(file("cpu", "cpu.shares", "cpu.weight"), if v2 { "25" } else { "256" });
    assert_eq!(file("cpu", "cpu.cfs_quota_us", "cpu.max"), if v2 { "30000 100000" } else { "30000" });
    if tree.layout.root_of("freezer").is_some() && !v2 {
        assert_eq!(file("freezer", "freezer.state", ""), "THAWED");
    }
    let (counters, usage) =
        (tree.counters(LaunchId(2)).expect("counters"), tree.usage(LaunchId(2)).expect("usage"));
    assert_eq!((counters.oom_kills, usage.cpu_usec, usage.pids), (0, 0, 0));
    assert!(usage.memory_bytes <= 1 << 20, "{usage:?}");
    assert!(counters.memory_peak_bytes.is_some_and(|peak| peak <= 1 << 20), "{counters:?}");

    // And they count again, for this one alone: also for an agent that comes later, but for the peak on v2.
    let mut child = tree.run(entry, "exec tail /dev/zero");
    assert_eq!(child.wait().expect("waited").signal(), Some(9));
    let counters = tree.counters(LaunchId(2)).expect("counters");
    // A kernel that kills a whole group (v2) may count the first of it twice.
    assert!((1..=2).contains(&counters.oom_kills), "{counters:?}");
    assert!(
        counters.memory_peak_bytes.is_some_and(|peak| peak > 12 << 20 && peak <= 16 << 20),
        "{counters:?}"
    );
    let later = Tree::create(tree.layout.clone(), &tree.instance, &tree.held, 0).expect("a later agent");
    assert_eq!(later.counters(LaunchId(2)).expect("counters").oom_kills, counters.oom_kills);
    assert_eq!(later.launches(), [LaunchId(2)]);
    tree.release(2);

    // Nor does the third find anything in files that stayed open while two others came and went.
    let entry = tree.take(3, &LIMITS);
    if tree.slot(3) != first {
        eprintln!("SKIPPED: the group kept more than may be passed on");
        return tree.release(3);
    }
    let counters = tree.counters(LaunchId(3)).expect("counters");
    assert_eq!(counters.oom_kills, 0);
    assert!(counters.memory_peak_bytes.is_some_and(|peak| peak <= 1 << 20), "{counters:?}");
    let mut child = tree.run(entry, "exec tail /dev/zero");
    assert_eq!(child.wait().expect("waited").signal(), Some(9));
    let counters = tree.counters(LaunchId(3)).expect("counters");
    assert!((1..=2).contains(&counters.oom_kills), "{counters:?}");
    assert!(counters.memory_peak_bytes.is_some_and(|peak| peak > 28 << 20), "{counters:?}");
    tree.release(3);
}

#[test]
fn no_framework_gets_a_group_of_another() {
    let Some(tree) = tree("frameworks") else { return };
    tree.take(1, &LIMITS);
    let first = tree.slot(1);
    tree.release(1);
    let asked = Asked::default();
    let extras = Extras { cpuset: &asked.cpuset, io: &asked.io, hugetlb: &asked.hugetlb };
    tree.tree.take((LaunchId(2), FrameworkId(6)), &LIMITS, &extras, None).expect("a group");
    assert_ne!(tree.slot(2), first);
    if tree.tree.can_recycle() {
        tree.take(3, &LIMITS);
        assert_eq!(tree.slot(3), first, "it waits for its own");
        tree.release(3);
    }
    tree.release(2);
    let top = tree.layout.root_of("pids").expect("pids").join("proffer").join(&tree.instance);
    tree.remove_idle(FRAMEWORK);
    assert!(!top.join(&first).exists(), "nothing waits for a framework that is gone");
    // What waits when an agent dies is nobody's, and gone with the next one.
    tree.take(4, &LIMITS);
    let waits = tree.slot(4);
    tree.release(4);
    Tree::create(tree.layout.clone(), &tree.instance, &tree.held, 0).expect("a later agent");
    assert!(!top.join(&waits).exists());
}

#[test]
fn memory_that_stays_is_not_passed_on() {
    let Some(tree) = tree("charges") else { return };
    let dir = Path::new("/dev/shm").join(format!("proffer-{}", tree.instance));
    let entry = tree.take(1, &LIMITS);
    let first = tree.slot(1);
    // On a tmpfs: it stays charged to who wrote it for as long as it is there.
    let script = format!("head -c 4194304 /dev/zero >{}", dir.display());
    assert!(tree.run(entry, &script).wait().expect("waited").success());
    until("empty", || tree.group(LaunchId(1)).population().expect("population") == 0);
    tree.release(1);
    let entry = tree.take(2, &LIMITS);
    let _ = fs::remove_file(&dir);
    assert_ne!(tree.slot(2), first);
    assert!(tree.usage(LaunchId(2)).expect("usage").memory_bytes < 1 << 20);
    drop(entry);
    tree.release(2);
}

/// On v1 there is no cgroup.kill: what forks as fast as it can must be caught all the same.
#[test]
fn killing_leaves_nothing() {
    let Some(tree) = tree("kill") else { return };
    let entry = tree.take(2, &Limits { pids_max: 60, ..LIMITS });
    let group = tree.group(LaunchId(2));
    // It forks for as long as it may, and ignores SIGTERM.
    let mut child = tree.run(entry, "trap '' TERM; f() { (trap '' TERM; f) & f & wait; }; f");
    // The shell gives up where a fork fails: what tells is the kernel's count of such forks.
    let events = tree.layout.root_of("pids").expect("pids").join("proffer").join(&tree.instance);
    let events = events.join(tree.slot(2)).join("pids.events");
    until("the bomb meets its limit", || {
        assert!(tree.usage(LaunchId(2)).expect("usage").pids <= 61);
        let text = fs::read_to_string(&events).expect("pids.events");
        text.lines().any(|line| line.strip_prefix("max ").is_some_and(|count| count != "0"))
    });
    tree.spoil(LaunchId(2));
    let mut rounds = 0;
    until("empty", || {
        rounds += 1;
        group.kill().expect("killed");
        let _ = child.try_wait();
        group.processes().expect("readable").is_empty()
    });
    eprintln!("emptied in {rounds} rounds");
    tree.release(2);
    assert!(!group.exists(), "a group that was killed through is not used again");
}

/// A process that does nothing but fork and end: its pid is another one in each instant, and it never meets a limit.
#[test]
fn killing_catches_what_is_never_the_same_process() {
    let Some(tree) = tree("hop") else { return };
    let entry = tree.take(3, &LIMITS);
    let group = tree.group(LaunchId(3));
    let hop = "import os\nwhile True:\n  if os.fork(): os._exit(0)";
    let mut child = tree.run(entry, &format!("exec python3 -c '{hop}'"));
    if !child.wait().expect("waited").success() {
        eprintln!("SKIPPED: needs python3");
        return tree.release(3);
    }
    assert!(tree.usage(LaunchId(3)).expect("usage").pids > 0);
    let mut rounds = 0;
    until("empty", || {
        rounds += 1;
        group.kill().expect("killed");
        group.population().expect("readable") == 0
    });
    eprintln!("caught in {rounds} rounds");
    tree.spoil(LaunchId(3));
    tree.release(3);
}

#[test]
fn a_memory_hog_is_counted() {
    let Some(tree) = tree("oom") else { return };
    let entry = tree.take(3, &LIMITS);
    assert_eq!(tree.counters(LaunchId(3)).expect("counters").oom_kills, 0);
    let status = tree.run(entry, "exec tail /dev/zero").wait().expect("waited");
    assert_eq!(status.signal(), Some(9));
    let counters = tree.counters(LaunchId(3)).expect("counters");
    assert!(counters.oom_kills >= 1, "{counters:?}");
    assert!(
        counters.memory_peak_bytes.is_none_or(|peak| peak > 30 << 20 && peak <= 32 << 20),
        "{counters:?}"
    );
    tree.release(3);
}

#[test]
fn containers_reach_only_harmless_devices() {
    let Some(tree) = tree("devices") else { return };
    if tree.lacks().iter().any(|lacking| lacking.contains("devices")) {
        eprintln!("SKIPPED: {:?}", tree.lacks());
        return;
    }
    let node = std::env::temp_dir().join(format!("proffer-node-{}", tree.instance));
    let script = format!(
        "true </dev/null && echo x >/dev/null && head -c 1 /dev/urandom >/dev/null && ! true </dev/kmsg && \
         ! mknod {0} c 1 3",
        node.display()
    );
    let mut outcomes = Vec::new();
    // The rules hold in a group that is used again, too.
    for launch in [1, 2] {
        let entry = tree.take(launch, &LIMITS);
        outcomes.push(tree.run(entry, &script).wait().expect("waited").success());
        until("empty", || tree.group(LaunchId(launch)).population().expect("population") == 0);
        tree.release(launch);
    }
    let _ = fs::remove_file(&node);
    assert_eq!(outcomes, [true, true]);
}

/// A block device that limits can be set on, as `MAJOR:MINOR`.
fn block_device() -> Option<String> {
    let disks = fs::read_dir("/sys/block").ok()?.flatten();
    let mut real = disks.filter(|disk| !disk.file_name().to_string_lossy().starts_with("zram"));
    let device = real.find_map(|disk| fs::read_to_string(disk.path().join("dev")).ok());
    if device.is_none() {
        eprintln!("no block device here: its limits are not tried");
    }
    device.map(|device| device.trim().to_owned())
}
