//! What frameworks say of themselves.

use proffer_types::FrameworkInfo;

use crate::common::v1 as pb;

/// A framework's info.
pub fn framework_info(info: &FrameworkInfo) -> pb::FrameworkInfo {
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
