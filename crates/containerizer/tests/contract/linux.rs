//! What only Linux containers promise.

use std::path::Path;
use std::time::{Duration, Instant};

use proffer_containerizer::{Cause, ContainerSpec, Event, Isolation, KillSent, Known};
use proffer_types::Reason;
use proffer_types::container::UserNamespace;

use crate::bench::{Bench, PATIENCE, Program, until};

fn bench() -> Option<Bench> {
    Bench::real(Isolation::Linux)
}

#[test]
fn a_task_that_ignores_sigterm_is_gone_with_its_whole_tree() {
    let Some(mut bench) = bench() else { return };
    let script = "trap '' TERM; setsid sh -c \"trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & wait\" & wait";
    let spec = bench.run(&Program::Script(script));
    until("the tree has grown", || bench.agent().usage(spec.launch).is_some_and(|usage| usage.pids >= 5));
    let before = Instant::now();
    bench.agent().kill(spec.launch, 60_000);
    // A repeat may shorten the grace, and not lengthen it.
    bench.agent().kill(spec.launch, 300);
    bench.agent().kill(spec.launch, 60_000);
    let end = bench.end(spec.launch);
    assert_eq!((end.signal, end.kill_sent, end.oom), (Some(9), KillSent::Kill, None));
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(300) && took < PATIENCE, "{took:?}");
    assert_eq!(bench.processes(spec.launch), [0; 0]);
    assert!(bench.agent().usage(spec.launch).is_some(), "its group is there until it is forgotten");
    bench.forget(spec.launch);
    assert_eq!(bench.groups(), ["", "supervisors"]);
    bench.close();
}

#[test]
fn a_node_whose_view_cannot_be_made_is_told_at_once() {
    let Some(mut bench) = bench() else { return };
    bench.stop();
    // A file cannot be covered.
    let options =
        proffer_containerizer::Options { covers: vec!["/etc/passwd".into()], ..bench.options().clone() };
    let error = proffer_containerizer::open(options, |_| {}).expect_err("not opened");
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.contains("/etc/passwd"), "{error}: {cause}");
    bench.restart(&[]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    bench.close();
}

#[test]
fn no_user_of_the_host_reaches_a_sandbox() {
    use std::os::unix::fs::PermissionsExt;
    let Some(mut bench) = bench() else { return };
    // The sandbox is the task's own to open to everyone; what is above it is not.
    let spec = bench.run(&Program::Script("chmod 777 . && touch open && sleep 1000"));
    let sandbox = bench.sandbox(spec.launch);
    until("it is open", || sandbox.join("open").exists());
    let above = sandbox.parent().expect("a parent").metadata().expect("a directory");
    assert_eq!(above.permissions().mode() & 0o077, 0);
    bench.agent().kill(spec.launch, 0);
    bench.end(spec.launch);
    bench.forget(spec.launch);
    bench.close();
}

#[test]
fn a_fork_bomb_stays_inside_its_limit() {
    let Some(mut bench) = bench() else { return };
    // The shell that is refused a fork gives up; the payload does not.
    let script = "(while :; do sleep 1000 & done) 2>/dev/null & exec sleep 1000";
    let spec = ContainerSpec { pids_max: 30, ..bench.spec(&Program::Script(script)) };
    bench.deliver(&spec);
    assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    let other = bench.run(&Program::Gate(0));
    // Init is not counted against the task, and one shell may be gone by the time we look.
    until("the limit is reached", || {
        let pids = bench.agent().usage(spec.launch).expect("measured").pids;
        assert!(pids <= 31, "{pids} processes");
        pids >= 30
    });
    bench.let_go(other.launch);
    assert_eq!(bench.end(other.launch).exit_code, Some(0), "a neighbour is not hurt");
    bench.agent().kill(spec.launch, 0);
    assert_eq!(bench.end(spec.launch).signal, Some(9));
    bench.forget(spec.launch);
    bench.forget(other.launch);
    bench.close();
}

