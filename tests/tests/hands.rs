//! Operators reach into tasks: programs, terminals, output, events, usage, completions.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proffer_tests::cluster::{Cluster, Options, audit, is_root, program, until, until_true};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;

use super::{LIMIT, alone, beside_others, best, good, json, ran_on};

/// What a task runs that waits to be told what to do.
const WAIT: &str = "while :; do sleep 1; done";

async fn cluster() -> Cluster {
    Cluster::start(Options { containerizer: best(), ..Options::default() }).await
}

/// Starts a task of its own framework that outlives its `run`.
async fn start(cluster: &Cluster, name: &str, script: &str) {
    let args = ["run", "--detach", "--name", name, "--cpus", "0.1", "--", "sh", "-c", script];
    good(cluster.run(LIMIT, &args).await);
    running(cluster, name).await;
}

async fn running(cluster: &Cluster, name: &str) {
    until("the task runs", LIMIT, async || {
        let shown = cluster.run(LIMIT, &["task", "show", name, "-o", "json"]).await;
        shown.stdout.contains("\"state\": \"RUNNING\"").then_some(())
    })
    .await;
}

/// `proffer task exec …` with its input and output ours.
fn exec(cluster: &Cluster, args: &[&str]) -> Child {
    let mut command = cluster.proffer(&cluster.addresses(), &[&["task", "exec"], args].concat());
    command.stdin(Stdio::piped());
    command.spawn().expect("it is built")
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().and_then(|id| id.try_into().ok()).expect("it runs"))
}

async fn ended(mut child: Child) -> i32 {
    drop(child.stdin.take());
    let status = tokio::time::timeout(LIMIT, child.wait()).await.expect("it ends").expect("our child");
    status.code().expect("an exit code")
}

