//! What a container is, seen from inside and out.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use proffer_launcher::{Event, Isolation, Limit, Sandbox, Signalled, Step, Template};

use crate::harness::*;

#[test]
fn a_task_sees_only_what_it_may() {
    if !root() {
        return;
    }
    let script = r#"
        grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs):' /proc/self/status | tr '\t' ' '
        echo "fds:" $(ls /proc/self/fd | tr '\n' ' ')
        echo "run:" $(ls -A /run | wc -l) "home:" $(ls -A /home /root /var/tmp 2>/dev/null | grep -vc '^$\|:')
        echo "init:" $(ls -d /proc/1 2>/dev/null)
        echo "pids:" $(ls /proc | grep -c '^[0-9]')
        echo "env:" $(env | sort | tr '\n' ' ')
        echo "host:" $(cat /proc/sys/kernel/hostname) "cgroup:" $(cut -d: -f3 /proc/self/cgroup | sort -u | tr '\n' ' ')
        echo "cgroupfs:" $(ls -A /sys/fs/cgroup | wc -l) "nofile:" $(ulimit -n) "pwd:" $(pwd)
        for path in /etc/proffer /usr/proffer /dev/proffer /proc/proffer /sys/proffer /run/x /mnt/x; do
            (: > $path) 2>/dev/null && echo "WROTE $path"
        done
        (: > /etc/proffer) 2>&1 | grep -o 'Read-only'
        echo sandbox > here && cat here; echo tmp > /tmp/here && cat /tmp/here; echo shm > /dev/shm/here && echo null > /dev/null
    "#;
    let sandbox = Sandboxed::new("sees", NOBODY);
    let options = Options { sandbox: Some(Sandbox::Dir(sandbox.fd.as_fd())), ..linux() };
    let ran = run(&["sh", "-c", script], &options);
    assert_eq!(ran.events, exited(0), "{}", ran.output);
    let has =
        |line: &str| assert!(ran.output.lines().any(|l| l.trim() == line), "no {line:?} in\n{}", ran.output);
    has("Uid: 65534 65534 65534 65534");
    has("Gid: 65534 65534 65534 65534");
    has("Groups:");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        has(&format!("{set}: 0000000000000000"));
    }
    has("NoNewPrivs: 1");
    // 3 is ls's own.
    has("fds: 0 1 2 3");
    has("run: 0 home: 0");
    has("init:");
    has("host: inside cgroup: /");
    has("cgroupfs: 0 nofile: 1024 pwd: /mnt/proffer/sandbox");
    assert!(ran.output.contains("env: ONLY=this PATH=/usr/local/bin:/usr/bin:/bin PWD=/mnt/proffer/sandbox"));
    let pids = ran.output.lines().find_map(|line| line.strip_prefix("pids: ")).expect("pids");
    assert!(pids.parse::<u32>().expect("a number") <= 4, "host processes are visible: {pids}");
    assert!(!ran.output.contains("WROTE"), "{}", ran.output);
    has("Read-only");
    has("sandbox");
    has("tmp");
    assert_eq!(fs::read_to_string(sandbox.dir.join("here")).expect("in the sandbox"), "sandbox\n");
}

#[test]
fn a_task_is_not_spared_with_its_supervisor() {
    if !root() {
        return;
    }
    let own = "/proc/self/oom_score_adj";
    if fs::write(own, "-100").is_err() {
        eprintln!("SKIPPED: needs CAP_SYS_RESOURCE");
        return;
    }
    let score = |options| run(&["cat", own], &options).output;
    assert_eq!((score(linux()), score(Options::default())), ("0\n".into(), "0\n".into()));
    fs::write(own, "0").expect("as before");
}

#[test]
fn a_detached_mount_serves_as_sandbox() {
    if !root() {
        return;
    }
    use rustix::mount::{OpenTreeFlags, open_tree};
    let sandbox = Sandboxed::new("detached", NOBODY);
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, &sandbox.dir, flags).expect("open_tree");
    let options = Options { sandbox: Some(Sandbox::Mount(mount.as_fd())), ..linux() };
    let ran = run(&["sh", "-c", "echo detached > here"], &options);
    assert_eq!(ran.events, exited(0), "{}", ran.output);
    assert_eq!(fs::read_to_string(sandbox.dir.join("here")).expect("in the sandbox"), "detached\n");
}

