//! What the default filter lets through, call by call, from inside.

use std::ffi::{c_char, c_long};
use std::ptr;

use proffer_launcher::UserNamespace;
use proffer_launcher::seccomp::Profile;

use crate::harness::*;

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// It was made.
    Made,
    /// It failed with this error number.
    Failed(i32),
    /// It ended the process with this signal.
    Killed(i32),
}

use Came::{Failed, Killed, Made};

/// One row of the table.
struct Row {
    name: &'static str,
    call: fn() -> c_long,
    /// With the default filter.
    wanted: Came,
    /// Without any, where that is sure: shows that the filter is what makes the difference.
    bare: Option<Came>,
}

/// A row per call: its name in the table, the arguments, what it comes to, and to what without a filter.
macro_rules! rows {
    ($($name:literal $number:expr $(, $argument:expr)* => $wanted:expr $(, bare $bare:expr)?;)*) => {
        &[$(Row {
            name: $name,
            // SAFETY: each call's pointers are null or to memory that outlives it; it is made in a child that
            // does nothing else.
            call: || unsafe { libc::syscall($number as c_long $(, $argument)*) },
            wanted: $wanted,
            bare: rows!(@bare $($bare)?),
        },)*]
    };
    (@bare) => { None };
    (@bare $bare:expr) => { Some($bare) };
}

const EPERM: Came = Failed(libc::EPERM);
const NO_FAMILY: Came = Failed(libc::EAFNOSUPPORT);
const NULL: *const c_char = ptr::null();
const SLASH: *const c_char = c"/".as_ptr();

/// A fork by clone(2): the child ends at once.
fn cloned(flags: i32) -> c_long {
    // SAFETY: without a stack of its own the child is a fork.
    unsafe {
        let pid = libc::syscall(libc::SYS_clone, (flags | libc::SIGCHLD) as c_long, 0, 0, 0, 0);
        if pid == 0 {
            libc::_exit(0);
        }
        pid
    }
}

