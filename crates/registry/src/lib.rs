//! The replicated state machine.

mod change;

pub use change::Change;
