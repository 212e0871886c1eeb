//! Launches that start and end together.

use std::fs;

use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::*;

use nix::sys::signal::Signal;

use crate::harness::{Agent, Node, modes, signal, wait_for};

/// Members 1, 2, … of a group.
fn group(node: &Node, agent: &Agent, scripts: &[&str]) {
    for (id, script) in (1..).zip(scripts) {
        node.launch(agent, member(node, id, scripts.len() as u32, script));
    }
}

fn member(node: &Node, id: u64, size: u32, script: &str) -> Launch {
    Launch { group: Some(Group { first: 1, size }), kill_grace_ms: 60_000, ..node.request(id, script) }
}

fn launched(agent: &Agent, count: usize) {
    for _ in 0..count {
        let told = agent.recv();
        assert!(matches!(told, Told::Launched(_)), "{told:?}");
    }
}

/// So many ends, by launch.
fn ends(agent: &Agent, count: usize) -> Vec<Told> {
    let mut ends = (0..count)
        .map(|_| {
            loop {
                match agent.recv() {
                    Told::Launched(_) => {}
                    told => return told,
                }
            }
        })
        .collect::<Vec<_>>();
    ends.sort_by_key(|told| match told {
        Told::Exited(exited) => exited.launch_id,
        Told::LaunchFailed(failed) => failed.launch_id,
        other => panic!("{other:?}"),
    });
    ends
}

#[test]
fn nothing_runs_before_all_have_come() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        node.launch(&agent, member(&node, 1, 3, "echo up"));
        node.launch(&agent, member(&node, 2, 3, "echo up"));
        // Repeated, it is still one.
        node.launch(&agent, member(&node, 2, 3, "echo up"));
        assert_eq!(agent.list(), [], "no trace of it yet");
        assert!(node.recorded().is_empty());
        // Another agent starts anew.
        let agent = node.connect();
        node.launch(&agent, member(&node, 3, 3, "echo up"));
        node.launch(&agent, member(&node, 1, 3, "echo up"));
        assert_eq!(agent.list(), []);
        node.launch(&agent, member(&node, 2, 3, "echo up"));
        for told in ends(&agent, 3) {
            assert!(matches!(&told, Told::Exited(exited) if exited.wait_status == 0), "{told:?}");
        }
        for id in 1..=3 {
            assert_eq!(node.log(id, "stdout.0"), "up\n");
            agent.send(Order::Forget(Forget { launch_id: id }), &[]);
        }
        assert_eq!(agent.list(), []);
        assert_eq!(node.children(), [node.pump()]);
    }
}

#[test]
fn members_share_memory() {
    for mode in modes() {
        if mode != Isolation::Linux {
            continue;
        }
        let node = Node::start(mode);
        let agent = node.connect();
        let put = "echo shared > /dev/shm/word; readlink /proc/self/ns/ipc; until test -e /dev/shm/got; do sleep 0.01; done";
        let get = "until test -e /dev/shm/word; do sleep 0.01; done; cat /dev/shm/word; readlink /proc/self/ns/ipc; \
                   touch /dev/shm/got";
        group(&node, &agent, &[put, get]);
        for told in ends(&agent, 2) {
            assert!(matches!(&told, Told::Exited(exited) if exited.wait_status == 0), "{told:?}");
        }
        let own = fs::read_link("/proc/self/ns/ipc").expect("a link").display().to_string();
        let namespace = node.log(1, "stdout.0");
        assert_eq!(node.log(2, "stdout.0"), format!("shared\n{namespace}"));
        assert!(!namespace.contains(&own), "it is the host's: {namespace}");
        assert!(!std::path::Path::new("/dev/shm/word").exists(), "the host's was written to");
    }
}

#[test]
fn one_that_ends_badly_ends_the_others() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let gate = |code: u32| format!("until test -e go; do sleep 0.01; done; exit {code}");
        let patient = "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done";
        group(&node, &agent, &[&gate(0), &gate(4), patient]);
        launched(&agent, 3);
        wait_for("the third", || node.log(3, "stdout.0").contains("up").then_some(()));
        // One that ends well ends nobody.
        fs::write(node.dir.path().join("sandbox-1/go"), "").expect("written");
        assert_eq!(agent.exited(1).wait_status, 0);
        assert_eq!(agent.list().iter().filter(|info| info.state() == LaunchState::Running).count(), 2);
        fs::write(node.dir.path().join("sandbox-2/go"), "").expect("written");
        let ends = ends(&agent, 2);
        let [Told::Exited(second), Told::Exited(third)] = &ends[..] else { panic!("{ends:?}") };
        assert_eq!((second.wait_status, second.kill_cause()), (4 << 8, KillCause::None));
        // With the grace of its policy.
        assert_eq!((third.wait_status, third.kill_cause()), (9 << 8, KillCause::Group));
        assert!(third.kill_message.contains("launch 2"), "{}", third.kill_message);
    }
}

