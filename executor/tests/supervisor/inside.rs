//! What joins running containers: checks and programs; terminals and executors' sockets.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::*;

use crate::harness::{Agent, DEADLINE, Node, modes, wait_for};

/// A task that ends when it is let.
const GATE: &str = "until test -e go; do sleep 0.01; done";

fn command(script: &str) -> check::Probe {
    check::Probe::Command(check::Command { argv: ["sh", "-c", script].map(str::to_owned).to_vec() })
}

fn check(kind: CheckKind, probe: check::Probe) -> Check {
    Check {
        kind: kind.into(),
        probe: Some(probe),
        delay_ms: 0,
        interval_ms: 20,
        timeout_ms: 10_000,
        grace_ms: 0,
        failures: 3,
    }
}

fn result(agent: &Agent) -> CheckResult {
    match agent.recv() {
        Told::CheckResult(result) => result,
        other => panic!("{other:?} instead of a check's result"),
    }
}

/// The next end; what is told before it is of no interest.
fn end_of(agent: &Agent, id: u64) -> Exited {
    loop {
        match agent.recv() {
            Told::Exited(exited) if exited.launch_id == id => return exited,
            Told::Launched(_) | Told::CheckResult(_) => {}
            other => panic!("{other:?} instead of the end of {id}"),
        }
    }
}

#[test]
fn a_task_that_fails_its_check_is_killed_for_it() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        // The check runs as the task's user, where the task runs, with its environment.
        let healthy = "test \"$(id -u)\" = \"$WHO\" && test -e well || { echo no; exit 3; }";
        let request =
            node.request(1, "touch well; until test -e go; do sleep 0.01; done; rm well; sleep 1000");
        let who = format!("WHO={}", request.uid);
        let env = [request.env.clone(), vec![who]].concat();
        let checks = vec![check(CheckKind::Health, command(healthy))];
        node.launch(&agent, Launch { env, checks, ..request });
        agent.launched(1);
        let first = wait_for("its first success", || Some(result(&agent)).filter(|result| result.ok));
        assert_eq!((first.launch_id, first.kind(), first.consecutive_failures), (1, CheckKind::Health, 0));
        fs::write(node.dir.path().join("sandbox-1/go"), "").expect("written");
        for failures in 1..=3 {
            let result = result(&agent);
            assert_eq!((result.ok, result.consecutive_failures), (false, failures));
            assert_eq!(result.message, "exit code 3");
        }
        let exited = agent.exited(1);
        assert_eq!((exited.kill_cause(), exited.kill_sent()), (KillCause::Health, KillSent::Kill));
        assert!(exited.kill_message.contains("3 times in a row: exit code 3"), "{}", exited.kill_message);
        assert_eq!(node.children(), [node.pump()]);
    }
}

#[test]
fn readiness_is_told_and_kept_for_the_next_agent() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let checks = vec![check(CheckKind::Readiness, command("test -e ready"))];
        node.launch(&agent, Launch { checks, ..node.request(1, GATE) });
        agent.launched(1);
        assert!(!result(&agent).ok);
        fs::write(node.dir.path().join("sandbox-1/ready"), "").expect("written");
        assert!(result(&agent).ok);
        drop(agent);
        let agent = node.connect();
        let known = agent.list().remove(0);
        assert!(known.checks[0].ok && known.checks[0].kind() == CheckKind::Readiness, "{known:?}");
        fs::remove_file(node.dir.path().join("sandbox-1/ready")).expect("removed");
        assert!(!result(&agent).ok);
        fs::write(node.dir.path().join("sandbox-1/go"), "").expect("written");
        let exited = end_of(&agent, 1);
        assert_eq!((exited.wait_status, exited.kill_cause()), (0, KillCause::None));
    }
}

