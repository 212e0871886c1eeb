//! What `cargo xtask dev` shows: through the tool, as anybody would.

use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Cluster, Failed, Step, audit, output};
use crate::process::{self, Read};

const LIMIT: Duration = Duration::from_secs(60);
/// Copies in the array.
const ARRAY: usize = 8;

/// Runs the demonstration; the numbers of the closing line.
pub(super) fn run(cluster: &mut Cluster) -> Result<String, Failed> {
    let first_offer = watch_first_offer(cluster);
    let ready_ms = cluster.ready().step("ready")?;
    println!("ready after {ready_ms} ms");
    let first_offer_ms =
        first_offer.recv().context("the watcher ended").and_then(|got| got).step("first offer")?;
    println!("a framework that waited from the start had its first offer after {first_offer_ms} ms");

    let hello_ms = hello(cluster).step("run")?;
    println!("`proffer run -- echo hi` took {hello_ms} ms, from the shell's point of view");
    status(cluster).step("status")?;
    array(cluster).step("array")?;
    let task = detached_sleep(cluster).step("run --detach")?;
    through_a_follower(cluster, &task).step("follower")?;
    logs(cluster, &task).step("logs")?;
    kill(cluster, &task).step("kill")?;
    let tasks = all_ended(cluster).step("tasks")?;
    Ok(format!("first_offer_ms={first_offer_ms} hello_ms={hello_ms} tasks={tasks}"))
}

/// Lets a framework wait for an offer from the moment the programs are started; what comes is the milliseconds until
/// it said that it had one.
fn watch_first_offer(cluster: &Cluster) -> Receiver<Result<u128>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let mut command = Command::new(&cluster.programs.first_offer);
    command.env(audit::MARK, &cluster.mark).arg(&cluster.masters);
    let start = cluster.start;
    std::thread::spawn(move || {
        let mut at = None;
        let mut said = String::new();
        let ended = process::lines(command, LIMIT, Read::Both, |line| {
            if line.starts_with("offer ") {
                at.get_or_insert_with(|| start.elapsed().as_millis());
            }
            said.push_str(line);
            said.push('\n');
        });
        let result = ended.and_then(|ended| {
            ensure!(ended.ok(), "the framework that waits for an offer: {}: {}", ended.how(), said.trim());
            at.context("no offer came")
        });
        let _ = sender.send(result);
    });
    receiver
}

fn hello(cluster: &Cluster) -> Result<u128> {
    let start = Instant::now();
    let text = output(cluster.proffer(&["run", "--", "echo", "hi"]), LIMIT)?;
    let took = start.elapsed().as_millis();
    ensure!(text == "hi\n", "`echo hi` printed {text:?}");
    Ok(took)
}

fn status(cluster: &Cluster) -> Result<()> {
    print!("{}", output(cluster.proffer(&["status"]), LIMIT)?);
    Ok(())
}

fn array(cluster: &Cluster) -> Result<()> {
    let range = format!("1-{ARRAY}");
    let script = "echo task $PROFFER_ARRAY_INDEX of $PROFFER_ARRAY_COUNT on $PROFFER_AGENT_ID";
    let text = output(cluster.proffer(&["run", "--array", &range, "--", "sh", "-c", script]), LIMIT)?;
    print!("{text}");
    let mut numbers: Vec<usize> =
        text.lines().filter_map(|line| line.strip_prefix("task ")?.split(' ').next()?.parse().ok()).collect();
    numbers.sort_unstable();
    ensure!(numbers == (1..=ARRAY).collect::<Vec<_>>(), "the array's tasks said {text:?}");
    Ok(())
}

/// Starts a task that goes on; its full name.
fn detached_sleep(cluster: &Cluster) -> Result<String> {
    let script = "echo started; exec sleep 600";
    output(cluster.proffer(&["run", "--detach", "--name", "sleeper", "--", "sh", "-c", script]), LIMIT)?;
    let running = || {
        let tasks = tasks(cluster, &["--state", "RUNNING"])?;
        Ok(tasks.iter().find(|task| task["name"] == "sleeper").cloned())
    };
    let task = process::until("the detached task to run", LIMIT, running)?;
    let field =
        |key: &str| task[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {task}"));
    Ok(format!("{}/{}", field("framework_id")?, field("task_id")?))
}

/// Asks a master that does not lead, and no other.
fn through_a_follower(cluster: &Cluster, task: &str) -> Result<()> {
    let masters = json(cluster.proffer(&["-o", "json", "master", "list"]))?;
    let leader = json(cluster.proffer(&["-o", "json", "status"]))?["leader"].clone();
    let list = masters["masters"].as_array().context("no masters listed")?;
    let follower = list.iter().find(|master| {
        let address = &master["addr"];
        address.is_string() && master["role"] != "LEADER" && master["role"] != "leader" && *address != leader
    });
    let Some(follower) = follower else {
        ensure!(list.len() == 1, "no follower among {masters}");
        return Ok(());
    };
    let address = follower["addr"].as_str().context("an address")?;
    let shown = json(cluster.proffer_at(address, &["-o", "json", "task", "show", task]))?;
    ensure!(shown["state"] == "RUNNING", "through the follower {address}: {shown}");
    println!("the follower {address} knows {task}: {}", shown["state"].as_str().unwrap_or_default());
    let text = output(cluster.proffer_at(address, &["run", "--", "echo", "through a follower"]), LIMIT)?;
    ensure!(text == "through a follower\n", "a run through the follower {address} printed {text:?}");
    Ok(())
}

fn logs(cluster: &Cluster, task: &str) -> Result<()> {
    // What a task writes passes through a pipe and a file before it can be read.
    process::until("the task's log", LIMIT, || {
        let text = output(cluster.proffer(&["task", "logs", task]), LIMIT)?;
        match text.as_str() {
            "started\n" => Ok(Some(())),
            "" => Ok(None),
            other => bail!("the task's log is {other:?}"),
        }
    })
}

fn kill(cluster: &Cluster, task: &str) -> Result<()> {
    output(cluster.proffer(&["task", "kill", task]), LIMIT)?;
    process::until("the killed task's end", LIMIT, || {
        let shown = json(cluster.proffer(&["-o", "json", "task", "show", task]))?;
        Ok((shown["state"] == "KILLED").then_some(()))
    })?;
    println!("killed {task}");
    Ok(())
}

/// How many tasks there were; all must have ended.
fn all_ended(cluster: &Cluster) -> Result<usize> {
    process::until("the end of all tasks", LIMIT, || {
        let tasks = tasks(cluster, &[])?;
        let ended = |task: &Value| matches!(task["state"].as_str(), Some("FINISHED" | "KILLED"));
        Ok(tasks.iter().all(ended).then_some(tasks.len()))
    })
}

fn tasks(cluster: &Cluster, filter: &[&str]) -> Result<Vec<Value>> {
    let words: Vec<&str> = ["-o", "json", "task", "list"].iter().chain(filter).copied().collect();
    let list = json(cluster.proffer(&words))?;
    list["tasks"].as_array().cloned().with_context(|| format!("no tasks in {list}"))
}

fn json(command: Command) -> Result<Value> {
    let text = output(command, LIMIT)?;
    serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
}
