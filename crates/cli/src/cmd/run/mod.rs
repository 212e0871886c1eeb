//! `proffer run`: a framework of its own that launches one command, or an array of it, and returns what came of it.

pub(crate) mod exit;
pub(crate) mod output;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use proffer_client::{
    Accepted, AdminClient, CallError, Ended, Event, EventStream, Handle, Launch, LogReader, LogRequest,
    LogStream, Offer, Options, RefusedKind, Scheduler,
};
use proffer_types::container::Container;
use proffer_types::{FrameworkInfo, Quantities, Resources, TaskId, TaskSpec, TaskState, limits};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Cluster;
use crate::args::RunArgs;
use crate::fail::{Code, Failure};
use crate::render::{Out, text};
use output::{Done, Printer, Sink};
use plan::{Copy, Plan, Step};

/// How long the tasks live on if this process dies.
const FAILOVER_TIMEOUT_MS: u64 = 60_000;
/// Output streams that are read at once.
const STREAMS_MAX: u32 = 32;
/// How long to try to read a task's output while its agent is away.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(120);
/// A second signal within this is the first, told twice: to us and to our process group.
const SAME_SIGNAL: Duration = Duration::from_secs(1);
/// When to say why nothing happens.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the end may take that only tidies up.
const TEARDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Failures that are listed one by one.
const FAILURES_LISTED: usize = 10;
/// Room in a task's id for its number and attempt.
const SUFFIX_BYTES: usize = 24;

/// What a call or a reader came to.
enum Outcome {
    Launched(Vec<Copy>, Result<Accepted, CallError>),
    Asked(Result<(), CallError>),
    /// Offers are wanted, or are not, as asked.
    Demanded(Result<(), CallError>),
    Gathered(TaskId, Result<(), Failure>),
}

/// Why it stops before everything has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    With(u8),
}

struct Run<'a> {
    cluster: &'a Cluster,
    handle: Handle,
    plan: Plan,
    spec: Arc<TaskSpec>,
    detach: bool,
    quiet: bool,
    printer: Printer,
    bar: Option<ProgressBar>,
    readers: Arc<Semaphore>,
    pending: JoinSet<Outcome>,
    /// Whether the leader was told that offers are wanted.
    demand: bool,
    /// Whether that is still on its way.
    demanding: bool,
    stop: Stop,
    stopping_since: Option<Instant>,
    fatal: Option<Failure>,
    /// Since when there is nothing but waiting, and whether that was explained.
    starving_since: Option<Instant>,
    explained: bool,
    /// Whether it is to be looked whether any agent can run the task; `None` when it was.
    features_due: Option<bool>,
    lost_since: Option<Instant>,
    lost_told: bool,
}

pub(crate) async fn run(cluster: &Cluster, args: RunArgs, out: &Out) -> Result<u8, Failure> {
    let name = name(&args)?;
    let info = FrameworkInfo {
        name: name.clone(),
        roles: vec![args.role.clone()],
        failover_timeout_ms: FAILOVER_TIMEOUT_MS,
        ends_with_tasks: args.detach,
        hostname: hostname(),
        ..FrameworkInfo::default()
    };
    let spec = spec(&args)?;
    // Before anything runs, so that no Ctrl-C goes past us.
    let mut signals = Signals::new()?;
    let (handle, events) = tokio::select! {
        connected = Scheduler::connect(&cluster.masters, info, Options::default()) => connected?,
        code = signals.next() => return Ok(code),
    };
    let identity = handle.identity();
    if !out.is_quiet() {
        eprintln!("framework {}", identity.framework.text(identity.cluster.tag()));
    }
    let bar = args.array.filter(|_| !out.is_quiet() && !args.detach).and_then(progress_bar);
    let (printer, done) = Printer::beside(bar.clone());
    let run = Run {
        cluster,
        handle,
        plan: Plan::new(&name, args.array),
        spec,
        detach: args.detach,
        quiet: out.is_quiet(),
        printer,
        bar,
        readers: Arc::new(Semaphore::new(STREAMS_MAX as usize)),
        pending: JoinSet::new(),
        demand: true,
        demanding: false,
        stop: Stop::No,
        stopping_since: None,
        fatal: None,
        starving_since: Some(Instant::now()),
        explained: false,
        features_due: Some(false),
        lost_since: None,
        lost_told: false,
    };
    run.finish(events, signals, done).await
}