#[test]
fn user_0_meets_masks() {
    if !root() {
        return;
    }
    let script = r#"
        for path in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity; do
            [ -e $path ] && (: >> $path) 2>/dev/null && echo "OPENED $path"
        done
        [ -e /proc/kcore ] && wc -c < /proc/kcore
        ls /proc/1/fd | tr '\n' ' '
        head -c 1 /proc/1/mem 2>/dev/null || echo no-mem
        mount -t tmpfs none /tmp 2>/dev/null && echo MOUNTED
        kill -9 1; kill -STOP 1; echo alive
    "#;
    let ran = run(&["sh", "-c", script], &Options { uid: 0, ..linux() });
    assert_eq!(ran.events, exited(0), "{}", ran.output);
    assert!(!ran.output.contains("OPENED") && !ran.output.contains("MOUNTED"), "{}", ran.output);
    assert!(ran.output.contains("no-mem") && ran.output.ends_with("alive\n"), "{}", ran.output);
    // Nothing but the status socket, if it can be listed at all.
    let fds = ran.output.lines().find(|line| line.ends_with("no-mem")).expect("a line").split_whitespace();
    assert!(fds.count() <= 2, "{}", ran.output);
}

#[test]
fn what_is_masked_is_empty_for_everyone() {
    if !root() {
        return;
    }
    let script = r#"
        for path in interrupts keys kcore kmsg timer_list sched_debug latency_stats; do
            [ -n "$(head -c 1 /proc/$path 2>/dev/null | tr '\0' x)" ] && echo "READ $path"
        done
        [ $(id -u) = 0 ] && for path in acpi asound scsi; do
            [ -n "$(ls -A /proc/$path 2>/dev/null)" ] && echo "LISTED $path"
        done
        for path in firmware kernel/debug kernel/tracing kernel/security fs/bpf fs/pstore devices/virtual/powercap; do
            [ -n "$(ls -A /sys/$path 2>/dev/null)" ] && echo "LISTED $path"
        done
        echo done
    "#;
    let namespace = user_namespace();
    for uid in [NOBODY, 0] {
        for user_namespace in [None, namespace.as_ref()] {
            let ran = run(&["sh", "-c", script], &Options { uid, user_namespace, ..linux() });
            assert_eq!(ran.output, "done\n", "user {uid}");
        }
    }
    // There is something to mask.
    let outside = std::process::Command::new("sh").args(["-c", "head -c 1 /proc/interrupts"]).output();
    assert!(!outside.expect("run").stdout.is_empty());
}

#[test]
fn a_host_socket_cannot_be_reached() {
    if !root() {
        return;
    }
    // In a place that is always covered, and in one that is covered because there is a socket.
    for base in [&["/run"][..], &["/opt", "/srv", "/"]] {
        let host = HostSocket::bind(base);
        let template = Template::build(&[]).expect("template");
        let socket = host.path.display();
        let script = format!(
            "import socket\ns=socket.socket(socket.AF_UNIX)\ntry:\n s.connect('{socket}')\n \
                              print('CONNECTED')\nexcept OSError as e: print(e)"
        );
        let outside = std::process::Command::new("python3").args(["-c", &script]).output();
        match outside {
            Ok(output) if output.status.success() => {
                assert_eq!(String::from_utf8_lossy(&output.stdout), "CONNECTED\n", "the probe itself works");
            }
            _ => {
                eprintln!("SKIPPED: needs python3");
                return;
            }
        }
        for uid in [NOBODY, 0] {
            let isolation = Isolation::Linux(&template);
            let ran = run(&["python3", "-c", &script], &Options { uid, isolation, ..Options::default() });
            assert!(ran.output.contains("No such file"), "{base:?}, user {uid}: {}", ran.output);
        }
    }
}

#[test]
fn no_inherited_descriptor_leads_to_the_host() {
    if !root() {
        return;
    }
    // User 0 owns the host's /dev/null, and with a descriptor of it could take it from everyone.
    let script = "chmod 0666 /proc/self/fd/0; cat; echo x > /dev/null";
    let ran = run(&["sh", "-c", script], &Options { uid: 0, ..linux() });
    assert_eq!(ran.events, exited(0), "{}", ran.output);
    assert!(ran.output.contains("Read-only"), "{}", ran.output);
}

