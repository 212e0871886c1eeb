//! Files on this machine, on their way from or to a task.
//!
//! What comes from a task is put where the user said and nowhere else: names are checked, and resolved beneath the
//! destination through no symbolic link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use proffer_client::hands::{DATA_BYTES_MAX, FileHead, FileKind, FilePiece, FileSkipped, FilesEnd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};

use super::files::shown;
use crate::fail::{Code, Failure};
use crate::render::text;

fn failed(operation: &str, path: &Path, error: impl std::fmt::Display) -> Failure {
    let path = text::clean(&shown(path.as_os_str().as_bytes()));
    Failure::new(Code::Failed, format!("{operation} `{path}`: {error}"))
}

/// Puts files where the user said.
pub(super) struct Writer {
    /// What is named first goes here: a file's directory and name, or a directory.
    target: PathBuf,
    /// The directory, once it is there.
    root: Option<OwnedFd>,
    open: Option<Open>,
}

/// A file that is not whole yet.
struct Open {
    parent: OwnedFd,
    temporary: OsString,
    name: OsString,
    path: PathBuf,
    file: File,
    mode: u32,
    whole: bool,
}

impl Writer {
    pub(super) fn new(target: PathBuf) -> Self {
        Self { target, root: None, open: None }
    }

    pub(super) fn begin(&mut self, head: &FileHead) -> Result<(), Failure> {
        self.finish_file()?;
        let path = beneath(&head.path).ok_or_else(|| {
            let name = text::clean(&shown(&head.path));
            Failure::new(Code::Failed, format!("the agent names a file `{name}`, which is no path beneath"))
        })?;
        let shown_path = self.target.join(&path);
        match head.kind() {
            FileKind::Directory => self.make_directory(&path, &shown_path, head.mode),
            FileKind::Regular => {
                let (parent, name) = self.parent(&path, &shown_path)?;
                self.make_file(parent, name, shown_path, head.mode)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn data(&mut self, data: &[u8]) -> Result<(), Failure> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.file.write_all(data).map_err(|error| failed("write", &open.path, error))
    }

    pub(super) fn finish_file(&mut self) -> Result<(), Failure> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        // What the user's umask forbids stays forbidden: the file was made under it.
        let made = open.file.metadata().map_err(|error| failed("look at", &open.path, error))?;
        let mode = std::fs::Permissions::from_mode(open.mode & made.permissions().mode() & 0o777);
        open.file.set_permissions(mode).map_err(|error| failed("change the mode of", &open.path, error))?;
        rustix::fs::renameat(&open.parent, &open.temporary, &open.parent, &open.name)
            .map_err(|errno| failed("name", &open.path, errno))?;
        open.whole = true;
        Ok(())
    }

    fn make_directory(&mut self, path: &Path, shown: &Path, mode: u32) -> Result<(), Failure> {
        let mode = Mode::from_raw_mode(mode & 0o777 | 0o700);
        if path.as_os_str().is_empty() {
            match rustix::fs::mkdirat(CWD, &self.target, mode) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(failed("make", shown, errno)),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::open(&self.target, flags, Mode::empty());
            self.root = Some(root.map_err(|errno| failed("open", shown, errno))?);
            return Ok(());
        }
        let (parent, name) = self.parent(path, shown)?;
        match rustix::fs::mkdirat(&parent, &name, mode) {
            Ok(()) => Ok(()),
            // A link that is there already is found by what goes into it.
            Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(errno) => Err(failed("make", shown, errno)),
        }
    }

    /// The directory that something goes into, and its name there.
    fn parent(&self, path: &Path, shown: &Path) -> Result<(OwnedFd, OsString), Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if path.as_os_str().is_empty() {
            let name = self.target.file_name().ok_or_else(|| failed("write", shown, "names no file"))?;
            let parent = match self.target.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            let fd = rustix::fs::open(parent, flags, Mode::empty());
            return Ok((fd.map_err(|errno| failed("open", parent, errno))?, name.to_owned()));
        }
        let root = self.root.as_ref().ok_or_else(|| failed("write", shown, "its directory did not come"))?;
        let name = path.file_name().ok_or_else(|| failed("write", shown, "names no file"))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(root.as_fd(), parent, flags, Mode::empty(), resolve);
        Ok((fd.map_err(|errno| failed("open the directory of", shown, errno))?, name.to_owned()))
    }

