//! Reading a task's logs by byte offset.
//!
//! The files lie outside the sandbox in a directory that belongs to root, so that a task can neither replace nor
//! truncate them; they are opened as what they should be (a regular file, no symbolic link, beneath their directory)
//! all the same.
//!
//! Each stream is a chain of files `<stream>.<offset>`, the number being the offset of the file's first byte in all
//! that the stream ever carried: an offset stays valid over rotation, and what was rotated away shows as a gap.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use proffer_types::LaunchId;
use rustix::fs::{OFlags, ResolveFlags};

use crate::LogError;

/// One of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// `stdout` or `stderr`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Some bytes of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The offset of the first byte of `bytes`; above the offset asked for if bytes were lost.
    pub offset: u64,
    /// The bytes; none if there are none yet, or no more.
    pub bytes: Vec<u8>,
    /// How many bytes from the offset asked for are lost, by rotation.
    pub lost: u64,
    /// Nothing will ever follow these bytes.
    pub ended: bool,
}

/// Launches that may still write.
pub(crate) type Writing = Arc<RwLock<BTreeSet<LaunchId>>>;

/// Reads the logs of one launch.
#[derive(Clone, Debug)]
pub struct LogReader {
    launch: LaunchId,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Files { dir: PathBuf, writing: Writing },
    Memory { stdout: Arc<Vec<u8>>, stderr: Arc<Vec<u8>>, ended: bool },
}

impl LogReader {
    pub(crate) fn files(launch: LaunchId, dir: PathBuf, writing: Writing) -> Self {
        Self { launch, source: Source::Files { dir, writing } }
    }

    pub(crate) fn memory(launch: LaunchId, stdout: Arc<Vec<u8>>, stderr: Arc<Vec<u8>>, ended: bool) -> Self {
        Self { launch, source: Source::Memory { stdout, stderr, ended } }
    }

    /// The directory of the files, if the logs lie in files: what is written changes it or what is in it.
    pub fn dir(&self) -> Option<&std::path::Path> {
        match &self.source {
            Source::Files { dir, .. } => Some(dir),
            Source::Memory { .. } => None,
        }
    }

    /// At most `max` bytes from `offset` on. Offsets beyond the end give nothing.
    pub fn read(&self, stream: Stream, offset: u64, max: usize) -> Result<Chunk, LogError> {
        match &self.source {
            Source::Files { dir, writing } => {
                // Asked before the files are read: what was written before the end is then seen with it.
                let ended = !writing.read().unwrap_or_else(|e| e.into_inner()).contains(&self.launch);
                let files = Files { launch: self.launch, dir };
                let mut chunk = match files.read(stream, offset, max) {
                    // It has not come as far as to have a log.
                    Err(LogError::NotFound { .. }) if !ended => Chunk { offset, ..Chunk::default() },
                    read => read?,
                };
                chunk.ended = ended && chunk.offset + chunk.bytes.len() as u64 >= files.end(stream)?;
                Ok(chunk)
            }
            Source::Memory { stdout, stderr, ended } => {
                let all = if stream == Stream::Stdout { stdout } else { stderr };
                let start = all.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                let bytes = all[start..all.len().min(start.saturating_add(max))].to_vec();
                let at_end = start + bytes.len() == all.len();
                Ok(Chunk { offset, bytes, lost: 0, ended: *ended && at_end })
            }
        }
    }

    /// The offset after the last byte written so far: where following from "now" begins.
    pub fn end(&self, stream: Stream) -> Result<u64, LogError> {
        match &self.source {
            Source::Files { dir, .. } => Files { launch: self.launch, dir }.end(stream),
            Source::Memory { stdout, stderr, .. } => {
                Ok(if stream == Stream::Stdout { stdout.len() } else { stderr.len() } as u64)
            }
        }
    }
}

struct Files<'a> {
    launch: LaunchId,
    dir: &'a PathBuf,
}