#[test]
#[allow(unsafe_code, reason = "there is no other way to a key than its system calls")]
fn keys_of_the_host_are_out_of_reach() {
    if !root() {
        return;
    }
    // A thread of its own, whose keyring ends with it.
    let test = || {
        const ADD_KEY_TO_SESSION: i32 = -3;
        // SAFETY: C strings; a null name joins a new session keyring.
        let key = unsafe {
            let join = libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<u8>());
            assert!(join > 0, "no keyring here");
            let (kind, name, secret) = (c"user".as_ptr(), c"proffer-secret".as_ptr(), c"x".as_ptr());
            libc::syscall(libc::SYS_add_key, kind, name, secret, 1usize, ADD_KEY_TO_SESSION)
        };
        assert!(key > 0, "a key of the supervisor's");
        // The one that inherits the keyring shows that the probe works.
        let probe = ["sh", "-c", "grep -c proffer-secret /proc/keys"];
        assert_eq!(run(&probe, &Options::default()).output, "1\n");
        assert_eq!(run(&probe, &linux()).output, "0\n");
    };
    if !Path::new("/proc/keys").exists() {
        eprintln!("SKIPPED: needs a kernel with keys");
        return;
    }
    std::thread::spawn(test).join().expect("the thread");
}

#[test]
fn own_namespaces_uncover_nothing() {
    if !root() {
        return;
    }
    let script = "unshare -Urm sh -c 'echo IN; mkdir /tmp/x; mount -t tmpfs none /tmp/x && echo MOUNTS
        for place in /run /home /root /sys/fs/cgroup /dev; do umount -l $place && echo UNCOVERED $place; done
        for place in / /sys /dev; do mount -o remount,bind,rw $place && echo WRITABLE $place; done
        mount --bind / /tmp/x && echo REVEALED; mount -t sysfs none /tmp/x && echo SYS; :' 2>/dev/null";
    // With the default filter there are none to be had.
    assert_eq!(run(&["sh", "-c", script], &linux()).output, "");
    let ran = run(&["sh", "-c", script], &Options { seccomp: &no_filter(), ..linux() });
    if !ran.output.starts_with("IN\nMOUNTS\n") {
        eprintln!("SKIPPED: needs unshare and user namespaces for everyone");
        return;
    }
    assert_eq!(ran.output, "IN\nMOUNTS\n");
}

#[test]
fn no_mount_is_left_on_the_host() {
    if !root() {
        return;
    }
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    template();
    let before = mounts();
    let sandbox = Sandboxed::new("mounts", NOBODY);
    let options = Options { sandbox: Some(Sandbox::Dir(sandbox.fd.as_fd())), ..linux() };
    assert_eq!(run(&["true"], &options).events, exited(0));
    drop(Template::build(&[]).expect("another template"));
    assert_eq!(mounts(), before);
}

#[test]
fn a_resolver_file_behind_a_link_into_a_covered_place_stays_readable() {
    if !root() {
        return;
    }
    use nix::mount::{MsFlags, mount};
    // A view of this thread's own, of which the host sees nothing.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
    for place in ["/run", "/etc"] {
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
    }
    fs::create_dir("/run/resolve").expect("directory");
    fs::write("/run/resolve/stub", "nameserver 192.0.2.1\n").expect("file");
    std::os::unix::fs::symlink("../run/resolve/stub", "/etc/resolv.conf").expect("link");
    let template = Template::build(&[]).expect("template");
    let options = Options { isolation: Isolation::Linux(&template), ..Options::default() };
    let ran = run(&["sh", "-c", "cat /etc/resolv.conf; ls -A /run; : > /etc/resolv.conf"], &options);
    let (first, rest) = ran.output.split_once('\n').expect("a line");
    assert_eq!(first, "nameserver 192.0.2.1", "{}", ran.output);
    assert!(rest.contains("Read-only") && !rest.contains("stub"), "{}", ran.output);
}

