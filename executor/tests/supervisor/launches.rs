//! Launches, their ends and their logs.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use proffer_launcher::seccomp::Profile;
use proffer_launcher::seqpacket;
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::*;

use crate::harness::{DEADLINE, Node, kill, modes, signal, wait_for, zombie};

/// Who gave up waiting for it has started another, and would never find this one.
#[test]
fn one_that_nobody_waits_for_any_more_ends() {
    let dir = tempfile::Builder::new().prefix("proffer-executor").tempdir().expect("temp dir");
    let (run, socket) = (dir.path().join("run"), dir.path().join("socket"));
    fs::create_dir(&run).expect("a directory");
    // Writing down who it is takes as long as nobody reads this.
    let slow = run.join("new");
    nix::unistd::mkfifo(&slow, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let mut starter = Node::command(dir.path(), Isolation::Process).spawn().expect("the binary runs");
    wait_for("it listens", || socket.exists().then_some(()));
    starter.kill().expect("killed");
    starter.wait().expect("waited");
    let identity = fs::read_to_string(&slow).expect("who it is");
    assert!(identity.contains("\"pid\""), "{identity}");
    wait_for("it is gone, with all that it made", || (!socket.exists() && !run.exists()).then_some(()));
}

#[test]
fn ends_are_reported_as_they_were() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let cases = [("true", 0), ("false", 1 << 8), ("exit 7", 7 << 8), ("kill -USR1 $$", libc::SIGUSR1)];
        for (id, (script, status)) in (1..).zip(cases) {
            node.launch(&agent, node.request(id, &format!("echo out; echo err >&2; {script}")));
            let launched = agent.launched(id);
            assert!(launched.init_pid > 1);
            let exited = agent.exited(id);
            assert_eq!(
                (exited.wait_status, exited.init_died, exited.kill_sent()),
                (status, false, KillSent::None)
            );
            assert!(exited.logs_complete);
            assert_eq!(
                (node.log(id, "stdout.0"), node.log(id, "stderr.0")),
                ("out\n".into(), "err\n".into())
            );
        }
        node.launch(&agent, node.request(8, "true"));
        agent.launched(8);
        assert!(agent.exited(8).logs_complete);
        let files = fs::read_dir(node.logs(8)).expect("directory").count();
        assert_eq!(files, 0, "what says nothing leaves no file");
        let mut missing = node.request(9, "");
        missing.argv = vec!["proffer-no-such-program".into()];
        node.launch(&agent, missing);
        let Told::LaunchFailed(failed) = agent.recv() else { panic!("no failure") };
        assert_eq!(
            (failed.kind(), failed.errno, failed.step.as_str()),
            (FailureKind::Exec, libc::ENOENT, "execve")
        );
        assert!(failed.message.contains("No such file"), "{}", failed.message);
    }
}

#[test]
fn a_task_can_open_its_own_output() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        node.launch(&agent, node.request(1, "echo out > /dev/stdout && echo err > /dev/stderr"));
        agent.launched(1);
        assert_eq!(agent.exited(1).wait_status, 0, "{}", node.log(1, "stderr.0"));
        assert_eq!((node.log(1, "stdout.0"), node.log(1, "stderr.0")), ("out\n".into(), "err\n".into()));
    }
}

#[test]
fn a_task_that_ignores_sigterm_is_gone_after_its_grace() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let script = "trap 'echo asked' TERM; setsid sh -c 'trap : TERM; while :; do sleep 0.05; done' & \
                      echo up; while :; do sleep 0.05; done";
        node.launch(&agent, node.request(1, script));
        agent.launched(1);
        wait_for("the script", || node.log(1, "stdout.0").contains("up").then_some(()));
        let began = Instant::now();
        agent.kill(1, 600_000);
        wait_for("SIGTERM", || node.log(1, "stdout.0").contains("asked").then_some(()));
        // A repeat shortens, a later one does not prolong.
        agent.kill(1, 300);
        agent.kill(1, 500_000);
        let exited = agent.exited(1);
        assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < DEADLINE);
        assert_eq!((exited.wait_status, exited.kill_sent()), (libc::SIGKILL, KillSent::Kill));
        assert_eq!(exited.init_died, mode == Isolation::Linux);
        assert!(exited.logs_complete, "nothing is left to hold the pipes");
        assert_eq!(node.children(), [node.pump()]);
        // Of an ended launch a kill repeats the end.
        agent.kill(1, 0);
        assert_eq!(agent.exited(1), exited);
        agent.kill(2, 0);
        assert_eq!(agent.recv(), Told::Unknown(Unknown { launch_id: 2 }));

        node.launch(&agent, node.request(3, "trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done"));
        agent.launched(3);
        wait_for("the script", || node.log(3, "stdout.0").contains("up").then_some(()));
        agent.kill(3, 600_000);
        let exited = agent.exited(3);
        assert_eq!((exited.wait_status, exited.kill_sent()), (5 << 8, KillSent::Term));
    }
}

