//! Registration, loss, removal, statuses.

use super::*;
use proffer_types::AgentState;
use proffer_types::limits::{MESSAGE_BYTES_MAX, PENDING_STATUSES_MAX};

#[test]
fn a_repeated_registration_finds_its_record() {
    let mut lab = Lab::default();
    let agent = lab.register("cpus:4");
    let instance = lab.agent_record(agent).instance;
    let again = Command::RegisterAgent { instance, info: agent_info("cpus:8"), boot_id: BootId(2) };
    assert_eq!(lab.run(again), [Change::AgentRegistered { agent, repeated: true }]);
    assert_eq!(lab.agent_record(agent).info.resources, r("cpus:4"));
    assert_ne!(lab.register("cpus:4"), agent);
    let nobody =
        Command::RegisterAgent { instance: RequestId(0), info: agent_info("cpus:8"), boot_id: BootId(2) };
    assert_eq!(rejected(&lab.run(nobody)), Rejection::WrongInstance);
}

#[test]
fn only_the_current_attachment_can_be_lost_and_only_once() {
    let mut lab = Lab { time: 50, ..Lab::default() };
    let agent = lab.agent("cpus:4");
    assert_eq!(lab.agent_record(agent).attachment, 1);
    let stale = Command::MarkUnreachable { agent, attachment: 0 };
    assert_eq!(rejected(&lab.run(stale)), Rejection::Stale);
    assert_eq!(lab.lose(agent), [Change::AgentUnreachable { agent }]);
    assert_eq!(lab.agent_record(agent).state, AgentState::Unreachable { since: ClusterTime(50) });
    assert_eq!(rejected(&lab.lose(agent)), Rejection::Stale);
    let unknown = Command::MarkUnreachable { agent: AgentId(99), attachment: 1 };
    assert_eq!(rejected(&lab.run(unknown)), Rejection::UnknownAgent);
}

#[test]
fn a_lost_agents_tasks_are_unreachable_and_keep_their_resources() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let staging = lab.launch(framework, agent, "a", "cpus:1");
    let running = lab.running(framework, agent, "b", "cpus:2");
    let ended = lab.running(framework, agent, "c", "cpus:1");
    lab.report(ended, 2, TaskState::Finished);
    let changes = lab.lose(agent);
    assert_eq!(changes.len(), 3, "{changes:?}");
    for (launch, position) in [(staging, (1, 0)), (running, (1, 1))] {
        let task = lab.task(launch);
        assert_eq!((task.status.state, task.status.reason), (TaskState::Unreachable, Reason::AgentLost));
        assert_eq!((task.status.position(), task.status.source), (position, Source::Master));
        assert_eq!(task.pending.last(), Some(&task.status));
    }
    assert_eq!(lab.task(ended).status.state, TaskState::Finished);
    assert_eq!(lab.agent_record(agent).used, r("cpus:3"));
}

#[test]
fn statuses_of_an_earlier_attachment_or_of_a_lost_agent_are_void() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let finished = vec![(launch, status(2, TaskState::Finished))];
    lab.attach(agent);
    let old = Command::Statuses { agent, attachment: 1, statuses: finished.clone() };
    assert_eq!(rejected(&lab.run(old)), Rejection::Stale);
    lab.lose(agent);
    assert_eq!(rejected(&lab.statuses(agent, finished.clone())), Rejection::Stale);
    let unknown = Command::Statuses { agent: AgentId(99), attachment: 1, statuses: finished };
    assert_eq!(rejected(&lab.run(unknown)), Rejection::UnknownAgent);
    assert_eq!(lab.task(launch).status.state, TaskState::Unreachable);
}

#[test]
fn a_status_is_confirmed_whether_new_known_or_of_nothing() {
    let mut lab = Lab::default();
    let (agent, other, framework) = (lab.agent("cpus:4"), lab.agent("cpus:4"), lab.framework());
    let launch = lab.launch(framework, agent, "a", "cpus:1");
    let elsewhere = lab.launch(framework, other, "b", "cpus:1");
    let changes = lab.report(launch, 1, TaskState::Running);
    let confirmed = |launch, task_seq| Change::StatusConfirmed { launch, agent, task_seq };
    assert!(
        matches!(changes[..], [Change::StatusChanged { from: TaskState::Staging, .. }, _]),
        "{changes:?}"
    );
    assert_eq!(changes[1], confirmed(launch, 1));
    assert_eq!(lab.report(launch, 1, TaskState::Running), [confirmed(launch, 1)]);
    let strange = LaunchId(12345);
    let changes = lab.statuses(
        agent,
        vec![(strange, status(4, TaskState::Failed)), (elsewhere, status(1, TaskState::Failed))],
    );
    assert_eq!(changes, [confirmed(strange, 4), confirmed(elsewhere, 1)]);
    assert_eq!(lab.task(elsewhere).status.state, TaskState::Staging);
}

