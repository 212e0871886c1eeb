//! What the first release said is understood and answered by today's supervisor.

use std::fs::File;
use std::os::fd::AsFd;

use proffer_launcher::seqpacket;
use proffer_wire::supervisor::v1::launch_info::End;
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::*;
use prost::Message;

use crate::harness::{Agent, Node, root, wait_for};

/// What was recorded under a name.
fn recorded(name: &str) -> Vec<u8> {
    let all = include_str!("../golden/first_release.txt");
    let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let hex = line.unwrap_or_else(|| panic!("{name} is not recorded"));
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal"))
        .collect()
}

fn told(name: &str) -> Told {
    let bytes = recorded(name);
    let message = ToAgent::decode(&bytes[..]).expect("a message");
    // No field of it is unknown or has another number.
    assert_eq!(message.encode_to_vec(), bytes, "{name}");
    message.message.expect("of a known kind")
}

fn order(name: &str) -> Order {
    let bytes = recorded(name);
    let message = ToSupervisor::decode(&bytes[..]).expect("a message");
    assert_eq!(message.encode_to_vec(), bytes, "{name}");
    message.message.expect("of a known kind")
}

#[test]
fn what_the_first_release_said_reads_as_it_was_meant() {
    assert_eq!(order("hello"), Order::Hello(Hello { protocol: 1 }));
    assert_eq!(order("list"), Order::List(List {}));
    assert_eq!(order("forget"), Order::Forget(Forget { launch_id: 1 }));
    assert_eq!(order("kill-with-grace"), Order::Kill(Kill { launch_id: 1, grace_ms: 600_000 }));
    assert_eq!(order("kill"), Order::Kill(Kill { launch_id: 1, grace_ms: 0 }));
    assert_eq!(order("shutdown"), Order::Shutdown(Shutdown {}));
    let script = "while ! [ -e go ]; do sleep 0.01; done; exit 7";
    let launch = Launch {
        launch_id: 1,
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["PATH=/usr/local/bin:/usr/bin:/bin".into()],
        uid: 65534,
        gid: 65534,
        isolation: Isolation::Process.into(),
        descriptors: vec![Descriptor::SandboxDir.into(), Descriptor::LogDir.into()],
        ..Launch::default()
    };
    assert_eq!(order("launch"), Order::Launch(launch));

    assert!(matches!(told("welcome"), Told::Welcome(Welcome { protocol: 1, build, .. }) if build.is_empty()));
    assert!(matches!(told("launched"), Told::Launched(Launched { launch_id: 1, init_pid: 2.., .. })));
    assert_eq!(told("launches-none"), Told::Launches(Launches::default()));
    let Told::Launches(Launches { launches, more: false }) = told("launches") else { panic!("not a list") };
    let [LaunchInfo { launch_id: 1, end: Some(End::Exited(exited)), .. }] = &launches[..] else {
        panic!("{launches:?}")
    };
    assert_eq!((exited.wait_status, exited.logs_complete), (7 << 8, true));
    let Told::Exited(exited) = told("exited") else { panic!("not an end") };
    assert_eq!((exited.launch_id, exited.wait_status, exited.kill_sent()), (3, 7 << 8, KillSent::None));
    assert_eq!((exited.kill_cause(), exited.stdout_dropped_bytes), (KillCause::None, 0));
    let Told::Exited(exited) = told("exited-after-sigkill") else { panic!("not an end") };
    assert_eq!((exited.wait_status, exited.kill_sent(), exited.init_died), (9, KillSent::Kill, true));
    let Told::LaunchFailed(failed) = told("launch-failed") else { panic!("not a failure") };
    assert_eq!((failed.kind(), failed.errno, failed.step.as_str()), (FailureKind::Exec, 2, "execve"));
    assert_eq!(told("unknown"), Told::Unknown(Unknown { launch_id: 2 }));
    assert!(matches!(told("refused"), Told::Refused(Refused { launch_id: 2, .. })));
    assert_eq!(told("draining"), Told::Draining(Draining { launches: 1 }));

    let record = LaunchRecord::decode(&recorded("file-launch")[..]).expect("a record");
    assert_eq!(record.encode_to_vec(), recorded("file-launch"));
    assert_eq!(record.launch_id, 1);
    assert!(matches!(told("file-exit"), Told::Exited(Exited { launch_id: 1, wait_status: 0x700, .. })));
}

