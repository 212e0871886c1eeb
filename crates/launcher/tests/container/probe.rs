//! What runs inside when a test of this program runs this program in a container.
//!
//! A probe tries, and says on stdout what worked. Attempts that change the process they are made in are made in a child.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::ptr;

use crate::harness::{self, Options};

/// Not a test of its own: with `PROFFER_PROBE` in its environment this process is a probe, and ends as one.
#[test]
fn entry() {
    let Ok(text) = std::env::var("PROFFER_PROBE") else { return };
    let (name, argument) = text.split_once(' ').unwrap_or((&text, ""));
    match name {
        "syscalls" => crate::syscalls::probe(),
        "escape" => escape(Path::new(argument)),
        "walk" => walk(),
        "trace" => trace(),
        "hold" => hold(),
        "takes" => takes(argument),
        "supervise" => supervise(argument == "linux"),
        "swap" => swap(Path::new(argument)),
        "idle" => {}
        "whoami" => whoami(),
        "own-program" => own_program(),
        other => panic!("no probe {other}"),
    }
    std::process::exit(0);
}

/// Calls `attempt` in a child and returns whether it said that it worked. One that hangs or dies did not.
fn alone(attempt: impl FnOnce() -> bool) -> bool {
    // SAFETY: this process has one thread that matters, and the child ends without returning.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            libc::alarm(10);
            let worked = attempt();
            libc::_exit(if worked { 77 } else { 0 });
        }
        let mut status = 0;
        libc::waitpid(pid, &mut status, 0);
        status >> 8 == 77
    }
}

/// Whether a raw call succeeded.
macro_rules! made {
    ($number:expr $(, $argument:expr)*) => {
        // SAFETY: pointers are null or to memory that outlives the call.
        unsafe { libc::syscall($number $(, $argument)*) >= 0 }
    };
}

const NULL: *const libc::c_char = ptr::null();

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

fn writable(path: impl AsRef<Path>) -> bool {
    fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).is_ok()
}

/// Changes the file behind `path` in any way that there is.
fn changes(path: &Path) -> bool {
    let name = c(path);
    let other = c(&path.with_extension("other"));
    writable(path)
        || fs::remove_file(path).is_ok()
        || fs::rename(path, path.with_extension("other")).is_ok()
        || made!(libc::SYS_truncate, name.as_ptr(), 0)
        || made!(libc::SYS_linkat, libc::AT_FDCWD, name.as_ptr(), libc::AT_FDCWD, other.as_ptr(), 0)
        || made!(libc::SYS_fchmodat, libc::AT_FDCWD, name.as_ptr(), 0o777)
        || made!(libc::SYS_fchownat, libc::AT_FDCWD, name.as_ptr(), 1, 1, 0)
        || made!(libc::SYS_setxattr, name.as_ptr(), c"user.proffer".as_ptr(), c"x".as_ptr(), 1, 0)
        || fs::File::create(path.with_extension("other")).is_ok()
}

/// The canary is readable for everyone and writable for its owner, root. Whoever changes it has got out.
fn escape(canary: &Path) {
    type Attempt = fn(&Path) -> bool;
    let attempts: [(&str, Attempt); 22] = [
        ("its own path", changes),
        ("another name of the root", by_other_roots),
        ("a change of the root", by_chroot),
        ("the host's disk", by_device),
        ("a mount", |canary| by_mount(canary, false)),
        ("a mount in namespaces of its own", |canary| by_mount(canary, true)),
        ("a new mount, CVE-2022-0185", by_new_mount),
        ("a file handle", by_handle),
        ("the namespaces of init", by_setns),
        ("the release agent of a cgroup, CVE-2022-0492", |_| by_cgroup()),
        ("a kernel setting", |_| by_setting()),
        ("the device masks, CVE-2025-31133", |_| by_replacing_devices()),
        ("another process", |_| by_process()),
        ("a pipe's page, CVE-2022-0847", by_pipe),
        ("a private mapping, CVE-2016-5195", by_mapping),
        ("a program with the set-user-id bit", |_| by_set_user_id()),
        ("the process's own files, CVE-2025-52881", |_| by_own_proc()),
        ("the network's settings", |_| by_netlink()),
        ("an inherited descriptor, CVE-2024-21626", |_| by_descriptor()),
        ("the scheduler", |_| by_priority()),
        ("keys", |_| by_keys()),
        ("shared memory of the host", |_| by_shared_memory()),
    ];
    for (name, attempt) in attempts {
        if alone(|| attempt(canary)) {
            println!("OUT by {name}");
        }
    }
    println!("tried {}", attempts.len());
}

