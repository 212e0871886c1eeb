//! Files of a sandbox, handled as what they are: under the hands of a program that may change any of them at any
//! moment, into anything.
//!
//! Every path is resolved by `openat2` beneath the sandbox's directory, through no symbolic link, no magic link and no
//! mount. A file is first held by a descriptor that opens nothing (`O_PATH`), looked at, and only a regular file is
//! then opened, through that descriptor: no fifo is waited for and no device is touched. What is written is a new file
//! under a name of our own, renamed to its place when it is whole: nothing that the task made is ever written to.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use proffer_wire::admin::v1::file_item::Item;
use proffer_wire::admin::v1::{FileEntry, FileHead, FileItem, FileKind, FileSkipped, FilesEnd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec};
use rustix::io::Errno;

use super::{CHUNK_BYTES, Refusal};

/// How often a resolution is repeated that the kernel gave up because something was renamed meanwhile.
const RETRIES: usize = 64;
/// Files and directories that are read at once: whoever makes new ones all the time has its reader stop some time.
const ENTRIES_MAX: u64 = 1_000_000;
/// How deep directories are read.
const DEPTH_MAX: usize = 256;
/// Names of a list, all together (bytes): its message stays small beside every limit.
const LIST_BYTES_MAX: usize = 128 << 10;
/// What any entry of a list takes beside its name.
const ENTRY_BYTES: usize = 64;
/// Permissions that are taken over: never setuid, setgid or sticky.
const MODE_MASK: u32 = 0o777;

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "the task has no sandbox on its agent: it was never started there, or it was removed some time after its end"
    )]
    NoSandbox,
    #[error("`{}`: no such file or directory in the task's sandbox", clean(.0))]
    NotFound(PathBuf),
    #[error("`{}`: a symbolic link is on the way, and none is followed", clean(.0))]
    Link(PathBuf),
    #[error("`{}`: leads out of the sandbox", clean(.0))]
    Outside(PathBuf),
    #[error("`{}`: not a directory", clean(.0))]
    NotADirectory(PathBuf),
    #[error("`{}`: is a directory", clean(.0))]
    IsADirectory(PathBuf),
    #[error("`{}`: neither a regular file nor a directory", clean(.0))]
    Special(PathBuf),
    #[error("`{}`: has several names and belongs to another user than the task", clean(.0))]
    Foreign(PathBuf),
    #[error("{0}")]
    OutOfPlace(&'static str),
    #[error("{operation} `{}`: {source}", clean(path))]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

impl Error {
    fn code(&self) -> &'static str {
        match self {
            Self::NoSandbox | Self::NotFound(_) => "NO_SUCH_FILE",
            Self::Link(_) | Self::Outside(_) | Self::Foreign(_) => "UNSAFE_PATH",
            Self::NotADirectory(_) => "NOT_A_DIRECTORY",
            Self::IsADirectory(_) => "IS_A_DIRECTORY",
            Self::Special(_) => "NOT_REGULAR",
            Self::OutOfPlace(_) => "INVALID",
            Self::Io { .. } => "IO_ERROR",
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// A name that a task chose, for messages: only plain characters, and not endless.
fn clean(path: &Path) -> String {
    let text = path.to_string_lossy();
    let shown = if text.is_empty() { "." } else { &*text };
    let mut clean: String = shown.chars().take(200).flat_map(char::escape_debug).collect();
    if shown.chars().count() > 200 {
        clean.push('…');
    }
    clean
}

/// A task's sandbox.
#[derive(Debug)]
pub(super) struct Sandbox {
    root: OwnedFd,
    /// The task's user: the sandbox's owner.
    uid: u32,
    gid: u32,
}

/// What is done with each piece; `false` if that is enough.
pub(super) type Emit<'a> = &'a mut dyn FnMut(Item) -> bool;

impl Sandbox {
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Error> {
        let path = path.ok_or(Error::NoSandbox)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => Error::NoSandbox,
            errno => fault("open", Path::new(""), errno),
        })?;
        let stat = rustix::fs::fstat(&root).map_err(|errno| fault("look at", Path::new(""), errno))?;
        Ok(Self { root, uid: stat.st_uid, gid: stat.st_gid })
    }

    /// Opens what lies at a path.
    fn reach(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Error> {
        reach(&self.root, path, flags).map_err(|errno| self.refused(path, errno))
    }

    fn refused(&self, path: &Path, errno: Errno) -> Error {
        let path = path.to_owned();
        match errno {
            Errno::NOENT => Error::NotFound(path),
            Errno::LOOP => Error::Link(path),
            Errno::XDEV => Error::Outside(path),
            Errno::NOTDIR => Error::NotADirectory(path),
            errno => fault("open", &path, errno),
        }
    }

    /// Holds what lies at a path without opening it.
    fn look(&self, path: &Path) -> Result<(OwnedFd, Stat), Error> {
        let fd = self.reach(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| fault("look at", path, errno))?;
        Ok((fd, stat))
    }

    /// Opens a regular file that is held.
    fn open_held(&self, held: &OwnedFd, stat: &Stat, path: &Path) -> Result<File, Error> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Error::IsADirectory(path.to_owned())),
            FileType::Symlink => return Err(Error::Link(path.to_owned())),
            _ => return Err(Error::Special(path.to_owned())),
        }
        // A second name may be one that somebody else keeps elsewhere: what the task could not read is not read for it.
        if stat.st_nlink > 1 && stat.st_uid != self.uid {
            return Err(Error::Foreign(path.to_owned()));
        }
        // The very file that was looked at, whatever has its name by now.
        let name = format!("/proc/self/fd/{}", held.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(name, flags, Mode::empty()).map_err(|errno| fault("open", path, errno))?;
        Ok(File::from(fd))
    }

    /// Some entries of a directory, the token of the next ones, and whether it is one; of anything else the one entry.
    pub(super) fn list(
        &self,
        path: &Path,
        most: usize,
        token: &[u8],
    ) -> Result<(Vec<FileEntry>, Vec<u8>, bool), Error> {
        let (_, stat) = self.look(path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let name = path.file_name().unwrap_or_default();
            return Ok((vec![entry(name.as_bytes(), &stat)], Vec::new(), false));
        }
        let mut dir = self.directory(path, token)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while let Some(next) = dir.read() {
            let next = next.map_err(|errno| fault("list", path, errno))?;
            let name = next.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let fd = dir.fd().map_err(|errno| fault("list", path, errno))?;
            // It may be gone by now.
            if let Ok(stat) = rustix::fs::statat(fd, next.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                entries.push(entry(name, &stat));
                bytes += name.len() + ENTRY_BYTES;
            }
            if entries.len() >= most || bytes >= LIST_BYTES_MAX {
                return Ok((entries, next.offset().to_be_bytes().to_vec(), true));
            }
        }
        Ok((entries, Vec::new(), true))
    }

    /// A directory, from where a token says.
    fn directory(&self, path: &Path, token: &[u8]) -> Result<Dir, Error> {
        let fd = self.reach(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        let mut dir = Dir::new(fd).map_err(|errno| fault("list", path, errno))?;
        if !token.is_empty() {
            let token =
                token.try_into().map_err(|_| Error::OutOfPlace("token: is not one of a page before"))?;
            dir.seek(i64::from_be_bytes(token)).map_err(|errno| fault("list", path, errno))?;
        }
        Ok(dir)
    }

    /// Reads a file, or a directory with all that is beneath; what cannot be had is told and left out.
    pub(super) fn read(&self, path: &Path, emit: Emit<'_>) -> Result<(), Error> {
        let (held, stat) = self.look(path)?;
        let mut reading = Reading { sandbox: self, path, emit, sum: FilesEnd::default() };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                if reading.directory_begins(Path::new(""), &stat) {
                    reading.beneath();
                }
            }
            _ => {
                let file = self.open_held(&held, &stat, path)?;
                reading.file(Path::new(""), file, &stat);
            }
        }
        let sum = reading.sum;
        emit(Item::End(sum));
        Ok(())
    }
}

