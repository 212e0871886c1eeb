//! What a task may ask of its container: had, or refused by its field with nothing left behind.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use proffer_containerizer::{ContainerSpec, Event, Isolation, SeccompProfiles};
use proffer_types::container::{Burst, Container, IoLimit, Rlimit, RlimitValue, UserNamespace};
use proffer_types::{Ranges, Reason};

use crate::bench::{Bench, Program, until};

fn bench() -> Option<Bench> {
    Bench::real(Isolation::Linux)
}

fn cpus(first: u64, last: u64) -> Ranges {
    Ranges::new("cpus", [(first, last)]).expect("a range")
}

/// Launches it, which must be refused for `field`.
fn refused(bench: &mut Bench, container: Container, field: &str) -> String {
    let spec = ContainerSpec { container, ..bench.spec(&Program::Gate(0)) };
    refused_spec(bench, &spec, field)
}

fn refused_spec(bench: &mut Bench, spec: &ContainerSpec, field: &str) -> String {
    bench.deliver(spec);
    let message = match bench.of(spec.launch) {
        Event::LaunchFailed { reason: Reason::ContainerRefused, message, .. } => message,
        other => panic!("{field}: {other:?}"),
    };
    assert!(message.starts_with(field), "{message}");
    assert!(!bench.sandbox(spec.launch).exists());
    bench.forget(spec.launch);
    message
}

