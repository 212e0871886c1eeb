//! What tasks run, and what became of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use proffer_types::container::{Burst, Container, ExecutorSpec};
use proffer_types::limits::{
    KILL_GRACE_MAX_MS, KILL_GRACE_MS, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, SPEC_BYTES_MAX,
    STATUS_DATA_BYTES_MAX, TASK_DATA_BYTES_MAX, TASK_ENV_BYTES_MAX, TASK_PIDS_LIMIT,
};
use proffer_types::{ExecutorId, Reason, Source, Status, TaskId, TaskLaunch, TaskSpec, TaskState};
use prost::Message;

use super::resources::{Attributions, resources};
use super::{container, display_name, features, labels, user};
use crate::common::v1 as pb;
use crate::malformed::{Path, Problems};

/// Parses a spec completely: whoever holds one can run it, as far as the protocol can tell.
pub(crate) fn task_spec(
    spec: Option<pb::TaskSpec>,
    at: &Path<'_>,
    allowed: Attributions,
    problems: &mut Problems,
) -> Option<Arc<TaskSpec>> {
    let Some(spec) = spec else { return problems.invalid(*at, "must be given") };
    let bytes = spec.encoded_len();
    // What a master sends on has its defaults and its user filled in: only what users send is measured.
    if bytes > SPEC_BYTES_MAX && allowed == Attributions::Refused {
        return problems.invalid(*at, format_args!("has {bytes} bytes, the limit is {SPEC_BYTES_MAX}"));
    }
    let executor = match spec.executor {
        None => Some(None),
        Some(given) => executor(*given, &at.field("executor"), allowed, problems).map(Some),
    };
    // What an executor runs is in its data; what is for the cluster's own supervisor must not be there.
    let executed = executor.as_ref().is_none_or(Option::is_some);
    let argv = if executed && spec.argv.is_empty() { Some(spec.argv) } else { argv(spec.argv, at, problems) };
    let env = env(spec.env, at, problems);
    let user = user(spec.user, at.field("user"), problems);
    let nothing = spec.resources.is_empty();
    let resources = resources(spec.resources, at, "resources", allowed, problems);
    if nothing {
        problems.invalid::<()>(at.field("resources"), "a task must hold something");
    } else if resources.as_ref().is_some_and(|held| held.memory_bytes() == 0) {
        // Its limit is what it holds, and nothing runs in no memory.
        problems.invalid::<()>(at.field("resources"), "a task must hold some mem");
    }
    let kill_grace_ms = kill_grace(spec.kill_grace_ms, at.field("kill_grace_ms"), problems);
    let pids_max = match spec.pids_max {
        Some(pids) if !(1..=TASK_PIDS_LIMIT).contains(&pids) => {
            problems.invalid(at.field("pids_max"), format_args!("must be 1 to {TASK_PIDS_LIMIT}"))
        }
        pids => Some(pids.unwrap_or(0)),
    };
    let needs = features(spec.needs, at, "needs", problems);
    let labels = labels(spec.labels, at, problems);
    let container = container::container(spec.container, &at.field("container"), problems);
    let health = spec.health_check.map(|h| container::health_check(h, &at.field("health_check"), problems));
    let readiness = spec.readiness_check.map(|c| container::check(c, &at.field("readiness_check"), problems));
    if spec.data.len() > TASK_DATA_BYTES_MAX {
        return problems
            .invalid(at.field("data"), format_args!("is longer than {TASK_DATA_BYTES_MAX} bytes"));
    }
    let mut parsed = TaskSpec {
        argv: argv?,
        env: env?,
        user: user?,
        resources: resources?,
        kill_grace_ms: kill_grace_ms?.unwrap_or(KILL_GRACE_MS),
        pids_max: pids_max?,
        needs: Vec::new(),
        labels: labels?,
        container: container?,
        burst: container::burst(spec.burst),
        health: all(health)?,
        readiness: all(readiness)?,
        max_completion_ms: spec.max_completion_ms,
        executor: executor?,
        data: spec.data.into(),
    };
    container::permitted(&parsed, at, problems)?;
    only_for_an_executor(&parsed, at, problems)?;
    let mut needs = needs?;
    needs.extend(parsed.implied_needs().map(str::to_owned));
    parsed.needs = needs.into_iter().collect();
    Some(Arc::new(parsed))
}

