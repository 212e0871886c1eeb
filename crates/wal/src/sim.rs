//! A disk in memory that forgets as real ones do, for simulators and tests.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, File};
use crate::file::parent_of;

/// What a crash may tear a write into.
const SECTOR: usize = 512;

/// An error that a simulated disk gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No space left on the device.
    Enospc,
    /// The device failed.
    Eio,
}

impl Fault {
    fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Fault::Enospc => 28,
            Fault::Eio => 5,
        })
    }
}

/// A deterministic disk of one simulated machine. Clones share it; it outlives the machine's processes.
///
/// Writes, preallocations and directory changes stay *unsynced* until [`File::sync`] or
/// [`Disk::sync_dir`]; [`SimDisk::crash`] keeps an arbitrary part of them, chosen by a seed, down to single
/// sectors of one write. Files opened before a crash answer errors after it.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    dirs: BTreeSet<PathBuf>,
    /// Names as processes see them, and as they would be found after losing everything unsynced.
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    unsynced_names: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    /// Raised by a crash; a handle of an older epoch belongs to a dead process.
    epoch: u64,
    ops: u64,
    syncs: u64,
    stop_at: Option<u64>,
    faults: Vec<Planned>,
    capacity: Option<u64>,
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    unsynced: Vec<Unsynced>,
}

enum Unsynced {
    Data { offset: u64, data: Vec<u8> },
    Zeroes { len: u64 },
}

enum NameChange {
    Link { path: PathBuf, inode: u64 },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, inode: u64 },
}

struct Planned {
    op: &'static str,
    after: u64,
    fault: Fault,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// Ends every process that uses the disk and loses power: of what was not synced an arbitrary subset
    /// survives, chosen by `seed`. Returns how many unsynced changes were lost whole or in part.
    pub fn crash(&self, seed: u64) -> usize {
        let mut rng = Mix(seed);
        let mut state = self.lock_state();
        let mut lost = 0;
        for inode in state.inodes.values_mut() {
            for write in std::mem::take(&mut inode.unsynced) {
                lost += usize::from(!keep_some(&mut inode.durable, &write, &mut rng));
            }
            inode.current.clone_from(&inode.durable);
        }
        for change in std::mem::take(&mut state.unsynced_names) {
            if rng.below(2) == 0 {
                apply_names(&mut state.durable_names, &change);
            } else {
                lost += 1;
            }
        }
        state.names = state.durable_names.clone();
        state.end_processes();
        lost
    }

    /// Ends every process that uses the disk while the machine lives on, as `kill -9` does: nothing that
    /// was written is lost.
    pub fn kill(&self) {
        self.lock_state().end_processes();
    }

    /// Lets `ops` more changing operations through, then fails all until the next [`SimDisk::crash`]: a
    /// crash in the middle of a sequence of operations.
    pub fn stop_after(&self, ops: u64) {
        let mut state = self.lock_state();
        state.stop_at = Some(state.ops + ops);
    }

    /// The operation named `op` ("write", "sync", "create", "rename", "remove", "sync_dir", "preallocate")
    /// fails once with `fault`, after `after` more of that name have succeeded.
    pub fn fail(&self, op: &'static str, after: u64, fault: Fault) {
        self.lock_state().faults.push(Planned { op, after, fault });
    }

    /// Limits the sum of all file lengths; growing beyond it answers ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.lock_state().capacity = bytes;
    }

    /// Flips one bit of a file, in what processes see and in what is durable.
    ///
    /// # Panics
    /// If there is no such file or byte.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) {
        let mut state = self.lock_state();
        let inode = state.names[path];
        let inode = state.inodes.get_mut(&inode).expect("a named inode exists");
        inode.current[offset] ^= 1 << (bit % 8);
        if let Some(byte) = inode.durable.get_mut(offset) {
            *byte ^= 1 << (bit % 8);
        }
    }

    /// The content of a file as processes see it.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.lock_state();
        let inode = state.names.get(path)?;
        Some(state.inodes[inode].current.clone())
    }

    /// All files with their content, to compare a disk before and after.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.lock_state();
        state.names.iter().map(|(path, inode)| (path.clone(), state.inodes[inode].current.clone())).collect()
    }

    /// How many changes a crash now could lose.
    pub fn unsynced(&self) -> usize {
        let state = self.lock_state();
        state.inodes.values().map(|inode| inode.unsynced.len()).sum::<usize>() + state.unsynced_names.len()
    }

    /// How many file and directory syncs there were.
    pub fn syncs(&self) -> u64 {
        self.lock_state().syncs
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no operation panics while it holds the lock")
    }

    fn handle(&self, inode: u64, epoch: u64) -> Box<dyn File> {
        Box::new(SimFile { disk: self.clone(), inode, epoch })
    }
}

