//! Executors: messages to and from them, their end, and what their framework hears of it.

use std::sync::Arc;

use proffer_types::call::Call;
use proffer_types::command::{Launch, Operation, Rejection};
use proffer_types::container::ExecutorSpec;
use proffer_types::event::{AgentOrder, FrameworkEvent, LaunchKind, Refused};
use proffer_types::{ExecutorId, LaunchId, Reason, TaskSpec, TaskState};

use crate::harness::{Harness, TestAgent, TestFramework, spec, task};

fn name() -> ExecutorId {
    ExecutorId::new("x").expect("a name")
}

/// Launches a task with a new executor; returns the launches of both, the executor's first.
fn launch(h: &mut Harness, framework: &mut TestFramework) -> (LaunchId, LaunchId) {
    let executor = ExecutorSpec { id: name(), spec: Arc::new(spec("cpus:1;mem:1GiB")) };
    let spec = TaskSpec { argv: Vec::new(), executor: Some(executor), ..spec("cpus:1;mem:1GiB") };
    let launch = Launch { spec: Arc::new(spec), tasks: vec![Ok(task("t"))] };
    let offer = h.offers(framework).remove(0);
    h.call(framework.operate(&[offer.id], vec![Operation::Launch(launch)], 5_000));
    let executor = h.registry.executors().next().expect("it was made").launch_id;
    (executor, h.registry.tasks().next().expect("it was launched").launch_id)
}

fn send(framework: &TestFramework, agent: &TestAgent, executor: ExecutorId) -> Call {
    let TestFramework { id: framework, session, .. } = *framework;
    Call::SendMessage { framework, session, agent: agent.id, executor, data: b"hello".to_vec() }
}

#[test]
fn it_is_sent_before_its_first_task_and_holds_its_own() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let agent = h.agent("cpus:4;mem:4GiB");
    let (executor, task) = launch(&mut h, &mut framework);
    let kinds: Vec<_> = h
        .orders(agent.connection)
        .into_iter()
        .filter_map(|order| match order {
            AgentOrder::Launch(order) => Some((order.launch, order.kind)),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [(executor, LaunchKind::Executor(name())), (task, LaunchKind::TaskOf(executor))]);
    // What is left is offered once the filter is over, and no more than that.
    h.pass(6_000);
    let left: u64 = h.offers(&framework).iter().map(|offer| offer.resources.cpus_milli()).sum();
    assert_eq!(left, 2_000);
}

#[test]
fn messages_go_both_ways_or_are_lost() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let agent = h.agent("cpus:4;mem:4GiB");
    let (executor, task) = launch(&mut h, &mut framework);
    h.orders(agent.connection);
    let reply = h.call(send(&framework, &agent, name()));
    assert!(h.answers[&reply].is_ok());
    let data = b"hello".to_vec();
    assert_eq!(h.orders(agent.connection), [AgentOrder::Message { launch: executor, data: data.clone() }]);
    let unknown = h.call(send(&framework, &agent, ExecutorId::new("y").expect("a name")));
    assert!(matches!(&h.answers[&unknown], Err(Refused::NotFound { .. })), "{:?}", h.answers[&unknown]);

    h.take_events(&framework);
    for launch in [executor, task, LaunchId(99)] {
        h.tell(Call::AgentMessage { connection: agent.connection, launch, data: data.clone() });
    }
    let message = FrameworkEvent::Message { agent: agent.id, executor: name(), data };
    // A task is no executor, and what nobody launched is nothing.
    assert_eq!(h.take_events(&framework), [message]);
    // Nor does an agent speak for what runs on another.
    let other = h.agent("cpus:1;mem:1GiB");
    h.take_events(&framework);
    h.tell(Call::AgentMessage { connection: other.connection, launch: executor, data: vec![] });
    assert_eq!(h.take_events(&framework), []);

    h.tell(Call::AgentGone { connection: agent.connection });
    let away = h.call(send(&framework, &agent, name()));
    assert!(matches!(&h.answers[&away], Err(Refused::Busy { .. })), "{:?}", h.answers[&away]);
}

#[test]
fn its_framework_may_end_it_and_hears_of_its_end() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let agent = h.agent("cpus:4;mem:4GiB");
    let (executor, task) = launch(&mut h, &mut framework);
    h.orders(agent.connection);
    let call = framework.call_id();
    let reply = h.call(Call::ShutdownExecutor { call, agent: agent.id, executor: name() });
    assert!(h.answers[&reply].is_ok());
    let orders = h.orders(agent.connection);
    assert!(
        matches!(orders[..], [AgentOrder::Kill { launch, reason: Reason::KillRequested, .. }] if launch == executor),
        "{orders:?}"
    );
    h.take_events(&framework);
    h.status(&agent, executor, 1, TaskState::Killed);
    let events = h.take_events(&framework);
    assert!(
        matches!(&events[..], [FrameworkEvent::ExecutorEnded { executor, status, .. }, ..]
            if *executor == name() && status.state == TaskState::Killed),
        "{events:?}"
    );
    assert!(!events.iter().any(|e| matches!(e, FrameworkEvent::Update(_))), "no task has ended: {events:?}");
    h.status(&agent, task, 1, TaskState::Killed);
    assert_eq!(h.updates(&framework).len(), 1);
    let call = framework.call_id();
    let again = h.call(Call::ShutdownExecutor { call, agent: agent.id, executor: name() });
    assert!(matches!(&h.answers[&again], Err(Refused::NotFound { .. })), "{:?}", h.answers[&again]);
    let stranger = framework.session;
    framework.session.0 += 1;
    let call = framework.call_id();
    let fenced = h.call(Call::ShutdownExecutor { call, agent: agent.id, executor: name() });
    assert!(matches!(&h.answers[&fenced], Err(Refused::Rejected(Rejection::SessionFenced))));
    framework.session = stranger;
}