/// Nothing where there was nothing; nothing at all where there was something wrong.
fn all<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        None => Some(None),
        Some(part) => part.map(Some),
    }
}

fn executor(
    given: pb::ExecutorSpec,
    at: &Path<'_>,
    allowed: Attributions,
    problems: &mut Problems,
) -> Option<ExecutorSpec> {
    let id = match ExecutorId::new(&given.executor_id) {
        Ok(id) => id,
        Err(error) => return problems.invalid(at.field("executor_id"), error),
    };
    let at = at.field("spec");
    // Here, and not after, because a message may nest them as deep as it likes.
    if given.spec.as_ref().is_some_and(|spec| spec.executor.is_some()) {
        return problems.invalid(at.field("executor"), "an executor has no executor");
    }
    Some(ExecutorSpec { id, spec: task_spec(given.spec.map(|spec| *spec), &at, allowed, problems)? })
}

/// A task that is handed to an executor runs in whatever that makes for it.
fn only_for_an_executor(spec: &TaskSpec, at: &Path<'_>, problems: &mut Problems) -> Option<()> {
    if spec.executor.is_none() {
        return match spec.data.is_empty() {
            true => Some(()),
            false => problems.invalid(at.field("data"), "is only for a task with an executor"),
        };
    }
    let for_the_supervisor = [
        (!spec.argv.is_empty(), "argv"),
        (spec.container != Container::default(), "container"),
        (spec.burst != Burst::default(), "burst"),
        (spec.health.is_some(), "health_check"),
        (spec.readiness.is_some(), "readiness_check"),
        (spec.max_completion_ms > 0, "max_completion_ms"),
        (spec.pids_max > 0, "pids_max"),
    ];
    match for_the_supervisor.into_iter().find(|(used, _)| *used) {
        None => Some(()),
        Some((_, field)) => {
            problems.invalid(at.field(field), "must not be given for a task with an executor")
        }
    }
}

pub(crate) fn argv(argv: Vec<String>, at: &Path<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    if argv.first().is_none_or(String::is_empty) {
        return problems.invalid(at.field("argv"), "must begin with a program");
    }
    match argv.iter().position(|word| word.contains('\0')) {
        Some(i) => problems.invalid(at.item("argv", i), "contains a NUL byte"),
        None => Some(argv),
    }
}

