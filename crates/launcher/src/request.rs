//! What to start, and its translation into the memory that the child reads.

use std::ffi::c_char;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::OnceLock;

use crate::arena::Arena;
use crate::container::Container;
use crate::error::{Error, Step};
use crate::seccomp::{self, Profile, Program};
use crate::sys;
use crate::template::Template;
use crate::user_namespace::UserNamespace;

/// Where the sandbox is found inside a container of [`Isolation::Linux`].
pub const SANDBOX_PATH: &str = "/mnt/proffer/sandbox";

/// Where what a task group shares is found.
pub const GROUP_PATH: &str = "/mnt/proffer/group";
/// Where a custom executor finds its socket.
pub const EXECUTOR_PATH: &str = "/mnt/proffer/executor";
/// Shared memory, which a mount may take the place of.
const SHM_PATH: &str = "/dev/shm";
/// Where [`Mount::target`] may lie: what exists in every view, read-only, so that no task can exchange it.
const MOUNT_TARGETS: [&str; 3] = [GROUP_PATH, EXECUTOR_PATH, SHM_PATH];
/// The most mounts of one container.
pub const MOUNTS_MAX: usize = MOUNT_TARGETS.len();

/// The payload's stack until its execve; it calls a handful of system calls.
const PAYLOAD_STACK: usize = 64 * 1024;

/// How a container is separated from its host.
#[derive(Clone, Copy)]
pub enum Isolation<'a> {
    /// Namespaces over the given template, no capabilities. Needs root.
    Linux(&'a Template),
    /// A plain process tree under a subreaper.
    Process,
}

/// The task's own directory, or another that it is given.
#[derive(Clone, Copy)]
pub enum Sandbox<'a> {
    /// A directory of this process's mount namespace. With a user namespace its files appear as those of the namespace's
    /// users; where the file system cannot do that, it is given to the one that its owner is there.
    Dir(BorrowedFd<'a>),
    /// A detached mount, as of [`detached_mount`](crate::detached_mount); [`Isolation::Linux`] only. It is moved: a
    /// second container needs another.
    Mount(BorrowedFd<'a>),
}

/// A directory that is given to a container beside its sandbox; [`Isolation::Linux`] only.
#[derive(Clone, Copy)]
pub struct Mount<'a> {
    /// The directory.
    pub source: Sandbox<'a>,
    /// [`GROUP_PATH`], [`EXECUTOR_PATH`] or `/dev/shm`.
    pub target: &'a str,
    /// Nothing can be written through it. Of a [`Sandbox::Mount`] its maker decides.
    pub read_only: bool,
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// What a child of [`join`](crate::join) does instead of executing a program.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Called with `input` after all of the set-up; what it returns is the exit code. It may use its stack, statics and
    /// system calls, must not panic, and must not allocate: the heap may not be there.
    pub function: fn(&[u8]) -> i32,
    /// Copied for the child.
    pub input: &'a [u8],
}

/// One resource limit. What exceeds this process's own hard limit is refused: nothing can raise it.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// `RLIMIT_*`.
    pub resource: u32,
    /// The soft limit, in the resource's unit.
    pub soft: u64,
    /// The hard limit; `None` leaves it as inherited.
    pub hard: Option<u64>,
}

