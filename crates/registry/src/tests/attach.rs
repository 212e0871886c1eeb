//! How agents and their records come to agree.

use super::*;

/// An attachment's first change.
fn attached(changes: &[Change]) -> (&[LaunchId], &[(LaunchId, u32)], bool) {
    match &changes[0] {
        Change::AgentAttached { forget, confirm, returned, .. } => (forget, confirm, *returned),
        other => panic!("not attached: {other:?}"),
    }
}

#[test]
fn who_it_is_must_be_right() {
    let mut lab = Lab::default();
    let agent = lab.agent("cpus:4");
    assert_eq!(rejected(&lab.attach_with(agent, |a| a.agent = AgentId(77))), Rejection::UnknownAgent);
    assert_eq!(rejected(&lab.attach_with(agent, |a| a.instance = RequestId(77))), Rejection::WrongInstance);
    // It has seen orders that were never given.
    assert_eq!(rejected(&lab.attach_with(agent, |a| a.last_seq = 1)), Rejection::WrongInstance);
    assert_eq!(rejected(&lab.attach_with(agent, |a| a.last_seq = u64::MAX)), Rejection::WrongInstance);
    assert_eq!(lab.agent_record(agent).attachment, 1);
}

#[test]
fn equal_digests_need_no_listing_and_change_no_task() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let running = lab.running(framework, agent, "a", "cpus:1");
    let before = lab.task(running).clone();
    let changes = lab.attach(agent);
    assert_eq!(attached(&changes), (&[][..], &[(running, 1)][..], false));
    assert_eq!((changes.len(), lab.task(running)), (1, &before));
    // The same with a listing that nobody asked for.
    let changes = lab.attach_with(agent, |a| a.held = Some(vec![held(running, 1, TaskState::Running)]));
    assert_eq!(attached(&changes), (&[][..], &[(running, 1)][..], false));
    assert_eq!((changes.len(), lab.task(running)), (1, &before));
    assert_eq!(lab.agent_record(agent).attachment, 3);
}

#[test]
fn a_different_digest_needs_a_listing() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    assert_eq!(rejected(&lab.attach_with(agent, |a| a.digest ^= 1)), Rejection::ListingNeeded);
    assert_eq!(lab.agent_record(agent).attachment, 1);
    // Its next status has a new digest, and is in the listing.
    let changes = lab.attach_listing(agent, 1, vec![held(launch, 2, TaskState::Finished)]);
    assert_eq!(attached(&changes), (&[][..], &[(launch, 2)][..], false));
    assert_eq!(lab.task(launch).status.position(), (0, 2));
    assert_eq!(lab.agent_record(agent).used, r(""));
}

#[test]
fn what_was_never_sent_stays_to_be_sent() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let seen = lab.running(framework, agent, "a", "cpus:1");
    let unseen = lab.launch(framework, agent, "b", "cpus:1");
    lab.kill(framework, "a", Some(10));
    lab.kill(framework, "b", Some(20));
    // The digest leaves out what the agent cannot know of.
    let digest = lab.registry.digest_of_agent(agent, 1);
    let changes = lab.attach_with(agent, |a| (a.last_seq, a.digest) = (1, digest));
    assert_eq!((attached(&changes), changes.len()), ((&[][..], &[(seen, 1)][..], false), 1));
    let orders = vec![
        Order::Launch { agent_seq: 2, launch: unseen },
        Order::Kill { agent_seq: 3, launch: seen, grace_ms: 10 },
        Order::Kill { agent_seq: 4, launch: unseen, grace_ms: 20 },
    ];
    assert_eq!(lab.registry.orders_for(agent, 1), orders);
    // Kills are sent again for as long as the task lives, launches only once.
    assert_eq!(lab.registry.orders_for(agent, 4), orders[1..]);
    lab.report(seen, 2, TaskState::Killed);
    assert_eq!(lab.registry.orders_for(agent, 4), orders[2..]);
}

#[test]
fn what_it_has_seen_and_does_not_hold_has_failed() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let lost = lab.running(framework, agent, "a", "cpus:1");
    let kept = lab.running(framework, agent, "b", "cpus:1");
    let unseen = lab.launch(framework, agent, "c", "cpus:1");
    lab.attach_listing(agent, 2, vec![held(kept, 1, TaskState::Running)]);
    let task = lab.task(lost);
    assert_eq!((task.status.state, task.status.reason), (TaskState::Failed, Reason::LaunchLost));
    assert_eq!((task.status.position(), task.status.source), ((1, 1), Source::Master));
    assert_eq!(lab.task(kept).status.position(), (0, 1));
    assert_eq!(lab.task(unseen).status.state, TaskState::Staging);
    assert_eq!(lab.agent_record(agent).used, r("cpus:2"));
}