#[test]
fn a_memory_hog_is_killed_alone_and_told_apart() {
    let Some(mut bench) = bench() else { return };
    let neighbour = bench.run(&Program::Gate(0));
    let limit = 32 << 20;
    let hog = ContainerSpec { memory_bytes: limit, ..bench.spec(&Program::Script("exec tail /dev/zero")) };
    bench.deliver(&hog);
    assert!(matches!(bench.of(hog.launch), Event::Started { .. }));
    let end = bench.end(hog.launch);
    let oom = end.oom.expect("an end for want of memory");
    assert_eq!((end.signal, oom.limit_bytes), (Some(9), limit));
    assert!(oom.peak_bytes > limit * 9 / 10 && oom.peak_bytes <= limit, "{oom:?}");
    assert_eq!(end.memory_peak_bytes, Some(oom.peak_bytes));
    bench.let_go(neighbour.launch);
    let end = bench.end(neighbour.launch);
    assert_eq!((end.exit_code, end.oom_kills), (Some(0), 0));
    bench.forget(hog.launch);
    bench.forget(neighbour.launch);
    bench.close();
}

#[test]
fn an_oom_while_the_agent_is_dead_is_still_one() {
    let Some(mut bench) = bench() else { return };
    let script = "until test -e go; do sleep 0.01; done; exec tail /dev/zero";
    let spec = ContainerSpec { memory_bytes: 32 << 20, ..bench.spec(&Program::Script(script)) };
    bench.deliver(&spec);
    assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    bench.stop();
    std::fs::write(bench.sandbox(spec.launch).join("go"), b"").expect("a sandbox");
    bench.restart(&[Bench::known(&spec, false)]);
    let end = match bench.of(spec.launch) {
        Event::Started { .. } => bench.end(spec.launch),
        Event::Ended { end, .. } => end,
        other => panic!("{other:?}"),
    };
    assert_eq!(end.oom.expect("an end for want of memory").limit_bytes, 32 << 20);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    bench.forget(spec.launch);
    bench.close();
}

#[test]
fn half_a_cpu_is_half_a_cpu() {
    let Some(mut bench) = bench() else { return };
    let busy = Program::Script("while :; do :; done");
    let half = bench.run(&busy);
    // The rest of the machine, but for a reserve, is given to another task.
    let cpus = std::thread::available_parallelism().expect("a number of cpus").get() as u64;
    let rest = ContainerSpec { cpus_milli: cpus * 1000 - 800, ..bench.spec(&busy) };
    bench.deliver(&rest);
    assert!(matches!(bench.of(rest.launch), Event::Started { .. }));
    // And two that are none of ours.
    let mut others = [(); 2].map(|()| {
        std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a shell")
    });
    let mut rates = Vec::new();
    // The machine has other work than this test: one window in which it had its share is asked for, and none in
    // which it had more.
    until("half a cpu within 10 %", || {
        let (start, before) = (Instant::now(), bench.agent().usage(half.launch).expect("measured").cpu_usec);
        until("a window passes", || start.elapsed() >= Duration::from_secs(2));
        let used = bench.agent().usage(half.launch).expect("measured").cpu_usec - before;
        let rate = used as f64 / start.elapsed().as_micros() as f64;
        rates.push(rate);
        assert!(rate < 0.55, "{rates:?}");
        rate > 0.45
    });
    for other in &mut others {
        other.kill().and_then(|()| other.wait()).expect("ended");
    }
    for spec in [rest, half] {
        bench.agent().kill(spec.launch, 0);
        assert_eq!(bench.end(spec.launch).signal, Some(9));
        bench.forget(spec.launch);
    }
    bench.close();
}

