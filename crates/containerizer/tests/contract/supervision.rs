//! What a supervisor does for containers besides starting them: asked of plain processes and of Linux containers.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use proffer_containerizer::{
    Check, CheckKind, ContainerSpec, Event, ExecEvent, ExecSpec, HealthCheck, Isolation, KillCause, KillSent,
    LogLimits, NotThere, Probe, Stdio, Stream, Supervision, TerminalSize,
};
use proffer_types::{LaunchId, Reason};

use crate::bench::{Bench, PATIENCE, Program, until};

fn each(promise: impl Fn(Bench)) {
    for isolation in [Isolation::Process, Isolation::Linux] {
        if let Some(bench) = Bench::real(isolation) {
            promise(bench);
        }
    }
}

fn check(script: &str) -> Check {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    Check { probe: Probe::Command(argv), delay_ms: 0, interval_ms: 20, timeout_ms: 20_000 }
}

fn supervised(bench: &mut Bench, program: &Program, supervision: Supervision) -> ContainerSpec {
    ContainerSpec { supervision, ..bench.spec(program) }
}

fn started(bench: &mut Bench, launch: LaunchId) {
    bench.expect("it runs", |event| matches!(event, Event::Started { launch: of, .. } if *of == launch));
}

#[test]
fn what_ends_a_container_is_told() {
    each(|mut bench| {
        let health = HealthCheck { check: check("exit 3"), grace_ms: 0, failures: 2 };
        let health = Supervision { health: Some(health), kill_grace_ms: 60_000, ..Supervision::default() };
        let spec = supervised(&mut bench, &Program::Gate(0), health);
        bench.deliver(&spec);
        started(&mut bench, spec.launch);
        for failures in 1..=2 {
            let launch = spec.launch;
            let told = Event::Checked {
                launch,
                kind: CheckKind::Health,
                ok: false,
                consecutive_failures: failures,
                message: "exit code 3".into(),
            };
            assert_eq!(bench.of(launch), told);
        }
        let end = bench.end(spec.launch);
        assert_eq!(
            (end.kill_cause, end.kill_sent, end.signal),
            (KillCause::Health, KillSent::Term, Some(15))
        );
        assert!(end.kill_message.contains("2 times in a row"), "{}", end.kill_message);
        bench.forget(spec.launch);

        let max = Supervision { max_completion_ms: 200, ..Supervision::default() };
        let spec = supervised(&mut bench, &Program::Gate(0), max);
        bench.deliver(&spec);
        started(&mut bench, spec.launch);
        // An agent that is not there when it happens hears of it.
        bench.stop();
        bench.restart(&[Bench::known(&spec, false)]);
        bench.expect("recovery ends", |event| *event == Event::Recovered);
        let told = bench.expect("its end", |event| matches!(event, Event::Ended { .. }));
        let Event::Ended { end, .. } = told else { unreachable!("an end was expected") };
        assert_eq!((end.kill_cause, end.signal), (KillCause::MaxCompletion, Some(9)));
        bench.expect_none_but_started(spec.launch);
        bench.forget(spec.launch);

        let spec = bench.run(&Program::Gate(0));
        bench.agent().kill(spec.launch, 0);
        assert_eq!(bench.end(spec.launch).kill_cause, KillCause::Order);
        bench.forget(spec.launch);
        bench.close();
    });
}

#[test]
fn readiness_outlives_the_agent() {
    each(|mut bench| {
        let readiness = Supervision { readiness: Some(check("test -e ready")), ..Supervision::default() };
        let spec = supervised(&mut bench, &Program::Gate(0), readiness);
        bench.deliver(&spec);
        let is =
            |wanted: bool| move |event: &Event| matches!(event, Event::Checked { ok, .. } if *ok == wanted);
        bench.expect("not ready", is(false));
        std::fs::write(bench.sandbox(spec.launch).join("ready"), b"").expect("a sandbox");
        bench.expect("ready", is(true));
        bench.restart(&[Bench::known(&spec, false)]);
        bench.expect("ready still", is(true));
        bench.expect("recovery ends", |event| *event == Event::Recovered);
        bench.let_go(spec.launch);
        bench
            .expect("it ends", |event| matches!(event, Event::Ended { end, .. } if end.exit_code == Some(0)));
        bench.expect_none_but_started(spec.launch);
        bench.forget(spec.launch);
        bench.close();
    });
}

fn exec(
    bench: &mut Bench,
    launch: LaunchId,
    spec: ExecSpec,
) -> (proffer_containerizer::ExecId, Receiver<ExecEvent>) {
    let (told, heard) = channel();
    let exec = bench.agent().exec(launch, spec, Box::new(move |event| drop(told.send(event))));
    (exec, heard)
}

