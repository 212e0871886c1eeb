//! The directories of an agent and what is found in them.
//!
//! ```text
//! <work>/                       survives a restart of the host
//!   sandboxes/<launch>/         the task's own directory
//!   logs/<launch>/              stdout.<offset>, stderr.<offset>: the supervisor's, out of the task's reach; marked
//!                               when the launch was forgotten, so that it may be collected; in it `group`, the first of its group
//!   groups/<launch>/            of the group that the launch is the first of:
//!     data/                     what its members share
//!     members/<launch>          an empty file for each that is not forgotten
//! <runtime>/                    on a tmpfs
//!   supervisors/<instance>/     the supervisor's own records, see supervisor.proto
//!   supervisors/<instance>.sock where it listens
//!   supervisors/<instance>.seen the places of sockets that were known when it was started
//!   held/<launch>               a link that says which cgroup and which user ids it has
//! ```
//! `<launch>` and `<instance>` are 16 hexadecimal digits: nothing that a client named is ever part of a path.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};
use proffer_launcher::proc;
use proffer_types::{FrameworkId, LaunchId};
use serde::Deserialize;

use super::records::Journals;
use crate::cgroup::{name, parse};
use crate::gc::{FORGOTTEN, is_marked};
use crate::{Error, InstanceId, Isolation};

/// Where everything is.
#[derive(Clone, Debug)]
pub(crate) struct Dirs {
    pub(crate) work: PathBuf,
    pub(crate) runtime: PathBuf,
    pub(crate) journals: Journals,
}

/// Who a supervisor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) framework: FrameworkId,
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
}

impl Dirs {
    /// Makes what is not there. A plain process reaches its sandbox by its path; a container does not, and then no
    /// user of the host may either: a task may leave programs with the setuid bit there.
    pub(crate) fn create(&self, isolation: Isolation) -> Result<(), Error> {
        let passed_through = match isolation {
            Isolation::Linux => 0o700,
            Isolation::Process => 0o711,
        };
        for (dir, mode) in [
            (self.work.clone(), 0o755),
            (self.runtime.clone(), 0o755),
            (self.work.join("sandboxes"), passed_through),
            (self.work.join("groups"), passed_through),
            (self.work.join("logs"), 0o700),
            (self.supervisors(), passed_through),
        ] {
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(&dir);
            made.map_err(|source| Error::Path { operation: "create directory", path: dir, source })?;
        }
        for path in [self.work.join("sandboxes"), self.work.join("groups"), self.supervisors()] {
            // Of an agent that ran with the other isolation before.
            let set = fs::set_permissions(&path, fs::Permissions::from_mode(passed_through));
            set.map_err(|source| Error::Path { operation: "change the mode of", path, source })?;
        }
        Ok(())
    }

    pub(crate) fn sandbox(&self, launch: LaunchId) -> PathBuf {
        self.work.join("sandboxes").join(name(launch))
    }

    pub(crate) fn logs(&self, launch: LaunchId) -> PathBuf {
        self.work.join("logs").join(name(launch))
    }

    /// What the members of a group share.
    pub(crate) fn group(&self, first: LaunchId) -> PathBuf {
        self.of_group(first).join("data")
    }

    fn of_group(&self, first: LaunchId) -> PathBuf {
        self.work.join("groups").join(name(first))
    }

    fn members(&self, first: LaunchId) -> PathBuf {
        self.of_group(first).join("members")
    }