#[test]
fn exit_codes_signals_and_exec_failures_are_told_apart() {
    let check = |options: &dyn Fn() -> Options<'static>| {
        assert_eq!(run(&["false"], &options()).events, exited(1));
        assert_eq!(run(&["sh", "-c", "exit 7"], &options()).events, exited(7));
        let killed = run(&["sh", "-c", "kill -SEGV $$"], &options()).events;
        assert!(
            matches!(killed[..], [Event::Started, Event::Exited(status)] if status & 0x7f == libc::SIGSEGV)
        );
        let missing = run(&["proffer-no-such-program"], &options()).events;
        assert_eq!(missing, [Event::ExecFailed { step: Step::Execve, errno: libc::ENOENT }]);
        let denied = run(&["/etc"], &options()).events;
        assert_eq!(denied, [Event::ExecFailed { step: Step::Execve, errno: libc::EACCES }]);
        let nowhere = run(&["true"], &Options { working_directory: "/proffer-nowhere", ..options() }).events;
        assert_eq!(nowhere, [Event::ExecFailed { step: Step::Chdir, errno: libc::ENOENT }]);
    };
    check(&Options::default);
    if root() {
        check(&linux);
        for number in 3..32 {
            let leaky = format!("/proc/self/fd/{number}");
            assert_eq!(
                run(&["true"], &Options { working_directory: &leaky, ..linux() }).events,
                [Event::ExecFailed { step: Step::Chdir, errno: libc::ENOENT }]
            );
        }
    }
}

#[test]
fn sigterm_reaches_every_process_and_sigkill_ends_the_tree() {
    let script = "trap '' TERM; (trap 'echo child; exit 0' TERM; echo ready; while :; do sleep 0.02; done) & \
                  setsid sleep 1000 & wait; wait; while :; do sleep 0.02; done";
    let check = |options: Options<'_>| {
        let (container, read) = start(&["sh", "-c", script], &options).expect("spawn");
        let lines = std::io::BufRead::lines(std::io::BufReader::new(read)).map(|line| line.expect("a line"));
        // The shells remark on their own sleeps.
        let mut lines = lines.filter(|line| !line.contains("Terminated"));
        assert_eq!(lines.next().as_deref(), Some("ready"));
        assert_eq!(container.terminate(), Signalled::Sent);
        assert_eq!(lines.next().as_deref(), Some("child"));
        assert_eq!(container.kill(), Signalled::Sent);
        // The end of file says that no process of the tree is left to hold the pipe.
        assert_eq!(lines.next(), None);
        let events = events(&container);
        assert_eq!(events[0], Event::Started);
        assert_eq!(container.kill(), Signalled::Gone);
        events
    };
    let plain = check(Options::default());
    assert_eq!(plain[1..], [Event::Exited(libc::SIGKILL)]);
    if root() {
        // Init is killed itself and says nothing.
        assert_eq!(check(linux()).len(), 1);
    }
}

#[test]
fn a_plain_tree_leaves_nothing_behind_when_its_payload_ends() {
    let ran = run(&["sh", "-c", "setsid sh -c 'sleep 1000 & sleep 1000' & exit 3"], &Options::default());
    // That `run` came back says that the sleepers' ends of the pipe are closed.
    assert_eq!(ran.events, exited(3));
}

#[test]
fn a_bad_request_is_refused_before_the_clone() {
    let options = Options::default();
    assert_eq!(start(&[], &options).expect_err("no argv").step, Step::Request);
    assert_eq!(start(&["a\0b"], &options).expect_err("NUL").step, Step::Request);
    let error = start(&[""], &options).expect_err("empty word");
    assert_eq!(error.to_string(), "request argv is empty: Invalid argument (os error 22)");
}

#[test]
fn limits_are_applied() {
    let limit = Limit { resource: libc::RLIMIT_CORE, soft: 0, hard: Some(0) };
    let options = Options { limits: &[limit], ..Options::default() };
    let ran = run(&["sh", "-c", "ulimit -c; ulimit -Hc; ulimit -n"], &options);
    assert_eq!(ran.output, "0\n0\n1024\n");
}

#[test]
fn no_descriptor_is_left_open() {
    let count =
        || fs::read_dir("/proc/self/fd").expect("fd").filter_map(|entry| entry.ok()?.path().read_link().ok());
    let of_ours = || count().filter(|target| target.to_string_lossy().contains("pidfd")).count();
    for _ in 0..20 {
        assert_eq!(run(&["true"], &Options::default()).events, exited(0));
    }
    // Other tests run beside this one and hold a few.
    assert!(of_ours() < 15, "pidfds pile up");
}

