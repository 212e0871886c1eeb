//! Frameworks: sessions, failover, completion.

use proffer_broker::Lost;
use proffer_types::call::Call;
use proffer_types::command::{Ack, AdminId, CallId, Rejection};
use proffer_types::event::{AgentOrder, FrameworkEvent, Refused, StreamEnd};
use proffer_types::{FrameworkInfo, FrameworkState, Reason, RequestId, Role, TaskId, TaskState};

use crate::harness::{Harness, TestFramework};

#[test]
fn a_framework_that_stays_away_is_completed_and_its_tasks_end() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let agent = h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&framework).remove(0);
    let launch = h.launch(&mut framework, &offer, "t", "cpus:1;mem:1GiB");
    h.status(&agent, launch, 1, TaskState::Running);
    h.tell(Call::SubscriberGone { connection: framework.connection });
    let state = h.registry.framework(framework.id).expect("the framework").state;
    assert!(matches!(state, FrameworkState::Disconnected { .. }));
    for _ in 0..5 {
        h.pass(12_000);
        h.tell(Call::AgentAlive { connection: agent.connection });
    }
    h.pass(100);
    assert!(h.registry.framework(framework.id).expect("the framework").is_completed());
    let orders = h.orders(agent.connection);
    assert!(
        orders.iter().any(|o| matches!(o, AgentOrder::Kill { reason: Reason::FrameworkRemoved, .. })),
        "{orders:?}"
    );
    assert_eq!(h.registry.agent(agent.id).expect("the agent").used.cpus_milli(), 1_000, "it still runs");
    h.status(&agent, launch, 2, TaskState::Killed);
    assert!(h.registry.agent(agent.id).expect("the agent").used.is_empty());
    assert!(h.registry.task(launch).is_none(), "the cluster acknowledges for it");
}

#[test]
fn a_framework_that_resumes_in_time_keeps_its_tasks_and_gets_what_it_missed() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let agent = h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&framework).remove(0);
    let launch = h.launch(&mut framework, &offer, "t", "cpus:1;mem:1GiB");
    h.tell(Call::SubscriberGone { connection: framework.connection });
    h.status(&agent, launch, 1, TaskState::Finished);
    framework.connection = h.connection();
    let reply = h.call(framework.subscribe(Some(framework.id), Some(framework.session)));
    assert!(h.answers[&reply].is_ok());
    let events = h.take_events(&framework);
    assert!(matches!(events[0], FrameworkEvent::Subscribed { last_seq: 1, .. }), "{events:?}");
    assert_eq!(h.registry.task(launch).expect("the task").pending.len(), 1, "it waits to be acknowledged");
    h.pass(10_000);
    assert_eq!(h.updates(&framework).len(), 1);
}

#[test]
fn a_new_leader_waits_for_frameworks_before_their_timeout_begins() {
    let mut h = Harness::new();
    let framework = h.framework_with(&["a"], |info| info.failover_timeout_ms = 0);
    h.new_leader();
    h.pass(74_000);
    assert_eq!(h.registry.framework(framework.id).expect("the framework").state, FrameworkState::Connected);
    h.pass(2_000);
    assert!(h.registry.framework(framework.id).expect("the framework").is_completed());
}

#[test]
fn a_subscriber_that_left_before_its_session_opened_counts_as_gone() {
    let mut h = Harness::new();
    let first = h.framework(&["a"]);
    h.hold = true;
    let mut second = h.framework_held(&["b"]);
    h.tell(Call::SubscriberGone { connection: second.connection });
    h.hold = false;
    h.settle();
    let record = h.registry.frameworks().find(|f| f.id != first.id).expect("the second framework");
    assert!(matches!(record.state, FrameworkState::Disconnected { .. }));
    second.id = record.id;
}

#[test]
fn kill_and_teardown() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let agent = h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&framework).remove(0);
    let launch = h.launch(&mut framework, &offer, "t", "cpus:1;mem:1GiB");
    h.orders(agent.connection);
    let call = framework.call_id();
    let reply = h.call(Call::Kill { call, task: TaskId::new("nobody").expect("a name"), grace_ms: None });
    assert!(matches!(h.answers[&reply], Err(Refused::NotFound { .. })));
    let call = framework.call_id();
    let reply = h.call(Call::Kill { call, task: TaskId::new("t").expect("a name"), grace_ms: Some(1_000) });
    assert!(h.answers[&reply].is_ok());
    let orders = h.orders(agent.connection);
    let kill = AgentOrder::Kill { agent_seq: 2, launch, grace_ms: 1_000, reason: Reason::KillRequested };
    assert_eq!(orders, [kill]);

    let call = framework.call_id();
    h.call(Call::Teardown { call });
    assert_eq!(h.streams[&framework.connection].end, Some(StreamEnd::FrameworkCompleted));
    let call = framework.call_id();
    let reply = h.call(Call::Teardown { call });
    assert_eq!(h.answers[&reply], Err(Refused::Rejected(Rejection::FrameworkCompleted)));
}

