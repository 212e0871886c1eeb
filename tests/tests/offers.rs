//! Who is offered what, live, and what becomes of agents that do not answer.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use proffer_client::Launch;
use proffer_tests::cluster::{Cluster, Framework, Options, audit, info, shell, spec, until};
use proffer_types::{Reason, TaskId, TaskLaunch, TaskSpec, TaskState};
use tokio::time::Instant;

use super::{LIMIT, beside_others};

/// One task per offer, the rest declined with a filter of 0 s.
struct OneTaskPerOffer {
    framework: Framework,
    spec: Arc<TaskSpec>,
    launched: usize,
    /// Offers in which there was no room.
    useless: usize,
}

impl OneTaskPerOffer {
    async fn connect(cluster: &Cluster, name: &str, resources: &str) -> Self {
        let framework = Framework::connect(&cluster.addresses(), info(name)).await;
        Self { framework, spec: spec(resources, &["sleep", "300"]), launched: 0, useless: 0 }
    }

    /// Answers the next offer.
    async fn step(&mut self, deadline: Instant) {
        self.framework.step("an offer", deadline).await;
        while let Some(offer) = self.framework.offers.pop() {
            let no_filter = Some(Duration::ZERO);
            if offer.resources.checked_sub(&self.spec.resources).is_err() {
                self.useless += 1;
                self.framework.handle.decline(vec![offer.id], no_filter).await.expect("declined");
                continue;
            }
            let task_id = TaskId::new(&format!("task-{}", self.launched)).expect("a name");
            let task = TaskLaunch { task_id, name: String::new(), env: Default::default(), array: None };
            let launch = Launch { spec: self.spec.clone(), tasks: vec![task] };
            // Counted first: this may be given up while the answer is awaited, and the launch stands all the same.
            self.launched += 1;
            let accepted = self.framework.handle.launch(&offer, launch, no_filter).await.expect("accepted");
            assert!(accepted.tasks().all(Result::is_ok), "{accepted:?}");
        }
    }
}

#[tokio::test]
async fn two_frameworks_share_an_agent_by_their_dominant_shares() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::prepare(&Options { resources: "cpus:9;mem:18GiB", ..Options::default() });
    cluster.masters[0].start();
    cluster.leader().await;
    // Both are there before there is anything to share.
    let mut a = OneTaskPerOffer::connect(&cluster, "a", "cpus:1;mem:4GiB").await;
    let mut b = OneTaskPerOffer::connect(&cluster, "b", "cpus:3;mem:1GiB").await;
    cluster.agents[0].start();
    let deadline = Instant::now() + LIMIT;
    // What is left at the end is offered to both, and of no use to either.
    while a.useless < 2 || b.useless < 2 {
        assert!(
            Instant::now() < deadline,
            "{} and {} tasks, {} and {} offers of no use",
            a.launched,
            b.launched,
            a.useless,
            b.useless
        );
        tokio::select! {
            () = a.step(deadline) => {}
            () = b.step(deadline) => {}
        }
    }
    assert_eq!((a.launched, b.launched), (3, 2));
    let agent = cluster.agent_rows().await.remove(0);
    assert_eq!(agent.used.cpus_milli(), 9_000);
    assert_eq!(agent.used.memory_bytes(), 14 << 30);
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_that_stops_answering_comes_back_without_killing_anything() {
    let _machine = beside_others().await;
    // A ping budget of a second and a half.
    let cluster = Cluster::start(Options { heartbeat_ms: 300, ..Options::default() }).await;
    let mut framework = Framework::connect(&cluster.addresses(), info("patient")).await;
    for task in ["kept", "killed"] {
        framework.launch(LIMIT, task, &shell("exec sleep 300"), None).await;
        framework.state(LIMIT, task, TaskState::Running).await;
    }
    let processes = processes(&cluster);
    let begun = std::time::Instant::now();
    cluster.agents[0].signal(Signal::SIGSTOP);
    let status = framework.state(LIMIT, "kept", TaskState::Unreachable).await;
    assert_eq!(status.reason, Reason::AgentLost, "{status:?}");
    assert!(begun.elapsed() >= Duration::from_millis(1_200), "after {:?}", begun.elapsed());
    framework.state(LIMIT, "killed", TaskState::Unreachable).await;
    let agent = cluster.agent_rows().await.remove(0);
    assert_eq!(agent.state, "UNREACHABLE");
    framework.until("the loss of the agent is told", LIMIT, |this| this.lost.first().map(drop)).await;
    assert_eq!(self::processes(&cluster), processes);
    // The end of a task that nobody can reach waits for its return.
    framework.handle.kill(&TaskId::new("killed").expect("a name"), None).await.expect("committed");

    cluster.agents[0].signal(Signal::SIGCONT);
    let status = framework.state(LIMIT, "kept", TaskState::Running).await;
    assert_eq!(status.reason, Reason::AgentReturned, "{status:?}");
    framework.state(LIMIT, "killed", TaskState::Killed).await;
    let agent = until("the agent is back", LIMIT, async || {
        cluster.agent_rows().await.into_iter().find(|agent| agent.state == "REACHABLE" && agent.connected)
    })
    .await;
    assert_eq!(agent.live_tasks, 1);
    let now = self::processes(&cluster);
    assert!(now.len() < processes.len() && now.iter().all(|process| processes.contains(process)), "{now:?}");
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// What works in sandboxes, with the times of its start.
fn processes(cluster: &Cluster) -> Vec<(audit::RawPid, u64)> {
    let found = audit::processes(&cluster.agents[0].dir.join("sandboxes"));
    let mut found: Vec<_> =
        found.into_iter().filter_map(|pid| Some((pid, audit::stat(pid)?.start))).collect();
    found.sort_unstable();
    assert!(!found.is_empty());
    found
}
