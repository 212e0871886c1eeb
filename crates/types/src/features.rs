//! Names of what an agent can do with a task beyond running a command with resources. An agent lists the ones it knows;
//! a spec that uses one is never launched by an agent without it.

/// Fields of [`Container`](crate::container::Container) and [`Burst`](crate::container::Burst).
pub const CONTAINMENT: &str = "containment";
/// Health and readiness checks.
pub const CHECKS: &str = "checks";
/// A longest time to run.
pub const MAX_COMPLETION: &str = "max_completion";
/// Tasks that start and end together.
pub const TASK_GROUP: &str = "task_group";
/// Executors of frameworks.
pub const EXECUTOR: &str = "executor";