    /// Makes what the members of a group share, for a launch whose logs have their directory, and opens it.
    pub(crate) fn join_group(&self, first: LaunchId, launch: LaunchId) -> Result<OwnedFd, Error> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Path { operation: "make", path, source }
        };
        let of_group = self.of_group(first);
        // Passed through, read by nobody.
        make_dir(&of_group, 0o711).map_err(failed(&of_group))?;
        let members = self.members(first);
        make_dir(&members, 0o700).map_err(failed(&members))?;
        for (path, text) in
            [(self.logs(launch).join("group"), name(first)), (members.join(name(launch)), String::new())]
        {
            fs::write(&path, text).map_err(failed(&path))?;
        }
        let data = self.group(first);
        // As /tmp is: members may be of different users.
        make_dir(&data, 0o1777).map_err(failed(&data))?;
        make_and_open(&data)
    }

    /// Takes a launch from its group; the group's first, if it was the last member.
    fn leave_group(&self, launch: LaunchId) -> Option<LaunchId> {
        let first = parse(&fs::read_to_string(self.logs(launch).join("group")).ok()?)?;
        let _ = fs::remove_file(self.members(first).join(name(launch)));
        fs::remove_dir(self.members(first)).is_ok().then_some(first)
    }

    /// Where a custom executor that is a plain process finds its socket, as supervisor.proto has it.
    pub(crate) fn executor_socket(&self, instance: InstanceId, launch: LaunchId) -> PathBuf {
        self.instance(instance).join("executor").join(launch.0.to_string()).join("socket")
    }

    pub(crate) fn held(&self) -> PathBuf {
        self.runtime.join("held")
    }

    fn supervisors(&self) -> PathBuf {
        self.runtime.join("supervisors")
    }

    pub(crate) fn instance(&self, instance: InstanceId) -> PathBuf {
        self.supervisors().join(instance.to_string())
    }

    pub(crate) fn socket(&self, instance: InstanceId) -> PathBuf {
        self.supervisors().join(format!("{instance}.sock"))
    }

    fn seen(&self, instance: InstanceId) -> PathBuf {
        self.supervisors().join(format!("{instance}.seen"))
    }

    /// Writes down which places of sockets an instance's containers cannot reach.
    pub(crate) fn write_seen(&self, instance: InstanceId, places: &BTreeSet<PathBuf>) -> Result<(), Error> {
        let mut text = Vec::new();
        for place in places {
            text.extend(place.as_os_str().as_bytes());
            text.push(0);
        }
        let path = self.seen(instance);
        fs::write(&path, text).map_err(|source| Error::Path { operation: "write", path, source })
    }

    /// Reads that; none of an instance of an older release.
    pub(crate) fn read_seen(&self, instance: InstanceId) -> BTreeSet<PathBuf> {
        let text = fs::read(self.seen(instance)).unwrap_or_default();
        let places = text.split(|byte| *byte == 0).filter(|place| !place.is_empty());
        places.map(|place| PathBuf::from(OsStr::from_bytes(place))).collect()
    }

    /// Makes a launch's sandbox for its user, and the directory of its logs, and opens both.
    pub(crate) fn make_sandbox(
        &self,
        launch: LaunchId,
        uid: u32,
        gid: u32,
    ) -> Result<(OwnedFd, OwnedFd), Error> {
        let sandbox = self.sandbox(launch);
        let fd = make_and_open(&sandbox)?;
        if Uid::effective().is_root() {
            nix::unistd::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(
                |error| Error::Path { operation: "change the owner of", path: sandbox, source: error.into() },
            )?;
        }
        Ok((fd, make_and_open(&self.logs(launch))?))
    }

    /// Lets `gc` have a launch's sandbox and logs from now on; what it shared with its group, if it was the last there.
    pub(crate) fn mark_forgotten(&self, launch: LaunchId) -> Result<(), Error> {
        if let Some(first) = self.leave_group(launch) {
            self.mark(first)?;
        }
        // What a group shares is collected with its first, which therefore waits for the others.
        if self.members(launch).exists() { Ok(()) } else { self.mark(launch) }
    }

    /// That, for a launch that was of no group.
    pub(crate) fn mark(&self, launch: LaunchId) -> Result<(), Error> {
        let path = self.logs(launch);
        let mark = || fs::set_permissions(&path, fs::Permissions::from_mode(FORGOTTEN | 0o700));
        match mark() {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.has_more(launch) => Ok(()),
            // The mark needs something to be on.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir(&path).and_then(|()| mark())
            }
            marked => marked,
        }
        .map_err(|source| Error::Path { operation: "mark", path, source })
    }

    /// Whether anything but logs is left of a launch, or of the group that it is the first of.
    fn has_more(&self, launch: LaunchId) -> bool {
        self.sandbox(launch).exists() || self.of_group(launch).exists()
    }

    /// The launches that have a sandbox or logs and are not marked as forgotten.
    pub(crate) fn unforgotten(&self) -> Vec<LaunchId> {
        let mut launches = launches_in(&self.work.join("sandboxes"), parse);
        launches.extend(launches_in(&self.work.join("logs"), parse));
        launches.sort_unstable();
        launches.dedup();
        launches.retain(|&launch| !fs::metadata(self.logs(launch)).is_ok_and(|logs| is_marked(&logs)));
        launches
    }

    /// The instances that have a directory or a socket.
    pub(crate) fn instances(&self) -> Vec<InstanceId> {
        let Ok(entries) = fs::read_dir(self.supervisors()) else { return Vec::new() };
        let mut instances: Vec<_> = entries
            .flatten()
            .filter_map(|entry| {
                let file = entry.file_name();
                let text = file.to_str()?;
                let stem = text.strip_suffix(".sock").or_else(|| text.strip_suffix(".seen")).unwrap_or(text);
                parse(stem).map(|number| InstanceId(number.0))
            })
            .collect();
        instances.sort_unstable();
        instances.dedup();
        instances
    }

    /// Who the supervisor of an instance is, if it lives.
    pub(crate) fn living(&self, instance: InstanceId) -> Option<Identity> {
        let text = fs::read(self.instance(instance).join("supervisor.json")).ok()?;
        let file: IdentityFile = serde_json::from_slice(&text).ok()?;
        let framework = FrameworkId(parse(&file.framework)?.0);
        // The same pid may be another process by now: its start tells.
        let lives = proc::start_ticks(file.pid).is_ok_and(|ticks| ticks == file.start_ticks);
        lives.then_some(Identity { framework, pid: file.pid, start_ticks: file.start_ticks })
    }

    /// Removes all of a dead instance's files.
    pub(crate) fn remove_instance(&self, instance: InstanceId) {
        let _ = fs::remove_file(self.socket(instance));
        let _ = fs::remove_file(self.seen(instance));
        self.journals.forget(instance);
        if let Err(error) = fs::remove_dir_all(self.instance(instance))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%instance, %error, "the directory of a dead supervisor cannot be removed");
        }
    }

    /// Removes the runtime directory's own parts, if they are empty.
    pub(crate) fn remove_runtime(&self) {
        let _ = fs::remove_dir(self.supervisors());
        let _ = fs::remove_dir(&self.runtime);
    }
}

#[derive(Deserialize)]
struct IdentityFile {
    framework: String,
    pid: i32,
    start_ticks: u64,
}

fn launches_in(dir: &Path, parse: impl Fn(&str) -> Option<LaunchId>) -> Vec<LaunchId> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| parse(entry.file_name().to_str()?)).collect()
}

/// Makes a directory with this mode whatever the mask; one that is there stays as it is.
fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn make_and_open(path: &Path) -> Result<OwnedFd, Error> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => {
            return Err(Error::Path { operation: "create directory", path: path.to_owned(), source });
        }
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(|error| Error::Path {
        operation: "open directory",
        path: path.to_owned(),
        source: error.into(),
    })
}
