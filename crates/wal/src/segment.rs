//! The bytes of one log segment: header, records, and the search for where they end.

use std::path::Path;

use bytes::{BufMut, Bytes};

use crate::error::Error;

/// Bytes of a segment's header.
pub(crate) const HEADER: usize = 64;
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER: usize = 32;
/// Records start at multiples of this.
const ALIGN: usize = 8;
/// Longest payload. A length field beyond it is damage, not a record.
pub(crate) const RECORD_MAX: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"PROFWAL\0";
const VERSION: u32 = 1;

/// Where a segment continues the log: the number of its first record, and the checksum of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) seq: u64,
    pub(crate) crc: u32,
}

/// Magic (8), version (4), CRC32 of bytes 16..64 and 0..12 (4), first sequence number (8), CRC of the record
/// before it (4), zeroes.
pub(crate) fn encode_header(chain: Chain) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&chain.seq.to_le_bytes());
    out[24..28].copy_from_slice(&chain.crc.to_le_bytes());
    let crc = header_crc(&out);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

fn header_crc(header: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&header[..12]);
    crc.update(&header[16..HEADER]);
    crc.finalize()
}

/// A segment gets its final name only after its header is durable, so a bad header is always damage.
pub(crate) fn decode_header(path: &Path, bytes: &[u8]) -> Result<Chain, Error> {
    if bytes.len() < HEADER || bytes[..8] != MAGIC {
        return Err(Error::corrupt(path, 0, "not a log segment (wrong first bytes)"));
    }
    if header_crc(bytes) != u32_at(bytes, 12) {
        return Err(Error::corrupt(path, 12, "checksum of the segment header differs"));
    }
    match u32_at(bytes, 8) {
        VERSION => Ok(Chain { seq: u64_at(bytes, 16), crc: u32_at(bytes, 24) }),
        other => Err(Error::unknown(path, 8, format!("log format version {other} (this one: {VERSION})"))),
    }
}

/// A record as it lies in a segment.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    pub(crate) crc: u32,
    pub(crate) kind: u8,
    pub(crate) version: u8,
    pub(crate) seq: u64,
    /// All records up to this one were acknowledged when this one was written.
    pub(crate) settled: u64,
    pub(crate) payload: std::ops::Range<usize>,
    /// Where the next record starts.
    pub(crate) end: usize,
}

/// Appends a record to `out`, which starts at a multiple of the alignment; its checksum, for the next one.
///
/// CRC32 of all that follows (4), payload length (4), kind, version, zero (2), CRC of the record before (4),
/// sequence number (8), settled (8), payload, zeroes up to the alignment.
pub(crate) fn encode_record(
    out: &mut Vec<u8>,
    chain: Chain,
    settled: u64,
    kind: u8,
    version: u8,
    parts: &[&[u8]],
) -> u32 {
    let start = out.len();
    out.put_u32_le(0);
    out.put_u32_le(parts.iter().map(|part| part.len()).sum::<usize>() as u32);
    out.put_u8(kind);
    out.put_u8(version);
    out.put_u16_le(0);
    out.put_u32_le(chain.crc);
    out.put_u64_le(chain.seq);
    out.put_u64_le(settled);
    for part in parts {
        out.extend_from_slice(part);
    }
    let crc = crc32fast::hash(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    out.resize(out.len().next_multiple_of(ALIGN), 0);
    crc
}

/// The record at `at`, if its checksum holds. The chain is for the caller to check.
fn decode_record(bytes: &[u8], at: usize) -> Option<(Raw, u32)> {
    let header = bytes.get(at..at + RECORD_HEADER)?;
    let len = u32_at(header, 4) as usize;
    if len > RECORD_MAX || header[10..12] != [0, 0] {
        return None;
    }
    let start = at + RECORD_HEADER;
    let covered = bytes.get(at + 4..start + len)?;
    let crc = u32_at(header, 0);
    if crc32fast::hash(covered) != crc {
        return None;
    }
    let raw = Raw {
        crc,
        kind: header[8],
        version: header[9],
        seq: u64_at(header, 16),
        settled: u64_at(header, 24),
        payload: start..start + len,
        end: (start + len).next_multiple_of(ALIGN),
    };
    Some((raw, u32_at(header, 12)))
}

/// What [`scan`] found in a segment.
pub(crate) struct Scan {
    pub(crate) records: Vec<Raw>,
    /// Where the valid records end.
    pub(crate) end: usize,
    /// Where the bytes behind them that are not zero end, if there are any.
    pub(crate) garbage_end: Option<usize>,
    /// The chain after the last record.
    pub(crate) chain: Chain,
    /// The offset of a record behind the end that could only be written once the one missing at the end
    /// had been acknowledged.
    pub(crate) proof_of_loss: Option<usize>,
}

/// Reads the records of a segment up to the first thing that is not the next record.
///
/// Behind it the bytes are searched for any later record: of an unacknowledged batch any part may have
/// survived a crash, so a later record alone proves nothing, but its `settled` field does.
pub(crate) fn scan(bytes: &Bytes, mut chain: Chain) -> Scan {
    let mut records = Vec::new();
    let mut end = HEADER;
    while let Some((raw, previous)) = decode_record(bytes, end) {
        if raw.seq != chain.seq || previous != chain.crc {
            break;
        }
        chain = Chain { seq: raw.seq + 1, crc: raw.crc };
        end = raw.end.min(bytes.len());
        records.push(raw);
    }
    let rest = &bytes[end..];
    let garbage_end = rest.iter().rposition(|&byte| byte != 0).map(|last| end + last + 1);
    let mut proof_of_loss = None;
    if let Some(last) = garbage_end {
        let mut at = end;
        while at < last && proof_of_loss.is_none() {
            if let Some((raw, _)) = decode_record(bytes, at)
                && raw.seq > chain.seq
                && raw.settled >= chain.seq
            {
                proof_of_loss = Some(at);
            }
            at += ALIGN;
        }
    }
    Scan { records, end, garbage_end, chain, proof_of_loss }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
