//! Lists and objects: their JSON, which scripts rely on, and their tables.

use std::collections::BTreeMap;

use comfy_table::{Cell, Color};
use proffer_client::rows::{AgentRow, ExecutorRow, FrameworkRow, MasterRow, OfferRow, TaskRow};
use proffer_types::resources::ScalarKind;
use proffer_types::{AttributeValue, CellTag, Resources, TaskState};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Record, text};

/// Amounts in JSON: cpus and gpus decimal, sizes in bytes, ports as inclusive ranges.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Amounts {
    cpus: f64,
    memory_bytes: u64,
    disk_bytes: u64,
    gpus: f64,
    ports: Vec<[u64; 2]>,
    /// Other kinds, as text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    other: BTreeMap<String, String>,
}

impl From<&Resources> for Amounts {
    fn from(resources: &Resources) -> Self {
        let milli = |kind| resources.scalar(kind) as f64 / 1_000.0;
        let mut ports: Vec<[u64; 2]> = Vec::new();
        let mut other = BTreeMap::new();
        for entry in resources.entries() {
            ports.extend(entry.quantities.ports().iter().map(|(first, last)| [first, last]));
            if let Some(custom) = entry.quantities.custom() {
                let milli = proffer_types::resources::milli;
                other.extend(custom.scalars.iter().map(|(kind, amount)| (kind.clone(), milli(*amount))));
                other.extend(custom.ranges.iter().map(|(kind, ranges)| (kind.clone(), ranges.to_string())));
                let set = |items: &std::collections::BTreeSet<String>| {
                    format!("{{{}}}", items.iter().map(String::as_str).collect::<Vec<_>>().join(","))
                };
                other.extend(custom.sets.iter().map(|(kind, items)| (kind.clone(), set(items))));
            }
        }
        ports.sort_unstable();
        Self {
            cpus: milli(ScalarKind::Cpus),
            memory_bytes: resources.memory_bytes(),
            disk_bytes: resources.scalar(ScalarKind::Disk),
            gpus: milli(ScalarKind::Gpus),
            ports,
            other,
        }
    }
}

