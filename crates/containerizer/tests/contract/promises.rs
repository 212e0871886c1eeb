//! The contract: the same of the fake, of plain processes and of Linux containers.

use proffer_containerizer::{Cause, Event, Isolation, KillSent};
use proffer_types::{LaunchId, Reason};

use crate::bench::{Bench, FRAMEWORK, Program};

macro_rules! of_each {
    ($($promise:ident)*; of_real: $($real:ident)*) => {
        mod fake {
            $(#[test] fn $promise() { super::$promise(super::Bench::fake()); })*
        }
        mod process {
            $(#[test] fn $promise() { super::run(super::Isolation::Process, super::$promise); })*
            $(#[test] fn $real() { super::run(super::Isolation::Process, super::$real); })*
        }
        mod linux {
            $(#[test] fn $promise() { super::run(super::Isolation::Linux, super::$promise); })*
            $(#[test] fn $real() { super::run(super::Isolation::Linux, super::$real); })*
        }
    };
}

of_each! {
    ends_are_true
    a_missing_program_is_an_exec_failure
    a_kill_is_told_by_its_signal
    a_launch_happens_once
    a_kill_during_the_launch_leaves_nothing_running
    forgetting_ends_what_runs
    a_restart_keeps_tasks_and_true_ends
    a_lost_supervisor_is_an_end_for_its_tasks
    a_dead_instance_begins_nothing
    orphans_are_ended;
    of_real:
    logs_are_read_by_offset
}

fn run(isolation: Isolation, promise: impl FnOnce(Bench)) {
    if let Some(bench) = Bench::real(isolation) {
        promise(bench);
    }
}

fn ends_are_true(mut bench: Bench) {
    for (program, code, signal) in [
        (Program::Gate(0), Some(0), None),
        (Program::Gate(7), Some(7), None),
        (Program::GateSignal(11), None, Some(11)),
        // Not ours: a SIGKILL from elsewhere is no want of memory and no kill.
        (Program::GateSignal(9), None, Some(9)),
    ] {
        let spec = bench.launch(&program);
        let isolation = bench.agent().isolation();
        match bench.of(spec.launch) {
            Event::Started { isolation: told, .. } => assert_eq!(told, isolation),
            other => panic!("{other:?}"),
        }
        bench.let_go(spec.launch);
        let end = bench.end(spec.launch);
        assert_eq!((end.exit_code, end.signal), (code, signal), "{program:?}");
        assert_eq!((end.cause, end.kill_sent, end.oom), (Cause::Exited, KillSent::None, None));
        bench.forget(spec.launch);
    }
    bench.close();
}

fn a_missing_program_is_an_exec_failure(mut bench: Bench) {
    let spec = bench.launch(&Program::Missing);
    match bench.of(spec.launch) {
        Event::LaunchFailed { reason, message, exit_code, .. } => {
            assert_eq!(reason, Reason::ExecFailed, "{message}");
            assert!(bench.is_fake() || exit_code == Some(127));
            assert!(!message.is_empty());
        }
        other => panic!("{other:?}"),
    }
    bench.forget(spec.launch);
    bench.close();
}

fn a_kill_is_told_by_its_signal(mut bench: Bench) {
    let spec = bench.run(&Program::Gate(0));
    bench.agent().kill(spec.launch, 30_000);
    let end = bench.end(spec.launch);
    assert_eq!((end.signal, end.kill_sent), (Some(15), KillSent::Term));
    bench.agent().kill(spec.launch, 0);
    bench.forget(spec.launch);

    let spec = bench.run(&Program::Gate(0));
    bench.agent().kill(spec.launch, 0);
    let end = bench.end(spec.launch);
    assert_eq!((end.signal, end.kill_sent, end.oom), (Some(9), KillSent::Kill, None));
    bench.forget(spec.launch);
    // Of what is unknown nothing happens.
    bench.agent().kill(LaunchId(999), 0);
    bench.close();
}

fn a_launch_happens_once(mut bench: Bench) {
    let spec = bench.run(&Program::Gate(3));
    bench.agent().launch(spec.clone());
    bench.let_go(spec.launch);
    assert_eq!(bench.end(spec.launch).exit_code, Some(3));
    bench.agent().launch(spec.clone());
    bench.forget(spec.launch);
    bench.close();
}

fn a_kill_during_the_launch_leaves_nothing_running(mut bench: Bench) {
    let spec = bench.launch(&Program::Gate(0));
    bench.agent().kill(spec.launch, 0);
    loop {
        match bench.of(spec.launch) {
            Event::Started { .. } => {}
            Event::LaunchFailed { reason, .. } => break assert_eq!(reason, Reason::KilledDuringLaunch),
            Event::Ended { end, .. } => {
                break assert_eq!((end.signal, end.kill_sent), (Some(9), KillSent::Kill));
            }
            other => panic!("{other:?}"),
        }
    }
    bench.forget(spec.launch);
    bench.close();
}

fn forgetting_ends_what_runs(mut bench: Bench) {
    let spec = bench.run(&Program::Gate(0));
    bench.agent().forget(spec.launch);
    assert_eq!(bench.end(spec.launch).signal, Some(9));
    assert_eq!(bench.of(spec.launch), Event::Gone { launch: spec.launch });
    bench.forget(spec.launch);
    bench.forget(LaunchId(999));
    bench.close();
}

fn a_restart_keeps_tasks_and_true_ends(mut bench: Bench) {
    let [running, ends, told, begun] =
        [Program::Gate(0), Program::Gate(7), Program::Gate(1), Program::Gate(2)]
            .map(|program| bench.run(&program));
    bench.let_go(told.launch);
    assert_eq!(bench.end(told.launch).exit_code, Some(1));
    // Checkpointed, and the agent died before it was delivered.
    let never = bench.spec(&Program::Gate(5));
    bench.stop();
    bench.let_go(ends.launch);
    let known = [
        Bench::known(&running, false),
        Bench::known(&ends, false),
        Bench::known(&told, true),
        Bench::known(&never, false),
        Bench::known(&begun, false),
    ];
    bench.restart(&known);
    assert!(matches!(bench.of(running.launch), Event::Started { .. }));
    let end = match bench.of(ends.launch) {
        Event::Started { .. } => bench.end(ends.launch),
        Event::Ended { end, .. } => end,
        other => panic!("{other:?}"),
    };
    assert_eq!((end.cause, end.exit_code), (Cause::Exited, Some(7)));
    assert_eq!(bench.of(never.launch), Event::NotStarted { launch: never.launch });
    assert!(matches!(bench.of(begun.launch), Event::Started { .. }));
    bench.expect("recovery ends", |event| *event == Event::Recovered);

    // What was never begun is begun now, by whichever instance is current.
    let again = proffer_containerizer::ContainerSpec { instance: bench.agent().assign(FRAMEWORK), ..never };
    bench.deliver(&again);
    assert!(matches!(bench.of(again.launch), Event::Started { .. }));
    for spec in [&running, &begun, &again] {
        bench.let_go(spec.launch);
    }
    for (spec, code) in [(&running, 0), (&begun, 2), (&again, 5)] {
        assert_eq!(bench.end(spec.launch).exit_code, Some(code));
    }
    for spec in [running, ends, told, begun, again] {
        bench.forget(spec.launch);
    }
    bench.close();
}

fn a_lost_supervisor_is_an_end_for_its_tasks(mut bench: Bench) {
    let [ended, running] = [Program::Gate(4), Program::Gate(0)].map(|program| bench.run(&program));
    bench.let_go(ended.launch);
    assert_eq!(bench.end(ended.launch).exit_code, Some(4));
    bench.lose_supervisor(running.instance);
    let end = bench.end(running.launch);
    assert_eq!((end.cause, end.exit_code), (Cause::SupervisorLost, None));
    let next = bench.run(&Program::Gate(0));
    assert_ne!(next.instance, running.instance);
    bench.let_go(next.launch);
    assert_eq!(bench.end(next.launch).exit_code, Some(0));
    for spec in [ended, running, next] {
        bench.forget(spec.launch);
    }
    bench.close();
}

fn a_dead_instance_begins_nothing(mut bench: Bench) {
    let first = bench.run(&Program::Gate(0));
    let late = bench.spec(&Program::Gate(6));
    bench.lose_supervisor(first.instance);
    assert_eq!(bench.end(first.launch).cause, Cause::SupervisorLost);
    bench.deliver(&late);
    assert_eq!(bench.of(late.launch), Event::NotStarted { launch: late.launch });
    let instance = bench.agent().assign(FRAMEWORK);
    assert_ne!(instance, late.instance);
    let late = proffer_containerizer::ContainerSpec { instance, ..late };
    bench.deliver(&late);
    assert!(matches!(bench.of(late.launch), Event::Started { .. }));
    bench.let_go(late.launch);
    assert_eq!(bench.end(late.launch).exit_code, Some(6));
    bench.forget(first.launch);
    bench.forget(late.launch);
    bench.close();
}

fn orphans_are_ended(mut bench: Bench) {
    let [kept, orphan] = [Program::Gate(0), Program::Gate(0)].map(|program| bench.run(&program));
    bench.restart(&[Bench::known(&kept, false)]);
    assert!(matches!(bench.of(kept.launch), Event::Started { .. }));
    assert_eq!(bench.of(orphan.launch), Event::OrphanRemoved { launch: orphan.launch });
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    bench.let_go(kept.launch);
    assert_eq!(bench.end(kept.launch).exit_code, Some(0));
    bench.forget(kept.launch);
    bench.close();
}

fn logs_are_read_by_offset(mut bench: Bench) {
    use proffer_containerizer::Stream;
    let spec = bench
        .run(&Program::Script("echo out; echo err >&2; until test -e go; do sleep 0.01; done; echo end"));
    let logs = bench.agent().logs(spec.launch);
    let read = |stream, offset| {
        let chunk = logs.read(stream, offset, 100).expect("readable");
        (String::from_utf8(chunk.bytes).expect("text"), chunk.ended)
    };
    crate::bench::until("both lines are there", || {
        read(Stream::Stdout, 0).0 == "out\n" && read(Stream::Stderr, 0) == ("err\n".into(), false)
    });
    assert_eq!(read(Stream::Stdout, 4), (String::new(), false));
    std::fs::write(bench.sandbox(spec.launch).join("go"), b"").expect("a sandbox");
    assert_eq!(bench.end(spec.launch).exit_code, Some(0));
    assert_eq!(read(Stream::Stdout, 4), ("end\n".into(), true));
    assert_eq!(read(Stream::Stderr, 0), ("err\n".into(), true));
    bench.forget(spec.launch);
    assert_eq!(read(Stream::Stdout, 0).0, "out\nend\n", "logs outlive the launch");
    bench.close();
}