#[test]
fn reconciliation_says_what_is_known_and_what_is_not() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    h.agent("cpus:4;mem:4GiB");
    let offer = h.offers(&framework).remove(0);
    h.launch(&mut framework, &offer, "t", "cpus:1;mem:1GiB");
    let tasks = ["t", "u"].map(|name| TaskId::new(name).expect("a name")).to_vec();
    h.call(Call::Reconcile { framework: framework.id, session: framework.session, tasks });
    let states: Vec<_> = h.updates(&framework).into_iter().map(|u| u.status.map(|s| s.state)).collect();
    assert_eq!(states, [Some(TaskState::Staging), None]);
}

/// The end of the old stream is on its way through the log when the framework is back.
#[test]
fn a_quick_return_is_not_undone_by_the_end_before_it() {
    let mut h = Harness::new();
    let mut fw = h.framework(&["*"]);
    h.hold = true;
    h.tell(Call::SubscriberGone { connection: fw.connection });
    fw.connection = h.connection();
    h.call(fw.subscribe(Some(fw.id), Some(fw.session)));
    h.hold = false;
    h.settle();
    h.subscribed(&mut fw);
    assert_eq!(h.registry.framework(fw.id).unwrap().state, FrameworkState::Connected);
    h.pass(10 * 60_000);
    assert_eq!(h.registry.framework(fw.id).unwrap().state, FrameworkState::Connected);
}

#[test]
fn a_new_leader_does_not_give_up_on_a_framework_that_is_just_coming() {
    let mut h = Harness::new();
    let mut fw = h.framework_with(&["*"], |info| info.failover_timeout_ms = 0);
    h.new_leader();
    h.pass(74_999);
    h.hold = true;
    fw.connection = h.connection();
    h.call(fw.subscribe(Some(fw.id), Some(fw.session)));
    h.pass(10);
    h.hold = false;
    h.settle();
    h.subscribed(&mut fw);
    h.pass(60_000);
    assert_eq!(h.registry.framework(fw.id).unwrap().state, FrameworkState::Connected);
}

#[test]
fn a_lost_disconnect_is_proposed_again() {
    let mut h = Harness::new();
    let fw = h.framework(&["*"]);
    h.hold = true;
    h.tell(Call::SubscriberGone { connection: fw.connection });
    h.lose_one(Lost::Failed);
    h.hold = false;
    h.pass(2_000);
    assert!(matches!(h.registry.framework(fw.id).unwrap().state, FrameworkState::Disconnected { .. }));
    // The completion may be lost just the same.
    h.hold = true;
    h.pass(60_000);
    while !h.held.is_empty() {
        h.lose_one(Lost::Failed);
    }
    h.hold = false;
    h.pass(2_000);
    assert!(h.registry.framework(fw.id).unwrap().is_completed());
}

#[test]
fn a_session_is_fenced_though_its_successor_left_before_it_opened() {
    let mut h = Harness::new();
    let agent = h.agent("cpus:1;mem:1GiB");
    let fw = h.framework(&["*"]);
    h.hold = true;
    let connection = h.connection();
    let next = fw.successor(connection);
    h.call(next.subscribe(Some(fw.id), None));
    h.tell(Call::SubscriberGone { connection });
    h.hold = false;
    h.settle();
    assert_eq!(h.streams[&fw.connection].end, Some(StreamEnd::SessionFenced));
    assert!(h.broker.offers().next().is_none(), "{:?}", agent.id);
}

#[test]
fn a_repetition_with_other_content_is_refused_while_the_first_is_on_its_way() {
    let mut h = Harness::new();
    h.agent("cpus:4;mem:4GiB");
    let mut fw = h.framework(&["*"]);
    let offer = h.offers(&fw).remove(0);
    h.launch(&mut fw, &offer, "a", "cpus:1");
    h.hold = true;
    let kill = |call, task| Call::Kill { call, task: TaskId::new(task).unwrap(), grace_ms: None };
    let call = fw.call_id();
    let first = h.call(kill(call, "a"));
    let same = h.call(kill(call, "a"));
    let other = h.call(kill(CallId { content: call.content + 1, ..call }, "a"));
    assert_eq!(h.answers[&other], Err(Refused::Rejected(Rejection::ContentDiffers)));
    h.hold = false;
    h.settle();
    assert!(h.answers[&first].is_ok());
    assert_eq!(h.answers[&first], h.answers[&same]);
}

