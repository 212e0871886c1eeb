//! What tests share: the simulator, which runs the very crates of the binaries on one thread from one seed, and the
//! launcher of real clusters.

pub mod cluster;
pub mod sim;