#[test]
fn a_check_that_hangs_is_ended_and_delays_nobody() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let hanging = Check {
            // Time enough to begin, on a slow machine too.
            timeout_ms: 1_000,
            failures: 2,
            ..check(CheckKind::Health, command("trap '' TERM; sleep 1000"))
        };
        node.launch(&agent, Launch { checks: vec![hanging], ..node.request(1, "sleep 1000") });
        agent.launched(1);
        let begun = Instant::now();
        node.launch(&agent, node.request(2, "true"));
        let mut told = Vec::new();
        let exited = loop {
            match agent.recv() {
                Told::CheckResult(result) => told.push(result.message),
                Told::Exited(exited) if exited.launch_id == 1 => break exited,
                Told::Exited(_) | Told::Launched(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(begun.elapsed() < DEADLINE);
        assert_eq!(told, ["no answer within 1000 ms"; 2]);
        assert_eq!(exited.kill_cause(), KillCause::Health);
        wait_for("nothing to be left", || (node.children() == [node.pump()]).then_some(()));
    }
}

#[test]
fn checks_over_the_network() {
    // The host's network namespace is the containers'.
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("address").port().into();
        let server = std::thread::spawn(move || {
            let mut answers = 0;
            for connection in listener.incoming().take(40) {
                let Ok(mut connection) = connection else { continue };
                let mut request = [0; 512];
                let Ok(length) = connection.read(&mut request) else { continue };
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                if text.starts_with("END") {
                    return;
                }
                if text.starts_with("GET /health HTTP/1.1\r\n") {
                    answers += 1;
                    let code = if answers > 2 { "503 No" } else { "204 Yes" };
                    let _ = write!(connection, "HTTP/1.1 {code}\r\n\r\n");
                }
            }
        });
        let http = check::Http { port, path: "/health".into() };
        let tcp = check::Tcp { port };
        let checks = vec![
            check(CheckKind::Health, check::Probe::Http(http)),
            check(CheckKind::Readiness, check::Probe::Tcp(tcp)),
        ];
        node.launch(&agent, Launch { checks, ..node.request(1, "sleep 1000") });
        agent.launched(1);
        let mut results = Vec::new();
        let exited = loop {
            match agent.recv() {
                Told::CheckResult(result) => results.push(result),
                Told::Exited(exited) => break exited,
                other => panic!("{other:?}"),
            }
        };
        let of = |kind| {
            let of = results.iter().filter(move |result| result.kind() == kind);
            of.map(|result| (result.ok, result.message.as_str())).collect::<Vec<_>>()
        };
        assert_eq!(of(CheckKind::Readiness), [(true, "")]);
        let failed = (false, "HTTP status 503");
        assert_eq!(of(CheckKind::Health), [(true, ""), failed, failed, failed]);
        assert_eq!(exited.kill_cause(), KillCause::Health);
        let _ = std::net::TcpStream::connect(("127.0.0.1", port as u16)).map(|mut end| end.write_all(b"END"));
        server.join().expect("a server");

        // Nobody listens there any more.
        let checks = vec![check(CheckKind::Health, check::Probe::Tcp(tcp))];
        node.launch(&agent, Launch { checks, ..node.request(2, "sleep 1000") });
        agent.launched(2);
        assert_eq!(result(&agent).message, "connect: connection refused");
        assert_eq!(end_of(&agent, 2).kill_cause(), KillCause::Health);
    }
}

#[test]
fn time_is_over_whether_an_agent_is_there_or_not() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let request =
            Launch { max_completion_ms: 300, kill_grace_ms: 60_000, ..node.request(1, "sleep 1000") };
        node.launch(&agent, request);
        agent.launched(1);
        drop(agent);
        wait_for("its end", || node.recorded()[&1].end.is_some().then_some(()));
        let agent = node.connect();
        let exited = wait_for("the report", || match agent.list().remove(0).end {
            Some(launch_info::End::Exited(exited)) => Some(exited),
            _ => None,
        });
        assert_eq!((exited.kill_cause(), exited.kill_sent()), (KillCause::MaxCompletion, KillSent::Kill));
        // One that ends in time is not killed, and an order is told as one.
        node.launch(&agent, Launch { max_completion_ms: 60_000, ..node.request(2, "exit 4") });
        let exited = end_of(&agent, 2);
        assert_eq!((exited.wait_status, exited.kill_cause()), (4 << 8, KillCause::None));
        node.launch(&agent, node.request(3, "sleep 1000"));
        agent.launched(3);
        agent.kill(3, 0);
        assert_eq!(agent.exited(3).kill_cause(), KillCause::Order);
    }
}

/// What was told about a program, and the descriptors that came with it.
fn answer(agent: &Agent) -> (Told, Vec<OwnedFd>) {
    let (told, descriptors) = agent.recv_with();
    (told, descriptors)
}

fn exec(agent: &Agent, exec: Exec) -> Result<Vec<File>, ExecFailed> {
    let id = exec.exec_id;
    agent.send(Order::Exec(exec), &[]);
    match answer(agent) {
        (Told::ExecStarted(started), descriptors) if started.exec_id == id => {
            Ok(descriptors.into_iter().map(File::from).collect())
        }
        (Told::ExecFailed(failed), _) => Err(failed),
        (other, _) => panic!("{other:?} instead of a start"),
    }
}

fn script(exec_id: u64, script: &str) -> Exec {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    Exec { launch_id: 1, exec_id, argv, ..Exec::default() }
}

fn exec_end(agent: &Agent) -> (u64, i32) {
    match answer(agent).0 {
        Told::ExecExited(exited) => (exited.exec_id, exited.wait_status),
        other => panic!("{other:?} instead of an end"),
    }
}

