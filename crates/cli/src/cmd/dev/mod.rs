//! `proffer dev`: a cluster of the real programs on this machine, until Ctrl-C.

mod children;
mod layout;
mod share;
mod tidy;

use std::io::Write;
use std::time::Duration;

use proffer_client::AdminClient;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::args::{Containerizer, DevArgs};
use crate::fail::{Code, Failure};
use crate::render::Out;
use children::{Children, Daemon};
use layout::Layout;

/// How long the cluster may take to begin.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at a cluster that begins.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// One look.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);
/// How long tasks may take to end at the end: their grace and a little.
const TASKS_END_TIMEOUT: Duration = Duration::from_secs(9);
/// How long a daemon may take to end after SIGTERM.
const DAEMON_END_TIMEOUT: Duration = Duration::from_secs(4);
/// How long an agent may take to remove what it has made.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(15);
/// A daemon that dies is started again after this, as a service manager would; doubles while it keeps dying.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(16);
/// Lines of a log that are shown when its daemon does not start.
const LOG_LINES: usize = 15;

pub(crate) async fn dev(args: DevArgs, out: &Out) -> Result<u8, Failure> {
    if !nix::unistd::geteuid().is_root() && args.containerizer != Containerizer::Process {
        let what = "`proffer dev` needs root to run tasks in containers";
        let next = "run it as root, or run tasks as plain processes, without isolation or limits: \
                    proffer dev --containerizer process";
        return Err(Failure::new(Code::Denied, what).next(next));
    }
    let mut signals = Signals::listen()?;
    let layout = Layout::prepare(&args)?;
    let mut dev = Dev { children: Children::new()?, layout, quiet: out.is_quiet() };
    let result = dev.serve(&mut signals).await;
    dev.stop(&mut signals).await;
    result.map(|()| 0)
}

struct Dev {
    children: Children,
    layout: Layout,
    quiet: bool,
}

impl Dev {
    async fn serve(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        for daemon in self.layout.daemons() {
            self.children.start(daemon)?;
        }
        self.layout.write(&self.children)?;
        tokio::select! {
            ready = timeout(READY_TIMEOUT, self.children.first_death_or(wait_until_ready(&self.layout))) => match ready {
                Ok(Ok(())) => {}
                Ok(Err(dead)) => return Err(self.not_started(&dead)),
                Err(_) => return Err(self.not_ready().await),
            },
            () = signals.any() => return Ok(()),
        }
        let masters = self.layout.masters().join(",");
        let mut stdout = std::io::stdout().lock();
        drop(writeln!(stdout, "ready master={masters}").and_then(|()| stdout.flush()));
        drop(stdout);
        self.say(&format!("state and logs are in {}; Ctrl-C ends it", self.layout.dir().display()));
        self.say(&format!("try: {}proffer run -- echo hello", self.layout.hint()));
        loop {
            tokio::select! {
                () = signals.any() => return Ok(()),
                dead = self.children.death() => self.on_death(dead, signals).await?,
            }
        }
    }

    /// Starts a daemon again; returns early on a signal.
    async fn on_death(&mut self, dead: Daemon, signals: &mut Signals) -> Result<(), Failure> {
        let pause =
            (RESTART_PAUSE * 2u32.saturating_pow(dead.deaths.saturating_sub(1))).min(RESTART_PAUSE_MAX);
        self.say(&format!(
            "{} {}; it is started again in {pause:?} (its log: {})",
            dead.name,
            dead.end,
            dead.log.display()
        ));
        tokio::select! {
            () = sleep(pause) => {}
            () = signals.any() => {
                signals.put_back();
                return Ok(());
            }
        }
        self.children.start(dead)?;
        self.layout.write(&self.children)
    }

    fn not_started(&self, dead: &Daemon) -> Failure {
        let what = format!("{} did not start: it {}", dead.name, dead.end);
        let log = std::fs::read_to_string(&dead.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n    ");
        Failure::new(Code::Failed, what).next(format!("the end of {}:\n    {tail}", dead.log.display()))
    }

    async fn not_ready(&self) -> Failure {
        let why = match look(&self.layout).await {
            Ok(missing) => missing,
            Err(failure) => failure.what,
        };
        let what = format!("the cluster is not ready after {READY_TIMEOUT:?}: {why}");
        Failure::new(Code::Unavailable, what).next(format!("see the logs in {}", self.layout.dir().display()))
    }

    /// Ends tasks, agents, what they left, masters; a further signal hurries it.
    async fn stop(mut self, signals: &mut Signals) {
        tokio::select! {
            () = self.end_tasks() => {}
            () = signals.any() => {}
        }
        self.children.end(Daemon::is_agent, DAEMON_END_TIMEOUT).await;
        for clean_up in self.layout.clean_ups() {
            self.children.run_to_end(clean_up, CLEAN_UP_TIMEOUT).await;
        }
        self.children.end_orphans(DAEMON_END_TIMEOUT).await;
        self.children.end(|_| true, DAEMON_END_TIMEOUT).await;
        tidy::unmount_below(self.layout.dir());
        self.layout.remove();
    }

    async fn end_tasks(&self) {
        let admin = AdminClient::new(&self.layout.masters()).with_deadline(Duration::from_secs(2));
        let Ok(frameworks) = admin.frameworks(true).await else { return };
        let completed = |framework: &&proffer_client::rows::FrameworkRow| framework.state != "COMPLETED";
        for framework in frameworks.iter().filter(completed) {
            drop(admin.teardown(framework.id).await);
        }
        let until = Instant::now() + TASKS_END_TIMEOUT;
        while Instant::now() < until {
            match admin.agents().await {
                Ok(agents) if agents.iter().any(|agent| agent.connected && agent.live_tasks > 0) => {
                    sleep(LOOK_EVERY).await;
                }
                _ => return,
            }
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            eprintln!("proffer dev: {text}");
        }
    }
}

/// Until a leader serves and all agents have a session with it.
async fn wait_until_ready(layout: &Layout) {
    while !matches!(look(layout).await, Ok(missing) if missing.is_empty()) {
        sleep(LOOK_EVERY).await;
    }
}

/// What is missing; empty if nothing is.
async fn look(layout: &Layout) -> Result<String, Failure> {
    let admin = AdminClient::new(&layout.masters()).with_deadline(LOOK_TIMEOUT);
    let (_, status) = admin.status().await?;
    let agents = admin.agents().await?;
    let connected = agents.iter().filter(|agent| agent.connected).count();
    Ok(match layout.agents_wanted() {
        _ if status.leader.is_empty() => "there is no leader".into(),
        wanted if connected < wanted => format!("{connected} of {wanted} agents are connected"),
        _ => String::new(),
    })
}

/// Ctrl-C, SIGTERM, SIGHUP of a closed terminal.
struct Signals {
    all: [Signal; 3],
    pending: bool,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Code::Failed, format!("cannot listen for signals: {error}")))
        };
        let all = [
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ];
        Ok(Self { all, pending: false })
    }

    async fn any(&mut self) {
        if std::mem::take(&mut self.pending) {
            return;
        }
        let [interrupt, terminate, hangup] = &mut self.all;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }

    /// The last signal is to be seen again.
    fn put_back(&mut self) {
        self.pending = true;
    }
}
