//! `proffer top`: what runs where, and what it uses, measured by the agents while somebody looks.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use proffer_client::hands::{NodeUsage, TaskUsage};
use proffer_client::rows::AgentRow;
use proffer_types::AgentId;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::Cluster;
use crate::args::{Format, SortBy, TopArgs};
use crate::fail::{Code, Failure};
use crate::ids;
use crate::render::{Out, lines, plain_table, text};

/// Agents that are asked at once: each costs its master a connection.
const AGENTS_MAX: usize = 32;
/// Before an agent that could not be asked is asked again.
const PAUSE: Duration = Duration::from_secs(2);
/// Tasks shown where there is no screen to say how many fit.
const TASKS_SHOWN: usize = 50;
/// How long agents may take to answer when one look is all, beside the time between their two measurements.
const PATIENCE: Duration = Duration::from_secs(5);

/// What an agent's worker tells.
struct Told {
    agent: AgentId,
    measured: Result<(Vec<TaskUsage>, NodeUsage), String>,
}

/// What is known of an agent.
struct Agent {
    row: AgentRow,
    node: Option<(NodeUsage, NodeUsage)>,
    /// By launch: the last two measurements.
    tasks: BTreeMap<u64, (TaskUsage, TaskUsage)>,
    measured: u32,
    trouble: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Node {
    agent_id: String,
    hostname: String,
    cpus_used: f64,
    cpus: u32,
    memory_used_bytes: u64,
    memory_bytes: u64,
    agent_memory_bytes: u64,
    tasks: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Task {
    framework_id: String,
    task_id: String,
    agent_id: String,
    cpus_used: f64,
    cpus: f64,
    memory_used_bytes: u64,
    memory_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_peak_bytes: Option<u64>,
    pids: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Screen {
    agents: Vec<Node>,
    tasks: Vec<Task>,
}

pub(crate) async fn top(cluster: &Cluster, args: TopArgs, out: &Out) -> Result<(), Failure> {
    let mut rows = match &args.agent {
        Some(given) => vec![cluster.admin.agent(ids::agent(cluster, given).await?).await?],
        None => cluster.admin.agents().await?,
    };
    rows.retain(|row| row.connected || args.agent.is_some());
    let left_out = rows.len().saturating_sub(AGENTS_MAX);
    rows.sort_by_key(|row| std::cmp::Reverse((row.used.cpus_milli(), row.live_tasks)));
    rows.truncate(AGENTS_MAX);
    rows.sort_by_key(|row| row.id);
    if rows.is_empty() {
        return Err(Failure::new(Code::Unavailable, "no agent is connected").next("see `proffer agent list`"));
    }
    let live = !args.once && out.format() != Format::Json && std::io::stdout().is_terminal();
    let (told, mut heard) = mpsc::channel(rows.len());
    for row in &rows {
        tokio::spawn(ask(cluster.admin.clone(), row.id, args.interval, told.clone()));
    }
    drop(told);
    let new = |row: AgentRow| {
        (row.id, Agent { row, node: None, tasks: BTreeMap::new(), measured: 0, trouble: None })
    };
    let mut agents: BTreeMap<AgentId, Agent> = rows.into_iter().map(new).collect();
    let patience = PATIENCE + 2 * args.interval;
    let mut draw_at = Instant::now() + if live { Duration::from_millis(300) } else { patience };
    loop {
        tokio::select! {
            Some(told) = heard.recv() => take(&mut agents, told),
            () = sleep_until(draw_at) => {
                if !draw(cluster, &agents, &args, left_out, live, out)? {
                    return Ok(());
                }
                if !live && (args.once || out.format() != Format::Jsonl) {
                    return Ok(());
                }
                draw_at = Instant::now() + args.interval;
            }
        }
        // Where one look is all, it is taken as soon as everyone has answered twice.
        let complete = agents.values().all(|agent| agent.measured >= 2 || agent.trouble.is_some());
        if !live && complete && draw_at > Instant::now() && args.once | (out.format() != Format::Jsonl) {
            draw_at = Instant::now();
        }
    }
}

/// Asks an agent again and again.
async fn ask(
    admin: proffer_client::AdminClient,
    agent: AgentId,
    interval: Duration,
    told: mpsc::Sender<Told>,
) {
    loop {
        let trouble = match admin.watch_usage(agent, Some(interval)).await {
            Err(error) => error.to_string(),
            Ok(mut reader) => loop {
                match reader.next().await {
                    Ok(Some(measured)) => {
                        if told.send(Told { agent, measured: Ok(measured) }).await.is_err() {
                            return;
                        }
                    }
                    Ok(None) => break "it says no more".to_owned(),
                    Err(error) => break error.to_string(),
                }
            },
        };
        if told.send(Told { agent, measured: Err(trouble) }).await.is_err() {
            return;
        }
        sleep(PAUSE).await;
    }
}

fn take(agents: &mut BTreeMap<AgentId, Agent>, told: Told) {
    let Some(agent) = agents.get_mut(&told.agent) else { return };
    let (tasks, node) = match told.measured {
        Ok(measured) => measured,
        Err(trouble) => {
            agent.trouble = Some(trouble);
            return;
        }
    };
    agent.trouble = None;
    agent.measured += 1;
    agent.node = Some((agent.node.map_or(node, |(_, last)| last), node));
    let mut before = std::mem::take(&mut agent.tasks);
    for task in tasks {
        let last = before.remove(&task.launch_id).map_or_else(|| task.clone(), |(_, last)| last);
        agent.tasks.insert(task.launch_id, (last, task));
    }
}

/// Processors in use between two moments.
fn rate(cpu: (u64, u64), at: (u64, u64)) -> f64 {
    let (used, passed) = (cpu.1.saturating_sub(cpu.0), at.1.saturating_sub(at.0));
    if passed == 0 { 0.0 } else { used as f64 / passed as f64 }
}

fn screen(cluster: &Cluster, agents: &BTreeMap<AgentId, Agent>, sort: SortBy) -> Screen {
    let cell = cluster.cell();
    let mut screen = Screen { agents: Vec::new(), tasks: Vec::new() };
    for agent in agents.values() {
        let agent_id = agent.row.id.text(cell);
        let (before, node) = agent.node.unwrap_or_default();
        screen.agents.push(Node {
            agent_id: agent_id.clone(),
            hostname: agent.row.hostname.clone(),
            cpus_used: rate((before.cpu_usec, node.cpu_usec), (before.at_usec, node.at_usec)),
            cpus: node.cpus,
            memory_used_bytes: node.memory_bytes.saturating_sub(node.memory_available_bytes),
            memory_bytes: node.memory_bytes,
            agent_memory_bytes: node.agent_memory_bytes,
            tasks: agent.tasks.len(),
            error: agent.trouble.clone(),
        });
        screen.tasks.extend(agent.tasks.values().map(|(before, task)| Task {
            framework_id: proffer_types::FrameworkId(task.framework_id).text(cell),
            task_id: task.task_id.clone(),
            agent_id: agent_id.clone(),
            cpus_used: rate((before.cpu_usec, task.cpu_usec), (before.at_usec, task.at_usec)),
            cpus: task.cpus_milli as f64 / 1_000.0,
            memory_used_bytes: task.memory_bytes,
            memory_bytes: task.memory_limit_bytes,
            memory_peak_bytes: task.memory_peak_bytes,
            pids: task.pids,
        }));
    }
    screen.tasks.sort_by(|a, b| {
        let by_cpu = b.cpus_used.total_cmp(&a.cpus_used);
        let by_memory = b.memory_used_bytes.cmp(&a.memory_used_bytes);
        match sort {
            SortBy::Cpu => by_cpu.then(by_memory),
            SortBy::Mem => by_memory.then(by_cpu),
        }
    });
    screen
}

/// Whether somebody may still be looking.
fn draw(
    cluster: &Cluster,
    agents: &BTreeMap<AgentId, Agent>,
    args: &TopArgs,
    left_out: usize,
    live: bool,
    out: &Out,
) -> Result<bool, Failure> {
    let screen = screen(cluster, agents, args.sort);
    match out.format() {
        Format::Table => {}
        Format::Jsonl => return out.line(&screen, |_| String::new()),
        Format::Json => return out.document(&screen).map(|()| true),
    }
    let rows = if live {
        rustix::termios::tcgetwinsize(std::io::stdout()).map_or(24, |size| usize::from(size.ws_row).max(5))
    } else {
        screen.agents.len() + TASKS_SHOWN + 5
    };
    let mut page = String::new();
    if live {
        let (count, cell) = (screen.tasks.len(), cluster.cell().0);
        writeln!(
            page,
            "proffer top  cluster {cell:04x}  {} agents, {count} tasks running  (Ctrl-C ends)\n",
            agents.len()
        )
        .expect("a String takes it");
    }
    page.push_str(&nodes_text(&screen, out));
    page.push('\n');
    let used = page.lines().count();
    let shown = rows.saturating_sub(used + 3).max(1);
    page.push_str(&tasks_text(&screen, shown, out));
    let hidden = screen.tasks.len().saturating_sub(shown);
    if hidden > 0 {
        writeln!(page, "and {hidden} more").expect("a String takes it");
    }
    if left_out > 0 {
        writeln!(page, "{left_out} more agents are not asked: --agent names one").expect("a String takes it");
    }
    show(&page, live).map(|()| true)
}

fn share(used: u64, all: u64) -> String {
    if all == 0 { "-".into() } else { format!("{:.0}%", used as f64 * 100.0 / all as f64) }
}

fn nodes_text(screen: &Screen, out: &Out) -> String {
    let mut table = plain_table(out.colour());
    table.set_header(["AGENT", "HOST", "CPUS", "MEM", "MEM%", "TASKS", "AGENT-MEM", "NOTE"]);
    for node in &screen.agents {
        table.add_row([
            node.agent_id.clone(),
            text::clean(&node.hostname),
            format!("{:.2}/{}", node.cpus_used, node.cpus),
            format!("{}/{}", text::size(node.memory_used_bytes), text::size(node.memory_bytes)),
            share(node.memory_used_bytes, node.memory_bytes),
            node.tasks.to_string(),
            text::size(node.agent_memory_bytes),
            text::or_dash(text::clean(node.error.as_deref().unwrap_or_default())),
        ]);
    }
    lines(&table)
}

fn tasks_text(screen: &Screen, shown: usize, out: &Out) -> String {
    let mut table = plain_table(out.colour());
    table.set_header(["TASK", "AGENT", "CPUS", "HELD", "MEM", "HELD", "MEM%", "PEAK", "PIDS"]);
    for task in screen.tasks.iter().take(shown) {
        table.add_row([
            text::clean(&format!("{}/{}", task.framework_id, task.task_id)),
            task.agent_id.clone(),
            format!("{:.2}", task.cpus_used),
            format!("{:.2}", task.cpus),
            text::size(task.memory_used_bytes),
            text::size(task.memory_bytes),
            share(task.memory_used_bytes, task.memory_bytes),
            task.memory_peak_bytes.map_or_else(|| "-".into(), text::size),
            task.pids.to_string(),
        ]);
    }
    lines(&table)
}

/// Writes a page; on a screen it takes the place of the one before.
fn show(page: &str, live: bool) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let wrote = if live {
        // Home, then each line and what is left of the one before it, then everything below.
        let page = page.replace('\n', "\u{1b}[K\r\n");
        write!(stdout, "\u{1b}[H{page}\u{1b}[J")
    } else {
        stdout.write_all(page.as_bytes())
    };
    match wrote.and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Code::Failed, format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_what_was_used_between_two_looks() {
        assert_eq!(rate((1_000_000, 2_000_000), (0, 2_000_000)), 0.5);
        assert_eq!(rate((5, 4), (0, 0)), 0.0, "a clock that stands, a counter that fell");
        assert_eq!((share(1, 0), share(1, 4)), ("-".into(), "25%".into()));
    }

    #[test]
    fn a_restarted_task_begins_anew() {
        let row = AgentRow {
            id: AgentId(1),
            hostname: String::new(),
            state: String::new(),
            connected: true,
            total: Default::default(),
            used: Default::default(),
            offered: Default::default(),
            attributes: BTreeMap::new(),
            isolation: String::new(),
            version: String::new(),
            registered_ms: 0,
            live_tasks: 0,
            features: Default::default(),
        };
        let agent = Agent { row, node: None, tasks: BTreeMap::new(), measured: 0, trouble: None };
        let mut agents = BTreeMap::from([(AgentId(1), agent)]);
        let told = |launch_id, cpu_usec| Told {
            agent: AgentId(1),
            measured: Ok((
                vec![TaskUsage { launch_id, cpu_usec, ..TaskUsage::default() }],
                NodeUsage::default(),
            )),
        };
        take(&mut agents, told(7, 10));
        take(&mut agents, told(7, 30));
        let (before, now) = agents[&AgentId(1)].tasks[&7].clone();
        assert_eq!((before.cpu_usec, now.cpu_usec), (10, 30));
        take(&mut agents, told(8, 5));
        let agent = &agents[&AgentId(1)];
        assert_eq!((agent.tasks.len(), agent.tasks[&8].0.cpu_usec), (1, 5));
    }
}
