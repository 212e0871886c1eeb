//! Records of the log and of snapshots: what can be wrong with one.

use crate::malformed::Malformed;

/// Why a record cannot be read. Whoever reads its own files stops, with the files untouched: to skip a record would be
/// to disagree with the other masters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No message at all.
    #[error("{what}: not a record: {error}")]
    Garbled {
        /// `log entry` or `snapshot segment`.
        what: &'static str,
        /// What the decoder says.
        #[source]
        error: prost::DecodeError,
    },
    /// A kind that this version does not know.
    #[error("{what}: kind {kind} (version {version}) is not known to this version of proffer")]
    UnknownKind {
        /// `log entry` or `snapshot segment`.
        what: &'static str,
        /// Its kind.
        kind: u32,
        /// Its version.
        version: u32,
    },
    /// A version of a kind that this version does not know.
    #[error(
        "{what}: version {version} of kind {kind} is not known to this version of proffer, which knows {known}"
    )]
    UnknownVersion {
        /// `log entry` or `snapshot segment`.
        what: &'static str,
        /// Its kind.
        kind: u32,
        /// Its version.
        version: u32,
        /// The last version known.
        known: u32,
    },
    /// The body is not of the kind that the record names.
    #[error("{what}: says kind {kind}, but its body is of kind {body:?}")]
    WrongBody {
        /// `log entry` or `snapshot segment`.
        what: &'static str,
        /// The kind it names.
        kind: u32,
        /// The kind of its body, if it has one.
        body: Option<u32>,
    },
    /// It holds something that this version does not understand, or is not in canonical form.
    #[error("{what}: kind {kind}: {bytes} bytes were read, of which this version understands {understood}")]
    NotUnderstood {
        /// `log entry` or `snapshot segment`.
        what: &'static str,
        /// Its kind.
        kind: u32,
        /// Its length.
        bytes: usize,
        /// The length of what was understood.
        understood: usize,
    },
    /// A field holds what it must not.
    #[error("{what}: kind {kind}: {error}")]
    Invalid {
        /// `log entry` or `snapshot segment`.
        what: &'static str,
        /// Its kind.
        kind: u32,
        /// Which field, and why.
        #[source]
        error: Malformed,
    },
}

/// Checks what a record says of itself against what it is. `known` is the last version of its kind, `None` if the kind
/// is unknown.
pub(crate) fn check(
    what: &'static str,
    (kind, version): (u32, u32),
    known: Option<u32>,
    body: Option<u32>,
    bytes: usize,
    understood: usize,
) -> Result<(), RecordError> {
    let Some(known) = known else { return Err(RecordError::UnknownKind { what, kind, version }) };
    if version == 0 || version > known {
        return Err(RecordError::UnknownVersion { what, kind, version, known });
    }
    if body != Some(kind) {
        return Err(RecordError::WrongBody { what, kind, body });
    }
    if bytes != understood {
        return Err(RecordError::NotUnderstood { what, kind, bytes, understood });
    }
    Ok(())
}