impl Run<'_> {
    async fn finish(
        mut self,
        mut events: EventStream,
        mut signals: Signals,
        done: Done,
    ) -> Result<u8, Failure> {
        let ended = self.drive(&mut events, &mut signals).await;
        self.bar.iter().for_each(ProgressBar::finish_and_clear);
        let detached = self.detach && ended.is_ok() && self.stop == Stop::No && self.fatal.is_none();
        if ended.is_ok() && !detached {
            // The last acknowledgements and the end of the framework: tidiness, which must not keep anybody waiting.
            drop(tokio::time::timeout(TEARDOWN_TIMEOUT, self.handle.teardown()).await);
        }
        self.pending.shutdown().await;
        let Run { printer, plan, stop, fatal, quiet, handle, .. } = self;
        drop(printer);
        done.wait().await?;
        if let Some(failure) = fatal {
            return Err(failure);
        }
        ended.map_err(Failure::from)?;
        match stop {
            Stop::With(code) => Ok(code),
            Stop::No if detached => Ok(0),
            Stop::No => {
                let identity = handle.identity();
                Ok(verdict(&plan, &identity.framework.text(identity.cluster.tag()), quiet))
            }
        }
    }

    /// Until everything has ended, or is launched if that is enough. Leaves early on a second signal.
    async fn drive(&mut self, events: &mut EventStream, signals: &mut Signals) -> Result<(), Ended> {
        loop {
            if self.plan.is_over() || (self.detach && self.plan.all_launched() && self.stop == Stop::No) {
                return Ok(());
            }
            self.ask_for_offers();
            if self.features_due.take_if(|due| *due).is_some() {
                self.look_at_features().await;
            }
            let printer = self.printer.clone();
            let (has_notice, next_notice) = (self.has_notice(), self.next_notice());
            tokio::select! {
                event = events.next() => self.on_event(event?).await,
                Some(outcome) = self.pending.join_next() => match outcome {
                    Ok(outcome) => self.on_outcome(outcome),
                    Err(panic) => self.fail(Failure::new(Code::Failed, format!("a reader died: {panic}"))),
                },
                code = signals.next() => {
                    match self.stopping_since {
                        Some(since) if since.elapsed() < SAME_SIGNAL => {}
                        Some(_) => {
                            self.stop = Stop::With(code);
                            return Ok(());
                        }
                        None => self.end_all(code),
                    }
                }
                () = printer.closed(), if self.stop == Stop::No => self.end_all(exit::BROKEN_PIPE),
                () = tokio::time::sleep_until(next_notice), if has_notice => self.give_notice().await,
            }
        }
    }

    async fn on_event(&mut self, event: Event) {
        match event {
            Event::Offers(offers) => offers.into_iter().for_each(|offer| self.on_offer(offer)),
            Event::Update(view) => {
                let step = self.plan.on_status(&view.task, &view.status);
                if step == Step::Gather {
                    self.gather(view.task.clone());
                }
                if view.status.state == TaskState::Running {
                    self.starving_since = None;
                }
            }
            Event::Synced { changed, gone } => {
                // What an earlier answer or update did not tell, as after a lost answer.
                for view in changed {
                    if self.plan.on_status(&view.task, &view.status) == Step::Gather {
                        self.gather(view.task.clone());
                    }
                }
                gone.iter().for_each(|view| self.plan.on_gone(&view.task));
            }
            Event::Disconnected => self.lost_since = Some(Instant::now()),
            Event::Subscribed { .. } => {
                self.lost_since = None;
                if std::mem::take(&mut self.lost_told) {
                    self.notice("connected to the cluster again");
                }
            }
            Event::Rescinded(_)
            | Event::Reconciled { .. }
            | Event::AgentLost { .. }
            | Event::ExecutorEnded { .. }
            | Event::Message { .. } => {}
        }
        if !self.plan.starves() {
            self.starving_since = None;
        } else if self.starving_since.is_none() {
            self.starving_since = Some(Instant::now());
        }
        self.show_progress();
    }

    fn on_offer(&mut self, offer: Offer) {
        let copies = self.plan.take(&offer.resources, &self.spec.resources);
        let handle = self.handle.clone();
        // What is left is of no use for a while, unless it is only us who have enough at the moment.
        let filter = if self.plan.wants_offers(true) { None } else { Some(Duration::ZERO) };
        if copies.is_empty() {
            self.pending.spawn(async move { Outcome::Asked(handle.decline(vec![offer.id], filter).await) });
            return;
        }
        let tasks = copies.iter().map(|copy| self.plan.launch(*copy)).collect();
        let launch = Launch { spec: self.spec.clone(), tasks };
        self.pending
            .spawn(async move { Outcome::Launched(copies, handle.launch(&offer, launch, filter).await) });
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Launched(copies, Ok(accepted)) => {
                for (copy, outcome) in copies.into_iter().zip(accepted.tasks()) {
                    match outcome {
                        Ok(_) => {
                            self.plan.launched(copy);
                            if self.stop != Stop::No {
                                self.kill(self.plan.launch(copy).task_id);
                            }
                        }
                        Err(refused) => {
                            let hopeless =
                                matches!(refused.reason.as_str(), "INVALID_SPEC" | "INVALID_TASK_ID");
                            self.plan.refused(copy, refused.reason == "TASK_ID_IN_USE");
                            if refused.reason == "FEATURE_UNKNOWN" {
                                self.features_due = self.features_due.map(|_| true);
                            }
                            if hopeless {
                                self.fail(Failure::new(
                                    Code::NotStarted,
                                    format!("the task was refused: {refused}"),
                                ));
                            }
                        }
                    }
                }
            }
            Outcome::Launched(copies, Err(error)) => {
                copies.into_iter().for_each(|copy| self.plan.refused(copy, false));
                self.on_call_error(error);
            }
            Outcome::Demanded(result) => {
                self.demanding = false;
                if let Err(error) = result {
                    self.on_call_error(error);
                }
            }
            Outcome::Asked(Ok(())) => {}
            Outcome::Asked(Err(error)) => self.on_call_error(error),
            Outcome::Gathered(task, result) => {
                self.plan.gathered();
                if let Err(failure) = result {
                    self.notice(&format!("the output of task {task} is not complete: {}", failure.what));
                }
            }
        }
        self.show_progress();
    }

    fn on_call_error(&mut self, error: CallError) {
        match error {
            // A dead offer, or a task that has ended meanwhile: the next offer or update tells.
            CallError::Refused(refused)
                if matches!(refused.kind, RefusedKind::Precondition | RefusedKind::NotFound) => {}
            CallError::Refused(refused) => {
                self.fail(Failure::new(Code::NotStarted, format!("the cluster refused: {refused}")));
            }
            // The event stream says the same.
            CallError::Ended(_) => {}
            // Only of a message to an executor, and we send none.
            CallError::Lost => {}
        }
    }

    /// Ends everything; `code` is returned when all has ended.
    fn end_all(&mut self, code: u8) {
        self.stop = Stop::With(code);
        self.stopping_since.get_or_insert_with(Instant::now);
        self.plan.stop();
        let live: Vec<TaskId> = self.plan.live().cloned().collect();
        live.into_iter().for_each(|task| self.kill(task));
    }

    fn kill(&mut self, task: TaskId) {
        let handle = self.handle.clone();
        self.pending.spawn(async move {
            match handle.kill(&task, None).await {
                // Not there: ended and forgotten, or its launch is not answered yet, and then it is killed after that.
                Err(CallError::Refused(_)) => Outcome::Asked(Ok(())),
                other => Outcome::Asked(other),
            }
        });
    }

    fn fail(&mut self, failure: Failure) {
        if self.fatal.is_none() {
            self.fatal = Some(failure);
            self.end_all(exit::NOT_STARTED);
        }
    }

    fn ask_for_offers(&mut self) {
        let wanted = self.plan.wants_offers(self.demand);
        // One at a time: two on their way could arrive in either order.
        if wanted == self.demand || self.demanding {
            return;
        }
        (self.demand, self.demanding) = (wanted, true);
        let handle = self.handle.clone();
        self.pending.spawn(async move {
            let roles = Vec::new();
            Outcome::Demanded(if wanted { handle.revive(roles).await } else { handle.suppress(roles).await })
        });
    }

    /// An agent could not run the task: perhaps none can.
    async fn look_at_features(&mut self) {
        let agents = self.cluster.admin.clone().with_deadline(PATIENCE).agents().await.unwrap_or_default();
        let lacking = |need: &&str| !agents.iter().any(|agent| agent.features.contains(*need));
        let lacking: Vec<&str> = self.spec.implied_needs().filter(lacking).collect();
        // One that comes later may have them, if there is none now.
        if agents.is_empty() || lacking.is_empty() {
            return;
        }
        let features = lacking.join(", ");
        let what = format!("no agent can run it: none has the features that it needs ({features})");
        let next =
            "`proffer agent show` lists an agent's features; where tasks are plain processes there are few";
        self.fail(Failure::new(Code::NotStarted, what).next(next));
    }

    /// Copies a task's output to ours; complete when the task has ended.
    fn gather(&mut self, task: TaskId) {
        if self.detach {
            return self.plan.gathered();
        }
        let framework = self.handle.identity().framework;
        let admin = self.cluster.admin.clone();
        let (printer, readers) = (self.printer.clone(), self.readers.clone());
        let shared = self.plan.total() > 1;
        self.pending.spawn(async move {
            let _both = readers.acquire_many_owned(2).await.expect("never closed");
            let stream = |stream: LogStream| {
                let task = task.clone();
                let request = LogRequest {
                    framework,
                    task,
                    stream,
                    offset: 0,
                    follow: true,
                    patience: OUTPUT_PATIENCE,
                };
                copy(admin.clone(), request, printer.clone(), shared)
            };
            let (stdout, stderr) = tokio::join!(stream(LogStream::Stdout), stream(LogStream::Stderr));
            Outcome::Gathered(task, stdout.and(stderr))
        });
    }

    fn has_notice(&self) -> bool {
        let starves = self.starving_since.is_some() && !self.explained && self.stop == Stop::No;
        let lost = self.lost_since.is_some() && !self.lost_told;
        !self.quiet && (starves || lost)
    }

    fn next_notice(&self) -> Instant {
        let starves = self.starving_since.filter(|_| !self.explained);
        let lost = self.lost_since.filter(|_| !self.lost_told);
        starves.into_iter().chain(lost).min().unwrap_or_else(Instant::now) + PATIENCE
    }

    async fn give_notice(&mut self) {
        let due = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= PATIENCE);
        if due(self.lost_since) && !self.lost_told {
            self.lost_told = true;
            let report = self.handle.seek_report().await;
            let masters: Vec<String> =
                report.into_iter().map(|(master, why)| format!("{master}: {why}")).collect();
            self.notice(&format!("no leader answers; still trying ({})", masters.join("; ")));
        }
        if due(self.starving_since) && !self.explained {
            self.explained = true;
            let agents =
                self.cluster.admin.clone().with_deadline(PATIENCE).agents().await.unwrap_or_default();
            let totals: Vec<Resources> = agents.into_iter().map(|agent| agent.total).collect();
            self.notice(&explain(&self.spec.resources, &totals));
        }
    }

    fn notice(&self, text: &str) {
        if !self.quiet {
            let print = || eprintln!("proffer: {text}");
            self.bar.as_ref().map_or_else(print, |bar| bar.suspend(print));
        }
    }

    fn show_progress(&self) {
        if let Some(bar) = &self.bar {
            let ends = self.plan.ends();
            bar.set_position(ends.len() as u64);
            bar.set_message(format!("{} running", self.plan.live().count()));
        }
    }
}

