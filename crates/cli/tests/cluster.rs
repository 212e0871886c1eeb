//! `proffer` against a local cluster of the real programs, tasks as plain processes, so that it needs no root.
//!
//! The daemons are other packages' programs: where they are not built beside `proffer`, these tests are skipped aloud.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PROFFER: &str = env!("CARGO_BIN_EXE_proffer");
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether all programs are there.
fn is_built() -> bool {
    let built = |name: &str| Path::new(PROFFER).with_file_name(name).is_file();
    let missing: Vec<_> = ["proffer-master", "proffer-agent", "proffer-executor"]
        .into_iter()
        .filter(|name| !built(name))
        .collect();
    if !missing.is_empty() {
        eprintln!("SKIPPED: {} not built beside {PROFFER}", missing.join(", "));
    }
    missing.is_empty()
}

/// A running `proffer dev`.
struct Dev {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    port: u16,
}

impl Dev {
    fn start(dir: &Path, port: u16) -> Self {
        let mut child =
            dev(dir, port).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it is built");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it prints");
        assert_eq!(line, format!("ready master=127.0.0.1:{port}\n"));
        Self { child, _stdout: stdout, port }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROFFER);
        command.args(args).env("PROFFER_MASTER", format!("127.0.0.1:{}", self.port)).stdin(Stdio::null());
        command
    }

    fn proffer(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it is built")
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.proffer(&[args, &["-o", "json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().expect("it is our child").success());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|end| end.is_none()) {
            self.signal(Signal::SIGTERM);
            drop(self.child.wait());
        }
    }
}

fn dev(dir: &Path, port: u16) -> Command {
    let mut command = Command::new(PROFFER);
    command.args(["dev", "--containerizer", "process", "--port", &port.to_string(), "--dir"]).arg(dir);
    command
}

/// A port that is free, and the agent's too. Another process may still take it first.
fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let mut candidates = (0..100).filter_map(|_| {
        let listener = TcpListener::bind("127.0.0.1:0").ok()?;
        listener.local_addr().ok().map(|addr| addr.port())
    });
    candidates.find(|port| *port < 65_000 && is_free(*port) && is_free(port + 10)).expect("some port is free")
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let temporary = tempfile::Builder::new().prefix("proffer-cli-").tempdir().expect("/tmp is writable");
    // A task's user must be able to reach its sandbox.
    std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    let dir = temporary.path().join("dev");
    (temporary, dir)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn run_returns_what_the_task_returns() {
    if !is_built() {
        return;
    }
    let (_temporary, dir) = directory();
    let dev = Dev::start(&dir, free_port());
    let cases: [(&[&str], i32); 6] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["/nonexistent"], 127),
        (&["/etc/passwd"], 126),
    ];
    for (command, code) in cases {
        let output = dev.proffer(&[&["run", "--"], command].concat());
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", text(&output.stderr));
    }
    let refused = dev.proffer(&["run", "--user", "no-such-user", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125), "{}", text(&refused.stderr));
    assert!(text(&refused.stderr).contains("no-such-user"));

    let output = dev.proffer(&[
        "run",
        "--env",
        "A=b c",
        "--",
        "sh",
        "-c",
        "echo \"$A\"; printf no-newline; echo e >&2",
    ]);
    assert_eq!(text(&output.stdout), "b c\nno-newline", "byte for byte");
    let stderr = text(&output.stderr);
    let (first, rest) = stderr.split_once('\n').unwrap();
    assert!(first.starts_with("framework fw_"), "{stderr}");
    assert_eq!(rest, "e\n");
    let quiet = dev.proffer(&["--quiet", "run", "--", "true"]);
    assert_eq!(text(&quiet.stderr), "");
    dev.stop();
}

