//! The files of one log stream.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::pump::BUFFER_BYTES;
use crate::pump_protocol::{Rotation, Which};

/// However small the pieces are that losses cut a stream into, no more files than this.
const FILES_MAX: usize = 64;

/// What became of bytes that were to be kept.
pub(crate) enum Kept {
    /// So many were written; none if there were none.
    Bytes(u64),
    /// They could not be written, and so many of them are lost by that; the others are where they were.
    Lost(u64),
    /// There will be none any more.
    Ended,
}

/// The chain of files `<stream>.<start_offset>`. Where bytes were thrown away a file ends, and the next one begins
/// above its end. Before its first byte a stream has none.
pub(crate) struct Files {
    which: Which,
    rotation: Rotation,
    dir: Rc<OwnedFd>,
    /// The newest file, if it could be opened.
    file: Option<File>,
    /// Where the files begin and how long they are, ascending; the newest one is last.
    pieces: VecDeque<Piece>,
    found: Found,
    /// The offset of the next byte.
    offset: u64,
    splice: bool,
}

/// Whether the files that are there are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// There should be none; what is there all the same is not written over.
    New,
    /// They are to be looked at.
    Unknown,
    Known,
}

struct Piece {
    start: u64,
    length: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.length
    }
}

impl Files {
    /// Goes on with the newest file in the directory, if the stream is not `new`; what fails is tried again with the
    /// next byte.
    pub(crate) fn new(which: Which, rotation: Rotation, dir: Rc<OwnedFd>, offset: u64, new: bool) -> Self {
        let found = if new { Found::New } else { Found::Unknown };
        Files { which, rotation, dir, file: None, pieces: VecDeque::new(), found, offset, splice: true }
    }

