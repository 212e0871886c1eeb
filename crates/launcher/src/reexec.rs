//! Runs a supervisor from a mount of its own file that cannot be written to.

use std::ffi::{CString, c_char, c_ulong};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::ptr;

use crate::error::{Error, Step};
use crate::spawn::errno_of;
use crate::sys;

/// Tells a program that was executed again from one that is to be: without it a mount that does not become
/// read-only would be tried for ever.
const DONE: &str = "PROFFER_EXECUTED_READ_ONLY";

/// Executes this program again, from a detached read-only mount of its file, unless it already runs from one; to be called
/// first of all. Does nothing without root.
///
/// Until its own program is executed, a container's payload is a process of the supervisor's program, and `/proc/self/exe`
/// is a path to its file that no mount namespace hides: a task whose entry point names it as the interpreter runs it,
/// and as user 0 could overwrite it (CVE-2019-5736, CVE-2019-0204).
pub fn execute_read_only() -> Result<(), Error> {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(());
    }
    let own = fs::File::open("/proc/self/exe").map_err(|error| failed("open", errno_of(&error)))?;
    if nix::sys::statvfs::fstatvfs(&own)
        .is_ok_and(|stat| stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
    {
        restore_name()?;
        return Ok(());
    }
    if std::env::var_os(DONE).is_some() {
        return Err(failed("the mount is not read-only", libc::ELOOP));
    }
    let mount = sys::open_tree_clone(libc::AT_FDCWD, c"/proc/self/exe", false)
        .map_err(|errno| failed("open_tree", errno))?;
    // SAFETY: just opened and owned by nobody else.
    let mount = unsafe { OwnedFd::from_raw_fd(mount) };
    let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    sys::mount_setattr(mount.as_raw_fd(), false, attributes, None)
        .map_err(|errno| failed("mount_setattr", errno))?;
    let text = |bytes: Vec<u8>| CString::new(bytes).unwrap_or_default();
    let argv = std::env::args_os().map(|word| text(word.into_vec())).collect::<Vec<_>>();
    let pairs = std::env::vars_os().chain([(DONE.into(), "1".into())]);
    let env = pairs
        .map(|(name, value)| text([name.into_vec(), b"=".to_vec(), value.into_vec()].concat()))
        .collect::<Vec<_>>();
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv_pointers, env_pointers) = (pointers(&argv), pointers(&env));
    // SAFETY: null-terminated arrays of C strings that outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            mount.as_raw_fd(),
            c"".as_ptr(),
            argv_pointers.as_ptr(),
            env_pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(failed("execveat", sys::check(result).err().unwrap_or(libc::EIO)))
}

fn failed(object: &str, errno: i32) -> Error {
    Error::at(Step::Reexec, object, errno)
}

/// A program executed by descriptor is named after the descriptor.
fn restore_name() -> Result<(), Error> {
    let Some(first) = std::env::args_os().next() else { return Ok(()) };
    let Some(name) = std::path::Path::new(&first).file_name() else { return Ok(()) };
    let name = CString::new(name.to_owned().into_vec()).unwrap_or_default();
    sys::prctl(libc::PR_SET_NAME, name.as_ptr().addr() as c_ulong)
        .map(drop)
        .map_err(|errno| failed("name", errno))
}