/// An agent of the first release, to which nothing is said that it would not know.
#[test]
fn an_agent_of_the_first_release_is_served() {
    if !root() {
        eprintln!("SKIPPED: the recorded launch is for a user that root alone can become");
        return;
    }
    let node = Node::start(Isolation::Process);
    let agent = node.connect_silent();
    let say = |name: &str| seqpacket::send(agent.socket.as_fd(), &recorded(name), &[]).expect("sent");
    let heard = |agent: &Agent| agent.recv();
    say("hello");
    assert!(
        matches!(heard(&agent), Told::Welcome(welcome) if welcome.protocol == 1 && welcome.pid == node.pid)
    );
    say("list");
    assert_eq!(heard(&agent), told("launches-none"));

    let launch = |agent: &Agent| {
        let (sandbox, logs) = (node.dir.path().join("sandbox-1"), node.logs(1));
        for dir in [&sandbox, &logs] {
            let _ = std::fs::create_dir(dir);
        }
        std::os::unix::fs::chown(&sandbox, Some(65534), Some(65534)).expect("chown");
        let open = |path| File::open(path).expect("a directory");
        let (sandbox, logs) = (open(sandbox), open(logs));
        let descriptors = [sandbox.as_fd(), logs.as_fd()];
        seqpacket::send(agent.socket.as_fd(), &recorded("launch"), &descriptors).expect("sent");
    };
    launch(&agent);
    assert!(matches!(heard(&agent), Told::Launched(launched) if launched.launch_id == 1));
    // It would take one of which there is no file for one that was not begun, were the supervisor to die.
    assert_eq!(node.in_files(), [1]);
    std::fs::write(node.dir.path().join("sandbox-1/go"), "").expect("written");
    let exited = agent.exited(1);
    assert_eq!((exited.wait_status, exited.logs_complete), (7 << 8, true));
    // What it has no field for is not said, or says nothing.
    assert_eq!((exited.kill_cause(), exited.stdout_dropped_bytes), (KillCause::None, 0));
    say("forget");
    say("list");
    assert_eq!(heard(&agent), told("launches-none"));
    assert!(node.in_files().is_empty());

    // By another id of its own it would be another launch; forgotten, this one is one too.
    std::fs::remove_file(node.dir.path().join("sandbox-1/go")).expect("removed");
    launch(&agent);
    assert!(matches!(heard(&agent), Told::Launched(_)));
    say("kill-with-grace");
    let exited = agent.exited(1);
    assert_eq!((exited.wait_status, exited.kill_sent()), (libc::SIGTERM, KillSent::Term));
    say("kill");
    assert_eq!(agent.exited(1), exited);
    say("shutdown");
    assert_eq!(heard(&agent), told("draining"));
    say("forget");
    agent.closed();
    wait_for("its end", || (!node.alive()).then_some(()));
}

/// The program on the disk was replaced, or put back, and the agent was not of the same release.
#[test]
fn an_agent_that_cannot_read_the_journal_begins_nothing_twice() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    for id in [1, 2] {
        node.launch(&agent, node.request(id, "exec sleep 600"));
        agent.launched(id);
    }
    assert!(node.in_files().is_empty(), "today's agent needs none");
    let older = node.connect_silent();
    older.send(order("hello"), &[]);
    assert!(matches!(older.recv(), Told::Welcome(Welcome { protocol: 1, .. })));
    assert_eq!(node.in_files(), [1, 2]);
    node.launch(&older, node.request(3, "exec sleep 600"));
    older.launched(3);
    assert_eq!(node.in_files(), [1, 2, 3]);

    let later = node.connect_silent();
    later.send(Order::Hello(Hello { protocol: 9 }), &[]);
    assert!(matches!(later.recv(), Told::Welcome(Welcome { protocol: 2, .. })));
    node.launch(&later, node.request(4, "exec sleep 600"));
    later.launched(4);
    for id in 1..=4 {
        later.kill(id, 0);
        later.exited(id);
        later.send(Order::Forget(Forget { launch_id: id }), &[]);
        // Those of before are there for as long as their launches.
        assert_eq!(later.list().len() as u64, 4 - id);
        assert_eq!(node.in_files(), (id + 1..4).collect::<Vec<_>>());
    }
}
