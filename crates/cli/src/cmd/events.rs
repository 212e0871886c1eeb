//! `proffer events`

use std::time::Duration;

use proffer_client::EventReader;
use proffer_client::rows::EventRow;
use serde::Serialize;

use super::Cluster;
use crate::fail::{Code, Failure};
use crate::render::{Out, text};

/// How long to look for a master.
const PATIENCE: Duration = Duration::from_secs(10);
/// And how long while following: an election, a restart.
const PATIENCE_FOLLOWING: Duration = Duration::from_secs(120);

/// Something that became true.
#[derive(Clone, Debug, Serialize)]
struct Event {
    index: u64,
    ordinal: u32,
    kind: String,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    framework_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    launch_id: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    task_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    executor_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    text: String,
}

/// Prints events from `from` on, or all that is kept.
pub(crate) async fn events(
    cluster: &Cluster,
    follow: bool,
    from: Option<u64>,
    out: &Out,
) -> Result<(), Failure> {
    // The last place of the index before.
    let mut after = from.map(|index| (index.saturating_sub(1), if index == 0 { 0 } else { u32::MAX }));
    let mut printed = None;
    let patience = if follow { PATIENCE_FOLLOWING } else { PATIENCE };
    loop {
        let mut reader = EventReader::new(cluster.admin.clone(), after, follow, patience);
        let error = loop {
            match reader.next().await {
                Ok(Some(rows)) => {
                    for row in rows {
                        // What is kept, where reading begins anew, may be what was read before.
                        let place = Some((row.index, row.ordinal));
                        if place <= printed {
                            continue;
                        }
                        printed = place;
                        if !out.line(&line(cluster, row), short)? {
                            return Ok(());
                        }
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => break error,
            }
        };
        let missed = error.refused().is_some_and(|refused| refused.reason == "RESYNC");
        if !missed {
            return Err(error.into());
        }
        if !follow || from.is_some() && printed.is_none() {
            let what = format!("events from index {} on: {error}", from.unwrap_or_default());
            return Err(Failure::new(Code::Conflict, what).next("leave --from out for all that is kept"));
        }
        eprintln!("proffer: events were missed that no master keeps any more; going on with what is kept");
        after = None;
    }
}

fn line(cluster: &Cluster, row: EventRow) -> Event {
    let cell = cluster.cell();
    Event {
        index: row.index,
        ordinal: row.ordinal,
        kind: row.kind,
        at: text::time(row.wall_ms),
        framework_id: row.framework.map(|id| id.text(cell)),
        agent_id: row.agent.map(|id| id.text(cell)),
        launch_id: row.launch.map(|id| id.text(cell)),
        task_id: row.task_id,
        executor_id: row.executor_id,
        state: row.state,
        reason: row.reason,
        text: row.text,
    }
}

/// For people: when, where in the log, what.
fn short(event: &Event) -> String {
    let place = format!("{}.{}", event.index, event.ordinal);
    format!("{:24}  {place:>10}  {:22}  {}", event.at, text::clean(&event.kind), text::clean(&event.text))
}
