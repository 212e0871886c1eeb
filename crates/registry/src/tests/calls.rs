//! Calls: executed once, answered as often as they are repeated.

use super::*;
use proffer_types::limits::{ADMIN_ANSWER_MS, OPEN_CALLS_MAX};

fn repeated(changes: &[Change]) -> Option<&Answer> {
    match changes {
        [Change::Answered { answer, repeated: true }] => Some(answer),
        _ => None,
    }
}

#[test]
fn a_repeated_call_is_answered_and_not_executed() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let call = lab.call(framework);
    let parts = vec![part(agent, "cpus:2", vec![many(spec("cpus:1"), &["a", "b", "a"])])];
    let accept = Command::Accept { call, atomic: false, parts };
    let first = answer(&lab.run(accept.clone())).clone();
    assert_eq!(first.index, lab.index);
    lab.lose(agent);
    let changes = lab.run(accept.clone());
    assert_eq!(repeated(&changes), Some(&first));
    assert_eq!(lab.registry.answer(call.session, call.seq), Some(&first));
    let Command::Accept { call, atomic, parts } = accept else { unreachable!() };
    let other = Command::Accept { call: CallId { content: 1, ..call }, atomic, parts };
    assert_eq!(rejected(&lab.run(other)), Rejection::ContentDiffers);
    assert_eq!(lab.registry.tasks_len(), 2);
}

#[test]
fn a_refusal_is_an_answer_too() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let call = lab.call(framework);
    let kill = Command::Kill { call, task: task_id("a"), grace_ms: None };
    assert_eq!(rejected(&lab.run(kill.clone())), Rejection::UnknownTask);
    lab.launch(framework, agent, "a", "cpus:1");
    let changes = lab.run(kill);
    assert_eq!(repeated(&changes).and_then(|a| a.rejected), Some(Rejection::UnknownTask));
}

#[test]
fn answers_that_were_seen_are_dropped_and_late_copies_refused() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let session = lab.session(framework);
    let call = |seq, done_below| CallId { framework, session, seq, done_below, content: seq };
    let accept = |call, name: &str| {
        let parts = vec![part(agent, "cpus:1", vec![one(spec("cpus:1"), name)])];
        Command::Accept { call, atomic: false, parts }
    };
    lab.run(accept(call(1, 0), "a"));
    lab.run(accept(call(2, 0), "b"));
    lab.run(accept(call(3, 2), "c"));
    assert!(lab.registry.answer(session, 1).is_none());
    assert!(lab.registry.answer(session, 2).is_some());
    assert_eq!(rejected(&lab.run(accept(call(1, 0), "d"))), Rejection::Stale);
    assert_eq!(lab.registry.last_seq(session), 3);
    // Nobody has seen the answer of the call he makes.
    let changes = lab.run(accept(call(2, u64::MAX), "b"));
    assert!(repeated(&changes).is_some());
    let changes = lab.run(accept(call(4, u64::MAX), "d"));
    assert_eq!(answer(&changes).outcomes, [None]);
    assert!(lab.registry.answer(session, 4).is_some() && lab.registry.answer(session, 3).is_none());
    assert_eq!(lab.registry.tasks_len(), 4);
    // Whoever resumes with nothing but the session goes on above what was used.
    let nothing = call(0, 90);
    lab.run(Command::Acknowledge { call: nothing, acks: Vec::new() });
    assert_eq!(lab.registry.last_seq(session), 89);
}

#[test]
fn open_calls_are_limited_and_none_need_no_number() {
    let mut lab = Lab::default();
    let framework = lab.framework();
    let session = lab.session(framework);
    let kill = |seq, done_below| Command::Kill {
        call: CallId { framework, session, seq, done_below, content: 0 },
        task: task_id("x"),
        grace_ms: None,
    };
    for seq in 1..=OPEN_CALLS_MAX as u64 {
        assert_eq!(rejected(&lab.run(kill(seq, 0))), Rejection::UnknownTask);
    }
    assert_eq!(rejected(&lab.run(kill(5000, 0))), Rejection::TooManyOpen);
    assert_eq!(rejected(&lab.run(kill(0, 0))), Rejection::UnknownTask);
    assert!(repeated(&lab.run(kill(7, 0))).is_some());
    assert_eq!(rejected(&lab.run(kill(5000, 10))), Rejection::UnknownTask);
    assert!(lab.registry.answer(session, 0).is_none());
}

