//! What an agent and an executor tell each other.

use bytes::Bytes;
use proffer_types::LaunchId;
use proffer_types::executor::{ExecutorEvent, ExecutorTask, ExecutorUpdate};

use super::{resources, task_state};
use crate::executor::v1 as pb;

/// How an executor opens its stream: with the launches it was handed and is not done with.
pub fn executor_subscribe(launches: impl IntoIterator<Item = LaunchId>) -> pb::SubscribeRequest {
    pb::SubscribeRequest { launch_ids: launches.into_iter().map(|launch| launch.0).collect() }
}

/// One event for an executor.
pub fn executor_event(event: &ExecutorEvent) -> pb::Event {
    use pb::event::Event;
    pb::Event {
        event: Some(match event {
            ExecutorEvent::Subscribed { framework, executor, launch, agent, hostname, cluster } => {
                Event::Subscribed(pb::Subscribed {
                    framework_id: framework.0,
                    executor_id: executor.as_str().into(),
                    launch_id: launch.0,
                    agent_id: agent.0,
                    hostname: hostname.clone(),
                    cluster_id: cluster.to_string(),
                })
            }
            ExecutorEvent::Launch(tasks) => {
                Event::Launch(pb::Launch { tasks: tasks.iter().map(executor_task).collect() })
            }
            ExecutorEvent::Kill { launch, grace_ms } => {
                Event::Kill(pb::Kill { launch_id: launch.0, grace_ms: *grace_ms })
            }
            ExecutorEvent::Message(data) => {
                Event::Message(pb::Message { data: Bytes::copy_from_slice(data) })
            }
            ExecutorEvent::Shutdown { grace_ms } => Event::Shutdown(pb::Shutdown { grace_ms: *grace_ms }),
            ExecutorEvent::Error { message } => Event::Error(pb::Error { message: message.clone() }),
        }),
    }
}

fn executor_task(task: &ExecutorTask) -> pb::Task {
    pb::Task {
        launch_id: task.launch.0,
        task_id: task.task_id.as_str().into(),
        role: task.role.as_str().into(),
        resources: resources(&task.resources),
        data: Bytes::copy_from_slice(&task.data),
        env: task.env.clone(),
        labels: task.labels.clone(),
        kill_grace_ms: task.kill_grace_ms,
        group_first: task.group.map(|group| group.first.0).unwrap_or_default(),
        group_size: task.group.map(|group| group.size).unwrap_or_default(),
    }
}

/// What an executor says of its tasks.
pub fn executor_updates(updates: &[ExecutorUpdate]) -> pb::UpdateRequest {
    let status = |update: &ExecutorUpdate| pb::Status {
        launch_id: update.launch.0,
        seq: update.seq,
        state: task_state(update.state),
        message: update.message.clone(),
        exit_code: update.exit_code,
        signal: update.signal,
        healthy: update.healthy,
        ready: update.ready,
        data: Bytes::copy_from_slice(&update.data),
    };
    pb::UpdateRequest { statuses: updates.iter().map(status).collect() }
}
