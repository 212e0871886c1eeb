//! An agent's session and its data connections.

use std::collections::BTreeMap;

use bytes::Bytes;
use proffer_types::command::Held;
use proffer_types::event::{
    AgentOrder, AgentRefusal, AgentReport, DataAction, Group, Hello, LaunchKind, LaunchOrder, grouped,
};
use proffer_types::limits::{EXECUTOR_MESSAGE_BYTES_MAX, SPEC_BYTES_MAX};
use proffer_types::{AgentId, AgentInfo, AttributeValue, Epoch, ExecutorId, FrameworkId, LaunchId, Reason};

use prost::Message;

use super::resources::{Attributions, resources};
use super::tasks::{array, status, task_id, task_spec};
use super::{boot_id, cluster_id, display_name, epoch, features, id, request_id, role, sixteen};
use crate::agent::v1 as pb;
use crate::common::v1 as common;
use crate::malformed::{Malformed, Path, Problems, parse};
use crate::told::{AgentMessage, LogChunk, LogRange, LogStream};

/// What an agent says.
pub fn agent_message(message: pb::AgentMessage) -> Result<AgentMessage, Malformed> {
    parse(|problems| {
        let agent = (message.agent_id > 0).then_some(AgentId(message.agent_id));
        let epoch = match message.epoch {
            None => None,
            Some(given) => Some(epoch(Some(given), Path::Root.field("epoch"), problems)?),
        };
        let mut reports = Vec::with_capacity(message.items.len());
        for (i, item) in message.items.into_iter().enumerate() {
            reports.push(report(item, agent, &Path::Root.item("items", i), problems)?);
        }
        Some(AgentMessage { agent, epoch, reports })
    })
}