#[rustfmt::skip]
const TABLE: &[Row] = rows! {
    // Keys, programs in the kernel, tracing: reach beyond the container.
    "add_key" libc::SYS_add_key, NULL, NULL, NULL, 0, 0 => EPERM, bare Failed(libc::EFAULT);
    "request_key" libc::SYS_request_key, NULL, NULL, NULL, 0 => EPERM, bare Failed(libc::EFAULT);
    "keyctl session" libc::SYS_keyctl, 0, -3, 0 => EPERM, bare Made;
    "bpf" libc::SYS_bpf, 0, NULL, 0 => EPERM;
    "perf_event_open" libc::SYS_perf_event_open, NULL, 0, 0, 0, 0 => EPERM, bare Failed(libc::EFAULT);
    "ptrace traceme" libc::SYS_ptrace, 0, 0, NULL, NULL => EPERM, bare Made;
    "process_vm_readv" libc::SYS_process_vm_readv, libc::getpid(), NULL, 0, NULL, 0, 0 => EPERM, bare Failed(libc::EINVAL);
    "process_vm_writev" libc::SYS_process_vm_writev, libc::getpid(), NULL, 0, NULL, 0, 0 => EPERM, bare Failed(libc::EINVAL);
    "kcmp" libc::SYS_kcmp, libc::getpid(), libc::getpid(), 0, 0, 0 => EPERM, bare Made;
    "pidfd_getfd" libc::SYS_pidfd_getfd, -1, 0, 0 => EPERM, bare Failed(libc::EBADF);
    "userfaultfd" libc::SYS_userfaultfd, 0 => EPERM;
    "io_uring_setup" libc::SYS_io_uring_setup, 0, NULL => EPERM;
    "io_uring_enter" libc::SYS_io_uring_enter, -1, 0, 0, 0, NULL, 0 => EPERM, bare Failed(libc::EBADF);
    "io_uring_register" libc::SYS_io_uring_register, -1, 0, NULL, 0 => EPERM;
    "syslog" libc::SYS_syslog, 3, NULL, 0 => EPERM;
    "lookup_dcookie" libc::SYS_lookup_dcookie, 0, NULL, 0 => EPERM;
    // Namespaces.
    "unshare user" libc::SYS_unshare, libc::CLONE_NEWUSER => EPERM, bare Made;
    "unshare mount" libc::SYS_unshare, libc::CLONE_NEWNS => EPERM;
    "unshare net" libc::SYS_unshare, libc::CLONE_NEWNET => EPERM;
    "unshare time" libc::SYS_unshare, 0x80 => EPERM;
    "unshare files" libc::SYS_unshare, libc::CLONE_FILES => Made, bare Made;
    "setns" libc::SYS_setns, -1, 0 => EPERM, bare Failed(libc::EBADF);
    "clone3" libc::SYS_clone3, NULL, 0 => Failed(libc::ENOSYS), bare Failed(libc::EINVAL);
    // The mount interface, old and new.
    "mount" libc::SYS_mount, NULL, SLASH, NULL, 0, NULL => EPERM;
    "umount2" libc::SYS_umount2, SLASH, 0 => EPERM;
    "pivot_root" libc::SYS_pivot_root, SLASH, SLASH => EPERM;
    "chroot" libc::SYS_chroot, SLASH => EPERM;
    "open_tree" libc::SYS_open_tree, -1, SLASH, 0 => EPERM, bare Made;
    "move_mount" libc::SYS_move_mount, -1, NULL, -1, NULL, 0 => EPERM;
    "fsopen" libc::SYS_fsopen, NULL, 0 => EPERM;
    "fsconfig" libc::SYS_fsconfig, -1, 0, NULL, NULL, 0 => EPERM;
    "fsmount" libc::SYS_fsmount, -1, 0, 0 => EPERM;
    "fspick" libc::SYS_fspick, -1, NULL, 0 => EPERM;
    "mount_setattr" libc::SYS_mount_setattr, -1, NULL, 0, NULL, 0 => EPERM;
    "open_by_handle_at" libc::SYS_open_by_handle_at, -1, NULL, 0 => EPERM;
    "name_to_handle_at" libc::SYS_name_to_handle_at, -1, NULL, NULL, NULL, 0 => Failed(libc::EFAULT);
    "quotactl_fd" libc::SYS_quotactl_fd, -1, 0, 0, NULL => EPERM;
    "fanotify_mark" libc::SYS_fanotify_mark, -1, 0, 0, 0, NULL => EPERM;
    // The machine.
    "reboot" libc::SYS_reboot, 0, 0, 0, NULL => EPERM;
    "kexec_load" libc::SYS_kexec_load, 0, 0, NULL, 0 => EPERM;
    "kexec_file_load" libc::SYS_kexec_file_load, -1, -1, 0, NULL, 0 => EPERM;
    "init_module" libc::SYS_init_module, NULL, 0, NULL => EPERM;
    "finit_module" libc::SYS_finit_module, -1, NULL, 0 => EPERM;
    "delete_module" libc::SYS_delete_module, NULL, 0 => EPERM;
    "swapon" libc::SYS_swapon, NULL, 0 => EPERM;
    "swapoff" libc::SYS_swapoff, NULL => EPERM;
    "acct" libc::SYS_acct, NULL => EPERM;
    "sethostname" libc::SYS_sethostname, SLASH, 1 => EPERM;
    "setdomainname" libc::SYS_setdomainname, SLASH, 1 => EPERM;
    "settimeofday" libc::SYS_settimeofday, NULL, NULL => EPERM;
    "clock_settime" libc::SYS_clock_settime, 0, NULL => EPERM, bare Failed(libc::EFAULT);
    "clock_adjtime" libc::SYS_clock_adjtime, 0, NULL => EPERM, bare Failed(libc::EFAULT);
    "vhangup" libc::SYS_vhangup => EPERM;
    "move_pages" libc::SYS_move_pages, 0, 0, NULL, NULL, NULL, 0 => EPERM;
    "migrate_pages" libc::SYS_migrate_pages, 0, 0, NULL, NULL => EPERM;
    // Odd ones.
    "personality no random" libc::SYS_personality, 0x4_0000 => EPERM, bare Made;
    "personality read" libc::SYS_personality, 0xffff_ffffu64 => Made, bare Made;
    "a call of tomorrow" 470 => Failed(libc::ENOSYS);
    "a call of never" 5000 => Failed(libc::ENOSYS);
    // Sockets.
    "socket unix" libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0 => Made, bare Made;
    "socket ip" libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0 => Made, bare Made;
    "socket raw ip" libc::SYS_socket, libc::AF_INET, libc::SOCK_RAW, 1 => EPERM, bare EPERM;
    "socket route" libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0 => Made, bare Made;
    "socket netfilter" libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 12 => NO_FAMILY;
    "socket audit" libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 9 => NO_FAMILY;
    "socket uevent" libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 15 => NO_FAMILY, bare Made;
    "socket packet" libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0 => NO_FAMILY;
    "socket vsock" libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0 => NO_FAMILY;
    "socket vsock, disguised" libc::SYS_socket, libc::AF_VSOCK as u64 | 1 << 32, libc::SOCK_STREAM, 0 => NO_FAMILY;
    "socket alg" libc::SYS_socket, libc::AF_ALG, libc::SOCK_SEQPACKET, 0 => NO_FAMILY;
    "socket bluetooth" libc::SYS_socket, libc::AF_BLUETOOTH, libc::SOCK_RAW, 0 => NO_FAMILY;
    "socket xdp" libc::SYS_socket, 44, libc::SOCK_RAW, 0 => NO_FAMILY;
    "socket key" libc::SYS_socket, libc::AF_KEY, libc::SOCK_RAW, 2 => NO_FAMILY;
    "socketpair tipc" libc::SYS_socketpair, libc::AF_TIPC, libc::SOCK_STREAM, 0, NULL => NO_FAMILY;
    "socketpair unix" libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, NULL => Failed(libc::EFAULT);
    // What every program needs.
    "read" libc::SYS_read, -1, NULL, 0 => Failed(libc::EBADF);
    "write" libc::SYS_write, -1, NULL, 0 => Failed(libc::EBADF);
    "openat" libc::SYS_openat, libc::AT_FDCWD, SLASH, libc::O_RDONLY => Made;
    "openat2" libc::SYS_openat2, -1, NULL, NULL, 0 => Failed(libc::EINVAL);
    "execve" libc::SYS_execve, c"/nowhere".as_ptr(), NULL, NULL => Failed(libc::ENOENT);
    "prctl" libc::SYS_prctl, libc::PR_GET_DUMPABLE, 0, 0, 0, 0 => Made;
    "seccomp" libc::SYS_seccomp, 99, 0, NULL => Failed(libc::EINVAL);
    "futex wake" libc::SYS_futex, 1usize, 1, 0, NULL, NULL, 0 => Failed(libc::EINVAL);
    "memfd_create" libc::SYS_memfd_create, SLASH, 0 => Made;
    "pidfd_open" libc::SYS_pidfd_open, libc::getpid(), 0 => Made;
    "pidfd_send_signal" libc::SYS_pidfd_send_signal, -1, 0, NULL, 0 => Failed(libc::EBADF);
    "close_range" libc::SYS_close_range, 100, 200, 0 => Made;
    "epoll_create1" libc::SYS_epoll_create1, 0 => Made;
    "eventfd2" libc::SYS_eventfd2, 0, 0 => Made;
    "timerfd_create" libc::SYS_timerfd_create, 0, 0 => Made;
    "inotify_init1" libc::SYS_inotify_init1, 0 => Made;
    "mlock" libc::SYS_mlock, NULL, 0 => Made;
    "mbind" libc::SYS_mbind, NULL, 0, 99, NULL, 0, 0 => Failed(libc::EINVAL);
    "sched_yield" libc::SYS_sched_yield => Made;
    "setpriority" libc::SYS_setpriority, 0, 0, 5 => Made;
    "kill nobody" libc::SYS_kill, libc::getpid(), 0 => Made;
    "adjtimex" libc::SYS_adjtimex, NULL => Failed(libc::EFAULT);
    "sync_file_range" libc::SYS_sync_file_range, -1, 0, 0, 0 => Failed(libc::EBADF);
};

