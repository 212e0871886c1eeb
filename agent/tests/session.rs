//! The agent's shell against a master made of the generated server: what is on the wire, on the disk and in the
//! containers. No sleeping: everything is awaited, with a deadline.

#[path = "stories/executors.rs"]
mod executors;
mod master;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use master::{CLUSTER, Master};
use proffer_agent::core::{Config, Core};
use proffer_agent::driver::{Driver, Handle, View, fresh_instance};
use proffer_agent::recover::Store;
use proffer_containerizer::fake::{Fake, Node};
use proffer_containerizer::{
    Answer, ContainerSpec, Containerizer, Event, ExecId, ExecSink, ExecSpec, GcPolicy, InstanceId, Known,
    LogReader, Usage,
};
use proffer_types::event::{AgentOrder, AgentReport, DataAction, LaunchKind, LaunchOrder};
use proffer_types::{
    AgentId, AgentInfo, BootId, FrameworkId, LaunchId, Reason, Resources, Role, TaskId, TaskSpec, TaskState,
};
use proffer_wal::FsDisk;
use proffer_wire::agent::v1 as pb;
use tokio::sync::mpsc;

/// The fake containerizer, its events handed on as they come.
#[derive(Clone)]
struct Shared(Arc<Mutex<Fake>>);

impl Containerizer for Shared {
    fn assign(&mut self, framework: FrameworkId) -> InstanceId {
        self.0.lock().unwrap().assign(framework)
    }
    fn recover(&mut self, known: Vec<Known>) {
        self.0.lock().unwrap().recover(known);
    }
    fn launch(&mut self, spec: ContainerSpec) {
        self.0.lock().unwrap().launch(spec);
    }
    fn launch_group(&mut self, members: Vec<ContainerSpec>) {
        self.0.lock().unwrap().launch_group(members);
    }
    fn group_path(&self, first: LaunchId) -> std::path::PathBuf {
        self.0.lock().unwrap().group_path(first)
    }
    fn executor_socket(&self, launch: LaunchId, instance: InstanceId) -> std::path::PathBuf {
        self.0.lock().unwrap().executor_socket(launch, instance)
    }
    fn listener(&mut self, launch: LaunchId, answer: Answer<OwnedFd>) {
        self.0.lock().unwrap().listener(launch, answer);
    }
    fn terminal(&mut self, launch: LaunchId, answer: Answer<OwnedFd>) {
        self.0.lock().unwrap().terminal(launch, answer);
    }
    fn exec(&mut self, launch: LaunchId, spec: ExecSpec, sink: ExecSink) -> ExecId {
        self.0.lock().unwrap().exec(launch, spec, sink)
    }
    fn signal_exec(&mut self, exec: ExecId, signal: i32) {
        self.0.lock().unwrap().signal_exec(exec, signal);
    }
    fn holds(&self, launch: LaunchId, pid: i32) -> bool {
        self.0.lock().unwrap().holds(launch, pid)
    }
    fn resize(&mut self, launch: LaunchId, cpus_milli: u64, memory_bytes: u64) {
        self.0.lock().unwrap().resize(launch, cpus_milli, memory_bytes);
    }
    fn kill(&mut self, launch: LaunchId, grace_ms: u64) {
        self.0.lock().unwrap().kill(launch, grace_ms);
    }
    fn forget(&mut self, launch: LaunchId) {
        self.0.lock().unwrap().forget(launch);
    }
    fn sandbox_path(&self, launch: LaunchId) -> std::path::PathBuf {
        self.0.lock().unwrap().sandbox_path(launch)
    }

    fn sandbox_dir(&self, launch: LaunchId) -> Option<PathBuf> {
        self.0.lock().unwrap().sandbox_dir(launch)
    }
    fn logs(&self, launch: LaunchId) -> LogReader {
        self.0.lock().unwrap().logs(launch)
    }
    fn usage(&self, launch: LaunchId) -> Option<Usage> {
        self.0.lock().unwrap().usage(launch)
    }
    fn gc(&mut self, policy: GcPolicy) {
        self.0.lock().unwrap().gc(policy);
    }
    fn isolation(&self) -> &'static str {
        "fake"
    }
}

