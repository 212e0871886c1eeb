//! What the containerizer is given for a launch: command, limits and the environment that tasks may rely on.

use std::collections::BTreeMap;
use std::path::Path;

use proffer_containerizer::{ContainerSpec, InstanceId, LogLimits, Supervision};
use proffer_types::event::LaunchOrder;
use proffer_types::limits::TASK_PIDS_MAX;
use proffer_types::resources::milli;
use proffer_types::{AgentId, CellTag};

/// What a program is looked up in unless the task says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The limit of a task that holds less memory, so that there is none without a limit: little, for nobody accounts
/// for it, but enough for a small program to start.
const MEMORY_BYTES_MIN: u64 = 4 << 20;

/// The memory limit of a launch's container (bytes).
pub(super) fn memory_limit(order: &LaunchOrder) -> u64 {
    order.resources.memory_bytes().max(MEMORY_BYTES_MIN)
}

/// Whose agent starts the container.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The agent.
    pub agent: AgentId,
    /// The cluster's tag, part of every printed id.
    pub cell: CellTag,
    /// The sandbox as the task sees it.
    pub sandbox: &'a Path,
}

/// The container of a launch.
pub fn container_spec(order: &LaunchOrder, instance: InstanceId, place: Place<'_>) -> ContainerSpec {
    let spec = &order.spec;
    ContainerSpec {
        launch: order.launch,
        framework: order.framework,
        instance,
        argv: spec.argv.clone(),
        env: environment(order, place).into_iter().collect(),
        user: if spec.user.is_empty() { order.framework_user.clone() } else { spec.user.clone() },
        cpus_milli: order.resources.cpus_milli(),
        memory_bytes: memory_limit(order),
        pids_max: if spec.pids_max == 0 { TASK_PIDS_MAX } else { spec.pids_max },
        hostname: String::new(),
        logs: LogLimits::default(),
        supervision: Supervision::default(),
    }
}

/// The whole environment: what every task gets, then what the spec asks for, then what the task asks for, each over
/// the one before; last the facts that a task must be able to rely on, which nothing overrides.
fn environment(order: &LaunchOrder, place: Place<'_>) -> BTreeMap<String, String> {
    let sandbox = place.sandbox.to_string_lossy().into_owned();
    let mut env: BTreeMap<String, String> = [
        ("PATH", PATH.to_owned()),
        ("HOME", sandbox.clone()),
        ("TMPDIR", "/tmp".to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    env.extend(order.spec.env.clone());
    env.extend(order.env.clone());

    let mut fact = |name: &str, value: String| env.insert(name.to_owned(), value);
    fact("PROFFER_TASK_ID", order.task_id.to_string());
    fact("PROFFER_FRAMEWORK_ID", order.framework.text(place.cell));
    fact("PROFFER_AGENT_ID", place.agent.text(place.cell));
    fact("PROFFER_ROLE", order.role.to_string());
    fact("PROFFER_SANDBOX", sandbox);
    fact("PROFFER_CPUS", milli(order.resources.cpus_milli()));
    fact("PROFFER_MEMORY_BYTES", order.resources.memory_bytes().to_string());
    if let Some((index, count)) = order.array {
        fact("PROFFER_ARRAY_INDEX", index.to_string());
        fact("PROFFER_ARRAY_COUNT", count.to_string());
    }
    let ports = order.resources.entries().iter().flat_map(|entry| entry.quantities.ports().values());
    for (n, port) in ports.enumerate() {
        fact(&format!("PORT{n}"), port.to_string());
    }
    env
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proffer_types::event::LaunchKind;
    use proffer_types::{FrameworkId, LaunchId, Resources, Role, TaskId, TaskSpec};

    use super::*;

    #[test]
    fn a_task_can_rely_on_its_environment() {
        let map = |items: &[(&str, &str)]| items.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let order = LaunchOrder {
            agent_seq: 1,
            launch: LaunchId(0x21),
            framework: FrameworkId(0x1c),
            task_id: TaskId::new("a task").unwrap(),
            role: Role::new("eng").unwrap(),
            spec: Arc::new(TaskSpec {
                argv: vec!["env".into()],
                env: map(&[("A", "spec"), ("B", "spec"), ("PATH", "/bin"), ("PROFFER_CPUS", "64")]),
                ..TaskSpec::default()
            }),
            framework_user: "daemon".into(),
            resources: Resources::parse("cpus:0.5;mem:64MiB;ports:[31007,31010-31011]").unwrap(),
            env: map(&[("B", "task")]),
            array: Some((3, 9)),
            group: None,
            kind: LaunchKind::Task,
        };
        let place =
            Place { agent: AgentId(2), cell: CellTag(0x7f3a), sandbox: Path::new("/mnt/proffer/sandbox") };
        let spec = container_spec(&order, InstanceId(1), place);
        let env: Vec<String> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let expected = "\
            A=spec B=task HOME=/mnt/proffer/sandbox LANG=C.UTF-8 PATH=/bin PORT0=31007 PORT1=31010 PORT2=31011 \
            PROFFER_AGENT_ID=agt_7f3a_2 PROFFER_ARRAY_COUNT=9 PROFFER_ARRAY_INDEX=3 PROFFER_CPUS=0.5 \
            PROFFER_FRAMEWORK_ID=fw_7f3a_1c PROFFER_MEMORY_BYTES=67108864 PROFFER_ROLE=eng \
            PROFFER_SANDBOX=/mnt/proffer/sandbox TMPDIR=/tmp";
        let mut env_without_task = env.clone();
        env_without_task.retain(|e| !e.starts_with("PROFFER_TASK_ID"));
        assert_eq!(env_without_task.join(" "), expected);
        assert!(env.contains(&"PROFFER_TASK_ID=a task".to_owned()));
        assert_eq!((spec.user.as_str(), spec.pids_max), ("daemon", TASK_PIDS_MAX));
        assert_eq!(spec.memory_bytes, 64 << 20);
        let order = LaunchOrder { resources: Resources::parse("cpus:1").unwrap(), ..order };
        assert_eq!(container_spec(&order, InstanceId(1), place).memory_bytes, MEMORY_BYTES_MIN);
    }
}
