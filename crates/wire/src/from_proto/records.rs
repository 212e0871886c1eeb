//! Parts that records of the log and of snapshots share. What was written was valid; it is read as carefully as if it
//! came from outside, because a disk is outside.

use std::collections::BTreeMap;
use std::sync::Arc;

use proffer_types::command::{AdminId, CallId};
use proffer_types::container::ExecutorSpec;
use proffer_types::resources::{
    AMOUNT_MAX, Attribution, AttributionParts, Custom, Disk, DiskKind, Entry, Quantities, Ranges, Resources,
    Volume,
};
use proffer_types::{
    AgentInfo, AttributeValue, BootId, Caller, CallerKind, ClusterId, ClusterTime, ExecutorId, FrameworkId,
    FrameworkInfo, LaunchId, MasterId, Reason, RequestId, SessionId, Source, Status, TaskSpec, TaskState,
};

use super::{container, role, sixteen, u128_of};
use crate::log::v1 as pb;
use crate::malformed::{Path, Problems};

/// A part that every record of this kind has.
pub(crate) fn there<T>(part: Option<T>, at: Path<'_>, problems: &mut Problems) -> Option<T> {
    match part {
        Some(part) => Some(part),
        None => problems.invalid(at, "is missing"),
    }
}

/// Every item of a list, or nothing.
pub(crate) fn each<P, T>(
    list: Vec<P>,
    at: &Path<'_>,
    name: &'static str,
    problems: &mut Problems,
    mut item: impl FnMut(P, &Path<'_>, &mut Problems) -> Option<T>,
) -> Option<Vec<T>> {
    list.into_iter().enumerate().map(|(i, given)| item(given, &at.item(name, i), problems)).collect()
}

pub(crate) fn request(bytes: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<RequestId> {
    u128_of(bytes, at, problems).map(RequestId)
}

pub(crate) fn boot(bytes: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<BootId> {
    u128_of(bytes, at, problems).map(BootId)
}

pub(crate) fn cluster(bytes: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<ClusterId> {
    sixteen(bytes, at, problems).map(ClusterId)
}

pub(crate) fn masters(list: Vec<pb::Master>) -> Vec<(MasterId, String)> {
    list.into_iter().map(|master| (MasterId(master.id), master.address)).collect()
}

pub(crate) fn caller(given: Option<pb::Caller>, at: Path<'_>, problems: &mut Problems) -> Option<Caller> {
    let given = there(given, at, problems)?;
    let kind = match given.kind {
        0 => CallerKind::Anonymous,
        1 => CallerKind::Master,
        kind => return problems.invalid(at.field("kind"), format_args!("{kind} is not known")),
    };
    Some(Caller { principal: given.principal.into(), kind })
}

pub(crate) fn call_id(given: Option<pb::CallId>, at: Path<'_>, problems: &mut Problems) -> Option<CallId> {
    let given = there(given, at, problems)?;
    Some(CallId {
        framework: FrameworkId(given.framework),
        session: SessionId(given.session),
        seq: given.seq,
        done_below: given.done_below,
        content: given.content,
    })
}

pub(crate) fn admin_id(given: Option<pb::AdminId>, at: Path<'_>, problems: &mut Problems) -> Option<AdminId> {
    let given = there(given, at, problems)?;
    let request = request(&given.request, at.field("request"), problems)?;
    Some(AdminId { request, time: ClusterTime(given.time_ms) })
}

fn ranges(given: pb::Ranges, kind: &str, at: Path<'_>, problems: &mut Problems) -> Option<Ranges> {
    if given.bounds.len() % 2 == 1 {
        return problems.invalid(at, "a range has no end");
    }
    match Ranges::new(kind, given.bounds.chunks_exact(2).map(|pair| (pair[0], pair[1]))) {
        Ok(ranges) => Some(ranges),
        Err(error) => problems.invalid(at, error),
    }
}

pub(crate) fn resources(
    given: Option<pb::Resources>,
    at: Path<'_>,
    problems: &mut Problems,
) -> Option<Resources> {
    let given = there(given, at, problems)?;
    let entries = each(given.entries, &at, "entries", problems, entry)?;
    match Resources::from_entries(entries) {
        Ok(resources) => Some(resources),
        Err(error) => problems.invalid(at, error),
    }
}

fn entry(given: pb::resources::Entry, at: &Path<'_>, problems: &mut Problems) -> Option<Entry> {
    let attribution = match given.attribution {
        None => Attribution::unreserved(),
        Some(given) => attribution(given, at.field("attribution"), problems)?,
    };
    let scalars = [given.cpus, given.memory, given.disk, given.gpus];
    if scalars.iter().chain(given.scalars.values()).any(|amount| *amount > AMOUNT_MAX) {
        return problems.invalid(*at, "an amount is too large");
    }
    let ports = match given.ports {
        None => Ranges::default(),
        Some(ports) => ranges(ports, "ports", at.field("ports"), problems)?,
    };
    let mut custom = Custom { scalars: given.scalars, ..Custom::default() };
    for (kind, given) in given.ranges {
        let ranges = ranges(given, &kind, at.key("ranges", &kind), problems)?;
        custom.ranges.insert(kind, ranges);
    }
    custom.sets = given.sets.into_iter().map(|(kind, set)| (kind, set.items.into_iter().collect())).collect();
    let [cpus, memory, disk, gpus] = scalars;
    let quantities = Quantities::scalars(cpus, memory, disk, gpus).with_ports(ports).with_custom(custom);
    Some(Entry { attribution, quantities, copies: given.copies.max(1) })
}

fn attribution(given: pb::Attribution, at: Path<'_>, problems: &mut Problems) -> Option<Attribution> {
    let reservation = each(given.reservation, &at, "reservation", problems, |path, at, problems| {
        role(&path, *at, problems)
    })?;
    let disk = match given.disk {
        None => None,
        Some(disk) => {
            let kind = match disk.kind {
                1 => DiskKind::Path,
                2 => DiskKind::Mount,
                3 => DiskKind::Block,
                4 => DiskKind::Raw,
                kind => {
                    return problems.invalid(at.field("disk"), format_args!("{kind} is not a kind of disk"));
                }
            };
            Some(Disk { kind, id: disk.id })
        }
    };
    let volume = given.volume.map(|v| Volume { id: v.id, container_path: v.container_path });
    Some(
        AttributionParts { reservation, volume, disk, revocable: given.revocable, shared: given.shared }
            .into(),
    )
}

fn numbered<T>(
    number: u32,
    of: impl Fn(i32) -> Option<T>,
    at: Path<'_>,
    problems: &mut Problems,
) -> Option<T> {
    match i32::try_from(number).ok().and_then(of) {
        Some(value) => Some(value),
        None => problems.invalid(at, format_args!("{number} is not known to this version")),
    }
}

pub(crate) fn reason(number: u32, at: Path<'_>, problems: &mut Problems) -> Option<Reason> {
    numbered(number, Reason::from_number, at, problems)
}

pub(crate) fn status(given: Option<pb::Status>, at: Path<'_>, problems: &mut Problems) -> Option<Status> {
    let given = there(given, at, problems)?;
    Some(Status {
        master_seq: given.master_seq,
        task_seq: given.task_seq,
        state: numbered(given.state, TaskState::from_number, at.field("state"), problems)?,
        reason: reason(given.reason, at.field("reason"), problems)?,
        source: numbered(given.source, Source::from_number, at.field("source"), problems)?,
        message: given.message,
        exit_code: given.exit_code,
        signal: given.signal,
        memory_peak_bytes: given.memory_peak_bytes,
        isolation: given.isolation,
        wall_ms: given.wall_ms,
        healthy: given.healthy,
        ready: given.ready,
        output_dropped_bytes: given.output_dropped_bytes,
        data: given.data.into(),
    })
}

pub(crate) fn launch_status(
    given: pb::LaunchStatus,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<(LaunchId, Status)> {
    Some((LaunchId(given.launch), status(given.status, at.field("status"), problems)?))
}

pub(crate) fn task_spec(
    given: Option<pb::TaskSpec>,
    at: Path<'_>,
    problems: &mut Problems,
) -> Option<Arc<TaskSpec>> {
    let given = there(given, at, problems)?;
    let executor = match given.executor {
        None => None,
        Some(spec) => {
            let id = match ExecutorId::new(&given.executor_id) {
                Ok(id) => id,
                Err(error) => return problems.invalid(at.field("executor_id"), error),
            };
            Some(ExecutorSpec { id, spec: task_spec(Some(*spec), at.field("executor"), problems)? })
        }
    };
    Some(Arc::new(TaskSpec {
        argv: given.argv,
        env: given.env,
        user: given.user,
        resources: resources(given.resources, at.field("resources"), problems)?,
        kill_grace_ms: given.kill_grace_ms,
        pids_max: given.pids_max,
        needs: given.needs,
        labels: given.labels,
        container: container::container(given.container, &at.field("container"), problems)?,
        burst: container::burst(given.burst),
        health: match given.health_check {
            None => None,
            Some(check) => Some(container::health_check(check, &at.field("health_check"), problems)?),
        },
        readiness: match given.readiness_check {
            None => None,
            Some(check) => Some(container::check(check, &at.field("readiness_check"), problems)?),
        },
        max_completion_ms: given.max_completion_ms,
        executor,
        data: given.data.into(),
    }))
}

pub(crate) fn agent_info(
    given: Option<pb::AgentInfo>,
    at: Path<'_>,
    problems: &mut Problems,
) -> Option<AgentInfo> {
    use pb::attribute_value::Value;
    let given = there(given, at, problems)?;
    let mut attributes = BTreeMap::new();
    for (name, value) in given.attributes {
        let value = match value.value {
            Some(Value::Text(text)) => AttributeValue::Text(text),
            Some(Value::Milli(milli)) => AttributeValue::Milli(milli),
            None => return problems.invalid(at.key("attributes", &name), "is missing"),
        };
        attributes.insert(name, value);
    }
    Some(AgentInfo {
        hostname: given.hostname,
        resources: resources(given.resources, at.field("resources"), problems)?,
        attributes,
        features: given.features.into_iter().collect(),
        isolation: given.isolation,
        version: given.version,
    })
}

pub(crate) fn framework_info(
    given: Option<pb::FrameworkInfo>,
    at: Path<'_>,
    problems: &mut Problems,
) -> Option<FrameworkInfo> {
    let given = there(given, at, problems)?;
    Some(FrameworkInfo {
        name: given.name,
        user: given.user,
        roles: each(given.roles, &at, "roles", problems, |path, at, problems| role(&path, *at, problems))?,
        failover_timeout_ms: given.failover_timeout_ms,
        ends_with_tasks: given.ends_with_tasks,
        hostname: given.hostname,
        labels: given.labels,
    })
}