#[test]
fn a_fenced_session_is_refused_whatever_it_asks() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let old = lab.call(framework);
    let kill = Command::Kill { call: old, task: task_id("a"), grace_ms: None };
    lab.run(kill.clone());
    let origin = lab.fresh();
    lab.run(Command::OpenSession { framework: Some(framework), origin, info: framework_info() });
    assert!(lab.registry.answer(old.session, old.seq).is_none());
    let parts = vec![part(agent, "cpus:1", vec![one(spec("cpus:1"), "b")])];
    let acks = vec![Ack { launch, master_seq: 9, task_seq: 9 }];
    let calls = [
        kill,
        Command::Accept { call: old, atomic: false, parts },
        Command::Acknowledge { call: old, acks },
        Command::Teardown { call: old },
    ];
    for command in calls {
        assert_eq!(rejected(&lab.run(command)), Rejection::SessionFenced);
    }
    let nobody = CallId { framework: FrameworkId(99), ..old };
    assert_eq!(rejected(&lab.run(Command::Teardown { call: nobody })), Rejection::UnknownFramework);
    assert_eq!(lab.task(launch).pending.len(), 1);
}

#[test]
fn a_kill_is_recorded_until_the_end_and_only_gets_shorter() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let order = |lab: &Lab| lab.task(launch).kill.map(|k| (k.grace_ms, k.agent_seq, k.reason));
    let changes = lab.kill(framework, "a", None);
    assert_eq!(changes[0], Change::KillOrdered { launch, agent });
    assert_eq!(order(&lab), Some((5_000, 2, Reason::KillRequested)));
    for longer in [None, Some(5_000), Some(60_000)] {
        assert_eq!(lab.kill(framework, "a", longer).len(), 1);
    }
    let time = lab.registry.time();
    let admin = Command::AdminKill {
        call: AdminId { request: RequestId(1), time },
        framework,
        task: task_id("a"),
        grace_ms: Some(0),
    };
    assert_eq!(lab.run(admin)[0], Change::KillOrdered { launch, agent });
    assert_eq!(order(&lab), Some((0, 3, Reason::KillRequested)));
    lab.report(launch, 2, TaskState::Killed);
    assert_eq!(answer(&lab.kill(framework, "a", Some(0))).rejected, None);
    assert_eq!(order(&lab), Some((0, 3, Reason::KillRequested)));
    assert_eq!(rejected(&lab.kill(framework, "nothing", None)), Rejection::UnknownTask);
}

#[test]
fn a_kill_of_a_task_that_was_not_sent_yet_follows_its_launch() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.launch(framework, agent, "a", "cpus:1");
    lab.kill(framework, "a", None);
    assert_eq!(
        lab.registry.orders_for(agent, 0),
        [Order::Launch { agent_seq: 1, launch }, Order::Kill { agent_seq: 2, launch, grace_ms: 5_000 },]
    );
}

