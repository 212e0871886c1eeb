//! A whole framework: runs N copies of a command and exits with their result.
//!
//! ```text
//! cargo run -p proffer-client --example batch -- 127.0.0.1:5050 3 sleep 1
//! ```
//!
//! What a framework must care for is here: use offers, give back what is left, count what ended. What it need not care
//! for is in the SDK: finding the leader and following it, repeating what was lost, acknowledging, reconciling.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use proffer_client::{Event, EventStream, Handle, Launch, Offer, Options, Scheduler, TaskView};
use proffer_types::{FrameworkInfo, Resources, Role, TaskId, TaskLaunch, TaskSpec, TaskState};

/// What is left to do, and what came of the rest.
struct Batch {
    spec: Arc<TaskSpec>,
    /// Copies that are not launched, by number.
    waiting: Vec<u32>,
    total: u32,
    ended: u32,
    failed: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: batch MASTER[,MASTER…] N COMMAND…";
    let masters: Vec<String> = args.next().ok_or(usage)?.split(',').map(str::to_owned).collect();
    let total: u32 = args.next().ok_or(usage)?.parse()?;
    let spec = TaskSpec {
        argv: args.collect(),
        resources: Resources::parse("cpus:0.1;mem:32MiB")?,
        kill_grace_ms: 5_000,
        ..TaskSpec::default()
    };
    let info = FrameworkInfo {
        name: "batch".into(),
        roles: vec![Role::star()],
        failover_timeout_ms: 60_000,
        ..FrameworkInfo::default()
    };
    let (handle, events) = Scheduler::connect(&masters, info, Options::default()).await?;
    let batch =
        Batch { spec: Arc::new(spec), waiting: (1..=total).rev().collect(), total, ended: 0, failed: 0 };
    let failed = batch.run(&handle, events).await?;
    handle.teardown().await?;
    println!("{} of {total} finished", total - failed);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Batch {
    /// Runs everything; returns how many copies failed.
    async fn run(
        mut self,
        handle: &Handle,
        mut events: EventStream,
    ) -> Result<u32, Box<dyn std::error::Error>> {
        while self.ended < self.total {
            match events.next().await? {
                Event::Offers(offers) => {
                    for offer in offers {
                        self.use_offer(handle, &offer).await?;
                    }
                }
                Event::Update(view) => self.on_update(handle, &view).await?,
                // Told as they were last known: they ended, and nobody remembers how.
                Event::Synced { gone, .. } => {
                    self.ended += gone.len() as u32;
                    self.failed += gone.len() as u32;
                }
                _ => {}
            }
        }
        Ok(self.failed)
    }

    async fn use_offer(&mut self, handle: &Handle, offer: &Offer) -> Result<(), Box<dyn std::error::Error>> {
        let mut left = offer.resources.clone();
        let mut copies = Vec::new();
        while let (Some(copy), Ok(rest)) = (self.waiting.last(), left.checked_sub(&self.spec.resources)) {
            copies.push(*copy);
            self.waiting.pop();
            left = rest;
        }
        if copies.is_empty() {
            return Ok(handle.decline(vec![offer.id], None).await?);
        }
        let task = |copy: &u32| {
            Ok(TaskLaunch {
                task_id: TaskId::new(&format!("copy-{copy}"))?,
                name: String::new(),
                env: BTreeMap::from([("COPY".to_owned(), copy.to_string())]),
                array: Some((*copy, self.total)),
            })
        };
        let tasks = copies.iter().map(task).collect::<Result<Vec<_>, proffer_types::NameError>>()?;
        match handle.launch(offer, Launch { spec: self.spec.clone(), tasks }, None).await {
            Ok(accepted) => {
                let refused = copies.iter().zip(accepted.tasks()).filter(|(_, outcome)| outcome.is_err());
                self.waiting.extend(refused.map(|(copy, _)| *copy));
            }
            // The offer was gone: nothing was launched.
            Err(proffer_client::CallError::Refused(_)) => self.waiting.extend(copies),
            Err(error) => return Err(error.into()),
        }
        if self.waiting.is_empty() {
            handle.suppress(Vec::new()).await?;
        }
        Ok(())
    }

    async fn on_update(
        &mut self,
        handle: &Handle,
        view: &TaskView,
    ) -> Result<(), Box<dyn std::error::Error>> {
        println!("{}: {} {}", view.task, view.status.state, view.status.message);
        match view.status.state {
            // Never started: launch it again, under the same name once that is free.
            TaskState::Dropped => {
                let number = view.task.as_str().strip_prefix("copy-").and_then(|n| n.parse().ok());
                self.waiting.extend::<Option<u32>>(number);
                handle.revive(Vec::new()).await?;
            }
            state if state.is_terminal() => {
                self.ended += 1;
                self.failed += u32::from(state != TaskState::Finished);
            }
            _ => {}
        }
        Ok(())
    }
}