    /// Finds out what is there: before that nothing may be written, or it would be over something else.
    fn find(&mut self) -> io::Result<()> {
        if self.found == Found::New {
            self.found = Found::Unknown;
            match self.open_file(self.offset, OFlag::O_EXCL) {
                Ok(file) => {
                    self.file = Some(file);
                    self.pieces.push_back(Piece { start: self.offset, length: 0 });
                    self.found = Found::Known;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        if self.found == Found::Known {
            return Ok(());
        }
        self.pieces = existing(&self.dir, self.which.name())?;
        self.found = Found::Known;
        // What the pump before lost at last may not show in the files.
        self.offset = self.pieces.back().map_or(0, Piece::end).max(self.offset);
        if let Some(newest) = self.pieces.back() {
            self.file = Some(self.open_file(newest.start, OFlag::empty())?);
        }
        Ok(())
    }

    /// The offset of the next byte.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// So many bytes of the stream are in no file.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.offset += bytes;
    }

    /// The stream is at its end. What was lost at last shows as an empty file.
    pub(crate) fn end(&mut self) {
        if self.offset == 0 || self.find().is_err() {
            return;
        }
        if self.pieces.back().map_or(0, Piece::end) != self.offset {
            let _ = self.begin();
        }
    }

    /// Moves bytes from a pipe that has some, at most `room` of them.
    pub(crate) fn keep(&mut self, pipe: &OwnedFd, room: u64) -> Kept {
        // What it found and could not open is begun anew below.
        let _ = self.find();
        if self.found != Found::Known {
            return Kept::Lost(0);
        }
        let newest = self.pieces.back().filter(|newest| newest.end() == self.offset);
        let fits = newest.is_some_and(|newest| newest.length < self.rotation.file_bytes);
        if (!fits || self.file.is_none()) && self.begin().is_err() {
            return Kept::Lost(0);
        }
        let (Some(file), Some(newest)) = (&self.file, self.pieces.back_mut()) else { return Kept::Lost(0) };
        let room = room.min(self.rotation.file_bytes - newest.length);
        let mut kept = Kept::Ended;
        if self.splice {
            kept = match splice(pipe, file, newest.length, room) {
                Ok(bytes) => Kept::Bytes(bytes),
                // A file system, or a terminal, that does not know how.
                Err(libc::EINVAL) => {
                    self.splice = false;
                    Kept::Ended
                }
                Err(libc::EAGAIN) => Kept::Bytes(0),
                Err(_) => Kept::Lost(0),
            };
        }
        if !self.splice {
            kept = copy(pipe, file, newest.length, room);
        }
        if let Kept::Bytes(bytes) = kept {
            newest.length += bytes;
            self.offset += bytes;
        }
        kept
    }

    /// Begins a file at the offset of the next byte.
    fn begin(&mut self) -> io::Result<()> {
        let start = self.offset;
        self.file = Some(self.open_file(start, OFlag::empty())?);
        // One that stayed empty says nothing that the new one does not.
        if let Some(empty) = self.pieces.pop_back_if(|newest| newest.length == 0 && newest.start != start) {
            self.remove(&empty);
        }
        if self.pieces.back().is_none_or(|newest| newest.start != start) {
            self.pieces.push_back(Piece { start, length: 0 });
        }
        self.forget_old();
        Ok(())
    }

    /// Keeps as many bytes as full files would hold, whatever pieces they are in.
    fn forget_old(&mut self) {
        let most = u64::from(self.rotation.files.saturating_sub(1)).saturating_mul(self.rotation.file_bytes);
        loop {
            let count = self.pieces.len();
            let older: u64 = self.pieces.iter().take(count.saturating_sub(1)).map(|piece| piece.length).sum();
            let many = count > FILES_MAX.max(self.rotation.files as usize);
            if count < 2 || (older <= most && !many) {
                return;
            }
            if let Some(oldest) = self.pieces.pop_front() {
                self.remove(&oldest);
            }
        }
    }

    fn remove(&self, piece: &Piece) {
        let name = self.file_name(piece.start);
        let _ = nix::unistd::unlinkat(&*self.dir, name.as_str(), nix::unistd::UnlinkatFlags::NoRemoveDir);
    }

    fn open_file(&self, start: u64, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o640);
        Ok(openat(&*self.dir, self.file_name(start).as_str(), flags, mode)?.into())
    }

    fn file_name(&self, start: u64) -> String {
        format!("{}.{start}", self.which.name())
    }
}

fn splice(pipe: &OwnedFd, file: &File, at: u64, room: u64) -> Result<u64, i32> {
    let mut offset = i64::try_from(at).map_err(|_| libc::EFBIG)?;
    // SAFETY: both descriptors are owned by the caller and the offset here.
    let result = unsafe {
        let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
        let none = std::ptr::null_mut();
        libc::splice(pipe.as_raw_fd(), none, file.as_raw_fd(), &mut offset, room as usize, flags)
    };
    u64::try_from(result).map_err(|_| io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn copy(pipe: &OwnedFd, file: &File, at: u64, room: u64) -> Kept {
    let mut buffer = [0; BUFFER_BYTES];
    let room = room.min(BUFFER_BYTES as u64) as usize;
    match nix::unistd::read(pipe, &mut buffer[..room]) {
        Ok(bytes) => match file.write_all_at(&buffer[..bytes], at) {
            Ok(()) => Kept::Bytes(bytes as u64),
            Err(_) => Kept::Lost(bytes as u64),
        },
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => Kept::Bytes(0),
        // A terminal of which nobody has the other side any more.
        Err(_) => Kept::Ended,
    }
}

/// The files of a stream that are there.
fn existing(dir: &OwnedFd, stream: &str) -> io::Result<VecDeque<Piece>> {
    // A description of its own: reading moves the position.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut entries = nix::dir::Dir::openat(dir, ".", flags, Mode::empty())?;
    let mut pieces = Vec::new();
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        let start = name.strip_prefix(stream).and_then(|rest| rest.strip_prefix('.'));
        let Some(start) = start.and_then(|start| start.parse::<u64>().ok()) else { continue };
        let stat = nix::sys::stat::fstatat(dir, &*name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
        pieces.push(Piece { start, length: stat.st_size.max(0) as u64 });
    }
    pieces.sort_unstable_by_key(|piece| piece.start);
    Ok(pieces.into())
}

#[cfg(test)]
impl Files {
    pub(crate) fn use_splice(&mut self, splice: bool) {
        self.splice = splice;
    }

    pub(crate) fn look_at(&mut self, dir: OwnedFd) {
        self.dir = Rc::new(dir);
    }

    /// The next bytes go into this one.
    pub(crate) fn write_to(&mut self, file: File) {
        self.file = Some(file);
    }
}