/// What to start. Descriptors must be 3 or above and stay the caller's.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The command and its arguments. A first word without a slash is looked up in the PATH of `env`.
    pub argv: &'a [String],
    /// The whole environment, `NAME=value` each.
    pub env: &'a [String],
    /// The user to run as; with a user namespace, of that.
    pub uid: u32,
    /// The only group; with a user namespace, of that.
    pub gid: u32,
    /// The working directory inside; empty means the sandbox, or `/` without one.
    pub working_directory: &'a str,
    /// The host name of a Linux container; empty keeps the host's.
    pub hostname: &'a str,
    /// Resource limits. Without one for `RLIMIT_NOFILE` it is 1,024 soft, hard as inherited.
    pub limits: &'a [Limit],
    /// The separation.
    pub isolation: Isolation<'a>,
    /// The sandbox.
    pub sandbox: Option<Sandbox<'a>>,
    /// Further directories, each target once.
    pub mounts: &'a [Mount<'a>],
    /// The user namespace to end up in; [`Isolation::Linux`] only.
    pub user_namespace: Option<&'a UserNamespace>,
    /// Filters of the payload's system calls, at most [`seccomp::PROGRAMS_MAX`]. None at all means the default profile
    /// with [`Isolation::Linux`], and nothing without.
    pub seccomp: &'a [Program],
    /// Shares the IPC namespace and /dev/shm of this running container instead of having its own;
    /// [`Isolation::Linux`] only.
    pub share: Option<&'a Container>,
    /// A cgroup v2 directory for the clone to enter.
    pub cgroup_dir: Option<BorrowedFd<'a>>,
    /// Files of v1 groups by which the child enters them, open for writing: `tasks`, for through `cgroup.procs` it waits
    /// until no process of the machine is being started or ended.
    pub cgroup_procs: &'a [BorrowedFd<'a>],
    /// The payload's stdin.
    pub stdin: BorrowedFd<'a>,
    /// The payload's stdout.
    pub stdout: BorrowedFd<'a>,
    /// The payload's stderr.
    pub stderr: BorrowedFd<'a>,
    /// A new terminal of this size takes the place of all three.
    pub terminal: Option<WindowSize>,
    /// The container waits, complete, for [`Container::release`] before it executes its program.
    pub hold: bool,
    /// The caller has called [`drop_bounding_set`](crate::drop_bounding_set) before, so that the child need not.
    pub bounding_set_dropped: bool,
}

impl<'a> Request<'a> {
    /// A request for `argv` in an empty environment, as user 0, with nothing but what it must have.
    pub fn new(argv: &'a [String], isolation: Isolation<'a>, stdio: [BorrowedFd<'a>; 3]) -> Self {
        Request {
            argv,
            env: &[],
            uid: 0,
            gid: 0,
            working_directory: "",
            hostname: "",
            limits: &[],
            isolation,
            sandbox: None,
            mounts: &[],
            user_namespace: None,
            seccomp: &[],
            share: None,
            cgroup_dir: None,
            cgroup_procs: &[],
            stdin: stdio[0],
            stdout: stdio[1],
            stderr: stdio[2],
            terminal: None,
            hold: false,
            bounding_set_dropped: false,
        }
    }
}

/// How far the payload came; written by it in memory that it shares with init until its execve.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ExecFailure {
    pub(crate) step: u32,
    pub(crate) errno: i32,
}

/// A detached mount and where it goes.
#[derive(Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) fd: i32,
    pub(crate) target: *const c_char,
}

/// Everything the child reads. Its pointers lead into the same arena; it is the child's only heap.
pub(crate) struct Plan {
    pub(crate) linux: bool,
    pub(crate) parent_pid: i32,
    /// Readable once the parent has ended.
    pub(crate) parent: i32,
    /// Whether user and group are to be set: always for root, never else.
    pub(crate) privileged: bool,
    /// Whether to wait for a second byte before the program.
    pub(crate) hold: bool,
    pub(crate) drop_bounding: bool,
    /// The signals that this process ignores, 1 << (number - 1) each.
    pub(crate) ignored: u64,
    /// Whether this process is spared when the host is out of memory, as its containers must not be.
    pub(crate) spared: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) status: i32,
    pub(crate) template: i32,
    /// -1 for none, here and below.
    pub(crate) sandbox: i32,
    pub(crate) user_namespace: i32,
    /// The pidfd of a container that shares with this one.
    pub(crate) share: i32,
    /// The pidfd of the container to enter, instead of becoming one.
    pub(crate) join: i32,
    pub(crate) mounts: *const Placed,
    pub(crate) mount_count: usize,
    pub(crate) stdio: [i32; 3],
    /// Null for none.
    pub(crate) terminal: *const libc::winsize,
    /// Where it writes `0` to enter its groups.
    pub(crate) groups: *const i32,
    pub(crate) group_count: usize,
    /// Descriptors to keep, ascending.
    pub(crate) keep: *const i32,
    pub(crate) keep_count: usize,
    pub(crate) hostname: *const c_char,
    pub(crate) working_directory: *const c_char,
    pub(crate) argv: *const *const c_char,
    pub(crate) envp: *const *const c_char,
    /// The paths to try, in order.
    pub(crate) programs: *const *const c_char,
    pub(crate) limits: *const (u32, libc::rlimit64),
    pub(crate) limit_count: usize,
    pub(crate) filters: *const libc::sock_fprog,
    pub(crate) filter_count: usize,
    pub(crate) call: Option<fn(&[u8]) -> i32>,
    pub(crate) input: *const u8,
    pub(crate) input_length: usize,
    pub(crate) stack_top: *mut u8,
    pub(crate) failure: ExecFailure,
}