/// Beneath a directory, through no link and no mount.
fn reach(root: &impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    for _ in 0..RETRIES {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Something on the way was renamed meanwhile.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

fn fault(operation: &'static str, path: &Path, errno: Errno) -> Error {
    Error::Io { operation, path: path.to_owned(), source: errno.into() }
}

fn kind(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

fn modified_ms(stat: &Stat) -> u64 {
    let (seconds, nanos) = (stat.st_mtime as i128, stat.st_mtime_nsec as i128);
    u64::try_from((seconds * 1_000 + nanos / 1_000_000).max(0)).unwrap_or(0)
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn entry(name: &[u8], stat: &Stat) -> FileEntry {
    FileEntry {
        name: Bytes::copy_from_slice(name),
        kind: kind(stat).into(),
        size: size(stat),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_ms: modified_ms(stat),
    }
}

/// A directory that is being read.
struct Frame {
    /// Beneath what was asked for.
    path: PathBuf,
    /// Where to go on in it. It is opened anew after each directory in it: no tree, however deep, holds descriptors.
    at: Option<i64>,
}

struct Reading<'a> {
    sandbox: &'a Sandbox,
    /// What was asked for.
    path: &'a Path,
    emit: Emit<'a>,
    sum: FilesEnd,
}

impl Reading<'_> {
    fn beneath(&mut self) {
        let mut frames = vec![Frame { path: PathBuf::new(), at: None }];
        while let Some(frame) = frames.pop() {
            let full = self.path.join(&frame.path);
            let token = frame.at.map(|at| at.to_be_bytes().to_vec()).unwrap_or_default();
            let mut dir = match self.sandbox.directory(&full, &token) {
                Ok(dir) => dir,
                Err(error) => {
                    if !self.skip(&frame.path, error.to_string()) {
                        return;
                    }
                    continue;
                }
            };
            let deep = frames.len() + 1 >= DEPTH_MAX;
            match self.some(&mut dir, &frame.path, deep) {
                Next::Enough => return,
                Next::Done => {}
                Next::Deeper(path, at) => {
                    frames.push(Frame { path: frame.path, at: Some(at) });
                    frames.push(Frame { path, at: None });
                }
            }
        }
    }

    /// Reads what is in a directory, up to the next directory.
    fn some(&mut self, dir: &mut Dir, path: &Path, deep: bool) -> Next {
        while let Some(next) = dir.read() {
            let next = match next {
                Ok(next) => next,
                Err(errno) => {
                    return Next::after(self.skip(path, fault("list", path, errno).to_string()));
                }
            };
            let name = OsStr::from_bytes(next.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let here = path.join(name);
            if self.sum.files + self.sum.skipped >= ENTRIES_MAX {
                self.skip(&here, format!("more than {ENTRIES_MAX} files: the rest is left out"));
                return Next::Enough;
            }
            let Ok(fd) = dir.fd() else { return Next::Done };
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            let held = match reach(&fd, Path::new(name), flags) {
                Ok(held) => held,
                // It is gone.
                Err(Errno::NOENT) => continue,
                Err(errno) => {
                    let why = self.sandbox.refused(&here, errno).to_string();
                    if !self.skip(&here, why) {
                        return Next::Enough;
                    }
                    continue;
                }
            };
            let Ok(stat) = rustix::fs::fstat(&held) else { continue };
            let goes_on = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if deep => {
                    self.skip(&here, format!("deeper than {DEPTH_MAX} directories"))
                }
                FileType::Directory => {
                    if !self.directory_begins(&here, &stat) {
                        return Next::Enough;
                    }
                    return Next::Deeper(here, next.offset());
                }
                _ => match self.sandbox.open_held(&held, &stat, &here) {
                    Ok(file) => self.file(&here, file, &stat),
                    Err(error) => self.skip(&here, error.to_string()),
                },
            };
            if !goes_on {
                return Next::Enough;
            }
        }
        Next::Done
    }

    fn directory_begins(&mut self, path: &Path, stat: &Stat) -> bool {
        self.sum.files += 1;
        (self.emit)(Item::Head(head(path, FileKind::Directory, stat)))
    }

    /// Sends a file as long as it was when it was opened: one that grows for ever ends all the same.
    fn file(&mut self, path: &Path, mut file: File, stat: &Stat) -> bool {
        self.sum.files += 1;
        if !(self.emit)(Item::Head(head(path, FileKind::Regular, stat))) {
            return false;
        }
        let mut left = size(stat);
        while left > 0 {
            let mut piece = vec![0; usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
            match file.read(&mut piece) {
                // It was cut.
                Ok(0) => break,
                Ok(count) => {
                    piece.truncate(count);
                    left -= count as u64;
                    self.sum.bytes += count as u64;
                    if !(self.emit)(Item::Data(piece.into())) {
                        return false;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.skip(path, format!("what follows cannot be read: {error}")),
            }
        }
        true
    }

    fn skip(&mut self, path: &Path, why: String) -> bool {
        self.sum.skipped += 1;
        // Its path is told beside it.
        let why = why.strip_prefix(&format!("`{}`: ", clean(path))).map(str::to_owned).unwrap_or(why);
        let path = Bytes::copy_from_slice(path.as_os_str().as_bytes());
        (self.emit)(Item::Skipped(FileSkipped { path, why }))
    }
}

/// What comes after some entries of a directory.
enum Next {
    /// The reader has enough.
    Enough,
    /// Nothing more in it.
    Done,
    /// A directory in it, and where to go on in this one then.
    Deeper(PathBuf, i64),
}

impl Next {
    fn after(goes_on: bool) -> Self {
        if goes_on { Self::Done } else { Self::Enough }
    }
}

fn head(path: &Path, kind: FileKind, stat: &Stat) -> FileHead {
    FileHead {
        path: Bytes::copy_from_slice(path.as_os_str().as_bytes()),
        kind: kind.into(),
        mode: stat.st_mode & MODE_MASK,
        size: size(stat),
        modified_ms: modified_ms(stat),
    }
}

/// Puts files into a sandbox.
#[derive(Debug)]
pub(super) struct Writing {
    sandbox: Sandbox,
    /// Where they go.
    base: PathBuf,
    open: Option<Open>,
    sum: FilesEnd,
    ended: bool,
}

/// A file that is not whole yet. It has a name of ours, and loses it unless it becomes whole.
#[derive(Debug)]
struct Open {
    parent: OwnedFd,
    temporary: OsString,
    name: OsString,
    path: PathBuf,
    file: File,
    head: FileHead,
    whole: bool,
}

impl Writing {
    /// Where a directory is at `path` the files go into it under `name`; else `path` is their name.
    pub(super) fn begin(sandbox: Sandbox, path: &Path, name: &Path) -> Result<Self, Error> {
        let base = match sandbox.look(path) {
            Ok((_, stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => path.join(name),
            Ok(_) | Err(Error::NotFound(_)) => path.to_owned(),
            Err(error) => return Err(error),
        };
        let writing = Self { sandbox, base, open: None, sum: FilesEnd::default(), ended: false };
        // At once, before anything is sent in vain.
        writing.parent(&writing.base)?;
        Ok(writing)
    }

    /// The directory of a path, and the name in it.
    fn parent(&self, path: &Path) -> Result<(OwnedFd, OsString), Error> {
        let name = path.file_name().ok_or(Error::OutOfPlace("path: names no file"))?;
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        Ok((self.sandbox.reach(parent, flags)?, name.to_owned()))
    }

    /// Takes the next piece.
    pub(super) fn take(&mut self, item: FileItem) -> Result<(), Error> {
        match item.item {
            _ if self.ended => Err(Error::OutOfPlace("items: something follows the end")),
            Some(Item::Head(head)) => {
                self.finish_file()?;
                self.begin_file(head)
            }
            Some(Item::Data(data)) => {
                let open = self.open.as_mut().ok_or(Error::OutOfPlace("items: data without a file"))?;
                self.sum.bytes += data.len() as u64;
                let wrote = open.file.write_all(&data);
                wrote.map_err(|source| Error::Io { operation: "write", path: open.path.clone(), source })
            }
            Some(Item::End(_)) => {
                self.ended = true;
                self.finish_file()
            }
            // What the sender left out is for its own reader to know.
            Some(Item::Skipped(_)) => Ok(()),
            None => Err(Error::OutOfPlace("items: no end came")),
        }
    }

    /// What was written, once the sender has said that it was all.
    pub(super) fn sum(&self) -> Option<FilesEnd> {
        self.ended.then_some(self.sum)
    }

    fn begin_file(&mut self, head: FileHead) -> Result<(), Error> {
        let relative = proffer_wire::from_proto::sandbox_path(&head.path, "items.head.path")
            .map_err(|_| Error::OutOfPlace("items.head.path: not a path beneath"))?;
        let path = if relative.as_os_str().is_empty() { self.base.clone() } else { self.base.join(relative) };
        self.sum.files += 1;
        match FileKind::try_from(head.kind) {
            Ok(FileKind::Directory) => self.make_directory(&path, &head),
            Ok(FileKind::Regular) => self.make_file(path, head),
            _ => Err(Error::OutOfPlace("items.head.kind: neither a regular file nor a directory")),
        }
    }

    fn make_directory(&self, path: &Path, head: &FileHead) -> Result<(), Error> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // One that is there keeps its owner and its permissions.
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
                return self.sandbox.reach(path, flags).map(drop);
            }
            Err(errno) => return Err(fault("make", path, errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let made =
            reach(&parent, Path::new(&name), flags).map_err(|errno| self.sandbox.refused(path, errno))?;
        // The task may have put another in its place: then that is its own already.
        let stat = rustix::fs::fstat(&made).map_err(|errno| fault("look at", path, errno))?;
        if stat.st_uid == rustix::process::geteuid().as_raw() {
            self.give(&made, head.mode, path)?;
        }
        Ok(())
    }

    /// Gives what we made to the task's user.
    fn give(&self, made: &impl AsFd, mode: u32, path: &Path) -> Result<(), Error> {
        if rustix::process::geteuid().is_root() {
            let (uid, gid) =
                (rustix::fs::Uid::from_raw(self.sandbox.uid), rustix::fs::Gid::from_raw(self.sandbox.gid));
            rustix::fs::fchown(made, Some(uid), Some(gid))
                .map_err(|errno| fault("change the owner of", path, errno))?;
        }
        // After the owner, a change of which takes permissions away.
        rustix::fs::fchmod(made, Mode::from_raw_mode(mode & MODE_MASK))
            .map_err(|errno| fault("change the mode of", path, errno))
    }

    fn make_file(&mut self, path: PathBuf, head: FileHead) -> Result<(), Error> {
        let (parent, name) = self.parent(&path)?;
        let random = getrandom::u64().expect("the system's random numbers never run out");
        let temporary = OsString::from_vec(format!(".proffer-{random:016x}").into_bytes());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&parent, &temporary, flags, Mode::from_raw_mode(0o600));
        let file = File::from(made.map_err(|errno| fault("make", &path, errno))?);
        self.open = Some(Open { parent, temporary, name, path, file, head, whole: false });
        Ok(())
    }

    fn finish_file(&mut self) -> Result<(), Error> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        self.give(&open.file, open.head.mode, &open.path)?;
        if open.head.modified_ms > 0 {
            let seconds = i64::try_from(open.head.modified_ms / 1_000).unwrap_or(i64::MAX);
            let nanos = i64::try_from(open.head.modified_ms % 1_000 * 1_000_000).unwrap_or(0);
            let time = Timespec { tv_sec: seconds, tv_nsec: nanos as _ };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            // For display only.
            let _ = rustix::fs::futimens(&open.file, &times);
        }
        match rustix::fs::renameat(&open.parent, &open.temporary, &open.parent, &open.name) {
            Ok(()) => {
                open.whole = true;
                Ok(())
            }
            Err(Errno::ISDIR | Errno::EXIST | Errno::NOTEMPTY) => Err(Error::IsADirectory(open.path.clone())),
            Err(errno) => Err(fault("name", &open.path, errno)),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.whole {
            let _ = rustix::fs::unlinkat(&self.parent, &self.temporary, AtFlags::empty());
        }
    }
}

#[cfg(test)]
#[path = "sandbox_tests.rs"]
mod tests;
