//! How a task ended is told truly, whoever was away at that moment.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::signal::Signal as NixSignal;
use proffer_client::rows::TaskFilter;
use proffer_tests::cluster::{Cluster, Daemon, Framework, Options, audit, info, is_root, shell, until_true};
use proffer_types::{Reason, TaskId, TaskState};
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};
use tokio::time::Instant;

use super::{LIMIT, beside_others, best, ran_on};

/// Waits for the file `go` in its sandbox, then exits with 7.
const EXIT_7: &str = "until [ -e go ]; do sleep 0.05; done; exit 7";

async fn cluster() -> (Cluster, Framework) {
    let cluster = Cluster::start(Options { containerizer: best(), ..Options::default() }).await;
    let framework = Framework::connect(&cluster.addresses(), info("ends")).await;
    (cluster, framework)
}

/// Makes a file in every sandbox of the agent.
fn touch(cluster: &Cluster, name: &str) {
    let sandboxes = cluster.agents[0].dir.join("sandboxes");
    for sandbox in fs::read_dir(sandboxes).expect("sandboxes").flatten() {
        fs::write(sandbox.path().join(name), "").expect("a file in a sandbox");
    }
}

#[tokio::test]
async fn a_task_that_exits_7_while_its_agent_is_dead_is_reported_so() {
    let _machine = beside_others().await;
    let (mut cluster, mut framework) = cluster().await;
    framework.launch(LIMIT, "seven", &shell(EXIT_7), None).await;
    framework.state(LIMIT, "seven", TaskState::Running).await;
    let before = pids_of_task(&cluster);
    cluster.agents[0].kill();
    // Its shell is the same one; what that starts in order to wait comes and goes.
    assert!(pids_of_task(&cluster).iter().any(|pid| before.contains(pid)), "the task goes on");
    touch(&cluster, "go");
    until_true("the task ends alone", LIMIT, || pids_of_task(&cluster).is_empty()).await;
    cluster.agents[0].start();
    let status = framework.end_of(LIMIT, "seven").await;
    assert_eq!((status.state, status.exit_code), (TaskState::Failed, Some(7)), "{status:?}");
    assert_eq!(status.reason, Reason::ExitCode);
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_task_that_exits_7_while_its_supervisors_socket_is_cut_is_reported_so() {
    let _machine = beside_others().await;
    if !is_root("a_task_that_exits_7_while_its_supervisors_socket_is_cut_is_reported_so") {
        return;
    }
    let (cluster, mut framework) = cluster().await;
    framework.launch(LIMIT, "seven", &shell(EXIT_7), None).await;
    framework.state(LIMIT, "seven", TaskState::Running).await;
    // The agent sleeps, so that the connection is not made anew before the task has ended.
    cluster.agents[0].signal(NixSignal::SIGSTOP);
    assert_eq!(cut_connections(cluster.agents[0].pid().as_raw()), 1, "connections to supervisors");
    touch(&cluster, "go");
    until_true("the task ends alone", LIMIT, || pids_of_task(&cluster).is_empty()).await;
    cluster.agents[0].signal(NixSignal::SIGCONT);
    let status = framework.end_of(LIMIT, "seven").await;
    assert_eq!((status.state, status.exit_code), (TaskState::Failed, Some(7)), "{status:?}");
    cluster.all_free(LIMIT).await;

    // The supervisor was spared and serves on.
    assert_eq!(cluster.supervisors(0).len(), 1);
    framework.launch(LIMIT, "next", &shell("exit 0"), None).await;
    framework.state(LIMIT, "next", TaskState::Finished).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn the_death_of_a_supervisor_ends_its_tasks_and_returns_their_resources_once() {
    let _machine = beside_others().await;
    let (cluster, mut framework) = cluster().await;
    for task in ["one", "two", "three"] {
        framework.launch(LIMIT, task, &shell("sleep 300 & sleep 300; wait"), None).await;
        framework.state(LIMIT, task, TaskState::Running).await;
    }
    let total = cluster.agent_rows().await[0].total.clone();
    let supervisors = cluster.supervisors(0);
    assert_eq!(supervisors.len(), 1, "{supervisors:?}");
    kill_9(supervisors[0]);
    for task in ["one", "two", "three"] {
        let status = framework.end_of(LIMIT, task).await;
        assert_eq!((status.state, status.reason), (TaskState::Failed, Reason::SupervisorLost), "{status:?}");
        let ends =
            framework.told.iter().filter(|(id, _, status)| id.as_str() == task && status.state.is_terminal());
        assert_eq!(ends.count(), 1, "{:#?}", framework.told);
    }
    assert!(pids_of_task(&cluster).is_empty(), "the tasks are gone before that is told");
    cluster.all_free(LIMIT).await;
    // What came back piece by piece was offered in pieces: given back, it is one again, and no more than that.
    let deadline = Instant::now() + LIMIT;
    while !matches!(&framework.offers[..], [whole] if whole.resources == total) {
        framework.decline_all(Duration::ZERO).await;
        framework.step("the whole agent is offered again", deadline).await;
    }

    // A new one takes its place.
    framework.launch(LIMIT, "next", &shell("exit 3"), None).await;
    assert_eq!(framework.end_of(LIMIT, "next").await.exit_code, Some(3));
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_launch_that_a_stopped_supervisor_was_sent_has_an_outcome() {
    let _machine = beside_others().await;
    if !is_root("a_launch_that_a_stopped_supervisor_was_sent_has_an_outcome") {
        return;
    }
    let (cluster, mut framework) = cluster().await;
    // Nothing runs under it: it is ended, and another starts what it was sent.
    framework.launch(LIMIT, "first", &shell("exit 0"), None).await;
    framework.state(LIMIT, "first", TaskState::Finished).await;
    let stopped = stop_supervisors(&cluster);
    framework.launch(LIMIT, "second", &shell(EXIT_7), None).await;
    framework.state(LIMIT, "second", TaskState::Running).await;
    let gone = || stopped.iter().all(|pid| audit::stat(*pid).is_none_or(|stat| stat.state == 'Z'));
    until_true("the stopped one is gone", LIMIT, gone).await;

    // A task runs under it: it is spared. What it was sent waits, and says why; what comes next does not wait.
    let before = pids_of_task(&cluster);
    let stopped = stop_supervisors(&cluster);
    for task in ["third", "fourth"] {
        framework.launch(LIMIT, task, &shell("exec sleep 1000"), None).await;
    }
    for task in ["third", "fourth"] {
        let waits = |f: &Framework| f.status(task).filter(|s| !s.message.is_empty()).cloned();
        let status = framework.until("it says why it waits", LIMIT, waits).await;
        assert_eq!(status.state, TaskState::Staging, "{status:?}");
        assert!(status.message.contains("does not answer"), "{status:?}");
    }
    framework.launch(LIMIT, "fifth", &shell("exit 3"), None).await;
    assert_eq!(framework.end_of(LIMIT, "fifth").await.exit_code, Some(3));
    assert!(pids_of_task(&cluster).iter().any(|pid| before.contains(pid)), "the task goes on");

    // One is to end. It may not be told so before it is certain that it will not come back.
    framework.kill("third").await;
    let waits = |f: &Framework| f.status("third").filter(|s| s.message.contains("is ended as soon")).cloned();
    let status = framework.until("it says that it will be ended", LIMIT, waits).await;
    assert_eq!(status.state, TaskState::Staging, "{status:?}");
    for pid in stopped {
        pidfd_send_signal(pidfd(pid), Signal::CONT).expect("continued");
    }
    let status = framework.end_of(LIMIT, "third").await;
    assert_eq!(status.state, TaskState::Killed, "{status:?}");
    framework.state(LIMIT, "fourth", TaskState::Running).await;
    touch(&cluster, "go");
    assert_eq!(framework.end_of(LIMIT, "second").await.exit_code, Some(7));
    framework.handle.teardown().await.expect("torn down");
    cluster.all_free(LIMIT).await;
    assert!(pids_of_task(&cluster).is_empty(), "nothing came back");
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// Stops the first agent's supervisors, which are told.
fn stop_supervisors(cluster: &Cluster) -> Vec<audit::RawPid> {
    let supervisors = cluster.supervisors(0);
    assert!(!supervisors.is_empty());
    for pid in &supervisors {
        pidfd_send_signal(pidfd(*pid), Signal::STOP).expect("stopped");
    }
    supervisors
}

#[tokio::test]
async fn masters_killed_all_at_once_know_everything_again_from_disk() {
    let _machine = beside_others().await;
    let options = Options { masters: 3, agents: 2, containerizer: best(), ..Options::default() };
    let mut cluster = Cluster::start(options).await;
    // Before there is anyone to hold offers.
    assert_eq!(cluster.run(LIMIT, &["run", "--", "true"]).await.code, Some(0));
    let mut framework = Framework::connect(&cluster.addresses(), info("survivor")).await;
    for task in ["one", "two"] {
        framework.launch(LIMIT, task, &shell("exec sleep 300"), None).await;
        framework.state(LIMIT, task, TaskState::Running).await;
    }
    let filter = TaskFilter::default();
    let before = cluster.admin().tasks(&filter).await.expect("tasks");
    let processes: Vec<_> = started(&cluster);
    cluster.masters.iter_mut().for_each(Daemon::kill);
    // Agents, too, so that nobody can tell the masters what they have forgotten.
    cluster.agents.iter_mut().for_each(Daemon::kill);
    assert_eq!(started(&cluster), processes, "tasks go on");
    cluster.masters.iter_mut().for_each(Daemon::start);
    cluster.leader().await;
    let after = cluster.admin().tasks(&filter).await.expect("tasks");
    assert_eq!(after, before);
    assert_eq!(cluster.agent_rows().await.len(), 2);
    assert!(cluster.agent_rows().await.iter().all(|agent| agent.state == "REACHABLE" && !agent.connected));

    cluster.agents.iter_mut().for_each(Daemon::start);
    cluster.ready(LIMIT).await;
    assert_eq!(started(&cluster), processes, "tasks go on");
    framework.handle.kill(&TaskId::new("one").expect("a name"), None).await.expect("killed");
    let status = framework.end_of(LIMIT, "one").await;
    assert_eq!(status.state, TaskState::Killed, "{status:?}");
    assert_eq!(framework.status("two").map(|status| status.state), Some(TaskState::Running));
    framework.handle.teardown().await.expect("torn down");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// The processes of tasks, with their start times.
fn started(cluster: &Cluster) -> Vec<(audit::RawPid, u64)> {
    let pids = pids_of_task(cluster);
    assert!(!pids.is_empty(), "no task runs");
    pids.into_iter().filter_map(|pid| Some((pid, audit::stat(pid)?.start))).collect()
}

/// The processes of all tasks: in their groups, or at work in their sandboxes.
fn pids_of_task(cluster: &Cluster) -> Vec<audit::RawPid> {
    let mut pids = Vec::new();
    for agent in &cluster.agents {
        pids.extend(audit::contained(&agent.dir));
        let sandboxes = agent.dir.join("sandboxes");
        let works = |pid: &audit::RawPid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&sandboxes))
        };
        pids.extend(audit::all_processes().into_iter().filter(works));
    }
    pids.retain(|pid| audit::stat(*pid).is_some_and(|stat| stat.state != 'Z'));
    pids.sort_unstable();
    pids.dedup();
    pids
}

fn pidfd(pid: audit::RawPid) -> OwnedFd {
    pidfd_open(Pid::from_raw(pid).expect("not 0"), PidfdFlags::empty()).expect("a pidfd")
}

fn kill_9(pid: audit::RawPid) {
    pidfd_send_signal(pidfd(pid), Signal::KILL).expect("killed");
}

/// Shuts down every SOCK_SEQPACKET connection of a process; how many there were.
fn cut_connections(pid: audit::RawPid) -> usize {
    let process = pidfd(pid);
    let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).expect("the table of sockets");
    let seqpacket: Vec<&str> = table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(4) == Some(&"0005"))
        .filter_map(|words| words.get(6).copied())
        .collect();
    let mut cut = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let Some(inode) = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) else {
            continue;
        };
        if !seqpacket.contains(&inode) {
            continue;
        }
        let number: i32 = entry.file_name().to_string_lossy().parse().expect("a number");
        let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).expect("a copy of the socket");
        rustix::net::shutdown(socket, Shutdown::Both).expect("a connected socket");
        cut += 1;
    }
    cut
}
