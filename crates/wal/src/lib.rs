//! What proffer keeps on disk: an append log, small atomic files, snapshot segments.
//!
//! This crate refuses to guess. A log whose acknowledged part is damaged, or which holds a record of a kind
//! or version that the caller does not know, is not opened, and not one byte of it is changed; only a tail
//! that nobody can ever have relied on is cut.
//!
//! - [`Log`]: checksummed, chained, preallocated segments with group append ([`Log::append`]).
//! - [`write_sealed`] / [`read_sealed`]: one small file, replaced as a whole or not at all.
//! - [`SnapshotStore`]: content-addressed segments and the manifest that names them.
//! - [`Disk`]: the few operations all of it rests on, with [`FsDisk`] (the real one) and [`SimDisk`]
//!   (deterministic, with crashes that lose unsynced writes, torn sectors, errors and flipped bits).

mod disk;
mod error;
mod file;
mod log;
mod segment;
mod sim;
mod snapshot;

pub use disk::{Disk, File, FsDisk};
pub use error::Error;
pub use file::{read_sealed, write_atomic, write_sealed};
pub use log::{Log, NewRecord, Options, Record, SyncPolicy};
pub use sim::{Fault, SimDisk};
pub use snapshot::{Hash, Manifest, SegmentRef, SnapshotStore, hash_of};