#[test]
fn an_array_is_gathered_whole() {
    if !is_built() {
        return;
    }
    let (_temporary, dir) = directory();
    let dev = Dev::start(&dir, free_port());
    let script = "echo $PROFFER_ARRAY_INDEX/$PROFFER_ARRAY_COUNT; printf 'no newline'";
    let output = dev.proffer(&["run", "--array", "1-60", "--", "sh", "-c", script]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    let mut expected: Vec<String> = (1..=60).map(|n| format!("{n}/60")).collect();
    expected.extend(std::iter::repeat_n("no newline".to_owned(), 60));
    expected.sort_unstable();
    assert_eq!(lines, expected, "line-atomic");

    let output =
        dev.proffer(&["run", "--array", "1-4", "--", "sh", "-c", "exit $((PROFFER_ARRAY_INDEX / 3))"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("2 of 4 tasks failed") && stderr.contains("sh.3: FAILED: exit code 1"),
        "{stderr}"
    );

    // Nobody reads any more: the tasks are ended, and so is `run`.
    let mut run = dev.command(&["run", "--", "sh", "-c", "while :; do echo y; done"]);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut some = [0; 2];
    run.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(141));
    assert_eq!(dev.json(&["status"])["tasks"]["RUNNING"].as_u64().unwrap_or(0), 0);
    dev.stop();
}

#[test]
fn tasks_are_found_shown_and_ended() {
    if !is_built() {
        return;
    }
    let (_temporary, dir) = directory();
    let dev = Dev::start(&dir, free_port());
    for name in ["web", "web", "db"] {
        let output =
            dev.proffer(&["run", "--name", name, "--detach", "--", "sh", "-c", "echo $$; exec sleep 1000"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let running = |wanted: usize| {
        until("the tasks run", || {
            let tasks =
                dev.json(&["task", "list", "--state", "RUNNING"])["tasks"].as_array().unwrap().clone();
            (tasks.len() == wanted).then_some(tasks)
        })
    };
    let tasks = running(3);
    for key in
        ["task_id", "framework_id", "agent_id", "state", "cpus", "memory_bytes", "created_at", "isolation"]
    {
        assert!(!tasks[0][key].is_null(), "{key}");
    }
    assert_eq!(tasks[0]["isolation"], "process");

    let ambiguous = dev.proffer(&["task", "show", "web"]);
    assert_eq!(ambiguous.status.code(), Some(6));
    let first = format!("{}/web", tasks[0]["framework_id"].as_str().unwrap());
    assert!(text(&ambiguous.stderr).contains(&first), "{}", text(&ambiguous.stderr));
    assert_eq!(dev.json(&["task", "show", &first])["launch_id"], tasks[0]["launch_id"]);
    assert_eq!(dev.json(&["task", "show", "d"])["task_id"], "db", "a beginning is enough");
    assert_eq!(dev.proffer(&["task", "show", "nothing"]).status.code(), Some(3));

    let logged = until("there is output", || {
        let output = dev.proffer(&["task", "logs", "db"]);
        (!output.stdout.is_empty()).then(|| text(&output.stdout))
    });
    assert!(logged.trim().parse::<u32>().is_ok(), "{logged}");

    assert!(dev.proffer(&["task", "kill", "db"]).status.success());
    let ended = until("it has ended", || {
        let task = dev.json(&["task", "show", "db"]);
        (task["state"] == "KILLED").then_some(task)
    });
    assert_eq!((&ended["reason"], &ended["signal"]), (&"killed_by_operator".into(), &15.into()));
    let owner = tasks[1]["framework_id"].as_str().unwrap();
    assert!(dev.proffer(&["framework", "teardown", owner]).status.success());
    running(1);
    assert_eq!(dev.json(&["framework", "show", owner])["state"], "COMPLETED");
    dev.stop();
}

#[test]
fn an_interrupted_run_ends_its_task_first() {
    if !is_built() {
        return;
    }
    let (_temporary, dir) = directory();
    let dev = Dev::start(&dir, free_port());
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let mut run = dev.command(&["run", "--", "sh", "-c", script]);
    let mut run = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye\n");
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert_eq!(dev.json(&["task", "show", "sh"])["state"], "KILLED");

    // What cannot be launched is explained, and an interrupt ends the waiting.
    let mut run = dev.command(&["run", "--cpus", "4000", "--", "true"]);
    let mut run = run.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(run.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(stderr.next().unwrap().starts_with("framework "));
    let why = stderr.next().unwrap();
    assert!(why.contains("cpus:4000") && why.contains("the largest agent has"), "{why}");
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    dev.stop();
}

#[test]
fn a_directory_is_kept_and_resumed() {
    if !is_built() {
        return;
    }
    let (_temporary, dir) = directory();
    let port = free_port();
    let first = Dev::start(&dir, port);
    assert!(first.proffer(&["run", "--name", "before", "--", "true"]).status.success());

    let same = dev(&dir, port).output().unwrap();
    assert_eq!(same.status.code(), Some(6), "{}", text(&same.stderr));
    let (_other_temporary, other) = directory();
    let busy = dev(&other, port).output().unwrap();
    assert_eq!(busy.status.code(), Some(1));
    assert!(text(&busy.stderr).contains(&format!("port {port}")), "{}", text(&busy.stderr));
    first.stop();

    let second = Dev::start(&dir, port);
    assert_eq!(second.json(&["task", "show", "before"])["state"], "FINISHED");
    let detached = second.proffer(&["run", "--name", "after", "--detach", "--", "sleep", "1000"]);
    assert!(detached.status.success());
    until("it runs", || (second.json(&["task", "show", "after"])["state"] == "RUNNING").then_some(()));
    // Killed, it leaves its daemons behind: the next one ends them and takes the task up.
    second.signal(Signal::SIGKILL);
    drop(second);
    let third = Dev::start(&dir, port);
    assert_eq!(third.json(&["task", "show", "after"])["state"], "RUNNING");
    let cluster: Value = serde_json::from_slice(&std::fs::read(dir.join("cluster.json")).unwrap()).unwrap();
    assert_eq!(cluster["masters"][0]["addr"], format!("127.0.0.1:{port}"));
    third.stop();
    for kind in ["masters", "agents"] {
        let pid = cluster[kind][0]["pid"].as_i64().unwrap();
        assert!(kill(Pid::from_raw(pid as i32), None).is_err(), "{kind}: {pid} is gone");
    }
}
