//! The agent: one per node, between the masters and the node's containers.
//!
//! It refuses to decide what runs (masters and frameworks do) and to clone (supervisors do). What it must remember is
//! in [`core`], which has no clock, no files and no sockets; everything else is the shell around that.

pub mod config;
pub mod core;
mod data;
pub mod detect;
pub mod driver;
mod effects;
mod executors;
mod pace;
pub mod recover;
pub mod serve;
mod session;
pub mod start;

pub use effects::Error;
