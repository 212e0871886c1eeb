//! From the command line to a supervisor in a session of its own, without any inherited descriptor.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use proffer_launcher::heap;

use crate::config::Config;
use crate::supervisor::Supervisor;

/// What the supervisor writes to the process that started it once it listens.
const READY: &[u8] = b"ready";

/// Starts the supervisor in the background; the calling process returns once it listens or has failed.
pub fn main(config: Config) -> ExitCode {
    heap::allocate_from_heap_only();
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proffer-executor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(mut config: Config) -> io::Result<()> {
    for path in [&mut config.socket, &mut config.runtime_dir].into_iter().chain(&mut config.cover) {
        *path = std::path::absolute(&path)?;
    }
    let (read, write) = nix::unistd::pipe()?;
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => {
            drop(write);
            let mut answer = Vec::new();
            File::from(read).read_to_end(&mut answer)?;
            match answer.as_slice() {
                READY => Ok(()),
                [] => Err(io::Error::other("the supervisor died while it started")),
                reason => Err(io::Error::other(String::from_utf8_lossy(reason).into_owned())),
            }
        }
        nix::unistd::ForkResult::Child => {
            drop(read);
            std::process::exit(supervise(&config, write));
        }
    }
}

fn supervise(config: &Config, ready: OwnedFd) -> i32 {
    let mut ready = match detach(ready) {
        Ok(ready) => File::from(ready),
        Err(_) => return 1,
    };
    match Supervisor::open(config) {
        Ok(mut supervisor) => {
            if ready.write_all(READY).is_err() {
                // Who started it waits no longer, and has started another.
                supervisor.abandon();
                return 1;
            }
            drop(ready);
            supervisor.run();
            0
        }
        Err(error) => {
            let _ = ready.write_all(error.to_string().as_bytes());
            1
        }
    }
}

/// Leaves the starter's session, descriptors, directory and limits.
fn detach(ready: OwnedFd) -> io::Result<OwnedFd> {
    nix::unistd::setsid()?;
    std::env::set_current_dir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: 0 to 2 become /dev/null, `ready` becomes 3, and what lies above is owned by nobody: this is the
    // first thing that the new process does. `null` and the old `ready` are given up for that.
    unsafe {
        let (null, old) = (null.into_raw_fd(), ready.into_raw_fd());
        // Above all targets, so that no dup2 can hit it.
        let high = libc::fcntl(old, libc::F_DUPFD_CLOEXEC, 16);
        for fd in 0..3 {
            libc::dup2(null, fd);
        }
        if high < 0 || libc::dup3(high, 3, libc::O_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::close_range(4, u32::MAX, 0);
        // A signal for the starter's terminal is none for the tasks.
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
        libc::signal(libc::SIGINT, libc::SIG_IGN);
    }
    // Four descriptors a task, besides the starter's own taste for few.
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)?;
    // SAFETY: made above and owned by nobody else.
    let ready: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(3) };
    debug_assert_eq!(ready.as_raw_fd(), 3);
    Ok(ready)
}

/// Why a supervisor did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime directory belongs to an instance that ran before or still runs.
    #[error("{} already belongs to an instance: give each instance a directory of its own", .0.display())]
    Used(PathBuf),
    /// Something has begun threads in this process.
    #[error("the supervisor has {0} threads instead of one")]
    Threads(u64),
    /// A file operation failed.
    #[error("{operation} {}: {source}", .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The template or another step of the launcher failed.
    #[error("preparing for --isolation linux: {0}")]
    Launcher(#[from] proffer_launcher::Error),
    /// A system call of the supervisor's own failed.
    #[error("{operation}: {source}")]
    System {
        /// Which.
        operation: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { operation, path, source }
    }

    pub(crate) fn system(operation: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System { operation, source }
    }
}