fn report(
    item: pb::AgentItem,
    agent: Option<AgentId>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<AgentReport> {
    use pb::agent_item::Item;
    match item.item {
        None => problems.unsupported(*at, "this report is not known to this version"),
        Some(Item::Hello(given)) => {
            Some(AgentReport::Hello(Box::new(hello(given, agent, &at.field("hello"), problems)?)))
        }
        Some(Item::Listing(listing)) => {
            let at = at.field("listing");
            let mut held = Vec::with_capacity(listing.held.len());
            for (i, given) in listing.held.into_iter().enumerate() {
                let (launch, status) = task_status(given, &at.item("held", i), problems)?;
                if held.last().is_some_and(|before: &Held| before.launch >= launch) {
                    return problems.invalid(at.item("held", i), "launches must ascend");
                }
                held.push(Held { launch, status });
            }
            Some(AgentReport::Listing(held))
        }
        Some(Item::Status(given)) => {
            let (launch, status) = task_status(given, &at.field("status"), problems)?;
            Some(AgentReport::Status { launch, status })
        }
        Some(Item::Pong(pong)) => Some(AgentReport::Pong { n: pong.n }),
        Some(Item::Cleaned(cleaned)) => {
            Some(AgentReport::Cleaned(cleaned.launch_ids.into_iter().map(LaunchId).collect()))
        }
        Some(Item::ExecutorMessage(given)) => {
            let at = at.field("executor_message");
            let (launch, data) = message(given.launch_id, given.data, &at, problems)?;
            Some(AgentReport::Message { launch, data })
        }
    }
}

fn hello(hello: pb::Hello, agent: Option<AgentId>, at: &Path<'_>, problems: &mut Problems) -> Option<Hello> {
    let instance = request_id(&hello.instance, at.field("instance"), problems);
    let info = agent_info(hello.info, &at.field("info"), problems);
    let boot_id = boot_id(&hello.boot_id, at.field("boot_id"), problems);
    let epoch_seen = epoch(Some(hello.epoch_seen.unwrap_or_default()), at.field("epoch_seen"), problems);
    let cluster = match hello.cluster_id.as_str() {
        "" => Some(None),
        text => cluster_id(text, at.field("cluster_id"), problems).map(Some),
    };
    Some(Hello {
        agent,
        instance: instance?,
        info: info?,
        boot_id: boot_id?,
        last_seq: hello.last_seq,
        digest: hello.digest,
        epoch_seen: epoch_seen?,
        cluster: cluster?,
    })
}

fn agent_info(info: Option<pb::AgentInfo>, at: &Path<'_>, problems: &mut Problems) -> Option<AgentInfo> {
    let Some(info) = info else { return problems.invalid(*at, "must be given") };
    // It goes with every offer of the agent, and offers go in messages of at most 1 MiB.
    let bytes = info.encoded_len();
    if bytes > SPEC_BYTES_MAX {
        return problems.invalid(*at, format_args!("has {bytes} bytes, the limit is {SPEC_BYTES_MAX}"));
    }
    let hostname = display_name(info.hostname, at.field("hostname"), problems);
    let resources = resources(info.resources, at, "resources", Attributions::Refused, problems);
    let attributes = attributes(info.attributes, at, problems);
    let features = features(info.features, at, "features", problems);
    let isolation = display_name(info.isolation, at.field("isolation"), problems);
    let version = display_name(info.version, at.field("version"), problems);
    Some(AgentInfo {
        hostname: hostname?,
        resources: resources?,
        attributes: attributes?,
        features: features?,
        isolation: isolation?,
        version: version?,
    })
}

pub(crate) fn attributes(
    list: Vec<common::Attribute>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<BTreeMap<String, AttributeValue>> {
    use common::attribute::Value;
    let mut map = BTreeMap::new();
    for (i, attribute) in list.into_iter().enumerate() {
        let at = at.item("attributes", i);
        let name = display_name(attribute.name, at.field("name"), problems)?;
        if name.is_empty() {
            return problems.invalid(at.field("name"), "must not be empty");
        }
        let value = match attribute.value {
            None => return problems.invalid(at, "one of text and milli must be given"),
            Some(Value::Text(text)) => AttributeValue::Text(display_name(text, at.field("text"), problems)?),
            Some(Value::Milli(milli)) => AttributeValue::Milli(milli),
        };
        if map.insert(name, value).is_some() {
            return problems.invalid(at.field("name"), "is there twice");
        }
    }
    Some(map)
}

fn task_status(
    given: pb::TaskStatus,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<(LaunchId, proffer_types::Status)> {
    let launch = id(given.launch_id, at.field("launch_id"), problems)?;
    Some((LaunchId(launch), status(given.status, &at.field("status"), problems)?))
}

/// What a master says, with its leadership.
pub fn master_message(message: pb::MasterMessage) -> Result<(Epoch, Vec<AgentOrder>), Malformed> {
    parse(|problems| {
        let epoch = epoch(message.epoch, Path::Root.field("epoch"), problems)?;
        let mut orders = Vec::with_capacity(message.items.len());
        for (i, item) in message.items.into_iter().enumerate() {
            orders.push(order(item, &Path::Root.item("items", i), problems)?);
        }
        Some((epoch, grouped(orders)))
    })
}

/// A message from or to an executor.
fn message(launch: u64, data: Bytes, at: &Path<'_>, problems: &mut Problems) -> Option<(LaunchId, Vec<u8>)> {
    let launch = id(launch, at.field("launch_id"), problems)?;
    let bytes = data.len();
    if bytes > EXECUTOR_MESSAGE_BYTES_MAX {
        let text = format_args!("has {bytes} bytes, the limit is {EXECUTOR_MESSAGE_BYTES_MAX}");
        return problems.invalid(at.field("data"), text);
    }
    Some((LaunchId(launch), data.into()))
}

fn order(item: pb::MasterItem, at: &Path<'_>, problems: &mut Problems) -> Option<AgentOrder> {
    use pb::master_item::Item;
    Some(match item.item {
        None => return problems.unsupported(*at, "this order is not known to this version"),
        Some(Item::Welcome(welcome)) => {
            let at = at.field("welcome");
            AgentOrder::Welcome {
                agent: AgentId(id(welcome.agent_id, at.field("agent_id"), problems)?),
                cluster: cluster_id(&welcome.cluster_id, at.field("cluster_id"), problems)?,
                ping_ms: id(welcome.ping_ms, at.field("ping_ms"), problems)?,
                reattach_spread_ms: welcome.reattach_spread_ms,
                last_seq: welcome.last_seq,
            }
        }
        Some(Item::SendListing(pb::SendListing {})) => AgentOrder::SendListing,
        Some(Item::Launch(given)) => {
            AgentOrder::Launch(Box::new(launch_order(given, &at.field("launch"), problems)?))
        }
        Some(Item::Kill(kill)) => AgentOrder::Kill {
            agent_seq: kill.agent_seq,
            launch: LaunchId(id(kill.launch_id, at.field("launch_id"), problems)?),
            grace_ms: kill.grace_ms,
            reason: reason(&kill.reason),
        },
        Some(Item::Confirm(confirm)) => AgentOrder::Confirm {
            launch: LaunchId(id(confirm.launch_id, at.field("launch_id"), problems)?),
            task_seq: confirm.task_seq,
        },
        Some(Item::Forget(forget)) => {
            AgentOrder::Forget { launch: LaunchId(id(forget.launch_id, at.field("launch_id"), problems)?) }
        }
        Some(Item::Message(given)) => {
            let (launch, data) = message(given.launch_id, given.data, &at.field("message"), problems)?;
            AgentOrder::Message { launch, data }
        }
        Some(Item::Ping(ping)) => AgentOrder::Ping { n: ping.n },
        Some(Item::OpenData(open)) => {
            let action = data_action(open.action, at.field("action"), problems)?;
            AgentOrder::OpenData {
                ticket: sixteen(&open.ticket, at.field("ticket"), problems)?,
                principal: open.principal,
                action,
                launch: LaunchId(match action {
                    DataAction::WatchUsage => open.launch_id,
                    _ => id(open.launch_id, at.field("launch_id"), problems)?,
                }),
                expires_ms: open.expires_ms,
            }
        }
        Some(Item::Refused(refused)) => {
            AgentOrder::Refused(refusal(&refused.code, at.field("code"), problems)?)
        }
    })
}

fn data_action(number: i32, at: Path<'_>, problems: &mut Problems) -> Option<DataAction> {
    match pb::DataAction::try_from(number) {
        // Of the first release, which knew nothing else.
        Ok(pb::DataAction::Unspecified) => Some(DataAction::ReadLogs),
        _ => match DataAction::from_number(number) {
            Some(action) => Some(action),
            None => problems.unsupported(at, format_args!("{number} is not known to this version")),
        },
    }
}

/// A kill's reason; a word of a later version becomes the plainest one.
fn reason(word: &str) -> Reason {
    Reason::ALL.iter().copied().find(|r| r.name() == word).unwrap_or(Reason::KillRequested)
}

fn refusal(code: &str, at: Path<'_>, problems: &mut Problems) -> Option<AgentRefusal> {
    let all = [AgentRefusal::UnknownAgent, AgentRefusal::WrongInstance, AgentRefusal::WrongCluster];
    match all.into_iter().find(|refusal| refusal.code() == code) {
        Some(refusal) => Some(refusal),
        None => problems.unsupported(at, format_args!("`{code}` is not known to this version")),
    }
}

fn launch_order(given: pb::Launch, at: &Path<'_>, problems: &mut Problems) -> Option<LaunchOrder> {
    Some(LaunchOrder {
        agent_seq: given.agent_seq,
        launch: LaunchId(id(given.launch_id, at.field("launch_id"), problems)?),
        framework: FrameworkId(id(given.framework_id, at.field("framework_id"), problems)?),
        task_id: task_id(&given.task_id, at.field("task_id"), problems)?,
        role: role(&given.role, at.field("role"), problems)?,
        spec: task_spec(given.spec, &at.field("spec"), Attributions::Allowed, problems)?,
        framework_user: String::new(),
        resources: resources(given.resources, at, "resources", Attributions::Allowed, problems)?,
        env: super::tasks::env(given.env, at, problems)?,
        array: array(given.array_index, given.array_count, at, problems)?,
        group: match (given.group_first, given.group_size) {
            (0, 0) => None,
            (first, size) if first > 0 && size > 0 => Some(Group { first: LaunchId(first), size }),
            _ => return problems.invalid(at.field("group_first"), "must be given with group_size"),
        },
        kind: match (given.executor_id.as_str(), given.executor_launch_id) {
            ("", 0) => LaunchKind::Task,
            ("", launch) => LaunchKind::TaskOf(LaunchId(launch)),
            (name, 0) => match ExecutorId::new(name) {
                Ok(id) => LaunchKind::Executor(id),
                Err(error) => return problems.invalid(at.field("executor_id"), error),
            },
            _ => return problems.invalid(at.field("executor_id"), "an executor has no executor"),
        },
    })
}

/// A piece of output; the ticket comes with the first.
pub fn data_chunk(chunk: pb::DataChunk) -> (Bytes, LogChunk) {
    let error = (!chunk.error.is_empty()).then_some(chunk.error);
    (
        chunk.ticket,
        LogChunk { offset: chunk.offset, data: chunk.data, end: chunk.end, lost: chunk.lost, error },
    )
}

/// What the master wants of a launch's output.
pub fn data_request(request: pb::DataRequest) -> Result<(LaunchId, LogRange), Malformed> {
    parse(|problems| {
        let stream = match pb::Stream::try_from(request.stream) {
            Ok(pb::Stream::Stdout) => LogStream::Stdout,
            Ok(pb::Stream::Stderr) => LogStream::Stderr,
            Ok(pb::Stream::Unspecified) | Err(_) => {
                return problems
                    .invalid(Path::Root.field("stream"), format_args!("{} is not a stream", request.stream));
            }
        };
        let launch = LaunchId(id(request.launch_id, Path::Root.field("launch_id"), problems)?);
        Some((
            launch,
            LogRange { stream, offset: request.offset, limit: request.limit, follow: request.follow },
        ))
    })
}