/// Rows that are more than one call.
const FORKS: &[Row] = &[
    Row { name: "clone", call: || cloned(0), wanted: Made, bare: Some(Made) },
    Row { name: "clone user", call: || cloned(libc::CLONE_NEWUSER), wanted: EPERM, bare: Some(Made) },
    Row { name: "clone mount", call: || cloned(libc::CLONE_NEWNS), wanted: EPERM, bare: None },
    Row { name: "clone pid", call: || cloned(libc::CLONE_NEWPID), wanted: EPERM, bare: None },
    Row { name: "clone net", call: || cloned(libc::CLONE_NEWNET), wanted: EPERM, bare: None },
    Row { name: "clone cgroup", call: || cloned(libc::CLONE_NEWCGROUP), wanted: EPERM, bare: None },
];

/// Calls by the numbers of other tables.
#[cfg(target_arch = "x86_64")]
const FOREIGN: &[Row] = &[
    Row { name: "x32 getpid", call: x32_getpid, wanted: Killed(libc::SIGSYS), bare: None },
    Row { name: "32-bit getpid", call: i386_getpid, wanted: Killed(libc::SIGSYS), bare: None },
];
#[cfg(not(target_arch = "x86_64"))]
const FOREIGN: &[Row] = &[];

#[cfg(target_arch = "x86_64")]
fn x32_getpid() -> c_long {
    // SAFETY: no arguments.
    unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) }
}

