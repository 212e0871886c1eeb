//! What frameworks say of themselves.

use proffer_types::limits::{FAILOVER_TIMEOUT_MAX_MS, SPEC_BYTES_MAX};
use proffer_types::{FrameworkInfo, Role};
use prost::Message;

use super::{display_name, labels, role, user};
use crate::common::v1 as pb;
use crate::malformed::{Path, Problems};

pub(crate) fn framework_info(
    info: Option<pb::FrameworkInfo>,
    at: &Path<'_>,
    problems: &mut Problems,
) -> Option<FrameworkInfo> {
    let Some(info) = info else { return problems.invalid(*at, "must be given") };
    let bytes = info.encoded_len();
    if bytes > SPEC_BYTES_MAX {
        return problems.invalid(*at, format_args!("has {bytes} bytes, the limit is {SPEC_BYTES_MAX}"));
    }
    let name = display_name(info.name, at.field("name"), problems);
    let user = user(info.user, at.field("user"), problems);
    let none = info.roles.is_empty();
    let roles = roles(info.roles, at, "roles", problems);
    if none {
        problems.invalid::<()>(at.field("roles"), "there must be at least one");
    }
    let failover_timeout_ms = if info.failover_timeout_ms > FAILOVER_TIMEOUT_MAX_MS {
        problems.invalid(
            at.field("failover_timeout_ms"),
            format_args!("must be at most {FAILOVER_TIMEOUT_MAX_MS}"),
        )
    } else {
        Some(info.failover_timeout_ms)
    };
    let hostname = display_name(info.hostname, at.field("hostname"), problems);
    let labels = labels(info.labels, at, problems);
    Some(FrameworkInfo {
        name: name?,
        user: user?,
        roles: roles?,
        failover_timeout_ms: failover_timeout_ms?,
        ends_with_tasks: info.ends_with_tasks,
        hostname: hostname?,
        labels: labels?,
    })
}

/// Roles without duplicates.
pub(crate) fn roles(
    paths: Vec<String>,
    at: &Path<'_>,
    name: &'static str,
    problems: &mut Problems,
) -> Option<Vec<Role>> {
    let mut roles = Vec::with_capacity(paths.len());
    let mut seen = std::collections::BTreeSet::new();
    let mut whole = Some(());
    for (i, path) in paths.iter().enumerate() {
        match role(path, at.item(name, i), problems) {
            Some(role) if !seen.insert(role.clone()) => {
                whole = problems.invalid(at.item(name, i), "is there twice")
            }
            Some(role) => roles.push(role),
            None => whole = None,
        }
    }
    whole.map(|()| roles)
}