#[test]
fn an_agent_cannot_say_what_only_the_master_knows_or_go_back() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    for state in [TaskState::Unreachable, TaskState::GoneByOperator, TaskState::Starting, TaskState::Staging]
    {
        let changes = lab.report(launch, 7, state);
        assert!(matches!(changes[..], [Change::StatusConfirmed { task_seq: 7, .. }]), "{changes:?}");
    }
    let forged = Status {
        source: Source::Master,
        message: "ä".repeat(MESSAGE_BYTES_MAX),
        ..status(2, TaskState::Killing)
    };
    lab.statuses(agent, vec![(launch, forged)]);
    let task = lab.task(launch);
    assert_eq!((task.status.state, task.status.source), (TaskState::Killing, Source::Agent));
    assert_eq!(task.status.message.len(), MESSAGE_BYTES_MAX);
    let changes = lab.report(launch, 3, TaskState::Running);
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_eq!(lab.task(launch).status.state, TaskState::Killing);
}

#[test]
fn a_batch_is_taken_in_order_and_ends_a_task_once() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.launch(framework, agent, "a", "cpus:1");
    let done = Status { exit_code: Some(7), wall_ms: 77, ..status(3, TaskState::Failed) };
    let batch = vec![
        (launch, status(1, TaskState::Starting)),
        (launch, Status { wall_ms: 66, ..status(2, TaskState::Running) }),
        (launch, done.clone()),
        (launch, status(4, TaskState::Finished)),
    ];
    let changes = lab.statuses(agent, batch.clone());
    let returned = changes.iter().filter(|c| matches!(c, Change::ResourcesReturned { .. })).count();
    assert_eq!((changes.len(), returned), (8, 1), "{changes:?}");
    let task = lab.task(launch);
    assert_eq!(task.status, done);
    assert_eq!((task.started_wall_ms, task.finished_wall_ms), (Some(66), Some(77)));
    assert_eq!(task.pending.len(), 3);
    assert_eq!(lab.agent_record(agent).used, r(""));
    let again = lab.statuses(agent, batch);
    assert!(again.iter().all(|c| matches!(c, Change::StatusConfirmed { .. })), "{again:?}");
}

#[test]
fn pending_statuses_are_few_and_the_newest_ones() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    for _ in 0..10 {
        lab.lose(agent);
        lab.attach(agent);
    }
    let task = lab.task(launch);
    assert_eq!(task.pending.len(), PENDING_STATUSES_MAX);
    assert_eq!(task.pending[0].position(), (13, 1));
    assert_eq!(task.status.position(), (20, 1));
    lab.report(launch, 2, TaskState::Finished);
    assert_eq!(lab.task(launch).pending.last().map(|s| s.state), Some(TaskState::Finished));
}

#[test]
fn only_an_agent_that_is_away_is_removed_and_its_tasks_with_it() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let remove = Command::RemoveAgent { agent };
    assert_eq!(rejected(&lab.run(remove.clone())), Rejection::Stale);
    lab.lose(agent);
    let opening = lab.opening(agent);
    let changes = lab.run(remove.clone());
    assert!(
        matches!(
            &changes[..],
            [Change::StatusChanged { .. }, Change::ResourcesReturned { .. }, Change::AgentRemoved { .. }]
        ),
        "{changes:?}"
    );
    let task = lab.task(launch);
    assert_eq!((task.status.state, task.status.reason), (TaskState::GoneByOperator, Reason::AgentExpired));
    assert_eq!(rejected(&lab.run(remove)), Rejection::UnknownAgent);
    assert_eq!(rejected(&lab.run(Command::AttachAgent(opening))), Rejection::UnknownAgent);
    lab.ack_all(launch);
    assert!(lab.registry.task(launch).is_none());
}