/// A plan and the memory it lives in.
pub(crate) struct Prepared {
    /// Held for its mapping.
    _arena: Arena,
    plan: *mut Plan,
}

impl Prepared {
    pub(crate) fn plan(&self) -> *mut Plan {
        self.plan
    }
}

/// What a launch has beside its request.
#[derive(Default)]
pub(crate) struct Extra<'a> {
    pub(crate) status: i32,
    /// A pidfd of this process, for a child that is to end with it.
    pub(crate) parent: Option<i32>,
    /// The detached sandbox mount, or the sandbox directory of a plain process.
    pub(crate) sandbox: Option<i32>,
    /// Detached mounts, in the request's order.
    pub(crate) mounts: Vec<i32>,
    pub(crate) join: Option<i32>,
    pub(crate) call: Option<Call<'a>>,
}

/// Checks the request and copies what the child needs.
pub(crate) fn prepare(request: &Request<'_>, extra: &Extra<'_>) -> Result<Prepared, Error> {
    check(request, extra)?;
    let programs = request.argv.first().map_or_else(Vec::new, |word| programs(word, request.env));
    let limits = limits(request.limits)?;
    let linux = matches!(request.isolation, Isolation::Linux(_));
    let filters = match request.seccomp {
        [] if linux => std::slice::from_ref(default_filter()?),
        filters => filters,
    };
    let template = match request.isolation {
        Isolation::Linux(template) if extra.join.is_none() => template.as_raw_fd(),
        _ => -1,
    };
    let sandbox = extra.sandbox.unwrap_or(-1);
    let user_namespace = request.user_namespace.map_or(-1, |namespace| namespace.fd().as_raw_fd());
    let share = request.share.map_or(-1, |container| container.pidfd().as_raw_fd());
    let join = extra.join.unwrap_or(-1);
    let stdio = [request.stdin.as_raw_fd(), request.stdout.as_raw_fd(), request.stderr.as_raw_fd()];
    let parent = extra.parent.unwrap_or(-1);
    let own = [extra.status, parent, template, sandbox, user_namespace, share, join];
    let keep = kept(own.into_iter().chain(extra.mounts.iter().copied()).chain(stdio));
    if keep.iter().any(|&fd| fd < 3) {
        return Err(invalid("a descriptor below 3"));
    }

    let mut arena = Arena::new(arena_size(request, extra, &programs, limits.len(), filters))
        .map_err(|errno| Error::new(Step::Arena, errno))?;
    let plan = arena.take(size_of::<Plan>()).cast::<Plan>();
    let stack = arena.take(PAYLOAD_STACK);
    let working_directory = match (request.working_directory, request.sandbox) {
        ("", Some(_)) if linux => Some(SANDBOX_PATH),
        // A plain process reaches its sandbox by descriptor.
        ("", Some(_)) => None,
        ("", None) => Some("/"),
        (path, _) => Some(path),
    };
    let mut mounts = Vec::with_capacity(extra.mounts.len());
    for (&fd, mount) in extra.mounts.iter().zip(request.mounts) {
        mounts.push(Placed { fd, target: arena.c_string(mount.target.as_bytes()) });
    }
    let mut fprogs = Vec::with_capacity(filters.len());
    for filter in filters {
        let instructions = arena.copy(filter.instructions()).cast_mut();
        fprogs.push(libc::sock_fprog { len: filter.len() as u16, filter: instructions });
    }
    let terminal = request.terminal.map(|size| libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    });
    let input = extra.call.map_or(&[][..], |call| call.input);
    let groups: Vec<i32> = request.cgroup_procs.iter().map(AsRawFd::as_raw_fd).collect();
    // SAFETY: geteuid cannot fail.
    let privileged = unsafe { libc::geteuid() } == 0;
    let value = Plan {
        linux,
        // SAFETY: getpid cannot fail.
        parent_pid: unsafe { libc::getpid() },
        parent,
        privileged,
        hold: request.hold,
        // Entering a user namespace gives all of them back.
        drop_bounding: privileged && (!request.bounding_set_dropped || user_namespace >= 0),
        ignored: sys::ignored_signals(),
        spared: spared(),
        uid: request.uid,
        gid: request.gid,
        status: extra.status,
        template,
        sandbox,
        user_namespace,
        share,
        join,
        mounts: arena.copy(&mounts),
        mount_count: mounts.len(),
        stdio,
        terminal: terminal.map_or(ptr::null(), |size| arena.copy(&[size])),
        groups: arena.copy(&groups),
        group_count: groups.len(),
        keep: arena.copy(&keep),
        keep_count: keep.len(),
        hostname: optional(&mut arena, Some(request.hostname).filter(|name| !name.is_empty())),
        working_directory: optional(&mut arena, working_directory),
        argv: arena.c_strings(request.argv),
        envp: arena.c_strings(request.env),
        programs: arena.c_strings(&programs),
        limits: arena.copy(&limits),
        limit_count: limits.len(),
        filters: arena.copy(&fprogs),
        filter_count: fprogs.len(),
        call: extra.call.map(|call| call.function),
        input: arena.copy(input),
        input_length: input.len(),
        // SAFETY: one past the stack's end; stacks grow down and the place is aligned to 16.
        stack_top: unsafe { stack.add(PAYLOAD_STACK) },
        failure: ExecFailure { step: 0, errno: 0 },
    };
    // SAFETY: `plan` was taken with this size, aligned to 16, and is not yet read.
    unsafe { ptr::write(plan, value) };
    Ok(Prepared { _arena: arena, plan })
}

