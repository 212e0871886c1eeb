//! Faults of the disk and of what lies on it.

use std::io;
use std::path::{Path, PathBuf};

/// Why something on disk could not be read, written or believed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation.
    #[error("{op} {}", path.display())]
    Io {
        /// The operation, as a verb ("write", "sync", ...).
        op: &'static str,
        /// The file or directory it was tried on.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Bytes that were acknowledged as stored are not what was stored. Nothing was changed.
    #[error(
        "{} is damaged at byte {offset}: {what}; the file was left as it is. Restore this data directory \
         from a copy, or remove this node from its cluster and let a fresh one take its place",
        path.display()
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Byte offset of the damage within the file.
        offset: u64,
        /// What was expected and found.
        what: String,
    },
    /// A file or record that a newer version of this software wrote. Nothing was changed.
    #[error(
        "{} holds {what} at byte {offset}, which this version does not know; the file was left as it is. \
         Start the version that wrote it, or a newer one",
        path.display()
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Byte offset of what is unknown.
        offset: u64,
        /// Kind and version found.
        what: String,
    },
    /// Another process has this directory open.
    #[error("{} is in use by another process; stop that one first, or choose another directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// An earlier write or sync failed, so the state of the file is not known any more: it must be reopened
    /// by a new process (the kernel reports a failed sync only once, so a retry could lie).
    #[error("{} is closed after an earlier failed {op}", path.display())]
    Poisoned {
        /// The operation that failed.
        op: &'static str,
        /// The log's directory.
        path: PathBuf,
    },
    /// A record larger than the format can hold.
    #[error("record of {len} bytes for {} is over the limit of {limit}", path.display())]
    TooLarge {
        /// The log's directory.
        path: PathBuf,
        /// Length of the record.
        len: usize,
        /// The limit.
        limit: usize,
    },
}

impl Error {
    pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { op, path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> Error {
        Error::Corrupt { path: path.to_owned(), offset, what: what.into() }
    }

    pub(crate) fn unknown(path: &Path, offset: u64, what: impl Into<String>) -> Error {
        Error::Unknown { path: path.to_owned(), offset, what: what.into() }
    }
}
