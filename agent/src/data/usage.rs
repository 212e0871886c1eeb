//! What tasks and the node use, measured when somebody asks.

use std::time::Duration;

use nix::time::ClockId;
use proffer_containerizer::Usage;
use proffer_types::{FrameworkId, LaunchId, TaskId};
use proffer_wire::admin::v1 as admin;
use proffer_wire::agent::v1::data_chunk::Answer;
use proffer_wire::from_proto;
use tokio::sync::{mpsc, oneshot};

use super::{Gone, Outbound, Refusal, Wish, blocking};

/// Containers that the driver measures before it looks at anything else: about a millisecond.
const AT_ONCE: usize = 32;
/// Tasks in a message: each is below 400 bytes.
const TASKS_PER_MESSAGE: usize = 512;
/// What the kernel counts processor time in, in `/proc/stat`: microseconds. 100 of them are a second on every
/// architecture that Linux shows to programs.
const TICK_USEC: u64 = 10_000;

/// A running task's usage.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) launch: LaunchId,
    pub(crate) framework: FrameworkId,
    pub(crate) task_id: TaskId,
    pub(crate) cpus_milli: u64,
    pub(crate) memory_limit_bytes: u64,
    pub(crate) usage: Usage,
    /// Of [`now_usec`].
    pub(crate) at_usec: u64,
}

/// A steady clock.
pub(crate) fn now_usec() -> u64 {
    let now = ClockId::CLOCK_MONOTONIC.now().expect("every Linux has this clock");
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000
}

/// Measures once, or again and again until nobody listens.
pub(super) async fn watch(
    request: admin::WatchUsageRequest,
    wishes: &mpsc::Sender<Wish>,
    outbound: &Outbound,
) -> Result<(), Gone> {
    let interval = match from_proto::usage_interval(request.interval_ms) {
        Ok(interval) => interval.map(Duration::from_millis),
        Err(error) => return outbound.refuse(Refusal::new("INVALID", error.to_string())).await,
    };
    loop {
        measure(wishes, outbound, interval.is_none()).await?;
        let Some(interval) = interval else { return Ok(()) };
        tokio::time::sleep(interval).await;
    }
}

async fn measure(wishes: &mpsc::Sender<Wish>, outbound: &Outbound, only: bool) -> Result<(), Gone> {
    let (mut next, mut tasks) = (Some(LaunchId(0)), Vec::new());
    while let Some(after) = next {
        let (reply, answer) = oneshot::channel();
        wishes.send(Wish::Usage { after, max: AT_ONCE, reply }).await.map_err(|_| Gone)?;
        let (measured, others) = answer.await.map_err(|_| Gone)?;
        next = others;
        tasks.extend(measured.into_iter().map(told));
        if tasks.len() >= TASKS_PER_MESSAGE && next.is_some() {
            let tasks = std::mem::take(&mut tasks);
            let part = admin::WatchUsageResponse { tasks, node: None, more: true };
            outbound.answer(Answer::WatchUsage(part), false).await?;
        }
    }
    let node = Some(blocking(node).await);
    outbound.answer(Answer::WatchUsage(admin::WatchUsageResponse { tasks, node, more: false }), only).await
}

fn told(measured: Measured) -> admin::TaskUsage {
    let Measured { launch, framework, task_id, cpus_milli, memory_limit_bytes, usage, at_usec } = measured;
    admin::TaskUsage {
        framework_id: framework.0,
        task_id: task_id.as_str().into(),
        launch_id: launch.0,
        at_usec,
        cpu_usec: usage.cpu_usec,
        memory_bytes: usage.memory_bytes,
        memory_peak_bytes: usage.memory_peak_bytes,
        pids: usage.pids,
        cpus_milli,
        memory_limit_bytes,
    }
}

/// What the node uses in all; 0 for what the kernel does not tell.
fn node() -> admin::NodeUsage {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpu_usec, cpus) = processors(&read("/proc/stat"));
    let memory = read("/proc/meminfo");
    let kib = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
    };
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4_096);
    let own = read("/proc/self/statm");
    let resident = own.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    admin::NodeUsage {
        at_usec: now_usec(),
        cpu_usec,
        cpus,
        memory_bytes: kib("MemTotal"),
        memory_available_bytes: kib("MemAvailable"),
        agent_memory_bytes: resident * page,
    }
}

/// Processor time in microseconds, and the number of processors, from `/proc/stat`.
fn processors(stat: &str) -> (u64, u32) {
    let cpus = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu ")).count();
    let fields: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .map(|line| line.split_whitespace().filter_map(|field| field.parse().ok()).collect())
        .unwrap_or_default();
    // user nice system idle iowait irq softirq steal; what comes after is counted in user already.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum();
    (busy * TICK_USEC, u32::try_from(cpus).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_read() {
        let stat =
            "cpu  1 2 3 100 200 4 5 6 7 8\ncpu0 1 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 9\n";
        assert_eq!(processors(stat), (21 * TICK_USEC, 2));
        assert_eq!(processors(""), (0, 0));
        let node = node();
        assert!(node.cpus > 0 && node.memory_bytes > node.memory_available_bytes, "{node:?}");
        assert!(node.agent_memory_bytes > 0 && node.cpu_usec > 0 && node.at_usec > 0, "{node:?}");
    }
}
