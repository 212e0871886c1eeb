//! `proffer dev` leaves the machine as it found it.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proffer_tests::cluster::{audit, is_root, program, ran, until};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{LIMIT, alone, best, good};

/// Ports that the cluster takes from the first on.
const PORTS: u16 = 20;

/// `proffer dev`, whose temporary files go into a directory of ours.
struct Dev {
    child: Child,
    masters: String,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Dev {
    async fn start(temp: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(program("proffer"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("TMPDIR", temp);
        command.args(["dev", "--containerizer", best()]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("proffer dev starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let ready = timeout(LIMIT, lines.next_line()).await.expect("it is ready in time").expect("text");
        let ready = ready.expect("it says that it is ready");
        let masters = ready.strip_prefix("ready master=").unwrap_or_else(|| panic!("{ready}")).to_owned();
        Self { child, masters, lines }
    }

    async fn proffer(&self, args: &[&str]) -> String {
        let mut command = Command::new(program("proffer"));
        command.env_clear().arg("--master").arg(&self.masters).args(args).kill_on_drop(true);
        good(ran(command, LIMIT).await)
    }

    async fn interrupt(mut self) {
        self.signal(Signal::SIGINT);
        let status = timeout(LIMIT, self.child.wait()).await.expect("it ends in time").expect("its end");
        assert!(status.success(), "{status}");
        assert_eq!(self.lines.next_line().await.expect("text"), None, "nothing more on standard output");
    }
}

impl Dev {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            // Not waited for yet, so the number is still its own.
            let _ = kill(Pid::from_raw(pid.try_into().expect("small")), signal);
        }
    }
}

impl Drop for Dev {
    /// A test that fails in between must not leave a cluster.
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
        let until = Instant::now() + LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::yield_now();
        }
        self.signal(Signal::SIGKILL);
    }
}

/// What belongs to a running cluster, to be looked for when it is gone.
#[derive(Debug, Default)]
struct Traces {
    processes: BTreeSet<(audit::RawPid, u64)>,
    groups: BTreeSet<PathBuf>,
    namespaces: BTreeSet<String>,
}

impl Traces {
    fn of(dir: &Path) -> Self {
        let mut pids: BTreeSet<audit::RawPid> = audit::processes(dir).into_iter().collect();
        let mut groups = BTreeSet::new();
        for n in 1..=2 {
            let work = dir.join(format!("agent-{n}/work"));
            pids.extend(audit::contained(&work));
            groups.extend(audit::groups(&work));
        }
        let own = namespaces("self");
        let namespaces = pids.iter().flat_map(|pid| namespaces(&pid.to_string()));
        Self {
            namespaces: namespaces.filter(|space| !own.contains(space)).collect(),
            processes: pids.iter().filter_map(|&pid| Some((pid, audit::stat(pid)?.start))).collect(),
            groups,
        }
    }

