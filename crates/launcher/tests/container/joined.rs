//! Programs in containers that already run.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use proffer_launcher::{Call, Event, Limit, Sandbox, Signalled, Step, WindowSize};

use crate::harness::*;

#[test]
fn a_joined_program_is_where_and_what_the_payload_is() {
    if !root() {
        return;
    }
    let script = r#"
        for kind in cgroup ipc mnt pid user uts; do readlink /proc/self/ns/$kind; done
        grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Seccomp_filters):' /proc/self/status
        ls /proc/self/fd | tr '\n' ' '; pwd; ulimit -n; hostname; cat /proc/self/cgroup; ls -A /run | wc -l
    "#;
    let namespace = user_namespace();
    for user_namespace in [None, namespace.as_ref()] {
        let limit = Limit { resource: libc::RLIMIT_NOFILE, soft: 100, hard: Some(200) };
        let sandbox = Sandboxed::new("joined", NOBODY);
        fs::set_permissions(&sandbox.dir, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("chmod");
        let options = Options {
            limits: &[limit],
            sandbox: Some(Sandbox::Dir(sandbox.fd.as_fd())),
            user_namespace,
            ..linux()
        };
        // The payload writes what it is, and stays.
        let own = format!("({script}) > own; echo up; exec sleep 1000");
        let (container, mut read) = start(&["sh", "-c", &own], &options).expect("spawn");
        read.read_exact(&mut [0; 3]).expect("it runs");
        let (joined, read) = start_joined(&container, &["sh", "-c", script], None, &options).expect("join");
        let (output, events, status) = finish_joined(&joined, read);
        assert_eq!((events, status), (vec![Event::Started], 0), "{output}");
        assert_eq!(output, fs::read_to_string(sandbox.dir.join("own")).expect("the payload's"));
        assert!(output.contains("Seccomp:\t2") && output.contains("inside"), "{output}");
    }
}

#[test]
fn what_becomes_of_a_joined_program_is_told() {
    let check = |options: &Options<'_>| {
        let container = running(options);
        let joined = |argv: &[&str]| {
            let (joined, read) = start_joined(&container, argv, None, options).expect("join");
            finish_joined(&joined, read)
        };
        assert_eq!(joined(&["sh", "-c", "echo out; exit 7"]), ("out\n".into(), vec![Event::Started], 7 << 8));
        let (_, told, status) = joined(&["sh", "-c", "kill -SEGV $$"]);
        assert_eq!((told, status & 0x7f), (vec![Event::Started], libc::SIGSEGV));
        let failed = |errno| vec![Event::ExecFailed { step: Step::Execve, errno }];
        assert_eq!(joined(&["proffer-no-such-program"]).1, failed(libc::ENOENT));
        assert_eq!(joined(&["/etc"]).1, failed(libc::EACCES));
        // Killed with what it has started.
        let script = "sleep 1000 & echo up; wait";
        let (stuck, mut read) = start_joined(&container, &["sh", "-c", script], None, options).expect("join");
        read.read_exact(&mut [0; 3]).expect("it runs");
        assert_eq!(stuck.kill(), Signalled::Sent);
        let (rest, _, status) = finish_joined(&stuck, read);
        assert_eq!((rest.as_str(), status & 0x7f), ("", libc::SIGKILL));
        assert_eq!(stuck.kill(), Signalled::Gone);
        // Of the container there is still the payload, and later nothing to join.
        assert!(container.event().is_none_or(|event| event == Event::Started));
        container.kill();
        events(&container);
    };
    check(&Options::default());
    if root() {
        check(&linux());
        let gone = running(&linux());
        gone.kill();
        events(&gone);
        assert!(start_joined(&gone, &["true"], None, &linux()).is_err());
        // Containers are born where they belong afterwards.
        assert_eq!(run(&["sh", "-c", "echo $$"], &linux()).output, "2\n");
    }
}

#[test]
fn a_joined_program_ends_with_the_container() {
    if !root() {
        return;
    }
    let container = running(&linux());
    let script = "trap '' TERM; echo up; while :; do sleep 1; done";
    let (joined, mut read) = start_joined(&container, &["sh", "-c", script], None, &linux()).expect("join");
    read.read_exact(&mut [0; 3]).expect("it runs");
    container.kill();
    let (_, _, status) = finish_joined(&joined, read);
    assert_eq!(status & 0x7f, libc::SIGKILL);
    events(&container);
}