#[test]
fn an_exit_while_nobody_is_connected_is_reported_later() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let go = node.dir.path().join("sandbox-1/go");
        node.launch(&agent, node.request(1, "while ! [ -e go ]; do sleep 0.01; done; exit 7"));
        agent.launched(1);
        drop(agent);
        fs::write(go, "").expect("written");
        let recorded = wait_for("the exit record", || node.recorded().remove(&1)?.end);
        let Told::Exited(recorded) = recorded else { panic!("not an exit") };
        assert_eq!(recorded.wait_status, 7 << 8);
        let agent = node.connect();
        let exited = wait_for("its end", || match agent.list().as_slice() {
            [info] if info.state() == LaunchState::Ended => match &info.end {
                Some(launch_info::End::Exited(exited)) => Some(exited.clone()),
                other => panic!("{other:?}"),
            },
            [info] if info.state() == LaunchState::Running => None,
            other => panic!("{other:?}"),
        });
        assert_eq!((exited.launch_id, exited.wait_status), (1, 7 << 8));
        // The push may have crossed the list; forgetting ends both.
        agent.send(Order::Forget(Forget { launch_id: 1 }), &[]);
        assert_eq!(agent.list(), []);
        assert!(node.recorded().is_empty());
    }
}

#[test]
fn a_repeated_launch_only_repeats_its_answer() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    let request = node.request(1, "echo start; while ! [ -e go ]; do sleep 0.01; done");
    node.launch(&agent, request.clone());
    let launched = agent.launched(1);
    assert!(node.recorded()[&1].begun.is_some());
    if let Ok(maps) = fs::read_to_string(format!("/proc/{}/maps", launched.init_pid)) {
        assert!(
            maps.contains("[stack]") && !maps.contains("[heap]"),
            "the supervisor's heap is in init:\n{maps}"
        );
    }
    node.launch(&agent, request.clone());
    assert_eq!(agent.launched(1), launched);
    drop(agent);
    let agent = node.connect();
    node.launch(&agent, request.clone());
    assert_eq!(agent.launched(1), launched);
    agent.send(Order::Forget(Forget { launch_id: 1 }), &[]);
    assert!(matches!(agent.recv(), Told::Refused(refused) if refused.launch_id == 1));
    fs::write(node.dir.path().join("sandbox-1/go"), "").expect("written");
    let exited = agent.exited(1);
    node.launch(&agent, request);
    assert_eq!(agent.exited(1), exited);
    assert_eq!(node.log(1, "stdout.0"), "start\n");
}

#[test]
fn a_newer_connection_discards_what_is_unread_on_the_older() {
    let node = Node::start(Isolation::Process);
    let silent = node.connect_silent();
    silent.send(Order::List(List {}), &[]);
    assert!(matches!(silent.recv(), Told::Refused(_)), "Hello comes first");

    let older = node.connect();
    let newer = node.connect_silent();
    // The supervisor is held still while both write, so that it finds the newer's Hello and the older's launch
    // at once; whichever it looks at first, after the welcome nothing of the older's is begun.
    signal(node.pid, Signal::SIGSTOP);
    newer.send(Order::Hello(Hello { protocol: 2 }), &[]);
    node.launch(&older, node.request(1, "true"));
    signal(node.pid, Signal::SIGCONT);
    assert!(matches!(newer.recv(), Told::Welcome(_)));
    let known = newer.list();
    older.closed();
    let begun = node.recorded().contains_key(&1);
    assert_eq!(begun, !known.is_empty(), "what the welcome did not see was begun later");
}