fn next(heard: &Receiver<ExecEvent>) -> ExecEvent {
    heard.recv_timeout(PATIENCE).expect("an event")
}

fn script(text: &str) -> ExecSpec {
    ExecSpec { argv: ["sh", "-c", text].map(str::to_owned).to_vec(), ..ExecSpec::default() }
}

#[test]
fn programs_run_inside() {
    each(|mut bench| {
        let spec = bench.run(&Program::Gate(0));
        let (_, heard) = exec(&mut bench, spec.launch, script("cat; pwd; cat /proc/self/cgroup >&2; exit 4"));
        let ExecEvent::Started(Stdio::Pipes { stdin, stdout, stderr }) = next(&heard) else {
            panic!("not started")
        };
        let (mut out, mut err) = (String::new(), String::new());
        std::fs::File::from(stdin).write_all(b"typed\n").expect("written");
        std::fs::File::from(stdout).read_to_string(&mut out).expect("read");
        std::fs::File::from(stderr).read_to_string(&mut err).expect("read");
        let own = bench.agent().sandbox_path(spec.launch).display().to_string();
        assert_eq!(out, format!("typed\n{own}\n"));
        if bench.agent().isolation() == "linux" {
            // In the container's own cgroups, which is the root of what it sees.
            assert!(err.lines().all(|line| line.ends_with(":/") || !line.contains("memory")), "{err}");
        }
        assert!(matches!(next(&heard), ExecEvent::Exited { exit_code: Some(4), signal: None }));

        let terminal = Some(TerminalSize { rows: 30, cols: 90 });
        let (exec_id, heard) =
            exec(&mut bench, spec.launch, ExecSpec { terminal, ..script("stty size; sleep 1000") });
        let ExecEvent::Started(Stdio::Terminal(master)) = next(&heard) else { panic!("not started") };
        let mut text = [0; 7];
        std::fs::File::from(master.try_clone().expect("a duplicate")).read_exact(&mut text).expect("read");
        assert_eq!(&text, b"30 90\r\n");
        bench.agent().signal_exec(exec_id, 15);
        assert!(matches!(next(&heard), ExecEvent::Exited { exit_code: None, signal: Some(15) }));

        let missing = ExecSpec { argv: vec!["proffer-no-such-program".into()], ..ExecSpec::default() };
        let (_, heard) = exec(&mut bench, spec.launch, missing);
        assert!(matches!(next(&heard), ExecEvent::Failed { exit_code: Some(127), .. }));
        let (_, heard) = exec(&mut bench, LaunchId(999), script("true"));
        assert!(matches!(next(&heard), ExecEvent::Failed { exit_code: None, .. }));

        // A supervisor that dies takes it along, and says no more.
        let (_, heard) = exec(&mut bench, spec.launch, script("sleep 1000"));
        assert!(matches!(next(&heard), ExecEvent::Started(_)));
        bench.lose_supervisor(spec.instance);
        assert!(matches!(next(&heard), ExecEvent::Lost));
        bench.end(spec.launch);
        bench.forget(spec.launch);
        bench.close();
    });
}