fn answer(input: &[u8]) -> i32 {
    let text = b"called\n";
    // SAFETY: the text is as long as said; integers only.
    let (pid, uid) = unsafe {
        libc::write(1, text.as_ptr().cast(), text.len());
        (libc::getpid(), libc::getuid())
    };
    let right = input == b"question" && pid > 1 && uid == NOBODY;
    if right { 42 } else { 1 }
}

#[test]
fn a_function_runs_inside_without_a_program() {
    if !root() {
        return;
    }
    let container = running(&linux());
    let call = Call { function: answer, input: b"question" };
    let (joined, read) = start_joined(&container, &[], Some(call), &linux()).expect("join");
    assert_eq!(finish_joined(&joined, read), ("called\n".into(), vec![Event::Started], 42 << 8));
}

fn read_until(file: &mut fs::File, end: &str) -> String {
    let deadline = Instant::now() + DEADLINE;
    let mut output = String::new();
    while !output.contains(end) {
        wait_readable(file.as_fd(), deadline);
        let mut bytes = [0; 1024];
        let length = file.read(&mut bytes).expect("the terminal");
        output.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    output
}

/// The kernel counts terminals for all instances of devpts together.
#[test]
fn a_container_cannot_have_all_terminals() {
    if !root() {
        return;
    }
    let probes = Probes::new("terminals");
    let (_container, took) = probes.takes_all("terminals", &linux());
    assert_eq!(took, 64);
}

#[test]
fn a_terminal_is_the_containers_own() {
    if !root() {
        return;
    }
    let script =
        "tty; stty size; stat -Lc 'owner %u' $(tty); stat -fc %t /dev/pts; read line; echo got $line; read x";
    let size = Some(WindowSize { rows: 33, columns: 77 });
    let namespace = user_namespace();
    for user_namespace in [None, namespace.as_ref()] {
        let options = Options { terminal: size, user_namespace, ..linux() };
        let (container, _) = start(&["sh", "-c", script], &options).expect("spawn");
        let deadline = Instant::now() + DEADLINE;
        while container.event() != Some(Event::Terminal) {
            wait_readable(container.status_fd(), deadline);
        }
        let mut terminal = fs::File::from(container.take_terminal().expect("a terminal"));
        terminal.write_all(b"word\n").expect("typed");
        let output = read_until(&mut terminal, "got word");
        assert!(output.contains("/dev/pts/0") && output.contains("33 77"), "{output}");
        assert!(output.contains(&format!("owner {NOBODY}")) && output.contains("1cd1"), "{output}");
        // A joined one, beside it.
        let (joined, _) = start_joined(&container, &["sh", "-c", script], None, &options).expect("join");
        while joined.event() != Some(Event::Terminal) {
            wait_readable(joined.status_fd(), deadline);
        }
        let mut second = fs::File::from(joined.take_terminal().expect("a terminal"));
        second.write_all(b"other\n").expect("typed");
        let output = read_until(&mut second, "got other");
        assert!(output.contains("/dev/pts/1"), "{output}");
        // Control-C reaches what is in front.
        second.write_all(b"\x03").expect("typed");
        wait_readable(joined.pidfd(), deadline);
        let status = joined.reap().expect("our child").expect("it has ended");
        assert!(status & 0x7f == libc::SIGINT || status >> 8 == 128 + libc::SIGINT, "{status:#x}");
        // Hanging up ends what has the terminal.
        drop(terminal);
        let deadline = Instant::now() + DEADLINE;
        wait_readable(container.pidfd(), deadline);
        events(&container);
    }
}

#[test]
fn one_that_is_traced_holds_nobody_up() {
    if !root() {
        return;
    }
    let (probes, bare) = (Probes::new("hold"), no_filter());
    let options = Options { seccomp: &bare, ..linux() };
    let (container, mut read) = probes.start("hold", &options);
    read_until(&mut read, "up\n");
    let (joined, _) = start_joined(&container, &["sleep", "1000"], None, &options).expect("join");
    read_until(&mut read, "held");
    joined.kill();
    wait_readable(joined.pidfd(), Instant::now() + DEADLINE);
    // It has ended, and its end is its tracer's so far.
    assert!(joined.reap().expect("our child").is_none());
    let pid = joined.pid();
    drop(joined);
    assert!(std::path::Path::new(&format!("/proc/{pid}")).exists());
    // With its tracer gone it is reaped by the next that comes.
    container.kill();
    events(&container);
    let next = running(&linux());
    let deadline = Instant::now() + DEADLINE;
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "it stays");
        let (joined, read) = start_joined(&next, &["true"], None, &linux()).expect("join");
        finish_joined(&joined, read);
    }
}