#[test]
fn nothing_is_started_late_after_an_absence() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let seen = lab.running(framework, agent, "a", "cpus:1");
    let unseen = lab.launch(framework, agent, "b", "cpus:1");
    lab.lose(agent);
    let digest = lab.registry.digest_of_agent(agent, 1);
    let changes = lab.attach_with(agent, |a| (a.last_seq, a.digest) = (1, digest));
    assert!(attached(&changes).2);
    let task = lab.task(unseen);
    assert_eq!((task.status.state, task.status.reason), (TaskState::Dropped, Reason::AgentUnreachable));
    assert_eq!(lab.task(seen).status.state, TaskState::Running);
    assert_eq!(lab.registry.orders_for(agent, 1), []);
}

#[test]
fn a_task_that_it_holds_though_it_has_not_counted_the_order_is_held() {
    // The agent checkpoints a launch before it counts its number; it may be stopped in between.
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.launch(framework, agent, "a", "cpus:1");
    lab.lose(agent);
    lab.attach_listing(agent, 0, vec![held(launch, 0, TaskState::Staging)]);
    assert_eq!(lab.task(launch).status.state, TaskState::Staging);
    assert_eq!(lab.task(launch).status.reason, Reason::AgentReturned);
}

#[test]
fn on_return_the_last_state_is_said_again_under_a_new_number() {
    for listing in [false, true] {
        let mut lab = Lab::default();
        let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
        let running = lab.running(framework, agent, "a", "cpus:1");
        let staging = lab.launch(framework, agent, "b", "cpus:1");
        lab.lose(agent);
        let list = vec![held(running, 1, TaskState::Running), held(staging, 0, TaskState::Staging)];
        let changes = lab.attach_with(agent, |a| a.held = listing.then_some(list));
        assert_eq!(changes.len(), 3, "{changes:?}");
        let task = lab.task(running);
        assert_eq!((task.status.state, task.status.reason), (TaskState::Running, Reason::AgentReturned));
        assert_eq!(task.status.position(), (2, 1));
        assert_eq!(task.agent_status.as_ref().map(|s| s.reason), Some(Reason::None));
        let states: Vec<TaskState> = task.pending.iter().map(|s| s.state).collect();
        assert_eq!(states, [TaskState::Running, TaskState::Unreachable, TaskState::Running]);
        let task = lab.task(staging);
        assert_eq!((task.status.state, task.status.position()), (TaskState::Staging, (2, 0)));
        // The agent's next status counts under the new number.
        lab.report(running, 2, TaskState::Finished);
        assert_eq!(lab.task(running).status.position(), (2, 2));
    }
}

#[test]
fn on_return_news_takes_the_place_of_the_repetition() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let ended = lab.running(framework, agent, "a", "cpus:1");
    let started = lab.launch(framework, agent, "b", "cpus:1");
    lab.lose(agent);
    let exit = Status { exit_code: Some(7), reason: Reason::ExitCode, ..status(2, TaskState::Failed) };
    let list = vec![Held { launch: ended, status: exit }, held(started, 1, TaskState::Starting)];
    let changes = lab.attach_listing(agent, 2, list);
    let told = changes.iter().filter(|c| matches!(c, Change::StatusChanged { .. })).count();
    assert_eq!(told, 2, "{changes:?}");
    let task = lab.task(ended);
    assert_eq!((task.status.position(), task.status.exit_code), ((2, 2), Some(7)));
    assert_eq!((task.status.state, task.status.reason), (TaskState::Failed, Reason::ExitCode));
    let task = lab.task(started);
    assert_eq!((task.status.state, task.status.reason), (TaskState::Starting, Reason::AgentReturned));
    assert_eq!(task.status.position(), (2, 1));
}