fn by_other_roots(canary: &Path) -> bool {
    let below = canary.strip_prefix("/").expect("an absolute path");
    let up = "../".repeat(30);
    let mut roots =
        ["/proc/self/root", "/proc/self/cwd", "/proc/thread-self/root", "/proc/1/root", "/proc/1/cwd"]
            .map(String::from)
            .to_vec();
    roots.push(up.clone());
    for pid in 1..2000 {
        roots.push(format!("/proc/{pid}/root"));
        roots.push(format!("/proc/{pid}/cwd/{up}"));
    }
    for fd in 0..32 {
        roots.push(format!("/proc/self/fd/{fd}/{up}"));
        roots.push(format!("/proc/1/fd/{fd}/{up}"));
    }
    roots.iter().any(|root| changes(&Path::new(root).join(below)))
}

fn by_chroot(canary: &Path) -> bool {
    let _ = fs::create_dir("/tmp/jail");
    let root = fs::File::open("/").expect("the root");
    if !made!(libc::SYS_chroot, c"/tmp/jail".as_ptr()) {
        return made!(libc::SYS_pivot_root, c"/tmp".as_ptr(), c"/tmp/jail".as_ptr());
    }
    let _ = made!(libc::SYS_fchdir, root.as_raw_fd());
    for _ in 0..30 {
        let _ = std::env::set_current_dir("..");
    }
    changes(canary.strip_prefix("/").expect("an absolute path"))
}

fn by_device(_: &Path) -> bool {
    let mut devices =
        vec![(1, 1), (1, 2), (1, 4), (1, 11), (8, 0), (10, 234), (254, 0), (259, 0), (252, 0), (5, 1)];
    for line in fs::read_to_string("/proc/partitions").unwrap_or_default().lines().skip(2) {
        let mut words = line.split_whitespace().map_while(|word| word.parse().ok());
        devices.extend(words.next().zip(words.next()));
    }
    for (index, (major, minor)) in devices.into_iter().enumerate() {
        for kind in [libc::S_IFBLK, libc::S_IFCHR] {
            let path = PathBuf::from(format!("/tmp/device-{index}-{kind}"));
            // SAFETY: a C string.
            let node = unsafe { libc::mknod(c(&path).as_ptr(), kind | 0o666, libc::makedev(major, minor)) };
            if node == 0 && fs::File::open(&path).is_ok() {
                return true;
            }
        }
    }
    ["/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/port", "/dev/console", "/dev/sda", "/dev/vda", "/proc/kcore"]
        .iter()
        .any(|path| fs::read(path).is_ok_and(|bytes| !bytes.is_empty()))
}

fn by_mount(canary: &Path, own: bool) -> bool {
    if own {
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNS;
        if !made!(libc::SYS_unshare, flags) {
            return false;
        }
        let _ = fs::write("/proc/self/setgroups", "deny");
        let _ = fs::write("/proc/self/uid_map", "0 0 1");
    }
    let mount = |source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong| {
        made!(libc::SYS_mount, source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, NULL)
    };
    let _ = fs::create_dir("/tmp/place");
    let parent = c(canary.parent().expect("a directory"));
    let again = libc::MS_REMOUNT | libc::MS_BIND;
    let _ = mount(c"none", c"/", c"", again);
    let _ = mount(c"none", &parent, c"", again);
    let _ = mount(&parent, &parent, c"", libc::MS_BIND);
    let _ = mount(c"none", &parent, c"", again);
    let bound = mount(c"/", c"/tmp/place", c"", libc::MS_BIND | libc::MS_REC);
    let _ = mount(c"none", c"/tmp/place", c"", again);
    let below = canary.strip_prefix("/").expect("an absolute path");
    let uncovered = ["/run", "/home", "/root", "/dev", "/sys/fs/cgroup", "/proc/keys", "/proc/sys"]
        .iter()
        .any(|place| made!(libc::SYS_umount2, c(Path::new(place)).as_ptr(), libc::MNT_DETACH));
    // Without namespaces of its own not even a mount is to be had.
    uncovered || (bound && !own) || changes(canary) || changes(&Path::new("/tmp/place").join(below))
}

