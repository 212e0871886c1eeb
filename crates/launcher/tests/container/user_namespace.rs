//! Containers whose users are nobody on the host.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;

use proffer_launcher::{
    EXECUTOR_PATH, Error, Event, GROUP_PATH, IdRange, Mount, Sandbox, Step, UserNamespace, detached_mount,
};

use crate::harness::*;

#[test]
fn a_mapped_user_is_nobody_outside_and_owns_its_files() {
    if !root() {
        return;
    }
    let Some(namespace) = user_namespace() else { return };
    let script = r#"
        grep -E '^(Uid|Gid|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs):' /proc/self/status | tr '\t' ' '
        echo "map:" $(cat /proc/self/uid_map)
        echo "pwd:" $(pwd)
        echo file > here && mkdir dir && chmod 700 dir && echo "here:" $(stat -c %u:%g here dir . | tr '\n' ' ')
        echo tmp > /tmp/x && echo shm > /dev/shm/x && cat /tmp/x && stat -c 'tmp: %u' /tmp/x
        echo "cgroupfs:" $(ls -A /sys/fs/cgroup | wc -l)
        for path in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /etc/passwd /dev/proffer; do
            (: >> $path) 2>/dev/null && echo "OPENED $path"
        done
        mount -t tmpfs none /tmp 2>/dev/null && echo MOUNTED
        hostname other 2>/dev/null && echo RENAMED
        chown 1 here 2>/dev/null && echo GIVEN
        grep -q . /proc/keys 2>/dev/null && echo KEYS
        echo done
    "#;
    for uid in [0, 1000, NOBODY] {
        let sandbox = Sandboxed::new(&format!("mapped-{uid}"), uid);
        let mount = match detached_mount(sandbox.fd.as_fd(), false, Some(&namespace)) {
            Ok(mount) => mount,
            Err(error) => {
                eprintln!("SKIPPED: needs idmapped mounts of the temporary directory: {error}");
                return;
            }
        };
        let sandbox_mount = Some(Sandbox::Mount(mount.as_fd()));
        let options = Options { uid, user_namespace: Some(&namespace), sandbox: sandbox_mount, ..linux() };
        let ran = run(&["sh", "-c", script], &options);
        assert_eq!(ran.events, exited(0), "{}", ran.output);
        let has = |line: &str| {
            assert!(ran.output.lines().any(|l| l.trim() == line), "no {line:?} in\n{}", ran.output)
        };
        has(&format!("Uid: {uid} {uid} {uid} {uid}"));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            has(&format!("{set}: 0000000000000000"));
        }
        has("NoNewPrivs: 1");
        has(&format!("map: 0 {} {}", IDS.first, IDS.count));
        has("pwd: /mnt/proffer/sandbox");
        has(&format!("here: {uid}:{uid} {uid}:{uid} {uid}:{uid}"));
        has(&format!("tmp: {uid}"));
        has("cgroupfs: 0");
        has("done");
        for bad in ["OPENED", "MOUNTED", "RENAMED", "GIVEN", "KEYS"] {
            assert!(!ran.output.contains(bad), "{}", ran.output);
        }
        // On disk as the user inside, whatever the range.
        let meta = fs::metadata(sandbox.dir.join("here")).expect("the file");
        assert_eq!((meta.uid(), meta.gid()), (uid, uid));
    }
}

#[test]
fn without_idmapped_mounts_the_files_are_given_away() {
    if !root() {
        return;
    }
    let Some(namespace) = user_namespace() else { return };
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    // A file system that has none.
    let place = Sandboxed::new("given", 0);
    let none = None::<&str>;
    mount(Some("ramfs"), &place.dir, Some("ramfs"), MsFlags::empty(), none).expect("ramfs");
    let inner = place.dir.join("inner");
    fs::create_dir(&inner).expect("sandbox");
    for round in 0..2 {
        // The second finds it given.
        let dir = fs::File::open(&inner).expect("sandbox");
        let options = Options {
            uid: 0,
            user_namespace: Some(&namespace),
            sandbox: Some(Sandbox::Dir(dir.as_fd())),
            ..linux()
        };
        let ran = run(&["sh", "-c", "echo x > here; stat -c %u here . | tr '\\n' ' '"], &options);
        assert_eq!((ran.output.as_str(), ran.events), ("0 0 ", exited(0)), "round {round}");
        assert_eq!(fs::metadata(inner.join("here")).expect("the file").uid(), IDS.first);
    }
    umount2(&place.dir, MntFlags::MNT_DETACH).expect("umount");
}

#[test]
fn what_is_running_in_it_is_nobody_to_the_host() {
    if !root() {
        return;
    }
    let Some(namespace) = user_namespace() else { return };
    let options = Options { uid: 0, user_namespace: Some(&namespace), ..linux() };
    let container = running(&options);
    let status = fs::read_to_string(format!("/proc/{}/status", container.pid())).expect("status");
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).expect("a line");
    assert!(uid.split('\t').all(|id| id == IDS.first.to_string()), "{uid}");
    // The namespaces over which capabilities would be worth having stay the host's.
    let (joined, read) =
        start_joined(&container, &["sh", "-c", "id -u; cat /proc/1/comm"], None, &options).expect("join");
    let (output, _, _) = finish_joined(&joined, read);
    assert!(output.starts_with("0\n"), "{output}");
}

