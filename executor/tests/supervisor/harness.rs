//! A supervisor in a directory of its own, and what speaks to it as an agent does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use proffer_launcher::{proc, seqpacket};
use proffer_wire::journal::{Journal, Recorded};
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::*;
use prost::Message as _;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A running supervisor and its directories; ended and removed on drop.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) pid: i32,
    ticks: u64,
    isolation: Isolation,
}

impl Node {
    pub(crate) fn start(isolation: Isolation) -> Self {
        // The runtime directory belongs on a tmpfs.
        let base = Path::new("/dev/shm");
        let base = if base.is_dir() { base.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("proffer-executor").tempdir_in(base).expect("temp dir");
        let output = Self::command(dir.path(), isolation).output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = fs::read_to_string(dir.path().join("run/supervisor.json")).expect("identity");
        let number = |key: &str| -> u64 {
            let rest = &text[text.find(key).expect("the key") + key.len() + 2..];
            rest[..rest.find([',', '}']).expect("an end")].parse().expect("a number")
        };
        Node { pid: number("pid") as i32, ticks: number("start_ticks"), dir, isolation }
    }

    pub(crate) fn command(dir: &Path, isolation: Isolation) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proffer-executor"));
        command.arg("--socket").arg(dir.join("socket")).arg("--runtime-dir").arg(dir.join("run"));
        let name = if isolation == Isolation::Linux { "linux" } else { "process" };
        command.args(["--instance", "i1", "--framework", "fw_1", "--isolation", name]);
        command.arg("--cover").arg(dir);
        command
    }

    pub(crate) fn connect(&self) -> Agent {
        let agent = self.connect_silent();
        agent.send(Order::Hello(Hello { protocol: 2 }), &[]);
        let Told::Welcome(welcome) = agent.recv() else { panic!("no welcome") };
        assert_eq!(
            (welcome.instance.as_str(), welcome.pid, welcome.start_ticks),
            ("i1", self.pid, self.ticks)
        );
        agent
    }

    pub(crate) fn connect_silent(&self) -> Agent {
        Agent { socket: seqpacket::connect(&self.dir.path().join("socket"), true).expect("connect") }
    }

    pub(crate) fn alive(&self) -> bool {
        proc::start_ticks(self.pid).is_ok_and(|ticks| ticks == self.ticks) && !zombie(self.pid)
    }

    pub(crate) fn logs(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("logs-{id}"))
    }

    /// Empty, as long as the pump has not begun it.
    pub(crate) fn log(&self, id: u64, name: &str) -> String {
        fs::read_to_string(self.logs(id).join(name)).unwrap_or_default()
    }

    pub(crate) fn request(&self, id: u64, script: &str) -> Launch {
        Launch {
            launch_id: id,
            argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".into()],
            uid: if root() { 65534 } else { nix::unistd::geteuid().as_raw() },
            gid: if root() { 65534 } else { nix::unistd::getegid().as_raw() },
            isolation: self.isolation.into(),
            descriptors: vec![Descriptor::SandboxDir.into(), Descriptor::LogDir.into()],
            ..Launch::default()
        }
    }

    /// Sends a launch with a sandbox and a log directory of its own.
    pub(crate) fn launch(&self, agent: &Agent, request: Launch) {
        let sandbox = self.dir.path().join(format!("sandbox-{}", request.launch_id));
        let _ = fs::create_dir(&sandbox);
        let _ = fs::create_dir(self.logs(request.launch_id));
        if root() {
            std::os::unix::fs::chown(&sandbox, Some(request.uid), Some(request.gid)).expect("chown");
        }
        let open = |path: &Path| File::open(path).expect("a directory");
        let (sandbox, logs) = (open(&sandbox), open(&self.logs(request.launch_id)));
        agent.send(Order::Launch(request), &[sandbox.as_fd(), logs.as_fd()]);
    }

    /// What the supervisor has recorded of its launches.
    pub(crate) fn recorded(&self) -> BTreeMap<u64, Recorded> {
        Journal::read(&fs::read(self.dir.path().join("run/journal")).expect("a journal")).launches
    }

    /// Of which launches it says so in a way that an agent of the first release understands.
    pub(crate) fn in_files(&self) -> Vec<u64> {
        let names = fs::read_dir(self.dir.path().join("run/launch")).expect("a directory").flatten();
        let number = |entry: fs::DirEntry| entry.file_name().to_str().expect("a number").parse();
        let mut launches = names.map(|entry| number(entry).expect("a number")).collect::<Vec<_>>();
        launches.sort_unstable();
        launches
    }

    pub(crate) fn children(&self) -> Vec<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
    }

    pub(crate) fn pump(&self) -> i32 {
        let is_pump = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"log-pump\0"))
        };
        wait_for("a pump", || self.children().into_iter().find(is_pump))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.alive() {
            kill(self.pid);
            wait_for("the end of the supervisor", || (!self.alive()).then_some(()));
        }
    }
}