#[test]
fn a_program_runs_inside_with_its_own_pipes() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let request = node.request(1, &format!("echo here > mine; {GATE}"));
        let (uid, env) = (request.uid, [request.env.clone(), vec!["A=own".into()]].concat());
        node.launch(&agent, Launch { env, ..request });
        agent.launched(1);
        wait_for("the task", || node.dir.path().join("sandbox-1/mine").exists().then_some(()));
        let text = "cat mine; id -u; echo $A; cat; echo done >&2; exit 5";
        let ends = exec(&agent, script(7, text)).expect("started");
        let [mut stdin, mut stdout, mut stderr] = <[File; 3]>::try_from(ends).expect("three pipes");
        stdin.write_all(b"from outside\n").expect("written");
        drop(stdin);
        let (mut out, mut err) = (String::new(), String::new());
        stdout.read_to_string(&mut out).expect("read");
        stderr.read_to_string(&mut err).expect("read");
        assert_eq!(out, format!("here\n{uid}\nown\nfrom outside\n"));
        assert_eq!((err.as_str(), exec_end(&agent)), ("done\n", (7, 5 << 8)));

        // A signal, an environment of its own, and programs that cannot be run.
        let env = vec!["PATH=/usr/bin:/bin".into(), "B=given".into()];
        let ends = exec(&agent, Exec { env, ..script(8, "echo $A$B; exec sleep 1000") }).expect("started");
        let mut line = [0; 6];
        (&ends[1]).read_exact(&mut line).expect("read");
        assert_eq!(&line, b"given\n");
        let signal = |signal| Order::ExecSignal(ExecSignal { launch_id: 1, exec_id: 8, signal });
        agent.send(signal(libc::SIGTERM), &[]);
        assert_eq!(exec_end(&agent), (8, libc::SIGTERM));
        let missing = Exec { argv: vec!["proffer-no-such-program".into()], ..script(9, "") };
        let failed = exec(&agent, missing).expect_err("not there");
        assert_eq!((failed.step.as_str(), failed.errno), ("execve", libc::ENOENT));
        let failed = exec(&agent, Exec { launch_id: 2, ..script(10, "true") }).expect_err("no launch");
        assert!(failed.step.is_empty() && failed.message.contains("no such launch"), "{failed:?}");

        // It ends with the container, and with the connection.
        let _ends = exec(&agent, script(11, "sleep 1000")).expect("started");
        drop(agent);
        wait_for("its end", || (node.children().len() == 2).then_some(()));
        let agent = node.connect();
        let _ends = exec(&agent, script(12, "sleep 1000")).expect("started");
        fs::write(node.dir.path().join("sandbox-1/go"), "").expect("written");
        let mut told = [answer(&agent).0, answer(&agent).0];
        told.sort_by_key(|told| matches!(told, Told::ExecExited(_)));
        assert!(matches!(&told[0], Told::Exited(exited) if exited.wait_status == 0), "{told:?}");
        assert!(
            matches!(&told[1], Told::ExecExited(exited) if exited.wait_status == libc::SIGKILL),
            "{told:?}"
        );
        let failed = exec(&agent, script(13, "true")).expect_err("it has ended");
        assert!(failed.message.contains("does not run"), "{failed:?}");
        assert_eq!(node.children(), [node.pump()]);
    }
}

#[test]
#[allow(unsafe_code, reason = "the size of a terminal is set by ioctl")]
fn a_program_inside_has_a_terminal() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        node.launch(&agent, node.request(1, GATE));
        agent.launched(1);
        let text = "stty size; test -t 0 && test -t 1 && test -t 2 && tty; read line; echo \"<$line>\"; \
                    trap 'stty size; exit 6' WINCH; echo up; while :; do sleep 0.01; done";
        let terminal = Exec { tty: true, rows: 33, cols: 101, ..script(1, text) };
        let ends = exec(&agent, terminal).expect("started");
        let [mut master] = <[File; 1]>::try_from(ends).expect("a terminal");
        let mut seen = String::new();
        let mut until = |part: &str, master: &mut File| {
            let mut byte = [0; 256];
            while !seen.contains(part) {
                let length = master.read(&mut byte).expect("read");
                seen.push_str(&String::from_utf8_lossy(&byte[..length]));
            }
            seen.clone()
        };
        assert!(until("/dev/pts/", &mut master).starts_with("33 101\r\n"));
        master.write_all(b"typed\n").expect("written");
        until("<typed>", &mut master);
        until("up", &mut master);
        let size = libc::winsize { ws_row: 44, ws_col: 55, ws_xpixel: 0, ws_ypixel: 0 };
        use std::os::fd::AsRawFd;
        // SAFETY: the size is read only.
        assert_eq!(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
        until("44 55", &mut master);
        assert_eq!(exec_end(&agent), (1, 6 << 8));
        // A terminal that hangs up ends what runs on it.
        let ends = exec(&agent, Exec { tty: true, ..script(2, "sleep 1000") }).expect("started");
        drop(ends);
        assert_eq!(exec_end(&agent), (2, libc::SIGHUP));
    }
}

