//! Agents: launches reach them, silence is noticed, return is welcome.

use proffer_broker::Lost;
use proffer_types::call::Call;
use proffer_types::event::{AgentOrder, AgentRefusal, FrameworkEvent, StreamEnd};
use proffer_types::{AgentId, AgentState, ClusterId, Epoch, Reason, TaskState};

use crate::harness::Harness;

#[test]
fn one_task_from_offer_to_acknowledgement() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let agent = h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&framework).remove(0);
    let launch = h.launch(&mut framework, &offer, "t", "cpus:1;mem:1GiB");
    let orders = h.orders(agent.connection);
    assert!(
        matches!(orders.as_slice(), [AgentOrder::Launch(order)] if order.launch == launch && order.agent_seq == 1)
    );

    h.status(&agent, launch, 1, TaskState::Running);
    h.status(&agent, launch, 2, TaskState::Finished);
    let confirms = h.orders(agent.connection);
    assert!(confirms.contains(&AgentOrder::Confirm { launch, task_seq: 2 }));
    let updates = h.updates(&framework);
    let states: Vec<_> = updates.iter().map(|u| u.status.as_ref().expect("a status").state).collect();
    assert_eq!(states, [TaskState::Running, TaskState::Finished]);
    assert!(h.registry.agent(agent.id).expect("the agent").used.is_empty());

    // Nobody acknowledges: both come again after ten seconds, and after twenty more.
    h.pass(10_000);
    assert_eq!(h.updates(&framework).len(), 2);
    h.pass(19_999);
    assert_eq!(h.updates(&framework).len(), 0);
    h.pass(1);
    assert_eq!(h.updates(&framework).len(), 2);

    let last = updates[1].status.as_ref().expect("a status").position();
    let ack = proffer_types::command::Ack { launch, master_seq: last.0, task_seq: last.1 };
    let call = framework.call_id();
    h.call(Call::Acknowledge { call, acks: vec![ack] });
    assert!(h.registry.task(launch).is_none());
    assert_eq!(h.registry.history_of_framework(framework.id).count(), 1);
    h.pass(1_000_000);
    assert!(h.updates(&framework).is_empty());
}

#[test]
fn silence_makes_an_agent_unreachable_and_its_return_undoes_it() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let mut agent = h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&framework).remove(0);
    let launch = h.launch(&mut framework, &offer, "t", "cpus:1;mem:1GiB");
    h.status(&agent, launch, 1, TaskState::Running);
    h.pass(74_999);
    assert!(h.registry.agent(agent.id).expect("the agent").is_reachable());
    h.pass(1);
    let record = h.registry.agent(agent.id).expect("the agent");
    assert!(matches!(record.state, AgentState::Unreachable { .. }));
    assert_eq!(record.used.cpus_milli(), 1_000, "nothing is freed");
    assert_eq!(h.streams[&agent.connection].end, Some(StreamEnd::Silent));
    let events = h.take_events(&framework);
    assert!(events.iter().any(|e| matches!(e, FrameworkEvent::Failure { removed: false, .. })));
    let last = events.iter().rev().find_map(|e| match e {
        FrameworkEvent::Update(update) => update.status.as_ref().map(|s| (s.state, s.reason)),
        _ => None,
    });
    assert_eq!(last, Some((TaskState::Unreachable, Reason::AgentLost)));

    // It comes back still holding the task.
    agent.connection = h.connection();
    let held = proffer_types::command::Held {
        launch,
        status: proffer_types::Status {
            task_seq: 1,
            ..proffer_types::Status::new(TaskState::Running, Reason::None, proffer_types::Source::Agent)
        },
    };
    agent.last_seq = 1;
    let connection = agent.connection;
    h.attach_listing(&mut agent, vec![held]);
    assert!(h.registry.agent(agent.id).expect("the agent").is_reachable());
    let orders = h.orders(connection);
    assert!(
        !orders.iter().any(|o| matches!(o, AgentOrder::Kill { .. } | AgentOrder::Forget { .. })),
        "{orders:?}"
    );
    let state = h.registry.task(launch).expect("the task").status.state;
    assert_eq!(state, TaskState::Running);
}

#[test]
fn pings_keep_an_agent_reachable() {
    let mut h = Harness::new();
    let agent = h.agent("cpus:4;mem:4GiB");
    for _ in 0..20 {
        h.pass(15_000);
        assert!(h.orders(agent.connection).iter().any(|order| matches!(order, AgentOrder::Ping { .. })));
        h.tell(Call::AgentAlive { connection: agent.connection });
    }
    assert!(h.registry.agent(agent.id).expect("the agent").is_reachable());
}

