//! What tasks run, and what became of them.

use bytes::Bytes;
use proffer_types::{Status, TaskLaunch, TaskSpec, TaskState};

use super::{container, resources};
use crate::common::v1 as pb;

/// A spec with everything filled in.
pub fn task_spec(spec: &TaskSpec) -> pb::TaskSpec {
    pb::TaskSpec {
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        user: spec.user.clone(),
        resources: resources(&spec.resources),
        kill_grace_ms: Some(spec.kill_grace_ms),
        pids_max: (spec.pids_max > 0).then_some(spec.pids_max),
        needs: spec.needs.clone(),
        labels: spec.labels.clone(),
        container: container::container(&spec.container),
        burst: container::burst(spec.burst),
        health_check: spec.health.as_ref().map(container::health_check),
        readiness_check: spec.readiness.as_ref().map(container::check),
        max_completion_ms: spec.max_completion_ms,
        executor: spec.executor.as_ref().map(|executor| {
            Box::new(pb::ExecutorSpec {
                executor_id: executor.id.as_str().into(),
                spec: Some(Box::new(task_spec(&executor.spec))),
            })
        }),
        data: Bytes::copy_from_slice(&spec.data),
    }
}

/// One task of a launch.
pub fn task_launch(task: &TaskLaunch) -> pb::TaskLaunch {
    let (array_index, array_count) = task.array.unwrap_or_default();
    pb::TaskLaunch {
        task_id: task.task_id.as_str().into(),
        name: task.name.clone(),
        env: task.env.clone(),
        array_index,
        array_count,
    }
}

/// A state's number.
pub fn task_state(state: TaskState) -> i32 {
    state.number().into()
}

/// A status.
pub fn status(status: &Status) -> pb::Status {
    pb::Status {
        master_seq: status.master_seq,
        task_seq: status.task_seq,
        state: task_state(status.state),
        reason: status.reason.name().into(),
        source: status.source.number().into(),
        message: status.message.clone(),
        exit_code: status.exit_code,
        signal: status.signal,
        memory_peak_bytes: status.memory_peak_bytes,
        isolation: status.isolation.clone(),
        wall_ms: status.wall_ms,
        healthy: status.healthy,
        ready: status.ready,
        output_dropped_bytes: status.output_dropped_bytes,
        data: Bytes::copy_from_slice(&status.data),
    }
}

/// The status of a task that the cluster does not know.
pub fn unknown_status() -> pb::Status {
    pb::Status {
        state: pb::TaskState::Unknown.into(),
        reason: proffer_types::Reason::Reconciliation.name().into(),
        source: pb::Source::Master.into(),
        message: "the cluster knows no such task: it never was, or it ended and was acknowledged".into(),
        ..Default::default()
    }
}