fn invalid(what: impl Into<String>) -> Error {
    Error::at(Step::Request, what, libc::EINVAL)
}

fn check(request: &Request<'_>, extra: &Extra<'_>) -> Result<(), Error> {
    if extra.call.is_none() && request.argv.first().is_none_or(String::is_empty) {
        return Err(invalid("argv is empty"));
    }
    let texts = request.argv.iter().chain(request.env).map(String::as_str);
    if texts.chain([request.working_directory, request.hostname]).any(|text| text.contains('\0')) {
        return Err(invalid("a NUL byte in argv, env, working directory or host name"));
    }
    if request.seccomp.len() > seccomp::PROGRAMS_MAX {
        return Err(invalid("too many seccomp filters"));
    }
    if let Some(range) = request.user_namespace.map(UserNamespace::range) {
        for id in [request.uid, request.gid] {
            if id >= range.count {
                return Err(invalid(format!(
                    "id {id} is not among the {} of its user namespace",
                    range.count
                )));
            }
        }
    }
    let plain = matches!(request.isolation, Isolation::Process);
    if plain && (!request.mounts.is_empty() || request.user_namespace.is_some() || request.share.is_some()) {
        return Err(invalid("a plain process has no namespaces"));
    }
    if extra.join.is_some() && (!request.mounts.is_empty() || request.share.is_some()) {
        return Err(invalid("what joins a container takes it as it is"));
    }
    for (index, mount) in request.mounts.iter().enumerate() {
        if !MOUNT_TARGETS.contains(&mount.target)
            || request.mounts[..index].iter().any(|other| other.target == mount.target)
            || (mount.target == SHM_PATH && request.share.is_some())
        {
            return Err(invalid(format!("nothing can be mounted at {:?}, or not twice", mount.target)));
        }
    }
    Ok(())
}

/// The default profile, compiled once.
fn default_filter() -> Result<&'static Program, Error> {
    static DEFAULT: OnceLock<Option<Program>> = OnceLock::new();
    let default = DEFAULT.get_or_init(|| Profile::default().compile().ok());
    default.as_ref().ok_or_else(|| Error::new(Step::Seccomp, libc::E2BIG))
}