impl Files<'_> {
    fn read(&self, stream: Stream, offset: u64, max: usize) -> Result<Chunk, LogError> {
        // A file may be rotated away between listing and opening: then the list is stale and read anew.
        for _ in 0..8 {
            let (dir, starts) = self.list(stream)?;
            let Some(&first) = starts.first() else {
                return Ok(Chunk { offset, ..Chunk::default() });
            };
            let mut from = offset.max(first);
            let mut bytes = Vec::new();
            let mut stale = false;
            let at = starts.partition_point(|&start| start <= from) - 1;
            for &start in &starts[at..] {
                // The pump drops bytes rather than stall a task: then a file ends before the next one begins.
                if bytes.is_empty() {
                    from = from.max(start);
                }
                let next = from + bytes.len() as u64;
                if bytes.len() >= max || start > next {
                    break;
                }
                match self.open(&dir, stream, start)? {
                    Some(file) => self.fill(&file, next - start, max, &mut bytes)?,
                    None => {
                        stale = bytes.is_empty();
                        break;
                    }
                }
            }
            if !stale {
                return Ok(Chunk { offset: from, bytes, lost: from - offset, ended: false });
            }
        }
        Ok(Chunk { offset, ..Chunk::default() })
    }

    fn end(&self, stream: Stream) -> Result<u64, LogError> {
        let (dir, starts) = self.list(stream)?;
        let Some(&last) = starts.last() else { return Ok(0) };
        let file = self.open(&dir, stream, last)?;
        let length = file.map(|file| file.metadata()).transpose().map_err(|e| self.fault("stat a log", e))?;
        Ok(last + length.map_or(0, |meta| meta.len()))
    }

    fn list(&self, stream: Stream) -> Result<(Dir, Vec<u64>), LogError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut dir = match Dir::open(self.dir, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(nix::errno::Errno::ENOENT) => return Err(LogError::NotFound { launch: self.launch.0 }),
            Err(error) => return Err(self.fault("open the log directory", error.into())),
        };
        let mut starts = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|e| self.fault("list the logs", e.into()))?;
            let name = entry.file_name().to_str().ok();
            let start: Option<u64> =
                name.and_then(|name| name.strip_prefix(stream.name())?.strip_prefix('.')?.parse().ok());
            starts.extend(start);
        }
        starts.sort_unstable();
        Ok((dir, starts))
    }

    fn open(&self, dir: &Dir, stream: Stream, start: u64) -> Result<Option<File>, LogError> {
        use std::os::fd::AsFd;
        let name = format!("{}.{start}", stream.name());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        match rustix::fs::openat2(dir.as_fd(), name.as_str(), flags, rustix::fs::Mode::empty(), resolve) {
            Ok(fd) => {
                let file = File::from(fd);
                let meta = file.metadata().map_err(|e| self.fault("stat a log", e))?;
                if meta.is_file() {
                    Ok(Some(file))
                } else {
                    Err(self.fault("open a log", io::Error::other(format!("{name} is no regular file"))))
                }
            }
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(self.fault("open a log", error.into())),
        }
    }

    fn fill(&self, file: &File, mut at: u64, max: usize, bytes: &mut Vec<u8>) -> Result<(), LogError> {
        let mut part = [0; 64 * 1024];
        while bytes.len() < max {
            let want = part.len().min(max - bytes.len());
            match file.read_at(&mut part[..want], at) {
                Ok(0) => break,
                Ok(count) => {
                    bytes.extend_from_slice(&part[..count]);
                    at += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fault("read a log", error)),
            }
        }
        Ok(())
    }

    fn fault(&self, operation: &'static str, source: io::Error) -> LogError {
        LogError::Io { operation, launch: self.launch.0, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(dir: &std::path::Path) -> (LogReader, Writing) {
        let writing = Writing::default();
        writing.write().unwrap().insert(LaunchId(7));
        (LogReader::files(LaunchId(7), dir.to_owned(), writing.clone()), writing)
    }

    #[test]
    fn offsets_stay_valid_over_rotation() {
        let dir = std::env::temp_dir().join(format!("proffer-logs-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (logs, writing) = reader(&dir);
        assert_eq!(logs.read(Stream::Stdout, 3, 9).unwrap(), Chunk { offset: 3, ..Chunk::default() });
        for (name, bytes) in [
            ("stdout.10", "abcdefghij"),
            ("stdout.20", "klm"),
            ("stdout.30", "xyz"),
            ("stderr.0", "e"),
            ("stdout.x", "!"),
        ] {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        let read = |offset, max| {
            let chunk = logs.read(Stream::Stdout, offset, max).unwrap();
            (chunk.offset, String::from_utf8(chunk.bytes).unwrap(), chunk.lost, chunk.ended)
        };
        assert_eq!(read(0, 100), (10, "abcdefghijklm".into(), 10, false));
        assert_eq!(read(18, 3), (18, "ijk".into(), 0, false));
        assert_eq!(read(22, 9), (22, "m".into(), 0, false));
        assert_eq!(read(23, 2), (30, "xy".into(), 7, false));
        assert_eq!(read(33, 3), (33, String::new(), 0, false));
        assert_eq!(read(99, 3), (99, String::new(), 0, false));
        assert_eq!(logs.end(Stream::Stdout).unwrap(), 33);
        writing.write().unwrap().clear();
        assert_eq!(read(32, 3), (32, "z".into(), 0, true));
        assert_eq!(read(12, 3), (12, "cde".into(), 0, false));
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(matches!(logs.read(Stream::Stdout, 0, 1), Err(LogError::NotFound { launch: 7 })));
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = std::env::temp_dir().join(format!("proffer-logs-link-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (logs, _) = reader(&dir);
        std::os::unix::fs::symlink("/etc/passwd", dir.join("stdout.0")).unwrap();
        assert!(logs.read(Stream::Stdout, 0, 10).is_err());
        nix::unistd::mkfifo(&dir.join("stderr.0"), Mode::S_IRUSR).unwrap();
        assert!(logs.read(Stream::Stderr, 0, 10).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
