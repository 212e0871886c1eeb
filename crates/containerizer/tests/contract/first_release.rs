//! A supervisor of the first release, which an agent of today finds at work: played from what was recorded of one.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use proffer_containerizer::{
    ContainerSpec, Event, ExecEvent, ExecSpec, InstanceId, Isolation, KillCause, KillSent, Known,
};
use proffer_launcher::{proc, seqpacket};
use proffer_types::LaunchId;
use proffer_wire::supervisor::v1::launch_info::End;
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{LaunchInfo, LaunchState, Launched, Launches, ToAgent, ToSupervisor};
use prost::Message as _;

use crate::bench::{Bench, FRAMEWORK, PATIENCE, Program};

const OLD: InstanceId = InstanceId(0xabc);

fn recorded(name: &str) -> Vec<u8> {
    let all = include_str!("../../../../executor/tests/golden/first_release.txt");
    let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let hex = line.unwrap_or_else(|| panic!("{name} is not recorded"));
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn told(name: &str) -> Told {
    ToAgent::decode(&recorded(name)[..]).expect("a message").message.expect("of a known kind")
}

/// Its process, for which any does, and its socket.
struct Old {
    process: Child,
    listener: OwnedFd,
}

impl Drop for Old {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Old {
    fn new(runtime: &Path) -> Self {
        let process = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = process.id() as i32;
        let supervisors = runtime.join("supervisors");
        let dir = supervisors.join(OLD.to_string());
        std::fs::create_dir_all(&dir).expect("directory");
        let text = String::from_utf8(recorded("file-identity")).expect("text");
        // Another framework, process and start; the same keys.
        let mut identity: serde_json::Value = serde_json::from_str(&text).expect("json");
        identity["instance"] = OLD.to_string().into();
        identity["framework"] = format!("{:016x}", FRAMEWORK.0).into();
        identity["pid"] = pid.into();
        identity["start_ticks"] = proc::start_ticks(pid).expect("its start").into();
        std::fs::write(dir.join("supervisor.json"), identity.to_string()).expect("written");
        let listener = seqpacket::listen(&supervisors.join(format!("{OLD}.sock"))).expect("listening");
        Old { process, listener }
    }

    fn accept(&self) -> Connection {
        Connection(wait(|| seqpacket::accept(self.listener.as_fd()).expect("accept")))
    }
}

struct Connection(OwnedFd);

impl Connection {
    fn hear(&self) -> Order {
        let datagram = wait(|| match seqpacket::recv(self.0.as_fd()) {
            Err(seqpacket::Error::WouldBlock) => None,
            received => Some(received.expect("readable").expect("not at its end")),
        });
        ToSupervisor::decode(&datagram.body[..]).expect("a message").message.expect("of a known kind")
    }

    fn say(&self, message: Told) {
        let body = ToAgent { message: Some(message) }.encode_to_vec();
        seqpacket::send(self.0.as_fd(), &body, &[]).expect("sent");
    }
}

fn wait<T>(mut is: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = is() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

fn known(launch: u64) -> Known {
    Known {
        launch: LaunchId(launch),
        framework: FRAMEWORK,
        instance: OLD,
        memory_bytes: 0,
        started: false,
        ended: false,
    }
}

#[test]
fn a_supervisor_of_the_first_release_is_taken_up_and_retired() {
    let Some(mut bench) = Bench::real(Isolation::Process) else { return };
    bench.stop();
    let old = Old::new(bench.runtime());
    bench.restart(&[known(901), known(902)]);
    let agent = old.accept();
    assert!(matches!(agent.hear(), Order::Hello(hello) if hello.protocol == 2));
    let Told::Welcome(mut welcome) = told("welcome") else { panic!("no welcome") };
    welcome.instance = OLD.to_string();
    agent.say(Told::Welcome(welcome));
    assert!(matches!(agent.hear(), Order::List(_)));
    // One runs, one has ended.
    let Told::Launches(Launches { mut launches, .. }) = told("launches") else { panic!("no list") };
    let mut ended = launches.remove(0);
    let mut running = LaunchInfo { end: None, ..ended.clone() };
    (running.launch_id, running.state) = (901, LaunchState::Running.into());
    ended.launch_id = 902;
    if let Some(End::Exited(exited)) = &mut ended.end {
        exited.launch_id = 902;
    }
    agent.say(Told::Launches(Launches { launches: vec![running, ended], more: false }));
    let end = match bench.expect("the end", |event| matches!(event, Event::Ended { .. })) {
        Event::Ended { launch: LaunchId(902), end } => end,
        other => panic!("{other:?}"),
    };
    assert_eq!((end.exit_code, end.kill_cause), (Some(7), KillCause::None));
    bench.expect("it runs", |event| matches!(event, Event::Started { launch: LaunchId(901), .. }));
    bench.expect("recovery ends", |event| *event == Event::Recovered);

    // It is not the program of today: it gets no new launches, and ends with its last.
    assert!(matches!(agent.hear(), Order::Shutdown(_)));
    agent.say(told("draining"));
    let next = bench.run(&Program::Gate(0));
    assert_ne!(next.instance, OLD);

    // It is not asked for what it does not know.
    let (send, heard) = channel();
    let spec = ExecSpec { argv: vec!["true".into()], ..ExecSpec::default() };
    bench.agent().exec(LaunchId(901), spec, Box::new(move |event| drop(send.send(event))));
    let refused = heard.recv_timeout(PATIENCE).expect("an answer");
    assert!(
        matches!(&refused, ExecEvent::Failed { message, .. } if message.contains("older release")),
        "{refused:?}"
    );

    bench.agent().kill(LaunchId(901), 0);
    assert!(matches!(agent.hear(), Order::Kill(kill) if (kill.launch_id, kill.grace_ms) == (901, 0)));
    let Told::Exited(mut exited) = told("exited-after-sigkill") else { panic!("no end") };
    exited.launch_id = 901;
    agent.say(Told::Exited(exited));
    let end = bench.end(LaunchId(901));
    // It had but one cause to kill for, and did not say it.
    assert_eq!((end.signal, end.kill_sent, end.kill_cause), (Some(9), KillSent::Kill, KillCause::Order));
    for launch in [901, 902] {
        bench.forget(LaunchId(launch));
        assert!(matches!(agent.hear(), Order::Forget(forget) if forget.launch_id == launch));
    }
    drop(old);
    bench.let_go(next.launch);
    bench.end(next.launch);
    bench.forget(next.launch);
    bench.close();
}

#[test]
fn one_that_is_gone_is_judged_by_its_files() {
    let Some(mut bench) = Bench::real(Isolation::Process) else { return };
    bench.stop();
    let dir = bench.runtime().join("supervisors").join(OLD.to_string());
    for (part, name) in [("launch", "file-launch"), ("exit", "file-exit")] {
        std::fs::create_dir_all(dir.join(part)).expect("directory");
        std::fs::write(dir.join(part).join("1"), recorded(name)).expect("written");
    }
    // Begun, and then nobody saw its end.
    std::fs::write(dir.join("launch/2"), recorded("file-launch")).expect("written");
    bench.restart(&[known(1), known(2), known(3)]);
    assert_eq!(bench.end(LaunchId(1)).exit_code, Some(7));
    let interrupted = bench.end(LaunchId(2));
    assert_eq!(interrupted.cause, proffer_containerizer::Cause::Interrupted);
    assert_eq!(bench.of(LaunchId(3)), Event::NotStarted { launch: LaunchId(3) });
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    bench.forget(LaunchId(1));
    bench.forget(LaunchId(2));
    assert!(!dir.exists());
    bench.close();
}

/// One of today that hangs where only a program played can be made to.
#[test]
fn one_that_hangs_before_it_says_what_it_began_is_spared() {
    let Some(mut bench) = Bench::real(Isolation::Process) else { return };
    bench.options().supervisor_answers = Duration::from_secs(2);
    bench.stop();
    let mut old = Old::new(bench.runtime());
    bench.restart(&[]);
    let agent = old.accept();
    assert!(matches!(agent.hear(), Order::Hello(_)));
    let Told::Welcome(mut welcome) = told("welcome") else { panic!("no welcome") };
    welcome.instance = OLD.to_string();
    // Launches are sent to this program only.
    welcome.build = proffer_launcher::build_id(&bench.options().executor).expect("readable");
    agent.say(Told::Welcome(welcome));
    assert!(matches!(agent.hear(), Order::List(_)));
    agent.say(Told::Launches(Launches { launches: Vec::new(), more: false }));
    bench.expect("recovery ends", |event| *event == Event::Recovered);

    let spec = ContainerSpec { instance: OLD, ..bench.spec(&Program::Gate(0)) };
    bench.deliver(&spec);
    assert!(matches!(agent.hear(), Order::Launch(_)));
    let records = bench.runtime().join("supervisors").join(OLD.to_string()).join("launch");
    std::fs::create_dir_all(&records).expect("directory");
    std::fs::write(records.join(spec.launch.0.to_string()), recorded("file-launch")).expect("written");
    let sandbox = bench.sandbox(spec.launch);
    let mut payload =
        Command::new("sleep").arg("1000").env("PROFFER_SANDBOX", sandbox).spawn().expect("sleep");
    assert_eq!(bench.of(spec.launch), Event::Unanswered { launch: spec.launch });
    assert!(old.process.try_wait().expect("waited").is_none(), "it lives");

    let launch_id = spec.launch.0;
    agent.say(Told::Launched(Launched { launch_id, ..Launched::default() }));
    assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    payload.kill().and_then(|()| payload.wait()).expect("ended");
    let Told::Exited(mut exited) = told("exited-after-sigkill") else { panic!("no end") };
    exited.launch_id = launch_id;
    agent.say(Told::Exited(exited));
    assert_eq!(bench.end(spec.launch).signal, Some(9));
    bench.forget(spec.launch);
    drop(old);
    bench.close();
}
