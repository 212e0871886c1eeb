//! The append log: segments of one directory, in the order of their first record's number.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, File, read_all};
use crate::error::Error;
use crate::file::{parent_of, temp_of};
use crate::segment::{self, Chain, HEADER, RECORD_HEADER, RECORD_MAX, Scan};

/// When an appended record counts as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// [`Log::append`] returns after an fdatasync: the record survives the loss of power.
    Always,
    /// [`Log::append`] returns after the write: the record survives the process, not the machine. A caller
    /// that starts on a freshly booted machine must not open such a log but discard it, since any part of it
    /// may be missing.
    Never,
}

/// How a log is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Size of a segment in bytes; a larger batch gets a larger segment.
    pub segment_bytes: u64,
    /// When a record counts as stored.
    pub sync: SyncPolicy,
    /// The kinds of record that the caller knows, each with the newest version it can read. A record of
    /// another kind or a newer version stops the opening.
    pub kinds: &'static [(u8, u8)],
}

/// A record to append.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// What the payload is; the caller's own numbering.
    pub kind: u8,
    /// The version of the payload's format.
    pub version: u8,
    /// The payload, as pieces that are written one after the other.
    pub parts: &'a [&'a [u8]],
}

/// A record read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number: 1 for the first record of a log, then consecutive.
    pub seq: u64,
    /// What the payload is.
    pub kind: u8,
    /// The version of the payload's format.
    pub version: u8,
    /// The payload.
    pub data: Bytes,
}

/// An append log in a directory of its own.
///
/// A batch is one write and, with [`SyncPolicy::Always`], one fdatasync. Each record carries its number, the
/// checksum of its predecessor and the number of the newest record that was acknowledged before it was
/// written; the file `settled` carries the latter for the newest batch. With these, opening tells a torn
/// tail (cut) from damage to something acknowledged ([`Error::Corrupt`], nothing touched).
pub struct Log {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: Options,
    /// All segments, oldest first; the last is the one written to.
    segments: VecDeque<Segment>,
    file: Box<dyn File>,
    file_bytes: u64,
    end: u64,
    chain: Chain,
    settled: Settled,
    buffer: Vec<u8>,
    unsynced: bool,
    poisoned: Option<&'static str>,
}

struct Segment {
    first: u64,
    path: PathBuf,
}

