//! What the tests start containers with.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use proffer_launcher::seccomp::{Profile, Program};
use proffer_launcher::{
    Call, Container, EXECUTOR_PATH, Error, Event, IdRange, Isolation, Joined, Limit, Mount, Request, Sandbox,
    Template, UserNamespace, WindowSize, join, spawn,
};

pub(crate) const NOBODY: u32 = 65534;
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: needs root");
    }
    root
}

/// One template for all tests.
pub(crate) fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| Template::build(&[PathBuf::from("/usr/share/proffer-absent")]).expect("template"))
}

/// A socket that everyone may connect to, in a directory that nothing covers by rule.
pub(crate) struct HostSocket {
    pub(crate) dir: PathBuf,
    pub(crate) path: PathBuf,
    _listener: std::os::unix::net::UnixListener,
}

impl HostSocket {
    pub(crate) fn bind(base: &[&str]) -> Self {
        let base = base.iter().map(Path::new).find(|dir| dir.is_dir()).expect("one of the directories");
        let dir = base.join(format!("proffer-{}", std::process::id()));
        fs::create_dir(&dir).expect("socket directory");
        let path = dir.join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("socket");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("open to all");
        HostSocket { dir, path, _listener: listener }
    }
}

impl Drop for HostSocket {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub(crate) struct Sandboxed {
    pub(crate) dir: PathBuf,
    pub(crate) fd: OwnedFd,
}

impl Sandboxed {
    pub(crate) fn new(name: &str, owner: u32) -> Self {
        let dir = std::env::temp_dir().join(format!("proffer-launcher-{}-{name}", std::process::id()));
        fs::create_dir(&dir).expect("sandbox");
        std::os::unix::fs::chown(&dir, Some(owner), Some(owner)).expect("chown");
        let fd = fs::File::open(&dir).expect("sandbox").into();
        Sandboxed { dir, fd }
    }
}

impl Drop for Sandboxed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub(crate) struct Ran {
    pub(crate) output: String,
    pub(crate) events: Vec<Event>,
}

pub(crate) struct Options<'a> {
    pub(crate) cgroup_dir: Option<BorrowedFd<'a>>,
    pub(crate) cgroup_procs: &'a [BorrowedFd<'a>],
    pub(crate) uid: u32,
    pub(crate) sandbox: Option<Sandbox<'a>>,
    pub(crate) isolation: Isolation<'a>,
    pub(crate) working_directory: &'a str,
    pub(crate) limits: &'a [Limit],
    pub(crate) mounts: &'a [Mount<'a>],
    pub(crate) user_namespace: Option<&'a UserNamespace>,
    pub(crate) seccomp: &'a [Program],
    pub(crate) share: Option<&'a Container>,
    pub(crate) terminal: Option<WindowSize>,
    /// One more than the usual.
    pub(crate) env: &'a str,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options {
            cgroup_dir: None,
            cgroup_procs: &[],
            uid: NOBODY,
            sandbox: None,
            isolation: Isolation::Process,
            working_directory: "",
            limits: &[],
            mounts: &[],
            user_namespace: None,
            seccomp: &[],
            share: None,
            terminal: None,
            env: "ONLY=this",
        }
    }
}

