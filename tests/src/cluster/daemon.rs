//! One program of the cluster, with its log, started and ended at will.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::until;

/// How long a program may take to end once it is told to.
const END_LIMIT: Duration = Duration::from_secs(20);

/// A master or an agent.
#[derive(Debug)]
pub struct Daemon {
    /// For people.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Where its output goes.
    pub log: PathBuf,
    /// The directory that it keeps: the data directory of a master, the work directory of an agent.
    pub dir: PathBuf,
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) namespace: Option<String>,
    pub(super) child: Option<Child>,
}

impl Daemon {
    /// A command with these arguments, in the daemon's network, that sees nothing of our environment.
    pub(super) fn command(&self, more: &[&str]) -> Command {
        let mut command = match &self.namespace {
            None => Command::new(&self.program),
            // Not `ip netns exec`, which hides the cgroups behind a new /sys.
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(&self.program);
                command
            }
        };
        command.args(&self.args).args(more).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null());
        command
    }

    /// Starts it, or starts it again.
    ///
    /// # Panics
    /// If it runs, or cannot be started.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.unwrap_or_else(|error| panic!("{}: {error}", self.log.display()));
        let mut command = self.command(&[]);
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let child = command.spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{}: {error}", self.program.display())));
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it was not started.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name));
        Pid::from_raw(child.id().try_into().expect("a process id is positive and small"))
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it does not run.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.name));
    }

    /// kill -9, waited for.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap_or_else(|| panic!("{} does not run", self.name));
        child.kill().unwrap_or_else(|error| panic!("SIGKILL to {}: {error}", self.name));
        child.wait().unwrap_or_else(|error| panic!("wait for {}: {error}", self.name));
    }

    /// SIGTERM, waited for.
    ///
    /// # Panics
    /// If it does not run, or does not end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended().await
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end.
    pub async fn ended(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        let status = until(&what, END_LIMIT, async || self.poll()).await;
        self.child = None;
        status
    }

    /// How it ended, if it has by itself.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Everything it has written.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// kill -9 if it runs at all.
    pub(super) fn put_down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
