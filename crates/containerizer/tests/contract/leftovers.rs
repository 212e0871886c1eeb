//! What a container leaves: nothing for the next one, and nothing on the machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use proffer_containerizer::{Event, GcPolicy, Isolation};
use proffer_types::LaunchId;

use crate::bench::{Bench, Program, until};

/// Writes into every place that a task can write to. What is not there on this machine it leaves out.
const LEAVE: &str = "\
    echo mine >/tmp/left; echo mine >/dev/shm/left; echo mine >left; echo mine; echo mine >&2; \
    echo 500 >/proc/self/oom_score_adj || exit 1; \
    command -v ipcmk >/dev/null && { ipcmk -M 65536 && ipcmk -Q && ipcmk -S 1 || exit 2; } >/dev/null; \
    command -v python3 >/dev/null && { python3 -c '
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mq_open(b\"/proffer-left\", os.O_CREAT | os.O_RDWR, 0o666, None) >= 0, ctypes.get_errno()
# add_key(2) on the session keyring: refused by the filter, or of this container alone.
libc.syscall(248, b\"user\", b\"proffer-left\", b\"mine\", 4, -3)
' || exit 3; }; \
    exit 0";

/// Looks for it. Its output says what it found.
const LOOK: &str = "\
    ls -A /tmp /dev/shm $PROFFER_SANDBOX; cat /proc/self/oom_score_adj; \
    for kind in shm msg sem; do tail -n +2 /proc/sysvipc/$kind; done; cat /proc/self/cgroup | cut -d: -f3 | sort -u; \
    command -v python3 >/dev/null && python3 -c '
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(\"queue\") if libc.mq_open(b\"/proffer-left\", os.O_RDONLY) >= 0 else None
for ring in (-3, -4, -5):
    print(\"key\") if libc.syscall(250, 10, ring, b\"user\", b\"proffer-left\", 0) >= 0 else None
'; \
    exit 0";

fn bench() -> Option<Bench> {
    Bench::real(Isolation::Linux)
}

#[test]
fn the_next_container_finds_nothing_of_the_one_before() {
    let Some(mut bench) = bench() else { return };
    let leaves = bench.launch(&Program::Script(LEAVE));
    assert!(matches!(bench.of(leaves.launch), Event::Started { .. }));
    assert_eq!(bench.end(leaves.launch).exit_code, Some(0), "{}", bench.output(leaves.launch));
    let group = bench.group(leaves.launch);
    bench.forget(leaves.launch);
    let looks = bench.launch(&Program::Script(LOOK));
    assert!(matches!(bench.of(looks.launch), Event::Started { .. }));
    assert_eq!(bench.end(looks.launch).exit_code, Some(0));
    let same = group == bench.group(looks.launch);
    eprintln!("its cgroup is {}", if same { "the same" } else { "another" });
    let found = bench.output(looks.launch);
    let lines: Vec<&str> = found.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines, ["/dev/shm:", "/mnt/proffer/sandbox:", "/tmp:", "0", "/"], "{found}");
    bench.forget(looks.launch);
    // The first one's own output is its own still.
    assert_eq!(bench.output(leaves.launch), "mine\n");
    bench.close();
}

/// How many launches leave nothing: `PROFFER_LAUNCHES`, 300 if it is not set.
fn launches() -> usize {
    std::env::var("PROFFER_LAUNCHES").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

/// In a process of its own: descriptors and memory of this one are every test's.
#[test]
fn launches_leave_nothing() {
    const ALONE: &str = "PROFFER_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return launch_many();
    }
    let own = std::env::current_exe().expect("own path");
    let status = std::process::Command::new(own)
        .args(["leftovers::launches_leave_nothing", "--exact", "--nocapture", "--test-threads", "1"])
        .env(ALONE, "1")
        .status();
    assert!(status.expect("run").success());
}

/// What there is of one process.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    memory_kib: u64,
}

fn held(pid: u32) -> Held {
    let count = |dir: &str| fs::read_dir(format!("/proc/{pid}/{dir}")).map_or(0, Iterator::count);
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("alive");
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    let memory_kib = rss.trim().trim_end_matches(" kB").parse().expect("a number");
    Held { descriptors: count("fd"), threads: count("task"), memory_kib }
}

/// The machine's mounts of `dir`, and the namespaces of the processes that descend from `pid`.
fn mounts_and_namespaces(dir: &Path, pid: u32) -> (usize, BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mounts = mounts.lines().filter(|line| line.contains(&*dir.to_string_lossy())).count();
    let mut namespaces = BTreeSet::new();
    let mut look = vec![pid];
    while let Some(pid) = look.pop() {
        let links = fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().flatten();
        let names = links.filter_map(|link| fs::read_link(link.path()).ok());
        namespaces.extend(names.map(|name| name.to_string_lossy().into_owned()));
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        look.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    (mounts, namespaces)
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn launch_many() {
    let Some(mut bench) = bench() else { return };
    const AT_ONCE: usize = 20;
    let total = launches();
    let batch = |bench: &mut Bench| {
        let specs: Vec<_> =
            (0..AT_ONCE).map(|_| bench.launch(&Program::Script("echo x >/tmp/x; exit 3"))).collect();
        for spec in &specs {
            assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
            assert_eq!(bench.end(spec.launch).exit_code, Some(3));
            bench.agent().forget(spec.launch);
        }
        for spec in &specs {
            assert_eq!(bench.of(spec.launch), Event::Gone { launch: spec.launch });
        }
        specs[0].instance
    };
    // Warm: buffers are as large as they get, and groups wait.
    let mut instance = batch(&mut bench);
    for _ in 0..4 {
        instance = batch(&mut bench);
    }
    let supervisor = bench.supervisor_pid(instance) as u32;
    let settled = |bench: &Bench| {
        until("the supervisor has forgotten", || bench.recorded(instance).is_empty());
        assert_eq!(bench.groups(), ["", "supervisors"]);
        assert_eq!(count(&bench.runtime().join("held")), 0);
    };
    settled(&bench);
    let work = bench.work().to_owned();
    let before = (held(std::process::id()), held(supervisor), mounts_and_namespaces(&work, supervisor));
    for _ in 0..total.div_ceil(AT_ONCE) {
        batch(&mut bench);
    }
    settled(&bench);
    // What ended a moment ago may be on its way out still.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = (held(std::process::id()), held(supervisor), mounts_and_namespaces(&work, supervisor));
        if now.0.descriptors <= before.0.descriptors
            && now.0.threads == before.0.threads
            && now.1.descriptors <= before.1.descriptors
            && now.2 == before.2
        {
            break;
        }
        assert!(Instant::now() < deadline, "left: {before:?} -> {now:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    let after = (held(std::process::id()), held(supervisor));
    eprintln!(
        "{total} launches: agent {:?} -> {:?}; supervisor {:?} -> {:?}",
        before.0, after.0, before.1, after.1
    );
    // This process holds the test's own records of the launches too.
    let may_grow_kib = 1024 + total as u64 / 2;
    assert!(after.0.memory_kib <= before.0.memory_kib + may_grow_kib, "{before:?} -> {after:?}");
    assert!(after.1.memory_kib <= before.1.memory_kib + 512, "{before:?} -> {after:?}");
    // Nothing else in this process waits for collected directories.
    bench.agent().gc(GcPolicy { retention: Duration::ZERO, free_percent_min: 0 });
    until("sandboxes and logs are collected", || {
        ["sandboxes", "logs"].iter().all(|dir| count(&work.join(dir)) == 0)
    });
    assert_eq!(bench.agent().usage(LaunchId(1)), None);
    bench.close();
}
