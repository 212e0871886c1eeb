//! Nodes of their own: each master and agent in a network namespace, and the network taken away. As root only.

use std::fs;

use proffer_tests::cluster::{Cluster, Daemon, Framework, Options, READY_LIMIT, info, is_root, shell, until};
use proffer_types::TaskState;

use super::{LIMIT, beside_others};

async fn cluster(test: &str) -> Option<Cluster> {
    if !is_root(test) {
        return None;
    }
    let options = Options { masters: 3, agents: 2, heartbeat_ms: 500, ..Options::default() };
    let mut cluster = match Cluster::prepare_in_namespaces(&options) {
        Ok(cluster) => cluster,
        Err(missing) => {
            println!("SKIPPED: {test}: {missing}");
            return None;
        }
    };
    cluster.masters.iter_mut().chain(&mut cluster.agents).for_each(Daemon::start);
    cluster.ready(READY_LIMIT).await;
    Some(cluster)
}

#[tokio::test]
async fn a_leader_that_is_cut_off_is_replaced_and_follows_when_it_returns() {
    let _machine = beside_others().await;
    let test = "a_leader_that_is_cut_off_is_replaced_and_follows_when_it_returns";
    let Some(cluster) = cluster(test).await else { return };
    let mut framework = Framework::connect(&cluster.addresses(), info("nodes")).await;
    framework.launch(LIMIT, "before", &shell("exec sleep 300"), None).await;
    framework.state(LIMIT, "before", TaskState::Running).await;
    let first = cluster.leader().await;
    let term = cluster.status().await.term;
    cluster.net().cut(cluster.master_node(first));
    let second = until("another leader", LIMIT, async || {
        let leader = cluster.leader().await;
        (leader != first).then_some(leader)
    })
    .await;
    assert!(cluster.status().await.term > term);
    framework.launch(LIMIT, "meanwhile", &shell("exit 7"), None).await;
    assert_eq!(framework.end_of(LIMIT, "meanwhile").await.exit_code, Some(7));
    assert_eq!(framework.status("before").map(|status| status.state), Some(TaskState::Running));

    cluster.net().heal(cluster.master_node(first));
    until("the first leader follows, up to date", LIMIT, async || {
        let status = cluster.status().await;
        let index =
            |address: &str| status.masters.iter().find(|master| master.addr == address).map(|m| m.index);
        let (old, new) = (index(&cluster.masters[first].address)?, index(&cluster.masters[second].address)?);
        (status.leader != cluster.masters[first].address && old > 0 && old + 5 >= new).then_some(())
    })
    .await;
    framework.launch(LIMIT, "after", &shell("exit 0"), None).await;
    framework.state(LIMIT, "after", TaskState::Finished).await;
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_that_is_cut_off_is_unreachable_and_tells_the_truth_when_it_returns() {
    let _machine = beside_others().await;
    let test = "an_agent_that_is_cut_off_is_unreachable_and_tells_the_truth_when_it_returns";
    let Some(cluster) = cluster(test).await else { return };
    let mut framework = Framework::connect(&cluster.addresses(), info("nodes")).await;
    // One task that stays and one that ends, on each agent.
    let rows = cluster.agent_rows().await;
    for (n, row) in rows.iter().enumerate() {
        for (kind, script) in
            [("stays", "sleep 300"), ("ends", "until [ -e go ]; do sleep 0.05; done; exit 7")]
        {
            framework.launch(LIMIT, &format!("{kind}-{n}"), &shell(script), Some(row.id)).await;
            framework.state(LIMIT, &format!("{kind}-{n}"), TaskState::Running).await;
        }
    }
    cluster.net().cut(cluster.agent_node(0));
    let cut = until("an agent is unreachable", LIMIT, async || {
        let rows = cluster.agent_rows().await;
        rows.iter().position(|row| row.state == "UNREACHABLE")
    })
    .await;
    let other = 1 - cut;
    for kind in ["stays", "ends"] {
        framework.state(LIMIT, &format!("{kind}-{cut}"), TaskState::Unreachable).await;
        let beside = framework.status(&format!("{kind}-{other}")).map(|status| status.state);
        assert_eq!(beside, Some(TaskState::Running), "the other agent's tasks are none of it");
    }
    let sandboxes = fs::read_dir(cluster.agents[0].dir.join("sandboxes")).expect("sandboxes");
    sandboxes.flatten().for_each(|sandbox| fs::write(sandbox.path().join("go"), "").expect("a file"));
    cluster.net().heal(cluster.agent_node(0));
    let ended = framework.end_of(2 * LIMIT, &format!("ends-{cut}")).await;
    assert_eq!((ended.state, ended.exit_code), (TaskState::Failed, Some(7)), "{ended:?}");
    framework.state(LIMIT, &format!("stays-{cut}"), TaskState::Running).await;
    assert!(cluster.agent_rows().await.iter().all(|row| row.state == "REACHABLE"));
    assert_eq!(cluster.end(), Vec::<String>::new());
}
