//! What the containerizer, or an executor, is given for a launch: command, limits, checks and the environment that
//! tasks may rely on.

use std::collections::BTreeMap;
use std::path::Path;

use proffer_containerizer::{
    Check, ContainerSpec, HealthCheck, InstanceId, LogLimits, Probe, Supervision, TerminalSize,
};
use proffer_types::container::{Check as CheckAsked, Probe as ProbeAsked, ProbePort};
use proffer_types::event::{LaunchKind, LaunchOrder};
use proffer_types::executor::ExecutorTask;
use proffer_types::limits::TASK_PIDS_MAX;
use proffer_types::resources::milli;
use proffer_types::{AgentId, CellTag};

/// What a program is looked up in unless the task says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The limit of a task that holds less memory, so that there is none without a limit: little, for nobody accounts
/// for it, but enough for a small program to start.
const MEMORY_BYTES_MIN: u64 = 4 << 20;

/// The memory that a launch's container is promised (bytes): its limit, but for a burst.
pub(super) fn memory_promised(order: &LaunchOrder) -> u64 {
    order.resources.memory_bytes().max(MEMORY_BYTES_MIN)
}

/// The memory limit of a launch's container (bytes); 0 for none.
pub(super) fn memory_limit(order: &LaunchOrder) -> u64 {
    let promised = memory_promised(order);
    match order.spec.burst.memory_bytes {
        None => promised,
        Some(0) => 0,
        Some(burst) => burst.max(promised),
    }
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
    /// The directory of its group as the task sees it, if it has one.
    pub group: Option<&'a Path>,
    /// The socket of an executor as that sees it, if it is one.
    pub executor_socket: Option<&'a Path>,
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
        memory_bytes: memory_promised(order),
        pids_max: if spec.pids_max == 0 { TASK_PIDS_MAX } else { spec.pids_max },
        burst: spec.burst,
        container: spec.container.clone(),
        logs: LogLimits::default(),
        supervision: Supervision {
            health: spec.health.as_ref().map(|health| HealthCheck {
                check: check(&health.check, order),
                grace_ms: health.grace_ms,
                failures: health.failures,
            }),
            readiness: spec.readiness.as_ref().map(|readiness| check(readiness, order)),
            max_completion_ms: spec.max_completion_ms,
            kill_grace_ms: spec.kill_grace_ms,
            executor: matches!(order.kind, LaunchKind::Executor(_)),
            terminal: spec.container.terminal.then(TerminalSize::default),
        },
    }
}

/// What an executor is given for a task.
pub fn executor_task(order: &LaunchOrder, place: Place<'_>) -> ExecutorTask {
    ExecutorTask {
        launch: order.launch,
        task_id: order.task_id.clone(),
        role: order.role.clone(),
        resources: order.resources.clone(),
        data: order.spec.data.clone(),
        env: environment(order, place),
        labels: order.spec.labels.clone(),
        kill_grace_ms: order.spec.kill_grace_ms,
        group: order.group,
    }
}

fn check(asked: &CheckAsked, order: &LaunchOrder) -> Check {
    let port = |port: &ProbePort| match *port {
        ProbePort::Number(number) => number,
        // The spec has at least as many; a port that no socket can have is refused by the supervisor.
        ProbePort::Index(index) => {
            let given = ports(order).nth(usize::try_from(index).unwrap_or(usize::MAX));
            given.and_then(|port| u16::try_from(port).ok()).unwrap_or(0)
        }
    };
    let probe = match &asked.probe {
        ProbeAsked::Command(argv) => Probe::Command(argv.clone()),
        ProbeAsked::Http { port: at, path } => Probe::Http { port: port(at), path: path.clone() },
        ProbeAsked::Tcp { port: at } => Probe::Tcp { port: port(at) },
        ProbeAsked::Grpc { port: at, service } => Probe::Grpc { port: port(at), service: service.clone() },
    };
    let CheckAsked { delay_ms, interval_ms, timeout_ms, .. } = *asked;
    Check { probe, delay_ms, interval_ms, timeout_ms }
}

fn ports(order: &LaunchOrder) -> impl Iterator<Item = u64> + '_ {
    order.resources.entries().iter().flat_map(|entry| entry.quantities.ports().values())
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
    match (&order.kind, place.executor_socket) {
        (LaunchKind::Executor(id), socket) => {
            fact("PROFFER_EXECUTOR_ID", id.to_string());
            let socket = socket.map(Path::to_string_lossy).unwrap_or_default().into_owned();
            fact("PROFFER_EXECUTOR_SOCKET", socket);
        }
        (LaunchKind::Task | LaunchKind::TaskOf(_), _) => {
            fact("PROFFER_TASK_ID", order.task_id.to_string());
        }
    }
    if let Some(group) = place.group {
        fact("PROFFER_GROUP", group.to_string_lossy().into_owned());
    }
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
    for (n, port) in ports(order).enumerate() {
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
        let place = Place {
            agent: AgentId(2),
            cell: CellTag(0x7f3a),
            sandbox: Path::new("/mnt/proffer/sandbox"),
            group: None,
            executor_socket: None,
        };
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
        let mut bursts = TaskSpec::clone(&order.spec);
        bursts.burst.memory_bytes = Some(1 << 30);
        let bursts = LaunchOrder { spec: Arc::new(bursts), ..order.clone() };
        assert_eq!((memory_promised(&bursts), memory_limit(&bursts)), (64 << 20, 1 << 30));
        assert_eq!(container_spec(&bursts, InstanceId(1), place).memory_limit(), Some(1 << 30));
        let order = LaunchOrder { resources: Resources::parse("cpus:1").unwrap(), ..order };
        assert_eq!(container_spec(&order, InstanceId(1), place).memory_bytes, MEMORY_BYTES_MIN);
    }
}