/// Applies what survives of one write; whether all of it did.
fn keep_some(durable: &mut Vec<u8>, write: &Unsynced, rng: &mut Mix) -> bool {
    match (write, rng.below(5)) {
        (_, 0 | 1) => {
            apply(durable, write);
            true
        }
        (_, 2 | 3) | (Unsynced::Zeroes { .. }, _) => false,
        (Unsynced::Data { offset, data }, _) => {
            let mut whole = true;
            let mut at = 0;
            while at < data.len() {
                let here = *offset as usize + at;
                let end = (at + SECTOR - here % SECTOR).min(data.len());
                if rng.below(2) == 0 {
                    let piece = Unsynced::Data { offset: here as u64, data: data[at..end].to_vec() };
                    apply(durable, &piece);
                } else {
                    whole = false;
                }
                at = end;
            }
            whole
        }
    }
}

fn apply(content: &mut Vec<u8>, write: &Unsynced) {
    match write {
        Unsynced::Data { offset, data } => {
            let (start, end) = (*offset as usize, *offset as usize + data.len());
            if content.len() < end {
                content.resize(end, 0);
            }
            content[start..end].copy_from_slice(data);
        }
        Unsynced::Zeroes { len } => {
            content.clear();
            content.resize(*len as usize, 0);
        }
    }
}

fn apply_names(names: &mut BTreeMap<PathBuf, u64>, change: &NameChange) {
    match change {
        NameChange::Link { path, inode } => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Unlink { path } => {
            names.remove(path);
        }
        NameChange::Rename { from, to, inode } => {
            names.remove(from);
            names.insert(to.clone(), *inode);
        }
    }
}

impl State {
    /// Counts a changing operation and gives the error planned for it.
    fn change(&mut self, op: &'static str) -> io::Result<()> {
        if self.stop_at.is_some_and(|stop| self.ops >= stop) {
            return Err(io::Error::other("the simulated machine has stopped"));
        }
        self.ops += 1;
        let mut hit = None;
        for (n, planned) in self.faults.iter_mut().enumerate().filter(|(_, planned)| planned.op == op) {
            match planned.after {
                0 => hit = Some(n),
                _ => planned.after -= 1,
            }
        }
        hit.map_or(Ok(()), |n| Err(self.faults.remove(n).fault.error()))
    }

    fn change_names(&mut self, change: NameChange) {
        apply_names(&mut self.names, &change);
        self.unsynced_names.push(change);
    }

    fn end_processes(&mut self) {
        self.epoch += 1;
        self.stop_at = None;
        self.locks.clear();
        let named: BTreeSet<u64> = self.names.values().chain(self.durable_names.values()).copied().collect();
        self.inodes.retain(|inode, _| named.contains(inode));
    }

