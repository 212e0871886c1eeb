//! Sessions, absence, completion.

use super::*;
use proffer_types::limits::COMPLETED_FRAMEWORKS_MAX;

fn open(framework: Option<FrameworkId>, origin: u128, info: FrameworkInfo) -> Command {
    Command::OpenSession { framework, origin: RequestId(origin), info }
}

fn ends_with_tasks() -> FrameworkInfo {
    FrameworkInfo { ends_with_tasks: true, failover_timeout_ms: 0, ..framework_info() }
}

#[test]
fn the_same_subscribe_finds_the_same_framework_and_session() {
    let mut lab = Lab::default();
    let first = lab.run(open(None, 8, framework_info()));
    let Change::SessionOpened { framework, session, .. } = first[1] else { panic!("{first:?}") };
    lab.disconnect(framework);
    let again = lab.run(open(None, 8, framework_info()));
    assert_eq!(again, [Change::SessionOpened { framework, session, origin: RequestId(8) }]);
    assert_eq!(lab.fw(framework).state, FrameworkState::Connected);
    assert_eq!(
        lab.registry.framework_by_origin(&Caller::anonymous(), RequestId(8)).map(|f| f.id),
        Some(framework)
    );
    assert_eq!(lab.registry.session_origin(session), Some(RequestId(8)));
    // Somebody else's number, and no number, make new ones.
    let other =
        lab.run_as(Caller { principal: "b".into(), ..Caller::anonymous() }, open(None, 8, framework_info()));
    assert!(matches!(other[0], Change::FrameworkAdded { framework: f } if f != framework));
    for _ in 0..2 {
        assert!(matches!(lab.run(open(None, 0, framework_info()))[0], Change::FrameworkAdded { .. }));
    }
}

#[test]
fn a_new_session_fences_the_old_one() {
    let mut lab = Lab::default();
    let framework = lab.framework();
    let (old, origin) = (lab.session(framework), lab.fw(framework).origin);
    let roles = vec![Role::new("eng").unwrap()];
    let changed = FrameworkInfo { roles: roles.clone(), ..framework_info() };
    let changes = lab.run(open(Some(framework), 9, changed.clone()));
    let session = lab.session(framework);
    assert_eq!(changes, [Change::SessionOpened { framework, session, origin: RequestId(9) }]);
    assert!(session > old);
    assert_eq!(lab.fw(framework).info.roles, roles);
    // The same Subscribe again, and a late copy of the very first one.
    assert_eq!(lab.run(open(Some(framework), 9, changed.clone())), changes);
    assert_eq!(rejected(&lab.run(open(None, origin.0, changed.clone()))), Rejection::SessionFenced);
    assert_eq!(lab.session(framework), session);
    // Without a number every Subscribe opens its own.
    lab.run(open(Some(framework), 0, changed.clone()));
    let third = lab.session(framework);
    lab.run(open(Some(framework), 0, changed));
    assert!(third > session && lab.session(framework) > third);
}

#[test]
fn owner_and_user_do_not_change() {
    let mut lab = Lab::default();
    let framework = lab.framework();
    let other = FrameworkInfo { user: "root".into(), ..framework_info() };
    assert_eq!(rejected(&lab.run(open(Some(framework), 9, other))), Rejection::Immutable);
    let thief = Caller { principal: "thief".into(), ..Caller::anonymous() };
    let changes = lab.run_as(thief, open(Some(framework), 9, framework_info()));
    assert_eq!(rejected(&changes), Rejection::Immutable);
    assert_eq!(
        rejected(&lab.run(open(Some(FrameworkId(99)), 9, framework_info()))),
        Rejection::UnknownFramework
    );
}