fn by_new_mount(canary: &Path) -> bool {
    // An integer underflow in a parameter that a file system of its own takes: it must not come that far.
    for kind in [c"ext4", c"tmpfs", c"proc", c"sysfs", c"cgroup2", c"overlay"] {
        if made!(libc::SYS_fsopen, kind.as_ptr(), 0) {
            return true;
        }
    }
    let attr = [0u64, libc::MOUNT_ATTR_RDONLY, 0, 0];
    let cleared =
        made!(libc::SYS_mount_setattr, libc::AT_FDCWD, c"/".as_ptr(), libc::AT_RECURSIVE, attr.as_ptr(), 32);
    let flags = libc::OPEN_TREE_CLONE | libc::AT_RECURSIVE as u32;
    cleared || made!(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), flags) || changes(canary)
}

fn by_handle(_: &Path) -> bool {
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; 128],
    }
    let root = fs::File::open("/").expect("the root");
    // The root of common file systems has inode 2, 128 or 64.
    for inode in [2u8, 64, 128] {
        let mut handle = Handle { bytes: 8, kind: 1, handle: [0; 128] };
        handle.handle[0] = inode;
        if made!(libc::SYS_open_by_handle_at, root.as_raw_fd(), &raw const handle, libc::O_RDONLY) {
            return true;
        }
    }
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut id = 0;
    let named =
        made!(libc::SYS_name_to_handle_at, libc::AT_FDCWD, c"/etc".as_ptr(), &raw mut handle, &raw mut id, 0);
    named && made!(libc::SYS_open_by_handle_at, root.as_raw_fd(), &raw const handle, libc::O_RDONLY)
}

fn by_setns(_: &Path) -> bool {
    let kinds = ["mnt", "pid", "user", "net", "ipc", "uts", "cgroup", "time"];
    let entered = kinds.iter().any(|kind| {
        fs::File::open(format!("/proc/1/ns/{kind}"))
            .is_ok_and(|file| made!(libc::SYS_setns, file.as_raw_fd(), 0))
    });
    // SAFETY: integers only; what is opened is closed by exit.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, 1, 0) };
    let flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID;
    entered || (pidfd >= 0 && made!(libc::SYS_setns, pidfd, flags))
}

fn by_cgroup() -> bool {
    let _ = fs::create_dir("/tmp/cgroup");
    for (kind, data) in [(c"cgroup", c"memory"), (c"cgroup", c"rdma"), (c"cgroup2", c"")] {
        let target = c"/tmp/cgroup".as_ptr();
        if made!(libc::SYS_mount, c"none".as_ptr(), target, kind.as_ptr(), 0, data.as_ptr()) {
            return true;
        }
    }
    let files =
        ["release_agent", "cgroup.procs", "memory.max", "memory/release_agent", "unified/cgroup.procs"];
    fs::read_dir("/sys/fs/cgroup").is_ok_and(|mut entries| entries.next().is_some())
        || fs::create_dir("/sys/fs/cgroup/x").is_ok()
        || files.iter().any(|file| writable(Path::new("/sys/fs/cgroup").join(file)))
}

fn by_setting() -> bool {
    let files = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hotplug",
        "/proc/sys/vm/panic_on_oom",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/proc/acpi/wakeup",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/power/state",
        "/sys/kernel/debug/x",
        "/sys/fs/cgroup/release_agent",
    ];
    files.iter().any(writable) || fs::read("/sys/firmware/dmi/tables/DMI").is_ok()
}

fn by_replacing_devices() -> bool {
    let _ = symlink("/proc/sys/kernel/core_pattern", "/tmp/link");
    for name in ["null", "zero", "tty", "console", "ptmx", "pts", "pts/ptmx", "shm", "fd", "stdout", "new"] {
        let path = Path::new("/dev").join(name);
        let replaced = fs::remove_file(&path).is_ok()
            || fs::remove_dir(&path).is_ok()
            || fs::rename("/tmp/link", &path).is_ok()
            || symlink("/proc/sys/kernel/core_pattern", path.with_extension("x")).is_ok();
        if replaced {
            return true;
        }
    }
    let bound = made!(
        libc::SYS_mount,
        c"/proc/sys/kernel/core_pattern".as_ptr(),
        c"/dev/null".as_ptr(),
        NULL,
        libc::MS_BIND,
        NULL
    );
    bound || fs::metadata("/dev/null").map_or(true, |meta| !meta.file_type().is_char_device())
}

