//! What data connections ask of the driver.

use proffer_containerizer::{Containerizer, ExecSpec};
use proffer_types::LaunchId;
use proffer_types::event::LaunchKind;
use proffer_wire::told::ExecCommand;

use super::usage::now_usec;
use super::{Measured, Wish, engine_size};
use crate::core::Core;

/// The container that a launch runs in: an executor's tasks run in the executor's.
pub(crate) fn container_of(core: &Core, launch: LaunchId) -> LaunchId {
    match core.launch(launch).and_then(|held| held.order).map(|order| &order.kind) {
        Some(LaunchKind::TaskOf(executor)) => *executor,
        _ => launch,
    }
}

/// The container in which a launch is, or was, and which may outlive it: where its output and its files lie.
pub(crate) fn place_of(core: &Core, launch: LaunchId) -> LaunchId {
    match core.launch(launch) {
        Some(_) => container_of(core, launch),
        None => core.has_run(launch).unwrap_or(launch),
    }
}

/// Does what is wished. `environment` is that of the container of an exec, if that is known.
pub(crate) fn grant(
    wish: Wish,
    core: &Core,
    containerizer: &mut dyn Containerizer,
    environment: Option<Vec<(String, String)>>,
) {
    match wish {
        Wish::Exec { launch, command, events, reply } => {
            let container = container_of(core, launch);
            // Without a record of it there is no such launch, and `reply` is dropped.
            let Some(env) = environment else { return };
            let sink = Box::new(move |event| drop(events.send(event)));
            let exec = containerizer.exec(container, exec_spec(command, env), sink);
            let _ = reply.send(exec);
        }
        Wish::Signal { exec, signal } => containerizer.signal_exec(exec, signal),
        Wish::Terminal { launch, reply } => {
            let answer = Box::new(move |given| drop(reply.send(given)));
            containerizer.terminal(container_of(core, launch), answer);
        }
        Wish::Usage { after, max, reply } => {
            let _ = reply.send(measure(core, containerizer, after, max));
        }
    }
}

fn exec_spec(command: ExecCommand, env: Vec<(String, String)>) -> ExecSpec {
    let ExecCommand { argv, env: added, working_directory, terminal } = command;
    // Nothing to add: the container's own is what it gets.
    let env = if added.is_empty() {
        Vec::new()
    } else {
        let kept = env.into_iter().filter(|(name, _)| !added.contains_key(name)).collect::<Vec<_>>();
        kept.into_iter().chain(added.clone()).collect()
    };
    ExecSpec { argv, env, working_directory, terminal: terminal.map(engine_size) }
}

/// Measures at most `max` launches after `after`, those that run; and after which of them to go on, if there are more.
fn measure(
    core: &Core,
    containerizer: &dyn Containerizer,
    after: LaunchId,
    max: usize,
) -> (Vec<Measured>, Option<LaunchId>) {
    let mut measured = Vec::new();
    let (mut looked, mut last) = (0, after);
    for held in core.held().skip_while(|held| held.launch <= after) {
        if looked == max {
            return (measured, Some(last));
        }
        (looked, last) = (looked + 1, held.launch);
        let Some(order) = held.order else { continue };
        // An executor's tasks are measured as one, with it.
        if matches!(order.kind, LaunchKind::TaskOf(_)) {
            continue;
        }
        if let Some(usage) = containerizer.usage(held.launch) {
            measured.push(Measured {
                launch: held.launch,
                framework: order.framework,
                task_id: order.task_id.clone(),
                cpus_milli: order.resources.cpus_milli(),
                memory_limit_bytes: order.resources.memory_bytes(),
                usage,
                at_usec: now_usec(),
            });
        }
    }
    (measured, None)
}
