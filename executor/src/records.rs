//! The instance's files, on a tmpfs: what an agent judges a dead supervisor by.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use proffer_wire::supervisor::v1::{LaunchRecord, ToAgent};
use prost::Message;

use crate::config::{Config, Isolation};
use crate::daemon::Error;

/// Diagnostics stop here: the directory is memory.
const LOG_MAX: u64 = 256 * 1024;

/// The runtime directory of this instance.
pub(crate) struct Records {
    dir: PathBuf,
    log: File,
    log_bytes: u64,
}

impl Records {
    /// Makes the directory and its parts. Fails if an instance has used it before.
    pub(crate) fn create(dir: &Path, isolation: Isolation) -> Result<Self, Error> {
        // A plain process that is a custom executor passes through to its socket.
        let open = if isolation == Isolation::Process { 0o711 } else { 0o700 };
        let make = |path: &Path, mode| match fs::DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::file("make", path)(error))
            }
            // Whatever the mask.
            _ => {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::file("open", path))
            }
        };
        make(dir, open)?;
        // Taken before anything else is made, so that of two instances one loses.
        let used = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => Error::Used(dir.to_owned()),
            _ => Error::file("create", &dir.join("supervisor.log"))(error),
        };
        let log =
            File::options().append(true).create_new(true).open(dir.join("supervisor.log")).map_err(used)?;
        make(&dir.join("launch"), 0o700)?;
        make(&dir.join("exit"), 0o700)?;
        make(&dir.join("executor"), open)?;
        Ok(Records { dir: dir.to_owned(), log, log_bytes: 0 })
    }

    /// Writes `supervisor.json`, by which a restarted agent finds this process.
    pub(crate) fn write_identity(&self, config: &Config, pid: u32, start_ticks: u64) -> io::Result<()> {
        // Both ids are of an alphabet that needs no escaping.
        let text = format!(
            "{{\"instance\":\"{}\",\"framework\":\"{}\",\"pid\":{pid},\"start_ticks\":{start_ticks}}}\n",
            config.instance, config.framework
        );
        self.replace(&self.dir.join("supervisor.json"), text.as_bytes())
    }

    /// Records that a launch is about to be cloned.
    pub(crate) fn write_launch(&self, launch_id: u64) -> io::Result<()> {
        let record = LaunchRecord { launch_id, unix_ms: unix_ms() };
        self.replace(&self.launch_path(launch_id), &record.encode_to_vec())
    }

    /// Takes back the record of a launch that was not cloned.
    pub(crate) fn remove_launch(&self, launch_id: u64) {
        let _ = fs::remove_file(self.launch_path(launch_id));
    }

    /// Records how a launch ended.
    pub(crate) fn write_exit(&self, launch_id: u64, message: &ToAgent) -> io::Result<()> {
        self.replace(&self.exit_path(launch_id), &message.encode_to_vec())
    }

    /// Makes the socket that a custom executor connects to, for its user alone, and the directory that it is alone in.
    /// Without a user it is for all who can reach it: a container with ids of its own, which may show there as others.
    pub(crate) fn listen(&self, launch_id: u64, user: Option<(u32, u32)>) -> io::Result<(OwnedFd, OwnedFd)> {
        let path = self.executor_path(launch_id);
        let made = (|| {
            fs::create_dir(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
            let dir = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(&path)?;
            // Through the descriptor: the path may be too long for an address.
            let short = PathBuf::from(format!("/proc/self/fd/{}/socket", dir.as_raw_fd()));
            let listener = UnixListener::bind(&short)?;
            listener.set_nonblocking(true)?;
            let mode = match user {
                Some((uid, gid)) => {
                    std::os::unix::fs::chown(&short, Some(uid), Some(gid))?;
                    0o600
                }
                None => 0o666,
            };
            fs::set_permissions(&short, fs::Permissions::from_mode(mode))?;
            Ok((listener.into(), dir.into()))
        })();
        if made.is_err() {
            self.remove_socket(launch_id);
        }
        made
    }

    /// Removes what [`listen`](Self::listen) made.
    pub(crate) fn remove_socket(&self, launch_id: u64) {
        let path = self.executor_path(launch_id);
        let _ = fs::remove_file(path.join("socket"));
        let _ = fs::remove_dir(path);
    }

    fn executor_path(&self, launch_id: u64) -> PathBuf {
        self.dir.join("executor").join(launch_id.to_string())
    }

    /// Removes what is recorded of a launch; the exit record last, for it alone tells the whole.
    pub(crate) fn forget(&self, launch_id: u64) {
        let _ = fs::remove_file(self.launch_path(launch_id));
        let _ = fs::remove_file(self.exit_path(launch_id));
    }

    /// Removes what says that this process lives.
    pub(crate) fn remove_identity(&self) {
        let _ = fs::remove_file(self.dir.join("supervisor.json"));
    }

    /// Writes a line of diagnostics, while there is room.
    pub(crate) fn log(&mut self, line: &str) {
        let line = format!("{} {line}\n", unix_ms());
        if self.log_bytes + line.len() as u64 <= LOG_MAX && self.log.write_all(line.as_bytes()).is_ok() {
            self.log_bytes += line.len() as u64;
        }
    }

    fn launch_path(&self, launch_id: u64) -> PathBuf {
        self.dir.join("launch").join(launch_id.to_string())
    }

    fn exit_path(&self, launch_id: u64) -> PathBuf {
        self.dir.join("exit").join(launch_id.to_string())
    }

    /// By rename: whoever reads the file reads all of it.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = self.dir.join("new");
        fs::write(&new, bytes)?;
        fs::rename(&new, path)
    }
}

/// Wall time for display, in Unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