#[test]
fn what_cannot_be_done_is_refused_and_leaves_nothing() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    let good = node.request(1, "true");
    let refused = |request: Launch, part: &str| {
        let id = request.launch_id;
        node.launch(&agent, request);
        let Told::Refused(refused) = agent.recv() else { panic!("not refused: {part}") };
        assert!(refused.launch_id == id && refused.reason.contains(part), "{}", refused.reason);
    };
    refused(Launch { launch_id: 0, ..good.clone() }, "launch_id");
    refused(Launch { argv: vec![], ..good.clone() }, "argv");
    refused(Launch { env: vec!["=x".into()], ..good.clone() }, "NAME=value");
    refused(Launch { isolation: 0, ..good.clone() }, "isolation");
    refused(Launch { isolation: Isolation::Linux.into(), ..good.clone() }, "--isolation linux");
    refused(Launch { descriptors: vec![Descriptor::LogDir.into()], ..good.clone() }, "2 descriptors came");
    let twice = vec![Descriptor::LogDir.into(); 2];
    refused(Launch { descriptors: twice, ..good.clone() }, "more than 1");
    refused(Launch { descriptors: vec![99, Descriptor::LogDir.into()], ..good.clone() }, "descriptors");
    refused(Launch { limits: vec![Limit::default()], ..good.clone() }, "limit");

    let garbage = [0xff; 10];
    seqpacket::send(agent.socket.as_fd(), &garbage, &[]).expect("sent");
    assert!(matches!(agent.recv(), Told::Refused(_)));
    let large = vec![0; seqpacket::DATAGRAM_MAX + 1];
    assert_eq!(nix::unistd::write(&agent.socket, &large), Ok(large.len()));
    assert!(matches!(agent.recv(), Told::Refused(refused) if refused.reason.contains("datagram")));

    assert_eq!(agent.list(), []);
    assert!(node.recorded().is_empty());
    let second = Node::command(node.dir.path(), Isolation::Process).output().expect("it runs");
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("already belongs"), "{second:?}");
    node.launch(&agent, good);
    agent.launched(1);
    agent.exited(1);
}

#[test]
fn a_long_list_comes_in_parts() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    const COUNT: u64 = 1500;
    // Few at a time: whoever does not read its answers is not read either.
    for first in (1..=COUNT).step_by(50) {
        for id in first..first + 50 {
            let mut request = node.request(id, "");
            request.argv = vec!["proffer-no-such-program".into()];
            request.descriptors.pop();
            let sandbox = File::open(node.dir.path()).expect("a directory");
            agent.send(Order::Launch(request), &[sandbox.as_fd()]);
        }
        for _ in 0..50 {
            assert!(matches!(agent.recv(), Told::LaunchFailed(_)));
        }
    }
    let mut parts = 0;
    let mut known = Vec::new();
    agent.send(Order::List(List {}), &[]);
    loop {
        let Told::Launches(part) = agent.recv() else { panic!("not a list") };
        let bytes: usize = part.launches.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes <= 128 << 10);
        parts += 1;
        known.extend(part.launches.iter().map(|info| info.launch_id));
        if !part.more {
            break;
        }
    }
    assert!(parts > 1 && known.iter().copied().eq(1..=COUNT), "{parts} parts: {known:?}");
}

