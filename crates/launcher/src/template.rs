//! The mount namespace that every Linux container of a supervisor starts from.
//!
//! It is built once, by a short-lived child, and kept alive by its descriptor alone. Entering it costs a
//! thirtieth of building it.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::error::{Error, Step};
use crate::request::{EXECUTOR_PATH, GROUP_PATH, SANDBOX_PATH};
use crate::seqpacket;
use crate::spawn::errno_of;
use crate::sys;

/// What no task sees, on every host.
const COVERED: [&str; 4] = ["/var/run", "/home", "/root", "/var/tmp"];
/// Places that are mounted anew, in the template or per launch: what lies below is out of sight anyway.
const REPLACED: [&str; 6] = ["/run", "/mnt", "/proc", "/dev", "/tmp", "/sys/fs/cgroup"];
/// Parts of /sys that say or do too much: the machine's serial numbers, and how much power each instruction takes
/// (CVE-2020-8694).
const SYS_COVERED: [&str; 2] = ["/sys/firmware", "/sys/devices/virtual/powercap"];
/// Places of /sys that are empty but for what is mounted there. Every mount that is left costs each launch its copy.
const SYS_DETACHED: [&str; 5] =
    ["/sys/kernel/debug", "/sys/kernel/tracing", "/sys/kernel/security", "/sys/fs/bpf", "/sys/fs/pstore"];
/// How a task finds other hosts.
const RESOLVER: &str = "/etc/resolv.conf";
const RESOLVER_C: &CStr = c"/etc/resolv.conf";
/// Directories without which a task has no system: a socket in them is covered alone. A socket bound there
/// anew is then no longer covered, which is why other directories are covered whole.
const SYSTEM: [&str; 4] = ["/usr", "/etc", "/lib", "/bin"];
const SYSTEM_ITSELF: [&str; 6] = ["/", "/var", "/var/lib", "/opt", "/srv", "/sbin"];

/// A mount namespace to enter.
#[derive(Debug)]
pub struct Template {
    namespace: OwnedFd,
    null: OwnedFd,
}

impl Template {
    /// Builds the namespace from the host's mounts of the moment. Covers, besides what is always covered, each
    /// of `covers` that exists, and every directory in which a unix socket of this network namespace is bound.
    ///
    /// The child uses the heap: it must be built before
    /// [`heap::keep_out_of_children`](crate::heap::keep_out_of_children).
    pub fn build(covers: &[PathBuf]) -> Result<Template, Error> {
        let failed = |errno| Error::new(Step::TemplateChild, errno);
        let (own, childs) = seqpacket::pair().map_err(|error| failed(errno_of(&error)))?;
        // SAFETY: glibc's fork leaves the allocator usable in the child, even of a threaded process.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            drop(own);
            build_and_send(covers, &childs);
            sys::exit(0);
        }
        drop(childs);
        if pid < 0 {
            return Err(failed(sys::errno()));
        }
        // SAFETY: no status is written. The child ends by itself: it waits for nothing.
        while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } == -1 && sys::errno() == libc::EINTR {}
        match seqpacket::recv(own.as_fd()) {
            Ok(Some(answer)) => match <[OwnedFd; 2]>::try_from(answer.descriptors) {
                Ok([namespace, null]) => Ok(Template { namespace, null }),
                Err(_) => Err(decode_error(&answer.body)),
            },
            _ => Err(failed(libc::ECHILD)),
        }
    }

    /// The namespace's own /dev/null, for reading and writing. The host's must not be handed to a container: a task
    /// of user 0 owns it, and could take it from the whole host with fchmod. This one lies on a read-only mount.
    pub fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    pub(crate) fn as_raw_fd(&self) -> RawFd {
        self.namespace.as_raw_fd()
    }
}

fn build_and_send(covers: &[PathBuf], answer: &OwnedFd) {
    match build_here(covers) {
        Ok((namespace, null)) => {
            let _ = seqpacket::send(answer.as_fd(), b"ns", &[namespace.as_fd(), null.as_fd()]);
        }
        Err(error) => {
            let object = error.object.unwrap_or_default();
            let text = format!("{} {} {object}", error.step as u32, error.errno);
            let _ = seqpacket::send(answer.as_fd(), text.as_bytes(), &[]);
        }
    }
}

fn decode_error(text: &[u8]) -> Error {
    let text = String::from_utf8_lossy(text);
    let mut words = text.splitn(3, ' ');
    let step = words.next().and_then(|word| word.parse().ok()).and_then(Step::from_number);
    let errno = words.next().and_then(|word| word.parse().ok()).unwrap_or(libc::EIO);
    let object = words.next().filter(|object| !object.is_empty()).map(str::to_owned);
    Error { step: step.unwrap_or(Step::TemplateChild), errno, object }
}