/// Hands `argv` and `options` to `launch` as a request, and returns the reading end of the output besides.
fn request<T>(
    argv: &[&str],
    options: &Options<'_>,
    launch: impl FnOnce(&Request<'_>) -> Result<T, Error>,
) -> Result<(T, fs::File), Error> {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let env = ["PATH=/usr/local/bin:/usr/bin:/bin".to_owned(), options.env.to_owned()];
    let null = fs::File::open("/dev/null").expect("/dev/null");
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    let stdin = match options.isolation {
        Isolation::Linux(template) => template.null(),
        Isolation::Process => null.as_fd(),
    };
    let request = Request {
        env: &env,
        uid: options.uid,
        gid: options.uid,
        working_directory: options.working_directory,
        hostname: "inside",
        limits: options.limits,
        sandbox: options.sandbox,
        mounts: options.mounts,
        user_namespace: options.user_namespace,
        seccomp: options.seccomp,
        share: options.share,
        terminal: options.terminal,
        cgroup_dir: options.cgroup_dir,
        cgroup_procs: options.cgroup_procs,
        ..Request::new(&argv, options.isolation, [stdin, write.as_fd(), write.as_fd()])
    };
    Ok((launch(&request)?, read.into()))
}

pub(crate) fn start(argv: &[&str], options: &Options<'_>) -> Result<(Container, fs::File), Error> {
    request(argv, options, spawn)
}

/// Joins a container that was started with the same options.
pub(crate) fn start_joined(
    container: &Container,
    argv: &[&str],
    call: Option<Call<'_>>,
    options: &Options<'_>,
) -> Result<(Joined, fs::File), Error> {
    let options = Options { mounts: &[], share: None, ..*options };
    request(argv, &options, |request| join(container, request, call))
}

pub(crate) fn wait_readable(fd: std::os::fd::BorrowedFd<'_>, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut poll = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
    let timeout = nix::poll::PollTimeout::try_from(left).expect("a short time");
    assert_ne!(nix::poll::poll(&mut poll, timeout), Ok(0), "nothing happened before the deadline");
}

/// The events up to the end, and init reaped.
pub(crate) fn events(container: &Container) -> Vec<Event> {
    let deadline = Instant::now() + DEADLINE;
    let mut events = Vec::new();
    loop {
        match container.event() {
            Some(Event::Closed) => break,
            Some(event) => events.push(event),
            None => wait_readable(container.status_fd(), deadline),
        }
    }
    wait_readable(container.pidfd(), deadline);
    assert!(container.reap().expect("our child").is_some());
    events
}

pub(crate) fn run(argv: &[&str], options: &Options<'_>) -> Ran {
    let (container, mut read) = start(argv, options).expect("spawn");
    let mut output = String::new();
    read.read_to_string(&mut output).expect("output");
    Ran { output, events: events(&container) }
}

/// What a joined program wrote and was told of, and its wait status.
pub(crate) fn finish_joined(joined: &Joined, mut read: fs::File) -> (String, Vec<Event>, i32) {
    let mut output = String::new();
    read.read_to_string(&mut output).expect("output");
    let deadline = Instant::now() + DEADLINE;
    let mut events = Vec::new();
    loop {
        match joined.event() {
            Some(Event::Closed) => break,
            Some(event) => events.push(event),
            None => wait_readable(joined.status_fd(), deadline),
        }
    }
    wait_readable(joined.pidfd(), deadline);
    // One that is traced is a zombie of its tracer's first.
    let status = loop {
        match joined.reap().expect("our child") {
            Some(status) => break status,
            None => assert!(Instant::now() < deadline, "it stays unreaped"),
        }
        std::thread::yield_now();
    };
    (output, events, status)
}

/// A container that runs until it is dropped.
pub(crate) fn running(options: &Options<'_>) -> Container {
    let (container, mut read) = start(&["sh", "-c", "echo up; exec sleep 1000"], options).expect("spawn");
    let mut up = [0; 3];
    read.read_exact(&mut up).expect("it runs");
    container
}

/// A filter that allows everything, to see what holds without one.
pub(crate) fn no_filter() -> Vec<Program> {
    let profile = Profile::parse(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).expect("a profile");
    vec![profile.compile().expect("compiled")]
}

/// 65,536 ids that nobody has.
pub(crate) const IDS: IdRange = IdRange { first: 0x5000_0000, count: 65_536 };

/// A user namespace, if this kernel and this user may have one.
pub(crate) fn user_namespace() -> Option<UserNamespace> {
    match UserNamespace::new(IDS) {
        Ok(namespace) => Some(namespace),
        Err(error) => {
            eprintln!("SKIPPED: needs user namespaces: {error}");
            None
        }
    }
}

/// A directory with this test's own program, which anybody may execute: `PROFFER_PROBE` tells it what to try.
pub(crate) struct Probes(Sandboxed);

impl Probes {
    pub(crate) fn new(name: &str) -> Self {
        let dir = Sandboxed::new(&format!("probes-{name}"), 0);
        fs::copy("/proc/self/exe", dir.dir.join("probe")).expect("a copy of this program");
        for path in [&dir.dir, &dir.dir.join("probe")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("for all");
        }
        Probes(dir)
    }

    /// The probes as a mount at `EXECUTOR_PATH`.
    pub(crate) fn mount(&self) -> Mount<'_> {
        Mount { source: Sandbox::Dir(self.0.fd.as_fd()), target: EXECUTOR_PATH, read_only: true }
    }

    /// Starts a probe in a container, beside the mounts that it is given.
    pub(crate) fn start(&self, name: &str, options: &Options<'_>) -> (Container, fs::File) {
        let env = format!("PROFFER_PROBE={name}");
        let mounts = [&[self.mount()], options.mounts].concat();
        start(&PROBE, &Options { env: &env, mounts: &mounts, ..*options }).expect("spawn")
    }

    /// A container that has taken all of something that there is for it, and how many that were.
    pub(crate) fn takes_all(&self, what: &str, options: &Options<'_>) -> (Container, usize) {
        let (container, read) = self.start(&format!("takes {what}"), options);
        let mut lines = BufReader::new(read).lines().map(|line| line.expect("output"));
        let took = lines.find_map(|line| line.split_once("took: ")?.1.parse().ok());
        (container, took.expect("it says how many"))
    }

    /// Runs a probe in a container.
    pub(crate) fn run(&self, name: &str, options: &Options<'_>) -> Ran {
        let (container, mut read) = self.start(name, options);
        let mut output = String::new();
        read.read_to_string(&mut output).expect("output");
        Ran { output: said(&output), events: events(&container) }
    }
}

/// The command of a probe, where [`Probes::mount`] is mounted.
pub(crate) const PROBE: [&str; 5] =
    ["/mnt/proffer/executor/probe", "--exact", "probe::entry", "--nocapture", "--test-threads=1"];

/// What a probe said, without the lines of the test framework.
pub(crate) fn said(output: &str) -> String {
    let own = output.replace("test probe::entry ... ", "");
    let lines = own.lines().filter(|line| !line.is_empty() && !line.starts_with("running "));
    lines.collect::<Vec<_>>().join("\n")
}

pub(crate) fn linux() -> Options<'static> {
    Options { isolation: Isolation::Linux(template()), ..Options::default() }
}

pub(crate) fn exited(code: i32) -> Vec<Event> {
    vec![Event::Started, Event::Exited(code << 8)]
}

/// A cgroup directory of this test, removed on drop.
pub(crate) struct Group(pub(crate) PathBuf);

impl Group {
    pub(crate) fn new(parent: &str) -> Option<Self> {
        let dir = Path::new(parent).join(format!("proffer-launcher-{}", std::process::id()));
        fs::create_dir(&dir).ok().map(|()| Group(dir))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group stays busy for a moment after its last process.
        let deadline = Instant::now() + DEADLINE;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}