/// Asked anew each time, for it may be changed from outside; of a file that stays open.
fn spared() -> bool {
    static SCORE: OnceLock<Option<File>> = OnceLock::new();
    let Some(score) = SCORE.get_or_init(|| File::open(sys::OOM_SCORE_ADJ).ok()) else { return false };
    let mut text = [0u8; 1];
    score.read_at(&mut text, 0).is_ok() && text == *b"-"
}

fn optional(arena: &mut Arena, text: Option<&str>) -> *const c_char {
    text.map_or(ptr::null(), |text| arena.c_string(text.as_bytes()))
}

/// The paths that execvp would try.
fn programs(word: &str, env: &[String]) -> Vec<String> {
    if word.contains('/') {
        return vec![word.to_owned()];
    }
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or("/usr/bin:/bin");
    path.split(':')
        .map(|dir| if dir.is_empty() { word.to_owned() } else { format!("{dir}/{word}") })
        .collect()
}

/// The limits to set; an error that names the one which cannot be.
fn limits(wanted: &[Limit]) -> Result<Vec<(u32, libc::rlimit64)>, Error> {
    let mut limits = Vec::with_capacity(wanted.len() + 1);
    for &Limit { resource, soft, hard } in wanted {
        let allowed = own_limit(resource)?.rlim_max;
        let refused = |which: &str, amount: u64, of: &str, most: u64| {
            let text =
                format!("{}: {which} {} exceeds the {of} {}", name(resource), Unit(amount), Unit(most));
            Err(Error::at(Step::Rlimit, text, libc::EPERM))
        };
        let hard = match hard {
            Some(hard) if hard > allowed => {
                return refused("the hard limit", hard, "machine's hard limit of", allowed);
            }
            Some(hard) if soft > hard => return refused("the soft limit", soft, "hard limit of", hard),
            Some(hard) => hard,
            None if soft > allowed => {
                return refused("the soft limit", soft, "machine's hard limit of", allowed);
            }
            None => allowed,
        };
        limits.push((resource, libc::rlimit64 { rlim_cur: soft, rlim_max: hard }));
    }
    if wanted.iter().all(|limit| limit.resource != libc::RLIMIT_NOFILE) {
        let hard = own_limit(libc::RLIMIT_NOFILE)?.rlim_max;
        limits.push((libc::RLIMIT_NOFILE, libc::rlimit64 { rlim_cur: NOFILE.min(hard), rlim_max: hard }));
    }
    Ok(limits)
}

/// The soft limit of descriptors when none is asked for.
const NOFILE: u64 = 1024;

fn own_limit(resource: u32) -> Result<libc::rlimit64, Error> {
    let mut own = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `own` is written by the call.
    match unsafe { libc::getrlimit64(resource, &mut own) } {
        -1 => Err(Error::at(Step::Rlimit, name(resource), sys::errno())),
        _ => Ok(own),
    }
}

fn name(resource: u32) -> String {
    let name = match resource {
        libc::RLIMIT_AS => "RLIMIT_AS",
        libc::RLIMIT_CORE => "RLIMIT_CORE",
        libc::RLIMIT_CPU => "RLIMIT_CPU",
        libc::RLIMIT_DATA => "RLIMIT_DATA",
        libc::RLIMIT_FSIZE => "RLIMIT_FSIZE",
        libc::RLIMIT_LOCKS => "RLIMIT_LOCKS",
        libc::RLIMIT_MEMLOCK => "RLIMIT_MEMLOCK",
        libc::RLIMIT_MSGQUEUE => "RLIMIT_MSGQUEUE",
        libc::RLIMIT_NICE => "RLIMIT_NICE",
        libc::RLIMIT_NOFILE => "RLIMIT_NOFILE",
        libc::RLIMIT_NPROC => "RLIMIT_NPROC",
        libc::RLIMIT_RSS => "RLIMIT_RSS",
        libc::RLIMIT_RTPRIO => "RLIMIT_RTPRIO",
        libc::RLIMIT_RTTIME => "RLIMIT_RTTIME",
        libc::RLIMIT_SIGPENDING => "RLIMIT_SIGPENDING",
        libc::RLIMIT_STACK => "RLIMIT_STACK",
        other => return format!("limit {other}"),
    };
    name.to_owned()
}