fn by_process() -> bool {
    // SAFETY: no arguments.
    let own = unsafe { libc::getpid() };
    for pid in (1..100).filter(|&pid| pid != own) {
        let dir = format!("/proc/{pid}");
        // The test framework around this probe is its own.
        if fs::read_link(format!("{dir}/exe")).is_ok_and(|exe| exe.ends_with("probe")) {
            continue;
        }
        let buffer = [0u8; 8];
        let local = libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: 8 };
        let read = made!(libc::SYS_process_vm_readv, pid, &raw const local, 1, &raw const local, 1, 0);
        let traced = made!(libc::SYS_ptrace, libc::PTRACE_SEIZE, pid, 0, 0);
        let files = ["mem", "environ", "maps", "auxv"].iter().any(|file| {
            fs::File::open(format!("{dir}/{file}"))
                .is_ok_and(|mut file| io::copy(&mut file, &mut io::sink()).is_ok_and(|length| length > 0))
        });
        if read || traced || files || fs::read_link(format!("{dir}/root")).is_ok() {
            return true;
        }
    }
    false
}

fn by_pipe(canary: &Path) -> bool {
    let Ok(file) = fs::File::open(canary) else { return false };
    let mut ends = [0; 2];
    // SAFETY: the array is filled in; the pipe's pages all carry the flag that the hole forgot to clear.
    unsafe {
        if libc::pipe(ends.as_mut_ptr()) != 0 {
            return false;
        }
        let mut bytes = [0u8; 4096];
        for _ in 0..16 {
            libc::write(ends[1], bytes.as_ptr().cast(), bytes.len());
        }
        for _ in 0..16 {
            libc::read(ends[0], bytes.as_mut_ptr().cast(), bytes.len());
        }
        let mut offset = 0;
        libc::splice(file.as_raw_fd(), &mut offset, ends[1], ptr::null_mut(), 1, 0);
        libc::write(ends[1], c"OVERWRITTEN".as_ptr().cast(), 11);
    }
    fs::read(canary).is_ok_and(|bytes| bytes.windows(5).any(|word| word == b"OVERW"))
}

fn by_mapping(canary: &Path) -> bool {
    let Ok(file) = fs::File::open(canary) else { return false };
    // SAFETY: a private read-only mapping of a page, written through the kernel's own back door.
    unsafe {
        let protection = libc::PROT_READ;
        let page = libc::mmap(ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE, file.as_raw_fd(), 0);
        if page == libc::MAP_FAILED {
            return false;
        }
        let shared = libc::MAP_SHARED;
        let write = libc::PROT_READ | libc::PROT_WRITE;
        if libc::mmap(ptr::null_mut(), 4096, write, shared, file.as_raw_fd(), 0) != libc::MAP_FAILED {
            return true;
        }
        if let Ok(own) = fs::File::options().write(true).open("/proc/self/mem") {
            use std::os::unix::fs::FileExt;
            for _ in 0..1000 {
                let _ = own.write_at(b"OVERWRITTEN", page as u64);
                libc::madvise(page, 4096, libc::MADV_DONTNEED);
            }
        }
    }
    fs::read(canary).is_ok_and(|bytes| bytes.windows(5).any(|word| word == b"OVERW"))
}

fn whoami() {
    // SAFETY: no arguments.
    println!("euid {}", unsafe { libc::geteuid() });
}

fn by_set_user_id() -> bool {
    // SAFETY: no arguments.
    let own = unsafe { libc::geteuid() };
    let mut command = std::process::Command::new("/mnt/proffer/group/set-user-id");
    let command = command.args(&crate::harness::PROBE[1..]).env("PROFFER_PROBE", "whoami");
    let ran = command.output().is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains("euid") && !text.contains(&format!("euid {own}\n"))
    });
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    ran || !status.contains("NoNewPrivs:\t1")
        || sets.iter().any(|set| !status.contains(&format!("{set}:\t0000000000000000")))
        || made!(libc::SYS_setresuid, own + 1, own + 1, own + 1)
        || made!(libc::SYS_setgroups, 1, [0u32].as_ptr())
}

