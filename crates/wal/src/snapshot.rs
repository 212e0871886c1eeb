//! Snapshots as content-addressed segments, and the manifest that names those of the current one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::disk::{Disk, read_all};
use crate::error::Error;
use crate::file::{read_sealed, temp_of, write_sealed};

/// The SHA-256 of a segment's bytes, which is its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name of a segment with these bytes.
pub fn hash_of(bytes: &[u8]) -> Hash {
    Hash(Sha256::digest(bytes).into())
}

/// One segment of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRef {
    /// Its name.
    pub hash: Hash,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What a snapshot consists of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// What the owner of the snapshot needs to know about it (for a raft log: index, term, members).
    pub meta: Bytes,
    /// The segments, in order.
    pub segments: Vec<SegmentRef>,
}

impl Manifest {
    /// The manifest as bytes: length of `meta` (4), `meta`, then hash (32) and length (8) of each segment.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.meta.len() + self.segments.len() * 40);
        out.extend_from_slice(&(self.meta.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.meta);
        for segment in &self.segments {
            out.extend_from_slice(&segment.hash.0);
            out.extend_from_slice(&segment.bytes.to_le_bytes());
        }
        out
    }

    /// The manifest from bytes; `None` if they are not one.
    pub fn decode(bytes: &[u8]) -> Option<Manifest> {
        let (len, rest) = bytes.split_at_checked(4)?;
        let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
        let (meta, rest) = rest.split_at_checked(len)?;
        if rest.len() % 40 != 0 {
            return None;
        }
        let segment = |chunk: &[u8]| {
            Some(SegmentRef {
                hash: Hash(chunk[..32].try_into().ok()?),
                bytes: u64::from_le_bytes(chunk[32..].try_into().ok()?),
            })
        };
        let segments = rest.chunks_exact(40).map(segment).collect::<Option<_>>()?;
        Some(Manifest { meta: Bytes::copy_from_slice(meta), segments })
    }

    /// The sum of the segments' lengths.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }
}

/// The snapshots of one node. A cheap clone, usable from several threads.
///
/// A segment file has its name only once all its bytes are durable and hash to that name. The current
/// snapshot is what the file `manifest` says; [`SnapshotStore::publish`] replaces it atomically and then
/// removes the segments that neither it nor a [pin](SnapshotStore::pin) names.
#[derive(Clone)]
pub struct SnapshotStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    pins: Arc<Mutex<BTreeMap<Hash, u32>>>,
}

const MANIFEST_MAGIC: [u8; 4] = *b"PSNP";
const MANIFEST_VERSION: u16 = 1;

impl SnapshotStore {
    /// Opens the store in `dir` (made if missing) and verifies every byte of the current snapshot. Removes
    /// nothing: see [`SnapshotStore::clean_up`].
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<(SnapshotStore, Option<Manifest>), Error> {
        let store = SnapshotStore { disk, dir: dir.to_owned(), pins: Arc::default() };
        let current = store.current()?;
        if let Some(manifest) = &current {
            for segment in &manifest.segments {
                store.read(segment)?;
            }
        }
        store.disk.create_dir_all(dir).map_err(Error::io("create directory", dir))?;
        // A process that was killed may have left the manifest's new name in the page cache only.
        store.disk.sync_dir(dir).map_err(Error::io("sync directory", dir))?;
        Ok((store, current))
    }

    /// Removes what neither the current snapshot nor a pin names: for the start, once everything else that
    /// lies beside the snapshot was found good.
    pub fn clean_up(&self) -> Result<(), Error> {
        let current = self.current()?;
        self.collect(current.as_ref())
    }

    /// The manifest of the current snapshot.
    pub fn current(&self) -> Result<Option<Manifest>, Error> {
        let path = self.manifest_path();
        let Some((_, body)) = read_sealed(self.disk.as_ref(), &path, MANIFEST_MAGIC, MANIFEST_VERSION)?
        else {
            return Ok(None);
        };
        match Manifest::decode(&body) {
            Some(manifest) => Ok(Some(manifest)),
            None => Err(Error::corrupt(&path, 16, "not a manifest")),
        }
    }