pub(crate) fn kill(pid: i32) {
    signal(pid, Signal::SIGKILL);
}

/// To a process of this test.
pub(crate) fn signal(pid: i32, signal: Signal) {
    nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("it lives");
}

pub(crate) fn zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'))
}

pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        // Between two looks, not instead of one.
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

pub(crate) struct Agent {
    pub(crate) socket: OwnedFd,
}

impl Agent {
    pub(crate) fn send(&self, order: Order, descriptors: &[BorrowedFd<'_>]) {
        let body = ToSupervisor { message: Some(order) }.encode_to_vec();
        wait_for("room to send", || match seqpacket::send(self.socket.as_fd(), &body, descriptors) {
            Ok(()) => Some(()),
            Err(seqpacket::Error::WouldBlock) => None,
            Err(error) => panic!("{error}"),
        });
    }

    pub(crate) fn kill(&self, launch_id: u64, grace_ms: u64) {
        self.send(Order::Kill(Kill { launch_id, grace_ms }), &[]);
    }

    pub(crate) fn try_recv(&self) -> Option<Option<Told>> {
        match seqpacket::recv(self.socket.as_fd()) {
            Ok(Some(datagram)) => {
                let message = ToAgent::decode(datagram.body.as_slice()).expect("a message").message;
                Some(Some(message.expect("of a known kind")))
            }
            Ok(None) => Some(None),
            Err(seqpacket::Error::WouldBlock) => None,
            Err(error) => panic!("{error}"),
        }
    }

    pub(crate) fn recv(&self) -> Told {
        self.wait();
        self.try_recv().expect("readable").expect("not at its end")
    }

    /// The next message with what came along.
    pub(crate) fn recv_with(&self) -> (Told, Vec<OwnedFd>) {
        self.wait();
        let datagram = seqpacket::recv(self.socket.as_fd()).expect("readable").expect("not at its end");
        let message = ToAgent::decode(datagram.body.as_slice()).expect("a message").message;
        (message.expect("of a known kind"), datagram.descriptors)
    }

    fn wait(&self) {
        let mut poll = [nix::poll::PollFd::new(self.socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        let timeout = nix::poll::PollTimeout::try_from(DEADLINE).expect("short");
        assert_eq!(nix::poll::poll(&mut poll, timeout), Ok(1), "no message came");
    }

    pub(crate) fn closed(&self) {
        wait_for("the connection's end", || match self.try_recv() {
            Some(None) => Some(()),
            _ => None,
        });
    }

    pub(crate) fn launched(&self, id: u64) -> Launched {
        match self.recv() {
            Told::Launched(launched) if launched.launch_id == id => launched,
            other => panic!("{other:?} instead of Launched {id}"),
        }
    }

    pub(crate) fn exited(&self, id: u64) -> Exited {
        match self.recv() {
            Told::Exited(exited) if exited.launch_id == id => exited,
            other => panic!("{other:?} instead of Exited {id}"),
        }
    }

    pub(crate) fn list(&self) -> Vec<LaunchInfo> {
        self.send(Order::List(List {}), &[]);
        let mut all = Vec::new();
        loop {
            let part = match self.recv() {
                Told::Launches(part) => part,
                // What was told meanwhile is in the list too.
                Told::Launched(_) | Told::Exited(_) => continue,
                other => panic!("{other:?} instead of a list"),
            };
            all.extend(part.launches);
            if !part.more {
                return all;
            }
        }
    }
}

pub(crate) fn modes() -> Vec<Isolation> {
    if root() {
        vec![Isolation::Linux, Isolation::Process]
    } else {
        eprintln!("linux skipped: needs root");
        vec![Isolation::Process]
    }
}