/// Turns this process's view into the template and returns its namespace and its /dev/null.
fn build_here(covers: &[PathBuf]) -> Result<(OwnedFd, OwnedFd), Error> {
    // Everyone must be able to pass through what is made here, whatever the supervisor's own mask.
    // SAFETY: integers only, and the mask is this short-lived process's own.
    unsafe { libc::umask(0o022) };
    // SAFETY: integers only.
    sys::check_int(unsafe { libc::unshare(libc::CLONE_NEWNS) })
        .and_then(|_| sys::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None))
        .map_err(|errno| Error::new(Step::TemplateUnshare, errno))?;
    // With the host's /proc still there: the namespace's descriptor, the sockets, and names without symlinks.
    let namespace = fs::File::open("/proc/self/ns/mnt")
        .map_err(|error| Error::at(Step::TemplateSend, "/proc/self/ns/mnt", errno_of(&error)))?;
    let dirs = cover_dirs(covers)?;
    let (socket_dirs, socket_files) = socket_covers();
    for place in ["/run", "/mnt", "/proc", "/dev", "/tmp", "/sys"] {
        require_directory(place)?;
    }
    enter_read_only_root()?;
    let resolver = resolver_file();
    for place in REPLACED.iter().chain(&SYS_DETACHED) {
        detach_all(place)?;
    }
    empty_and_mnt()?;
    own_dev()?;
    if let Some(file) = &resolver {
        // Onto the link itself, which move_mount does not follow.
        sys::move_mount(file.as_raw_fd(), RESOLVER_C)
            .map_err(|errno| Error::at(Step::TemplateMount, RESOLVER, errno))?;
    }
    let sys_dirs = SYS_COVERED.iter().map(PathBuf::from);
    for dir in dirs.into_iter().chain(socket_dirs).chain(sys_dirs) {
        cover(&dir, c"/run")?;
    }
    for file in socket_files {
        cover(&file, c"/dev/null")?;
    }
    let null = fs::File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| Error::at(Step::TemplateSend, "/dev/null", errno_of(&error)))?;
    Ok((namespace.into(), null.into()))
}

/// The directories to cover, without symlinks and without what is out of sight already, outermost first.
fn cover_dirs(extra: &[PathBuf]) -> Result<BTreeSet<PathBuf>, Error> {
    let mut dirs = BTreeSet::new();
    for path in COVERED.iter().map(Path::new).chain(extra.iter().map(PathBuf::as_path)) {
        let Ok(real) = fs::canonicalize(path) else { continue };
        if real == Path::new("/") || !real.is_dir() {
            return Err(Error::at(Step::TemplateCover, path.display().to_string(), libc::EINVAL));
        }
        if !replaced(&real) {
            dirs.insert(real);
        }
    }
    Ok(dirs)
}

fn replaced(path: &Path) -> bool {
    REPLACED.iter().any(|place| path.starts_with(place))
}

/// Where unix sockets of this network namespace are bound that a template built now would cover: their directories, and in
/// the system's own directories the sockets themselves. What is not among those of the time when a template was built is
/// within reach of its containers.
pub fn socket_places() -> BTreeSet<PathBuf> {
    let (mut places, files) = socket_covers();
    places.extend(files);
    places
}

/// Where unix sockets are bound: directories to cover, and sockets to cover alone. A read-only mount does not
/// stop a connect.
fn socket_covers() -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let (mut dirs, mut files) = (BTreeSet::new(), BTreeSet::new());
    let Ok(table) = fs::read("/proc/net/unix") else { return (dirs, files) };
    for path in bound_paths(&table) {
        let Some((parent, name)) = path.parent().zip(path.file_name()) else { continue };
        let Ok(parent) = fs::canonicalize(parent) else { continue };
        let file = parent.join(name);
        if replaced(&file) || !fs::symlink_metadata(&file).is_ok_and(|meta| meta.file_type().is_socket()) {
            continue;
        }
        let system = SYSTEM.iter().any(|dir| parent.starts_with(dir))
            || SYSTEM_ITSELF.iter().any(|dir| parent == Path::new(dir))
            || parent.as_os_str().as_bytes().starts_with(b"/lib");
        if system {
            files.insert(file);
        } else {
            dirs.insert(parent);
        }
    }
    (dirs, files)
}

/// The absolute paths of /proc/net/unix: the eighth column, which may hold spaces. An abstract name begins
/// with `@`.
fn bound_paths(table: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    table.split(|&byte| byte == b'\n').skip(1).filter_map(|line| {
        let start = line.iter().position(|&byte| byte == b'/')?;
        let columns = line[..start].split(|&byte| byte == b' ').filter(|word| !word.is_empty()).count();
        (columns == 7).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(&line[start..])))
    })
}

fn require_directory(place: &str) -> Result<(), Error> {
    let failed = |errno| Error::at(Step::TemplatePlace, place, errno);
    let meta = fs::symlink_metadata(place).map_err(|error| failed(errno_of(&error)))?;
    if meta.is_dir() { Ok(()) } else { Err(failed(libc::ENOTDIR)) }
}