#[test]
fn a_task_with_a_terminal_is_logged_and_can_be_typed_to() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let request = node.request(1, "stty -echo; stty size; read line; echo \"<$line>\"; exit 3");
        node.launch(&agent, Launch { tty: true, rows: 20, cols: 70, ..request });
        agent.launched(1);
        wait_for("its output", || node.log(1, "stdout.0").contains("20 70\r\n").then_some(()));
        // Each agent gets it.
        for _ in 0..2 {
            agent.send(Order::TakeTerminal(TakeTerminal { launch_id: 1 }), &[]);
            let (told, descriptors) = answer(&agent);
            assert_eq!(told, Told::Terminal(Terminal { launch_id: 1, reason: String::new() }));
            let mut master = File::from(descriptors.into_iter().next().expect("a terminal"));
            master.write_all(b"x").expect("written");
        }
        agent.send(Order::TakeTerminal(TakeTerminal { launch_id: 1 }), &[]);
        let (_, descriptors) = answer(&agent);
        File::from(descriptors.into_iter().next().expect("a terminal")).write_all(b"\n").expect("written");
        let exited = agent.exited(1);
        assert_eq!((exited.wait_status, exited.logs_complete), (3 << 8, true));
        assert_eq!(node.log(1, "stdout.0"), "20 70\r\n<xx>\r\n");
        agent.send(Order::TakeTerminal(TakeTerminal { launch_id: 1 }), &[]);
        let (told, _) = answer(&agent);
        assert!(matches!(told, Told::Terminal(Terminal { reason, .. }) if !reason.is_empty()));
    }
}

#[test]
fn a_terminal_may_be_closed_and_opened_again() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let text = "t=$(tty); echo one; sleep 0.1; exec <&- >&- 2>&-; sleep 0.1; \
                    echo two >$t; echo three >$t";
        node.launch(&agent, Launch { tty: true, rows: 20, cols: 70, ..node.request(1, text) });
        agent.launched(1);
        let exited = agent.exited(1);
        assert_eq!((exited.wait_status, exited.logs_complete), (0, true), "{}", node.log(1, "stdout.0"));
        assert_eq!(node.log(1, "stdout.0"), "one\r\ntwo\r\nthree\r\n");
    }
}

#[test]
fn an_executor_is_listened_to_over_restarts_of_the_agent() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let socket = match mode {
            Isolation::Linux => "/mnt/proffer/executor/socket".to_owned(),
            _ => node.dir.path().join("run/executor/1/socket").display().to_string(),
        };
        // The directory is not the task's to change.
        let client = "import socket,sys,os\n\
            s=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.sendall(b'hello')\n\
            try: os.unlink(sys.argv[1])\nexcept OSError: pass\n\
            sys.stdout.write(s.recv(16).decode())";
        let request = node.request(1, "");
        let argv = ["python3", "-c", client, &socket].map(str::to_owned).to_vec();
        node.launch(&agent, Launch { executor: true, argv, ..request });
        agent.launched(1);
        // Connected to before an agent asks.
        drop(agent);
        let agent = node.connect();
        agent.send(Order::TakeListener(TakeListener { launch_id: 1 }), &[]);
        let (told, descriptors) = answer(&agent);
        assert_eq!(told, Told::Listener(Listener { launch_id: 1, reason: String::new() }));
        let listener = UnixListener::from(descriptors.into_iter().next().expect("a socket"));
        let mut connection: UnixStream =
            wait_for("the executor", || listener.accept().ok().map(|(connection, _)| connection));
        connection.set_nonblocking(false).expect("blocking");
        connection.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
        let mut hello = [0; 5];
        connection.read_exact(&mut hello).expect("read");
        assert_eq!(&hello, b"hello");
        if mode == Isolation::Linux {
            assert!(node.dir.path().join("run/executor/1/socket").exists(), "it was removed from inside");
        }
        connection.write_all(b"welcome").expect("written");
        drop(connection);
        assert_eq!(agent.exited(1).wait_status, 0, "{}", node.log(1, "stderr.0"));
        assert_eq!(node.log(1, "stdout.0"), "welcome");
        assert!(!node.dir.path().join("run/executor/1").exists());
        agent.send(Order::TakeListener(TakeListener { launch_id: 1 }), &[]);
        assert!(matches!(answer(&agent).0, Told::Listener(Listener { reason, .. }) if !reason.is_empty()));
    }
}