    fn left(&self) -> Vec<String> {
        let runs =
            |(pid, start): &&(audit::RawPid, u64)| audit::stat(*pid).is_some_and(|stat| stat.start == *start);
        let processes = self.processes.iter().filter(runs).map(|(pid, _)| format!("process {pid}"));
        let groups =
            self.groups.iter().filter(|group| group.exists()).map(|group| group.display().to_string());
        let in_use: BTreeSet<String> =
            audit::all_processes().into_iter().flat_map(|pid| namespaces(&pid.to_string())).collect();
        let namespaces = self.namespaces.intersection(&in_use).cloned();
        processes.chain(groups).chain(namespaces).collect()
    }
}

/// A process's namespaces, as in `mnt:[4026531841]`.
fn namespaces(pid: &str) -> BTreeSet<String> {
    let links = fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().flatten();
    links.filter_map(|link| Some(fs::read_link(link.path()).ok()?.to_string_lossy().into_owned())).collect()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("a directory").flatten().map(|entry| entry.path()).collect()
}

/// The first of some free ports, out of the range that connections take theirs from.
fn free_ports() -> u16 {
    let from = 20_000 + u16::try_from(std::process::id() % 10_000).expect("small");
    let free =
        |first: &u16| (*first..*first + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    (from..32_000).step_by(PORTS.into()).find(free).expect("free ports")
}

/// Mounts and interfaces of the machine that bear our name, and sockets and files where they might be left.
fn surroundings(dir: &Path) -> audit::Look {
    let dir = dir.to_string_lossy().into_owned();
    // Other programs of ours may be at work on this machine: what is theirs does not name this directory.
    audit::Look::now(move |text| {
        text.contains(&dir) || text.starts_with("/run/proffer") || text.starts_with("/var/lib/proffer")
    })
}

#[tokio::test]
async fn a_local_cluster_leaves_no_trace_and_is_resumed_where_it_was_kept() {
    let _machine = alone().await;
    let root = is_root("a_local_cluster_leaves_no_trace_and_is_resumed_where_it_was_kept");
    let temp = tempfile::Builder::new().prefix("proffer-").tempdir().expect("a directory");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).expect("its own");
    let before = surroundings(temp.path());
    let port = free_ports().to_string();
    let shape = ["--masters", "3", "--agents", "2", "--port", &port];

    // In a temporary directory, which goes.
    let dev = Dev::start(temp.path(), &shape).await;
    assert_eq!(dev.proffer(&["run", "--", "echo", "hi"]).await, "hi\n");
    dev.proffer(&["run", "--detach", "--array", "1-4", "--", "sleep", "300"]).await;
    until("four tasks run", LIMIT, async || {
        let list = dev.proffer(&["--quiet", "task", "list", "--state", "RUNNING"]).await;
        (list.lines().count() == 4).then_some(())
    })
    .await;
    let traces = Traces::of(&entries(temp.path())[0]);
    assert!(traces.processes.len() > 6, "masters, agents, supervisors, tasks: {traces:?}");
    assert!(!root || (traces.groups.len() > 2 && traces.namespaces.len() >= 4), "{traces:?}");
    dev.interrupt().await;
    assert_eq!(traces.left(), Vec::<String>::new());
    assert_eq!(entries(temp.path()), Vec::<PathBuf>::new());
    assert_eq!(surroundings(temp.path()).new_since(&before), Vec::<String>::new());

    // In a given one, which stays and is resumed.
    let kept = temp.path().join("kept");
    let with_dir = [&shape[..], &["--dir", kept.to_str().expect("text")]].concat();
    let dev = Dev::start(temp.path(), &with_dir).await;
    dev.proffer(&["run", "--name", "remembered", "--", "true"]).await;
    let cluster: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(kept.join("cluster.json")).expect("it is there"))
            .expect("JSON");
    assert_eq!(
        (cluster["masters"].as_array().map(Vec::len), cluster["agents"].as_array().map(Vec::len)),
        (Some(3), Some(2))
    );
    assert_eq!(cluster["masters"][0]["addr"], format!("127.0.0.1:{port}"));
    let traces = Traces::of(&kept);
    dev.interrupt().await;
    assert_eq!(traces.left(), Vec::<String>::new());
    assert_eq!(entries(temp.path()), std::slice::from_ref(&kept), "nothing outside of it");
    let dev = Dev::start(temp.path(), &["--dir", kept.to_str().expect("text")]).await;
    assert!(dev.proffer(&["task", "list"]).await.contains("remembered"));
    let traces = Traces::of(&kept);
    dev.interrupt().await;
    assert_eq!(traces.left(), Vec::<String>::new());
    temp.close().expect("removed");
}

#[tokio::test]
async fn the_first_offer_and_the_first_hello_are_quick() {
    let _machine = alone().await;
    let temp = tempfile::Builder::new().prefix("proffer-").tempdir().expect("a directory");
    let port = free_ports().to_string();
    let begun = Instant::now();
    let dev = Dev::start(temp.path(), &["--masters", "3", "--agents", "2", "--port", &port]).await;
    let ready = begun.elapsed();
    assert_eq!(dev.proffer(&["run", "--", "echo", "hi"]).await, "hi\n");
    let hello = begun.elapsed() - ready;
    dev.interrupt().await;
    println!("ready after {ready:?}, hello after another {hello:?}");
    // The promise is 2 s and 1 s; a machine that does something else beside may take a little longer.
    assert!(ready < Duration::from_secs(4) && hello < Duration::from_secs(2), "{ready:?} {hello:?}");
}