#[test]
fn a_terminal_and_an_executors_socket_are_handed_out() {
    each(|mut bench| {
        let (told, heard) = channel();
        let ask = |told: &std::sync::mpsc::Sender<_>| {
            let told = told.clone();
            Box::new(move |answer| drop(told.send(answer)))
        };
        let supervision = Supervision { terminal: Some(TerminalSize::default()), ..Supervision::default() };
        let program = Program::Script("read line; echo \"<$line>\"");
        let spec = supervised(&mut bench, &program, supervision);
        bench.deliver(&spec);
        started(&mut bench, spec.launch);
        bench.agent().listener(spec.launch, ask(&told));
        assert!(matches!(heard.recv_timeout(PATIENCE), Ok(Err(NotThere(_)))));
        bench.agent().terminal(spec.launch, ask(&told));
        let terminal = heard.recv_timeout(PATIENCE).expect("an answer").expect("a terminal");
        std::fs::File::from(terminal).write_all(b"typed\n").expect("written");
        assert_eq!(bench.end(spec.launch).exit_code, Some(0));
        let chunk = bench.agent().logs(spec.launch).read(Stream::Stdout, 0, 100).expect("logs");
        assert_eq!(String::from_utf8_lossy(&chunk.bytes), "typed\r\n<typed>\r\n");
        bench.agent().terminal(spec.launch, ask(&told));
        assert!(matches!(heard.recv_timeout(PATIENCE), Ok(Err(NotThere(_)))));
        bench.forget(spec.launch);

        let supervision = Supervision { executor: true, ..Supervision::default() };
        let program = Program::Script(
            "exec python3 -c 'import socket,os\ns=socket.socket(socket.AF_UNIX)\ns.connect(os.environ[\"S\"])\n\
             s.sendall(b\"x\")\ns.recv(1)'",
        );
        let mut spec = supervised(&mut bench, &program, supervision);
        let socket = bench.agent().executor_socket(spec.launch, spec.instance);
        spec.env.push(("S".into(), socket.display().to_string()));
        bench.deliver(&spec);
        started(&mut bench, spec.launch);
        bench.agent().listener(spec.launch, ask(&told));
        let listener = heard.recv_timeout(PATIENCE).expect("an answer").expect("a socket");
        let listener = UnixListener::from(listener);
        let mut connection: Option<UnixStream> = None;
        until("it connects", || {
            connection = listener.accept().ok().map(|(connection, _)| connection);
            connection.is_some()
        });
        let mut connection = connection.expect("waited for");
        // The agent sees whose it is.
        let peer = nix::sys::socket::getsockopt(&connection, nix::sys::socket::sockopt::PeerCredentials);
        assert!(bench.agent().holds(spec.launch, peer.expect("credentials").pid()));
        connection.set_nonblocking(false).expect("blocking");
        connection.write_all(b"y").expect("written");
        assert_eq!(bench.end(spec.launch).exit_code, Some(0));
        bench.forget(spec.launch);
        bench.close();
    });
}

#[test]
fn a_group_lives_together() {
    each(|mut bench| {
        let share = Program::Script("echo $GROUP_WORD > $GROUP/word; until test -e go; do sleep 0.01; done");
        let read =
            Program::Script("until test -s $GROUP/word; do sleep 0.01; done; cat $GROUP/word; sleep 1000");
        let mut members = [&share, &read].map(|program| bench.spec(program)).to_vec();
        let path = bench.agent().group_path(members[0].launch).display().to_string();
        for member in &mut members {
            member.env.extend([("GROUP".into(), path.clone()), ("GROUP_WORD".into(), "shared".into())]);
        }
        let [first, second] = [members[0].launch, members[1].launch];
        bench.agent().launch_group(members.clone());
        started(&mut bench, first);
        started(&mut bench, second);
        let logs = bench.agent().logs(second);
        until("it was shared", || {
            logs.read(Stream::Stdout, 0, 100).is_ok_and(|chunk| chunk.bytes == b"shared\n")
        });
        bench.agent().kill(first, 0);
        assert_eq!(bench.end(first).kill_cause, KillCause::Order);
        let end = bench.end(second);
        assert_eq!((end.kill_cause, end.signal), (KillCause::Group, Some(9)));
        // What is shared stays until the last is forgotten.
        let marked = |bench: &Bench, launch: LaunchId| {
            let logs = bench.work().join("logs").join(format!("{:016x}", launch.0));
            std::fs::metadata(logs).expect("logs").permissions().mode() & 0o1000 != 0
        };
        bench.forget(first);
        assert!(
            !marked(&bench, first) && bench.work().join("groups").read_dir().expect("there").count() == 1
        );
        bench.forget(second);
        assert!(marked(&bench, first) && marked(&bench, second));

        // One that cannot be had ends the whole before it begins.
        let mut members =
            [Program::Gate(0), Program::Gate(0), Program::Gate(0)].map(|p| bench.spec(&p)).to_vec();
        members[1].user = "proffer-no-such-user".into();
        bench.agent().launch_group(members.clone());
        for (index, member) in members.iter().enumerate() {
            let wanted = if index == 1 { Reason::UserRefused } else { Reason::GroupNotStarted };
            match bench.of(member.launch) {
                Event::LaunchFailed { reason, .. } => assert_eq!(reason, wanted, "{index}"),
                other => panic!("{other:?}"),
            }
            bench.forget(member.launch);
        }
        bench.close();
    });
}

