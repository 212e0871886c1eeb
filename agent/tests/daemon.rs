//! The program itself: what it refuses, how it ends, and that its tasks do not end with it.

mod master;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use master::Master;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proffer_types::event::{AgentOrder, AgentReport, DataAction, LaunchKind, LaunchOrder};
use proffer_types::{FrameworkId, LaunchId, Reason, Resources, Role, Status, TaskId, TaskSpec, TaskState};

const AGENT: &str = env!("CARGO_BIN_EXE_proffer-agent");
const DEADLINE: Duration = Duration::from_secs(20);

/// A daemon with directories of its own, killed when the test ends.
struct Daemon {
    child: Child,
    listen: String,
}

impl Daemon {
    fn start(dir: &Path, master: &str, executor: &Path, containerizer: &str) -> Self {
        let listen = free_port();
        let mut command = command(dir, master, &listen, executor);
        let child = command.args(["--containerizer", containerizer]).stderr(Stdio::null()).spawn().unwrap();
        let daemon = Self { child, listen };
        until("diagnostics are served", || daemon.get("/healthz").is_some());
        daemon
    }

    /// The body of an answer 200.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(&self.listen).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, master: &str, listen: &str, executor: &Path) -> Command {
    let mut command = Command::new(AGENT);
    command.env_clear();
    command.args(["--masters", master, "--listen", listen]);
    command.arg("--work-dir").arg(dir.join("work")).arg("--runtime-dir").arg(dir.join("run"));
    command.arg("--executor").arg(executor);
    command.args(["--resources", "cpus:1;mem:64MiB"]);
    command
}

fn free_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::yield_now();
    }
}

fn output(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, stderr)
}

/// Nothing that is launched in these tests reaches it.
fn no_executor() -> PathBuf {
    PathBuf::from("/bin/true")
}

#[test]
fn refuses_wrong_settings_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "colour = \"red\"\nwork-dir = 3\n").unwrap();
    let mut command = Command::new(AGENT);
    command.env_clear().args(["--listen", "0.0.0.0:1", "--config"]).arg(&file);
    let (output, stderr) = output(command);
    assert_eq!(output.status.code(), Some(2));
    for part in ["`colour`", "work-dir", "not a loopback address", "--insecure"] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
}

#[test]
fn refuses_a_busy_port_and_a_missing_executor() {
    let dir = tempfile::tempdir().unwrap();
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let (busy_port, stderr) = output(command(dir.path(), "127.0.0.1:1", &address, &no_executor()));
    assert_eq!(busy_port.status.code(), Some(1));
    assert!(stderr.contains(&address) && stderr.contains("--listen"), "{stderr}");

    let nowhere = Path::new("/nowhere/proffer-executor");
    let (missing, stderr) = output(command(dir.path(), "127.0.0.1:1", &free_port(), nowhere));
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr.contains("/nowhere/proffer-executor") && stderr.contains("--executor"), "{stderr}");
}

#[test]
fn a_runtime_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(AGENT);
    command.env_clear().args([
        "--masters",
        "127.0.0.1:1",
        "--listen",
        &free_port(),
        "--containerizer",
        "auto",
    ]);
    command.arg("--work-dir").arg(dir.path().join("work")).arg("--executor").arg(no_executor());
    command.args(["--runtime-dir", "/etc/passwd/proffer", "--resources", "cpus:1;mem:64MiB"]);
    let (output, stderr) = output(command);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("/etc/passwd/proffer") && !stderr.contains("separate"), "{stderr}");
}

#[test]
fn one_agent_per_work_directory_and_sigterm_ends_it_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(dir.path(), "127.0.0.1:1", &no_executor(), "process");
    let state = daemon.get("/state").unwrap();
    assert!(state.contains("\"isolation\":\"process\"") && state.contains("\"launches\":[]"), "{state}");
    let (second, stderr) = output(command(dir.path(), "127.0.0.1:1", &free_port(), &no_executor()));
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr.contains("another agent runs on the work directory"), "{stderr}");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
}

