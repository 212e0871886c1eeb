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
//!
//! How others' containers were left, and what is done about it here:
//!
//! | hole | rule |
//! |---|---|
//! | CVE-2016-9962 | who enters a container is not dumpable and has nothing open before it does: `child.rs`, `join.rs` |
//! | CVE-2019-5736, CVE-2019-0204 | the supervisor runs from a read-only mount: `reexec.rs` |
//! | CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642 | an own /proc, on a directory of the host's: `view.rs` |
//! | CVE-2021-30465, CVE-2024-45310 | mounts by descriptor, onto what no task can change: `view.rs` |
//! | CVE-2021-43784 | no length crosses a process: the child reads its parent's values: `request.rs` |
//! | CVE-2022-29162 | every capability set is emptied, and no_new_privs set: `child.rs` |
//! | CVE-2022-0492, CVE-2023-25809 | a cgroup namespace, and no cgroup file system: `view.rs`, `template.rs` |
//! | CVE-2022-0185, CVE-2022-0847 and other holes of the kernel | a filter, and users of one's own: `seccomp`, `user_namespace.rs` |
//! | CVE-2024-21626 | descriptors are closed before the working directory is entered, which must lie inside: `payload.rs` |
//! | CVE-2025-31133, CVE-2025-52881, CVE-2025-62161, CVE-2025-62596 | masks of the host's own making: `view.rs` |
//! | CVE-2025-52565 | a terminal by descriptor, looked at: `payload.rs` |
//! | CVE-2024-0132, CVE-2025-23266 | no hooks: nothing of the host's runs for a container |
//! | CVE-2020-15257 | no abstract sockets: pairs, and paths that are covered: `spawn.rs`, `template.rs` |

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
pub use join::{Joined, join, reap_dropped};
pub use reexec::execute_read_only;
pub use request::{
    Call, EXECUTOR_PATH, GROUP_PATH, Isolation, Limit, MOUNTS_MAX, Mount, Request, SANDBOX_PATH, Sandbox,
    WindowSize,
};
pub use spawn::{drop_bounding_set, spawn};
pub use template::{Template, socket_places};
pub use user_namespace::{IdRange, UserNamespace, detached_mount};