/// A running agent.
struct Agent {
    handle: Handle,
    driver: tokio::task::JoinHandle<Result<(), proffer_agent::Error>>,
    pump: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(dir: &Path, node: &Node, masters: &[&str], boot: u128) -> Self {
        let boot_id = BootId(boot);
        let (store, found) = Store::open(Arc::new(FsDisk), dir, boot_id).unwrap();
        let containerizer = Shared(Arc::new(Mutex::new(Fake::new(node))));
        let (to_driver, container) = mpsc::unbounded_channel();
        let pump = tokio::spawn({
            let containerizer = containerizer.clone();
            async move {
                let mut tick = tokio::time::interval(Duration::from_millis(2));
                loop {
                    tick.tick().await;
                    let events: Vec<Event> = containerizer.0.lock().unwrap().take_events();
                    for event in events {
                        if to_driver.send(event).is_err() {
                            return;
                        }
                    }
                }
            }
        });
        let info = AgentInfo {
            hostname: "node".into(),
            resources: Resources::parse("cpus:4;mem:1GiB").unwrap(),
            features: [proffer_types::features::EXECUTOR.to_owned()].into(),
            isolation: "fake".into(),
            ..AgentInfo::default()
        };
        let core = Core::recover(
            Config { info, boot_id, registration_ms: 60_000 },
            found.identity,
            found.records,
            fresh_instance(),
        );
        let masters = masters.iter().map(|m| (*m).to_owned()).collect();
        let (driver, handle) = Driver::new(core, store, Box::new(containerizer), container, masters);
        Self { handle, driver: tokio::spawn(driver.run()), pump }
    }

    async fn view(&self) -> View {
        self.handle.view().await.expect("the driver runs")
    }

    /// Ends the daemon as SIGTERM does; containers stay.
    async fn stop(self) {
        self.handle.stop().await;
        self.driver.await.unwrap().unwrap();
        self.pump.abort();
    }

    /// Ends the daemon as SIGKILL does: in the middle of whatever it does.
    async fn kill(self) {
        self.driver.abort();
        self.pump.abort();
        let _ = self.driver.await;
    }
}

fn launch(seq: u64, launch: u64) -> AgentOrder {
    AgentOrder::Launch(Box::new(LaunchOrder {
        agent_seq: seq,
        launch: LaunchId(launch),
        framework: FrameworkId(1),
        task_id: TaskId::new("task").unwrap(),
        role: Role::new("*").unwrap(),
        spec: Arc::new(TaskSpec {
            argv: vec!["work".into()],
            resources: Resources::parse("cpus:1;mem:32MiB;ports:[31000-31001]").unwrap(),
            ..TaskSpec::default()
        }),
        framework_user: "daemon".into(),
        resources: Resources::parse("cpus:1;mem:32MiB;ports:[31000-31001]").unwrap(),
        env: Default::default(),
        array: None,
        group: None,
        kind: LaunchKind::Task,
    }))
}