/// A limit's amount as people read it.
struct Unit(u64);

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == libc::RLIM_INFINITY { f.write_str("(unlimited)") } else { self.0.fmt(f) }
    }
}

/// The descriptors to keep through set-up, ascending.
fn kept(all: impl Iterator<Item = i32>) -> Vec<i32> {
    let mut keep = all.filter(|&fd| fd >= 0).collect::<Vec<_>>();
    keep.sort_unstable();
    keep.dedup();
    keep
}

fn arena_size(
    request: &Request<'_>,
    extra: &Extra<'_>,
    programs: &[String],
    limits: usize,
    filters: &[Program],
) -> usize {
    // Each piece is aligned to 16 and each text has a NUL: 32 over its length covers both.
    let texts = request.argv.iter().chain(request.env).chain(programs).map(String::as_str);
    let texts = texts.chain(request.mounts.iter().map(|mount| mount.target));
    let text_bytes: usize = texts.map(|text| text.len() + 32).sum();
    let pointers =
        (request.argv.len() + request.env.len() + programs.len() + 3) * size_of::<usize>() + 3 * 16;
    let filter_bytes: usize = filters
        .iter()
        .map(|filter| filter.len() * size_of::<libc::sock_filter>() + size_of::<libc::sock_fprog>() + 32)
        .sum();
    let mounts = request.mounts.len() * (size_of::<Placed>() + size_of::<i32>());
    let fixed = size_of::<Plan>()
        + PAYLOAD_STACK
        + limits * size_of::<(u32, libc::rlimit64)>()
        + size_of::<libc::winsize>()
        // Of `keep` without the mounts, and the rounding of every array.
        + 9 * size_of::<i32>()
        + request.cgroup_procs.len() * size_of::<i32>()
        + 11 * 16;
    let input = extra.call.map_or(0, |call| call.input.len());
    let paths = request.working_directory.len() + SANDBOX_PATH.len() + request.hostname.len() + 3 * 32;
    text_bytes + pointers + filter_bytes + mounts + fixed + input + paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_without_slash_is_looked_up_in_the_path_of_the_request() {
        let env = ["A=1".to_owned(), "PATH=/x:/y/z::/w".to_owned()];
        assert_eq!(programs("ls", &env), ["/x/ls", "/y/z/ls", "ls", "/w/ls"]);
        assert_eq!(programs("./ls", &env), ["./ls"]);
        assert_eq!(programs("ls", &[]), ["/usr/bin/ls", "/bin/ls"]);
    }

    #[test]
    fn limits_beyond_the_machines_are_refused_by_name() {
        let own = own_limit(libc::RLIMIT_NOFILE).expect("own limit").rlim_max;
        let limit = |soft, hard| limits(&[Limit { resource: libc::RLIMIT_NOFILE, soft, hard }]);
        let set = limit(10, Some(20)).expect("within");
        assert_eq!((set[0].1.rlim_cur, set[0].1.rlim_max), (10, 20));
        assert_eq!(limit(10, None).expect("within")[0].1.rlim_max, own);
        let refused = |soft, hard| limit(soft, hard).expect_err("beyond").to_string();
        let text = refused(30, Some(20));
        assert!(text.contains("RLIMIT_NOFILE: the soft limit 30 exceeds the hard limit of 20"), "{text}");
        if own < libc::RLIM_INFINITY {
            let of = format!("exceeds the machine's hard limit of {own}");
            for (text, what) in [
                (refused(own + 1, None), format!("the soft limit {} {of}", own + 1)),
                (refused(1, Some(own + 1)), format!("the hard limit {} {of}", own + 1)),
                (refused(1, Some(u64::MAX)), format!("the hard limit (unlimited) {of}")),
            ] {
                assert!(text.contains(&what), "{text}");
            }
        }
        let unknown =
            limits(&[Limit { resource: 99, soft: 1, hard: None }]).expect_err("unknown").to_string();
        assert!(unknown.contains("limit 99"), "{unknown}");
        assert_eq!(limits(&[]).expect("the default")[0].1.rlim_cur, NOFILE.min(own));
    }
}