impl Log {
    /// Opens the log in `dir`, creating it if the directory is missing or empty, and reads all records.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Unknown`] leave every file as it was.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, options: Options) -> Result<(Log, Vec<Record>), Error> {
        let found = Found::read(disk.as_ref(), dir, &options)?;
        // Everything was believed: from here on files may be changed.
        found.clean_up(disk.as_ref())?;
        if options.sync == SyncPolicy::Always {
            found.make_durable(disk.as_ref(), dir)?;
        }
        let settled = Settled::open(disk.as_ref(), dir, found.settled)?;
        let Found { mut segments, records, end, chain, .. } = found;
        let (file, file_bytes) = match segments.back() {
            Some(last) => {
                let file = disk.open(&last.path).map_err(Error::io("open", &last.path))?;
                let bytes = file.len().map_err(Error::io("stat", &last.path))?;
                (file, bytes)
            }
            None => {
                let (path, file) = create_segment(disk.as_ref(), dir, chain, options.segment_bytes)?;
                segments.push_back(Segment { first: chain.seq, path });
                (file, options.segment_bytes)
            }
        };
        let log = Log {
            disk,
            dir: dir.to_owned(),
            options,
            segments,
            file,
            file_bytes,
            end,
            chain,
            settled,
            buffer: Vec::new(),
            unsynced: false,
            poisoned: None,
        };
        Ok((log, records))
    }

    /// Appends a batch and returns the number of its last record (or of the last record there is, if the
    /// batch is empty) once the batch is stored as the [`SyncPolicy`] says.
    ///
    /// # Errors
    /// After any error but [`Error::TooLarge`] the log takes nothing more.
    pub fn append(&mut self, batch: &[NewRecord<'_>]) -> Result<u64, Error> {
        self.check_usable()?;
        for record in batch {
            let len = record.parts.iter().map(|part| part.len()).sum();
            if len > RECORD_MAX {
                return Err(Error::TooLarge { path: self.dir.clone(), len, limit: RECORD_MAX });
            }
        }
        if batch.is_empty() {
            return Ok(self.chain.seq - 1);
        }
        self.append_unchecked(batch).inspect_err(|_| self.poisoned = Some("append"))
    }

    fn append_unchecked(&mut self, batch: &[NewRecord<'_>]) -> Result<u64, Error> {
        self.buffer.clear();
        let mut chain = self.chain;
        for record in batch {
            let NewRecord { kind, version, parts } = *record;
            let crc =
                segment::encode_record(&mut self.buffer, chain, self.settled.value, kind, version, parts);
            chain = Chain { seq: chain.seq + 1, crc };
        }
        if self.end + self.buffer.len() as u64 > self.file_bytes {
            self.rotate(self.buffer.len() as u64)?;
        }
        let path = &self.segments.back().expect("a log has a segment").path;
        self.file.write_at(self.end, &self.buffer).map_err(Error::io("write", path))?;
        self.unsynced = true;
        if self.options.sync == SyncPolicy::Always {
            self.sync_file()?;
        }
        self.end += self.buffer.len() as u64;
        self.chain = chain;
        self.settled.set(chain.seq - 1, &self.dir)?;
        Ok(chain.seq - 1)
    }

    /// Makes all appended records durable, whatever the policy.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.check_usable()?;
        self.sync_file().inspect_err(|_| self.poisoned = Some("sync"))
    }

    fn sync_file(&mut self) -> Result<(), Error> {
        if self.unsynced {
            let path = &self.segments.back().expect("a log has a segment").path;
            self.file.sync().map_err(Error::io("sync", path))?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Lets go of records below `keep_from`, by whole segments. The segment being written to always stays.
    pub fn truncate_front(&mut self, keep_from: u64) -> Result<(), Error> {
        self.check_usable()?;
        while self.segments.get(1).is_some_and(|next| next.first <= keep_from) {
            let oldest = self.segments.pop_front().expect("there are two");
            // One at a time and in order: a hole between segments would look like damage.
            self.disk.remove(&oldest.path).map_err(Error::io("remove", &oldest.path))?;
            self.disk.sync_dir(&self.dir).map_err(Error::io("sync directory", &self.dir))?;
        }
        Ok(())
    }

    /// The number that the next record gets.
    pub fn next_seq(&self) -> u64 {
        self.chain.seq
    }

    /// How many segments there are.
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Starts a new segment with room for `batch` bytes. The old one is made durable first, so a later
    /// segment proves that the earlier one was complete.
    fn rotate(&mut self, batch: u64) -> Result<(), Error> {
        if self.options.sync == SyncPolicy::Always {
            self.sync_file()?;
        }
        let bytes = self.options.segment_bytes.max(HEADER as u64 + batch);
        let (path, file) = create_segment(self.disk.as_ref(), &self.dir, self.chain, bytes)?;
        // One without a record yet, too small for this batch, was replaced: it had the same name.
        self.segments.pop_back_if(|current| current.first == self.chain.seq);
        self.segments.push_back(Segment { first: self.chain.seq, path });
        self.file = file;
        self.file_bytes = bytes;
        self.end = HEADER as u64;
        self.unsynced = false;
        Ok(())
    }

    fn check_usable(&self) -> Result<(), Error> {
        match self.poisoned {
            None => Ok(()),
            Some(op) => Err(Error::Poisoned { op, path: self.dir.clone() }),
        }
    }
}

fn segment_name(first: u64) -> String {
    format!("{first:016x}.log")
}

fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Makes a segment that is whole before it has its name.
fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    chain: Chain,
    bytes: u64,
) -> Result<(PathBuf, Box<dyn File>), Error> {
    let path = dir.join(segment_name(chain.seq));
    let temp = temp_of(&path);
    let mut file = disk.create(&temp).map_err(Error::io("create", &temp))?;
    file.preallocate(bytes.max((HEADER + RECORD_HEADER) as u64)).map_err(Error::io("allocate", &temp))?;
    file.write_at(0, &segment::encode_header(chain)).map_err(Error::io("write", &temp))?;
    file.sync().map_err(Error::io("sync", &temp))?;
    disk.rename(&temp, &path).map_err(Error::io("rename", &temp))?;
    disk.sync_dir(dir).map_err(Error::io("sync directory", dir))?;
    Ok((path, file))
}

/// What lies in a log's directory, read without changing it.
struct Found {
    segments: VecDeque<Segment>,
    records: Vec<Record>,
    end: u64,
    chain: Chain,
    settled: u64,
    /// Bytes of the last segment to be zeroed.
    cut: Option<(usize, usize)>,
    leftovers: Vec<PathBuf>,
}

impl Found {
    fn read(disk: &dyn Disk, dir: &Path, options: &Options) -> Result<Found, Error> {
        let names = match disk.list(dir) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                disk.create_dir_all(dir).map_err(Error::io("create directory", dir))?;
                let parent = parent_of(dir);
                disk.sync_dir(parent).map_err(Error::io("sync directory", parent))?;
                Vec::new()
            }
            Err(e) => return Err(Error::io("list", dir)(e)),
        };
        let mut segments: Vec<Segment> = names
            .iter()
            .filter_map(|name| Some(Segment { first: parse_segment_name(name)?, path: dir.join(name) }))
            .collect();
        segments.sort_by_key(|segment| segment.first);
        let mut found = Found {
            segments: VecDeque::new(),
            records: Vec::new(),
            end: HEADER as u64,
            chain: Chain { seq: 1, crc: 0 },
            settled: Settled::read(disk, dir)?,
            cut: None,
            leftovers: names
                .iter()
                .filter(|name| name.ends_with(".tmp"))
                .map(|name| dir.join(name))
                .collect(),
        };
        let last = segments.len().saturating_sub(1);
        for (n, segment) in segments.into_iter().enumerate() {
            found.read_segment(disk, segment, n == 0, n == last, options)?;
        }
        found.check_settled(dir)?;
        Ok(found)
    }

    fn read_segment(
        &mut self,
        disk: &dyn Disk,
        segment: Segment,
        first: bool,
        last: bool,
        options: &Options,
    ) -> Result<(), Error> {
        let path = &segment.path;
        let bytes = read_all(disk, path).map_err(Error::io("read", path))?.unwrap_or_default();
        let bytes = Bytes::from(bytes);
        let chain = segment::decode_header(path, &bytes)?;
        if chain.seq != segment.first || !(first || chain == self.chain) {
            let what = format!("segment starts at record {}, expected record {}", chain.seq, self.chain.seq);
            return Err(Error::corrupt(path, 16, what));
        }
        let Scan { records, end, garbage_end, chain, proof_of_loss } = segment::scan(&bytes, chain);
        for raw in &records {
            let known = options.kinds.iter().find(|(kind, _)| *kind == raw.kind);
            if known.is_none_or(|(_, newest)| raw.version > *newest) {
                let offset = (raw.payload.start - RECORD_HEADER) as u64;
                let what = format!("a record of kind {} version {}", raw.kind, raw.version);
                return Err(Error::unknown(path, offset, what));
            }
        }
        if let Some(later) = proof_of_loss {
            let what =
                format!("record {} is damaged, but was acknowledged: byte {later} proves it", chain.seq);
            return Err(Error::corrupt(path, end as u64, what));
        }
        if let Some(garbage_end) = garbage_end {
            if !last {
                let what = format!("record {} is damaged, and a later segment exists", chain.seq);
                return Err(Error::corrupt(path, end as u64, what));
            }
            self.cut = Some((end, garbage_end));
        }
        self.records.extend(records.into_iter().map(|raw| Record {
            seq: raw.seq,
            kind: raw.kind,
            version: raw.version,
            data: bytes.slice(raw.payload),
        }));
        self.end = end as u64;
        self.chain = chain;
        self.segments.push_back(segment);
        Ok(())
    }

    /// The newest batch has no record behind it; the file `settled` vouches for it.
    fn check_settled(&self, dir: &Path) -> Result<(), Error> {
        if self.settled < self.chain.seq {
            return Ok(());
        }
        let (path, offset) = match self.segments.back() {
            Some(segment) => (segment.path.as_path(), self.end),
            None => (dir, 0),
        };
        let what = format!(
            "record {} is missing or damaged, but was acknowledged: see file settled",
            self.chain.seq
        );
        Err(Error::corrupt(path, offset, what))
    }

    /// A process that was killed may have left its last batch and the name of its last segment in the page
    /// cache only. They were read, so they will be relied on: a loss of power must not take them back.
    fn make_durable(&self, disk: &dyn Disk, dir: &Path) -> Result<(), Error> {
        if let Some(Segment { path, .. }) = self.segments.back() {
            let mut file = disk.open(path).map_err(Error::io("open", path))?;
            file.sync().map_err(Error::io("sync", path))?;
        }
        disk.sync_dir(dir).map_err(Error::io("sync directory", dir))
    }

    fn clean_up(&self, disk: &dyn Disk) -> Result<(), Error> {
        for path in &self.leftovers {
            disk.remove(path).map_err(Error::io("remove", path))?;
        }
        let (Some((from, to)), Some(segment)) = (self.cut, self.segments.back()) else { return Ok(()) };
        tracing::info!(
            path = %segment.path.display(), offset = from, bytes = to - from,
            "cutting a torn tail that was never acknowledged"
        );
        let mut file = disk.open(&segment.path).map_err(Error::io("open", &segment.path))?;
        file.write_at(from as u64, &vec![0; to - from]).map_err(Error::io("write", &segment.path))?;
        file.sync().map_err(Error::io("sync", &segment.path))
    }
}

