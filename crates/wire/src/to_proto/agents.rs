//! An agent's session and its data connections.

use std::collections::BTreeMap;

use bytes::Bytes;
use proffer_types::command::Held;
use proffer_types::event::{AgentOrder, AgentReport, DataAction, Hello, LaunchKind, LaunchOrder};
use proffer_types::{AgentId, AgentInfo, AttributeValue, Epoch, LaunchId, Status};

use super::{epoch, resources, sixteen, status, task_spec};
use crate::agent::v1 as pb;
use crate::common::v1 as common;
use crate::told::{LogChunk, LogRange, LogStream};

/// What an agent says. `epoch` is that of the session, `None` before its Welcome.
pub fn agent_message(
    agent: Option<AgentId>,
    session: Option<Epoch>,
    reports: &[AgentReport],
) -> pb::AgentMessage {
    pb::AgentMessage {
        agent_id: agent.unwrap_or_default().0,
        epoch: session.map(epoch),
        items: reports.iter().map(agent_report).collect(),
    }
}

/// One thing an agent says.
pub fn agent_report(report: &AgentReport) -> pb::AgentItem {
    use pb::agent_item::Item;
    pb::AgentItem {
        item: Some(match report {
            AgentReport::Hello(given) => Item::Hello(hello(given)),
            AgentReport::Listing(held) => Item::Listing(pb::Listing {
                held: held.iter().map(|Held { launch, status }| task_status(*launch, status)).collect(),
            }),
            AgentReport::Status { launch, status } => Item::Status(task_status(*launch, status)),
            AgentReport::Pong { n } => Item::Pong(pb::Pong { n: *n }),
            AgentReport::Cleaned(launches) => {
                Item::Cleaned(pb::Cleaned { launch_ids: launches.iter().map(|launch| launch.0).collect() })
            }
            AgentReport::Message { launch, data } => Item::ExecutorMessage(pb::ExecutorMessage {
                launch_id: launch.0,
                data: Bytes::copy_from_slice(data),
            }),
        }),
    }
}

fn hello(hello: &Hello) -> pb::Hello {
    pb::Hello {
        instance: sixteen(hello.instance.0),
        info: Some(agent_info(&hello.info)),
        boot_id: sixteen(hello.boot_id.0),
        last_seq: hello.last_seq,
        digest: hello.digest,
        epoch_seen: Some(epoch(hello.epoch_seen)),
        cluster_id: hello.cluster.map(|cluster| cluster.to_string()).unwrap_or_default(),
    }
}

fn agent_info(info: &AgentInfo) -> pb::AgentInfo {
    pb::AgentInfo {
        hostname: info.hostname.clone(),
        resources: resources(&info.resources),
        attributes: attributes(&info.attributes),
        features: info.features.iter().cloned().collect(),
        isolation: info.isolation.clone(),
        version: info.version.clone(),
    }
}

pub(crate) fn attributes(attributes: &BTreeMap<String, AttributeValue>) -> Vec<common::Attribute> {
    use common::attribute::Value;
    let value = |value: &AttributeValue| match value {
        AttributeValue::Text(text) => Value::Text(text.clone()),
        AttributeValue::Milli(milli) => Value::Milli(*milli),
    };
    attributes
        .iter()
        .map(|(name, v)| common::Attribute { name: name.clone(), value: Some(value(v)) })
        .collect()
}

fn task_status(launch: LaunchId, given: &Status) -> pb::TaskStatus {
    pb::TaskStatus { launch_id: launch.0, status: Some(status(given)) }
}

/// What a master says under its leadership.
pub fn master_message(leadership: Epoch, items: Vec<pb::MasterItem>) -> pb::MasterMessage {
    pb::MasterMessage { epoch: Some(epoch(leadership)), items }
}

