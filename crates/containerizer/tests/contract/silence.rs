//! Supervisors that live and do not answer: stopped here, which looks the same as any other hang.

use std::os::fd::AsFd;
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proffer_containerizer::{Cause, ContainerSpec, Event, Isolation, KillSent, Known};
use proffer_launcher::seqpacket;
use proffer_types::{LaunchId, Reason};
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{Hello, List, ToSupervisor};
use prost::Message;

use crate::bench::{Bench, PATIENCE, Program, until};

/// With little patience.
fn bench() -> Option<Bench> {
    let mut bench = Bench::real(Isolation::Linux)?;
    bench.options().supervisor_answers = Duration::from_secs(2);
    bench.restart(&[]);
    bench.expect("recovery", |event| *event == Event::Recovered);
    Some(bench)
}

fn supervisor(bench: &Bench, spec: &ContainerSpec) -> Pid {
    Pid::from_raw(bench.supervisor_pid(spec.instance))
}

fn ends(bench: &mut Bench, spec: &ContainerSpec) {
    bench.let_go(spec.launch);
    assert_eq!(bench.end(spec.launch).exit_code, Some(0));
    bench.forget(spec.launch);
}

/// A launch of the same id again, as a caller does that was told that it was not started.
fn again(bench: &mut Bench, spec: &ContainerSpec) -> ContainerSpec {
    assert_eq!(bench.of(spec.launch), Event::NotStarted { launch: spec.launch });
    let instance = bench.agent().assign(spec.framework);
    assert_ne!(instance, spec.instance);
    let spec = ContainerSpec { instance, ..spec.clone() };
    bench.deliver(&spec);
    assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    spec
}

#[test]
fn what_a_useless_supervisor_was_sent_is_started_by_another() {
    let Some(mut bench) = bench() else { return };
    let first = bench.run(&Program::Gate(0));
    let hung = supervisor(&bench, &first);
    ends(&mut bench, &first);
    kill(hung, Signal::SIGSTOP).expect("stopped");
    let sent = bench.launch(&Program::Gate(0));
    assert_eq!(sent.instance, first.instance);
    let sent = again(&mut bench, &sent);
    until("the one that hangs is dead", || kill(hung, None).is_err());
    ends(&mut bench, &sent);
    bench.close();
}

#[test]
fn one_that_containers_run_under_is_spared_and_gets_nothing_new() {
    let Some(mut bench) = bench() else { return };
    let runs = bench.run(&Program::Gate(0));
    let hung = supervisor(&bench, &runs);
    kill(hung, Signal::SIGSTOP).expect("stopped");
    let [sent, ended] = [(); 2].map(|()| bench.launch(&Program::Gate(0)));
    for spec in [&sent, &ended] {
        assert_eq!(bench.of(spec.launch), Event::Unanswered { launch: spec.launch });
    }
    let next = bench.run(&Program::Gate(0));
    assert_ne!(next.instance, runs.instance);
    // One that was assigned to it before is given back.
    let late = ContainerSpec { instance: runs.instance, ..bench.spec(&Program::Gate(0)) };
    bench.deliver(&late);
    let late = again(&mut bench, &late);

    // Its end may be told only when it is known, which is long after this.
    bench.agent().kill(ended.launch, 0);
    assert_eq!(bench.of(ended.launch), Event::Unanswered { launch: ended.launch });
    assert!(!bench.processes(runs.launch).is_empty());
    kill(hung, Signal::SIGCONT).expect("continued");
    assert!(matches!(bench.of(sent.launch), Event::Started { .. }));
    // It was begun before it was known to be killed, or never.
    match bench.expect("its end", |event| {
        event.launch() == Some(ended.launch) && !matches!(event, Event::Started { .. })
    }) {
        Event::Ended { end, .. } => assert_eq!((end.signal, end.kill_sent), (Some(9), KillSent::Kill)),
        Event::LaunchFailed { reason, .. } => assert_eq!(reason, Reason::KilledDuringLaunch),
        other => panic!("{other:?}"),
    }
    bench.expect_none_but_started(ended.launch);
    bench.forget(ended.launch);
    for spec in [&sent, &late, &next, &runs] {
        ends(&mut bench, spec);
    }
    bench.close();
}

#[test]
fn when_the_last_container_has_ended_it_is_no_longer_spared() {
    let Some(mut bench) = bench() else { return };
    let runs = bench.run(&Program::Gate(0));
    kill(supervisor(&bench, &runs), Signal::SIGSTOP).expect("stopped");
    let sent = bench.launch(&Program::Gate(0));
    assert_eq!(bench.of(sent.launch), Event::Unanswered { launch: sent.launch });
    // Past its supervisor.
    bench.agent().kill(runs.launch, 0);
    assert_eq!(bench.end(runs.launch).signal, Some(9));
    let sent = again(&mut bench, &sent);
    bench.forget(runs.launch);
    ends(&mut bench, &sent);
    bench.close();
}

/// The next event of a launch that says more than that nobody knows.
fn answer(bench: &mut Bench, launch: LaunchId) -> Event {
    loop {
        match bench.of(launch) {
            Event::Unanswered { .. } => {}
            other => return other,
        }
    }
}

