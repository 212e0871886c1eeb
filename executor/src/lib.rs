//! The supervisor: parent of one framework's containers on one node, outliving the agent that started it.
//!
//! It refuses to have a second thread, to wait for anything but its one `epoll_wait`, to touch the network, and to
//! read or write a regular disk: its records lie on a tmpfs, and log files are written by the [`pump`], a process
//! of its own. What it is told to do, and what it tells, is `proffer.supervisor.v1`.

// posix_spawn, and the descriptors of processes and sockets.
#![allow(unsafe_code)]

mod checks;
pub mod config;
mod connection;
pub mod daemon;
mod ends;
mod files;
mod gather;
mod groups;
mod inside;
mod journal;
mod launch;
mod logs;
mod orders;
mod poller;
mod probe;
pub mod pump;
mod pump_protocol;
mod records;
mod request;
mod supervisor;
mod users;
mod waste;

pub use supervisor::Supervisor;