    /// Stores a segment and pins it; when this returns it is durable. A segment that is there already is
    /// only pinned.
    pub fn put(&self, bytes: &[u8]) -> Result<SegmentRef, Error> {
        let segment = SegmentRef { hash: hash_of(bytes), bytes: bytes.len() as u64 };
        self.pin(&[segment]);
        if !self.has(&segment) {
            let path = self.segment_path(segment.hash);
            crate::file::write_atomic(self.disk.as_ref(), &path, bytes)?;
        }
        Ok(segment)
    }

    /// Whether a segment is there, whole. (Its bytes were verified before it got its name.)
    pub fn has(&self, segment: &SegmentRef) -> bool {
        let file = self.disk.open(&self.segment_path(segment.hash));
        file.and_then(|file| file.len()).is_ok_and(|len| len == segment.bytes)
    }

    /// Reads a segment and verifies it.
    pub fn read(&self, segment: &SegmentRef) -> Result<Bytes, Error> {
        let path = self.segment_path(segment.hash);
        let bytes = match read_all(self.disk.as_ref(), &path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(Error::corrupt(&path, 0, "this segment of the snapshot is missing")),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        if bytes.len() as u64 != segment.bytes {
            let what = format!("{} bytes where {} were written", bytes.len(), segment.bytes);
            return Err(Error::corrupt(&path, 0, what));
        }
        if hash_of(&bytes) != segment.hash {
            return Err(Error::corrupt(&path, 0, "SHA-256 differs from the file's name"));
        }
        Ok(Bytes::from(bytes))
    }

    /// Reads up to `max` bytes of a segment at `offset`, unverified (the receiver verifies the whole).
    /// `None` if there is no such segment.
    pub fn read_chunk(&self, hash: Hash, offset: u64, max: usize) -> Result<Option<Bytes>, Error> {
        let path = self.segment_path(hash);
        let file = match self.disk.open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &path)(e)),
        };
        let mut buf = vec![0; max];
        let n = file.read_at(offset, &mut buf).map_err(Error::io("read", &path))?;
        buf.truncate(n);
        Ok(Some(Bytes::from(buf)))
    }

    /// How many bytes of a segment being fetched have arrived.
    pub fn partial_len(&self, hash: Hash) -> u64 {
        self.disk.open(&self.partial_path(hash)).and_then(|file| file.len()).unwrap_or(0)
    }

    /// Adds bytes that arrived to a segment being fetched.
    pub fn extend_partial(&self, hash: Hash, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let path = self.partial_path(hash);
        let file = match self.disk.open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.disk.create(&path),
            other => other,
        };
        let mut file = file.map_err(Error::io("open", &path))?;
        file.write_at(offset, bytes).map_err(Error::io("write", &path))
    }

    /// Turns a fetched segment into one that counts: verified, synced, named. `false`, and the bytes thrown
    /// away, if they are not what the name says.
    pub fn finish_partial(&self, segment: &SegmentRef) -> Result<bool, Error> {
        let (partial, path) = (self.partial_path(segment.hash), self.segment_path(segment.hash));
        let bytes = read_all(self.disk.as_ref(), &partial).map_err(Error::io("read", &partial))?;
        if bytes.is_none_or(|bytes| bytes.len() as u64 != segment.bytes || hash_of(&bytes) != segment.hash) {
            self.disk.remove(&partial).map_err(Error::io("remove", &partial))?;
            return Ok(false);
        }
        let mut file = self.disk.open(&partial).map_err(Error::io("open", &partial))?;
        file.sync().map_err(Error::io("sync", &partial))?;
        self.disk.rename(&partial, &path).map_err(Error::io("rename", &partial))?;
        self.disk.sync_dir(&self.dir).map_err(Error::io("sync directory", &self.dir))?;
        Ok(true)
    }

    /// Keeps segments, present or expected, from being removed until [`SnapshotStore::unpin`].
    pub fn pin(&self, segments: &[SegmentRef]) {
        let mut pins = self.pins.lock().expect("no holder panics");
        for segment in segments {
            *pins.entry(segment.hash).or_insert(0) += 1;
        }
    }

    /// Undoes one [`SnapshotStore::pin`] or [`SnapshotStore::put`] of each of these segments.
    pub fn unpin(&self, segments: &[SegmentRef]) {
        let mut pins = self.pins.lock().expect("no holder panics");
        for segment in segments {
            if let Some(count) = pins.get_mut(&segment.hash) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(&segment.hash);
                }
            }
        }
    }

    /// Makes a snapshot the current one, durably, and removes what is no longer needed. All its segments
    /// must be there.
    pub fn publish(&self, manifest: &Manifest) -> Result<(), Error> {
        if let Some(segment) = manifest.segments.iter().find(|segment| !self.has(segment)) {
            return Err(Error::corrupt(
                &self.segment_path(segment.hash),
                0,
                "a segment to publish is missing",
            ));
        }
        let body = manifest.encode();
        write_sealed(self.disk.as_ref(), &self.manifest_path(), MANIFEST_MAGIC, MANIFEST_VERSION, &body)?;
        self.collect(Some(manifest))
    }

    /// Removes segments that neither `current` nor a pin names.
    fn collect(&self, current: Option<&Manifest>) -> Result<(), Error> {
        let mut keep: BTreeSet<Hash> = self.pins.lock().expect("no holder panics").keys().copied().collect();
        keep.extend(current.into_iter().flat_map(|manifest| &manifest.segments).map(|segment| segment.hash));
        let names = self.disk.list(&self.dir).map_err(Error::io("list", &self.dir))?;
        for name in names {
            let hash = name.strip_suffix(SEGMENT_SUFFIX).or_else(|| name.strip_suffix(PARTIAL_SUFFIX));
            let Some(hash) = hash.and_then(parse_hash) else { continue };
            if !keep.contains(&hash) {
                let path = self.dir.join(&name);
                self.disk.remove(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn manifest_path(&self) -> PathBuf {
        self.dir.join("manifest")
    }

    fn segment_path(&self, hash: Hash) -> PathBuf {
        self.dir.join(format!("{hash}{SEGMENT_SUFFIX}"))
    }

    fn partial_path(&self, hash: Hash) -> PathBuf {
        self.dir.join(format!("{hash}{PARTIAL_SUFFIX}"))
    }
}

const SEGMENT_SUFFIX: &str = ".seg";
const PARTIAL_SUFFIX: &str = ".part";

fn parse_hash(hex: &str) -> Option<Hash> {
    // A leftover of `put` is named after the segment too.
    let hex = hex.strip_suffix(temp_of(Path::new("")).to_str()?).unwrap_or(hex);
    let mut out = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (n, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).ok()?;
    }
    Some(Hash(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimDisk;

    const DIR: &str = "/node/snap";

    fn open(disk: &SimDisk) -> Result<(SnapshotStore, Option<Manifest>), Error> {
        SnapshotStore::open(Arc::new(disk.clone()), Path::new(DIR))
    }

    fn manifest(store: &SnapshotStore, meta: &'static [u8], parts: &[&[u8]]) -> Manifest {
        let segments = parts.iter().map(|part| store.put(part).unwrap()).collect();
        Manifest { meta: Bytes::from_static(meta), segments }
    }

    #[test]
    fn publishing_replaces_the_snapshot_and_removes_what_nobody_needs() {
        let disk = SimDisk::new();
        let (store, none) = open(&disk).unwrap();
        assert!(none.is_none());
        let first = manifest(&store, b"1", &[b"a", b"shared"]);
        store.publish(&first).unwrap();
        let second = manifest(&store, b"2", &[b"b", b"shared"]);
        store.publish(&second).unwrap();
        assert!(store.has(&first.segments[0]), "still pinned by its put");
        store.unpin(&first.segments);
        store.unpin(&second.segments);
        store.publish(&second).unwrap();
        assert!(!store.has(&first.segments[0]));
        let (store, current) = open(&disk).unwrap();
        assert_eq!(current.as_ref(), Some(&second));
        store.put(b"of no snapshot").unwrap();
        let (store, _) = open(&disk).unwrap();
        store.clean_up().unwrap();
        assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 3);
        assert_eq!(store.read(&second.segments[1]).unwrap(), b"shared"[..]);
    }

    #[test]
    fn a_crash_leaves_the_old_or_the_new_snapshot_whole() {
        for seed in 0..300 {
            let disk = SimDisk::new();
            let (store, _) = open(&disk).unwrap();
            let first = manifest(&store, b"1", &[b"a", b"shared"]);
            store.publish(&first).unwrap();
            store.unpin(&first.segments);
            disk.stop_after(seed % 12);
            let put = |part: &[u8]| store.put(part);
            let second = put(b"b").and_then(|b| Ok(vec![b, put(b"shared")?]));
            let published = second
                .and_then(|segments| store.publish(&Manifest { meta: Bytes::from_static(b"2"), segments }));
            disk.crash(seed);
            let (_, current) = open(&disk).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            let meta = current.expect("one of the two").meta;
            assert!(meta == b"2"[..] || (meta == b"1"[..] && published.is_err()), "seed {seed}");
        }
    }

    #[test]
    fn a_damaged_or_missing_segment_refuses_and_touches_nothing() {
        let disk = SimDisk::new();
        let (store, _) = open(&disk).unwrap();
        let one = manifest(&store, b"1", &[b"some bytes"]);
        store.publish(&one).unwrap();
        let path = store.segment_path(one.segments[0].hash);
        disk.flip_bit(&path, 4, 2);
        let before = disk.files();
        assert!(matches!(open(&disk), Err(Error::Corrupt { path: named, .. }) if named == path));
        assert_eq!(before, disk.files());
        disk.remove(&path).unwrap();
        assert!(matches!(open(&disk), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_fetch_resumes_and_counts_only_when_verified() {
        let disk = SimDisk::new();
        let (store, _) = open(&disk).unwrap();
        let segment = SegmentRef { hash: hash_of(b"0123456789"), bytes: 10 };
        store.pin(&[segment]);
        store.extend_partial(segment.hash, 0, b"01234").unwrap();
        assert_eq!(store.partial_len(segment.hash), 5);
        store.extend_partial(segment.hash, 5, b"5678X").unwrap();
        assert!(!store.has(&segment));
        assert!(!store.finish_partial(&segment).unwrap());
        assert_eq!(store.partial_len(segment.hash), 0);
        store.extend_partial(segment.hash, 0, b"0123456789").unwrap();
        assert!(store.finish_partial(&segment).unwrap());
        assert!(store.has(&segment));
        assert_eq!(store.read_chunk(segment.hash, 8, 100).unwrap().unwrap(), b"89"[..]);
        disk.crash(1);
        assert!(store.has(&segment), "a finished segment is durable");
    }

    #[test]
    fn manifests_round_trip_and_garbage_is_refused() {
        let one = Manifest {
            meta: Bytes::from_static(b"meta"),
            segments: vec![SegmentRef { hash: hash_of(b"x"), bytes: 1 }],
        };
        let encoded = one.encode();
        assert_eq!(Manifest::decode(&encoded), Some(one));
        for len in 0..encoded.len() {
            assert!(Manifest::decode(&encoded[..len]).is_none() || len == 8);
        }
    }
}
