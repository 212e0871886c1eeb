//! Tasks that try to get out. The host's canaries tell whether one did.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use proffer_launcher::{
    EXECUTOR_PATH, Event, GROUP_PATH, Isolation, Mount, Sandbox, Step, Template, UserNamespace,
};

use crate::harness::*;
use crate::probe::SHARED_KEY;

const SONG: &str = "a canary that everyone may hear and nobody may touch\n";

/// A file of the host's, in a place that tasks can see, which must stay as it is.
struct Canary {
    dir: PathBuf,
    file: PathBuf,
}

impl Canary {
    fn new(name: &str) -> Self {
        let base =
            ["/opt", "/srv", "/usr", "/"].iter().map(Path::new).find(|dir| dir.is_dir()).expect("a place");
        let dir = base.join(format!("proffer-canary-{}-{name}", std::process::id()));
        fs::create_dir(&dir).expect("canary directory");
        let file = dir.join("canary");
        fs::write(&file, SONG).expect("canary");
        Canary { dir, file }
    }

    fn sings(&self) {
        assert_eq!(fs::read_to_string(&self.file).expect("the canary"), SONG);
        let mode = fs::metadata(&self.file).expect("the canary").permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        assert_eq!(fs::read_dir(&self.dir).expect("its directory").count(), 1);
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A process that ends with its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every user a task may be, with the default filter and without: each layer must hold by itself.
fn everyone(test: impl Fn(&str, &Options<'_>)) {
    let namespace = user_namespace();
    let users: [(u32, Option<&UserNamespace>); 4] =
        [(NOBODY, None), (0, None), (0, namespace.as_ref()), (1000, namespace.as_ref())];
    let bare = no_filter();
    for (uid, user_namespace) in users {
        for seccomp in [&[][..], &bare] {
            let who =
                format!("user {uid}, namespace {}, filter {}", user_namespace.is_some(), seccomp.is_empty());
            test(&who, &Options { uid, user_namespace, seccomp, ..linux() });
        }
    }
}

#[test]
fn no_attempt_gets_out() {
    if !root() {
        return;
    }
    let (probes, canary, group) =
        (Probes::new("escape"), Canary::new("escape"), Sandboxed::new("escape", NOBODY));
    let program = group.dir.join("set-user-id");
    fs::copy("/proc/self/exe", &program).expect("a copy of this program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6755)).expect("chmod");
    fs::set_permissions(&group.dir, fs::Permissions::from_mode(0o777)).expect("chmod");
    // SAFETY: integers only; removed below.
    let shared = unsafe { libc::shmget(SHARED_KEY, 4096, libc::IPC_CREAT | 0o666) };
    assert!(shared >= 0, "a segment of the host's");
    let mut bystander = std::process::Command::new("sleep");
    let bystander = bystander.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut bystander = Killed(bystander.spawn().expect("a process of the host's"));
    let mount = Mount { source: Sandbox::Dir(group.fd.as_fd()), target: GROUP_PATH, read_only: false };
    everyone(|who, options| {
        let ran = probes
            .run(&format!("escape {}", canary.file.display()), &Options { mounts: &[mount], ..*options });
        assert_eq!(ran.output, "tried 22", "{who}");
        canary.sings();
    });
    assert!(bystander.0.try_wait().expect("our child").is_none(), "it was killed");
    // SAFETY: the segment made above.
    unsafe { libc::shmctl(shared, libc::IPC_RMID, std::ptr::null_mut()) };
}

#[test]
fn nothing_of_the_host_can_be_opened_for_writing() {
    if !root() {
        return;
    }
    let probes = Probes::new("walk");
    everyone(|who, options| {
        let ran = probes.run("walk", options);
        let mut lines = ran.output.lines().collect::<Vec<_>>();
        assert_eq!(lines.pop(), Some("walked"), "{who}: {}", ran.output);
        lines.retain(|line| {
            let own = ["/dev/full", "/dev/null", "/dev/pts/ptmx", "/dev/random", "/dev/urandom", "/dev/zero"];
            // Anyone may ask to be woken by pressure, and to be refused the last pid of the own namespace.
            let harmless =
                ["/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory", "/proc/pressure/irq"];
            !own.contains(line) && !harmless.contains(line) && *line != "/proc/sys/kernel/ns_last_pid"
        });
        assert!(lines.is_empty(), "{who}: {lines:?}");
    });
}

#[test]
fn who_joins_cannot_be_robbed_on_the_way() {
    if !root() {
        return;
    }
    // It meets one out of a few.
    const JOINS: usize = 1000;
    let probes = Probes::new("trace");
    let bare = no_filter();
    let namespace = user_namespace();
    for (uid, user_namespace) in [(NOBODY, None), (0, None), (0, namespace.as_ref())] {
        let options = Options { uid, user_namespace, seccomp: &bare, ..linux() };
        let (container, mut read) = probes.start("trace", &options);
        let mut up = [0u8; 64];
        let mut length = 0;
        while !String::from_utf8_lossy(&up[..length]).contains("up\n") {
            length += std::io::Read::read(&mut read, &mut up[length..]).expect("output");
        }
        let ended = || {
            let mut poll = [nix::poll::PollFd::new(container.pidfd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO) == Ok(1)
        };
        let mut joins = 0;
        while !ended() {
            joins += 1;
            assert!(joins < JOINS, "it met nobody");
            let idle = Options { env: "PROFFER_PROBE=idle", ..options };
            // The last one finds it gone.
            let Ok((joined, output)) = start_joined(&container, &PROBE, None, &idle) else { continue };
            finish_joined(&joined, output);
        }
        let mut said = String::new();
        std::io::Read::read_to_string(&mut read, &mut said).expect("output");
        let got = said.lines().filter(|line| line.starts_with("GOT")).collect::<Vec<_>>();
        assert!(got.is_empty(), "user {uid}: {got:?}");
        assert!(said.contains("saw "), "{said}");
        events(&container);
    }
}

/// How many launches somebody tries to get between: `PROFFER_LAUNCHES`, 300 if it is not set, and enough of them to be
/// met at both of two names.
fn launches() -> usize {
    let asked = std::env::var("PROFFER_LAUNCHES").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(300).max(100)
}

#[test]
fn a_neighbour_that_exchanges_directories_changes_no_launch() {
    if !root() {
        return;
    }
    let (probes, canary) = (Probes::new("swap"), Canary::new("swap"));
    let shared = Sandboxed::new("swap", NOBODY);
    fs::create_dir_all(shared.dir.join("dir/inner")).expect("directory");
    fs::write(shared.dir.join("dir/inner/mark"), "inner").expect("mark");
    symlink(canary.dir.parent().expect("its parent"), shared.dir.join("link")).expect("link");
    let mount = || Mount { source: Sandbox::Dir(shared.fd.as_fd()), target: GROUP_PATH, read_only: false };
    let (swapper, mut read) =
        probes.start(&format!("swap {GROUP_PATH}"), &Options { mounts: &[mount()], ..linux() });
    let mut up = [0u8; 64];
    let mut length = 0;
    while !String::from_utf8_lossy(&up[..length]).contains("up\n") {
        length += std::io::Read::read(&mut read, &mut up[length..]).expect("output");
    }
    let inner = canary.dir.file_name().expect("a name").to_string_lossy().into_owned();
    let script = format!(
        "pwd -P; grep -c ' /mnt/proffer/' /proc/self/mountinfo; (: > {}) 2>/dev/null && echo OUT; (: > x) 2>/dev/null; :",
        canary.file.display()
    );
    let (mut inside, mut elsewhere) = (0, 0);
    for _ in 0..launches() / 2 {
        for (workdir, found) in [("dir/inner", "/mnt/proffer/group/"), (&format!("dir/{inner}"), "/")] {
            let workdir = format!("{GROUP_PATH}/{workdir}");
            let options = Options {
                sandbox: Some(Sandbox::Dir(shared.fd.as_fd())),
                mounts: &[mount()],
                working_directory: &workdir,
                ..linux()
            };
            let ran = run(&["sh", "-c", &script], &options);
            match ran.events[..] {
                [Event::ExecFailed { step: Step::Chdir, errno: libc::ENOENT }] => elsewhere += 1,
                _ => {
                    assert_eq!(ran.events, exited(0), "{}", ran.output);
                    let mut lines = ran.output.lines();
                    let place = lines.next().expect("a place");
                    assert!(place.starts_with(found), "{place}");
                    // Its own two mounts, where they belong, and not a third.
                    assert_eq!((lines.next(), lines.next()), (Some("2"), None), "{}", ran.output);
                    inside += 1;
                }
            }
        }
    }
    canary.sings();
    eprintln!("{} launches: {inside} went on, {elsewhere} found no such directory", inside + elsewhere);
    fs::write(shared.dir.join("stop"), "").expect("stop");
    drop(read);
    events(&swapper);
    assert!(inside > 0 && elsewhere > 0, "both names were met: {inside} and {elsewhere}");
}

#[test]
fn no_descriptor_number_is_a_way_to_a_directory() {
    if !root() {
        return;
    }
    // A few of this process's own lead to the host's root.
    let leaks = (0..8).map(|_| fs::File::open("/").expect("the root")).collect::<Vec<_>>();
    let most = fs::read_dir("/proc/self/fd").expect("descriptors").count() as u32 + 32;
    for number in (0..most).chain([255, 1023]) {
        for suffix in ["", "/..", "/etc"] {
            let workdir = format!("/proc/self/fd/{number}{suffix}");
            let ran = run(&["pwd"], &Options { working_directory: &workdir, ..linux() });
            assert!(
                matches!(
                    ran.events[..],
                    [Event::ExecFailed {
                        step: Step::Chdir,
                        errno: libc::ENOENT | libc::ENOTDIR | libc::EACCES
                    }]
                ),
                "{workdir}: {:?}",
                ran.events
            );
        }
    }
    drop(leaks);
}

#[test]
fn a_view_whose_places_are_links_is_not_built() {
    if !root() {
        return;
    }
    use nix::mount::{MsFlags, mount};
    // A root of this thread's own with links where a container's own mounts go.
    for place in ["proc", "sys", "dev", "tmp", "run", "mnt"] {
        let failed = std::thread::spawn(move || {
            let none = None::<&str>;
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS | nix::sched::CloneFlags::CLONE_FS)
                .expect("unshare");
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
            let root = std::env::temp_dir();
            mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
            for dir in ["proc", "sys", "dev", "tmp", "run", "mnt", "etc", "old", "elsewhere"] {
                fs::create_dir(root.join(dir)).expect("directory");
            }
            fs::remove_dir(root.join(place)).expect("removed");
            symlink("elsewhere", root.join(place)).expect("link");
            // The builder's own /proc must work, whatever it is called.
            let proc = if place == "proc" { root.join("elsewhere") } else { root.join("proc") };
            mount(Some("/proc"), &proc, none, MsFlags::MS_BIND | MsFlags::MS_REC, none).expect("proc");
            nix::unistd::chroot(&root).expect("chroot");
            std::env::set_current_dir("/").expect("chdir");
            Template::build(&[]).expect_err("refused")
        });
        let error = failed.join().expect("the thread");
        assert_eq!((error.step, error.errno), (Step::TemplatePlace, libc::ENOTDIR), "{place}: {error}");
        assert_eq!(error.object.as_deref(), Some(format!("/{place}").as_str()));
    }
}

#[test]
fn the_supervisors_program_cannot_be_written_to() {
    if !root() {
        return;
    }
    // A script whose interpreter is what ran before it: the supervisor's program.
    let (probes, sandbox) = (Probes::new("own"), Sandboxed::new("own", 0));
    let script = sandbox.dir.join("script");
    fs::write(&script, "#!/proc/self/exe --exact\n").expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
    let before = fs::read("/proc/self/exe").expect("this program");
    // As user 0 of the host, which owns the file. This test's own program is in use and therefore busy.
    let options = Options {
        uid: 0,
        sandbox: Some(Sandbox::Dir(sandbox.fd.as_fd())),
        env: "PROFFER_PROBE=own-program",
        ..linux()
    };
    let ran = run(&["./script", "probe::entry", "--nocapture", "--test-threads=1"], &options);
    assert!(ran.output.contains("opened for writing: false"), "{}", ran.output);
    assert!(fs::read("/proc/self/exe").expect("this program") == before);
    // A supervisor executes itself from a mount that is read-only: then it is refused whether busy or not.
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "escape::reexecuted", "--nocapture", "--test-threads=1"]);
    let output = command.env("PROFFER_REEXECUTED", "1").output().expect("run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("opened for writing: false, read-only: true"), "{text}");
    assert!(text.contains("named container"), "{text}");
    drop(probes);
}

/// A supervisor as it begins, for the test above.
#[test]
fn reexecuted() {
    if std::env::var_os("PROFFER_REEXECUTED").is_none() {
        return;
    }
    proffer_launcher::execute_read_only().expect("executed again");
    let sandbox = Sandboxed::new("reexecuted", 0);
    let script = sandbox.dir.join("script");
    fs::write(&script, "#!/proc/self/exe --exact\n").expect("script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
    let options = Options {
        uid: 0,
        isolation: Isolation::Linux(template()),
        sandbox: Some(Sandbox::Dir(sandbox.fd.as_fd())),
        env: "PROFFER_PROBE=own-program",
        ..Options::default()
    };
    let ran = run(&["./script", "probe::entry", "--nocapture", "--test-threads=1"], &options);
    println!("{}", ran.output);
    let own = fs::read_to_string("/proc/self/comm").expect("own name");
    println!("named {own}");
}

#[test]
fn the_control_socket_is_out_of_reach_for_everyone() {
    if !root() {
        return;
    }
    let host = HostSocket::bind(&["/run"]);
    let template = Template::build(&[]).expect("template");
    everyone(|who, options| {
        let script = format!("ls -d {} {EXECUTOR_PATH}/..", host.path.display());
        let isolation = Isolation::Linux(&template);
        let ran = run(&["sh", "-c", &script], &Options { isolation, ..*options });
        assert!(ran.output.contains("No such file"), "{who}: {}", ran.output);
    });
}
