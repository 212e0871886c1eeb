//! The Rust SDK. This crate refuses to know anything that an outside user could not: it speaks the public protocol
//! only.
//!
//! - [`core`] is what a framework's session knows and decides, pure: no clock, no sockets.
//! - [`Scheduler`] drives it over gRPC: finds the leader, follows it, repeats what was lost, acknowledges what the
//!   author has dealt with.
//! - [`AdminClient`] asks what operators ask.
//! - [`executor`] is for programs that run a framework's tasks on the nodes.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use proffer_client::{Event, Options, Scheduler};
//! use proffer_types::{FrameworkInfo, Role};
//!
//! let info = FrameworkInfo { name: "mine".into(), roles: vec![Role::star()], ..FrameworkInfo::default() };
//! let (handle, mut events) = Scheduler::connect(&["127.0.0.1:5050".into()], info, Options::default()).await?;
//! while let Event::Offers(offers) = events.next().await? {
//!     handle.decline(offers.iter().map(|offer| offer.id).collect(), None).await?;
//! }
//! # Ok(())
//! # }
//! ```

pub mod admin;
mod channel;
mod convert;
pub mod core;
mod driver;
pub mod events;
pub mod executor;
mod failure;
pub mod hands;
pub mod logs;
pub mod scheduler;

pub use admin::AdminClient;
pub use core::{
    Accepted, CallError, Ended, Event, Launch, Member, Offer, Operation, Part, Refused, RefusedKind,
    RefusedTask, TaskView,
};
pub use events::EventReader;
pub use logs::{LogReader, LogRequest};
pub use proffer_wire::rows;
pub use proffer_wire::told::{LogChunk, LogStream};
pub use scheduler::{ConnectError, EventStream, Handle, Identity, Options, Scheduler};