fn optional(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A task.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Task {
    task_id: String,
    framework_id: String,
    agent_id: String,
    launch_id: String,
    name: String,
    role: String,
    state: &'static str,
    reason: Option<&'static str>,
    source: &'static str,
    message: String,
    exit_code: Option<i32>,
    signal: Option<i32>,
    cpus: f64,
    memory_bytes: u64,
    disk_bytes: u64,
    ports: Vec<[u64; 2]>,
    memory_peak_bytes: Option<u64>,
    output_dropped_bytes: Option<u64>,
    healthy: Option<bool>,
    ready: Option<bool>,
    group: Option<String>,
    group_size: Option<u32>,
    executor_id: Option<String>,
    terminal: bool,
    isolation: Option<String>,
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    hostname: String,
    user: String,
    command: Vec<String>,
    #[serde(skip)]
    pub(super) known: TaskRow,
}

impl Task {
    pub(crate) fn new(row: TaskRow, cell: CellTag) -> Self {
        let amounts = Amounts::from(&row.resources);
        let status = &row.status;
        Self {
            task_id: row.task_id.to_string(),
            framework_id: row.framework.text(cell),
            agent_id: row.agent.text(cell),
            launch_id: row.launch.text(cell),
            name: if row.name.is_empty() { row.task_id.to_string() } else { row.name.clone() },
            role: row.role.to_string(),
            state: status.state.name(),
            reason: Some(status.reason.name()).filter(|reason| !reason.is_empty()),
            source: status.source.name(),
            message: status.message.clone(),
            exit_code: status.exit_code,
            signal: status.signal,
            cpus: amounts.cpus,
            memory_bytes: amounts.memory_bytes,
            disk_bytes: amounts.disk_bytes,
            ports: amounts.ports,
            memory_peak_bytes: status.memory_peak_bytes,
            output_dropped_bytes: status.output_dropped_bytes,
            healthy: status.healthy,
            ready: status.ready,
            group: row.group.map(|group| group.first.text(cell)),
            group_size: row.group.map(|group| group.size),
            executor_id: optional(&row.executor),
            terminal: row.terminal,
            isolation: status.isolation.clone(),
            created_at: text::time(row.created_ms),
            started_at: row.started_ms.map(text::time),
            finished_at: row.finished_ms.map(text::time),
            hostname: row.hostname.clone(),
            user: if row.user.is_empty() { "nobody".into() } else { row.user.clone() },
            command: row.argv.clone(),
            known: row,
        }
    }

    /// Why it is in its state, in a few words: `exit 7`, `oom`, `signal 9`; of one that runs what its checks say, if
    /// that is not well.
    fn why(&self) -> String {
        if !self.known.status.state.is_terminal() {
            match (self.healthy, self.ready) {
                (Some(false), _) => return "unhealthy".into(),
                (_, Some(false)) => return "not ready".into(),
                _ => {}
            }
        }
        match (self.exit_code, self.signal, self.reason) {
            (Some(code), _, Some("exit_code") | None) if code != 0 => format!("exit {code}"),
            (_, Some(signal), Some("signal") | None) => format!("signal {signal}"),
            (_, _, Some(reason)) => reason.to_owned(),
            _ => String::new(),
        }
    }
}

fn state_cell(state: TaskState) -> Cell {
    let cell = Cell::new(state.name());
    match state {
        TaskState::Running | TaskState::Finished => cell.fg(Color::Green),
        TaskState::Staging | TaskState::Starting | TaskState::Killing => cell.fg(Color::Yellow),
        TaskState::Killed | TaskState::Dropped => cell.fg(Color::DarkGrey),
        TaskState::Unreachable | TaskState::Failed | TaskState::Error | TaskState::GoneByOperator => {
            cell.fg(Color::Red)
        }
    }
}

impl Record for Task {
    const PLURAL: &'static str = "tasks";
    const COLUMNS: &'static [&'static str] = &["TASK", "STATE", "WHY", "AGENT", "ROLE", "CPUS", "MEM", "AGE"];

    fn id(&self) -> String {
        format!("{}/{}", self.framework_id, self.task_id)
    }

    fn row(&self, now_ms: u64) -> Vec<Cell> {
        vec![
            Cell::new(text::clean(&self.id())),
            state_cell(self.known.status.state),
            Cell::new(text::or_dash(self.why())),
            Cell::new(&self.agent_id),
            Cell::new(text::clean(&self.role)),
            Cell::new(text::cpus(&self.known.resources)),
            Cell::new(text::size(self.memory_bytes)),
            Cell::new(text::age(self.known.created_ms, now_ms)),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let optional = |value: &Option<String>| text::or_dash(value.clone().unwrap_or_default());
        let mut lines = vec![
            ("task", text::clean(&self.id())),
            ("name", text::clean(&self.name)),
            ("state", self.state.to_owned()),
            ("reason", text::or_dash(self.reason.unwrap_or_default())),
            ("source", self.source.to_owned()),
            ("message", text::or_dash(text::clean(&self.message))),
        ];
        lines.extend(self.exit_code.map(|code| ("exit code", code.to_string())));
        lines.extend(self.signal.map(|signal| ("signal", signal.to_string())));
        lines.extend([
            ("command", text::clean(&self.command.join(" "))),
            ("user", text::clean(&self.user)),
            ("role", text::clean(&self.role)),
            ("resources", text::amounts(&self.known.resources)),
        ]);
        lines.extend(self.memory_peak_bytes.map(|peak| ("memory peak", text::size(peak))));
        let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        lines.extend(self.healthy.map(|healthy| ("healthy", yes(healthy))));
        lines.extend(self.ready.map(|ready| ("ready", yes(ready))));
        let dropped = self.output_dropped_bytes.filter(|bytes| *bytes > 0);
        lines.extend(dropped.map(|bytes| ("output dropped", text::size(bytes))));
        let group = self.group.as_ref().zip(self.group_size);
        lines.extend(group.map(|(first, size)| ("group", format!("{size} tasks, the first is {first}"))));
        lines.extend(self.executor_id.as_ref().map(|id| ("executor", text::clean(id))));
        lines.extend(self.terminal.then(|| ("terminal", "yes: `proffer task attach` joins it".to_owned())));
        lines.extend([
            ("isolation", text::clean(&optional(&self.isolation))),
            ("agent", format!("{} ({})", self.agent_id, text::clean(&self.hostname))),
            ("launch", self.launch_id.clone()),
            ("created", self.created_at.clone()),
            ("started", optional(&self.started_at)),
            ("finished", optional(&self.finished_at)),
        ]);
        lines
    }
}

/// An executor of a framework on an agent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Executor {
    pub(crate) executor_id: String,
    pub(crate) framework_id: String,
    agent_id: String,
    pub(crate) launch_id: String,
    role: String,
    state: &'static str,
    reason: Option<&'static str>,
    message: String,
    exit_code: Option<i32>,
    signal: Option<i32>,
    cpus: f64,
    memory_bytes: u64,
    live_tasks: u64,
    isolation: Option<String>,
    created_at: String,
    started_at: Option<String>,
    finished_at: Option<String>,
    hostname: String,
    user: String,
    command: Vec<String>,
    #[serde(skip)]
    known: ExecutorRow,
}