/// The next status of a launch, in short.
async fn status(master: &mut Master) -> (u64, u32, TaskState) {
    match master.report().await {
        AgentReport::Status { launch, status } => (launch.0, status.task_seq, status.state),
        other => panic!("expected a status: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registers_runs_a_task_and_keeps_its_id_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new();
    let mut master = Master::start().await;
    let agent = Agent::start(dir.path(), &node, &[&master.address], 1);
    let first = master.hello().await;
    assert_eq!((first.agent, first.epoch_seen.term), (None, 0));
    assert_eq!(first.info.hostname, "node");
    master.send(5, vec![master.welcome(0)]).await;
    let second = master.hello().await;
    assert_eq!((second.agent, second.instance), (Some(AgentId(9)), first.instance));
    master.send(5, vec![master.welcome(0), launch(1, 100), AgentOrder::Ping { n: 4 }]).await;
    assert_eq!(master.report().await, AgentReport::Pong { n: 4 });
    assert_eq!(status(&mut master).await, (100, 1, TaskState::Running));
    let spec = node.spec(LaunchId(100)).unwrap();
    assert_eq!(spec.user, "daemon");
    assert!(spec.env.contains(&("PORT1".into(), "31001".into())));
    assert!(spec.env.iter().any(|(name, value)| name == "PROFFER_AGENT_ID" && value.ends_with("_9")));

    // Killed in the middle; the task ends meanwhile, and its true end is told by the next life.
    agent.kill().await;
    node.exit(LaunchId(100), 7);
    let agent = Agent::start(dir.path(), &node, &[&master.address], 1);
    let again = master.hello().await;
    assert_eq!((again.agent, again.instance, again.last_seq), (Some(AgentId(9)), first.instance, 1));
    assert_eq!((again.cluster, again.epoch_seen.term), (Some(CLUSTER), 5));
    master.send(5, vec![AgentOrder::SendListing]).await;
    match master.report().await {
        AgentReport::Listing(held) => {
            let newest = &held[0].status;
            assert_eq!((held.len(), newest.task_seq, newest.exit_code), (1, 2, Some(7)));
        }
        other => panic!("expected a listing: {other:?}"),
    }
    master.send(5, vec![master.welcome(1)]).await;
    assert_eq!(status(&mut master).await, (100, 1, TaskState::Running));
    assert_eq!(status(&mut master).await, (100, 2, TaskState::Failed));
    let confirm = AgentOrder::Confirm { launch: LaunchId(100), task_seq: 2 };
    master.send(5, vec![confirm, launch(1, 100), AgentOrder::Ping { n: 1 }]).await;
    assert_eq!(master.report().await, AgentReport::Pong { n: 1 });
    assert!(agent.view().await.launches.is_empty());
    assert_eq!(node.starts().values().copied().collect::<Vec<_>>(), [1]);
    agent.stop().await;

    // The host restarts: the same agent, with nothing.
    node.reboot();
    let agent = Agent::start(dir.path(), &node, &[&master.address], 2);
    let rebooted = master.hello().await;
    assert_eq!((rebooted.agent, rebooted.last_seq, rebooted.boot_id), (Some(AgentId(9)), 0, BootId(2)));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_leads_to_the_leader_and_an_old_leader_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new();
    let mut leader = Master::start().await;
    let follower = Master::start().await;
    follower.follow(Some(&leader.address));
    let agent = Agent::start(dir.path(), &node, &[&follower.address], 1);
    leader.hello().await;
    leader.send(5, vec![leader.welcome(0), leader.welcome(0)]).await;
    leader.hello().await;
    leader.send(5, vec![launch(1, 100)]).await;
    assert_eq!(status(&mut leader).await, (100, 1, TaskState::Running));
    assert_eq!(agent.view().await.term, Some(5));

    // Whoever led before may not give orders, whatever it believes.
    leader
        .send(
            4,
            vec![AgentOrder::Kill {
                agent_seq: 2,
                launch: LaunchId(100),
                grace_ms: 0,
                reason: Reason::KillRequested,
            }],
        )
        .await;
    let hello = leader.hello().await;
    assert_eq!((hello.agent, hello.last_seq), (Some(AgentId(9)), 1));
    assert_eq!(node.running(), [LaunchId(100)]);

    // The leadership goes over to the other one: the stream ends with its address.
    let mut follower = follower;
    follower.lead();
    leader.follow(Some(&follower.address));
    leader.end_with_not_leader().await;
    let hello = follower.hello().await;
    assert_eq!(hello.agent, Some(AgentId(9)));
    follower.send(6, vec![follower.welcome(1)]).await;
    // What is not confirmed is told to the new leader.
    assert_eq!(status(&mut follower).await, (100, 1, TaskState::Running));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_brought_by_ticket() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new();
    let mut master = Master::start().await;
    let agent = Agent::start(dir.path(), &node, &[&master.address], 1);
    master.hello().await;
    master.send(5, vec![master.welcome(0), master.welcome(0), launch(1, 100)]).await;
    master.hello().await;
    status(&mut master).await;
    node.write_stdout(LaunchId(100), b"hello, world");
    node.exit(LaunchId(100), 0);
    assert_eq!(status(&mut master).await, (100, 2, TaskState::Finished));
    let open = |ticket| AgentOrder::OpenData {
        ticket: [ticket; 16],
        principal: "me".into(),
        action: DataAction::ReadLogs,
        launch: LaunchId(100),
        expires_ms: 10_000,
    };
    let request = |launch_id| pb::DataRequest {
        launch_id,
        stream: pb::Stream::Stdout.into(),
        offset: 7,
        limit: 0,
        follow: true,
        ask: None,
    };
    master.send(5, vec![open(1)]).await;
    let chunks = master.data([1; 16], request(100)).await;
    assert_eq!(chunks.iter().flat_map(|c| c.data.to_vec()).collect::<Vec<u8>>(), b"world");
    assert!(chunks.last().unwrap().end);

    // A ticket is for one launch only.
    master.send(5, vec![open(2)]).await;
    let chunks = master.data([2; 16], request(101)).await;
    assert_eq!((chunks.len(), chunks[0].error.is_empty(), chunks[0].data.len()), (1, false, 0));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_ends_the_daemon_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new();
    let mut master = Master::start().await;
    let agent = Agent::start(dir.path(), &node, &[&master.address], 1);
    master.hello().await;
    master.send(5, vec![master.welcome(0), master.welcome(0), launch(1, 100)]).await;
    master.hello().await;
    status(&mut master).await;
    agent.stop().await;

    let mut other = Master::start().await;
    let agent = Agent::start(dir.path(), &node, &[&other.address], 1);
    other.hello().await;
    other.send(9, vec![other.welcome_of(proffer_types::ClusterId([1; 16]))]).await;
    let error = agent.driver.await.unwrap().unwrap_err().to_string();
    assert!(error.contains(&CLUSTER.to_string()) && error.contains("--work-dir"), "{error}");
    assert_eq!(node.running(), [LaunchId(100)]);
}
