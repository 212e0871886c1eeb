//! The supervisor as a process, spoken to as an agent does. What needs root says so when it cannot run.

mod golden;
mod groups;
mod harness;
mod inside;
mod launches;
