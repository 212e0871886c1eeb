//! An executor on the agent's socket, by the SDK and by hand.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use proffer_client::executor::{Ended, Executor, ExecutorTask, Handle as Executing, Status, run_at};
use proffer_types::ExecutorId;
use proffer_types::container::ExecutorSpec;
use proffer_wire::executor::v1 as exec;
use proffer_wire::executor::v1::executor_service_client::ExecutorServiceClient;
use proffer_wire::status::Problem;
use tonic::transport::{Channel, Endpoint};

use super::*;

/// The fake containerizer's socket of an executor, removed with the test.
struct Socket(PathBuf);

impl Socket {
    fn of(node: &Node, launch: u64) -> Self {
        Self(Fake::new(node).executor_socket(LaunchId(launch), InstanceId(0)))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn executor(seq: u64, launch_id: u64) -> AgentOrder {
    let AgentOrder::Launch(mut order) = launch(seq, launch_id) else { unreachable!("a launch") };
    order.kind = LaunchKind::Executor(ExecutorId::new("ex").unwrap());
    AgentOrder::Launch(order)
}

fn task(seq: u64, launch_id: u64, executor: u64) -> AgentOrder {
    let AgentOrder::Launch(mut order) = launch(seq, launch_id) else { unreachable!("a launch") };
    order.kind = LaunchKind::TaskOf(LaunchId(executor));
    let of = ExecutorSpec { id: ExecutorId::new("ex").unwrap(), spec: order.spec.clone() };
    let resources = order.resources.clone();
    let (executor, data) = (Some(of), b"work".to_vec());
    order.spec = Arc::new(TaskSpec { executor, data, resources, ..TaskSpec::default() });
    AgentOrder::Launch(order)
}

/// Says that each task runs; one that is killed was killed; a message finishes all.
#[derive(Default)]
struct Patient {
    running: Vec<LaunchId>,
}

impl Executor for Patient {
    fn on_launch(&mut self, handle: &Executing, tasks: Vec<ExecutorTask>) {
        for task in tasks {
            assert_eq!(task.data, b"work");
            assert_eq!(task.env["PROFFER_TASK_ID"], "task");
            self.running.push(task.launch);
            say(handle, task.launch, TaskState::Running);
        }
    }

    fn on_kill(&mut self, handle: &Executing, launch: LaunchId, _: Duration) {
        self.running.retain(|running| *running != launch);
        say(handle, launch, TaskState::Killed);
    }

    fn on_message(&mut self, handle: &Executing, data: Vec<u8>) {
        for launch in self.running.drain(..) {
            say(handle, launch, TaskState::Finished);
        }
        let handle = handle.clone();
        tokio::spawn(async move { handle.send_message(data).await.unwrap() });
    }

    fn on_shutdown(&mut self, handle: &Executing, _: Duration) {
        handle.stop();
    }
}

fn say(handle: &Executing, launch: LaunchId, state: TaskState) {
    let handle = handle.clone();
    tokio::spawn(async move { handle.update(launch, Status::new(state)).await });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executor_runs_tasks_over_a_restart_of_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new();
    let socket = Socket::of(&node, 100);
    let mut master = Master::start().await;
    let agent = Agent::start(dir.path(), &node, &[&master.address], 1);
    master.hello().await;
    master.send(5, vec![master.welcome(0), master.welcome(0), executor(1, 100), task(2, 200, 100)]).await;
    master.hello().await;
    assert_eq!(status(&mut master).await, (100, 1, TaskState::Starting));
    let spec = node.spec(LaunchId(100)).unwrap();
    assert!(spec.supervision.executor);
    assert!(spec.env.contains(&("PROFFER_EXECUTOR_ID".into(), "ex".into())));
    let path = socket.0.to_string_lossy().into_owned();
    assert!(spec.env.contains(&("PROFFER_EXECUTOR_SOCKET".into(), path)));

    let at = socket.0.clone();
    let running = tokio::spawn(async move { run_at(&at, Patient::default()).await });
    assert_eq!(status(&mut master).await, (100, 2, TaskState::Running));
    assert_eq!(status(&mut master).await, (200, 1, TaskState::Running));
    let finish = |data: &[u8]| AgentOrder::Message { launch: LaunchId(100), data: data.into() };
    master.send(5, vec![finish(b"one")]).await;
    let mut said = [master.report().await, master.report().await];
    said.sort_by_key(|report| matches!(report, AgentReport::Message { .. }));
    assert!(matches!(&said[0], AgentReport::Status { launch, .. } if launch.0 == 200));
    assert_eq!(said[1], AgentReport::Message { launch: LaunchId(100), data: b"one".into() });

    // The agent is gone for a while, and comes back with more to do.
    agent.kill().await;
    let agent = Agent::start(dir.path(), &node, &[&master.address], 1);
    master.hello().await;
    master.send(5, vec![master.welcome(2), task(3, 201, 100), task(4, 202, 100)]).await;
    let mut running_now = Vec::new();
    while running_now.len() < 2 {
        let (launch, _, state) = status(&mut master).await;
        running_now.extend((launch > 200 && state == TaskState::Running).then_some(launch));
    }
    let kill = |seq, launch| AgentOrder::Kill {
        agent_seq: seq,
        launch: LaunchId(launch),
        grace_ms: 60_000,
        reason: Reason::KillRequested,
    };
    master.send(5, vec![kill(5, 201)]).await;
    assert_eq!(status(&mut master).await, (201, 2, TaskState::Killing));
    assert_eq!(status(&mut master).await, (201, 3, TaskState::Killed));
    // It is shut down: it stops, and its container ends.
    master.send(5, vec![kill(6, 100)]).await;
    assert_eq!(status(&mut master).await, (100, 3, TaskState::Killing));
    assert_eq!(running.await.unwrap(), Ok(()));
    node.exit(LaunchId(100), 0);
    assert_eq!(status(&mut master).await, (202, 2, TaskState::Failed));
    assert_eq!(status(&mut master).await, (100, 4, TaskState::Finished));
    agent.stop().await;
}

async fn client(socket: &Socket) -> ExecutorServiceClient<Channel> {
    let path = socket.0.clone();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let mut tries = 0;
    loop {
        let endpoint = Endpoint::from_static("http://agent");
        match endpoint.connect_with_connector(connector.clone()).await {
            Ok(channel) => return ExecutorServiceClient::new(channel),
            Err(error) if tries > 1_000 => panic!("no socket: {error}"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn running(launch_id: u64, seq: u32) -> exec::Status {
    exec::Status { launch_id, seq, state: TaskState::Running.number().into(), ..exec::Status::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_executor_may_not_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new();
    let socket = Socket::of(&node, 101);
    let mut master = Master::start().await;
    let agent = Agent::start(dir.path(), &node, &[&master.address], 1);
    master.hello().await;
    master.send(5, vec![master.welcome(0), master.welcome(0), executor(1, 101), task(2, 210, 101)]).await;
    master.hello().await;
    assert_eq!(status(&mut master).await, (101, 1, TaskState::Starting));
    let mut client = client(&socket).await;
    let mut events = client.subscribe(exec::SubscribeRequest::default()).await.unwrap().into_inner();
    assert_eq!(status(&mut master).await, (101, 2, TaskState::Running));
    let update = |statuses| exec::UpdateRequest { statuses };
    client.update(update(vec![running(210, 1)])).await.unwrap();
    assert_eq!(status(&mut master).await, (210, 1, TaskState::Running));

    // A flood: what is too much is refused and said to be, the rest arrives, and none of it waits anywhere.
    let mut refused = 0;
    let mut seq = 1;
    while refused < 3 {
        let statuses = (0..1_000).map(|n| running(210, seq + 1 + n)).collect();
        match client.update(update(statuses)).await {
            Ok(_) => seq += 1_000,
            Err(status) => {
                let problem = Problem::from_status(&status);
                assert!(matches!(problem, Problem::Busy { retry_ms: 1.., .. }), "{problem:?}");
                refused += 1;
            }
        }
    }
    assert!(seq > 1_000, "a good part was taken");
    let message = || exec::SendMessageRequest { data: vec![0; 64 << 10].into() };
    while client.send_message(message()).await.is_ok() {}
    let one_more = exec::SendMessageRequest { data: vec![0; (64 << 10) + 1].into() };
    assert_eq!(client.send_message(one_more).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let large = update(vec![exec::Status { message: "x".repeat(300 << 10), ..running(210, seq + 1) }]);
    assert_eq!(client.update(large).await.unwrap_err().code(), tonic::Code::OutOfRange);
    let held = agent.view().await.launches;
    assert!(held.iter().all(|launch| launch.unconfirmed <= 8), "{held:?}");

    // A lie: it is told so, ended, and hears nothing more.
    let lie = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let refused = client.update(update(vec![running(999, 1)])).await.unwrap_err();
            if !matches!(Problem::from_status(&refused), Problem::Busy { .. }) {
                break refused;
            }
            // Between two tries, not instead of one.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let lie = lie.await.expect("what came before is settled");
    assert!(lie.message().contains("launch 999"), "{lie}");
    let mut told = Vec::new();
    while let Some(events) = events.message().await.unwrap() {
        told.extend(events.events.into_iter().filter_map(|event| event.event));
    }
    assert!(matches!(told.first(), Some(exec::event::Event::Subscribed(_))));
    assert!(matches!(told.last(), Some(exec::event::Event::Error(_))), "{told:?}");
    let over = run_at(&socket.0, Patient::default()).await;
    assert_eq!(over, Err(Ended::Ending));
    node.exit(LaunchId(101), 0);
    let ends = async {
        loop {
            if let AgentReport::Status { launch, status } = master.report().await
                && status.state.is_terminal()
            {
                return (launch.0, status.reason);
            }
        }
    };
    assert_eq!(ends.await, (210, Reason::ExecutorMisbehaved));
    agent.stop().await;
}