#[test]
fn what_cannot_be_had_is_refused() {
    let Some(mut bench) = bench() else { return };
    let container = Container::default;
    let mut seccomp = container();
    seccomp.seccomp.profile = "no-such".into();
    let message = refused(&mut bench, seccomp, "container.seccomp.profile");
    assert!(message.contains("no-such") && message.contains("none"), "{message}");
    let mut also = container();
    also.seccomp.also = r#"{"defaultAction": "SCMP_ACT_DANCE"}"#.into();
    refused(&mut bench, also, "container.seccomp.also");
    refused(&mut bench, Container { cpuset: cpus(0, 4000), ..container() }, "container.cpuset");
    let huge = Container { hugetlb: [(3 << 20, 3 << 20)].into(), ..container() };
    refused(&mut bench, huge, "container.hugetlb[3145728]");
    let mut io = container();
    io.io.limits.insert("4095:7".into(), IoLimit { write_bytes: 1 << 20, ..IoLimit::default() });
    refused(&mut bench, io, "container.io.limits[4095:7]");
    let limit = |soft, hard| Container {
        rlimits: BTreeMap::from([(Rlimit::Nofile, RlimitValue { soft, hard })]),
        ..container()
    };
    let message = refused(&mut bench, limit(1 << 40, None), "container.rlimits[nofile]");
    assert!(message.contains("hard limit"), "{message}");
    refused(&mut bench, limit(10, Some(1 << 40)), "container.rlimits[nofile]");
    refused(&mut bench, limit(10, Some(9)), "container.rlimits[nofile]");
    bench.options().users.ranges = 0;
    bench.restart(&[]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    refused(&mut bench, Container { users: UserNamespace::Private, ..container() }, "container.users");
    assert_eq!(bench.groups(), ["", "supervisors"]);
    bench.close();
}

#[test]
fn plain_processes_are_not_said_to_be_contained() {
    let Some(mut bench) = Bench::real(Isolation::Process) else { return };
    let container = Container::default;
    refused(&mut bench, Container { cpuset: cpus(0, 0), ..container() }, "container");
    refused(&mut bench, Container { users: UserNamespace::Private, ..container() }, "container.users");
    refused(&mut bench, Container { hostname: "h".into(), ..container() }, "container.hostname");
    let burst = Burst { cpus_milli: Some(0), memory_bytes: None };
    let spec = ContainerSpec { burst, ..bench.spec(&Program::Gate(0)) };
    refused_spec(&mut bench, &spec, "burst");
    // What needs no containment is had.
    let inside = ContainerSpec {
        container: Container {
            working_directory: "below".into(),
            rlimits: [(Rlimit::Nofile, RlimitValue { soft: 77, hard: Some(78) })].into(),
            ..container()
        },
        ..bench.spec(&Program::Script("test $(basename $PWD) = below && test $(ulimit -n) = 77"))
    };
    std::fs::create_dir_all(bench.sandbox(inside.launch).join("below")).expect("a directory");
    bench.deliver(&inside);
    assert!(matches!(bench.of(inside.launch), Event::Started { .. }));
    assert_eq!(bench.end(inside.launch).exit_code, Some(0));
    bench.forget(inside.launch);
    bench.close();
}

#[test]
fn limits_that_nothing_starts_in_fail_the_launch_clearly() {
    let Some(mut bench) = bench() else { return };
    for (memory_bytes, pids_max) in
        [(4096, 50), (64 << 10, 50), (256 << 10, 50), (1 << 20, 50), (64 << 20, 0)]
    {
        let spec = ContainerSpec { memory_bytes, pids_max, ..bench.spec(&Program::Script("exec true")) };
        bench.deliver(&spec);
        let mut told = String::new();
        loop {
            match bench.of(spec.launch) {
                Event::Started { .. } => {}
                Event::LaunchFailed { reason, message, .. } => {
                    assert!(
                        matches!(reason, Reason::LaunchFailed | Reason::ExecFailed),
                        "{reason:?} {message}"
                    );
                    told.push_str(&message);
                    break;
                }
                // Enough to begin, and too little or enough to go on.
                Event::Ended { end, .. } => {
                    assert!(end.oom.is_some() || end.exit_code.is_some(), "{end:?}");
                    told.push_str(&format!("{:?} {:?}", end.exit_code, end.oom));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        eprintln!("{memory_bytes} bytes, {pids_max} processes: {told}");
        bench.forget(spec.launch);
    }
    assert_eq!(bench.groups(), ["", "supervisors"]);
    // The supervisor is none the worse.
    let next = bench.run(&Program::Gate(5));
    bench.let_go(next.launch);
    assert_eq!(bench.end(next.launch).exit_code, Some(5));
    bench.forget(next.launch);
    bench.close();
}

#[test]
fn what_is_asked_for_is_there() {
    let Some(mut bench) = bench() else { return };
    let script = "test $(nproc) = 1 && test $PWD = /mnt/proffer/sandbox/below && test $(hostname) = elsewhere && \
                  test $(ulimit -n) = 99 && test $(ulimit -Hn) = 100";
    let spec = ContainerSpec {
        container: Container {
            working_directory: "below".into(),
            hostname: "elsewhere".into(),
            cpuset: cpus(0, 0),
            rlimits: [(Rlimit::Nofile, RlimitValue { soft: 99, hard: Some(100) })].into(),
            ..Container::default()
        },
        ..bench.spec(&Program::Script(script))
    };
    std::fs::create_dir_all(bench.sandbox(spec.launch).join("below")).expect("a directory");
    bench.deliver(&spec);
    assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    assert_eq!(bench.end(spec.launch).exit_code, Some(0), "{}", bench.output(spec.launch));
    bench.forget(spec.launch);
    bench.close();
}

#[test]
fn a_burst_may_use_more_than_it_was_promised() {
    let Some(mut bench) = bench() else { return };
    let eat = "x=$(head -c 50331648 /dev/zero | tr '\\000' x); exit 9";
    let plain = ContainerSpec { memory_bytes: 32 << 20, ..bench.spec(&Program::Script(eat)) };
    bench.deliver(&plain);
    assert!(matches!(bench.of(plain.launch), Event::Started { .. }));
    assert_ne!(bench.end(plain.launch).exit_code, Some(9));
    bench.forget(plain.launch);
    let burst = Burst { cpus_milli: Some(0), memory_bytes: Some(256 << 20) };
    let bursts = ContainerSpec { memory_bytes: 32 << 20, burst, ..bench.spec(&Program::Script(eat)) };
    bench.deliver(&bursts);
    assert!(matches!(bench.of(bursts.launch), Event::Started { .. }));
    let end = bench.end(bursts.launch);
    assert_eq!(end.exit_code, Some(9), "{end:?}");
    assert!(end.memory_peak_bytes.is_none_or(|peak| peak > 32 << 20), "{end:?}");
    bench.forget(bursts.launch);
    bench.close();
}

#[test]
fn a_disk_limit_slows_what_is_written() {
    let Some(mut bench) = bench() else { return };
    let Some(device) = device_of(bench.work()) else {
        eprintln!("SKIPPED: the work directory is on no block device");
        return;
    };
    let script = "dd if=/dev/zero of=$PROFFER_SANDBOX/f bs=65536 count=32 oflag=direct 2>&1";
    let mut spec = bench.spec(&Program::Script(script));
    let limit = IoLimit { write_bytes: 1 << 20, ..IoLimit::default() };
    spec.container.io.limits.insert(device.clone(), limit);
    bench.deliver(&spec);
    match bench.of(spec.launch) {
        Event::Started { .. } => {}
        Event::LaunchFailed { reason: Reason::ContainerRefused, message, .. } => {
            eprintln!("SKIPPED: {message}");
            return bench.forget(spec.launch);
        }
        other => panic!("{other:?}"),
    }
    let begun = std::time::Instant::now();
    assert_eq!(bench.end(spec.launch).exit_code, Some(0), "{}", bench.output(spec.launch));
    // 2 MiB at 1 MiB a second; the first bytes go at once.
    assert!(begun.elapsed() > Duration::from_millis(1200), "{:?} on {device}", begun.elapsed());
    bench.forget(spec.launch);
    bench.close();
}

/// The whole device that a directory is on, as `MAJOR:MINOR`.
fn device_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let dev = std::fs::metadata(path).ok()?.dev();
    let name = format!("{}:{}", nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    let dir = Path::new("/sys/dev/block").join(&name);
    let whole = if dir.join("partition").exists() { dir.join("../dev") } else { dir.join("dev") };
    Some(std::fs::read_to_string(whole).ok()?.trim().to_owned())
}

#[test]
fn a_profile_of_the_operator_is_obeyed() {
    let Some(mut bench) = bench() else { return };
    let dir = bench.work().join("profiles");
    std::fs::create_dir_all(&dir).expect("made");
    let profile = |call: &str, errno: i32| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {{"names": ["{call}"], "action": "SCMP_ACT_ERRNO", "errnoRet": {errno}}}]}}"#
        )
    };
    std::fs::write(dir.join("no-mkdir.json"), profile("mkdir\", \"mkdirat", 28)).expect("written");
    bench.options().seccomp = SeccompProfiles::load(&dir).expect("loaded");
    bench.restart(&[]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    let script = "mkdir d 2>&1; touch f && chmod 600 f 2>&1; exit 0";
    let mut spec = bench.spec(&Program::Script(script));
    spec.container.seccomp.profile = "no-mkdir".into();
    spec.container.seccomp.also = profile("fchmodat\", \"chmod\", \"fchmodat2", 95);
    bench.deliver(&spec);
    assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    assert_eq!(bench.end(spec.launch).exit_code, Some(0));
    let said = bench.output(spec.launch);
    assert!(said.contains("No space left") && said.contains("not supported"), "{said}");
    bench.forget(spec.launch);
    bench.close();
}