#[test]
fn idle_connections_take_no_more_than_their_share() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path(), "127.0.0.1:1", &no_executor(), "process");
    let fds = format!("/proc/{}/fd", daemon.child.id());
    let sockets = || {
        let links = std::fs::read_dir(&fds).unwrap().flatten().filter_map(|fd| fd.path().read_link().ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    let before = sockets();
    let idle: Vec<_> = (0..100).map(|_| TcpStream::connect(&daemon.listen).unwrap()).collect();
    until("the first are accepted", || sockets() >= before + 32);
    let begun = Instant::now();
    until("it stays so", || {
        assert!(sockets() <= before + 40, "{} sockets", sockets());
        begun.elapsed() > Duration::from_millis(300)
    });
    drop(idle);
    assert!(daemon.get("/healthz").is_some());
}

fn launch(seq: u64, launch: u64, script: &str) -> AgentOrder {
    let resources = Resources::parse("cpus:0.1;mem:32MiB").unwrap();
    AgentOrder::Launch(Box::new(LaunchOrder {
        agent_seq: seq,
        launch: LaunchId(launch),
        framework: FrameworkId(1),
        task_id: TaskId::new("task").unwrap(),
        role: Role::new("*").unwrap(),
        spec: Arc::new(TaskSpec {
            argv: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            resources: resources.clone(),
            kill_grace_ms: 100,
            pids_max: 100,
            ..TaskSpec::default()
        }),
        framework_user: String::new(),
        resources,
        env: Default::default(),
        array: None,
        group: None,
        kind: LaunchKind::Task,
    }))
}

async fn status(master: &mut Master) -> (u64, Status) {
    match master.report().await {
        AgentReport::Status { launch, status } => (launch.0, status),
        other => panic!("expected a status: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_processes_outlive_the_daemon_and_their_true_end_is_told() {
    real_tasks_outlive_the_daemon("process").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_containers_outlive_the_daemon_and_their_true_end_is_told() {
    match proffer_containerizer::linux_unavailable(None) {
        None => real_tasks_outlive_the_daemon("linux").await,
        Some(why) => eprintln!("SKIPPED: {why}"),
    }
}

async fn real_tasks_outlive_the_daemon(isolation: &str) {
    let executor = Path::new(AGENT).with_file_name("proffer-executor");
    if !executor.is_file() {
        eprintln!("SKIPPED: {} is not built", executor.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let _cleared = Cleared { dir: dir.path(), executor: &executor, isolation };
    let sandbox = dir.path().join("work/sandboxes/0000000000000064");
    let mut master = Master::start().await;
    let daemon = Daemon::start(dir.path(), &master.address, &executor, isolation);
    master.hello().await;
    master.send(5, vec![master.welcome(0), master.welcome(0)]).await;
    master.hello().await;
    let waits = "echo $PROFFER_TASK_ID >> starts; until [ -e go ]; do sleep 0.01; done; exit 7";
    master.send(5, vec![launch(1, 100, waits), launch(2, 101, "echo hello; sleep 1000")]).await;
    let mut running = [status(&mut master).await, status(&mut master).await];
    running.sort_by_key(|(launch, _)| *launch);
    for (n, (launch, status)) in running.iter().enumerate() {
        assert_eq!((*launch, status.state), (100 + n as u64, TaskState::Running), "{status:?}");
        assert_eq!(status.isolation.as_deref(), Some(isolation));
    }

    // Killed, and the task ends while nobody is there.
    daemon.signal(Signal::SIGKILL);
    drop(daemon);
    std::fs::write(sandbox.join("go"), "").unwrap();
    let daemon = Daemon::start(dir.path(), &master.address, &executor, isolation);
    let hello = master.hello().await;
    assert_eq!(hello.last_seq, 2);
    master.send(5, vec![master.welcome(2)]).await;
    let ended = loop {
        let (launch, status) = status(&mut master).await;
        if launch == 100 && status.state.is_terminal() {
            break status;
        }
    };
    assert_eq!((ended.state, ended.reason, ended.exit_code), (TaskState::Failed, Reason::ExitCode, Some(7)));
    assert_eq!(std::fs::read_to_string(sandbox.join("starts")).unwrap(), "task\n");

    // The other one still runs, and can be read and killed.
    let open = AgentOrder::OpenData {
        ticket: [1; 16],
        principal: "me".into(),
        action: DataAction::ReadLogs,
        launch: LaunchId(101),
        expires_ms: 10_000,
    };
    master.send(5, vec![open]).await;
    let request = proffer_wire::agent::v1::DataRequest {
        launch_id: 101,
        stream: proffer_wire::agent::v1::Stream::Stdout.into(),
        offset: 0,
        limit: 6,
        follow: true,
        ask: None,
    };
    let chunks = master.data([1; 16], request).await;
    assert_eq!(chunks.iter().flat_map(|c| c.data.to_vec()).collect::<Vec<u8>>(), b"hello\n");
    let kill = |agent_seq, grace_ms| AgentOrder::Kill {
        agent_seq,
        launch: LaunchId(101),
        grace_ms,
        reason: Reason::KilledByOperator,
    };
    master.send(5, vec![kill(3, 200)]).await;
    let mut states = Vec::new();
    while states.last() != Some(&TaskState::Killed) {
        let (launch, status) = status(&mut master).await;
        if launch == 101 {
            assert!(status.state == TaskState::Running || status.reason == Reason::KilledByOperator);
            states.push(status.state);
        }
    }
    assert!(states.contains(&TaskState::Killing), "{states:?}");
    for (launch, task_seq) in [(100, 2), (101, 3)] {
        master.send(5, vec![AgentOrder::Confirm { launch: LaunchId(launch), task_seq }]).await;
    }
    until("everything is forgotten", || daemon.get("/state").is_some_and(|s| s.contains("\"launches\":[]")));
}

/// Ends what a test's agents have left.
struct Cleared<'a> {
    dir: &'a Path,
    executor: &'a Path,
    isolation: &'a str,
}

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        let mut command = command(self.dir, "127.0.0.1:1", "127.0.0.1:1", self.executor);
        command.args(["--containerizer", self.isolation, "--clean-up"]);
        let (output, stderr) = output(command);
        if !std::thread::panicking() {
            assert!(output.status.success(), "{stderr}");
            assert!(!self.dir.join("run").exists());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_cleaned_up_is_told_and_not_started_again() {
    let executor = Path::new(AGENT).with_file_name("proffer-executor");
    if !executor.is_file() {
        eprintln!("SKIPPED: {} is not built", executor.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cleared = || Cleared { dir: dir.path(), executor: &executor, isolation: "process" };
    let mut master = Master::start().await;
    let daemon = Daemon::start(dir.path(), &master.address, &executor, "process");
    master.hello().await;
    master.send(5, vec![master.welcome(0), master.welcome(0)]).await;
    master.hello().await;
    master.send(5, vec![launch(1, 100, "sleep 1000")]).await;
    assert_eq!(status(&mut master).await.1.state, TaskState::Running);

    let mut refused = command(dir.path(), "127.0.0.1:1", "127.0.0.1:1", &executor);
    refused.args(["--containerizer", "process", "--clean-up"]);
    let (refused, stderr) = output(refused);
    assert!(!refused.status.success() && stderr.contains("another agent runs"), "{stderr}");
    drop(daemon);
    drop(cleared());

    let _cleared = cleared();
    let _daemon = Daemon::start(dir.path(), &master.address, &executor, "process");
    let hello = master.hello().await;
    assert_eq!(hello.last_seq, 1);
    master.send(5, vec![master.welcome(1)]).await;
    assert_eq!(status(&mut master).await.1.state, TaskState::Running);
    let (_, ended) = status(&mut master).await;
    assert_eq!((ended.state, ended.reason), (TaskState::Failed, Reason::SupervisorLost));
}
