//! The replicated state machine: what every master knows alike.
//!
//! [`Registry::apply`] is the only way in which anything changes. It is a function of the state and the entry: no
//! clock, no randomness, no IO, no hash order, so that the same log makes the same state, byte for byte, on every
//! master. It cannot fail and does not panic on any entry that can be decoded: a command that makes no sense any more
//! changes nothing but the index and the clock, and says so in its [`Change`].
//!
//! This crate knows nothing of offers, connections, leaders or retries.

mod apply;
mod change;
mod check;
mod image;
mod state;
mod table;
#[cfg(test)]
mod tests;

pub use change::Change;
pub use check::Violation;
pub use image::Error;
pub use state::{Order, Registry};
