//! From generated messages to values. Every function parses completely or says what is wrong, field by field: after it
//! there is no absent part, no invalid name and no unknown number.

pub(crate) mod admin;
pub(crate) mod agents;
pub(crate) mod calls;
pub(crate) mod commands;
pub(crate) mod container;
pub(crate) mod events;
mod executors;
pub(crate) mod frameworks;
mod hands;
pub(crate) mod image;
pub(crate) mod offers;
mod records;
pub(crate) mod resources;
pub(crate) mod tasks;

use std::collections::{BTreeMap, BTreeSet};

use proffer_types::limits::NAME_BYTES_MAX;
use proffer_types::{BootId, ClusterId, Epoch, RequestId, Role, names};

use crate::common::v1 as pb;
use crate::malformed::{Path, Problems};

pub use admin::{
    admin_view, agent_row, executor_row, framework_row, given_id, kill_task, list_agents, list_executors,
    list_frameworks, list_tasks, master_row, named_task, offer_row, page, read_logs, read_options,
    status_summary, task_row, teardown_framework,
};
pub use agents::{agent_message, data_chunk, data_request, master_message};
pub use calls::{
    accept, acknowledge, decline, kill, reconcile, revive, send_message, shutdown_executor, subscribe,
    suppress, teardown, update_framework,
};
pub use commands::entry;
pub use events::{accept_response, events};
pub use executors::{executor_events, executor_message, executor_subscribe, executor_updates};
pub use hands::{event_row, exec_start, file_name, sandbox_path, usage_interval, window_size};
pub use image::segment;

pub(crate) fn role(path: &str, at: Path<'_>, problems: &mut Problems) -> Option<Role> {
    match Role::new(path) {
        Ok(role) => Some(role),
        Err(error) => problems.invalid(at, error),
    }
}

/// A Unix user's name; empty for "not said".
fn user(name: String, at: Path<'_>, problems: &mut Problems) -> Option<String> {
    if name.is_empty() {
        return Some(name);
    }
    match names::check_name(&name) {
        Ok(()) if name.contains(':') => problems.invalid(at, "contains `:`"),
        Ok(()) => Some(name),
        Err(error) => problems.invalid(at, error),
    }
}

/// A text for display.
fn display_name(text: String, at: Path<'_>, problems: &mut Problems) -> Option<String> {
    if text.len() > NAME_BYTES_MAX {
        return problems.invalid(at, format_args!("is longer than {NAME_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) {
        return problems.invalid(at, "contains a control character");
    }
    Some(text)
}

fn labels(
    labels: BTreeMap<String, String>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<BTreeMap<String, String>> {
    let wrong =
        |key: &String| key.is_empty() || key.len() > NAME_BYTES_MAX || key.chars().any(char::is_control);
    match labels.keys().find(|key| wrong(key)) {
        Some(key) => problems
            .invalid(at.key("labels", key), "a key must have 1 to 255 bytes and no control characters"),
        None => Some(labels),
    }
}

/// Names of features: sorted, no duplicates.
fn features(
    list: Vec<String>,
    at: &Path<'_>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<BTreeSet<String>> {
    let mut set = BTreeSet::new();
    for (i, feature) in list.into_iter().enumerate() {
        if let Err(error) = names::check_name(&feature) {
            return problems.invalid(at.item(name, i), error);
        }
        if !set.insert(feature) {
            return problems.invalid(at.item(name, i), "is there twice");
        }
    }
    Some(set)
}

/// An id that must be there.
fn id(number: u64, at: Path<'_>, problems: &mut Problems) -> Option<u64> {
    if number == 0 { problems.invalid(at, "must be given") } else { Some(number) }
}

fn sixteen(bytes: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<[u8; 16]> {
    match bytes.try_into() {
        Ok(bytes) => Some(bytes),
        Err(_) => problems.invalid(at, format_args!("must be 16 bytes, has {}", bytes.len())),
    }
}

/// 16 bytes, big-endian.
fn u128_of(bytes: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<u128> {
    sixteen(bytes, at, problems).map(u128::from_be_bytes)
}

/// A client's random number; zero would mean "none".
fn request_id(bytes: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<RequestId> {
    match u128_of(bytes, at, problems)? {
        0 => problems.invalid(at, "must not be all zero"),
        number => Some(RequestId(number)),
    }
}

fn boot_id(bytes: &[u8], at: Path<'_>, problems: &mut Problems) -> Option<BootId> {
    u128_of(bytes, at, problems).map(BootId)
}

fn cluster_id(text: &str, at: Path<'_>, problems: &mut Problems) -> Option<ClusterId> {
    match text.parse() {
        Ok(cluster) => Some(cluster),
        Err(error) => problems.invalid(at, error),
    }
}

fn epoch(epoch: Option<pb::Epoch>, at: Path<'_>, problems: &mut Problems) -> Option<Epoch> {
    let Some(epoch) = epoch else { return problems.invalid(at, "must be given") };
    match u16::try_from(epoch.generation) {
        Ok(generation) => Some(Epoch { generation, term: epoch.term }),
        Err(_) => problems.invalid(at.field("generation"), "must be at most 65535"),
    }
}
