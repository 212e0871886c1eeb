//! Parts that records of the log and of snapshots share.

use bytes::Bytes;
use proffer_types::command::CallId;
use proffer_types::container::{Burst, Container};
use proffer_types::resources::{Attribution, DiskKind, Ranges, Resources, ScalarKind};
use proffer_types::{
    AgentInfo, AttributeValue, Caller, CallerKind, FrameworkInfo, LaunchId, Status, TaskSpec,
};

use super::container;
use crate::log::v1 as pb;

pub(crate) fn sixteen(number: u128) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub(crate) fn caller(caller: &Caller) -> pb::Caller {
    let kind = match caller.kind {
        CallerKind::Anonymous => 0,
        CallerKind::Master => 1,
    };
    pb::Caller { principal: (*caller.principal).to_owned(), kind }
}

pub(crate) fn call_id(call: &CallId) -> pb::CallId {
    pb::CallId {
        framework: call.framework.0,
        session: call.session.0,
        seq: call.seq,
        done_below: call.done_below,
        content: call.content,
    }
}

fn ranges(ranges: &Ranges) -> pb::Ranges {
    pb::Ranges { bounds: ranges.iter().flat_map(|(first, last)| [first, last]).collect() }
}

pub(crate) fn resources(resources: &Resources) -> pb::Resources {
    let entry = |entry: &proffer_types::resources::Entry| {
        let (quantities, custom) = (&entry.quantities, entry.quantities.custom());
        pb::resources::Entry {
            attribution: attribution(&entry.attribution),
            cpus: quantities.scalar(ScalarKind::Cpus),
            memory: quantities.scalar(ScalarKind::Memory),
            disk: quantities.scalar(ScalarKind::Disk),
            gpus: quantities.scalar(ScalarKind::Gpus),
            ports: (!quantities.ports().is_empty()).then(|| ranges(quantities.ports())),
            scalars: custom.map(|c| c.scalars.clone()).unwrap_or_default(),
            ranges: custom
                .map(|c| c.ranges.iter().map(|(kind, given)| (kind.clone(), ranges(given))).collect())
                .unwrap_or_default(),
            sets: custom
                .map(|c| {
                    let items = |set: &std::collections::BTreeSet<String>| set.iter().cloned().collect();
                    c.sets.iter().map(|(kind, set)| (kind.clone(), pb::Texts { items: items(set) })).collect()
                })
                .unwrap_or_default(),
            copies: if entry.copies == 1 { 0 } else { entry.copies },
        }
    };
    pb::Resources { entries: resources.entries().iter().map(entry).collect() }
}

fn attribution(attribution: &Attribution) -> Option<pb::Attribution> {
    use pb::attribution::{Disk, Volume};
    let parts = attribution.parts()?;
    Some(pb::Attribution {
        reservation: parts.reservation.iter().map(|role| role.as_str().into()).collect(),
        volume: parts
            .volume
            .as_ref()
            .map(|v| Volume { id: v.id.clone(), container_path: v.container_path.clone() }),
        disk: parts.disk.as_ref().map(|d| Disk {
            kind: match d.kind {
                DiskKind::Path => 1,
                DiskKind::Mount => 2,
                DiskKind::Block => 3,
                DiskKind::Raw => 4,
            },
            id: d.id.clone(),
        }),
        revocable: parts.revocable,
        shared: parts.shared,
    })
}

pub(crate) fn status(status: &Status) -> pb::Status {
    pb::Status {
        master_seq: status.master_seq,
        task_seq: status.task_seq,
        state: status.state.number().into(),
        reason: status.reason.number().into(),
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

/// Whether it uses a field that the first version of the log did not have.
pub(crate) fn status_is_newer(status: &Status) -> bool {
    let Status { healthy, ready, output_dropped_bytes, data, .. } = status;
    healthy.is_some() || ready.is_some() || output_dropped_bytes.is_some() || !data.is_empty()
}

/// Whether it uses a field that the first version of the log did not have.
pub(crate) fn spec_is_newer(spec: &TaskSpec) -> bool {
    let TaskSpec { container, burst, health, readiness, max_completion_ms, executor, data, .. } = spec;
    *container != Container::default()
        || *burst != Burst::default()
        || (health.is_some() || readiness.is_some())
        || *max_completion_ms > 0
        || executor.is_some()
        || !data.is_empty()
}

pub(crate) fn launch_status(launch: LaunchId, of: &Status) -> pb::LaunchStatus {
    pb::LaunchStatus { launch: launch.0, status: Some(status(of)) }
}

pub(crate) fn task_spec(spec: &TaskSpec) -> pb::TaskSpec {
    pb::TaskSpec {
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        user: spec.user.clone(),
        resources: Some(resources(&spec.resources)),
        kill_grace_ms: spec.kill_grace_ms,
        pids_max: spec.pids_max,
        needs: spec.needs.clone(),
        labels: spec.labels.clone(),
        container: container::container(&spec.container),
        burst: container::burst(spec.burst),
        health_check: spec.health.as_ref().map(container::health_check),
        readiness_check: spec.readiness.as_ref().map(container::check),
        max_completion_ms: spec.max_completion_ms,
        executor_id: spec.executor.as_ref().map(|executor| executor.id.as_str().into()).unwrap_or_default(),
        executor: spec.executor.as_ref().map(|executor| Box::new(task_spec(&executor.spec))),
        data: Bytes::copy_from_slice(&spec.data),
    }
}

pub(crate) fn agent_info(info: &AgentInfo) -> pb::AgentInfo {
    use pb::attribute_value::Value;
    let attribute = |value: &AttributeValue| pb::AttributeValue {
        value: Some(match value {
            AttributeValue::Text(text) => Value::Text(text.clone()),
            AttributeValue::Milli(milli) => Value::Milli(*milli),
        }),
    };
    pb::AgentInfo {
        hostname: info.hostname.clone(),
        resources: Some(resources(&info.resources)),
        attributes: info.attributes.iter().map(|(name, value)| (name.clone(), attribute(value))).collect(),
        features: info.features.iter().cloned().collect(),
        isolation: info.isolation.clone(),
        version: info.version.clone(),
    }
}

pub(crate) fn framework_info(info: &FrameworkInfo) -> pb::FrameworkInfo {
    pb::FrameworkInfo {
        name: info.name.clone(),
        user: info.user.clone(),
        roles: info.roles.iter().map(|role| role.as_str().into()).collect(),
        failover_timeout_ms: info.failover_timeout_ms,
        ends_with_tasks: info.ends_with_tasks,
        hostname: info.hostname.clone(),
        labels: info.labels.clone(),
    }
}
