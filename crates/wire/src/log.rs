//! The encoding of the log's entries and of snapshots' segments.

use bytes::Bytes;
use proffer_types::command::Entry;
use proffer_types::image::Segment;

use crate::record::RecordError;
use crate::{from_proto, to_proto};

pub use crate::generated::proffer::log::v1;

/// The canonical encoding of an entry.
pub fn encode_entry(entry: &Entry) -> Bytes {
    to_proto::entry(entry).into()
}

/// Reads an entry.
///
/// # Errors
/// Bytes that are no entry, a kind or version that is not known, anything in it that is not understood.
pub fn decode_entry(bytes: &[u8]) -> Result<Entry, RecordError> {
    from_proto::entry(bytes)
}

/// The canonical encoding of a segment.
pub fn encode_segment(segment: &Segment) -> Bytes {
    to_proto::segment(segment).into()
}

/// Reads a segment.
///
/// # Errors
/// Bytes that are no segment, a kind or version that is not known, anything in it that is not understood.
pub fn decode_segment(bytes: &[u8]) -> Result<Segment, RecordError> {
    from_proto::segment(bytes)
}
