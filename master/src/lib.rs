//! The master: the shell around the registry, the broker and Raft. It decides nothing: it carries events to the
//! [`mind`], and does what comes back.

pub mod config;
pub mod daemon;
pub mod driver;
pub mod events;
pub mod listen;
pub mod mind;
pub mod serve;