/// Makes a recursive read-only clone of the root the root.
fn enter_read_only_root() -> Result<(), Error> {
    let root = sys::open_tree_clone(libc::AT_FDCWD, c"/", true)
        .map_err(|errno| Error::new(Step::TemplateClone, errno))?;
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::mount_setattr(root, true, attributes, None)
        .map_err(|errno| Error::new(Step::TemplateReadOnly, errno))?;
    let pivot = || -> Result<(), i32> {
        sys::move_mount(root, c"/tmp")?;
        // SAFETY: C strings; the old root is stacked under the new one and then detached by its descriptor-less
        // name ".", which is the working directory.
        unsafe {
            sys::check_int(libc::chdir(c"/tmp".as_ptr()))?;
            sys::check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
            sys::check_int(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
            sys::check_int(libc::chdir(c"/".as_ptr())).map(drop)
        }
    };
    pivot().map_err(|errno| Error::new(Step::TemplatePivot, errno))
}

/// The file behind /etc/resolv.conf where that is a link to what gets covered, as systemd-resolved has it: without
/// it no task would find a host by name.
fn resolver_file() -> Option<OwnedFd> {
    let real = fs::canonicalize(RESOLVER).ok().filter(|real| replaced(real) && real.is_file())?;
    let fd = sys::open_tree_clone(libc::AT_FDCWD, &c_path(&real), false).ok()?;
    // SAFETY: just opened and owned by nobody else.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes every mount off `place`, with all below.
fn detach_all(place: &str) -> Result<(), Error> {
    let path = c_path(Path::new(place));
    loop {
        // SAFETY: a C string.
        match sys::check_int(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) }) {
            Ok(_) => {}
            // Not a mount point any more, or not there.
            Err(libc::EINVAL | libc::ENOENT) => return Ok(()),
            Err(errno) => return Err(Error::at(Step::TemplateMount, place, errno)),
        }
    }
}

/// The empty read-only directory at /run that is every cover, and /mnt with the places of what is given to a task.
fn empty_and_mnt() -> Result<(), Error> {
    let at = |place: &'static str| move |errno| Error::at(Step::TemplateMount, place, errno);
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let tmpfs = Some(c"tmpfs");
    sys::mount(tmpfs, c"/run", tmpfs, quiet | libc::MS_RDONLY, Some(c"mode=0755,size=4k"))
        .map_err(at("/run"))?;
    sys::mount(tmpfs, c"/mnt", tmpfs, quiet, Some(c"mode=0755,size=64k")).map_err(at("/mnt"))?;
    for place in [SANDBOX_PATH, GROUP_PATH, EXECUTOR_PATH] {
        fs::create_dir_all(place).map_err(|error| at(place)(errno_of(&error)))?;
    }
    // By path and after the directories are made.
    sys::mount(None, c"/mnt", None, libc::MS_REMOUNT | libc::MS_RDONLY | quiet, None).map_err(at("/mnt"))
}

/// /dev with the harmless devices, read-only once filled; shared by all containers.
fn own_dev() -> Result<(), Error> {
    let at = |name: &str, errno| Error::at(Step::TemplateDevice, format!("/dev/{name}"), errno);
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    let tmpfs = Some(c"tmpfs");
    sys::mount(tmpfs, c"/dev", tmpfs, flags, Some(c"mode=0755,size=64k")).map_err(|errno| at("", errno))?;
    let nodes =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in nodes {
        let path = c_path(&Path::new("/dev").join(name));
        let device = libc::makedev(major, minor);
        // SAFETY: a C string.
        sys::check_int(unsafe { libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, device) })
            .map_err(|errno| at(name, errno))?;
        // The mask took the others' right to write.
        fs::set_permissions(Path::new("/dev").join(name), fs::Permissions::from_mode(0o666))
            .map_err(|error| at(name, errno_of(&error)))?;
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        std::os::unix::fs::symlink(target, Path::new("/dev").join(name))
            .map_err(|error| at(name, errno_of(&error)))?;
    }
    for name in ["pts", "shm"] {
        fs::create_dir(Path::new("/dev").join(name)).map_err(|error| at(name, errno_of(&error)))?;
    }
    sys::mount(None, c"/dev", None, libc::MS_REMOUNT | libc::MS_RDONLY | flags, None)
        .map_err(|errno| at("", errno))
}

/// Binds `source` over `path`. What is not there, because something outside it is covered already, needs none.
fn cover(path: &Path, source: &CStr) -> Result<(), Error> {
    match sys::mount(Some(source), &c_path(path), None, libc::MS_BIND, None) {
        Ok(()) | Err(libc::ENOENT) => Ok(()),
        Err(errno) => Err(Error::at(Step::TemplateCover, path.display().to_string(), errno)),
    }
}

fn c_path(path: &Path) -> CString {
    // Paths come from the kernel or from C strings of the command line.
    CString::new(path.as_os_str().as_bytes()).unwrap_or_else(|_: std::ffi::NulError| c"".into())
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(io::Error::from_raw_os_error(error.errno).kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_paths_are_read_from_the_table() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff: 00000002 00000000 00010000 0001 01 123 /run/a b.sock\n\
            ffff: 00000002 00000000 00010000 0001 01 124 @/abstract\n\
            ffff: 00000002 00000000 00010000 0005 01 126\n\
            ffff: 00000002 00000000 00010000 0005 01 125 /x\n";
        let paths = bound_paths(table).collect::<Vec<_>>();
        assert_eq!(paths, [PathBuf::from("/run/a b.sock"), PathBuf::from("/x")]);
    }
}