#[test]
fn absence_is_counted_from_the_disconnect_of_the_current_session() {
    let mut lab = Lab { time: 100, ..Lab::default() };
    let framework = lab.framework();
    let session = lab.session(framework);
    let old = Command::Disconnect { framework, session: SessionId(1) };
    assert_eq!(rejected(&lab.run(old)), Rejection::Stale);
    assert_eq!(lab.disconnect(framework), [Change::FrameworkDisconnected { framework }]);
    assert_eq!(lab.fw(framework).state, FrameworkState::Disconnected { deadline: ClusterTime(1_100) });
    assert_eq!(rejected(&lab.disconnect(framework)), Rejection::Stale);
    let complete = |session, reason| Command::Complete { framework, session, reason };
    lab.time = 1_099;
    assert_eq!(rejected(&lab.run(complete(session, CompletionReason::FailoverTimeout))), Rejection::Stale);
    lab.time = 1_100;
    assert_eq!(
        rejected(&lab.run(complete(SessionId(1), CompletionReason::FailoverTimeout))),
        Rejection::Stale
    );
    assert_eq!(rejected(&lab.run(complete(session, CompletionReason::Teardown))), Rejection::Stale);
    assert_eq!(
        lab.run(Command::Reconnect { framework, session }),
        [Change::FrameworkReconnected { framework }]
    );
    assert_eq!(rejected(&lab.run(complete(session, CompletionReason::FailoverTimeout))), Rejection::Stale);
    lab.disconnect(framework);
    lab.time = 2_100;
    let changes = lab.run(complete(session, CompletionReason::FailoverTimeout));
    assert_eq!(
        changes,
        [Change::FrameworkCompleted { framework, reason: CompletionReason::FailoverTimeout }]
    );
    assert_eq!(lab.fw(framework).completion_reason, "failover_timeout");
    let again = complete(session, CompletionReason::FailoverTimeout);
    assert_eq!(rejected(&lab.run(again)), Rejection::FrameworkCompleted);
    assert_eq!(rejected(&lab.run(Command::Reconnect { framework, session })), Rejection::FrameworkCompleted);
    assert_eq!(rejected(&lab.disconnect(framework)), Rejection::Stale);
    assert_eq!(rejected(&lab.run(open(Some(framework), 9, framework_info()))), Rejection::FrameworkCompleted);
    let fenced = Command::Reconnect { framework: FrameworkId(99), session };
    assert_eq!(rejected(&lab.run(fenced)), Rejection::UnknownFramework);
}

#[test]
fn without_a_timeout_a_disconnect_is_the_end() {
    let mut lab = Lab::default();
    let framework = lab.framework_with(FrameworkInfo { failover_timeout_ms: 0, ..framework_info() });
    let agent = lab.agent("cpus:1");
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let reason = CompletionReason::FailoverTimeout;
    assert_eq!(
        lab.disconnect(framework),
        [
            Change::FrameworkDisconnected { framework },
            Change::FrameworkCompleted { framework, reason },
            Change::KillOrdered { launch, agent },
        ]
    );
}

#[test]
fn the_end_of_time_is_far_enough() {
    let mut lab = Lab { time: u64::MAX, ..Lab::default() };
    let (agent, framework) = (lab.agent("cpus:1"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    lab.kill(framework, "a", Some(u64::MAX));
    assert_eq!(lab.task(launch).kill.map(|k| k.grace_ms), Some(proffer_types::limits::KILL_GRACE_MAX_MS));
    let call = AdminId { request: RequestId(1), time: ClusterTime(u64::MAX) };
    lab.run(Command::AdminKill { call, framework, task: task_id("a"), grace_ms: None });
    lab.lose(agent);
    lab.disconnect(framework);
    assert!(lab.fw(framework).is_completed());
}

#[test]
fn completion_tells_every_task_to_end_and_acknowledges() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let running = lab.running(framework, agent, "a", "cpus:1");
    let ended = lab.running(framework, agent, "b", "cpus:1");
    let killed = lab.running(framework, agent, "c", "cpus:1");
    lab.report(ended, 2, TaskState::Finished);
    lab.kill(framework, "c", Some(1));
    let call = lab.call(framework);
    let changes = lab.run(Command::Teardown { call });
    assert_eq!(
        changes[..3],
        [
            Change::FrameworkCompleted { framework, reason: CompletionReason::Teardown },
            Change::TaskRetired { launch: ended, framework },
            Change::KillOrdered { launch: running, agent },
        ]
    );
    assert!(matches!(changes[3..], [Change::Answered { repeated: false, .. }]));
    // It had a shorter order already.
    assert_eq!(lab.task(killed).kill.map(|k| (k.grace_ms, k.reason)), Some((1, Reason::KillRequested)));
    assert_eq!(
        lab.task(running).kill.map(|k| (k.grace_ms, k.reason)),
        Some((5_000, Reason::FrameworkRemoved))
    );
    assert_eq!(lab.task(running).pending, []);
    assert_eq!(lab.registry.completed_frameworks().map(|f| f.id).collect::<Vec<_>>(), [framework]);
    // The answer is still there, and no other call is taken.
    let changes = lab.run(Command::Teardown { call });
    assert!(matches!(changes[..], [Change::Answered { repeated: true, .. }]));
    assert_eq!(rejected(&lab.teardown(framework)), Rejection::FrameworkCompleted);
    assert_eq!(rejected(&lab.kill(framework, "a", Some(0))), Rejection::FrameworkCompleted);
    // Operators may still hurry; a teardown is done already.
    let call = AdminId::default();
    lab.run(Command::AdminKill { call, framework, task: task_id("a"), grace_ms: Some(0) });
    assert_eq!(lab.task(running).kill.map(|k| k.grace_ms), Some(0));
    assert_eq!(answer(&lab.run(Command::AdminTeardown { call, framework })).rejected, None);
    for launch in [running, killed] {
        let changes = lab.report(launch, 2, TaskState::Killed);
        assert_eq!(changes[2], Change::TaskRetired { launch, framework }, "{changes:?}");
    }
    assert_eq!((lab.registry.tasks_len(), lab.registry.history().count()), (0, 3));
}

#[test]
fn a_framework_that_ends_with_its_tasks_waits_for_them() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework_with(ends_with_tasks()));
    let a = lab.running(framework, agent, "a", "cpus:1");
    let b = lab.running(framework, agent, "b", "cpus:1");
    lab.report(a, 2, TaskState::Finished);
    assert_eq!(
        lab.disconnect(framework),
        [Change::FrameworkDisconnected { framework }, Change::TaskRetired { launch: a, framework },]
    );
    // Not even its timeout of nothing ends it.
    assert_eq!(lab.fw(framework).state, FrameworkState::Disconnected { deadline: ClusterTime(u64::MAX) });
    assert_eq!(lab.task(b).pending, []);
    lab.lose(agent);
    assert_eq!(lab.task(b).pending, []);
    lab.attach(agent);
    let changes = lab.report(b, 2, TaskState::Finished);
    let reason = CompletionReason::EndsWithTasks;
    assert_eq!(
        changes[2..4],
        [Change::TaskRetired { launch: b, framework }, Change::FrameworkCompleted { framework, reason },]
    );
}

