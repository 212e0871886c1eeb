//! The history of finished tasks.

use super::*;
use proffer_types::limits::FINISHED_TASKS_PER_FRAMEWORK;

#[test]
fn the_history_keeps_the_newest_of_each_framework() {
    let mut lab = Lab::default();
    let (agent, busy, calm) = (lab.agent("cpus:2"), lab.framework(), lab.framework());
    let early = lab.running(calm, agent, "early", "cpus:1");
    lab.report(early, 2, TaskState::Finished);
    lab.ack_all(early);
    let mut registry = lab.registry.clone();
    let session = lab.session(busy);
    let mut first = None;
    let mut run = |command| {
        let entry =
            Entry { term: TERM, time: ClusterTime(0), wall_ms: 0, caller: Caller::anonymous(), command };
        registry.apply(registry.applied() + 1, TERM, &entry)
    };
    for n in 0..FINISHED_TASKS_PER_FRAMEWORK + 1 {
        let call = CallId { framework: busy, session, ..CallId::default() };
        // Every task has a spec of its own: those of forgotten tasks are forgotten with them.
        let spec = TaskSpec { user: n.to_string(), ..spec("cpus:1") };
        let parts = vec![part(agent, "cpus:1", vec![one(spec, "same")])];
        let launch = answer(&run(Command::Accept { call, atomic: false, parts })).first_launch;
        first.get_or_insert(launch);
        let statuses = vec![(launch, status(1, TaskState::Finished))];
        run(Command::Statuses { agent, attachment: 1, statuses });
        let acks = vec![Ack { launch, master_seq: 0, task_seq: 1 }];
        assert!(
            run(Command::Acknowledge { call, acks })
                .contains(&Change::TaskRetired { launch, framework: busy })
        );
    }
    registry.check().unwrap();
    assert_eq!(registry.history_of_framework(busy).count(), FINISHED_TASKS_PER_FRAMEWORK);
    assert!(registry.history_of_framework(busy).all(|t| Some(t.launch_id) != first));
    assert_eq!(registry.specs.len(), FINISHED_TASKS_PER_FRAMEWORK + 1);
    assert_eq!(registry.history_of_framework(calm).map(|t| t.launch_id).collect::<Vec<_>>(), [early]);
    assert_eq!(registry.history().count(), FINISHED_TASKS_PER_FRAMEWORK + 1);
    assert_eq!(registry.framework(busy).map(|f| (f.live_tasks, f.spec_bytes)), Some((0, 0)));
}

#[test]
fn queries_see_what_is_live_and_what_is_kept() {
    let mut lab = Lab::default();
    let (agent, other, framework) = (lab.agent("cpus:4"), lab.agent("cpus:4"), lab.framework());
    let live = lab.running(framework, agent, "a", "cpus:1");
    let ended = lab.running(framework, agent, "b", "cpus:1");
    let far = lab.running(framework, other, "c", "cpus:1");
    lab.report(ended, 2, TaskState::Finished);
    let of = |tasks: &mut dyn Iterator<Item = &Task>| tasks.map(|t| t.launch_id).collect::<Vec<_>>();
    let registry = &lab.registry;
    assert_eq!(of(&mut registry.tasks_of_framework(framework)), [live, ended, far]);
    assert_eq!(of(&mut registry.tasks_on_agent(agent)), [live]);
    assert_eq!(of(&mut registry.tasks()), [live, ended, far]);
    assert_eq!(registry.agents().map(|a| a.id).collect::<Vec<_>>(), [agent, other]);
    assert_eq!((registry.agents_len(), registry.tasks_len()), (2, 3));
    assert_eq!(registry.agent_by_instance(lab.agent_record(other).instance).map(|a| a.id), Some(other));
    assert_eq!(registry.frameworks().count(), 1);
}

#[test]
fn a_clone_does_not_change() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let view = lab.registry.clone();
    let hash = view.state_hash();
    lab.report(launch, 2, TaskState::Finished);
    lab.ack_all(launch);
    assert_eq!(view.state_hash(), hash);
    assert_eq!(view.task(launch).map(|t| t.status.state), Some(TaskState::Running));
    assert_ne!(lab.registry.state_hash(), hash);
    view.check().unwrap();
}

/// A check that flaps fills no memory: of what only a check says the last is kept.
#[test]
fn what_a_check_says_replaces_what_it_said_before() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:1"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    let check = |task_seq, healthy| Status {
        task_seq,
        reason: Reason::CheckChanged,
        healthy: Some(healthy),
        ..status(task_seq, TaskState::Running)
    };
    for task_seq in 2..=20 {
        lab.statuses(agent, vec![(launch, check(task_seq, task_seq % 2 == 0))]);
    }
    let pending = |lab: &Lab| lab.task(launch).pending.iter().map(|s| s.task_seq).collect::<Vec<_>>();
    assert_eq!(pending(&lab), [1, 20]);
    assert_eq!(lab.task(launch).status.healthy, Some(true));
    // What was replaced needs no acknowledgement, and acknowledging it leaves what came after.
    lab.ack(launch, 0, 19);
    assert_eq!(pending(&lab), [20]);
    lab.report(launch, 21, TaskState::Killing);
    lab.statuses(agent, vec![(launch, Status { state: TaskState::Killing, ..check(22, false) })]);
    lab.report(launch, 23, TaskState::Killed);
    assert_eq!(pending(&lab), [20, 21, 22, 23]);
}