#[test]
fn nothing_can_be_written_into_the_namespace_for_who_comes_next() {
    if !root() {
        return;
    }
    let Some(namespace) = user_namespace() else { return };
    let options = Options { user_namespace: Some(&namespace), ..linux() };
    let script = "for map in uid_map gid_map projid_map setgroups; do
        (echo '7 7 1' > /proc/self/$map) 2>/dev/null && echo WROTE $map; cat /proc/self/$map
    done";
    let ran = run(&["sh", "-c", script], &options);
    let words = ran.output.split_whitespace().collect::<Vec<_>>().join(" ");
    let map = format!("0 {} {}", IDS.first, IDS.count);
    assert_eq!(words, format!("{map} {map} {map} allow"));
}

/// What the kernel counts by user is counted for the range's own user, and not for root, whom all share.
#[test]
fn what_one_takes_is_not_taken_from_others() {
    if !root() {
        return;
    }
    let Some(first) = user_namespace() else { return };
    let range = IdRange { first: IDS.first + IDS.count, ..IDS };
    let second = UserNamespace::new(range).expect("another");
    for namespace in [&first, &second] {
        let mut owner = u32::MAX;
        // SAFETY: it writes one user id.
        let asked =
            unsafe { libc::ioctl(namespace.fd().as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut owner) };
        assert_eq!((asked, owner), (0, namespace.range().first));
    }
    let probes = Probes::new("inotify");
    let takes_all =
        |namespace| probes.takes_all("inotify", &Options { user_namespace: Some(namespace), ..linux() });
    let (_greedy, had) = takes_all(&first);
    assert!(had > 0);
    assert_eq!(takes_all(&second).1, had, "as if the first had none");
}

#[test]
fn a_bad_range_or_user_is_refused() {
    let error = |first, count| UserNamespace::new(IdRange { first, count }).expect_err("refused").step;
    for (first, count) in [(0, 65_536), (1, 0), (u32::MAX, 2)] {
        assert_eq!(error(first, count), Step::UserNamespace);
    }
    if !root() {
        return;
    }
    let Some(namespace) = user_namespace() else { return };
    assert_eq!(namespace.host_id(65_535), Some(IDS.first + 65_535));
    assert_eq!(namespace.host_id(65_536), None);
    let refused = |options: &Options<'_>| -> Error { start(&["true"], options).expect_err("refused") };
    let beyond = refused(&Options { uid: 65_536, user_namespace: Some(&namespace), ..linux() });
    assert!(beyond.to_string().contains("id 65536 is not among the 65536"), "{beyond}");
    let plain = refused(&Options { user_namespace: Some(&namespace), ..Options::default() });
    assert!(plain.to_string().contains("a plain process has no namespaces"), "{plain}");
}

#[test]
fn further_directories_appear_where_they_belong() {
    if !root() {
        return;
    }
    let (group, executor) = (Sandboxed::new("group", NOBODY), Sandboxed::new("executor", NOBODY));
    fs::write(executor.dir.join("socket"), "").expect("a file");
    let dir = |of: &'static str, from| Mount { source: Sandbox::Dir(from), target: of, read_only: false };
    let mounts = [
        dir(GROUP_PATH, group.fd.as_fd()),
        Mount { read_only: true, ..dir(EXECUTOR_PATH, executor.fd.as_fd()) },
    ];
    let script = "echo shared > /mnt/proffer/group/file; ls /mnt/proffer/executor; \
                  echo x 2>/dev/null > /mnt/proffer/executor/socket || echo refused";
    let ran = run(&["sh", "-c", script], &Options { mounts: &mounts, ..linux() });
    assert_eq!((ran.output.as_str(), ran.events), ("socket\nrefused\n", exited(0)));
    assert_eq!(fs::read_to_string(group.dir.join("file")).expect("shared"), "shared\n");

    let error = |mounts: &[Mount<'_>]| {
        start(&["true"], &Options { mounts, ..linux() }).expect_err("refused").to_string()
    };
    let twice = [mounts[0], mounts[0]];
    assert!(error(&twice).contains("nothing can be mounted at \"/mnt/proffer/group\", or not twice"));
    assert!(error(&[Mount { target: "/etc", ..mounts[0] }]).contains("\"/etc\""));
}

#[test]
fn what_shares_sees_the_others_memory_and_not_its_processes() {
    if !root() {
        return;
    }
    let first = running(&linux());
    let write = "echo x > /dev/shm/file; ipcmk -Q 2>&1 | head -c 13";
    let (joined, read) = start_joined(&first, &["sh", "-c", write], None, &linux()).expect("join");
    let (written, _, _) = finish_joined(&joined, read);
    let look = "cat /dev/shm/file; ipcs -q | grep -c 0x; ls /tmp | wc -l; ls -d /proc/[0-9]* | wc -l";
    let ran = run(&["sh", "-c", look], &Options { share: Some(&first), ..linux() });
    let queues = if written.starts_with("Message queue") { 1 } else { 0 };
    let mut lines = ran.output.lines();
    assert_eq!(lines.next(), Some("x"), "{}", ran.output);
    if queues == 1 {
        assert_eq!(lines.next(), Some("1"), "{}", ran.output);
    }
    let alone = run(&["sh", "-c", look], &linux());
    assert!(!alone.output.starts_with("x\n"), "{}", alone.output);
    // One that is gone cannot be shared with.
    first.kill();
    assert!(events(&first).contains(&Event::Started));
    let late = start(&["true"], &Options { share: Some(&first), ..linux() });
    let failed = events(&late.expect("cloned").0);
    assert!(matches!(failed[..], [Event::SetupFailed { step: Step::Share, .. }]), "{failed:?}");
}