    fn make_file(
        &mut self,
        parent: OwnedFd,
        name: OsString,
        path: PathBuf,
        mode: u32,
    ) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Never readable for more than the file is to be.
        let made = Mode::from_raw_mode(mode & 0o777 | 0o600);
        for number in 0..100_u32 {
            let temporary = OsString::from(format!(".proffer-{}-{number}", std::process::id()));
            match rustix::fs::openat(&parent, &temporary, flags, made) {
                Ok(fd) => {
                    let file = File::from(fd);
                    self.open = Some(Open { parent, temporary, name, path, file, mode, whole: false });
                    return Ok(());
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(failed("make", &path, errno)),
            }
        }
        Err(failed("make", &path, "every temporary name is taken"))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.whole {
            let _ = rustix::fs::unlinkat(&self.parent, &self.temporary, AtFlags::empty());
        }
    }
}

/// A path that an agent names, if it is relative and goes nowhere but down.
fn beneath(path: &[u8]) -> Option<PathBuf> {
    if path.contains(&0) {
        return None;
    }
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    path.components().all(|part| matches!(part, Component::Normal(_))).then_some(path)
}

/// Walks a file or directory of this machine and gives it away piece by piece; `false` ends the walk.
pub(super) fn walk(top: &Path, give: &mut dyn FnMut(FilePiece) -> bool) -> Result<(), Failure> {
    // What the user names is meant, even by a link; links beneath are not followed.
    let meta = std::fs::metadata(top).map_err(|error| failed("read", top, error))?;
    let mut walk = Walk { top, give, sum: FilesEnd::default(), stopped: false };
    if meta.is_dir() {
        walk.directory(Path::new(""), &meta)?;
    } else if meta.is_file() {
        walk.file(Path::new(""), &meta)?;
    } else {
        return Err(failed("read", top, "neither a regular file nor a directory"));
    }
    let (sum, stopped) = (walk.sum, walk.stopped);
    if !stopped {
        give(FilePiece::End(sum));
    }
    Ok(())
}

struct Walk<'a> {
    top: &'a Path,
    give: &'a mut dyn FnMut(FilePiece) -> bool,
    sum: FilesEnd,
    stopped: bool,
}