impl Executor {
    pub(crate) fn new(row: ExecutorRow, cell: CellTag) -> Self {
        let amounts = Amounts::from(&row.resources);
        let status = &row.status;
        Self {
            executor_id: row.executor.clone(),
            framework_id: row.framework.text(cell),
            agent_id: row.agent.text(cell),
            launch_id: row.launch.text(cell),
            role: row.role.to_string(),
            state: status.state.name(),
            reason: Some(status.reason.name()).filter(|reason| !reason.is_empty()),
            message: status.message.clone(),
            exit_code: status.exit_code,
            signal: status.signal,
            cpus: amounts.cpus,
            memory_bytes: amounts.memory_bytes,
            live_tasks: row.live_tasks,
            isolation: status.isolation.clone(),
            created_at: text::time(row.created_ms),
            started_at: row.started_ms.map(text::time),
            finished_at: row.finished_ms.map(text::time),
            hostname: row.hostname.clone(),
            user: if row.user.is_empty() { "nobody".into() } else { row.user.clone() },
            command: row.argv.clone(),
            known: row,
        }
    }
}

impl Record for Executor {
    const PLURAL: &'static str = "executors";
    const COLUMNS: &'static [&'static str] =
        &["EXECUTOR", "LAUNCH", "STATE", "AGENT", "TASKS", "CPUS", "MEM", "AGE"];

    fn id(&self) -> String {
        self.launch_id.clone()
    }

    fn row(&self, now_ms: u64) -> Vec<Cell> {
        vec![
            Cell::new(text::clean(&format!("{}/{}", self.framework_id, self.executor_id))),
            Cell::new(&self.launch_id),
            state_cell(self.known.status.state),
            Cell::new(&self.agent_id),
            Cell::new(self.live_tasks),
            Cell::new(text::cpus(&self.known.resources)),
            Cell::new(text::size(self.memory_bytes)),
            Cell::new(text::age(self.known.created_ms, now_ms)),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let optional = |value: &Option<String>| text::or_dash(value.clone().unwrap_or_default());
        let mut lines = vec![
            ("executor", text::clean(&format!("{}/{}", self.framework_id, self.executor_id))),
            ("launch", self.launch_id.clone()),
            ("state", self.state.to_owned()),
            ("reason", text::or_dash(self.reason.unwrap_or_default())),
            ("message", text::or_dash(text::clean(&self.message))),
        ];
        lines.extend(self.exit_code.map(|code| ("exit code", code.to_string())));
        lines.extend(self.signal.map(|signal| ("signal", signal.to_string())));
        lines.extend([
            ("live tasks", self.live_tasks.to_string()),
            ("command", text::clean(&self.command.join(" "))),
            ("user", text::clean(&self.user)),
            ("role", text::clean(&self.role)),
            ("resources", text::amounts(&self.known.resources)),
            ("isolation", text::clean(&optional(&self.isolation))),
            ("agent", format!("{} ({})", self.agent_id, text::clean(&self.hostname))),
            ("created", self.created_at.clone()),
            ("started", optional(&self.started_at)),
            ("finished", optional(&self.finished_at)),
        ]);
        lines
    }
}

/// An agent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Agent {
    agent_id: String,
    hostname: String,
    state: String,
    connected: bool,
    isolation: String,
    version: String,
    live_tasks: u64,
    total: Amounts,
    used: Amounts,
    offered: Amounts,
    attributes: BTreeMap<String, Value>,
    features: Vec<String>,
    registered_at: String,
    #[serde(skip)]
    known: AgentRow,
}

