//! Verbs that reach into a task: programs, terminals, files.

pub(crate) mod attach;
pub(crate) mod copy;
pub(crate) mod exec;
pub(crate) mod files;
mod local;
mod terminal;