#[test]
fn what_was_thrown_away_is_told_and_offsets_stay_true() {
    each(|mut bench| {
        let logs = LogLimits { file_bytes: 64 << 10, files: 2, bytes_per_second: 64 << 10 };
        let program = Program::Script("head -c 4000000 /dev/zero; echo end >&2");
        let spec = ContainerSpec { logs, ..bench.spec(&program) };
        bench.deliver(&spec);
        started(&mut bench, spec.launch);
        let end = bench.end(spec.launch);
        assert!(end.stdout_dropped_bytes > 3_000_000, "{end:?}");
        assert_eq!((end.exit_code, end.stderr_dropped_bytes), (Some(0), 0));
        let reader = bench.agent().logs(spec.launch);
        assert_eq!(reader.end(Stream::Stdout).expect("logs"), 4_000_000);
        let (mut offset, mut lost, mut kept) = (0, 0, 0);
        loop {
            let chunk = reader.read(Stream::Stdout, offset, 1 << 20).expect("logs");
            lost += chunk.lost;
            kept += chunk.bytes.len() as u64;
            offset = chunk.offset + chunk.bytes.len() as u64;
            if chunk.ended {
                break;
            }
        }
        assert_eq!((offset, lost + kept), (4_000_000, 4_000_000));
        assert!(lost >= end.stdout_dropped_bytes, "rotation loses more");
        bench.forget(spec.launch);
        bench.close();
    });
}

/// How long kills of a container take that runs beside others, until its end is told: the longest but one of many.
struct Kills {
    bench: Bench,
    took: Vec<Duration>,
}

impl Kills {
    fn once(&mut self) {
        let spec = self.bench.run(&Program::Script("exec sleep 1000"));
        let begun = Instant::now();
        self.bench.agent().kill(spec.launch, 0);
        self.bench.end(spec.launch);
        self.took.push(begun.elapsed());
        self.bench.forget(spec.launch);
    }

    fn worst_but_one(&mut self) -> Duration {
        self.took.sort_unstable();
        self.took[self.took.len() - 2]
    }
}

/// One that writes without end, one that never reads its terminal, one whose check hangs, one that would put a link in
/// the place of its logs: beside them others end as fast as alone.
#[test]
fn hostile_neighbours_delay_nobodys_end() {
    let (Some(alone), Some(mut beside)) = (Bench::real(Isolation::Linux), Bench::real(Isolation::Linux))
    else {
        return;
    };
    let hostile = [
        (Program::Script("exec cat /dev/zero"), Supervision::default()),
        (
            Program::Script("stty -icanon; exec sleep 1000"),
            Supervision { terminal: Some(TerminalSize::default()), ..Supervision::default() },
        ),
        (
            Program::Script("exec sleep 1000"),
            Supervision {
                readiness: Some(Check { timeout_ms: 50, ..check("trap '' TERM; sleep 1000") }),
                ..Supervision::default()
            },
        ),
        (
            Program::Script(
                "while :; do rm -rf ../../logs ../logs; ln -s /etc ../logs; sleep 0.01; done 2>/dev/null",
            ),
            Supervision::default(),
        ),
    ];
    let hostile = hostile.map(|(program, supervision)| {
        // Little enough for one that writes on a slow machine to exceed.
        let logs = LogLimits { bytes_per_second: 1 << 20, ..LogLimits::default() };
        let spec = ContainerSpec { logs, ..supervised(&mut beside, &program, supervision) };
        beside.deliver(&spec);
        started(&mut beside, spec.launch);
        spec
    });
    let (told, heard) = channel();
    beside.agent().terminal(hostile[1].launch, Box::new(move |answer| drop(told.send(answer))));
    let terminal = heard.recv_timeout(PATIENCE).expect("an answer").expect("a terminal");
    let mut terminal = std::fs::File::from(terminal);
    // As much as it takes; nobody waits for the rest.
    while terminal.write(&[b'x'; 4096]).is_ok() {}

    let mut alone = Kills { bench: alone, took: Vec::new() };
    let mut beside = Kills { bench: beside, took: Vec::new() };
    for _ in 0..60 {
        // In turn, so that the machine is as busy for one as for the other.
        alone.once();
        beside.once();
    }
    let (fair, measured) = (alone.worst_but_one(), beside.worst_but_one());
    eprintln!("kills: {fair:?} alone, {measured:?} beside hostile neighbours (the longest but one of 60)");
    // What writes without end also wants a processor, of which this machine may have few.
    assert!(measured < 2 * fair + Duration::from_millis(20), "{measured:?} instead of {fair:?}");
    for spec in &hostile {
        beside.bench.agent().kill(spec.launch, 0);
        let is_end = |event: &Event| matches!(event, Event::Ended { launch, .. } if *launch == spec.launch);
        let Event::Ended { end, .. } = beside.bench.expect("its end", is_end) else {
            unreachable!("an end was expected")
        };
        assert_eq!(end.signal, Some(9));
        assert!(spec.launch != hostile[0].launch || end.stdout_dropped_bytes > 0, "{end:?}");
        beside.bench.expect_none_but_started(spec.launch);
        beside.bench.forget(spec.launch);
    }
    alone.bench.close();
    beside.bench.close();
}