#[test]
fn while_it_is_connected_it_acknowledges_itself() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework_with(ends_with_tasks()));
    let launch = lab.running(framework, agent, "a", "cpus:1");
    lab.report(launch, 2, TaskState::Finished);
    assert_eq!(lab.task(launch).pending.len(), 2);
    lab.ack_all(launch);
    assert!(!lab.fw(framework).is_completed());
    let reason = CompletionReason::EndsWithTasks;
    assert_eq!(
        lab.disconnect(framework),
        [Change::FrameworkDisconnected { framework }, Change::FrameworkCompleted { framework, reason },]
    );
}

#[test]
fn before_its_first_launch_the_ordinary_deadline_holds() {
    let mut lab = Lab::default();
    let agent = lab.agent("cpus:4");
    let framework = lab.framework_with(FrameworkInfo { failover_timeout_ms: 5, ..ends_with_tasks() });
    lab.disconnect(framework);
    assert_eq!(lab.fw(framework).state, FrameworkState::Disconnected { deadline: ClusterTime(5) });
    // An Accept that was under way then.
    lab.launch(framework, agent, "a", "cpus:1");
    assert_eq!(lab.fw(framework).state, FrameworkState::Disconnected { deadline: ClusterTime(u64::MAX) });
    let other = lab.framework_with(ends_with_tasks());
    assert!(matches!(
        lab.disconnect(other)[1],
        Change::FrameworkCompleted { reason: CompletionReason::FailoverTimeout, .. }
    ));
}

