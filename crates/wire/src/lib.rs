//! The protocol: generated messages, and the only two places where they turn into values and back. This crate decides
//! nothing.
//!
//! Feature `rpc` adds the generated gRPC clients and servers.

/// What protox and prost generated from `/proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated; the documentation is in the .proto files"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/packages.rs"));
}

pub use generated::proffer::*;

mod content;
pub mod from_proto;
pub mod journal;
pub mod log;
pub mod malformed;
pub mod record;
pub mod rows;
#[cfg(feature = "rpc")]
pub mod status;
pub mod to_proto;
pub mod told;

pub use malformed::{InvalidField, Malformed};
pub use record::RecordError;

/// The descriptor set of everything in `/proto`, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