fn by_own_proc() -> bool {
    // SAFETY: the buffer is filled in.
    let kind = unsafe {
        let mut stat = std::mem::zeroed::<libc::statfs>();
        libc::statfs(c"/proc".as_ptr(), &mut stat);
        stat.f_type as i64
    };
    // The own instance of the own namespace: a process that is there, and none of the host's.
    // SAFETY: no arguments.
    let own = unsafe { libc::getpid() };
    let link = fs::read_link("/proc/self").is_ok_and(|link| link == Path::new(&own.to_string()));
    let attr = ["current", "exec", "fscreate", "apparmor/exec"]
        .iter()
        .any(|file| fs::write(format!("/proc/self/attr/{file}"), "unconfined").is_ok());
    let _ = fs::create_dir("/tmp/proc");
    let over = made!(libc::SYS_mount, c"/tmp/proc".as_ptr(), c"/proc".as_ptr(), NULL, libc::MS_BIND, NULL);
    let moved = fs::rename("/proc", "/tmp/old").is_ok() || fs::remove_dir("/proc").is_ok();
    kind != 0x9fa0 || !link || attr || over || moved || fs::write("/proc/self/oom_score_adj", "-1000").is_ok()
}

fn by_netlink() -> bool {
    // SAFETY: a socket, and a request that is as long as it says: bring the first interface down.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        if fd < 0 {
            return false;
        }
        let _fd = OwnedFd::from_raw_fd(fd);
        let mut request = [0u32; 8];
        request[0] = 32;
        request[1] = 16 | (1 | 4) << 16;
        request[5] = 1;
        request[7] = 0;
        // No flag is to be changed, so that even a success does no harm.
        if libc::send(fd, request.as_ptr().cast(), 32, 0) < 0 {
            return false;
        }
        let mut answer = [0i32; 64];
        libc::recv(fd, answer.as_mut_ptr().cast(), 256, 0) > 0 && answer[4] == 0
    }
}

fn by_descriptor() -> bool {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return true };
    entries.flatten().any(|entry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let known = [Path::new("/dev/null")].contains(&target.as_path())
            || target.to_string_lossy().starts_with("pipe:")
            || target.starts_with("/proc");
        !known
    })
}

fn by_priority() -> bool {
    let parameter = [1i32];
    let hard = libc::rlimit64 { rlim_cur: u64::MAX, rlim_max: u64::MAX };
    // SAFETY: the limit is read only.
    let raised = unsafe { libc::setrlimit64(libc::RLIMIT_NOFILE, &hard) == 0 };
    raised
        || made!(libc::SYS_setpriority, 0, 0, -20)
        || made!(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, parameter.as_ptr())
        || made!(libc::SYS_ioprio_set, 1, 0, 1 << 13)
}

fn by_keys() -> bool {
    let named = [c"proffer-secret".as_ptr()];
    // KEYCTL_SEARCH in the session keyring, and a request that would call out to the host.
    made!(libc::SYS_keyctl, 10, -3, c"user".as_ptr(), named[0], 0)
        || made!(libc::SYS_request_key, c"user".as_ptr(), named[0], NULL, 0)
        || fs::read_to_string("/proc/keys").is_ok_and(|keys| keys.contains("proffer"))
}

/// The key of a System V segment that the test makes on the host.
pub(crate) const SHARED_KEY: i32 = 0x7072_6f66;

fn by_shared_memory() -> bool {
    // SAFETY: integers only.
    unsafe { libc::shmget(SHARED_KEY, 0, 0) >= 0 }
}

/// Opens for writing whatever there is in /proc, /sys and /dev, and makes a file wherever there is a directory, and says
/// what worked. Its own processes are its own business.
fn walk() {
    let mut found = Vec::new();
    for root in ["/proc", "/sys", "/dev"] {
        search(Path::new(root), &mut found);
    }
    let tops = fs::read_dir("/").expect("the root").flatten().map(|entry| entry.path());
    for top in
        tops.filter(|path| !["/proc", "/sys", "/dev", "/tmp"].iter().any(|skip| path == Path::new(skip)))
    {
        let inner = fs::read_dir(&top).into_iter().flatten().flatten().map(|entry| entry.path());
        for dir in std::iter::once(top.clone()).chain(inner) {
            let path = dir.join("proffer-made");
            if fs::File::create(&path).is_ok() {
                found.push(path);
            }
        }
    }
    found.sort();
    for path in found {
        println!("{}", path.display());
    }
    println!("walked");
}

fn search(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let (path, Ok(kind)) = (entry.path(), entry.file_type()) else { continue };
        let own = dir == Path::new("/proc") && entry.file_name().as_bytes()[0].is_ascii_digit();
        if own || kind.is_symlink() {
            continue;
        }
        if kind.is_dir() {
            search(&path, found);
        } else if writable(&path) && !is_null(&path) {
            found.push(path);
        }
    }
}

/// Whether it is a mask.
fn is_null(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let null = libc::makedev(1, 3);
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_char_device() && meta.rdev() == null)
}

