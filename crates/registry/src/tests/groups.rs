//! Groups: all or none, and never a part.

use proffer_types::event::Group;

use super::*;

fn three(lab: &mut Lab, framework: FrameworkId, agent: AgentId) -> [LaunchId; 3] {
    let members = ["a", "b", "c"].map(|name| (spec("cpus:1"), name)).into();
    let operations = vec![group(members)];
    let part = AcceptPart { agent, role: Role::star(), offered: r("cpus:3"), operations };
    let changes = lab.accept(framework, vec![part]);
    let first = answer(&changes).first_launch.0;
    assert_eq!(answer(&changes).outcomes, [None; 3]);
    [first, first + 1, first + 2].map(LaunchId)
}

fn launches(orders: &[Order]) -> Vec<LaunchId> {
    let launch = |order: &Order| match order {
        Order::Launch { launch, .. } => Some(*launch),
        Order::Kill { .. } => None,
    };
    orders.iter().filter_map(launch).collect()
}

#[test]
fn members_follow_one_another() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let [a, b, c] = three(&mut lab, framework, agent);
    for (launch, seq) in [(a, 1), (b, 2), (c, 3)] {
        let task = lab.task(launch);
        assert_eq!(task.group, Some(Group { first: a, size: 3 }));
        assert_eq!(task.agent_seq, seq);
    }
}

#[test]
fn one_refused_member_refuses_all_and_uses_nothing() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    lab.launch(framework, agent, "taken", "cpus:1");
    let operations = vec![
        group(vec![(spec("cpus:1"), "a"), (spec("cpus:1"), "taken"), (spec("cpus:9"), "b")]),
        Operation::Launch(many(spec("cpus:1"), &["a", "b", "d"])),
    ];
    let part = AcceptPart { agent, role: Role::star(), offered: r("cpus:3"), operations };
    let changes = lab.accept(framework, vec![part]);
    let (group, in_use, not_offered) = (Refusal::Group, Refusal::TaskIdInUse, Refusal::NotOffered);
    // What the group would have used, names too, is there for what follows.
    let expected = [Some(group), Some(in_use), Some(not_offered), None, None, None];
    assert_eq!(answer(&changes).outcomes, expected);
    assert!(lab.registry.tasks().all(|task| task.group.is_none()));
}

#[test]
fn an_agent_that_does_not_know_groups_is_given_none() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    lab.attach_with(agent, |attach| attach.info.features = ["limits".to_owned()].into());
    let operations = vec![group(vec![(spec("cpus:1"), "a")])];
    let part = AcceptPart { agent, role: Role::star(), offered: r("cpus:3"), operations };
    let changes = lab.accept(framework, vec![part]);
    assert_eq!(answer(&changes).outcomes, [Some(Refusal::FeatureUnknown)]);
}

#[test]
fn one_executor_runs_all_members_or_none() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let mut accept = |members| {
        let operations = vec![group(members)];
        let part = AcceptPart { agent, role: Role::star(), offered: r("cpus:3"), operations };
        let changes = lab.accept(framework, vec![part]);
        (answer(&changes).outcomes.clone(), lab.registry.executors().count())
    };
    let by = |executor, name| run_by(executor, name, "cpus:1");
    let mixed = accept(vec![(spec("cpus:1"), "a"), (by("cpus:1", "x"), "b")]);
    assert_eq!(mixed, (vec![Some(Refusal::Group), Some(Refusal::InvalidSpec)], 0));
    // The executor that was made for the first member is not made.
    let two = accept(vec![(by("cpus:1", "x"), "a"), (by("cpus:1", "y"), "b")]);
    assert_eq!(two, (vec![Some(Refusal::Group), Some(Refusal::InvalidSpec)], 0));
    let differing = accept(vec![(by("cpus:1", "x"), "a"), (by("cpus:2", "x"), "b")]);
    assert_eq!(differing, (vec![Some(Refusal::Group), Some(Refusal::ExecutorDiffers)], 0));
    assert_eq!(accept(vec![(by("cpus:1", "x"), "a"), (by("cpus:1", "x"), "b")]), (vec![None, None], 1));
    assert_eq!(lab.agent_record(agent).used, r("cpus:3"));
}

#[test]
fn whoever_lacks_a_member_is_sent_all() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let [a, b, c] = three(&mut lab, framework, agent);
    for seen in 0..3 {
        assert_eq!(launches(&lab.registry.orders_for(agent, seen)), [a, b, c], "{seen} were seen");
    }
    assert_eq!(lab.registry.orders_for(agent, 3), []);
}

/// The agent was writing the group down when it died, and was away for too long.
#[test]
fn a_group_that_was_cut_by_an_absence_does_not_start() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let [a, b, c] = three(&mut lab, framework, agent);
    lab.lose(agent);
    lab.attach_listing(agent, 1, vec![held(a, 0, TaskState::Staging)]);
    for launch in [b, c] {
        let status = &lab.task(launch).status;
        assert_eq!((status.state, status.reason), (TaskState::Dropped, Reason::AgentUnreachable));
    }
    assert_eq!(lab.task(a).kill.map(|kill| kill.reason), Some(Reason::GroupNotStarted));
    // It hears again that there were to be three, and that this one shall end.
    let orders = lab.registry.orders_for(agent, 1);
    assert!(
        matches!(orders[..], [Order::Launch { .. }, Order::Kill { launch, .. }] if launch == a),
        "{orders:?}"
    );
}

#[test]
fn a_lost_member_ends_the_others() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let [a, b, c] = three(&mut lab, framework, agent);
    lab.report(a, 1, TaskState::Running);
    let listing = vec![held(a, 1, TaskState::Running), held(c, 0, TaskState::Staging)];
    lab.attach_listing(agent, 3, listing);
    assert_eq!(lab.task(b).status.reason, Reason::LaunchLost);
    for launch in [a, c] {
        assert_eq!(lab.task(launch).kill.map(|kill| kill.reason), Some(Reason::GroupEnded));
    }
}
