//! The daemons, and everything that is left behind by them: this process is a subreaper, so whatever an agent starts
//! and leaves becomes its child.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout};

use crate::fail::{Code, Failure};

/// How often orphans are looked for while they are being ended.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How a program ends that has done its work.
const ENDED_WELL: &str = "exited with code 0";

/// A daemon to start, or one that has died.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    pub(super) agent: bool,
    pub(super) n: u16,
    /// For people.
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    /// Variables that it must not see.
    pub(super) unset: Vec<String>,
    pub(super) log: PathBuf,
    pub(super) deaths: u32,
    /// How it ended last.
    pub(super) end: String,
}

impl Daemon {
    pub(super) fn is_agent(&self) -> bool {
        self.agent
    }
}

/// All children.
pub(super) struct Children {
    daemons: BTreeMap<Pid, Daemon>,
    dead: Vec<Daemon>,
    changed: tokio::signal::unix::Signal,
}

impl Children {
    /// Makes this process the parent of whatever its descendants leave behind.
    pub(super) fn new() -> Result<Self, Failure> {
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|errno| Failure::new(Code::Failed, format!("cannot become a subreaper: {errno}")))?;
        let changed = signal(SignalKind::child())
            .map_err(|error| Failure::new(Code::Failed, format!("cannot listen for SIGCHLD: {error}")))?;
        Ok(Self { daemons: BTreeMap::new(), dead: Vec::new(), changed })
    }

    pub(super) fn start(&mut self, daemon: Daemon) -> Result<(), Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::new(Code::Failed, format!("cannot {what} for {}: {error}", daemon.name))
        };
        let log = OpenOptions::new().create(true).append(true).open(&daemon.log);
        let log = log.map_err(|error| failed(&format!("open {}", daemon.log.display()), error))?;
        let errors = log.try_clone().map_err(|error| failed("share the log", error))?;
        let mut command = Command::new(&daemon.program);
        command.args(&daemon.args).stdin(Stdio::null()).stdout(log).stderr(errors);
        for name in &daemon.unset {
            command.env_remove(name);
        }
        // A process group of its own: Ctrl-C is ours, and the end has an order.
        command.process_group(0);
        let child =
            command.spawn().map_err(|error| failed(&format!("start {}", daemon.program.display()), error))?;
        // Waited for by `reap` together with all other children.
        self.daemons.insert(Pid::from_raw(child.id() as i32), daemon);
        Ok(())
    }

    pub(super) fn pid(&self, agent: bool, n: u16) -> Option<u32> {
        let found = self.daemons.iter().find(|(_, daemon)| daemon.agent == agent && daemon.n == n);
        found.map(|(pid, _)| pid.as_raw().unsigned_abs())
    }

    /// Waits for a daemon's death.
    pub(super) async fn death(&mut self) -> Daemon {
        loop {
            self.reap();
            if let Some(daemon) = self.dead.pop() {
                return daemon;
            }
            self.changed.recv().await;
        }
    }

    /// Waits for `work`, or for a daemon's death if that comes first.
    pub(super) async fn first_death_or(&mut self, work: impl Future<Output = ()>) -> Result<(), Daemon> {
        tokio::select! {
            dead = self.death() => Err(dead),
            () = work => Ok(()),
        }
    }

    /// SIGTERM to the daemons that `which` says, SIGKILL to those that do not end in time.
    pub(super) async fn end(&mut self, which: impl Fn(&Daemon) -> bool, within: Duration) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let pids: Vec<Pid> = self.daemons.iter().filter(|(_, d)| which(d)).map(|(pid, _)| *pid).collect();
            // A daemon that has died just now is still a zombie of ours: the number is not another's.
            for pid in pids {
                let _ = kill(pid, signal);
            }
            let gone = async {
                self.reap();
                while self.daemons.values().any(&which) {
                    self.changed.recv().await;
                    self.reap();
                }
            };
            if timeout(within, gone).await.is_ok() {
                return;
            }
        }
    }

    /// Runs something to its end and says if that was none.
    pub(super) async fn run_to_end(&mut self, program: Daemon, within: Duration) {
        let (name, log) = (program.name.clone(), program.log.clone());
        if let Err(failure) = self.start(program) {
            eprintln!("{failure}");
            return;
        }
        let ended = timeout(within, async {
            loop {
                let dead = self.death().await;
                if dead.name == name {
                    return dead.end;
                }
            }
        });
        match ended.await {
            Ok(end) if end == ENDED_WELL => {}
            Ok(end) => eprintln!("proffer dev: {name} {end} (its log: {})", log.display()),
            Err(_) => {
                eprintln!("proffer dev: {name} did not end within {within:?} (its log: {})", log.display())
            }
        }
    }

    /// Ends every child that is no daemon, and the children that become ours by that.
    pub(super) async fn end_orphans(&mut self, within: Duration) {
        let deadline = Instant::now() + 2 * within;
        let gently_until = Instant::now() + within;
        let mut told: Vec<Pid> = Vec::new();
        loop {
            self.reap();
            let orphans: Vec<Pid> =
                own_children().into_iter().filter(|pid| !self.daemons.contains_key(pid)).collect();
            if orphans.is_empty() || Instant::now() >= deadline {
                return;
            }
            for pid in orphans {
                // They are our children and not waited for yet, so the numbers are still theirs.
                if Instant::now() >= gently_until {
                    let _ = kill(pid, Signal::SIGKILL);
                } else if !told.contains(&pid) {
                    let _ = kill(pid, Signal::SIGTERM);
                    told.push(pid);
                }
            }
            drop(timeout(LOOK_EVERY, self.changed.recv()).await);
        }
    }

    /// Waits for all children that have died.
    fn reap(&mut self) {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => {
                    let Some(mut daemon) = status.pid().and_then(|pid| self.daemons.remove(&pid)) else {
                        continue;
                    };
                    daemon.deaths += 1;
                    daemon.end = match status {
                        WaitStatus::Exited(_, code) => format!("exited with code {code}"),
                        WaitStatus::Signaled(_, signal, _) => format!("was ended by {signal}"),
                        other => format!("{other:?}"),
                    };
                    self.dead.push(daemon);
                }
                Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// The processes whose parent is this one, by /proc.
fn own_children() -> Vec<Pid> {
    let own = nix::unistd::getpid().as_raw();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pid = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    let is_ours = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name is in parentheses and may hold anything; the parent is the second field after it.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parent == Some(own)
    };
    entries.flatten().filter_map(pid).filter(is_ours).map(Pid::from_raw).collect()
}