/// The file that names the newest acknowledged record: two slots written in turn, never synced. What it says
/// is true whenever it was written, and it is there after the death of the process; after a loss of power it
/// may be old, when only the newest batch goes without this second witness.
struct Settled {
    file: Box<dyn File>,
    value: u64,
    slot: u64,
}

const SETTLED_NAME: &str = "settled";
/// Slots lie in different sectors, so that a torn write leaves one of them.
const SLOT_BYTES: u64 = 512;

impl Settled {
    fn read(disk: &dyn Disk, dir: &Path) -> Result<u64, Error> {
        let path = dir.join(SETTLED_NAME);
        let bytes = read_all(disk, &path).map_err(Error::io("read", &path))?.unwrap_or_default();
        let slot = |at: usize| {
            let bytes = bytes.get(at..at + 12)?;
            let crc = u32::from_le_bytes(bytes[8..].try_into().ok()?);
            (crc32fast::hash(&bytes[..8]) == crc)
                .then(|| bytes[..8].try_into().map(u64::from_le_bytes).ok())?
        };
        Ok(slot(0).max(slot(SLOT_BYTES as usize)).unwrap_or(0))
    }

    fn open(disk: &dyn Disk, dir: &Path, value: u64) -> Result<Settled, Error> {
        let path = dir.join(SETTLED_NAME);
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut file = disk.create(&path).map_err(Error::io("create", &path))?;
                file.preallocate(2 * SLOT_BYTES).map_err(Error::io("allocate", &path))?;
                file
            }
            Err(e) => return Err(Error::io("open", &path)(e)),
        };
        Ok(Settled { file, value, slot: 0 })
    }

    fn set(&mut self, value: u64, dir: &Path) -> Result<(), Error> {
        self.value = value;
        self.slot = SLOT_BYTES - self.slot;
        let mut out = [0; 12];
        out[..8].copy_from_slice(&value.to_le_bytes());
        let crc = crc32fast::hash(&out[..8]);
        out[8..].copy_from_slice(&crc.to_le_bytes());
        let path = || dir.join(SETTLED_NAME);
        self.file.write_at(self.slot, &out).map_err(|e| Error::io("write", &path())(e))
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