#[test]
fn if_one_cannot_be_made_none_is_started() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        // A program that is not there is found out last: what had started is killed.
        let mut missing = member(&node, 3, 3, "");
        missing.argv = vec!["proffer-no-such-program".into()];
        for id in 1..3 {
            node.launch(&agent, member(&node, id, 3, "echo up; sleep 1000"));
        }
        node.launch(&agent, missing);
        let all = ends(&agent, 3);
        assert!(
            matches!(&all[2], Told::LaunchFailed(failed) if failed.kind() == FailureKind::Exec),
            "{all:?}"
        );
        for told in &all[..2] {
            let cause = match told {
                Told::Exited(exited) => exited.kill_cause(),
                Told::LaunchFailed(failed) => failed.kill_cause(),
                other => panic!("{other:?}"),
            };
            assert_eq!(cause, KillCause::Group, "{told:?}");
        }

        // A container that cannot be made: nobody's program runs at all.
        let node = Node::start(mode);
        let agent = node.connect();
        for id in 1..=3 {
            let mut request = member(&node, id, 3, "echo up");
            if id == 3 && mode == Isolation::Linux {
                // Found out late, by init: the others are complete by then.
                request.hostname = "x".repeat(65);
            } else if id == 3 {
                request.limits = vec![Limit { kind: LimitKind::Nofile.into(), soft: 1 << 40, hard: None }];
            }
            node.launch(&agent, request);
        }
        for told in ends(&agent, 3) {
            let Told::LaunchFailed(failed) = &told else { panic!("{told:?}") };
            let cause = if failed.launch_id == 3 { KillCause::None } else { KillCause::Group };
            assert_eq!((failed.kind(), failed.kill_cause()), (FailureKind::Setup, cause), "{told:?}");
        }
        assert_eq!((node.log(1, "stdout.0"), node.log(2, "stdout.0")), Default::default());
        wait_for("nothing to be left", || (node.children() == [node.pump()]).then_some(()));
    }
}

#[test]
fn a_group_is_killed_before_it_is_complete() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    node.launch(&agent, member(&node, 1, 3, "true"));
    node.launch(&agent, member(&node, 2, 3, "true"));
    agent.kill(2, 0);
    let all = ends(&agent, 2);
    let [Told::LaunchFailed(first), Told::LaunchFailed(second)] = &all[..] else { panic!("{all:?}") };
    assert_eq!(first.kill_cause(), KillCause::Group);
    assert_eq!((second.kill_cause(), second.kill_sent()), (KillCause::Order, KillSent::Kill));
    node.launch(&agent, member(&node, 3, 3, "true"));
    let all = ends(&agent, 1);
    assert!(matches!(&all[0], Told::LaunchFailed(failed) if failed.kill_cause() == KillCause::Group));
    // What makes no sense is refused.
    for group in [Group { first: 0, size: 2 }, Group { first: 9, size: 1 }, Group { first: 9, size: 9_999 }] {
        node.launch(&agent, Launch { group: Some(group), ..node.request(9, "true") });
        assert!(matches!(agent.recv(), Told::Refused(refused) if refused.reason.contains("group")));
    }
}

#[test]
fn a_group_is_killed_while_it_is_made() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        // All of it is found at once: the first is cloned, and nothing has been heard of it yet.
        signal(node.pid, Signal::SIGSTOP);
        group(&node, &agent, &["echo up", "echo up", "echo up"]);
        agent.send(Order::List(List {}), &[]);
        agent.kill(3, 0);
        signal(node.pid, Signal::SIGCONT);
        let Told::Launches(known) = agent.recv() else { panic!("not a list") };
        let states = known.launches.iter().map(|info| (info.launch_id, info.state()));
        assert!(states.eq((1..=3).map(|id| (id, LaunchState::Starting))), "{known:?}");
        for told in ends(&agent, 3) {
            let Told::LaunchFailed(failed) = &told else { panic!("{told:?}") };
            let cause = if failed.launch_id == 3 { KillCause::Order } else { KillCause::Group };
            assert_eq!(failed.kill_cause(), cause, "{told:?}");
            assert_eq!(node.log(failed.launch_id, "stdout.0"), "");
        }
        wait_for("nothing to be left", || (node.children() == [node.pump()]).then_some(()));
    }
}
