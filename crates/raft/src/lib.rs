//! Replication of opaque entries by raft-rs. No consensus of our own, and no idea of what the entries mean.
//!
//! - [`core`]: a synchronous state machine around raft-rs's `RawNode`. Messages, ticks and completed writes
//!   go in; one value comes out that says what to write, send and deliver. No clock, no IO.
//! - [`store`]: the log, the snapshots and their recovery, on a [`proffer_wal::Disk`].
//! - [`bootstrap`]: how masters that know only each other's addresses become one cluster, once.
//! - [`Raft`]: the three above with threads, sockets and a clock.
//!
//! What this crate refuses to do: answer before the fsync that the answer depends on; forward a proposal;
//! propose before this term's own first entry is applied; call a proposal failed that may yet be committed;
//! start on a log that is damaged or newer than itself.

pub mod bootstrap;
pub mod core;
mod driver;
mod logger;
mod message;
mod record;
pub mod store;
mod types;

pub use driver::{Error, Event, Handle, Options, PeerStatus, Raft, SegmentLoader, Status};
pub use message::BadMessage;
pub use types::{Entry, HardState, Outcome, Refused, Role, RoleChange, Snapshot};