#[test]
fn nothing_is_left_of_a_lost_supervisor() {
    let Some(mut bench) = bench() else { return };
    let script = "trap '' TERM; setsid sh -c '(sleep 1000 &) ; sleep 1000' & (setsid sleep 1000 &); wait";
    let specs: Vec<_> = (0..3).map(|_| bench.run(&Program::Script(script))).collect();
    bench.lose_supervisor(specs[0].instance);
    for spec in &specs {
        let end = bench.end(spec.launch);
        assert_eq!((end.cause, end.signal), (Cause::SupervisorLost, Some(9)));
        assert_eq!(bench.processes(spec.launch), [0; 0]);
    }
    for spec in specs {
        bench.forget(spec.launch);
    }
    assert_eq!(bench.groups(), ["", "supervisors"]);
    let left = std::fs::read_dir(bench.runtime().join("supervisors")).expect("there").count();
    assert_eq!(left, 0, "a dead instance's files go with its last launch");
    bench.close();
}

/// As a supervisor would that records in a way that is not known here.
#[test]
fn what_was_said_to_have_started_is_not_begun_again_for_want_of_a_record() {
    for isolation in [Isolation::Linux, Isolation::Process] {
        let Some(mut bench) = Bench::real(isolation) else { return };
        let spec = bench.run(&Program::Gate(0));
        let dir = bench.runtime().join("supervisors").join(spec.instance.to_string());
        std::fs::remove_file(dir.join("journal")).expect("removed");
        bench.lose_supervisor(spec.instance);
        assert_eq!(bench.end(spec.launch).cause, Cause::SupervisorLost);
        bench.forget(spec.launch);
        bench.close();
    }
}

#[test]
fn a_supervisor_lost_with_the_agent_is_judged_by_its_records() {
    let Some(mut bench) = bench() else { return };
    let programs = [Program::Gate(7), Program::Gate(0), Program::Gate(0)];
    let [exits, runs, told] = programs.map(|program| bench.run(&program));
    let orphan = bench.run(&Program::Gate(0));
    bench.stop();
    bench.let_go(exits.launch);
    let has_ended = |bench: &Bench| bench.recorded(exits.instance)[&exits.launch.0].end.is_some();
    until("the exit is recorded", || has_ended(&bench));
    bench.lose_supervisor(exits.instance);
    let started = Known { started: true, ..Bench::known(&told, false) };
    bench.restart(&[Bench::known(&exits, false), Bench::known(&runs, false), started]);
    assert_eq!(bench.end(exits.launch).exit_code, Some(7), "an exit record wins");
    assert_eq!(bench.end(runs.launch).cause, Cause::Interrupted);
    assert_eq!(bench.end(told.launch).cause, Cause::SupervisorLost, "it was known to run");
    assert_eq!(bench.of(orphan.launch), Event::OrphanRemoved { launch: orphan.launch });
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    bench.forget(exits.launch);
    bench.forget(runs.launch);
    bench.forget(told.launch);
    assert_eq!(bench.groups(), ["", "supervisors"]);
    bench.close();
}

#[test]
fn an_exit_while_the_socket_is_cut_is_told() {
    let Some(mut bench) = bench() else { return };
    let spec = bench.run(&Program::Gate(7));
    let socket = bench.runtime().join("supervisors").join(format!("{}.sock", spec.instance));
    let away = socket.with_extension("away");
    bench.stop();
    // The supervisor lives and cannot be reached: its record is read all the same.
    std::fs::rename(&socket, &away).expect("renamed");
    bench.let_go(spec.launch);
    bench.restart(&[Bench::known(&spec, false)]);
    assert_eq!(bench.end(spec.launch).exit_code, Some(7));
    std::fs::rename(&away, &socket).expect("renamed back");
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    bench.forget(spec.launch);
    // And it works on.
    let next = bench.run(&Program::Gate(0));
    assert_eq!(next.instance, spec.instance);
    bench.let_go(next.launch);
    assert_eq!(bench.end(next.launch).exit_code, Some(0));
    bench.forget(next.launch);
    bench.close();
}

