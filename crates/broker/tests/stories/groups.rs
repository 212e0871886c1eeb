//! Groups: their launches go to an agent together, whenever they go.

use std::sync::Arc;

use proffer_types::command::{Member, Operation};
use proffer_types::event::{AgentOrder, Group, Reply};
use proffer_types::{LaunchId, TaskState};

use crate::harness::{Harness, TestFramework, spec, task};

fn group(names: &[&str]) -> Operation {
    let member = |name: &&str| Member { spec: Arc::new(spec("cpus:1;mem:1GiB")), task: Ok(task(name)) };
    Operation::LaunchGroup(names.iter().map(member).collect())
}

fn launch(h: &mut Harness, framework: &mut TestFramework, operations: Vec<Operation>) -> LaunchId {
    let offer = h.offers(framework).remove(0);
    let reply = h.call(framework.operate(&[offer.id], operations, 5_000));
    match &h.answers[&reply] {
        Ok(Reply::Accepted(answer)) if answer.outcomes.iter().all(Option::is_none) => answer.first_launch,
        other => panic!("not accepted: {other:?}"),
    }
}

/// The launches of each order that launches.
fn launched(orders: &[AgentOrder]) -> Vec<Vec<u64>> {
    let launches = |order: &AgentOrder| match order {
        AgentOrder::Launch(order) => Some(vec![order.launch.0]),
        AgentOrder::LaunchGroup(orders) => Some(orders.iter().map(|order| order.launch.0).collect()),
        _ => None,
    };
    orders.iter().filter_map(launches).collect()
}

#[test]
fn a_group_is_one_order() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let agent = h.agent("cpus:8;mem:8GiB");
    let first = launch(&mut h, &mut framework, vec![group(&["a", "b"]), group(&["c", "d", "e"])]).0;
    let orders = h.orders(agent.connection);
    assert_eq!(launched(&orders), [vec![first, first + 1], vec![first + 2, first + 3, first + 4]]);
    let AgentOrder::LaunchGroup(members) = &orders[0] else { panic!("{orders:?}") };
    assert!(members.iter().all(|m| m.group == Some(Group { first: LaunchId(first), size: 2 })));
}

#[test]
fn an_agent_that_comes_back_is_sent_the_whole_group() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let mut agent = h.agent("cpus:8;mem:8GiB");
    h.tell(proffer_types::call::Call::AgentGone { connection: agent.connection });
    // Its offers went with it: it comes back, gets an offer out, and leaves before the launch.
    h.attach(&mut agent);
    let offer = h.offers(&framework).pop().expect("an offer");
    h.hold = true;
    h.call(framework.operate(&[offer.id], vec![group(&["a", "b", "c"])], 5_000));
    h.tell(proffer_types::call::Call::AgentGone { connection: agent.connection });
    h.hold = false;
    h.settle();
    assert_eq!(h.registry.tasks().filter(|t| t.status.state == TaskState::Staging).count(), 3);
    let first = h.registry.tasks().next().expect("a task").launch_id.0;
    let orders = h.attach(&mut agent);
    assert_eq!(launched(&orders), [vec![first, first + 1, first + 2]]);
    // It had written the first one down when it died.
    agent.last_seq = 1;
    agent.connection = h.connection();
    let held = proffer_types::command::Held {
        launch: LaunchId(first),
        status: proffer_types::Status::new(
            TaskState::Staging,
            proffer_types::Reason::None,
            proffer_types::Source::Agent,
        ),
    };
    h.attach_listing(&mut agent, vec![held]);
    assert_eq!(launched(&h.orders(agent.connection)), [vec![first, first + 1, first + 2]]);
}
