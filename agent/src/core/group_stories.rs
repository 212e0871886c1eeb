//! What happens to groups of tasks.

use proffer_types::event::Group;

use super::*;

fn member(seq: u64, launch: u64) -> LaunchOrder {
    LaunchOrder { group: Some(Group { first: LaunchId(100), size: 3 }), ..order(seq, launch) }
}

fn group() -> AgentOrder {
    AgentOrder::LaunchGroup(vec![member(1, 100), member(2, 101), member(3, 102)])
}

fn states(story: &Story) -> Vec<(TaskState, Reason)> {
    story.core.held().map(|held| held.status.map(|s| (s.state, s.reason)).unwrap()).collect()
}

#[test]
fn a_group_is_written_down_then_launched_as_one() {
    let mut story = Story::open();
    assert_eq!(
        story.orders(5, vec![group()]),
        [
            "write launch 100",
            "write launch 101",
            "write launch 102",
            "write assigned 100",
            "write assigned 101",
            "write assigned 102",
            "launch [100, 101, 102]"
        ]
    );
    assert_eq!(story.event(started(100))[0], "write 100 1:RUNNING");
    story.event(started(101));
    // One ends badly, its supervisor ends the others.
    assert_eq!(story.event(ended(101, end(Some(1), None)))[0], "write 101 2:FAILED(exit_code)");
    let with_it = End {
        kill_sent: KillSent::Term,
        kill_cause: proffer_containerizer::KillCause::Group,
        ..end(None, Some(15))
    };
    assert_eq!(story.event(ended(100, with_it))[0], "write 100 2:KILLED(group_ended)");
}

#[test]
fn a_kill_before_the_start_ends_all() {
    let mut story = Story::open();
    let effects = story.orders(5, vec![group(), kill(4, 101, 0)]);
    assert!(!effects.iter().any(|effect| effect.starts_with("launch")), "{effects:?}");
    assert_eq!(
        states(&story),
        [
            (TaskState::Killed, Reason::GroupNotStarted),
            (TaskState::Killed, Reason::KilledDuringLaunch),
            (TaskState::Killed, Reason::GroupNotStarted)
        ]
    );
}

#[test]
fn one_that_cannot_be_had_keeps_all_from_starting() {
    let mut story = Story::open();
    let mut strange = member(2, 101);
    strange.spec = Arc::new(TaskSpec { needs: vec!["gpu.share".into()], ..TaskSpec::default() });
    let order = AgentOrder::LaunchGroup(vec![member(1, 100), strange, member(3, 102)]);
    let effects = story.orders(5, vec![order]);
    assert!(!effects.iter().any(|effect| effect.starts_with("launch")), "{effects:?}");
    let not_started = (TaskState::Dropped, Reason::GroupNotStarted);
    assert_eq!(states(&story), [not_started, (TaskState::Dropped, Reason::Unsupported), not_started]);
}

#[test]
fn half_a_group_is_never_started() {
    // Of what was written down only a part was.
    for written in 1..3 {
        let mut story = Story::open();
        story.core.on_orders(epoch(5), vec![group()]);
        let effects = story.core.take_effects(&mut |_| InstanceId(1));
        let records = effects.into_iter().filter_map(|effect| match effect {
            Effect::Checkpoint(record) => Some(record),
            _ => None,
        });
        story.records.extend(records.take(written));
        story.restart();
        let effects = story.effects();
        assert!(!effects.iter().any(|effect| effect.starts_with("launch")), "{effects:?}");
        assert!(states(&story).iter().all(|s| *s == (TaskState::Dropped, Reason::GroupNotStarted)));
        // The rest comes again.
        story.attach(5);
        let rest = (written as u64..3).map(|n| member(n + 1, 100 + n)).collect();
        story.orders(5, vec![AgentOrder::LaunchGroup(rest)]);
        assert_eq!(states(&story), [(TaskState::Dropped, Reason::GroupNotStarted); 3]);
    }
    // Nor if the master says that this is all there is of it.
    let mut story = Story::open();
    story.orders(5, vec![AgentOrder::LaunchGroup(vec![member(1, 100), member(2, 101)])]);
    assert_eq!(states(&story), [(TaskState::Dropped, Reason::GroupNotStarted); 2]);
}

#[test]
fn after_a_crash_a_group_that_never_began_is_launched_as_one() {
    for assigned in 0..=3 {
        let mut story = Story::open();
        story.core.on_orders(epoch(5), vec![group()]);
        let effects = story.core.take_effects(&mut |_| InstanceId(1));
        let records = effects.into_iter().filter_map(|effect| match effect {
            Effect::Checkpoint(record) => Some(record),
            _ => None,
        });
        story.records.extend(records.take(3 + assigned));
        story.restart();
        let mut effects = story.effects();
        for launch in (100..103).take(assigned) {
            assert!(!effects.iter().any(|effect| effect.starts_with("launch")), "{effects:?}");
            effects = story.event(Event::NotStarted { launch: LaunchId(launch) });
        }
        assert_eq!(effects.last().unwrap(), "launch [100, 101, 102]", "{assigned} were assigned");
    }
}

/// A supervisor that dies tells of its launches one after the other, and of one that was killed that it failed.
#[test]
fn one_that_waits_for_its_group_does_not_wait_for_ever() {
    let mut story = Story::open();
    story.orders(5, vec![group()]);
    story.orders(5, vec![kill(4, 101, 0)]);
    for launch in [100, 102] {
        assert_eq!(
            story.event(Event::NotStarted { launch: LaunchId(launch) }),
            [""; 0],
            "101 is not heard of"
        );
    }
    let killed = Event::LaunchFailed {
        launch: LaunchId(101),
        reason: Reason::KilledDuringLaunch,
        message: String::new(),
        exit_code: None,
    };
    story.event(killed);
    let by_group = (TaskState::Killed, Reason::GroupNotStarted);
    assert_eq!(states(&story), [by_group, (TaskState::Killed, Reason::KilledDuringLaunch), by_group]);
    // Nor if the other is forgotten.
    let mut story = Story::open();
    story.orders(5, vec![group()]);
    story.orders(5, vec![AgentOrder::Forget { launch: LaunchId(101) }]);
    for launch in [100, 102, 101] {
        story.event(Event::NotStarted { launch: LaunchId(launch) });
    }
    assert_eq!(states(&story), [by_group; 2]);
}