/// One thing a master says; the launches of a group are one item each.
pub fn agent_order(order: &AgentOrder) -> Vec<pb::MasterItem> {
    use pb::master_item::Item;
    let item = |item| pb::MasterItem { item: Some(item) };
    vec![item(match order {
        AgentOrder::Welcome { agent, cluster, ping_ms, reattach_spread_ms, last_seq } => {
            Item::Welcome(pb::Welcome {
                agent_id: agent.0,
                cluster_id: cluster.to_string(),
                ping_ms: *ping_ms,
                reattach_spread_ms: *reattach_spread_ms,
                last_seq: *last_seq,
            })
        }
        AgentOrder::SendListing => Item::SendListing(pb::SendListing {}),
        AgentOrder::Launch(order) => Item::Launch(launch_order(order)),
        AgentOrder::Kill { agent_seq, launch, grace_ms, reason } => Item::Kill(pb::Kill {
            agent_seq: *agent_seq,
            launch_id: launch.0,
            grace_ms: *grace_ms,
            reason: reason.name().into(),
        }),
        AgentOrder::Confirm { launch, task_seq } => {
            Item::Confirm(pb::Confirm { launch_id: launch.0, task_seq: *task_seq })
        }
        AgentOrder::Forget { launch } => Item::Forget(pb::Forget { launch_id: launch.0 }),
        AgentOrder::LaunchGroup(orders) => {
            return orders.iter().map(|order| item(Item::Launch(launch_order(order)))).collect();
        }
        AgentOrder::Message { launch, data } => {
            Item::Message(pb::Message { launch_id: launch.0, data: Bytes::copy_from_slice(data) })
        }
        AgentOrder::Ping { n } => Item::Ping(pb::Ping { n: *n }),
        AgentOrder::OpenData { ticket, principal, action, launch, expires_ms } => {
            Item::OpenData(pb::OpenData {
                ticket: Bytes::copy_from_slice(ticket),
                principal: principal.clone(),
                action: data_action(*action).into(),
                launch_id: launch.0,
                expires_ms: *expires_ms,
            })
        }
        AgentOrder::Refused(refusal) => Item::Refused(pb::Refused {
            code: refusal.code().into(),
            message: match refusal {
                proffer_types::event::AgentRefusal::UnknownAgent => {
                    "the cluster has no record of this agent: end everything and register anew"
                }
                proffer_types::event::AgentRefusal::WrongInstance => {
                    "this agent's record belongs to another installation: use a work directory of its own"
                }
                proffer_types::event::AgentRefusal::WrongCluster => {
                    "this agent belongs to another cluster: check --masters, or use an empty work directory"
                }
            }
            .into(),
        }),
    })]
}

fn data_action(action: DataAction) -> pb::DataAction {
    match action {
        DataAction::ReadLogs => pb::DataAction::ReadLogs,
        DataAction::Exec => pb::DataAction::Exec,
        DataAction::Attach => pb::DataAction::Attach,
        DataAction::ReadFiles => pb::DataAction::ReadFiles,
        DataAction::WriteFiles => pb::DataAction::WriteFiles,
        DataAction::WatchUsage => pb::DataAction::WatchUsage,
    }
}

fn launch_order(order: &LaunchOrder) -> pb::Launch {
    let mut spec = task_spec(&order.spec);
    if spec.user.is_empty() {
        spec.user.clone_from(&order.framework_user);
    }
    let (array_index, array_count) = order.array.unwrap_or_default();
    pb::Launch {
        agent_seq: order.agent_seq,
        launch_id: order.launch.0,
        framework_id: order.framework.0,
        task_id: order.task_id.as_str().into(),
        role: order.role.as_str().into(),
        spec: Some(spec),
        resources: resources(&order.resources),
        env: order.env.clone(),
        array_index,
        array_count,
        group_first: order.group.map(|group| group.first.0).unwrap_or_default(),
        group_size: order.group.map(|group| group.size).unwrap_or_default(),
        executor_id: match &order.kind {
            LaunchKind::Executor(id) => id.as_str().into(),
            LaunchKind::Task | LaunchKind::TaskOf(_) => String::new(),
        },
        executor_launch_id: match order.kind {
            LaunchKind::TaskOf(executor) => executor.0,
            LaunchKind::Task | LaunchKind::Executor(_) => 0,
        },
    }
}

/// A piece of output. `ticket` goes with the first one only; it is empty in the others.
pub fn data_chunk(ticket: Bytes, stream: LogStream, chunk: LogChunk) -> pb::DataChunk {
    pb::DataChunk {
        ticket,
        stream: log_stream(stream),
        offset: chunk.offset,
        data: chunk.data,
        end: chunk.end,
        lost: chunk.lost,
        error: chunk.error.unwrap_or_default(),
        ..pb::DataChunk::default()
    }
}

/// What the master wants of a launch's output.
pub fn data_request(launch: LaunchId, range: LogRange) -> pb::DataRequest {
    pb::DataRequest {
        launch_id: launch.0,
        stream: log_stream(range.stream),
        offset: range.offset,
        limit: range.limit,
        follow: range.follow,
        ask: None,
    }
}

fn log_stream(stream: LogStream) -> i32 {
    match stream {
        LogStream::Stdout => pb::Stream::Stdout,
        LogStream::Stderr => pb::Stream::Stderr,
    }
    .into()
}
