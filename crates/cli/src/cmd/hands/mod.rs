//! Verbs that reach into a task: programs, terminals, files.

pub(crate) mod attach;
pub(crate) mod copy;
pub(crate) mod exec;
pub(crate) mod files;
mod local;
mod terminal;

use std::time::Duration;

use proffer_client::admin::Error;
use proffer_types::{FrameworkId, TaskId, TaskState};
use tokio::time::{Instant, sleep};

use super::Cluster;

/// How long a task that is being started is waited for.
const START_PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

/// Begins what needs a running task; waits for one that is being started.
async fn once_running<T>(
    cluster: &Cluster,
    framework: FrameworkId,
    task: &TaskId,
    begin: impl AsyncFn() -> Result<T, Error>,
) -> Result<T, Error> {
    let began = Instant::now();
    loop {
        let error = match begin().await {
            Err(error) if error.refused().is_some_and(|refused| refused.reason == "TASK_NOT_RUNNING") => {
                error
            }
            other => return other,
        };
        let state = cluster.admin.task(framework, task).await?.status.state;
        // It may have begun to run meanwhile.
        let comes = matches!(state, TaskState::Staging | TaskState::Starting | TaskState::Running);
        if !comes || began.elapsed() > START_PATIENCE {
            return Err(error);
        }
        sleep(PAUSE).await;
    }
}
