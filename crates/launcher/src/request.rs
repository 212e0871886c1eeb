//! What to start, and its translation into the memory that the child reads.

use std::ffi::c_char;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use crate::arena::Arena;
use crate::error::{Error, Step};
use crate::sys;
use crate::template::Template;

/// Where the sandbox is found inside a container of [`Isolation::Linux`].
pub const SANDBOX_PATH: &str = "/mnt/proffer/sandbox";

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

/// The task's own directory.
#[derive(Clone, Copy)]
pub enum Sandbox<'a> {
    /// A directory of this process's mount namespace.
    Dir(BorrowedFd<'a>),
    /// A detached mount; [`Isolation::Linux`] only.
    Mount(BorrowedFd<'a>),
}

/// One resource limit; the hard limit is only ever lowered.
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
pub struct Request<'a> {
    /// The command and its arguments. A first word without a slash is looked up in the PATH of `env`.
    pub argv: &'a [String],
    /// The whole environment, `NAME=value` each.
    pub env: &'a [String],
    /// The user to run as.
    pub uid: u32,
    /// The only group.
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
    /// A cgroup v2 directory for the clone to enter.
    pub cgroup_dir: Option<BorrowedFd<'a>>,
    /// `cgroup.procs` files of v1 hierarchies, open for writing.
    pub cgroup_procs: &'a [BorrowedFd<'a>],
    /// The payload's stdin.
    pub stdin: BorrowedFd<'a>,
    /// The payload's stdout.
    pub stdout: BorrowedFd<'a>,
    /// The payload's stderr.
    pub stderr: BorrowedFd<'a>,
    /// The caller has called [`drop_bounding_set`](crate::drop_bounding_set) before, so that the child need not.
    pub bounding_set_dropped: bool,
}

/// How far the payload came; written by it in memory that it shares with init until its execve.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ExecFailure {
    pub(crate) step: u32,
    pub(crate) errno: i32,
}

/// Everything the child reads. Its pointers lead into the same arena; it is the child's only heap.
pub(crate) struct Plan {
    pub(crate) linux: bool,
    pub(crate) parent_pid: i32,
    /// Whether user and group are to be set: always for root, never else.
    pub(crate) privileged: bool,
    pub(crate) drop_bounding: bool,
    /// Whether this process is spared when the host is out of memory, as its containers must not be.
    pub(crate) spared: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) status: i32,
    pub(crate) template: i32,
    pub(crate) sandbox: i32,
    pub(crate) stdio: [i32; 3],
    /// Descriptors to keep, ascending, the first `keep_count` of them.
    pub(crate) keep: [i32; 6],
    pub(crate) keep_count: usize,
    pub(crate) hostname: *const c_char,
    pub(crate) working_directory: *const c_char,
    pub(crate) argv: *const *const c_char,
    pub(crate) envp: *const *const c_char,
    /// The paths to try, in order.
    pub(crate) programs: *const *const c_char,
    pub(crate) limits: *const (u32, libc::rlimit64),
    pub(crate) limit_count: usize,
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

/// Descriptors of the launch that are not in the request.
pub(crate) struct Descriptors {
    pub(crate) status: i32,
    /// The detached sandbox mount, or the sandbox directory of a plain process; -1 for none.
    pub(crate) sandbox: i32,
}