#[test]
fn the_payload_starts_in_its_v1_groups() {
    if !root() {
        return;
    }
    let groups = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpuacct"].map(Group::new);
    let [Some(pids), Some(cpuacct)] = &groups else {
        eprintln!("SKIPPED: needs cgroup v1");
        return;
    };
    eprintln!("RAN: cgroup v1");
    fs::write(pids.0.join("pids.max"), "4").expect("limit");
    let procs = [pids, cpuacct].map(|group| {
        fs::File::options().write(true).open(group.0.join("cgroup.procs")).expect("cgroup.procs")
    });
    let procs = [procs[0].as_fd(), procs[1].as_fd()];
    // Init, the shell and two children: a third does not fit.
    let script = "cut -d: -f2- /proc/self/cgroup | grep -E '^(pids|cpuacct):'; (sleep 0.1 & sleep 0.1 & sleep 0.1 & wait) 2>&1";
    let ran = run(&["sh", "-c", script], &Options { cgroup_procs: &procs, ..linux() });
    assert!(ran.output.contains("pids:/\n") && ran.output.contains("cpuacct:/\n"), "{}", ran.output);
    assert!(ran.output.to_lowercase().contains("fork"), "the limit did not hold: {}", ran.output);
    assert!(fs::read_to_string(pids.0.join("cgroup.procs")).expect("procs").is_empty());
}

#[test]
fn the_clone_enters_its_v2_group() {
    if !root() {
        return;
    }
    let group = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .into_iter()
        .filter(|parent| Path::new(parent).join("cgroup.controllers").exists())
        .find_map(Group::new);
    let Some(group) = group else {
        eprintln!("SKIPPED: needs cgroup v2");
        return;
    };
    let dir = fs::File::open(&group.0).expect("directory");
    let options = Options { cgroup_dir: Some(dir.as_fd()), ..linux() };
    let (container, mut read) =
        start(&["sh", "-c", "grep ^0: /proc/self/cgroup; echo up; kill -STOP $$"], &options).expect("spawn");
    let mut output = [0; 64];
    let mut length = 0;
    while !output[..length].ends_with(b"up\n") {
        length += read.read(&mut output[length..]).expect("output");
    }
    assert_eq!(&output[..length], b"0::/\nup\n");
    let procs = fs::read_to_string(group.0.join("cgroup.procs")).expect("procs");
    assert_eq!(procs.lines().count(), 2, "init and payload: {procs}");
    assert!(procs.lines().any(|pid| pid == container.pid().to_string()));
    container.kill();
    assert_eq!(events(&container), [Event::Started]);
}

/// A program must not begin after its supervisor has died, which may be before init has asked to be told.
#[test]
fn nothing_begins_without_its_supervisor() {
    if !root() {
        return;
    }
    for isolation in ["process", "linux"] {
        let (drain, fill) = nix::unistd::pipe().expect("pipe");
        let blocking = |is: bool| {
            let flags = if is { OFlag::empty() } else { OFlag::O_NONBLOCK };
            fcntl(&fill, FcntlArg::F_SETFL(flags)).expect("fcntl");
        };
        blocking(false);
        while nix::unistd::write(&fill, &[b'x'; 4096]).is_ok() {}
        blocking(true);
        let mut supervisor = Command::new("/proc/self/exe")
            .args(&PROBE[1..])
            .env("PROFFER_PROBE", format!("supervise {isolation}"))
            .stdin(fill)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a supervisor");
        let output = BufReader::new(supervisor.stdout.take().expect("piped"));
        let mut lines = output.lines().map(|line| line.expect("output"));
        lines.find(|line| line.ends_with("ready")).expect("it has cloned");
        supervisor.kill().expect("killed");
        supervisor.wait().expect("our child");
        // Init goes on.
        nix::unistd::read(&drain, &mut [0; 1 << 16]).expect("drained");
        let told = lines.find(|line| line.starts_with("its output")).expect("told when all is over");
        assert_eq!(told, "its output: \"\"", "{isolation}");
    }
}