#[cfg(target_arch = "x86_64")]
fn i386_getpid() -> c_long {
    let result: i32;
    // SAFETY: getpid by the 32-bit table; a kernel without one answers with a signal.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    result.into()
}

fn rows() -> impl Iterator<Item = &'static Row> {
    TABLE.iter().chain(FORKS).chain(FOREIGN)
}

/// Makes every call of the table in a child of its own and prints what it came to.
pub(crate) fn probe() {
    for row in rows() {
        println!("{}: {:?}", row.name, alone(row.call));
    }
}

fn alone(call: fn() -> c_long) -> Came {
    // SAFETY: this process has one thread that matters, and the child makes one call and ends.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::alarm(5);
            let result = call();
            let errno = if result == -1 { *libc::__errno_location() } else { 0 };
            libc::_exit(errno);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        match (status & 0x7f, status >> 8) {
            (0, 0) => Made,
            (0, errno) => Failed(errno),
            (signal, _) => Killed(signal),
        }
    }
}

fn lines(came: impl Fn(&Row) -> Option<Came>) -> Vec<(String, Option<Came>)> {
    rows().map(|row| (row.name.to_owned(), came(row))).collect()
}

/// Compares what a probe said with the table.
fn compare(who: &str, output: &str, wanted: &[(String, Option<Came>)]) {
    assert_eq!(output.lines().count(), wanted.len(), "{who}: {output}");
    let mut wrong = Vec::new();
    for (line, (name, came)) in output.lines().zip(wanted) {
        let said = line.strip_prefix(&format!("{name}: ")).unwrap_or(line);
        if came.is_some_and(|came| said != format!("{came:?}")) {
            wrong.push(format!("{name}: {said} instead of {came:?}"));
        }
    }
    assert!(wrong.is_empty(), "{who}:\n{}", wrong.join("\n"));
}

#[test]
fn the_default_filter_is_as_its_table_says() {
    if !root() {
        return;
    }
    assert!(rows().count() >= 60, "{} rows", rows().count());
    let probes = Probes::new("syscalls");
    let (filtered, bare) = (lines(|row| Some(row.wanted)), lines(|row| row.bare));
    let namespace = user_namespace();
    let users: [(u32, Option<&UserNamespace>); 3] = [(NOBODY, None), (0, None), (0, namespace.as_ref())];
    for (uid, user_namespace) in users {
        let who = format!("user {uid}, of the host's: {}", user_namespace.is_none());
        let options = Options { uid, user_namespace, ..linux() };
        compare(&who, &probes.run("syscalls", &options).output, &filtered);
    }
    // The table can fail: without the filter it does.
    let options = Options { seccomp: &no_filter(), ..linux() };
    compare("no filter", &probes.run("syscalls", &options).output, &bare);
}

#[test]
fn a_second_filter_only_tightens() {
    if !root() {
        return;
    }
    let profile = |json: &str| Profile::parse(json).expect("a profile").compile().expect("compiled");
    let own = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],
        "action":"SCMP_ACT_ERRNO","errnoRet":13},{"names":["unshare"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let script =
        "mkdir /tmp/x 2>&1; unshare -U true 2>&1; grep Seccomp_filters /proc/self/status | tr '\\t' ' '";
    let default = Profile::default().compile().expect("compiled");
    let ran = run(&["sh", "-c", script], &Options { seccomp: &[default, own.clone()], ..linux() });
    assert!(ran.output.contains("Permission denied"), "{}", ran.output);
    assert!(ran.output.contains("Operation not permitted"), "{}", ran.output);
    // In place of the default it is all there is.
    let ran = run(&["sh", "-c", script], &Options { seccomp: &[own], ..linux() });
    assert!(ran.output.contains("Permission denied"), "{}", ran.output);
    assert!(!ran.output.contains("Operation not permitted"), "{}", ran.output);
    // One that forbids the program itself, and one that is none.
    let none = profile(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"execve","action":"SCMP_ACT_ERRNO"}]}"#,
    );
    use proffer_launcher::{Event, Step};
    let failed = run(&["true"], &Options { seccomp: &[none], ..linux() }).events;
    assert_eq!(failed, [Event::ExecFailed { step: Step::Execve, errno: libc::EPERM }]);
    let garbage = proffer_launcher::seccomp::Program::from_bytes(&[0xff; 16]).expect("the length is right");
    let failed = run(&["true"], &Options { seccomp: &[garbage], ..linux() }).events;
    assert_eq!(failed, [Event::SetupFailed { step: Step::Seccomp, errno: libc::EINVAL }]);
}