/// Checks the request and copies what the child needs.
pub(crate) fn prepare(request: &Request<'_>, descriptors: &Descriptors) -> Result<Prepared, Error> {
    let invalid = |what: &str| Error::at(Step::Request, what, libc::EINVAL);
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(invalid("argv is empty"));
    }
    let texts = request.argv.iter().chain(request.env).map(String::as_str);
    if texts.chain([request.working_directory, request.hostname]).any(|text| text.contains('\0')) {
        return Err(invalid("a NUL byte in argv, env, working directory or host name"));
    }
    let programs = programs(&request.argv[0], request.env);
    let limits = limits(request.limits)?;
    let mut arena = Arena::new(arena_size(request, &programs, limits.len()))
        .map_err(|errno| Error::new(Step::Arena, errno))?;

    let plan = arena.take(size_of::<Plan>()).cast::<Plan>();
    let stack = arena.take(PAYLOAD_STACK);
    let limit_array = arena.take(limits.len() * size_of::<(u32, libc::rlimit64)>());
    // SAFETY: the array was taken with this length, aligned to 16.
    unsafe { ptr::copy_nonoverlapping(limits.as_ptr(), limit_array.cast(), limits.len()) };

    let (linux, template) = match request.isolation {
        Isolation::Linux(template) => (true, template.as_raw_fd()),
        Isolation::Process => (false, -1),
    };
    let working_directory = match (request.working_directory, request.sandbox) {
        ("", Some(_)) if linux => Some(SANDBOX_PATH),
        // A plain process reaches its sandbox by descriptor.
        ("", Some(_)) => None,
        ("", None) => Some("/"),
        (path, _) => Some(path),
    };
    let stdio = [request.stdin.as_raw_fd(), request.stdout.as_raw_fd(), request.stderr.as_raw_fd()];
    let (keep, keep_count) = kept([descriptors.status, template, descriptors.sandbox], stdio);
    if keep[..keep_count].iter().any(|&fd| fd < 3) {
        return Err(invalid("a descriptor below 3"));
    }
    // SAFETY: geteuid cannot fail.
    let privileged = unsafe { libc::geteuid() } == 0;
    let value = Plan {
        linux,
        // SAFETY: getpid cannot fail.
        parent_pid: unsafe { libc::getpid() },
        privileged,
        drop_bounding: privileged && !request.bounding_set_dropped,
        spared: spared(),
        uid: request.uid,
        gid: request.gid,
        status: descriptors.status,
        template,
        sandbox: descriptors.sandbox,
        stdio,
        keep,
        keep_count,
        hostname: optional(&mut arena, Some(request.hostname).filter(|name| !name.is_empty())),
        working_directory: optional(&mut arena, working_directory),
        argv: arena.c_strings(request.argv),
        envp: arena.c_strings(request.env),
        programs: arena.c_strings(&programs),
        limits: limit_array.cast(),
        limit_count: limits.len(),
        // SAFETY: one past the stack's end; stacks grow down and the place is aligned to 16.
        stack_top: unsafe { stack.add(PAYLOAD_STACK) },
        failure: ExecFailure { step: 0, errno: 0 },
    };
    // SAFETY: `plan` was taken with this size, aligned to 16, and is not yet read.
    unsafe { ptr::write(plan, value) };
    Ok(Prepared { _arena: arena, plan })
}

fn spared() -> bool {
    let score = std::fs::read_to_string(sys::OOM_SCORE_ADJ).unwrap_or_default();
    score.trim().parse::<i32>().is_ok_and(|score| score < 0)
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

/// Cuts each limit to what this process may pass on.
fn limits(wanted: &[Limit]) -> Result<Vec<(u32, libc::rlimit64)>, Error> {
    let nofile = Limit { resource: libc::RLIMIT_NOFILE, soft: 1024, hard: None };
    let missing = wanted.iter().all(|limit| limit.resource != libc::RLIMIT_NOFILE);
    let mut limits = Vec::with_capacity(wanted.len() + 1);
    for limit in wanted.iter().chain(missing.then_some(&nofile)) {
        let mut own = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `own` is written by the call.
        if unsafe { libc::getrlimit64(limit.resource, &mut own) } == -1 {
            return Err(Error::at(Step::Rlimit, limit.resource.to_string(), crate::sys::errno()));
        }
        let hard = limit.hard.unwrap_or(own.rlim_max).min(own.rlim_max);
        let soft = limit.soft.min(hard);
        limits.push((limit.resource, libc::rlimit64 { rlim_cur: soft, rlim_max: hard }));
    }
    Ok(limits)
}

/// The descriptors to keep through set-up, ascending.
fn kept(own: [i32; 3], stdio: [i32; 3]) -> ([i32; 6], usize) {
    let mut keep = own.iter().chain(&stdio).copied().filter(|&fd| fd >= 0).collect::<Vec<_>>();
    keep.sort_unstable();
    keep.dedup();
    let mut fixed = [0; 6];
    fixed[..keep.len()].copy_from_slice(&keep);
    (fixed, keep.len())
}

fn arena_size(request: &Request<'_>, programs: &[String], limits: usize) -> usize {
    // Each piece is aligned to 16 and each text has a NUL: 32 over its length covers both.
    let texts = request.argv.iter().chain(request.env).chain(programs);
    let text_bytes: usize = texts.map(|text| text.len() + 32).sum();
    let pointers =
        (request.argv.len() + request.env.len() + programs.len() + 3) * size_of::<usize>() + 3 * 16;
    let fixed = size_of::<Plan>() + PAYLOAD_STACK + limits * size_of::<(u32, libc::rlimit64)>() + 4 * 16;
    let paths = request.working_directory.len() + SANDBOX_PATH.len() + request.hostname.len() + 3 * 32;
    text_bytes + pointers + fixed + paths
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
    fn hard_limits_are_only_lowered() {
        let mut own = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `own` is written by the call.
        unsafe { libc::getrlimit64(libc::RLIMIT_NOFILE, &mut own) };
        let wanted = Limit { resource: libc::RLIMIT_NOFILE, soft: u64::MAX, hard: Some(u64::MAX) };
        let cut = limits(&[wanted]).expect("a known resource");
        assert_eq!((cut[0].1.rlim_cur, cut[0].1.rlim_max), (own.rlim_max, own.rlim_max));
        let default = limits(&[]).expect("a known resource");
        assert_eq!(default[0].1.rlim_cur, 1024.min(own.rlim_max));
    }
}
