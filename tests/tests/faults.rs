//! What is killed, stopped or replaced, and what must go on all the same.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proffer_client::{Ended, Options as ConnectOptions};
use proffer_tests::cluster::{
    Cluster, Framework, Options, READY_LIMIT, audit, info, shell, until, until_true,
};
use proffer_types::{FrameworkInfo, TaskId, TaskState};

use super::{LIMIT, beside_others, best, good, ran_on};

/// Processes in the sandboxes of an agent, with the times of their start.
fn processes(cluster: &Cluster, agent: usize) -> Vec<(audit::RawPid, u64)> {
    let dir = cluster.agents[agent].dir.join("sandboxes");
    let mut found = audit::processes(&dir);
    found.extend(audit::contained(&cluster.agents[agent].dir));
    found.sort_unstable();
    found.dedup();
    found.into_iter().filter_map(|pid| Some((pid, audit::stat(pid)?.start))).collect()
}

#[tokio::test]
async fn a_leader_that_was_stopped_finds_itself_deposed_and_loses_nothing() {
    let _machine = beside_others().await;
    let cluster = Cluster::start(Options { masters: 3, ..Options::default() }).await;
    let mut framework = Framework::connect(&cluster.addresses(), info("steady")).await;
    framework.launch(LIMIT, "before", &shell("exec sleep 300"), None).await;
    framework.state(LIMIT, "before", TaskState::Running).await;
    let (leader, term) = (cluster.leader().await, cluster.status().await.term);
    cluster.masters[leader].signal(Signal::SIGSTOP);
    let others: Vec<String> =
        (0..3).filter(|i| *i != leader).map(|i| cluster.masters[i].address.clone()).collect();
    let admin = proffer_client::AdminClient::new(&others).with_deadline(Duration::from_secs(2));
    until("another leader", LIMIT, async || {
        let (_, status) = admin.status().await.ok()?;
        (status.term > term && others.contains(&status.leader)).then_some(())
    })
    .await;
    // Committed by the new one while the old one still believes.
    framework.handle.kill(&TaskId::new("before").expect("a name"), None).await.expect("killed");
    framework.state(LIMIT, "before", TaskState::Killed).await;
    framework.launch(LIMIT, "meanwhile", &shell("exit 7"), None).await;
    assert_eq!(framework.end_of(LIMIT, "meanwhile").await.exit_code, Some(7));
    cluster.masters[leader].signal(Signal::SIGCONT);
    until("all three are up to date", LIMIT, async || {
        let status = cluster.admin().status().await.ok()?.1;
        let newest = status.masters.iter().map(|master| master.index).max()?;
        let near = status.masters.iter().all(|master| master.role != "unknown" && master.index + 5 >= newest);
        (near && status.term > term).then_some(())
    })
    .await;
    // Asked at the very one that was stopped.
    let stopped = vec![cluster.masters[leader].address.clone()];
    let list = proffer_tests::cluster::ran(cluster.proffer(&stopped, &["task", "list"]), LIMIT).await;
    let list = good(list);
    assert!(list.contains("before") && list.contains("KILLED") && list.contains("meanwhile"), "{list}");
    framework.handle.teardown().await.expect("torn down");
    cluster.all_free(LIMIT).await;
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_framework_that_dies_is_told_everything_when_it_returns_and_its_old_self_is_fenced() {
    let _machine = beside_others().await;
    let mut cluster =
        Cluster::start(Options { masters: 3, containerizer: best(), ..Options::default() }).await;
    let mut first = Framework::connect(&cluster.addresses(), info("mortal")).await;
    let id = first.id();
    for (task, script) in
        [("stays", "exec sleep 300"), ("ends", "until [ -e go ]; do sleep 0.05; done; exit 7")]
    {
        first.launch(LIMIT, task, &shell(script), None).await;
        first.state(LIMIT, task, TaskState::Running).await;
    }
    drop(first);
    until("its death is seen", LIMIT, async || {
        let framework = cluster.admin().framework(id).await.ok()?;
        (framework.state == "DISCONNECTED").then_some(())
    })
    .await;
    let sandboxes = std::fs::read_dir(cluster.agents[0].dir.join("sandboxes")).expect("sandboxes");
    sandboxes.flatten().for_each(|sandbox| std::fs::write(sandbox.path().join("go"), "").expect("a file"));
    // Nobody listens, and then the leader dies, too.
    until("the end is committed", LIMIT, async || {
        (cluster.status().await.tasks.get("FAILED") == Some(&1)).then_some(())
    })
    .await;
    let leader = cluster.leader().await;
    cluster.masters[leader].kill();

    let again =
        || ConnectOptions { framework: Some(id), connect_timeout: READY_LIMIT, ..ConnectOptions::default() };
    let mut second = Framework::connect_with(&cluster.addresses(), info("mortal"), again()).await;
    let status = second.end_of(LIMIT, "ends").await;
    assert_eq!((status.state, status.exit_code), (TaskState::Failed, Some(7)), "{status:?}");
    second.state(LIMIT, "stays", TaskState::Running).await;

    // A third instance fences the second, whose calls are obeyed no more.
    let mut third = Framework::connect_with(&cluster.addresses(), info("mortal"), again()).await;
    third.state(LIMIT, "stays", TaskState::Running).await;
    let refused = second.handle.kill(&TaskId::new("stays").expect("a name"), None).await;
    assert!(matches!(refused, Err(proffer_client::CallError::Ended(Ended::Fenced))), "{refused:?}");
    third.handle.kill(&TaskId::new("stays").expect("a name"), None).await.expect("killed");
    third.state(LIMIT, "stays", TaskState::Killed).await;
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn the_tasks_of_a_framework_that_wants_no_failover_end_with_it() {
    let _machine = beside_others().await;
    let cluster = Cluster::start(Options::default()).await;
    let at_once = FrameworkInfo { failover_timeout_ms: 0, ..info("brief") };
    let mut framework = Framework::connect(&cluster.addresses(), at_once).await;
    let id = framework.id();
    framework.launch(LIMIT, "task", &shell("exec sleep 300"), None).await;
    framework.state(LIMIT, "task", TaskState::Running).await;
    drop(framework);
    cluster.all_free(LIMIT).await;
    assert!(processes(&cluster, 0).is_empty());
    let row = cluster.admin().framework(id).await.expect("its record");
    assert_eq!(row.state, "COMPLETED");
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_that_is_killed_twenty_times_touches_no_task() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::start(Options { containerizer: best(), ..Options::default() }).await;
    let mut framework = Framework::connect(&cluster.addresses(), info("steady")).await;
    for n in 0..5 {
        framework.launch(LIMIT, &format!("task-{n}"), &shell("exec sleep 300"), None).await;
        framework.state(LIMIT, &format!("task-{n}"), TaskState::Running).await;
    }
    let before = processes(&cluster, 0);
    let id = cluster.agent_rows().await[0].id;
    for round in 0..20 {
        cluster.agents[0].kill();
        cluster.agents[0].start();
        // Sometimes before it has got anywhere, sometimes when it is back.
        if round % 2 == 0 {
            cluster.ready(LIMIT).await;
        }
    }
    cluster.ready(LIMIT).await;
    assert_eq!(processes(&cluster, 0), before);
    let rows = cluster.agent_rows().await;
    assert_eq!((rows.len(), rows[0].id, rows[0].live_tasks), (1, id, 5));
    assert!(framework.told.iter().all(|(_, _, status)| !status.state.is_terminal()), "{:#?}", framework.told);
    framework.handle.teardown().await.expect("torn down");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn daemons_are_restarted_in_order_under_running_tasks() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::start(Options { masters: 3, agents: 2, ..Options::default() }).await;
    let mut framework = Framework::connect(&cluster.addresses(), info("steady")).await;
    for n in 0..4 {
        framework.launch(LIMIT, &format!("task-{n}"), &shell("exec sleep 300"), None).await;
        framework.state(LIMIT, &format!("task-{n}"), TaskState::Running).await;
    }
    let before = [processes(&cluster, 0), processes(&cluster, 1)];
    for i in 0..3 {
        assert!(cluster.masters[i].stop().await.success());
        cluster.masters[i].start();
        cluster.ready(LIMIT).await;
    }
    for i in 0..2 {
        assert!(cluster.agents[i].stop().await.success());
        cluster.agents[i].start();
        cluster.ready(LIMIT).await;
    }
    assert_eq!([processes(&cluster, 0), processes(&cluster, 1)], before);
    framework.launch(LIMIT, "last", &shell("exit 0"), None).await;
    framework.state(LIMIT, "last", TaskState::Finished).await;
    assert!(
        (0..4).all(|n| framework.status(&format!("task-{n}")).is_some_and(|s| s.state == TaskState::Running))
    );
    framework.handle.teardown().await.expect("torn down");
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_master_whose_disk_was_wiped_neither_votes_nor_harms() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::start(Options { masters: 3, ..Options::default() }).await;
    assert_eq!(cluster.run(LIMIT, &["run", "--", "true"]).await.code, Some(0));
    let follower = cluster.follower().await;
    let dir = cluster.masters[follower].dir.clone();
    cluster.masters[follower].kill();
    std::fs::remove_dir_all(&dir).expect("its disk");
    let from = cluster.masters[follower].log_text().len();
    cluster.masters[follower].start();
    until_true("it says what is wrong", LIMIT, || {
        let log = cluster.masters[follower].log_text();
        log[from..].contains("this master's data directory is empty") && log[from..].contains("waiting")
    })
    .await;
    assert_eq!(good(cluster.run(LIMIT, &["run", "--", "echo", "on"]).await), "on\n");
    // With one more gone there is no majority: the wiped one does not count.
    let leader = cluster.leader().await;
    let third = (0..3).find(|i| *i != leader && *i != follower).expect("three");
    cluster.masters[third].kill();
    let late = cluster.admin().with_deadline(Duration::from_secs(6)).status().await;
    assert!(late.is_err(), "two of three must not be made of a leader and an empty disk: {late:?}");
    cluster.masters[third].start();
    cluster.leader().await;
    let list = good(cluster.run(LIMIT, &["task", "list"]).await);
    assert_eq!(list.matches("FINISHED").count(), 2, "{list}");
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn ctrl_c_ends_what_run_has_started() {
    let _machine = beside_others().await;
    let cluster = Cluster::start(Options { containerizer: best(), ..Options::default() }).await;
    let args = ["run", "--array", "1-5", "--", "sh", "-c", "exec sleep 300"];
    let mut run = cluster.proffer(&cluster.addresses(), &args).spawn().expect("proffer starts");
    until("all tasks run", LIMIT, async || {
        (cluster.status().await.tasks.get("RUNNING") == Some(&5)).then_some(())
    })
    .await;
    let pid = run.id().expect("it runs").try_into().expect("small");
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("our own child");
    let status = tokio::time::timeout(LIMIT, run.wait()).await.expect("it ends in time").expect("its end");
    assert_eq!(status.code(), Some(130));
    cluster.all_free(LIMIT).await;
    assert!(processes(&cluster, 0).is_empty());
    assert_eq!(cluster.status().await.tasks.get("KILLED"), Some(&5));
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}