#[test]
fn the_oldest_completed_frameworks_without_tasks_are_forgotten() {
    let mut lab = Lab::default();
    let agent = lab.agent("cpus:4");
    let (busy, done) = (lab.framework(), lab.framework());
    let launch = lab.running(busy, agent, "a", "cpus:1");
    let ended = lab.running(done, agent, "a", "cpus:1");
    lab.report(ended, 2, TaskState::Finished);
    lab.teardown(busy);
    lab.teardown(done);
    let (origin, session) = (lab.fw(done).origin, lab.session(done));
    // Checks after each of these would take long.
    let mut registry = lab.registry.clone();
    let mut run = |command| {
        let entry =
            Entry { term: TERM, time: ClusterTime(0), wall_ms: 0, caller: Caller::anonymous(), command };
        registry.apply(registry.applied() + 1, TERM, &entry)
    };
    for n in 0..COMPLETED_FRAMEWORKS_MAX - 2 {
        let changes = run(open(None, 1_000_000 + n as u128, framework_info()));
        let Change::SessionOpened { framework, session, .. } = changes[1] else { panic!("{changes:?}") };
        let call = CallId { framework, session, ..CallId::default() };
        assert_eq!(run(Command::Teardown { call }).len(), 2);
    }
    lab.registry = registry;
    lab.index = lab.registry.applied();
    lab.registry.check().unwrap();
    let next = lab.framework();
    // The oldest still has a task, so the second oldest goes, with all that was its own.
    let changes = lab.teardown(next);
    assert_eq!(changes[1], Change::FrameworkForgotten { framework: done });
    assert_eq!(lab.registry.history().count(), 0);
    assert!(lab.registry.framework_by_origin(&Caller::anonymous(), origin).is_none());
    assert!(lab.registry.session_origin(session).is_none());
    let last = lab.framework();
    assert_eq!(
        lab.teardown(last).iter().filter(|c| matches!(c, Change::FrameworkForgotten { .. })).count(),
        1
    );
    // Now the busy one is done; as the oldest of all it is the next to go.
    let changes = lab.report(launch, 2, TaskState::Killed);
    assert_eq!(changes.iter().filter(|c| matches!(c, Change::FrameworkForgotten { .. })).count(), 0);
    let more = lab.framework();
    assert_eq!(lab.teardown(more)[1], Change::FrameworkForgotten { framework: busy });
    // One that still has a task needs its place among the completed all the same.
    let late = lab.framework();
    lab.running(late, agent, "b", "cpus:1");
    let changes = lab.teardown(late);
    assert_eq!(changes.iter().filter(|c| matches!(c, Change::FrameworkForgotten { .. })).count(), 1);
}

#[test]
fn a_framework_may_say_anything_else_but_another_user() {
    let mut lab = Lab::default();
    let framework = lab.framework();
    let update = |lab: &mut Lab, info: FrameworkInfo| {
        let call = lab.call(framework);
        lab.run(Command::UpdateFramework { call, info })
    };
    let info = FrameworkInfo {
        name: "other".into(),
        roles: vec![Role::new("eng").unwrap()],
        failover_timeout_ms: 9_000,
        hostname: "h".into(),
        ..framework_info()
    };
    let changes = update(&mut lab, info.clone());
    assert!(matches!(changes[..], [Change::FrameworkUpdated { .. }, Change::Answered { .. }]), "{changes:?}");
    assert_eq!(lab.fw(framework).info, info);
    let root = FrameworkInfo { user: "root".into(), ..info.clone() };
    assert_eq!(rejected(&update(&mut lab, root)), Rejection::Immutable);
    assert_eq!(lab.fw(framework).info, info);
    // Disconnected, it has its new time from now on; with none left it is completed.
    lab.time = 1_000;
    lab.disconnect(framework);
    lab.time = 2_000;
    update(&mut lab, FrameworkInfo { failover_timeout_ms: 5_000, ..info.clone() });
    assert_eq!(lab.fw(framework).state, FrameworkState::Disconnected { deadline: ClusterTime(7_000) });
    update(&mut lab, FrameworkInfo { failover_timeout_ms: 0, ..info });
    assert!(lab.fw(framework).is_completed());
}

#[test]
fn a_late_repetition_of_the_first_subscribe_takes_no_update_back() {
    let mut lab = Lab::default();
    let first = open(None, 7, framework_info());
    lab.run(first.clone());
    let framework = lab.registry.framework_by_origin(&Caller::anonymous(), RequestId(7)).expect("opened").id;
    let session = lab.fw(framework).session;
    let info = FrameworkInfo { name: "other".into(), ..framework_info() };
    let call = lab.call(framework);
    lab.run(Command::UpdateFramework { call, info: info.clone() });
    let changes = lab.run(first);
    assert!(matches!(changes[..], [Change::SessionOpened { session: again, .. }] if again == session));
    assert_eq!(lab.fw(framework).info, info);
}

#[test]
fn one_that_now_ends_with_its_tasks_ends_with_them() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:1"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    lab.disconnect(framework);
    assert_ne!(lab.task(launch).pending, []);
    let call = lab.call(framework);
    let info = FrameworkInfo { ends_with_tasks: true, ..framework_info() };
    lab.run(Command::UpdateFramework { call, info });
    assert_eq!(lab.task(launch).pending, []);
    lab.report(launch, 2, TaskState::Finished);
    assert_eq!(lab.fw(framework).completion_reason, "ends_with_tasks");
}