#[test]
fn a_dead_pump_is_replaced_and_nothing_is_lost() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    let script =
        "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); [ $((i % 100)) = 0 ] && sleep 0.02; done";
    let mut request = node.request(1, script);
    request.logs = Some(LogSettings { file_bytes: 4096, files: 100, ..LogSettings::default() });
    node.launch(&agent, request);
    agent.launched(1);
    for round in 0..3 {
        let enough = |count: usize| (count > round * 2).then_some(());
        wait_for("some logs", || enough(fs::read_dir(node.logs(1)).expect("directory").count()));
        let pump = node.pump();
        kill(pump);
        wait_for("another pump", || (node.pump() != pump).then_some(()));
    }
    assert!(agent.exited(1).logs_complete);
    let mut files = fs::read_dir(node.logs(1))
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("text"))
        .filter_map(|name| name.strip_prefix("stdout.").map(|start| start.parse::<u64>().expect("a number")))
        .collect::<Vec<_>>();
    files.sort_unstable();
    let mut all = String::new();
    for start in files {
        assert_eq!(start, all.len() as u64, "the name is the offset");
        all.push_str(&node.log(1, &format!("stdout.{start}")));
    }
    let expected = (0..2000).map(|i| format!("line {i}\n")).collect::<String>();
    assert_eq!(all.len(), expected.len());
    assert!(all == expected);
}

#[test]
fn a_flood_is_cut_counted_and_delays_nobody() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let mut flood = node.request(1, "echo $$; exec head -c 200m /dev/zero");
        flood.logs =
            Some(LogSettings { file_bytes: 1 << 20, bytes_per_second: 1 << 20, ..LogSettings::default() });
        node.launch(&agent, flood);
        agent.launched(1);
        // Whoever writes little beside it loses nothing.
        for id in 2..12 {
            node.launch(&agent, node.request(id, "echo beside it"));
        }
        let mut ends = std::collections::BTreeMap::new();
        while ends.len() < 11 {
            match agent.recv() {
                Told::Launched(_) => {}
                Told::Exited(exited) => {
                    assert!(exited.wait_status == 0 && exited.logs_complete, "{exited:?}");
                    ends.insert(exited.launch_id, exited);
                }
                other => panic!("{other:?}"),
            }
        }
        for id in 2..12 {
            assert_eq!(node.log(id, "stdout.0"), "beside it\n");
            assert_eq!(ends[&id].stdout_dropped_bytes, 0);
        }
        let mut files = fs::read_dir(node.logs(1))
            .expect("directory")
            .map(|entry| entry.expect("entry"))
            .filter_map(|entry| {
                let start = entry.file_name().to_str()?.strip_prefix("stdout.")?.parse::<u64>().ok()?;
                Some((start, entry.metadata().expect("metadata").len()))
            })
            .collect::<Vec<_>>();
        files.sort_unstable();
        let &(last, length) = files.last().expect("a file");
        assert!(last + length > 200 << 20 && last + length < (200 << 20) + 20, "offsets are true: {files:?}");
        assert!(ends[&1].stdout_dropped_bytes > 100 << 20, "{:?}", ends[&1]);
        // Were this supervisor lost now, that would not be.
        let recorded = node.recorded();
        for (id, end) in &ends {
            assert_eq!(recorded[id].end, Some(Told::Exited(end.clone())));
        }
        assert!(files.iter().map(|(_, length)| length).sum::<u64>() <= 3 << 20, "{files:?}");
    }
}

#[test]
fn a_stream_that_someone_else_holds_ends_with_its_launch() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    node.launch(&agent, node.request(1, "echo $$; exec sleep 1000"));
    agent.launched(1);
    let pid = wait_for("its pid", || node.log(1, "stdout.0").trim().parse::<i32>().ok());
    let held = format!("/proc/{pid}/fd/1");
    let mut held = fs::File::options().write(true).open(held).expect("its pipe");
    kill(pid);
    let exited = wait_for("the end", || agent.try_recv().flatten());
    assert!(matches!(exited, Told::Exited(Exited { logs_complete: false, .. })), "{exited:?}");
    agent.send(Order::Forget(Forget { launch_id: 1 }), &[]);
    wait_for("the pipe to be closed", || held.write(b"x").is_err().then_some(()));
}