#[test]
fn after_a_reboot_everything_has_failed() {
    for listing in [false, true] {
        let mut lab = Lab::default();
        let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
        let running = lab.running(framework, agent, "a", "cpus:1");
        let unseen = lab.launch(framework, agent, "b", "cpus:1");
        let ended = lab.running(framework, agent, "c", "cpus:1");
        lab.report(ended, 2, TaskState::Finished);
        if listing {
            lab.lose(agent);
        }
        let changes = lab.attach_with(agent, |a| {
            (a.boot_id, a.last_seq, a.digest) = (BootId(2), 0, 0);
            a.held = listing.then(|| vec![held(running, 1, TaskState::Running)]);
        });
        // A liar's listing is not believed, but what it says it runs must go.
        let forget = if listing { vec![running] } else { vec![] };
        assert_eq!(attached(&changes).0, forget);
        for launch in [running, unseen] {
            let task = lab.task(launch);
            assert_eq!((task.status.state, task.status.reason), (TaskState::Failed, Reason::HostRebooted));
        }
        assert_eq!(lab.task(ended).status.state, TaskState::Finished);
        let record = lab.agent_record(agent);
        assert_eq!((record.used.clone(), record.last_seq, record.boot_id), (r(""), 3, BootId(2)));
        assert_eq!(lab.registry.orders_for(agent, 0), []);
        lab.launch(framework, agent, "d", "cpus:4");
        assert_eq!(lab.agent_record(agent).last_seq, 4);
    }
}

#[test]
fn what_only_the_agent_holds_is_ended_or_dropped() {
    let mut lab = Lab::default();
    let (agent, other, framework) = (lab.agent("cpus:4"), lab.agent("cpus:4"), lab.framework());
    let ended = lab.running(framework, agent, "a", "cpus:1");
    let lost = lab.running(framework, agent, "b", "cpus:1");
    let elsewhere = lab.running(framework, other, "c", "cpus:1");
    lab.report(ended, 2, TaskState::Finished);
    lab.attach_listing(agent, 2, vec![held(ended, 2, TaskState::Finished)]);
    assert_eq!(lab.task(lost).status.state, TaskState::Failed);
    // It says now that it runs what was declared lost: the framework has been told otherwise.
    let stranger = LaunchId(4711);
    let list = vec![
        held(ended, 2, TaskState::Finished),
        held(lost, 1, TaskState::Running),
        held(elsewhere, 1, TaskState::Running),
        held(stranger, 5, TaskState::Running),
        held(LaunchId(4712), 6, TaskState::Failed),
    ];
    let changes = lab.attach_listing(agent, 2, list);
    let (forget, confirm, _) = attached(&changes);
    assert_eq!(forget, [lost, elsewhere, stranger]);
    assert_eq!(confirm, [(ended, 2), (LaunchId(4712), 6)]);
    assert_eq!((changes.len(), lab.task(lost).status.state), (1, TaskState::Failed));
    assert_eq!(lab.task(elsewhere).status.state, TaskState::Running);
}

#[test]
fn a_listing_may_be_unsorted_and_double() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let a = lab.running(framework, agent, "a", "cpus:1");
    let b = lab.running(framework, agent, "b", "cpus:1");
    let list =
        vec![held(b, 1, TaskState::Running), held(a, 3, TaskState::Finished), held(a, 2, TaskState::Running)];
    lab.attach_listing(agent, 2, list);
    assert_eq!(lab.task(a).status.position(), (0, 3));
    assert_eq!(lab.task(b).status.state, TaskState::Running);
}

#[test]
fn an_agent_that_comes_back_with_less_gets_nothing_until_it_fits() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let big = lab.running(framework, agent, "a", "cpus:3");
    let changes = lab.attach_with(agent, |a| a.info.resources = r("cpus:2"));
    assert!(matches!(changes[0], Change::AgentAttached { info_changed: true, .. }));
    assert_eq!(lab.agent_record(agent).free(), None);
    let offer = vec![part(agent, "cpus:1", vec![one(spec("cpus:1"), "b")])];
    let changes = lab.accept(framework, offer.clone());
    assert_eq!(answer(&changes).outcomes, [Some(Refusal::AgentUnavailable)]);
    lab.report(big, 2, TaskState::Finished);
    let changes = lab.accept(framework, offer);
    assert_eq!(answer(&changes).outcomes, [None]);
}

#[test]
fn a_kill_of_an_unreachable_task_waits_for_its_return() {
    let mut lab = Lab::default();
    let (agent, framework) = (lab.agent("cpus:4"), lab.framework());
    let launch = lab.running(framework, agent, "a", "cpus:1");
    lab.lose(agent);
    let changes = lab.kill(framework, "a", Some(100));
    assert_eq!(changes[0], Change::KillOrdered { launch, agent });
    assert_eq!(lab.task(launch).status.state, TaskState::Unreachable);
    let digest = lab.registry.digest_of_agent(agent, 1);
    lab.attach_with(agent, |a| (a.last_seq, a.digest) = (1, digest));
    assert_eq!(lab.registry.orders_for(agent, 1), [Order::Kill { agent_seq: 2, launch, grace_ms: 100 }]);
}
