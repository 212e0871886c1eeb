//! What must be true of every state, and of every step from one to a later one: recomputed from scratch, never read
//! off the counters that it checks.

mod state;
mod step;

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule}: {detail}")]
pub struct Violation {
    /// The rule.
    pub rule: &'static str,
    /// What contradicts it.
    pub detail: String,
}

fn ensure(rule: &'static str, holds: bool, detail: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { rule, detail: detail() }) }
}