#[test]
fn users_are_resolved_or_refused() {
    let Some(mut bench) = bench() else { return };
    for user in ["root", "proffer-no-such-user"] {
        let mut spec = ContainerSpec { user: user.into(), ..bench.spec(&Program::Gate(0)) };
        spec.container.users = UserNamespace::Host;
        bench.deliver(&spec);
        match bench.of(spec.launch) {
            Event::LaunchFailed { reason, message, .. } => {
                assert_eq!(reason, Reason::UserRefused);
                assert!(message.contains(user), "{message}");
            }
            other => panic!("{other:?}"),
        }
        bench.forget(spec.launch);
    }
    let spec = bench.spec(&Program::Script("test $(id -un) = nobody && touch $PROFFER_SANDBOX/mine"));
    bench.deliver(&spec);
    assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    assert_eq!(bench.end(spec.launch).exit_code, Some(0));
    bench.forget(spec.launch);
    bench.close();
}

#[test]
fn an_idle_supervisor_ends() {
    let Some(mut bench) = bench() else { return };
    bench.options().supervisor_idle = Duration::from_millis(50);
    bench.restart(&[]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    let spec = bench.run(&Program::Gate(0));
    bench.let_go(spec.launch);
    assert_eq!(bench.end(spec.launch).exit_code, Some(0));
    bench.forget(spec.launch);
    let dir = bench.runtime().join("supervisors");
    until("the supervisor's files are gone", || std::fs::read_dir(&dir).expect("there").count() == 0);
    let next = bench.run(&Program::Gate(0));
    assert_ne!(next.instance, spec.instance);
    bench.let_go(next.launch);
    assert_eq!(bench.end(next.launch).exit_code, Some(0));
    bench.forget(next.launch);
    bench.close();
}

#[test]
fn after_an_upgrade_new_launches_go_to_the_new_program() {
    let Some(mut bench) = bench() else { return };
    let old = bench.run(&Program::Gate(1));
    let new = bench.runtime().join("executor");
    let mut program = std::fs::read(&bench.options().executor).expect("readable");
    std::fs::copy(&bench.options().executor, &new).expect("copied");
    bench.options().executor = new.clone();
    // The same program in another file is the same.
    bench.restart(&[Bench::known(&old, false)]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    assert_eq!(bench.spec(&Program::Gate(0)).instance, old.instance);
    // Another one by its build id.
    let id = proffer_launcher::build_id(&new).expect("a build id");
    let id = (0..id.len()).step_by(2).map(|at| u8::from_str_radix(&id[at..at + 2], 16).expect("hexadecimal"));
    let id = id.collect::<Vec<_>>();
    let at = program.windows(id.len()).position(|part| part == id).expect("its note");
    program[at] ^= 1;
    std::fs::remove_file(&new).expect("removed");
    std::fs::write(&new, program).expect("written");
    std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    bench.options().supervisor_idle = Duration::from_millis(50);
    bench.restart(&[Bench::known(&old, false)]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    assert!(matches!(bench.of(old.launch), Event::Started { .. }));
    let next = bench.run(&Program::Gate(2));
    assert_ne!(next.instance, old.instance);
    for (spec, code) in [(&old, 1), (&next, 2)] {
        bench.let_go(spec.launch);
        assert_eq!(bench.end(spec.launch).exit_code, Some(code));
        bench.forget(spec.launch);
    }
    let supervisors = bench.runtime().join("supervisors");
    until("both have drained", || std::fs::read_dir(&supervisors).expect("there").count() == 0);
    std::fs::remove_file(new).expect("removed");
    bench.close();
}

#[test]
fn a_supervisor_that_does_not_start_fails_the_launch() {
    let Some(mut bench) = bench() else { return };
    bench.options().executor = "/bin/false".into();
    bench.restart(&[]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    for executor in ["/bin/false", "/proffer-no-such-program"] {
        bench.options().executor = executor.into();
        bench.restart(&[]);
        bench.expect("recovery ends", |event| *event == Event::Recovered);
        let spec = bench.launch(&Program::Gate(0));
        match bench.of(spec.launch) {
            Event::LaunchFailed { reason, message, .. } => {
                assert_eq!(reason, Reason::LaunchFailed);
                assert!(message.contains("supervisor"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        bench.forget(spec.launch);
    }
    bench.close();
}

#[test]
fn a_supervisor_that_does_not_answer_saves_no_container() {
    let Some(mut bench) = bench() else { return };
    let [spec, other] = [Program::Gate(0), Program::Gate(0)].map(|program| bench.run(&program));
    let supervisor = nix::unistd::Pid::from_raw(bench.supervisor_pid(spec.instance));
    nix::sys::signal::kill(supervisor, nix::sys::signal::SIGSTOP).expect("stopped");
    bench.agent().kill(spec.launch, 0);
    until("its processes are gone", || bench.processes(spec.launch).is_empty());
    let end = bench.end(spec.launch);
    assert_eq!((end.signal, end.kill_sent, end.oom), (Some(9), KillSent::Kill, None));
    bench.forget(spec.launch);
    nix::sys::signal::kill(supervisor, nix::sys::signal::SIGCONT).expect("continued");
    // It says late what is known already, and goes on with the rest.
    bench.let_go(other.launch);
    assert_eq!(bench.end(other.launch).exit_code, Some(0));
    bench.forget(other.launch);
    until("it has forgotten both", || bench.recorded(spec.instance).is_empty());
    bench.close();
}

#[test]
fn a_supervisor_that_hangs_keeps_no_agent_from_coming_back() {
    let Some(mut bench) = bench() else { return };
    let spec = bench.run(&Program::Gate(7));
    let supervisor = nix::unistd::Pid::from_raw(bench.supervisor_pid(spec.instance));
    bench.stop();
    nix::sys::signal::kill(supervisor, nix::sys::signal::SIGSTOP).expect("stopped");
    bench.restart(&[Bench::known(&spec, false)]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    assert!(!bench.processes(spec.launch).is_empty(), "its task is let be");
    nix::sys::signal::kill(supervisor, nix::sys::signal::SIGCONT).expect("continued");
    assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    bench.let_go(spec.launch);
    assert_eq!(bench.end(spec.launch).exit_code, Some(7));
    bench.forget(spec.launch);
    bench.close();
}

#[test]
fn many_at_once_each_start_once() {
    let Some(mut bench) = bench() else { return };
    const COUNT: i32 = 200;
    let begun = Instant::now();
    let script: &'static str = "echo x; exit 3";
    let specs: Vec<_> = (0..COUNT).map(|_| bench.launch(&Program::Script(script))).collect();
    for spec in &specs {
        assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
        assert_eq!(bench.end(spec.launch).exit_code, Some(3));
    }
    eprintln!("{COUNT} launches in {:?}", begun.elapsed());
    for spec in &specs {
        bench.agent().forget(spec.launch);
    }
    for spec in &specs {
        assert_eq!(bench.of(spec.launch), Event::Gone { launch: spec.launch });
        let logs = bench.agent().logs(spec.launch);
        let chunk = logs.read(proffer_containerizer::Stream::Stdout, 0, 10).expect("readable");
        assert_eq!((chunk.bytes.as_slice(), chunk.ended), (b"x\n".as_slice(), true), "{:?}", spec.launch);
    }
    assert_eq!(bench.groups(), ["", "supervisors"]);
    bench.close();
}

#[test]
fn restarts_in_the_middle_lose_and_repeat_nothing() {
    let Some(mut bench) = bench() else { return };
    const COUNT: usize = 60;
    // Each start leaves a line; what was already there tells of a second one.
    let script = "echo start >>$PROFFER_SANDBOX/starts; sleep 0.3; exit 3";
    let mut open: std::collections::BTreeMap<_, _> =
        (0..COUNT).map(|_| bench.launch(&Program::Script(script))).map(|spec| (spec.launch, spec)).collect();
    let all: Vec<_> = open.keys().copied().collect();
    let mut restarts = 0;
    while !open.is_empty() {
        if restarts < 20 {
            restarts += 1;
            let known: Vec<_> = open.values().map(|spec| Bench::known(spec, false)).collect();
            bench.restart(&known);
        }
        // A few events between two restarts.
        for _ in 0..5 {
            if open.is_empty() {
                break;
            }
            match bench.event("a launch goes on") {
                Event::Ended { launch, end } => {
                    assert_eq!((end.cause, end.exit_code), (Cause::Exited, Some(3)));
                    assert!(open.remove(&launch).is_some(), "{launch:?} ended twice");
                    bench.agent().forget(launch);
                }
                Event::NotStarted { launch } => {
                    let instance = bench.agent().assign(crate::bench::FRAMEWORK);
                    let spec = open.get_mut(&launch).expect("open");
                    spec.instance = instance;
                    bench.agent().launch(spec.clone());
                }
                // Forgotten before the restart, and not yet removed: nobody has it on record any more.
                Event::Started { .. }
                | Event::Recovered
                | Event::Gone { .. }
                | Event::OrphanRemoved { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    for launch in all {
        let starts = std::fs::read_to_string(bench.sandbox(launch).join("starts")).expect("it started");
        assert_eq!(starts, "start\n", "{launch:?}");
    }
    until("everything is removed", || bench.groups() == ["", "supervisors"]);
}

#[test]
fn supervisors_are_apart_from_the_agent_and_within_their_memory() {
    let Some(mut bench) = bench() else { return };
    let spec = bench.run(&Program::Gate(0));
    let pid = bench.supervisor_pid(spec.instance);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    let used = |line: &&str| match line.split(':').nth(1).expect("controllers") {
        "" => !Path::new("/sys/fs/cgroup/memory").exists(),
        controllers => {
            let ours = ["cpu", "memory", "pids", "freezer", "name=systemd"];
            controllers.split(',').any(|controller| ours.contains(&controller))
        }
    };
    let mut seen = 0;
    for line in groups.lines().filter(used) {
        seen += 1;
        assert!(line.ends_with("/supervisors") && line.contains(":/proffer/test-"), "{line}");
    }
    assert!(seen > 0, "{groups}");
    let memory =
        groups.lines().find(|line| line.contains(":memory:") || line.starts_with("0::")).expect("a line");
    let path = memory.splitn(3, ':').nth(2).expect("a path").trim_start_matches('/');
    let v1 = Path::new("/sys/fs/cgroup/memory").join(path).join("memory.limit_in_bytes");
    let v2 = Path::new("/sys/fs/cgroup").join(path).join("memory.max");
    let limit = std::fs::read_to_string(if v1.exists() { v1 } else { v2 }).expect("a limit");
    assert_eq!(limit.trim(), (256 << 20).to_string());
    bench.let_go(spec.launch);
    bench.end(spec.launch);
    bench.forget(spec.launch);
    bench.close();
}

#[test]
fn a_socket_bound_later_is_out_of_reach_for_the_next() {
    let Some(mut bench) = bench() else { return };
    bench.options().socket_look = Duration::from_millis(50);
    bench.restart(&[]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    let first = bench.run(&Program::Gate(0));
    let dir = std::path::PathBuf::from(format!("/var/lib/proffer-test-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("a directory");
    let socket = dir.join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut next = first.instance;
        until("the next goes elsewhere", || {
            next = bench.agent().assign(crate::bench::FRAMEWORK);
            next != first.instance
        });
        let script = format!("test -d {0} && ! test -e {0}/socket", dir.display());
        let spec = bench.launch(&Program::Script(String::leak(script)));
        assert_eq!(spec.instance, next);
        assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
        assert_eq!(bench.end(spec.launch).exit_code, Some(0));
        bench.forget(spec.launch);
    }));
    drop(listener);
    std::fs::remove_dir_all(&dir).expect("removed");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    bench.let_go(first.launch);
    assert_eq!(bench.end(first.launch).exit_code, Some(0), "what runs runs on");
    bench.forget(first.launch);
    bench.close();
}