    fn live(&mut self, inode: u64, epoch: u64) -> io::Result<&mut Inode> {
        if epoch != self.epoch {
            return Err(io::Error::other("the process that opened this file is dead"));
        }
        self.inodes.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn room_for(&self, inode: u64, len: u64) -> io::Result<()> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let others = self.names.values().filter(|&&other| other != inode);
        let used: u64 = others.map(|other| self.inodes[other].current.len() as u64).sum();
        let own = self.inodes.get(&inode).map_or(0, |inode| inode.current.len() as u64);
        if len > own && used + len > capacity { Err(Fault::Enospc.error()) } else { Ok(()) }
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        for parent in dir.ancestors() {
            state.dirs.insert(parent.to_owned());
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let mut state = self.lock_state();
        state.change("create")?;
        if !state.dirs.contains(parent_of(path)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.change_names(NameChange::Link { path: path.to_owned(), inode });
        Ok(self.handle(inode, state.epoch))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn File>> {
        let state = self.lock_state();
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(self.handle(inode, state.epoch))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.change("rename")?;
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change_names(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), inode });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.change("remove")?;
        if !state.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(NameChange::Unlink { path: path.to_owned() });
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock_state();
        if !state.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = state.names.keys().chain(state.dirs.iter()).filter(|path| path.parent() == Some(dir));
        let mut names: Vec<String> = below
            .filter_map(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock_state();
        state.change("sync_dir")?;
        state.syncs += 1;
        for change in std::mem::take(&mut state.unsynced_names) {
            let (NameChange::Link { path, .. }
            | NameChange::Unlink { path }
            | NameChange::Rename { to: path, .. }) = &change;
            if path.parent() == Some(dir) {
                apply_names(&mut state.durable_names, &change);
            } else {
                state.unsynced_names.push(change);
            }
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.lock_state();
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.clone(), path: path.to_owned(), epoch: state.epoch }))
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    epoch: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.lock_state();
        if state.epoch == self.epoch {
            state.locks.remove(&self.path);
        }
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    epoch: u64,
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock_state().live(self.inode, self.epoch)?.current.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.lock_state();
        let content = &state.live(self.inode, self.epoch)?.current;
        let from = content.get(offset as usize..).unwrap_or(&[]);
        let n = from.len().min(buf.len());
        buf[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock_state();
        state.live(self.inode, self.epoch)?;
        state.change("write")?;
        state.room_for(self.inode, offset + data.len() as u64)?;
        let inode = state.live(self.inode, self.epoch)?;
        let write = Unsynced::Data { offset, data: data.to_vec() };
        apply(&mut inode.current, &write);
        inode.unsynced.push(write);
        Ok(())
    }

    fn preallocate(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock_state();
        state.live(self.inode, self.epoch)?;
        state.change("preallocate")?;
        state.room_for(self.inode, len)?;
        let inode = state.live(self.inode, self.epoch)?;
        let write = Unsynced::Zeroes { len };
        apply(&mut inode.current, &write);
        inode.unsynced.push(write);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock_state();
        state.live(self.inode, self.epoch)?;
        state.change("sync")?;
        state.syncs += 1;
        let inode = state.live(self.inode, self.epoch)?;
        for write in std::mem::take(&mut inode.unsynced) {
            apply(&mut inode.durable, &write);
        }
        Ok(())
    }
}

/// splitmix64.
struct Mix(u64);

impl Mix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_part_of_the_rest() {
        let (mut lost_all, mut kept_all, mut torn) = (0, 0, 0);
        for seed in 0..300 {
            let disk = SimDisk::new();
            disk.create_dir_all(Path::new("/d")).unwrap();
            let path = Path::new("/d/f");
            let mut file = disk.create(path).unwrap();
            file.write_at(0, &[1; 1024]).unwrap();
            file.sync().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            file.write_at(1024, &[2; 1024]).unwrap();
            disk.crash(seed);
            assert!(file.write_at(0, b"x").is_err(), "a handle of a dead process works");
            let content = disk.content(path).expect("a synced name stays");
            assert_eq!(content[..1024], [1; 1024]);
            match content.iter().filter(|&&byte| byte == 2).count() {
                0 => lost_all += 1,
                512 => torn += 1,
                1024 => kept_all += 1,
                other => panic!("{other} bytes of two sectors"),
            }
        }
        assert!(lost_all > 50 && kept_all > 50 && torn > 10, "{lost_all} {kept_all} {torn}");
    }

    #[test]
    fn faults_capacity_and_locks() {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/d")).unwrap();
        let mut file = disk.create(Path::new("/d/f")).unwrap();
        disk.fail("sync", 1, Fault::Eio);
        file.sync().unwrap();
        assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(5));
        file.sync().unwrap();
        disk.set_capacity(Some(100));
        file.write_at(0, &[0; 100]).unwrap();
        assert_eq!(file.write_at(1, &[0; 100]).unwrap_err().raw_os_error(), Some(28));
        let lock = disk.lock(Path::new("/d/lock")).unwrap();
        assert!(disk.lock(Path::new("/d/lock")).is_err());
        drop(lock);
        let _again = disk.lock(Path::new("/d/lock")).unwrap();
        disk.kill();
        assert!(disk.lock(Path::new("/d/lock")).is_ok());
    }
}
