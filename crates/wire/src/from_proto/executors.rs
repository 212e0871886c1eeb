//! What an agent and an executor tell each other.

use proffer_types::event::Group;
use proffer_types::executor::{ExecutorEvent, ExecutorTask, ExecutorUpdate};
use proffer_types::limits::{
    EXECUTOR_MESSAGE_BYTES_MAX, EXECUTOR_UPDATES_MAX, MESSAGE_BYTES_MAX, STATUS_DATA_BYTES_MAX,
    TASK_DATA_BYTES_MAX,
};
use proffer_types::{AgentId, ExecutorId, FrameworkId, LaunchId};

use super::resources::{Attributions, resources};
use super::tasks::{cut, task_id, task_state};
use super::{cluster_id, id, role};
use crate::executor::v1 as pb;
use crate::malformed::{Malformed, Path, Problems, parse};

/// The launches that an executor was handed and is not done with.
pub fn executor_subscribe(request: pb::SubscribeRequest) -> Result<Vec<LaunchId>, Malformed> {
    parse(|problems| {
        let each = request.launch_ids.into_iter().enumerate();
        each.map(|(i, launch)| id(launch, Path::Root.item("launch_ids", i), problems).map(LaunchId)).collect()
    })
}

/// What an executor says of its tasks.
pub fn executor_updates(request: pb::UpdateRequest) -> Result<Vec<ExecutorUpdate>, Malformed> {
    parse(|problems| {
        let given = request.statuses.len();
        if given > EXECUTOR_UPDATES_MAX {
            let why = format_args!("has {given} items, the limit is {EXECUTOR_UPDATES_MAX}");
            return problems.invalid(Path::Root.field("statuses"), why);
        }
        let each = request.statuses.into_iter().enumerate();
        each.map(|(i, status)| update(status, &Path::Root.item("statuses", i), problems)).collect()
    })
}

fn update(mut given: pb::Status, at: &Path<'_>, problems: &mut Problems) -> Option<ExecutorUpdate> {
    let launch = LaunchId(id(given.launch_id, at.field("launch_id"), problems)?);
    if given.seq == 0 {
        return problems.invalid(at.field("seq"), "must be given: statuses count from 1");
    }
    let Some(state) = task_state(given.state, at.field("state"), problems)? else {
        return problems.invalid(at.field("state"), "must not be UNKNOWN here");
    };
    if given.data.len() > STATUS_DATA_BYTES_MAX {
        return problems
            .invalid(at.field("data"), format_args!("is longer than {STATUS_DATA_BYTES_MAX} bytes"));
    }
    cut(&mut given.message, MESSAGE_BYTES_MAX);
    Some(ExecutorUpdate {
        launch,
        seq: given.seq,
        state,
        message: given.message,
        exit_code: given.exit_code,
        signal: given.signal,
        healthy: given.healthy,
        ready: given.ready,
        data: given.data.into(),
    })
}

/// Bytes for the framework's scheduler.
pub fn executor_message(request: pb::SendMessageRequest) -> Result<Vec<u8>, Malformed> {
    parse(|problems| message(request.data, Path::Root.field("data"), problems))
}

fn message(data: bytes::Bytes, at: Path<'_>, problems: &mut Problems) -> Option<Vec<u8>> {
    match data.len() <= EXECUTOR_MESSAGE_BYTES_MAX {
        true => Some(data.into()),
        false => problems.invalid(at, format_args!("is longer than {EXECUTOR_MESSAGE_BYTES_MAX} bytes")),
    }
}

/// Events for an executor. Those of a later version are left out.
pub fn executor_events(events: pb::Events) -> Result<Vec<ExecutorEvent>, Malformed> {
    parse(|problems| {
        let each = events.events.into_iter().enumerate().filter_map(|(i, event)| Some((i, event.event?)));
        each.map(|(i, event)| self::event(event, &Path::Root.item("events", i), problems)).collect()
    })
}

fn event(event: pb::event::Event, at: &Path<'_>, problems: &mut Problems) -> Option<ExecutorEvent> {
    use pb::event::Event;
    Some(match event {
        Event::Subscribed(told) => {
            let at = at.field("subscribed");
            ExecutorEvent::Subscribed {
                framework: FrameworkId(id(told.framework_id, at.field("framework_id"), problems)?),
                executor: match ExecutorId::new(&told.executor_id) {
                    Ok(id) => id,
                    Err(error) => return problems.invalid(at.field("executor_id"), error),
                },
                launch: LaunchId(id(told.launch_id, at.field("launch_id"), problems)?),
                agent: AgentId(told.agent_id),
                hostname: told.hostname,
                cluster: cluster_id(&told.cluster_id, at.field("cluster_id"), problems)?,
            }
        }
        Event::Launch(launch) => {
            let at = at.field("launch");
            let each = launch.tasks.into_iter().enumerate();
            let tasks = each.map(|(i, given)| task(given, &at.item("tasks", i), problems));
            ExecutorEvent::Launch(tasks.collect::<Option<_>>()?)
        }
        Event::Kill(kill) => ExecutorEvent::Kill {
            launch: LaunchId(id(kill.launch_id, at.field("launch_id"), problems)?),
            grace_ms: kill.grace_ms,
        },
        Event::Message(told) => {
            ExecutorEvent::Message(message(told.data, at.field("message").field("data"), problems)?)
        }
        Event::Shutdown(shutdown) => ExecutorEvent::Shutdown { grace_ms: shutdown.grace_ms },
        Event::Error(error) => ExecutorEvent::Error { message: error.message },
    })
}

