//! What can go wrong, with the operation and its object.

use std::io;
use std::path::PathBuf;

/// Why the containerizer could not be opened or could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file system operation failed.
    #[error("{operation} {path}", path = path.display())]
    Path {
        /// What was tried, such as `create directory`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A system call that has no path failed.
    #[error("{operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A cgroup controller refused a value.
    #[error("set {what} to {value} in cgroup {path}", path = path.display())]
    Limit {
        /// The limit's name.
        what: &'static str,
        /// What it was to become, in the kernel's unit.
        value: u64,
        /// The group's directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: cgroups_rs::fs::error::Error,
    },
    /// What a task asks of its container cannot be had on this node.
    #[error("{field}: {why}")]
    Refused {
        /// The field of the task's specification.
        field: String,
        /// Why not.
        why: String,
    },
    /// A controller that limits need is neither in the v2 tree nor mounted as a v1 hierarchy.
    #[error(
        "cgroup controllers missing: {missing} (neither v1 nor v2 under {root} has all of cpu, memory, pids)"
    )]
    Controllers {
        /// Their names.
        missing: String,
        /// Where it was looked.
        root: String,
    },
    /// Linux containers need root.
    #[error("containers with isolation `linux` need root; `process` does not, and contains nothing")]
    NotRoot,
    /// An option has a value that cannot be used.
    #[error("{name} is {value:?}: {expected}")]
    Option {
        /// Its name.
        name: &'static str,
        /// What it was.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// Why logs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There are none of this launch on this node, or none any more.
    #[error("no logs of launch {launch:x} on this node")]
    NotFound {
        /// The launch.
        launch: u64,
    },
    /// Reading failed.
    #[error("{operation} of launch {launch:x}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The launch.
        launch: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
