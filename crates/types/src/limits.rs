//! Limits and defaults that other people rely on, each with its unit.

/// Longest client-chosen name, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Most tasks in one Accept. Decoding and checking them takes about 8 ms of one core.
pub const ACCEPT_TASKS_MAX: usize = 10_000;
/// Largest encoded task spec, in bytes.
pub const SPEC_BYTES_MAX: usize = 64 << 10;
/// Most unacknowledged statuses kept for a task: one for each state it can pass through and the returns from
/// UNREACHABLE; more than this is a flapping agent, and the oldest non-terminal ones are dropped.
pub const PENDING_STATUSES_MAX: usize = 8;
/// Most answers of a session that the cluster keeps until the client says it has seen them.
pub const OPEN_CALLS_MAX: usize = 1_024;
/// How long after a client was refused an offer's shape it may not see it again, by default (milliseconds).
pub const FILTER_DEFAULT_MS: u64 = 5_000;
/// Longest filter (365 days).
pub const FILTER_MAX_MS: u64 = 365 * 24 * 3_600_000;
/// Shortest time before the same shape is offered again to whoever declined it or let it expire.
pub const REOFFER_FLOOR_MIN_MS: u64 = 100;
/// The re-offer floor doubles up to this while the same shape is refused.
pub const REOFFER_FLOOR_MAX_MS: u64 = 5_000;
/// An offer that is not answered is taken back after this.
pub const OFFER_TIMEOUT_MS: u64 = 30_000;
/// Period of heartbeats to frameworks and of pings to agents.
pub const HEARTBEAT_MS: u64 = 15_000;
/// Unanswered pings after which an agent is unreachable.
pub const PINGS_MISSED_MAX: u32 = 5;
/// How long a new leader counts frameworks that were connected as connected (one agent ping budget).
pub const RECONNECT_GRACE_MS: u64 = HEARTBEAT_MS * PINGS_MISSED_MAX as u64;
/// An agent unreachable for longer is removed; 0 would mean never.
pub const AGENT_EXPIRY_MS: u64 = 14 * 24 * 3_600_000;
/// An idle leader commits the time this often.
pub const TICK_MS: u64 = 10_000;
/// First repetition of an unacknowledged update; doubles up to [`UPDATE_RETRY_MAX_MS`].
pub const UPDATE_RETRY_MIN_MS: u64 = 10_000;
/// Longest pause between repetitions of an unacknowledged update.
pub const UPDATE_RETRY_MAX_MS: u64 = 600_000;
/// Time between SIGTERM and SIGKILL unless the task or the kill says otherwise.
pub const KILL_GRACE_MS: u64 = 5_000;
/// Longest kill grace anyone may ask for (one day).
pub const KILL_GRACE_MAX_MS: u64 = 24 * 3_600_000;
/// Finished tasks kept per framework.
pub const FINISHED_TASKS_PER_FRAMEWORK: usize = 1_000;
/// Finished tasks kept in all.
pub const FINISHED_TASKS_MAX: usize = 100_000;
/// Completed frameworks kept.
pub const COMPLETED_FRAMEWORKS_MAX: usize = 1_000;
/// Most tasks of one framework that are not finished and acknowledged.
pub const LIVE_TASKS_PER_FRAMEWORK: usize = 1_000_000;
/// Most bytes of distinct task specs that one framework may have in use.
pub const SPEC_BYTES_PER_FRAMEWORK: usize = 64 << 20;
/// Smallest offer: this much cpu (milli) …
pub const MIN_ALLOCATABLE_CPUS_MILLI: u64 = 10;
/// … or this much memory (bytes).
pub const MIN_ALLOCATABLE_MEMORY_BYTES: u64 = 32 << 20;
/// Processes and threads a task may have.
pub const TASK_PIDS_MAX: u64 = 4_096;
/// How long the answer to an admin call is kept for its repetition (milliseconds of cluster time).
pub const ADMIN_ANSWER_MS: u64 = 600_000;
/// Longest failover timeout a framework may ask for (100 years).
pub const FAILOVER_TIMEOUT_MAX_MS: u64 = 100 * 365 * 24 * 3_600_000;
/// Longest text in a status message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1_024;
/// Most bytes of environment that one task of a launch may add to its spec's.
pub const TASK_ENV_BYTES_MAX: usize = 16 << 10;
/// Most processes and threads that a task may ask for: what the kernel can number.
pub const TASK_PIDS_LIMIT: u64 = 1 << 22;
/// Most rows of a page of a list.
pub const PAGE_ROWS_MAX: usize = 1_000;
/// Most bytes that an executor may add to a status.
pub const STATUS_DATA_BYTES_MAX: usize = 4 << 10;
/// Most bytes of a message between a framework and an executor.
pub const EXECUTOR_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a task's data for its executor.
pub const TASK_DATA_BYTES_MAX: usize = 32 << 10;
/// Most statuses in one message of an executor.
pub const EXECUTOR_UPDATES_MAX: usize = 1_024;
/// How long an executor has to register after its start (milliseconds).
pub const EXECUTOR_REGISTRATION_MS: u64 = 60_000;
/// From a task's start to the first try of a check (milliseconds).
pub const CHECK_DELAY_MS: u64 = 15_000;
/// From the end of a try to the next (milliseconds).
pub const CHECK_INTERVAL_MS: u64 = 10_000;
/// A try that takes longer has failed (milliseconds).
pub const CHECK_TIMEOUT_MS: u64 = 20_000;
/// Failures this soon after the start do not count (milliseconds).
pub const CHECK_GRACE_MS: u64 = 10_000;
/// Consecutive failures that end the task.
pub const CHECK_FAILURES: u32 = 3;
/// Shortest interval and timeout of a check (milliseconds): tries cost a process each.
pub const CHECK_PERIOD_MIN_MS: u64 = 100;
/// Longest delay, interval, timeout and grace of a check, and longest time to run (365 days, milliseconds).
pub const DURATION_MAX_MS: u64 = 365 * 24 * 3_600_000;
/// Largest profile of system calls that a task may bring, in bytes.
pub const SECCOMP_BYTES_MAX: usize = 32 << 10;
/// Most tasks of a group.
pub const GROUP_TASKS_MAX: usize = 64;
/// Most bytes of the specs and environments of a group's tasks: they go to their agent in one message of at most 1 MiB.
pub const GROUP_BYTES_MAX: usize = 512 << 10;
/// Most bytes of arguments and environment of a program that is run in a task's container.
pub const ARGV_BYTES_MAX: usize = 64 << 10;
/// Shortest time between two measurements of what tasks use (milliseconds).
pub const USAGE_INTERVAL_MIN_MS: u64 = 500;