#[test]
fn what_no_pump_was_told_of_is_not_left_behind() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    node.launch(&agent, node.request(1, "echo early; while ! [ -e go ]; do sleep 0.01; done"));
    agent.launched(1);
    wait_for("its output", || (node.log(1, "stdout.0") == "early\n").then_some(()));
    // As one has to whom it gave its output.
    let shell = wait_for("its shell", || {
        let all = fs::read_dir("/proc").expect("proc").flatten();
        let go = |entry: &fs::DirEntry| {
            fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.starts_with(b"sh\0-c\0echo early;"))
                && fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(node.dir.path()))
        };
        all.into_iter().find(go).map(|entry| entry.path())
    });
    let mut output = File::options().write(true).open(shell.join("fd/1")).expect("its pipe");
    fs::write(node.dir.path().join("sandbox-1/go"), "").expect("written");
    assert!(!agent.exited(1).logs_complete);
    // All of it at once: it is told to end when no pump lives.
    signal(node.pid, Signal::SIGSTOP);
    let pump = node.pump();
    kill(pump);
    // While it is dying it can be told still.
    wait_for("the end of the pump", || zombie(pump).then_some(()));
    output.write_all(b"last\n").expect("room");
    agent.send(Order::Shutdown(Shutdown {}), &[]);
    agent.send(Order::Forget(Forget { launch_id: 1 }), &[]);
    signal(node.pid, Signal::SIGCONT);
    wait_for("the end of the supervisor", || (!node.alive()).then_some(()));
    wait_for("all of its output", || node.log(1, "stdout.0").ends_with("last\n").then_some(()));
    drop(output);
}

#[test]
fn a_slow_pump_is_waited_for() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    signal(node.pump(), Signal::SIGSTOP);
    node.launch(&agent, node.request(1, "echo out"));
    agent.launched(1);
    let begun = Instant::now();
    // Longer than it is waited for a stream that someone holds open.
    wait_for("six seconds", || {
        assert!(agent.try_recv().is_none(), "reported without its output");
        (begun.elapsed() > Duration::from_secs(6)).then_some(())
    });
    signal(node.pump(), Signal::SIGCONT);
    assert!(agent.exited(1).logs_complete);
    assert_eq!(node.log(1, "stdout.0"), "out\n");
}

#[test]
fn a_killed_supervisor_takes_its_containers_along() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        node.launch(&agent, node.request(1, "trap '' TERM; setsid sleep 1000 & echo up; sleep 1000"));
        let init = agent.launched(1).init_pid;
        wait_for("the script", || node.log(1, "stdout.0").contains("up").then_some(()));
        let pump = node.pump();
        kill(node.pid);
        agent.closed();
        wait_for("the end of init", || {
            (!Path::new(&format!("/proc/{init}")).exists() || zombie(init)).then_some(())
        });
        // The pump ends when no process holds a pipe any more: the whole tree is gone.
        wait_for("the end of the pump", || {
            (!Path::new(&format!("/proc/{pump}")).exists() || zombie(pump)).then_some(())
        });
        let recorded = &node.recorded()[&1];
        assert!(recorded.begun.is_some() && recorded.end.is_none());
    }
}

#[test]
fn shutdown_waits_for_the_last_launch() {
    let node = Node::start(Isolation::Process);
    let agent = node.connect();
    node.launch(&agent, node.request(1, "while ! [ -e go ]; do sleep 0.01; done"));
    agent.launched(1);
    agent.send(Order::Shutdown(Shutdown {}), &[]);
    assert_eq!(agent.recv(), Told::Draining(Draining { launches: 1 }));
    node.launch(&agent, node.request(2, "true"));
    assert!(matches!(agent.recv(), Told::Refused(refused) if refused.reason.contains("draining")));
    fs::write(node.dir.path().join("sandbox-1/go"), "").expect("written");
    agent.exited(1);
    agent.send(Order::Forget(Forget { launch_id: 1 }), &[]);
    agent.closed();
    wait_for("its end", || (!node.alive()).then_some(()));
    assert!(
        !node.dir.path().join("socket").exists() && !node.dir.path().join("run/supervisor.json").exists()
    );
}