#[test]
fn acknowledgements_are_cumulative_and_only_the_owners_count() {
    let mut lab = Lab::default();
    let (agent, framework, stranger) = (lab.agent("cpus:4"), lab.framework(), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    lab.lose(agent);
    lab.attach(agent);
    assert_eq!(lab.task(launch).pending.len(), 3);
    let call = lab.call(stranger);
    let acks = vec![
        Ack { launch, master_seq: 9, task_seq: 9 },
        Ack { launch: LaunchId(77), master_seq: 0, task_seq: 0 },
    ];
    assert_eq!(lab.run(Command::Acknowledge { call, acks }).len(), 1);
    assert_eq!(lab.task(launch).pending.len(), 3);
    let changes = lab.ack(launch, 1, 1);
    assert_eq!(changes[0], Change::Acknowledged { launch, framework });
    assert_eq!(lab.task(launch).pending.iter().map(Status::position).collect::<Vec<_>>(), [(2, 1)]);
    // One that comes late changes nothing; one that is ahead says no more than all there is.
    assert_eq!(lab.ack(launch, 0, 1).len(), 1);
    lab.ack(launch, u32::MAX, u32::MAX);
    assert_eq!(lab.task(launch).pending, []);
    lab.report(launch, 2, TaskState::Killing);
    lab.report(launch, 3, TaskState::Finished);
    assert_eq!(lab.task(launch).pending.len(), 2);
    // That it has ended is not acknowledged by what came before.
    lab.ack(launch, 2, 2);
    assert_eq!(lab.task(launch).pending.len(), 1);
    let changes = lab.ack(launch, 2, 3);
    assert_eq!(changes[1], Change::TaskRetired { launch, framework });
    assert!(lab.registry.task(launch).is_none());
    let history: Vec<(LaunchId, TaskState)> =
        lab.registry.history_of_framework(framework).map(|t| (t.launch_id, t.status.state)).collect();
    assert_eq!(history, [(launch, TaskState::Finished)]);
    assert_eq!(lab.registry.history_of_framework(stranger).count(), 0);
}

#[test]
fn an_operators_request_is_executed_once() {
    let mut lab = Lab { time: 1_000_000, ..Lab::default() };
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let call = AdminId { request: RequestId(5), time: ClusterTime(1_000_000) };
    let kill =
        |call, task: &str| Command::AdminKill { call, framework, task: task_id(task), grace_ms: Some(1) };
    let first = answer(&lab.run(kill(call, "a"))).clone();
    assert_eq!(
        (first.rejected, lab.task(launch).kill.map(|k| k.reason)),
        (None, Some(Reason::KilledByOperator))
    );
    lab.time += ADMIN_ANSWER_MS;
    let changes = lab.run(kill(call, "a"));
    assert_eq!(repeated(&changes), Some(&first));
    assert_eq!(lab.registry.admin_answer(RequestId(5)), Some(&first));
    lab.time += 1;
    assert_eq!(rejected(&lab.run(kill(call, "a"))), Rejection::TooOld);
    assert_eq!(lab.registry.admin_answer(RequestId(5)), None);
    // From further ahead than any clock of this cluster has been told.
    let future = AdminId { request: RequestId(6), time: ClusterTime(u64::MAX) };
    assert_eq!(rejected(&lab.run(kill(future, "a"))), Rejection::Stale);
    // Without a number there is no protection, and no age either.
    let bare = AdminId::default();
    assert_eq!(answer(&lab.run(kill(bare, "a"))).rejected, None);
    assert_eq!(rejected(&lab.run(kill(bare, "b"))), Rejection::UnknownTask);
    let elsewhere =
        Command::AdminKill { call: bare, framework: FrameworkId(99), task: task_id("a"), grace_ms: None };
    assert_eq!(rejected(&lab.run(elsewhere)), Rejection::UnknownFramework);
}

#[test]
fn an_answer_of_the_near_future_is_kept_for_as_long_as_it_could_come_again() {
    // The clock of a new leader may lag behind what the old one has told.
    let mut lab = Lab { time: 1_000, ..Lab::default() };
    let call = AdminId { request: RequestId(5), time: ClusterTime(5_000) };
    let teardown = Command::AdminTeardown { call, framework: FrameworkId(99) };
    assert_eq!(rejected(&lab.run(teardown.clone())), Rejection::UnknownFramework);
    lab.time = 5_000 + ADMIN_ANSWER_MS;
    assert!(repeated(&lab.run(teardown.clone())).is_some());
    lab.time += 1;
    assert_eq!(rejected(&lab.run(teardown)), Rejection::TooOld);
}
