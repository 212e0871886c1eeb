//! The vocabulary of proffer: identifiers, resources, time, records, and the calls and commands that move between
//! its parts. This crate refuses to do anything: no IO, no clock, no randomness, no protocol encoding.

#[macro_use]
mod named;

pub mod agent;
pub mod call;
pub mod caller;
pub mod canonical;
pub mod command;
pub mod container;
pub mod event;
pub mod executor;
pub mod features;
pub mod framework;
pub mod ids;
pub mod image;
pub mod limits;
pub mod names;
pub mod offer;
pub mod recent;
pub mod resources;
pub mod task;
pub mod time;

pub use agent::{Agent, AgentInfo, AgentState, AttributeValue};
pub use caller::{Action, Caller, CallerKind, Denied, authorise};
pub use framework::{Framework, FrameworkInfo, FrameworkState};
pub use ids::{
    AgentId, BootId, CellTag, ClusterId, Epoch, FrameworkId, IdError, LaunchId, MasterId, OfferId, RequestId,
    SessionId, SpecDigest,
};
pub use names::{ExecutorId, NameError, Role, TaskId};
pub use offer::Offer;
pub use resources::{Attribution, Quantities, Ranges, ResourceError, Resources};
pub use task::{Reason, Source, Status, Task, TaskLaunch, TaskSpec, TaskState};
pub use time::ClusterTime;