pub(crate) fn env(
    env: BTreeMap<String, String>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<BTreeMap<String, String>> {
    let mut whole = Some(());
    for (name, value) in &env {
        if name.is_empty() || name.contains(['=', '\0']) {
            whole = problems
                .invalid(at.key("env", name), "a name must not be empty nor contain `=` or a NUL byte");
        }
        if value.contains('\0') {
            whole = problems.invalid(at.key("env", name), "contains a NUL byte");
        }
    }
    whole.map(|()| env)
}

/// Parses one's own or a kill's grace; `None` inside if it is left to the default.
pub(crate) fn kill_grace(
    grace_ms: Option<u64>,
    at: Path<'_>,
    problems: &mut Problems,
) -> Option<Option<u64>> {
    match grace_ms {
        Some(ms) if ms > KILL_GRACE_MAX_MS => {
            problems.invalid(at, format_args!("must be at most {KILL_GRACE_MAX_MS}"))
        }
        grace_ms => Some(grace_ms),
    }
}

pub(crate) fn task_launch(
    task: pb::TaskLaunch,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<TaskLaunch> {
    let bytes: usize = task.env.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    if bytes > TASK_ENV_BYTES_MAX {
        return problems.invalid(
            at.field("env"),
            format_args!(
                "has {bytes} bytes, the limit of a task's own is {TASK_ENV_BYTES_MAX}: put it into the spec"
            ),
        );
    }
    let task_id = task_id(&task.task_id, at.field("task_id"), problems);
    let name = display_name(task.name, at.field("name"), problems);
    let env = env(task.env, at, problems);
    let array = array(task.array_index, task.array_count, at, problems);
    Some(TaskLaunch { task_id: task_id?, name: name?, env: env?, array: array? })
}

pub(crate) fn array(
    index: u32,
    count: u32,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<Option<(u32, u32)>> {
    match (index, count) {
        (0, 0) => Some(None),
        (index, count) if (1..=count).contains(&index) => Some(Some((index, count))),
        _ => problems.invalid(at.field("array_index"), "must be 1 to array_count, or both 0"),
    }
}

pub(crate) fn task_id(name: &str, at: Path<'_>, problems: &mut Problems) -> Option<TaskId> {
    match TaskId::new(name) {
        Ok(id) => Some(id),
        Err(error) => problems.invalid(at, error),
    }
}

pub(crate) fn executor_id(name: &str, at: Path<'_>, problems: &mut Problems) -> Option<ExecutorId> {
    match ExecutorId::new(name) {
        Ok(id) => Some(id),
        Err(error) => problems.invalid(at, error),
    }
}

/// The state with this number; `None` inside for UNKNOWN, which only answers to a reconciliation say.
pub(crate) fn task_state(number: i32, at: Path<'_>, problems: &mut Problems) -> Option<Option<TaskState>> {
    if number == pb::TaskState::Unknown as i32 {
        return Some(None);
    }
    match TaskState::from_number(number) {
        Some(state) => Some(Some(state)),
        None => problems.invalid(at, format_args!("{number} is not a state")),
    }
}

/// Parses a status; `None` inside if its state is UNKNOWN. What is for people is cut, not refused: a status must not
/// be lost for it.
pub(crate) fn status_or_unknown(
    status: Option<pb::Status>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<Option<Status>> {
    let Some(status) = status else { return problems.invalid(*at, "must be given") };
    let Some(state) = task_state(status.state, at.field("state"), problems)? else { return Some(None) };
    let source = match Source::from_number(status.source) {
        Some(source) => source,
        None => {
            return problems.invalid(at.field("source"), format_args!("{} is not a source", status.source));
        }
    };
    let mut message = status.message;
    let reason = Reason::ALL.iter().copied().find(|r| r.name() == status.reason).unwrap_or_else(|| {
        // A word of a later version: kept for people.
        message = format!("{}: {message}", status.reason);
        Reason::None
    });
    cut(&mut message, MESSAGE_BYTES_MAX);
    let mut isolation = status.isolation;
    if let Some(isolation) = &mut isolation {
        cut(isolation, NAME_BYTES_MAX);
    }
    Some(Some(Status {
        master_seq: status.master_seq,
        task_seq: status.task_seq,
        state,
        reason,
        source,
        message,
        exit_code: status.exit_code,
        signal: status.signal,
        memory_peak_bytes: status.memory_peak_bytes,
        isolation,
        wall_ms: status.wall_ms,
        healthy: status.healthy,
        ready: status.ready,
        output_dropped_bytes: status.output_dropped_bytes,
        data: status.data.slice(..status.data.len().min(STATUS_DATA_BYTES_MAX)).into(),
    }))
}

pub(crate) fn status(status: Option<pb::Status>, at: &Path<'_>, problems: &mut Problems) -> Option<Status> {
    match status_or_unknown(status, at, problems)? {
        Some(status) => Some(status),
        None => problems.invalid(at.field("state"), "must not be UNKNOWN here"),
    }
}

pub(crate) fn cut(text: &mut String, bytes_max: usize) {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}