async fn copy(
    admin: AdminClient,
    request: LogRequest,
    printer: Printer,
    shared: bool,
) -> Result<(), Failure> {
    let stream = request.stream;
    Sink::new(printer, stream, shared).copy(LogReader::new(admin, request)).await
}

/// Why nothing was launched yet.
fn explain(want: &Resources, agents: &[Resources]) -> String {
    let wait = format!("waiting for an offer of {want}");
    let size = |total: &&Resources| (total.cpus_milli(), total.memory_bytes());
    match agents.iter().max_by_key(size) {
        None => format!("{wait}; no agent is registered"),
        Some(_) if agents.iter().any(|total| total.contains(want)) => {
            format!("{wait}; agents are large enough but busy, or others go first (see `proffer status`)")
        }
        Some(largest) => {
            let amounts = text::amounts(largest);
            format!("{wait}; no agent has that much: the largest agent has {amounts} (Ctrl-C to give up)")
        }
    }
}

/// Says what came of everything and returns the exit code.
fn verdict(plan: &Plan, framework: &str, quiet: bool) -> u8 {
    let code_of = |end: &plan::End| end.status.as_ref().map_or(1, exit::code);
    let words = |end: &plan::End| {
        end.status
            .as_ref()
            .map_or_else(|| "forgotten by the cluster before its end was told".to_owned(), exit::words)
    };
    let failed: Vec<&plan::End> = plan.ends().values().filter(|end| code_of(end) != 0).collect();
    if plan.total() == 1 {
        let Some(end) = failed.first() else { return 0 };
        // A program's own code speaks for itself.
        let own = end.status.as_ref().is_some_and(|status| status.reason == proffer_types::Reason::ExitCode);
        if !own && !quiet {
            eprintln!("proffer: task {framework}/{}: {}", end.task, words(end));
        }
        return code_of(end);
    }
    if failed.is_empty() {
        return 0;
    }
    if !quiet {
        eprintln!("proffer: {} of {} tasks failed:", failed.len(), plan.total());
        for end in failed.iter().take(FAILURES_LISTED) {
            eprintln!("  {framework}/{}: {}", end.task, words(end));
        }
        if failed.len() > FAILURES_LISTED {
            eprintln!(
                "  and {} more: proffer task list --framework {framework}",
                failed.len() - FAILURES_LISTED
            );
        }
    }
    1
}