impl Agent {
    pub(crate) fn new(row: AgentRow, cell: CellTag) -> Self {
        let value = |value: &AttributeValue| match value {
            AttributeValue::Text(text) => json!(text),
            AttributeValue::Milli(milli) => json!(*milli as f64 / 1_000.0),
        };
        Self {
            agent_id: row.id.text(cell),
            hostname: row.hostname.clone(),
            state: row.state.clone(),
            connected: row.connected,
            isolation: row.isolation.clone(),
            version: row.version.clone(),
            live_tasks: row.live_tasks,
            total: (&row.total).into(),
            used: (&row.used).into(),
            offered: (&row.offered).into(),
            attributes: row.attributes.iter().map(|(name, v)| (name.clone(), value(v))).collect(),
            features: row.features.iter().cloned().collect(),
            registered_at: text::time(row.registered_ms),
            known: row,
        }
    }
}

impl Record for Agent {
    const PLURAL: &'static str = "agents";
    const COLUMNS: &'static [&'static str] =
        &["AGENT", "HOST", "STATE", "CONNECTED", "TASKS", "CPUS", "MEM", "ISOLATION", "AGE"];

    fn id(&self) -> String {
        self.agent_id.clone()
    }

    fn row(&self, now_ms: u64) -> Vec<Cell> {
        let of = |used: String, total: String| format!("{used}/{total}");
        let state = Cell::new(text::clean(&self.state));
        vec![
            Cell::new(&self.agent_id),
            Cell::new(text::clean(&self.hostname)),
            if self.state == "REACHABLE" { state.fg(Color::Green) } else { state.fg(Color::Red) },
            Cell::new(if self.connected { "yes" } else { "no" }),
            Cell::new(self.live_tasks),
            Cell::new(of(text::cpus(&self.known.used), text::cpus(&self.known.total))),
            Cell::new(of(
                text::size(self.known.used.memory_bytes()),
                text::size(self.known.total.memory_bytes()),
            )),
            Cell::new(text::clean(&self.isolation)),
            Cell::new(text::age(self.known.registered_ms, now_ms)),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let attribute =
            |(name, value): (&String, &Value)| format!("{name}={}", value.to_string().trim_matches('"'));
        vec![
            ("agent", self.agent_id.clone()),
            ("host", text::clean(&self.hostname)),
            ("state", text::clean(&self.state)),
            ("connected", if self.connected { "yes" } else { "no" }.into()),
            ("live tasks", self.live_tasks.to_string()),
            ("total", text::amounts(&self.known.total)),
            ("used", text::amounts(&self.known.used)),
            ("offered", text::amounts(&self.known.offered)),
            ("attributes", {
                let list: Vec<String> = self.attributes.iter().map(attribute).collect();
                text::or_dash(text::clean(&list.join(" ")))
            }),
            ("features", text::or_dash(text::clean(&self.features.join(" ")))),
            ("isolation", text::clean(&self.isolation)),
            ("version", text::clean(&self.version)),
            ("registered", self.registered_at.clone()),
        ]
    }
}

/// A framework.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Framework {
    framework_id: String,
    name: String,
    state: String,
    roles: Vec<String>,
    user: String,
    hostname: String,
    principal: String,
    ends_with_tasks: bool,
    failover_timeout_ms: u64,
    remaining_ms: Option<u64>,
    completion_reason: Option<String>,
    live_tasks: u64,
    used: Amounts,
    offered: Amounts,
    labels: BTreeMap<String, String>,
    registered_at: String,
    #[serde(skip)]
    known: FrameworkRow,
}

impl Framework {
    pub(crate) fn new(row: FrameworkRow, cell: CellTag) -> Self {
        Self {
            framework_id: row.id.text(cell),
            name: row.info.name.clone(),
            state: row.state.clone(),
            roles: row.info.roles.iter().map(ToString::to_string).collect(),
            user: if row.info.user.is_empty() { "nobody".into() } else { row.info.user.clone() },
            hostname: row.info.hostname.clone(),
            principal: row.principal.clone(),
            ends_with_tasks: row.info.ends_with_tasks,
            failover_timeout_ms: row.info.failover_timeout_ms,
            remaining_ms: row.remaining_ms,
            completion_reason: optional(&row.completion_reason),
            live_tasks: row.live_tasks,
            used: (&row.used).into(),
            offered: (&row.offered).into(),
            labels: row.info.labels.clone(),
            registered_at: text::time(row.registered_ms),
            known: row,
        }
    }
}