#[tokio::test]
async fn programs_run_inside_a_task() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    ran_on();
    start(&cluster, "web", &format!("echo here > file; {WAIT}")).await;
    let run =
        async |args: &[&str]| cluster.run(LIMIT, &[&["task", "exec", "web", "--"], args].concat()).await;

    let ran = run(&["sh", "-c", "cat file; echo to stderr >&2; exit 7"]).await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(7), "here\n", "to stderr\n"));
    assert_eq!(run(&["sh", "-c", "kill -9 $$"]).await.code, Some(137));
    assert_eq!(run(&["no-such-program"]).await.code, Some(127));
    assert_eq!(run(&["/etc/passwd"]).await.code, Some(126));
    let ran = run(&["sh", "-c", "echo $PROFFER_TASK_ID; id -un"]).await;
    let user = if best() == "linux" { "nobody" } else { "" };
    assert!(ran.stdout.starts_with(&format!("web\n{user}")), "{ran:?}");
    let ran =
        cluster.run(LIMIT, &["task", "exec", "--env", "A=b c", "web", "--", "sh", "-c", "echo $A"]).await;
    assert_eq!(ran.stdout, "b c\n");

    // A megabyte goes in and comes back, byte for byte.
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = exec(&cluster, &["-i", "web", "--", "cat"]);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut back = Vec::new();
    let write = async {
        stdin.write_all(&data).await.unwrap();
        drop(stdin);
    };
    tokio::join!(write, async { stdout.read_to_end(&mut back).await.unwrap() });
    assert_eq!(ended(child).await, 0);
    assert!(back == data, "{} bytes came back", back.len());

    // Through a master that does not lead, and of a task that is no more.
    assert_eq!(cluster.run(LIMIT, &["task", "exec", "nothing", "--", "true"]).await.code, Some(3));
    good(cluster.run(LIMIT, &["task", "kill", "web"]).await);
    until("the task has ended", LIMIT, async || {
        let ran = run(&["true"]).await;
        (ran.code == Some(6) && ran.stderr.contains("KILLED")).then_some(())
    })
    .await;
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn programs_end_with_their_task_and_with_their_caller() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    start(&cluster, "web", WAIT).await;
    let script =
        "trap 'echo hup > hup; exit' HUP; trap 'echo term; exit 5' TERM; echo ready; sleep 100 & wait";
    let begin = async || {
        let mut child = exec(&cluster, &["web", "--", "sh", "-c", script]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        (child, lines)
    };
    // A signal is passed on, and the program's code is ours.
    let (child, mut lines) = begin().await;
    kill(pid(&child), Signal::SIGTERM).unwrap();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("term"));
    assert_eq!(ended(child).await, 5);
    // Without its caller a program hears what it would of a terminal that is gone.
    let (mut child, _lines) = begin().await;
    child.kill().await.unwrap();
    until("it has heard", LIMIT, async || {
        let ran = cluster.run(LIMIT, &["task", "exec", "web", "--", "cat", "hup"]).await;
        (ran.stdout == "hup\n").then_some(())
    })
    .await;
    // With its task it ends, and says so.
    let (mut child, _lines) = begin().await;
    let mut stderr = child.stderr.take().unwrap();
    good(cluster.run(LIMIT, &["task", "kill", "web", "--grace", "0"]).await);
    assert_eq!(ended(child).await, 137);
    let mut text = String::new();
    stderr.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("task") && text.contains("KILLED"), "{text}");
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// Whoever reads what we print may go, and whoever types may be heard by nobody: then it is over.
#[tokio::test]
async fn who_is_left_alone_does_not_stay() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    // Of one stream nothing comes.
    start(&cluster, "web", "while :; do echo line; sleep 0.05; done").await;
    for args in [&["task", "logs", "-f", "web"][..], &["top", "-o", "jsonl", "--interval", "500ms"]] {
        let mut child = cluster.proffer(&cluster.addresses(), args).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.next_line().await.unwrap().is_some());
        drop(lines);
        assert_eq!(ended(child).await, 0, "{args:?}");
    }
    // What is piped in cannot be the keys of a terminal.
    assert_eq!(ended(exec(&cluster, &["-it", "web", "--", "cat"])).await, 2);
    if best() != "linux" {
        return assert_eq!(cluster.end(), Vec::<String>::new());
    }
    let args = ["run", "--detach", "--tty", "--name", "deaf", "--", "sleep", "1000"];
    good(cluster.run(LIMIT, &args).await);
    running(&cluster, "deaf").await;
    let mut command = cluster.proffer(&cluster.addresses(), &["task", "attach", "deaf"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // More than is kept on its way.
    let piece = vec![b'x'; 64 << 10];
    let full = async { while stdin.write_all(&piece).await.is_ok() {} };
    assert!(tokio::time::timeout(Duration::from_secs(2), full).await.is_err(), "it takes it all");
    kill(pid(&child), Signal::SIGINT).unwrap();
    assert_eq!(ended(child).await, 0);
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// Output that nobody reads, and input that nobody takes, wait where they are and cost nobody else anything.
#[tokio::test]
async fn nobody_pays_for_who_does_not_read() {
    let _machine = alone().await;
    let cluster = cluster().await;
    start(&cluster, "web", WAIT).await;
    let agent = cluster.agents[0].pid();
    let master = cluster.masters[0].pid();
    let before = [agent, master].map(audit::resident_bytes);
    // They write without end, and none of it is read.
    let mut floods: Vec<Child> = (0..8).map(|_| exec(&cluster, &["web", "--", "yes"])).collect();
    // They are fed without end, and take nothing of it.
    let mut deaf: Vec<Child> =
        (0..4).map(|_| exec(&cluster, &["-i", "web", "--", "sleep", "1000"])).collect();
    for child in &mut deaf {
        let mut stdin = child.stdin.take().unwrap();
        tokio::spawn(async move {
            let piece = vec![b'x'; 64 << 10];
            while stdin.write_all(&piece).await.is_ok() {}
        });
    }
    // Long enough for a gigabyte, if somebody kept it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = [agent, master].map(audit::resident_bytes);
    for (name, before, after) in [("agent", before[0], after[0]), ("master", before[1], after[1])] {
        assert!(after < before + (64 << 20), "the {name} grew from {before} to {after} bytes");
    }
    // Others are served as ever, and a signal does not wait behind the input.
    let began = Instant::now();
    good(cluster.run(LIMIT, &["task", "exec", "web", "--", "true"]).await);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let first = deaf.remove(0);
    kill(pid(&first), Signal::SIGTERM).unwrap();
    assert_eq!(ended(first).await, 143);
    // Who begins to read gets what was kept back.
    let mut flood = floods.remove(0);
    let mut lines = BufReader::new(flood.stdout.take().unwrap()).lines();
    for _ in 0..200_000 {
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("y"));
    }
    drop((floods, deaf, flood));
    good(cluster.run(LIMIT, &["task", "kill", "web"]).await);
    cluster.all_free(LIMIT).await;
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// A terminal with a `proffer` at it, and what was shown on it so far.
struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    shown: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    /// With the terminal as its controlling one, so that keys are signals and a new size is told.
    fn new(cluster: &Cluster, args: &[&str]) -> Self {
        let pty = nix::pty::openpty(None, None).expect("a terminal");
        let (master, slave) = (pty.master, pty.slave);
        resize(&master, 30, 100);
        let mut command = tokio::process::Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(program("proffer"));
        command.arg("--master").arg(cluster.addresses().join(",")).args(args);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("TERM", "vt100").kill_on_drop(true);
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid is there");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, sink) = (std::fs::File::from(master.try_clone().unwrap()), shown.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut piece) {
                sink.lock().unwrap().extend_from_slice(&piece[..count]);
            }
        });
        Self { master, slave, shown, child }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn type_in(&self, keys: &[u8]) {
        std::fs::File::from(self.master.try_clone().unwrap()).write_all(keys).unwrap();
    }

    /// Waits until `text` is shown behind what was shown when `mark` was taken.
    async fn shows(&self, mark: usize, text: &str) {
        let since = || String::from_utf8_lossy(&self.shown.lock().unwrap()[mark..]).into_owned();
        let found = tokio::time::timeout(LIMIT, async {
            while !since().contains(text) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(found.await.is_ok(), "no {text:?} in {:?}", since());
    }

    fn mark(&self) -> usize {
        self.shown.lock().unwrap().len()
    }

    /// Whether keys are shown and made into signals.
    fn is_ordinary(&self) -> bool {
        let modes = rustix::termios::tcgetattr(&self.slave).expect("a terminal").local_modes;
        use rustix::termios::LocalModes;
        modes.contains(LocalModes::ECHO | LocalModes::ISIG | LocalModes::ICANON)
    }

    async fn code(mut self) -> i32 {
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it goes on: {}", self.text())).expect("our child");
        assert!(self.is_ordinary(), "the terminal is as it was");
        status.code().expect("an exit code")
    }
}

fn resize(terminal: &impl AsFd, rows: u16, cols: u16) {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size).expect("a terminal");
}