fn progress_bar(total: u32) -> Option<ProgressBar> {
    use std::io::IsTerminal;
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let bar = ProgressBar::new(total.into());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} ended, {msg}, {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    Some(bar)
}

/// The name of the framework and its tasks: what was asked, or the program's.
fn name(args: &RunArgs) -> Result<String, Failure> {
    let check = |name: &str| match proffer_types::names::check_name(name) {
        Ok(()) if name.len() + SUFFIX_BYTES > limits::NAME_BYTES_MAX => Err("is too long".to_owned()),
        other => other.map_err(|error| error.to_string()),
    };
    match &args.name {
        Some(name) => check(name).map(|()| name.clone()).map_err(|why| {
            let what = format!("--name `{}` {why}", text::clean(name));
            Failure::new(Code::Usage, what)
        }),
        None => {
            let program = args.command[0].rsplit('/').next().unwrap_or_default();
            Ok(if check(program).is_ok() { program.to_owned() } else { "task".to_owned() })
        }
    }
}

fn spec(args: &RunArgs) -> Result<Arc<TaskSpec>, Failure> {
    if args.command[0].is_empty() {
        return Err(Failure::new(Code::Usage, "the command is empty").next("proffer run -- CMD…"));
    }
    let resources = Quantities::scalars(args.cpus, args.mem, args.disk.unwrap_or(0), 0);
    Ok(Arc::new(TaskSpec {
        argv: args.command.clone(),
        env: args.env.iter().cloned().collect(),
        user: args.user.clone().unwrap_or_default(),
        resources: resources.into(),
        container: Container { terminal: args.tty, ..Container::default() },
        kill_grace_ms: limits::KILL_GRACE_MS,
        ..TaskSpec::default()
    }))
}

fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default()
}

/// Ctrl-C and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Code::Failed, format!("cannot listen for signals: {error}")))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for one; returns the exit code that it stands for.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => exit::INTERRUPTED,
            _ = self.terminate.recv() => exit::TERMINATED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(line: &[&str]) -> RunArgs {
        let cli = crate::args::Cli::try_parse_from(["proffer", "run"].iter().chain(line)).unwrap();
        let crate::args::Verb::Run(args) = cli.verb else { panic!() };
        args
    }

    #[test]
    fn the_name_is_the_program_s() {
        assert_eq!(name(&args(&["--", "/usr/bin/env", "x"])).unwrap(), "env");
        assert_eq!(name(&args(&["--", "/usr/bin/"])).unwrap(), "task");
        assert_eq!(name(&args(&["--name", "mine", "--", "x"])).unwrap(), "mine");
        assert_eq!(name(&args(&["--name", "a/b", "--", "x"])).unwrap_err().code.number(), 2);
        assert_eq!(name(&args(&["--name", &"x".repeat(240), "--", "x"])).unwrap_err().code.number(), 2);
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let spec = spec(&args(&["--env", "A=1", "--env", "A=2", "--", "x"])).unwrap();
        assert_eq!(spec.resources, Resources::parse("cpus:0.1;mem:64MiB").unwrap());
        assert_eq!(spec.env["A"], "2");
        assert_eq!(args(&["--", "x"]).role.as_str(), "*");
    }

    #[test]
    fn waiting_is_explained() {
        let r = |text| Resources::parse(text).unwrap();
        assert!(explain(&r("cpus:4"), &[]).contains("no agent is registered"));
        let text = explain(&r("cpus:4;mem:1GiB"), &[r("cpus:2;mem:8GiB"), r("cpus:1;mem:1GiB")]);
        assert_eq!(
            text,
            "waiting for an offer of cpus:4;mem:1GiB; no agent has that much: the largest agent has cpus 2, mem 8GiB \
             (Ctrl-C to give up)"
        );
        assert!(explain(&r("cpus:1"), &[r("cpus:2")]).contains("busy"));
    }
}