/// The id of a container's long sleep, as the host sees it.
fn host_uid(bench: &Bench, launch: proffer_types::LaunchId) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let uids = bench.processes(launch).into_iter().filter_map(|pid| {
        let args = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let uid = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
        args.ends_with(b"sleep\x001000\0").then_some(uid)
    });
    uids.max()
}

#[test]
fn containers_have_user_ids_of_their_own() {
    let Some(mut bench) = bench() else { return };
    private_ids(&mut bench);
    bench.close();
}

/// Where the file system cannot map ids, the sandbox is given away instead.
#[test]
fn user_ids_of_their_own_where_ids_cannot_be_mapped() {
    let Some(mut bench) = bench() else { return };
    bench.stop();
    let dir = bench.work().join("sandboxes");
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let none = None::<&str>;
    mount(Some("proffer"), &dir, Some("ramfs"), MsFlags::empty(), none).expect("a ramfs");
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("closed");
    bench.restart(&[]);
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| private_ids(&mut bench)));
    bench.stop();
    umount2(&dir, MntFlags::MNT_DETACH).expect("unmounted");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    bench.close();
}

fn private_ids(bench: &mut Bench) {
    let script = "test $(id -u) = 0 && touch $PROFFER_SANDBOX/mine && chown 1000:1000 $PROFFER_SANDBOX/mine; \
                  cat /proc/self/uid_map; ls -ldn $PROFFER_SANDBOX; until test -e go; do sleep 0.01; done; \
                  exec sleep 1000";
    let private = |bench: &mut Bench, user: &str| {
        let mut spec = bench.spec(&Program::Script(script));
        spec.container.users = UserNamespace::Private;
        spec.user = user.into();
        bench.deliver(&spec);
        assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
        until("it has written", || bench.output(spec.launch).lines().count() >= 2);
        spec
    };
    let [first, second] = ["root", "root"].map(|user| private(bench, user));
    let bases = [&first, &second].map(|spec| {
        let said = bench.output(spec.launch);
        let map: Vec<u32> =
            said.lines().next().expect("a map").split_whitespace().map(|n| n.parse().expect("n")).collect();
        assert_eq!((map[0], map[2]), (0, 65_536), "{said}");
        assert!(said.lines().nth(1).expect("the sandbox").contains(" 0 0 "), "{said}");
        map[1]
    });
    assert!(bases.iter().all(|base| *base >= 1 << 20) && bases[0] != bases[1], "{bases:?}");
    // After a restart of the agent they are taken still.
    bench.restart(&[Bench::known(&first, false), Bench::known(&second, false)]);
    for spec in [&first, &second] {
        assert!(matches!(bench.of(spec.launch), Event::Started { .. }));
    }
    bench.expect("recovery ends", |event| *event == Event::Recovered);
    let third = private(bench, "12345");
    assert!(bench.output(third.launch).contains("65536"));
    for (spec, inside) in [(&first, 0), (&second, 0), (&third, 12345)] {
        let path = bench.sandbox(spec.launch).join("go");
        std::fs::write(path, b"").expect("a sandbox");
        let mut uid = None;
        until("it sleeps", || {
            uid = host_uid(bench, spec.launch);
            uid.is_some()
        });
        let uid = uid.expect("it was seen");
        match bases.iter().zip([&first, &second]).find(|(_, other)| other.launch == spec.launch) {
            Some((base, _)) => assert_eq!(uid, base + inside),
            None => assert!(uid >= 1 << 20 && bases.iter().all(|base| uid / 65_536 != base / 65_536)),
        }
    }
    for spec in [first, second, third] {
        bench.agent().kill(spec.launch, 0);
        bench.end(spec.launch);
        bench.forget(spec.launch);
    }
}
