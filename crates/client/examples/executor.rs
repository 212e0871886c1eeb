//! A framework's executor: runs many small shell scripts in its one container, instead of a container for each.
//!
//! Name it as the executor of a task, and put the script into the task's data. A task that is killed gets SIGTERM, and
//! SIGKILL after its grace. What the scheduler sends comes back.

use std::collections::BTreeMap;
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proffer_client::executor::{Executor, ExecutorTask, Handle, Status, run};
use proffer_types::{LaunchId, TaskState};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// Ends of tasks that were asked for, each with its grace.
type Kills = mpsc::UnboundedSender<Duration>;

#[derive(Default)]
struct Scripts {
    running: Arc<Mutex<BTreeMap<LaunchId, Kills>>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Scripts::default()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("executor: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Executor for Scripts {
    fn on_launch(&mut self, handle: &Handle, tasks: Vec<ExecutorTask>) {
        for task in tasks {
            let (kills, killed) = mpsc::unbounded_channel();
            self.running().insert(task.launch, kills);
            let (handle, running) = (handle.clone(), self.running.clone());
            tokio::spawn(async move {
                let launch = task.launch;
                let end = script(&handle, task, killed).await;
                running.lock().expect("no panic while it is held").remove(&launch);
                if let Err(error) = handle.update(launch, end).await {
                    eprintln!("executor: {error}");
                }
            });
        }
    }

    fn on_kill(&mut self, _: &Handle, launch: LaunchId, grace: Duration) {
        if let Some(kills) = self.running().get(&launch) {
            // It may just have ended.
            let _ = kills.send(grace);
        }
    }

    fn on_message(&mut self, handle: &Handle, data: Vec<u8>) {
        let handle = handle.clone();
        tokio::spawn(async move {
            if let Err(error) = handle.send_message(data).await {
                eprintln!("executor: {error}");
            }
        });
    }

    fn on_shutdown(&mut self, handle: &Handle, grace: Duration) {
        for kills in self.running().values() {
            let _ = kills.send(grace);
        }
        let (handle, running) = (handle.clone(), self.running.clone());
        tokio::spawn(async move {
            while !running.lock().expect("no panic while it is held").is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            handle.stop();
        });
    }
}

impl Scripts {
    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<LaunchId, Kills>> {
        self.running.lock().expect("no panic while it is held")
    }
}

/// Runs a script to its end, which it returns.
async fn script(handle: &Handle, task: ExecutorTask, mut kills: mpsc::UnboundedReceiver<Duration>) -> Status {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(String::from_utf8_lossy(&task.data).as_ref()).env_clear().envs(&task.env);
    command.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            return Status { message: format!("start it: {error}"), ..Status::new(TaskState::Failed) };
        }
    };
    let _ = handle.update(task.launch, Status::new(TaskState::Running)).await;
    let mut killed = false;
    let ended = tokio::select! {
        ended = child.wait() => ended,
        Some(grace) = kills.recv() => {
            killed = true;
            end(&mut child, grace).await
        }
    };
    use std::os::unix::process::ExitStatusExt;
    match ended {
        Ok(ended) => {
            let state = match ended.success() {
                _ if killed => TaskState::Killed,
                true => TaskState::Finished,
                false => TaskState::Failed,
            };
            Status { exit_code: ended.code(), signal: ended.signal(), ..Status::new(state) }
        }
        Err(error) => Status { message: format!("wait for it: {error}"), ..Status::new(TaskState::Failed) },
    }
}

async fn end(child: &mut Child, grace: Duration) -> std::io::Result<std::process::ExitStatus> {
    if let Some(pid) = child.id() {
        // Its whole process group.
        let _ = Command::new("kill").args(["-TERM", "--", &format!("-{pid}")]).status().await;
    }
    match tokio::time::timeout(grace, child.wait()).await {
        Ok(ended) => ended,
        Err(_) => {
            if let Some(pid) = child.id() {
                let _ = Command::new("kill").args(["-KILL", "--", &format!("-{pid}")]).status().await;
            }
            child.wait().await
        }
    }
}