#[tokio::test]
async fn a_program_has_the_terminal_in_front_of_its_user() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    start(&cluster, "web", WAIT).await;
    let terminal =
        Terminal::new(&cluster, &["task", "exec", "-it", "--env", "PS1=ready>", "web", "--", "sh"]);
    terminal.shows(0, "ready>").await;
    assert!(!terminal.is_ordinary(), "every key is the program's");
    terminal.type_in(b"stty size; echo T=$TERM\r");
    terminal.shows(0, "30 100").await;
    terminal.shows(0, "T=vt100").await;
    let mark = terminal.mark();
    resize(&terminal.master, 41, 77);
    until("the program is told the size", LIMIT, async || {
        terminal.type_in(b"stty size\r");
        tokio::time::sleep(Duration::from_millis(100)).await;
        terminal.text().contains("41 77").then_some(())
    })
    .await;
    terminal.type_in(b"echo be''fore; sleep 100; echo 'not' reached\r");
    terminal.shows(mark, "before").await;
    terminal.type_in(b"\x03");
    let mark = terminal.mark();
    // What is typed is shown too, and differs.
    terminal.type_in(b"\recho still'' here; exit 9\r");
    terminal.shows(mark, "still here").await;
    assert!(!terminal.text().contains("not reached"), "{}", terminal.text());
    assert_eq!(terminal.code().await, 9);
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_task_with_a_terminal_is_joined_and_left() {
    if !is_root("a_task_with_a_terminal_is_joined_and_left") {
        return;
    }
    let _machine = beside_others().await;
    let cluster = cluster().await;
    ran_on();
    let args = ["run", "--detach", "--tty", "--name", "shell", "--env", "PS1=ready>", "--", "sh"];
    good(cluster.run(LIMIT, &args).await);
    running(&cluster, "shell").await;
    let first = Terminal::new(&cluster, &["task", "attach", "shell"]);
    first.shows(0, "joined task").await;
    first.type_in(b"stty size\r");
    first.shows(0, "30 100").await;
    // Another sees the same, and leaves without ending anything.
    let second = Terminal::new(&cluster, &["task", "attach", "shell"]);
    second.shows(0, "joined task").await;
    first.type_in(b"echo bo''th\r");
    first.shows(0, "both").await;
    second.shows(0, "both").await;
    second.type_in(b"\x10\x11");
    second.shows(0, "left task").await;
    assert_eq!(second.code().await, 0);
    first.type_in(b"exit 6\r");
    assert_eq!(first.code().await, 6);
    // Output only, of a task without one.
    start(&cluster, "plain", "while :; do echo tick; sleep 0.2; done").await;
    let mut command = cluster.proffer(&cluster.addresses(), &["task", "attach", "plain"]);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("tick"));
    kill(pid(&child), Signal::SIGINT).unwrap();
    assert_eq!(ended(child).await, 0);
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// The place and the kind of each event.
fn places(text: &str) -> Vec<(u64, u64, String)> {
    let event = |line: &str| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"));
        let number = |key: &str| event[key].as_u64().unwrap_or_else(|| panic!("no {key} in {line}"));
        (number("index"), number("ordinal"), event["kind"].as_str().unwrap_or_default().to_owned())
    };
    text.lines().map(event).collect()
}

