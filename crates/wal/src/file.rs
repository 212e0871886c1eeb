//! Small files that are replaced as a whole or not at all.

use std::path::{Path, PathBuf};

use crate::disk::{Disk, read_all};
use crate::error::Error;

/// Writes `bytes` to `path` so that after a crash either the old or the new content is there: a temporary
/// file, its fsync, a rename, and the fsync of the directory that makes the rename durable.
pub fn write_atomic(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temp = temp_of(path);
    let mut file = disk.create(&temp).map_err(Error::io("create", &temp))?;
    file.write_at(0, bytes).map_err(Error::io("write", &temp))?;
    file.sync().map_err(Error::io("sync", &temp))?;
    drop(file);
    disk.rename(&temp, path).map_err(Error::io("rename", &temp))?;
    let dir = parent_of(path);
    disk.sync_dir(dir).map_err(Error::io("sync directory", dir))
}

/// The name under which a file is written before it is renamed to `path`.
pub(crate) fn temp_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// The directory of a path that has one.
pub(crate) fn parent_of(path: &Path) -> &Path {
    path.parent().expect("every file of ours lies in a directory")
}

/// Magic (4), version (2), zero (2), body length (4), CRC32 of all before and of the body (4).
const SEAL_BYTES: usize = 16;

/// [`write_atomic`] with a header that names what the file is (`magic`), its format version and a checksum.
pub fn write_sealed(
    disk: &dyn Disk,
    path: &Path,
    magic: [u8; 4],
    version: u16,
    body: &[u8],
) -> Result<(), Error> {
    write_atomic(disk, path, &seal(magic, version, body))
}

/// Reads a file written by [`write_sealed`]: its version and body, or `None` if there is no such file.
/// Refuses a damaged file and a version above `newest`.
pub fn read_sealed(
    disk: &dyn Disk,
    path: &Path,
    magic: [u8; 4],
    newest: u16,
) -> Result<Option<(u16, Vec<u8>)>, Error> {
    let Some(bytes) = read_all(disk, path).map_err(Error::io("read", path))? else { return Ok(None) };
    unseal(path, &bytes, magic, newest).map(Some)
}

pub(crate) fn seal(magic: [u8; 4], version: u16, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEAL_BYTES + body.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&out);
    crc.update(body);
    out.extend_from_slice(&crc.finalize().to_le_bytes());
    out.extend_from_slice(body);
    out
}

pub(crate) fn unseal(
    path: &Path,
    bytes: &[u8],
    magic: [u8; 4],
    newest: u16,
) -> Result<(u16, Vec<u8>), Error> {
    if bytes.len() < SEAL_BYTES || bytes[..4] != magic {
        return Err(Error::corrupt(path, 0, "not a file of this kind (wrong first bytes)"));
    }
    let len = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes")) as usize;
    let body = &bytes[SEAL_BYTES..];
    if body.len() != len {
        return Err(Error::corrupt(path, 8, format!("{} bytes where {len} were written", body.len())));
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..12]);
    crc.update(body);
    if crc.finalize().to_le_bytes() != bytes[12..16] {
        return Err(Error::corrupt(path, 12, "checksum differs"));
    }
    let version = u16::from_le_bytes(bytes[4..6].try_into().expect("two bytes"));
    if version > newest {
        return Err(Error::unknown(path, 4, format!("format version {version} (newest known: {newest})")));
    }
    Ok((version, body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimDisk;

    const MAGIC: [u8; 4] = *b"TEST";

    #[test]
    fn reads_back_what_was_sealed_and_refuses_the_rest() {
        let disk = SimDisk::new();
        let path = Path::new("/d/file");
        disk.create_dir_all(Path::new("/d")).unwrap();
        assert!(read_sealed(&disk, path, MAGIC, 1).unwrap().is_none());
        write_sealed(&disk, path, MAGIC, 1, b"hello").unwrap();
        assert_eq!(read_sealed(&disk, path, MAGIC, 1).unwrap().unwrap(), (1, b"hello".to_vec()));
        assert!(matches!(read_sealed(&disk, path, MAGIC, 0), Err(Error::Unknown { .. })));
        assert!(matches!(read_sealed(&disk, path, *b"ELSE", 1), Err(Error::Corrupt { .. })));
        for offset in 0..21 {
            disk.flip_bit(path, offset, 3);
            let read = read_sealed(&disk, path, MAGIC, 1);
            // The two padding bytes are covered by the checksum too.
            assert!(matches!(read, Err(Error::Corrupt { .. })), "flip at {offset}: {read:?}");
            disk.flip_bit(path, offset, 3);
        }
    }

    #[test]
    fn a_crash_leaves_the_old_or_the_new_content() {
        for seed in 0..200 {
            let disk = SimDisk::new();
            let path = Path::new("/d/file");
            disk.create_dir_all(Path::new("/d")).unwrap();
            write_sealed(&disk, path, MAGIC, 1, b"old").unwrap();
            disk.stop_after(seed % 6);
            let written = write_sealed(&disk, path, MAGIC, 1, b"new").is_ok();
            disk.crash(seed);
            let (_, body) = read_sealed(&disk, path, MAGIC, 1).unwrap().expect("never absent");
            assert!(body == b"new" || (!written && body == b"old"), "seed {seed}: {body:?}");
        }
    }
}
