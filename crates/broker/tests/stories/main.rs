//! Stories of one leader: calls go in, proposals are applied at once or held, effects come out.

mod agents;
mod executors;
mod frameworks;
mod groups;
mod harness;
mod offers;