#[tokio::test]
async fn events_are_the_same_on_every_master_and_over_a_leader_s_death() {
    let _machine = beside_others().await;
    let options = Options { masters: 3, containerizer: best(), ..Options::default() };
    let mut cluster = Cluster::start(options).await;
    let mut follower =
        cluster.proffer(&cluster.addresses(), &["events", "-f", "-o", "jsonl"]).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let followed = Arc::new(Mutex::new(Vec::new()));
    let sink = followed.clone();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            sink.lock().unwrap().push(line);
        }
    });
    let seen = |kind: &str, task: &str| {
        let all = followed.lock().unwrap();
        all.iter().any(|line| line.contains(kind) && line.contains(&format!("\"task_id\":\"{task}\"")))
    };
    good(cluster.run(LIMIT, &["run", "--name", "one", "--", "true"]).await);
    until_true("the end of one is told", LIMIT, || seen("FINISHED", "one")).await;

    // Each master by itself says the same, a follower too.
    let mut said = Vec::new();
    for address in cluster.addresses() {
        let text = until("it has heard of the end", LIMIT, async || {
            let command = cluster.proffer(std::slice::from_ref(&address), &["events", "-o", "jsonl"]);
            let text = good(proffer_tests::cluster::ran(command, LIMIT).await);
            text.contains("FRAMEWORK_COMPLETED").then_some(text)
        })
        .await;
        said.push(places(&text));
    }
    assert!(said[0] == said[1] && said[1] == said[2], "{said:?}");
    let kinds: BTreeSet<&str> = said[0].iter().map(|(.., kind)| kind.as_str()).collect();
    for kind in ["CLUSTER_FORMED", "AGENT_REGISTERED", "FRAMEWORK_REGISTERED", "TASK_LAUNCHED", "TASK_STATUS"]
    {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
    let from = said[0][3].0;
    let text = good(cluster.run(LIMIT, &["events", "--from", &from.to_string(), "-o", "jsonl"]).await);
    let tail: Vec<_> = said[0].iter().filter(|(index, ..)| *index >= from).cloned().collect();
    assert_eq!(places(&text)[..tail.len()], tail[..]);

    let leader = cluster.leader().await;
    cluster.masters[leader].kill();
    good(cluster.run(LIMIT, &["run", "--name", "two", "--", "true"]).await);
    until_true("the end of two is told", LIMIT, || seen("FINISHED", "two")).await;
    let all = places(&(followed.lock().unwrap().join("\n") + "\n"));
    assert!(all.is_sorted_by(|a, b| (a.0, a.1) < (b.0, b.1)), "in order, each once: {all:?}");
    // Nothing is missing: a master that lived through it all says the same.
    let text = good(cluster.run(LIMIT, &["events", "-o", "jsonl"]).await);
    let kept = places(&text);
    assert_eq!(all, kept[..all.len()]);
    cluster.masters[leader].start();
    cluster.ready(LIMIT).await;
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn usage_is_measured_while_somebody_looks() {
    if !is_root("usage_is_measured_while_somebody_looks") {
        return;
    }
    let _machine = beside_others().await;
    let cluster = cluster().await;
    ran_on();
    start(&cluster, "idle", "sleep 1000").await;
    start(&cluster, "busy", "while :; do :; done").await;
    let top = ["top", "--once", "--interval", "1s", "-o", "json"];
    let looked = json(cluster.run(LIMIT, &top).await);
    let tasks = looked["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), 2, "{looked}");
    assert_eq!(tasks[0]["task_id"], "busy", "what uses most comes first");
    // It holds 0.1 cpus, which is its limit.
    let used = tasks[0]["cpus_used"].as_f64().unwrap();
    assert!((0.02..0.3).contains(&used), "{looked}");
    assert!(tasks[1]["cpus_used"].as_f64().unwrap() < 0.02, "{looked}");
    assert!(
        tasks.iter().all(|t| t["memory_used_bytes"].as_u64().unwrap() > 0 && t["pids"].as_u64() >= Some(1))
    );
    let node = &looked["agents"][0];
    assert!(
        node["cpus"].as_u64() >= Some(1)
            && node["memory_bytes"].as_u64() > node["memory_used_bytes"].as_u64()
    );
    let table = good(cluster.run(LIMIT, &["top", "--once"]).await);
    assert!(table.contains("busy") && table.contains("AGENT") && !table.contains('\u{1b}'), "{table}");
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn bash_completes_verbs_flags_and_ids() {
    let _machine = beside_others().await;
    let cluster = cluster().await;
    start(&cluster, "webserver", &format!("mkdir -p out/deep; echo x > out/file.txt; {WAIT}")).await;
    start(&cluster, "worker", WAIT).await;
    let dir = program("proffer").parent().unwrap().to_owned();
    let path = format!("{}:/usr/bin:/bin", dir.display());
    let complete = async |line: &str| -> Vec<String> {
        let script = r#"source <(proffer completions bash); COMP_LINE=$1; COMP_POINT=${#1}
            compopt() { :; }; _proffer; printf '%s\n' "${COMPREPLY[@]}""#;
        let mut command = tokio::process::Command::new("bash");
        command.args(["-c", script, "bash", line]).env_clear().env("PATH", &path);
        command.env("PROFFER_MASTER", cluster.addresses().join(","));
        let ran = proffer_tests::cluster::ran(command, LIMIT).await;
        let mut found: Vec<String> =
            ran.stdout.lines().map(str::to_owned).filter(|l| !l.is_empty()).collect();
        found.sort();
        found
    };
    assert_eq!(complete("proffer task ex").await, ["exec"]);
    assert_eq!(complete("proffer task exec we").await, ["webserver"]);
    assert_eq!(complete("proffer task kill w").await, ["webserver", "worker"]);
    assert_eq!(complete("proffer task logs --fo").await, ["--follow"]);
    // bash takes words apart at a colon, and replaces what is behind it.
    assert_eq!(complete("proffer task cp webserver:out/").await, ["out/deep/", "out/file.txt"]);
    let agents = complete("proffer agent show ").await;
    assert!(agents.len() == 1 && agents[0].starts_with("agt_"), "{agents:?}");
    good(cluster.run(LIMIT, &["task", "kill", "worker"]).await);
    until("what has ended cannot be killed", LIMIT, async || {
        (complete("proffer task kill w").await == ["webserver"]).then_some(())
    })
    .await;
    // Without a cluster it is quick, and what the program knows itself is there all the same.
    let began = Instant::now();
    assert_eq!(complete("proffer --master 127.0.0.1:1 task exec w").await, [""; 0]);
    assert_eq!(complete("proffer --master 127.0.0.1:1 ev").await, ["events"]);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// A follower of a task's output hears of each line soon, and of the end at once.
#[tokio::test]
async fn output_is_followed_as_it_comes() {
    let _machine = alone().await;
    let cluster = cluster().await;
    // It holds the pipe's writing end too: so none that leaves is an empty line.
    let script = "mkfifo pipe; exec 3<> pipe; \
         while read -r line <&3; do echo \"$line\"; [ \"$line\" = last ] && exit 0; done";
    start(&cluster, "echo", script).await;
    let mut follow = cluster.proffer(&cluster.addresses(), &["task", "logs", "-f", "echo"]).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut late = Vec::new();
    for n in 0..10 {
        let said = if n < 9 { format!("line{n}") } else { "last".to_owned() };
        // Nothing comes for a while: whoever looks again and again does so ever more rarely.
        tokio::time::sleep(Duration::from_millis(600)).await;
        let tell = format!("echo {said} > pipe");
        good(cluster.run(LIMIT, &["task", "exec", "echo", "--", "sh", "-c", &tell]).await);
        let told = Instant::now();
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await.expect("it comes").unwrap();
        assert_eq!(line.as_deref(), Some(said.as_str()));
        late.push(told.elapsed());
    }
    late.sort();
    let began = Instant::now();
    assert_eq!(ended(follow).await, 0);
    println!(
        "output came {:?} after its writer had returned (median), the end {:?}",
        late[5],
        began.elapsed()
    );
    // Half a second was the most that a look again and again took, and a quarter its mean.
    assert!(late[5] < Duration::from_millis(150), "{late:?}");
    assert_eq!(cluster.end(), Vec::<String>::new());
}