#[test]
fn what_ended_unseen_by_a_new_life_is_ended_when_that_is_asked_for() {
    let Some(mut bench) = bench() else { return };
    let gone = bench.run(&Program::Gate(0));
    let hung = supervisor(&bench, &gone);
    kill(hung, Signal::SIGSTOP).expect("stopped");
    // That it ran is not on the caller's record.
    bench.restart(&[Bench::known(&gone, false)]);
    bench.expect("recovery", |event| *event == Event::Recovered);
    bench.let_go(gone.launch);
    until("only its supervisor has not seen its end", || bench.processes(gone.launch).is_empty());
    bench.agent().forget(gone.launch);
    match answer(&mut bench, gone.launch) {
        Event::Ended { end, .. } => assert_eq!(end.cause, Cause::Interrupted),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.of(gone.launch), Event::Gone { launch: gone.launch });
    until("nothing spares its supervisor", || kill(hung, None).is_err());
    bench.close();
}

#[test]
fn what_is_known_to_have_begun_ends_beside_what_runs() {
    let Some(mut bench) = bench() else { return };
    let [gone, runs] = [(); 2].map(|()| bench.run(&Program::Gate(0)));
    let hung = supervisor(&bench, &runs);
    kill(hung, Signal::SIGSTOP).expect("stopped");
    let known = [&gone, &runs].map(|spec| Known { started: true, ..Bench::known(spec, false) });
    bench.restart(&known);
    bench.expect("recovery", |event| *event == Event::Recovered);
    bench.let_go(gone.launch);
    until("only its supervisor has not seen its end", || bench.processes(gone.launch).is_empty());
    bench.agent().kill(gone.launch, 0);
    bench.end(gone.launch);
    assert!(!bench.processes(runs.launch).is_empty());
    kill(hung, Signal::SIGCONT).expect("continued");
    assert!(matches!(bench.of(runs.launch), Event::Started { .. }));
    bench.forget(gone.launch);
    ends(&mut bench, &runs);
    bench.close();
}

#[test]
fn one_that_does_not_go_when_it_is_sent_away_is_ended() {
    let Some(mut bench) = bench() else { return };
    bench.options().supervisor_idle = Duration::from_secs(3);
    bench.restart(&[]);
    bench.expect("recovery", |event| *event == Event::Recovered);
    let spec = bench.run(&Program::Gate(0));
    let hung = supervisor(&bench, &spec);
    ends(&mut bench, &spec);
    kill(hung, Signal::SIGSTOP).expect("stopped");
    until("it is ended", || kill(hung, None).is_err());
    bench.close();
}

#[test]
fn a_group_of_which_nothing_was_sent_goes_to_another_whole() {
    let Some(mut bench) = bench() else { return };
    let runs = bench.run(&Program::Gate(0));
    let hung = supervisor(&bench, &runs);
    kill(hung, Signal::SIGSTOP).expect("stopped");
    bench.restart(&[Known { started: true, ..Bench::known(&runs, false) }]);
    let spec = |bench: &mut Bench| bench.spec(&Program::Gate(0));
    let mut members =
        [(); 2].map(|()| ContainerSpec { instance: runs.instance, ..spec(&mut bench) }).to_vec();
    bench.agent().launch_group(members.clone());
    for member in &mut members {
        assert_eq!(bench.of(member.launch), Event::NotStarted { launch: member.launch });
        member.instance = bench.agent().assign(member.framework);
        assert_ne!(member.instance, runs.instance);
    }
    bench.expect("recovery", |event| *event == Event::Recovered);
    bench.agent().launch_group(members.clone());
    for member in &members {
        assert!(matches!(bench.of(member.launch), Event::Started { .. }));
    }
    for member in &members {
        ends(&mut bench, member);
    }
    kill(hung, Signal::SIGCONT).expect("continued");
    assert!(matches!(bench.of(runs.launch), Event::Started { .. }));
    ends(&mut bench, &runs);
    bench.close();
}

/// What the supervisor had not read when its connection was replaced is sent again; but not what nobody wants any more.
#[test]
fn what_is_killed_before_it_was_read_never_begins() {
    let Some(mut bench) = bench() else { return };
    let runs = bench.run(&Program::Gate(0));
    let hung = supervisor(&bench, &runs);
    let socket = bench.runtime().join("supervisors").join(format!("{}.sock", runs.instance));
    let other = seqpacket::connect(&socket, false).expect("connected");
    let say = |order| {
        let body = ToSupervisor { message: Some(order) }.encode_to_vec();
        seqpacket::send(other.as_fd(), &body, &[]).expect("said");
    };
    say(Order::List(List {}));
    seqpacket::recv(other.as_fd()).expect("refused, and so accepted");
    kill(hung, Signal::SIGSTOP).expect("stopped");
    // Read first, and with it the agent's connection is replaced.
    say(Order::Hello(Hello { protocol: 2 }));
    let [killed, forgotten] =
        [(); 2].map(|()| bench.launch(&Program::Script("touch began; exec sleep 1000")));
    bench.agent().kill(killed.launch, 0);
    bench.agent().forget(forgotten.launch);
    let (told, heard) = channel();
    bench
        .agent()
        .terminal(LaunchId(u64::MAX), Box::new(move |answer| told.send(answer.is_err()).expect("heard")));
    assert_eq!(heard.recv_timeout(PATIENCE), Ok(true), "all that was said before is sent");
    kill(hung, Signal::SIGCONT).expect("continued");
    for spec in [&killed, &forgotten] {
        let Event::LaunchFailed { reason, .. } = bench.of(spec.launch) else { panic!("it began") };
        assert_eq!(reason, Reason::KilledDuringLaunch);
        assert!(!bench.sandbox(spec.launch).join("began").exists());
    }
    assert_eq!(bench.of(forgotten.launch), Event::Gone { launch: forgotten.launch });
    bench.forget(killed.launch);
    ends(&mut bench, &runs);
    bench.close();
}