#[test]
fn many_launches_leave_nothing_behind() {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", node.pid)).expect("proc").count();
        let lines = |what: &str| {
            fs::read_to_string(format!("/proc/{}/{what}", node.pid)).expect("proc").lines().count()
        };
        let round = |ids: std::ops::Range<u64>| {
            for id in ids.clone() {
                node.launch(&agent, node.request(id, "echo $$ > here"));
            }
            let mut ended = 0;
            while ended < ids.end - ids.start {
                match agent.recv() {
                    Told::Launched(_) => {}
                    Told::Exited(exited) => {
                        assert_eq!(exited.wait_status, 0);
                        agent.send(Order::Forget(Forget { launch_id: exited.launch_id }), &[]);
                        ended += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(agent.list(), []);
        };
        // The first ones leave the pump and buffers that stay.
        round(1..5);
        let before = (
            count("fd"),
            lines("mountinfo"),
            count("task"),
            fs::read_dir(format!("/proc/{}/fd", node.pump())).expect("proc").count(),
        );
        round(10..60);
        let after = (
            count("fd"),
            lines("mountinfo"),
            count("task"),
            fs::read_dir(format!("/proc/{}/fd", node.pump())).expect("proc").count(),
        );
        assert_eq!(before, after);
        // Whose child would own locks that nobody releases.
        assert_eq!(count("task"), 1, "it clones, and so must have one thread");
        assert_eq!(node.children(), [node.pump()]);
        assert!(node.recorded().is_empty());
        // In a session of its own and with nothing of its starter's.
        let fds = fs::read_dir(format!("/proc/{}/fd", node.pid)).expect("proc");
        let targets = fds.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect::<Vec<_>>();
        assert!(
            !targets.iter().any(|target| target.is_absolute()
                && !["/dev/null", "/proc"].iter().any(|own| target.starts_with(own))
                && !target.starts_with(node.dir.path())),
            "{targets:?}"
        );
        let pid = Pid::from_raw(node.pid);
        assert_eq!(nix::unistd::getsid(Some(pid)), Ok(pid));
    }
}

#[test]
fn a_failed_start_says_why() {
    let dir = tempfile::Builder::new().prefix("proffer-executor").tempdir().expect("temp dir");
    let mut command = Node::command(&dir.path().join("absent"), Isolation::Process);
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("absent/run") && text.contains("No such file"), "{text}");
}

/// Not a test of speed: run with `--ignored --nocapture` for a figure beside the machine's own.
#[test]
#[ignore = "a measurement"]
fn launches_per_second() -> io::Result<()> {
    for mode in modes() {
        let node = Node::start(mode);
        let agent = node.connect();
        let started = Instant::now();
        const COUNT: u64 = 500;
        for id in 1..=COUNT {
            let mut request = node.request(id, "");
            request.argv = vec!["/bin/true".into()];
            request.descriptors.pop();
            let sandbox = File::open(node.dir.path())?;
            agent.send(Order::Launch(request), &[sandbox.as_fd()]);
            agent.launched(id);
            agent.exited(id);
            agent.send(Order::Forget(Forget { launch_id: id }), &[]);
        }
        let ours = COUNT as f64 / started.elapsed().as_secs_f64();
        let started = Instant::now();
        for _ in 0..COUNT {
            Command::new("/bin/true").status()?;
        }
        let spawn = COUNT as f64 / started.elapsed().as_secs_f64();
        eprintln!("{mode:?}: {ours:.0} launches/s serial, {spawn:.0} spawns/s");
    }
    Ok(())
}

#[test]
fn a_user_namespace_serves_the_next_task_unless_it_may_hold_keys() {
    for mode in modes().into_iter().filter(|mode| *mode == Isolation::Linux) {
        let node = Node::start(mode);
        let agent = node.connect();
        let open = Profile::parse(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).expect("a profile");
        let open = open.compile().expect("a filter").to_bytes();
        let namespace = |id, seccomp: &[Vec<u8>]| {
            let request = Launch {
                user_namespace: Some(IdRange { first: 0x5100_0000, count: 65_536 }),
                seccomp: seccomp.iter().cloned().map(Into::into).collect(),
                ..node.request(id, "readlink /proc/self/ns/user")
            };
            node.launch(&agent, request);
            agent.launched(id);
            assert_eq!(agent.exited(id).wait_status, 0);
            node.log(id, "stdout.0")
        };
        let first = namespace(1, &[]);
        assert!(first.starts_with("user:["), "{first}");
        assert_eq!(namespace(2, &[]), first);
        // It may make keys, which stay where they are made.
        assert_eq!(namespace(3, &[open]), first);
        assert_ne!(namespace(4, &[]), first);
    }
}
