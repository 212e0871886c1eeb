//! The instance's files, on a tmpfs: what an agent judges a dead supervisor by.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use proffer_wire::supervisor::v1::journal_entry::Entry;
use proffer_wire::supervisor::v1::{LaunchRecord, ToAgent};

use crate::config::{Config, Isolation};
use crate::daemon::Error;
use crate::journal::Journal;

/// Diagnostics stop here: the directory is memory.
const LOG_MAX: u64 = 256 * 1024;

/// The runtime directory of this instance.
pub(crate) struct Records {
    dir: PathBuf,
    journal: Journal,
    /// An agent that cannot read the journal may be the one to judge.
    for_older: bool,
    /// The launches of which there is a file in `launch`: to an agent that cannot read the journal it says that they were
    /// begun.
    in_files: BTreeSet<u64>,
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
        make(&dir.join("executor"), open)?;
        make(&dir.join("launch"), 0o700)?;
        let journal = dir.join("journal");
        let journal = Journal::create(&journal).map_err(Error::file("create", &journal))?;
        // Until the first agent has said which it is.
        let (for_older, in_files) = (true, BTreeSet::new());
        Ok(Records { dir: dir.to_owned(), journal, for_older, in_files, log, log_bytes: 0 })
    }

    /// Writes `supervisor.json`, by which a restarted agent finds this process.
    pub(crate) fn write_identity(&self, config: &Config, pid: u32, start_ticks: u64) -> io::Result<()> {
        // Both ids are of an alphabet that needs no escaping.
        let text = format!(
            "{{\"instance\":\"{}\",\"framework\":\"{}\",\"pid\":{pid},\"start_ticks\":{start_ticks}}}\n",
            config.instance, config.framework
        );
        // By rename: whoever reads the file reads all of it.
        let new = self.dir.join("new");
        fs::write(&new, text.as_bytes())?;
        fs::rename(&new, self.dir.join("supervisor.json"))
    }

    /// Records that launches are about to be cloned: all of them, or an error and none.
    pub(crate) fn write_launches(
        &mut self,
        launches: impl IntoIterator<Item = u64> + Clone,
    ) -> io::Result<()> {
        let unix_ms = unix_ms();
        let entry = |launch_id| Entry::Launch(LaunchRecord { launch_id, unix_ms });
        let mut written = match self.for_older {
            true => self.write_files(launches.clone()),
            false => Ok(()),
        };
        if written.is_ok() {
            written = self.journal.write(launches.clone().into_iter().map(entry));
        }
        if written.is_err() {
            launches.into_iter().for_each(|launch| self.remove_file(launch));
        }
        written
    }

    /// Says of the `known` launches, and of those to come, that they were begun in a way that an agent understands which
    /// cannot read the journal. It looks no further than whether a file is there; of the end of one whose supervisor
    /// dies it will know nothing, but it does not begin it a second time.
    pub(crate) fn write_for_older(&mut self, known: impl IntoIterator<Item = u64>) -> io::Result<()> {
        self.for_older = true;
        self.write_files(known)
    }

    /// The agent reads the journal: launches to come need no file.
    pub(crate) fn write_journal_alone(&mut self) {
        self.for_older = false;
    }

    fn write_files(&mut self, launches: impl IntoIterator<Item = u64>) -> io::Result<()> {
        for launch in launches {
            if !self.in_files.contains(&launch) {
                File::options().write(true).create(true).truncate(true).open(self.file(launch))?;
                self.in_files.insert(launch);
            }
        }
        Ok(())
    }

    fn remove_file(&mut self, launch: u64) {
        if self.in_files.remove(&launch) {
            let _ = fs::remove_file(self.file(launch));
        }
    }

    fn file(&self, launch: u64) -> PathBuf {
        self.dir.join("launch").join(launch.to_string())
    }

    /// Records how a launch ended.
    pub(crate) fn write_end(&mut self, message: ToAgent) -> io::Result<()> {
        self.journal.write([Entry::End(message)])
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

    /// Removes what is recorded of a launch. If that fails, an agent that finds this supervisor dead finds one launch
    /// more, of which nothing is left.
    pub(crate) fn forget(&mut self, launch_id: u64) -> io::Result<()> {
        self.remove_file(launch_id);
        self.journal.write([Entry::Forgotten(launch_id)])?;
        self.journal.compact_if_long()
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
}

/// Wall time for display, in Unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