/// How many it wants to have met.
const NEWCOMERS: usize = 5;

/// Looks at whatever else runs here, over and over, as a thief of descriptors would: what it finds before the program
/// of a newcomer is executed is the supervisor's.
fn trace() {
    println!("up");
    // SAFETY: no arguments.
    let own = unsafe { libc::getpid() };
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < NEWCOMERS {
        for entry in fs::read_dir("/proc").expect("processes").flatten() {
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            if pid == own || pid == 1 {
                continue;
            }
            seen.insert(pid);
            look_at(pid);
        }
    }
    println!("saw {}", seen.len());
}

fn look_at(pid: i32) {
    let dir = format!("/proc/{pid}");
    let program = |when: &str| {
        if let Ok(exe) = fs::read_link(format!("{dir}/exe"))
            && !exe.ends_with("executor/probe")
        {
            println!("GOT {when} the program {}", exe.display());
        }
    };
    program("plainly");
    for fd in fs::read_dir(format!("{dir}/fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(fd.path()) else { continue };
        let text = target.to_string_lossy();
        let harmless =
            ["pipe:", "/proc/", "/lib", "/usr", "/etc", "/t/", "/mnt/proffer/executor", "/dev/null"];
        if !harmless.iter().any(|start| text.starts_with(start)) {
            println!("GOT the descriptor {text}");
        }
    }
    match fs::read(format!("{dir}/environ")) {
        // While a program begins, the start of its own can be read.
        Ok(bytes)
            if !b"PATH=/usr/local/bin:/usr/bin:/bin\0PROFFER_PROBE=".starts_with(&bytes)
                && !has(&bytes, b"\0PROFFER_PROBE=") =>
        {
            println!("GOT the environment {:?}", String::from_utf8_lossy(&bytes));
        }
        _ => {}
    }
    // In a child, whose end lets go of what it traces.
    alone(|| {
        // SAFETY: integers only.
        if unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) } == 0 {
            program("by tracing");
        }
        false
    });
}

/// Traces the first newcomer and never lets go of it.
fn hold() {
    println!("up");
    // SAFETY: no arguments.
    let own = unsafe { libc::getpid() };
    // SAFETY: integers only.
    while !(2..100).any(|pid| pid != own && unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) } == 0) {}
    println!("held");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Takes all that there is for it, and keeps it.
fn takes(what: &str) {
    // SAFETY: integers only, and C strings.
    let take = |_: &u32| unsafe {
        match what {
            "inotify" => libc::inotify_init1(0) >= 0,
            _ => libc::open(c"/dev/ptmx".as_ptr(), libc::O_RDWR | libc::O_NOCTTY) >= 0,
        }
    };
    println!("took: {}", (0..1_000).take_while(take).count());
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// A supervisor outside of any container. It clones a container, whose init then waits until what stands for its group
/// has room, and a process with copies of all descriptors, as one has that is cloned a moment later.
fn supervise(linux: bool) {
    let group = io::stdin();
    let plain = Options { cgroup_procs: &[group.as_fd()], ..Options::default() };
    let options = if linux { Options { isolation: harness::linux().isolation, ..plain } } else { plain };
    let (_container, mut read) = harness::start(&["echo", "began"], &options).expect("spawn");
    // SAFETY: the child makes no use of what other threads may hold.
    if unsafe { libc::fork() } == 0 {
        let mut output = String::new();
        read.read_to_string(&mut output).expect("output");
        println!("its output: {output:?}");
        return;
    }
    println!("ready");
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Exchanges `dir` with a symlink in a directory that others are launched into, over and over.
fn swap(dir: &Path) {
    std::env::set_current_dir(dir).expect("the shared directory");
    println!("up");
    while !Path::new("stop").exists() {
        let exchange = 2;
        // SAFETY: C strings.
        unsafe {
            let at = libc::AT_FDCWD;
            libc::syscall(libc::SYS_renameat2, at, c"dir".as_ptr(), at, c"link".as_ptr(), exchange);
        }
    }
}

/// What this process was executed from, and whether that can be written to: as an interpreter it is what ran before the
/// task's program, the supervisor's own file.
fn own_program() {
    let file = fs::File::options().write(true).open("/proc/self/exe");
    let flags = nix::sys::statvfs::statvfs("/proc/self/exe").expect("a file system").flags();
    let read_only = flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
    println!("opened for writing: {}, read-only: {read_only}", file.is_ok());
}