impl Record for Framework {
    const PLURAL: &'static str = "frameworks";
    const COLUMNS: &'static [&'static str] =
        &["FRAMEWORK", "NAME", "STATE", "ROLES", "TASKS", "CPUS", "MEM", "AGE"];

    fn id(&self) -> String {
        self.framework_id.clone()
    }

    fn row(&self, now_ms: u64) -> Vec<Cell> {
        let state = Cell::new(text::clean(&self.state));
        vec![
            Cell::new(&self.framework_id),
            Cell::new(text::or_dash(text::clean(&self.name))),
            match self.state.as_str() {
                "CONNECTED" => state.fg(Color::Green),
                "DISCONNECTED" => state.fg(Color::Yellow),
                _ => state,
            },
            Cell::new(text::clean(&self.roles.join(","))),
            Cell::new(self.live_tasks),
            Cell::new(text::cpus(&self.known.used)),
            Cell::new(text::size(self.known.used.memory_bytes())),
            Cell::new(text::age(self.known.registered_ms, now_ms)),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("framework", self.framework_id.clone()),
            ("name", text::or_dash(text::clean(&self.name))),
            ("state", text::clean(&self.state)),
        ];
        lines.extend(self.completion_reason.as_ref().map(|why| ("completed by", text::clean(why))));
        lines.extend(self.remaining_ms.map(|ms| ("ends in", format!("{}s unless it returns", ms / 1_000))));
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        lines.extend([
            ("roles", text::clean(&self.roles.join(" "))),
            ("user", text::clean(&self.user)),
            ("host", text::or_dash(text::clean(&self.hostname))),
            ("principal", text::or_dash(text::clean(&self.principal))),
            ("failover timeout", format!("{}s", self.failover_timeout_ms / 1_000)),
            ("ends with tasks", if self.ends_with_tasks { "yes" } else { "no" }.into()),
            ("live tasks", self.live_tasks.to_string()),
            ("used", text::amounts(&self.known.used)),
            ("offered", text::amounts(&self.known.offered)),
            ("labels", text::or_dash(text::clean(&labels.join(" ")))),
            ("registered", self.registered_at.clone()),
        ]);
        lines
    }
}

/// An outstanding offer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Offer {
    offer_id: String,
    framework_id: String,
    agent_id: String,
    role: String,
    resources: Amounts,
    age_ms: u64,
    #[serde(skip)]
    known: OfferRow,
}

impl Offer {
    pub(crate) fn new(row: OfferRow, cell: CellTag) -> Self {
        Self {
            offer_id: row.id.clone(),
            framework_id: row.framework.text(cell),
            agent_id: row.agent.text(cell),
            role: row.role.to_string(),
            resources: (&row.resources).into(),
            age_ms: row.age_ms,
            known: row,
        }
    }
}

impl Record for Offer {
    const PLURAL: &'static str = "offers";
    const COLUMNS: &'static [&'static str] = &["OFFER", "FRAMEWORK", "AGENT", "ROLE", "RESOURCES", "AGE"];

    fn id(&self) -> String {
        self.offer_id.clone()
    }

    fn row(&self, _now_ms: u64) -> Vec<Cell> {
        vec![
            Cell::new(text::clean(&self.offer_id)),
            Cell::new(&self.framework_id),
            Cell::new(&self.agent_id),
            Cell::new(text::clean(&self.role)),
            Cell::new(text::amounts(&self.known.resources)),
            Cell::new(text::age(0, self.age_ms)),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// A master.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Master {
    pub(crate) id: u64,
    pub(crate) addr: String,
    pub(crate) role: String,
    pub(crate) index: u64,
}

impl From<MasterRow> for Master {
    fn from(row: MasterRow) -> Self {
        Self { id: row.id.0, addr: row.addr, role: row.role, index: row.index }
    }
}

impl Record for Master {
    const PLURAL: &'static str = "masters";
    const COLUMNS: &'static [&'static str] = &["MASTER", "ADDRESS", "ROLE", "INDEX"];

    fn id(&self) -> String {
        self.id.to_string()
    }

    fn row(&self, _now_ms: u64) -> Vec<Cell> {
        let role = Cell::new(text::clean(&self.role));
        vec![
            Cell::new(self.id),
            Cell::new(text::clean(&self.addr)),
            match self.role.as_str() {
                "leader" => role.fg(Color::Green),
                "unknown" => role.fg(Color::Red),
                _ => role,
            },
            Cell::new(self.index),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}