#[test]
fn a_launch_that_was_never_delivered_is_sent_at_the_next_attachment() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let mut agent = h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&framework).remove(0);
    h.hold = true;
    h.call(framework.accept(&[offer.id], &[("t", "cpus:1;mem:1GiB")], 0));
    h.tell(Call::AgentGone { connection: agent.connection });
    h.hold = false;
    h.settle();
    assert!(h.orders(agent.connection).iter().all(|order| !matches!(order, AgentOrder::Launch(_))));
    let orders = h.attach(&mut agent);
    assert!(orders.iter().any(|order| matches!(order, AgentOrder::Launch(_))), "{orders:?}");
}

#[test]
fn an_agent_of_nobody_is_told_so() {
    let mut h = Harness::new();
    let mut agent = h.agent("cpus:4;mem:4GiB");
    agent.id = AgentId(999);
    let orders = h.attach(&mut agent);
    assert_eq!(orders, [AgentOrder::Refused(AgentRefusal::UnknownAgent)]);
}

#[test]
fn a_new_leader_counts_silence_from_its_own_beginning() {
    let mut h = Harness::new();
    let mut agent = h.agent("cpus:4;mem:4GiB");
    h.pass(70_000);
    h.tell(Call::AgentAlive { connection: agent.connection });
    h.new_leader();
    assert_eq!(h.streams[&agent.connection].end, Some(StreamEnd::NotLeader));
    h.pass(74_000);
    assert!(h.registry.agent(agent.id).expect("the agent").is_reachable());
    h.attach(&mut agent);
    h.pass(74_000);
    assert!(h.registry.agent(agent.id).expect("the agent").is_reachable());
}

#[test]
fn an_agent_that_came_back_is_watched_again() {
    let mut h = Harness::new();
    let mut agent = h.agent("cpus:4;mem:4GiB");
    h.pass(300_000);
    assert!(!h.registry.agent(agent.id).expect("the agent").is_reachable());
    h.attach(&mut agent);
    assert!(h.registry.agent(agent.id).expect("the agent").is_reachable());
    h.pass(75_000);
    assert!(!h.registry.agent(agent.id).expect("the agent").is_reachable(), "it is silent again");
}

#[test]
fn an_agent_whose_statuses_were_lost_attaches_again() {
    for lost in [Lost::Failed, Lost::Unknown] {
        let mut h = Harness::new();
        let agent = h.agent("cpus:4;mem:4GiB");
        let mut fw = h.framework(&["*"]);
        let offer = h.offers(&fw).remove(0);
        let launch = h.launch(&mut fw, &offer, "a", "cpus:1");
        h.hold = true;
        h.status(&agent, launch, 1, TaskState::Running);
        h.lose_one(lost);
        h.hold = false;
        h.settle();
        assert_eq!(h.streams[&agent.connection].end, Some(StreamEnd::Resync));
    }
}

#[test]
fn an_agent_that_says_hello_twice_at_once_begins_anew() {
    let mut h = Harness::new();
    let mut agent = h.agent("cpus:4;mem:4GiB");
    h.hold = true;
    agent.connection = h.connection();
    let hello = agent.hello(Some(agent.id));
    h.tell(Call::AgentHello { connection: agent.connection, hello: hello.clone() });
    h.tell(Call::AgentHello { connection: agent.connection, hello });
    h.hold = false;
    h.settle();
    assert_eq!(h.streams[&agent.connection].end, Some(StreamEnd::Resync));
}

/// A leader that was stopped for minutes has heard nothing, and is in no position to blame anyone.
#[test]
fn the_leaders_own_absence_is_no_silence() {
    let mut h = Harness::new();
    let agent = h.agent("cpus:4;mem:4GiB");
    h.now += 600_000;
    let nobody = h.connection();
    h.tell(Call::AgentAlive { connection: nobody });
    h.pass(74_000);
    assert!(h.registry.agent(agent.id).unwrap().is_reachable());
    assert_eq!(h.streams[&agent.connection].end, None);
    h.pass(20_000);
    assert!(!h.registry.agent(agent.id).unwrap().is_reachable());
}

#[test]
fn an_agent_of_an_older_cluster_is_told_that_it_is_one() {
    let mut h = Harness::new();
    let agent = h.agent("cpus:4;mem:4GiB");
    let mut hello = agent.hello(Some(agent.id));
    hello.epoch_seen = Epoch { generation: 0, term: 99 };
    hello.cluster = Some(ClusterId([9; 16]));
    let connection = h.connection();
    h.tell(Call::AgentHello { connection, hello });
    assert_eq!(h.orders(connection), [AgentOrder::Refused(AgentRefusal::WrongCluster)]);
}