fn task(given: pb::Task, at: &Path<'_>, problems: &mut Problems) -> Option<ExecutorTask> {
    if given.data.len() > TASK_DATA_BYTES_MAX {
        return problems
            .invalid(at.field("data"), format_args!("is longer than {TASK_DATA_BYTES_MAX} bytes"));
    }
    Some(ExecutorTask {
        launch: LaunchId(id(given.launch_id, at.field("launch_id"), problems)?),
        task_id: task_id(&given.task_id, at.field("task_id"), problems)?,
        role: role(&given.role, at.field("role"), problems)?,
        resources: resources(given.resources, at, "resources", Attributions::Allowed, problems)?,
        data: given.data.into(),
        env: given.env,
        labels: given.labels,
        kill_grace_ms: given.kill_grace_ms,
        group: (given.group_first > 0)
            .then_some(Group { first: LaunchId(given.group_first), size: given.group_size }),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proffer_types::{ClusterId, Resources, Role, TaskId, TaskState};

    use super::*;
    use crate::to_proto;

    #[test]
    fn everything_that_is_said_is_understood() {
        let map = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let told = [
            ExecutorEvent::Subscribed {
                framework: FrameworkId(1),
                executor: ExecutorId::new("batch").unwrap(),
                launch: LaunchId(2),
                agent: AgentId(3),
                hostname: "node".into(),
                cluster: ClusterId([7; 16]),
            },
            ExecutorEvent::Launch(vec![ExecutorTask {
                launch: LaunchId(4),
                task_id: TaskId::new("t").unwrap(),
                role: Role::new("eng").unwrap(),
                resources: Resources::parse("cpus:0.5;ports:[1-2]").unwrap(),
                data: vec![0, 255],
                env: map("A", "b"),
                labels: map("c", "d"),
                kill_grace_ms: 5,
                group: Some(Group { first: LaunchId(4), size: 1 }),
            }]),
            ExecutorEvent::Kill { launch: LaunchId(4), grace_ms: 7 },
            ExecutorEvent::Message(vec![1]),
            ExecutorEvent::Shutdown { grace_ms: 8 },
            ExecutorEvent::Error { message: "no".into() },
        ];
        let events = pb::Events { events: told.iter().map(to_proto::executor_event).collect() };
        assert_eq!(executor_events(events).unwrap(), told);

        let update = ExecutorUpdate {
            message: "m".into(),
            exit_code: Some(0),
            signal: Some(9),
            healthy: Some(false),
            ready: Some(true),
            data: vec![3],
            ..ExecutorUpdate::new(LaunchId(4), 1, TaskState::Failed)
        };
        let updates = [update, ExecutorUpdate::new(LaunchId(5), 2, TaskState::Running)];
        assert_eq!(executor_updates(to_proto::executor_updates(&updates)).unwrap(), updates);
        let launches = [LaunchId(9), LaunchId(3)];
        assert_eq!(executor_subscribe(to_proto::executor_subscribe(launches)).unwrap(), launches);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let request = |status: pb::Status| pb::UpdateRequest { statuses: vec![status] };
        let good = pb::Status { launch_id: 1, seq: 1, state: 3, ..pb::Status::default() };
        let cases = [
            (pb::Status { launch_id: 0, ..good.clone() }, "statuses[0].launch_id"),
            (pb::Status { seq: 0, ..good.clone() }, "statuses[0].seq"),
            (pb::Status { state: 99, ..good.clone() }, "statuses[0].state"),
            (pb::Status { data: vec![0; STATUS_DATA_BYTES_MAX + 1].into(), ..good.clone() }, "data"),
        ];
        for (status, field) in cases {
            let error = executor_updates(request(status)).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        let many = pb::UpdateRequest { statuses: vec![good; EXECUTOR_UPDATES_MAX + 1] };
        assert!(executor_updates(many).unwrap_err().to_string().contains("1024"));
        let data = vec![0; EXECUTOR_MESSAGE_BYTES_MAX + 1].into();
        assert!(executor_message(pb::SendMessageRequest { data }).is_err());
    }
}
