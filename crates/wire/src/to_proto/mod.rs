//! From values to generated messages. Nothing here can fail.

mod admin;
mod agents;
mod calls;
pub(crate) mod commands;
pub(crate) mod container;
mod events;
mod executors;
mod frameworks;
pub(crate) mod image;
mod offers;
pub(crate) mod records;
mod resources;
mod tasks;

use bytes::Bytes;
use proffer_types::{ClusterId, Epoch};

use crate::common::v1 as pb;

pub use admin::{
    admin_view, agent_row, executor_row, framework_row, kill_task, list_tasks, master_row, offer_row, page,
    read_logs, read_options, status_summary, task_row, teardown_framework,
};
pub use agents::{agent_message, agent_order, agent_report, data_chunk, data_request, master_message};
pub use calls::{
    accept, acknowledge, call_header, decline, kill, reconcile, revive, send_message, shutdown_executor,
    subscribe, suppress, teardown, update_framework,
};
pub use commands::entry;
pub use events::{
    SnapshotTask, accept_response, error, executor_ended, failure, heartbeat, message, offers, rescind,
    shape, snapshot, snapshot_end, snapshot_task, subscribed, update,
};
pub use executors::{executor_event, executor_subscribe, executor_updates};
pub use frameworks::framework_info;
pub use image::segment;
pub use offers::offer_id;
pub use resources::resources;
pub use tasks::{status, task_launch, task_spec, task_state, unknown_status};

/// A leadership.
pub fn epoch(epoch: Epoch) -> pb::Epoch {
    pb::Epoch { generation: epoch.generation.into(), term: epoch.term }
}

pub(crate) fn sixteen(number: u128) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

pub(crate) fn cluster_id(cluster: ClusterId) -> Bytes {
    Bytes::copy_from_slice(&cluster.0)
}