#[test]
fn a_repeated_teardown_is_answered_from_what_is_stored() {
    let mut h = Harness::new();
    let mut fw = h.framework(&["*"]);
    let call = fw.call_id();
    let first = h.call(Call::Teardown { call });
    let again = h.call(Call::Teardown { call });
    assert!(h.answers[&again].is_ok(), "{:?}", h.answers[&again]);
    assert_eq!(h.answers[&first], h.answers[&again]);
}

#[test]
fn a_repeated_kill_of_an_operator_is_answered_after_the_task_is_gone() {
    let mut h = Harness::new();
    let agent = h.agent("cpus:4;mem:4GiB");
    let mut fw = h.framework(&["*"]);
    let offer = h.offers(&fw).remove(0);
    let launch = h.launch(&mut fw, &offer, "a", "cpus:1");
    let kill = Call::AdminKill {
        call: AdminId { request: RequestId(9), time: h.registry.time() },
        framework: fw.id,
        task: TaskId::new("a").unwrap(),
        grace_ms: None,
    };
    let first = h.call(kill.clone());
    h.status(&agent, launch, 1, TaskState::Killed);
    let acks = vec![Ack { launch, master_seq: 0, task_seq: 1 }];
    let call = fw.call_id();
    h.call(Call::Acknowledge { call, acks });
    assert!(h.registry.task(launch).is_none());
    let again = h.call(kill);
    assert!(h.answers[&again].is_ok(), "{:?}", h.answers[&again]);
    assert_eq!(h.answers[&first], h.answers[&again]);
}

/// What a resumed session says of itself would otherwise be ignored in silence.
#[test]
fn a_session_is_resumed_as_it_was_opened() {
    let mut h = Harness::new();
    let mut fw = h.framework(&["a"]);
    fw.info.roles = vec![Role::new("b").unwrap()];
    fw.connection = h.connection();
    let resumed = h.call(fw.subscribe(Some(fw.id), Some(fw.session)));
    assert!(matches!(&h.answers[&resumed], Err(Refused::Invalid { field, .. }) if field == "info"));
    let next = fw.successor(fw.connection);
    let opened = h.call(next.subscribe(Some(fw.id), None));
    assert!(h.answers[&opened].is_ok());
    assert_eq!(h.registry.framework(fw.id).unwrap().info.roles, fw.info.roles);
}

#[test]
fn a_role_that_is_left_loses_its_offers_and_no_other_does() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a", "b", "c"]);
    let TestFramework { id, session, .. } = framework;
    let c = vec![Role::new("c").expect("c")];
    h.call(Call::Suppress { framework: id, session, roles: c });
    for _ in 0..2 {
        h.agent("cpus:4;mem:4GiB");
    }
    let offers = h.offers(&framework);
    let of = |role: &str| offers.iter().find(|o| o.role.as_str() == role).map(|o| o.id).expect("an offer");
    let (a, b) = (of("a"), of("b"));
    framework.info.roles = ["b", "c"].map(|role| Role::new(role).expect(role)).into();
    framework.info.name = "renamed".into();
    let call = framework.call_id();
    let reply = h.call(Call::UpdateFramework { call, info: framework.info.clone() });
    assert!(h.answers[&reply].is_ok());
    assert_eq!(h.registry.framework(id).expect("the framework").info, framework.info);
    let events = h.take_events(&framework);
    assert_eq!(events[0], FrameworkEvent::Rescind(vec![a]), "{events:?}");
    assert!(h.broker.offers().any(|live| live.offer.id == b));
    // What was rescinded is offered again, but not in the role that is suppressed still.
    h.pass(200);
    let roles: Vec<String> = h.broker.offers().map(|live| live.offer.role.to_string()).collect();
    assert_eq!(roles, ["b", "b"]);
    // Whoever resumes brings what was said last.
    framework.connection = h.connection();
    let reply = h.call(framework.subscribe(Some(id), Some(session)));
    assert!(h.answers[&reply].is_ok(), "{:?}", h.answers[&reply]);
}

#[test]
fn the_user_of_a_framework_stays() {
    let mut h = Harness::new();
    let mut framework = h.framework(&["a"]);
    let info = FrameworkInfo { user: "root".into(), ..framework.info.clone() };
    let call = framework.call_id();
    let reply = h.call(Call::UpdateFramework { call, info });
    let field = match &h.answers[&reply] {
        Err(Refused::Invalid { field, .. }) => field.as_str(),
        other => panic!("{other:?}"),
    };
    assert_eq!(field, "info.user");
}