impl Walk<'_> {
    fn give(&mut self, piece: FilePiece) {
        self.stopped |= !(self.give)(piece);
    }

    fn full(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.top.to_owned() } else { self.top.join(path) }
    }

    fn directory(&mut self, path: &Path, meta: &std::fs::Metadata) -> Result<(), Failure> {
        self.sum.files += 1;
        self.give(FilePiece::Head(head(path, FileKind::Directory, meta)));
        let full = self.full(path);
        let entries = std::fs::read_dir(&full).map_err(|error| failed("list", &full, error))?;
        for entry in entries {
            if self.stopped {
                return Ok(());
            }
            let entry = entry.map_err(|error| failed("list", &full, error))?;
            let below = path.join(entry.file_name());
            let meta = entry.metadata().map_err(|error| failed("look at", &self.full(&below), error))?;
            if meta.is_dir() {
                self.directory(&below, &meta)?;
            } else if meta.is_file() {
                self.file(&below, &meta)?;
            } else {
                self.sum.skipped += 1;
                let why = "neither a regular file nor a directory".to_owned();
                let path = Bytes::copy_from_slice(below.as_os_str().as_bytes());
                self.give(FilePiece::Skipped(FileSkipped { path, why }));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, meta: &std::fs::Metadata) -> Result<(), Failure> {
        let full = self.full(path);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(&full, flags, Mode::empty());
        let mut file = File::from(opened.map_err(|errno| failed("open", &full, errno))?);
        self.sum.files += 1;
        self.give(FilePiece::Head(head(path, FileKind::Regular, meta)));
        while !self.stopped {
            let mut piece = vec![0; DATA_BYTES_MAX];
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => {
                    piece.truncate(count);
                    self.sum.bytes += count as u64;
                    self.give(FilePiece::Data(piece.into()));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", &full, error)),
            }
        }
        Ok(())
    }
}

fn head(path: &Path, kind: FileKind, meta: &std::fs::Metadata) -> FileHead {
    FileHead {
        path: Bytes::copy_from_slice(path.as_os_str().as_bytes()),
        kind: kind.into(),
        mode: meta.mode() & 0o777,
        size: meta.len(),
        modified_ms: u64::try_from(meta.mtime()).unwrap_or(0) * 1_000,
    }
}

/// The last component of a path as a user writes it; empty if it has none.
pub(super) fn base_name(path: &[u8]) -> &[u8] {
    let name = Path::new(OsStr::from_bytes(path)).file_name().unwrap_or_default();
    name.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(path: &[u8], kind: FileKind) -> FileHead {
        let path = Bytes::copy_from_slice(path);
        FileHead { path, kind: kind.into(), mode: 0o4755, size: 0, modified_ms: 0 }
    }

    #[test]
    fn a_hostile_agent_writes_nothing_elsewhere() {
        let dir = tempfile::Builder::new().prefix("proffer-local-").tempdir().unwrap();
        let target = dir.path().join("got");
        let mut writer = Writer::new(target.clone());
        writer.begin(&head_of(b"", FileKind::Directory)).unwrap();
        for bad in [&b"../x"[..], b"/etc/x", b"a/../../x", b"..", b"\0"] {
            assert!(writer.begin(&head_of(bad, FileKind::Regular)).is_err(), "{bad:?}");
        }
        // A link that the user has there leads the agent's names nowhere.
        std::os::unix::fs::symlink(dir.path(), target.join("link")).unwrap();
        assert!(writer.begin(&head_of(b"link/x", FileKind::Regular)).is_err());
        assert!(writer.begin(&head_of(b"none/x", FileKind::Regular)).is_err());
        writer.begin(&head_of(b"d", FileKind::Directory)).unwrap();
        writer.begin(&head_of(b"d/f", FileKind::Regular)).unwrap();
        writer.data(b"data").unwrap();
        writer.finish_file().unwrap();
        assert_eq!(std::fs::read(target.join("d/f")).unwrap(), b"data");
        let mode = std::fs::metadata(target.join("d/f")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7000, 0, "no setuid bit comes in");
        // One that is given up in the middle is not there.
        writer.begin(&head_of(b"d/half", FileKind::Regular)).unwrap();
        drop(writer);
        assert_eq!(std::fs::read_dir(target.join("d")).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tree_is_walked_and_links_are_left_out() {
        let dir = tempfile::Builder::new().prefix("proffer-local-").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "data").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let mut pieces = Vec::new();
        walk(dir.path(), &mut |piece| {
            pieces.push(piece);
            true
        })
        .unwrap();
        let data = pieces.iter().any(|p| matches!(p, FilePiece::Data(d) if &d[..] == b"data"));
        let skipped = pieces.iter().any(|p| matches!(p, FilePiece::Skipped(s) if &s.path[..] == b"link"));
        let Some(FilePiece::End(sum)) = pieces.last() else { panic!("{pieces:?}") };
        assert_eq!((data, skipped, sum.files, sum.skipped), (true, true, 3, 1));
        assert!(walk(Path::new("/dev/null"), &mut |_| true).is_err());
        assert_eq!(base_name(b"a/b/"), b"b");
    }
}
