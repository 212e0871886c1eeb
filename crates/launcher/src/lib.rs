//! Starts containers: one `clone3`, a fixed order of set-up steps, one `execve`.
//!
//! This crate refuses to be asynchronous, to know what a task or a framework is, to make or remove cgroups,
//! and to allocate between clone and exec. It is written for a single-threaded supervisor that must never
//! block: [`spawn`] returns as soon as the container's init is cloned and let go, and everything after that is
//! a record on init's status socket ([`Container::event`]).
//!
//! A container of [`Isolation::Linux`] enters a [`Template`], a mount namespace built once per supervisor in
//! which the host's root is read-only and every place where a host socket or a secret may lie is covered.
//! [`Isolation::Process`] is the same init as a subreaper without namespaces: no root needed, nothing
//! contained.
//!
//! The order of the steps in `child.rs` is the product of trying: each is where it is for a reason given there.

// Everything here is system calls on raw descriptors and memory shared across clone.
#![allow(unsafe_code)]

mod arena;
mod build_id;
mod child;
mod container;
mod error;
pub mod heap;
mod init;
mod join;
mod payload;
pub mod proc;
mod reexec;
mod request;
pub mod seccomp;
pub mod seqpacket;
mod spawn;
mod sys;
mod template;
mod tree;
mod user_namespace;
mod view;

pub use build_id::build_id;
pub use container::{Container, Event, Signalled};
pub use error::{Error, Step};
pub use join::{Joined, join};
pub use reexec::execute_read_only;
pub use request::{
    Call, EXECUTOR_PATH, GROUP_PATH, Isolation, Limit, MOUNTS_MAX, Mount, Request, SANDBOX_PATH, Sandbox,
    WindowSize,
};
pub use spawn::{drop_bounding_set, spawn};
pub use template::{Template, socket_places};
pub use user_namespace::{IdRange, UserNamespace, detached_mount};
