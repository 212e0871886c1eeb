//! What happens between the agent and the frameworks' own executors.

use proffer_types::ExecutorId;
use proffer_types::executor::ExecutorUpdate;

use super::*;

const EXECUTOR: LaunchId = LaunchId(50);

fn executor(seq: u64) -> AgentOrder {
    let kind = LaunchKind::Executor(ExecutorId::new("ex").unwrap());
    AgentOrder::Launch(Box::new(LaunchOrder { kind, ..order(seq, EXECUTOR.0) }))
}

fn task(seq: u64, launch: u64) -> AgentOrder {
    AgentOrder::Launch(Box::new(LaunchOrder { kind: LaunchKind::TaskOf(EXECUTOR), ..order(seq, launch) }))
}

fn update(launch: u64, seq: u32, state: TaskState) -> ExecutorUpdate {
    ExecutorUpdate::new(LaunchId(launch), seq, state)
}

impl Story {
    /// With an executor that runs and has subscribed as stream 1.
    fn with_executor() -> Self {
        let mut story = Self::open();
        story.orders(5, vec![executor(1)]);
        story.event(started(50));
        story.core.on_executor_subscribed(EXECUTOR, 1, &[]).unwrap();
        story.effects();
        story
    }

    fn subscribe(&mut self, stream: u64, launches: &[u64]) -> Vec<String> {
        let launches: Vec<_> = launches.iter().map(|launch| LaunchId(*launch)).collect();
        self.core.on_executor_subscribed(EXECUTOR, stream, &launches).unwrap();
        self.effects()
    }

    fn updates(&mut self, updates: Vec<ExecutorUpdate>) -> Vec<String> {
        self.core.on_executor_updates(EXECUTOR, updates).unwrap();
        self.effects()
    }

    fn status_of(&self, launch: u64) -> Status {
        self.core.launch(LaunchId(launch)).unwrap().status.unwrap().clone()
    }
}

#[test]
fn an_executor_from_launch_to_end() {
    let mut story = Story::open();
    let both = story.orders(5, vec![executor(1), task(2, 60)]);
    assert_eq!(both, ["write launch 50", "write launch 60", "write assigned 50", "launch 50"]);
    assert_eq!(story.event(started(50)), ["write 50 1:STARTING", "send 50 1:STARTING", "listen 50"]);
    assert_eq!(
        story.subscribe(1, &[]),
        [
            "greet 50 as ex",
            "write 50 2:RUNNING",
            "send 50 2:RUNNING",
            "resize 50 1000 32",
            "write handed 60",
            "resize 50 2000 64",
            "hand [60] to 50"
        ]
    );
    assert_eq!(
        story.orders(5, vec![task(3, 61)]),
        ["write launch 61", "write handed 61", "resize 50 3000 96", "hand [61] to 50"]
    );
    let running = story.updates(vec![update(60, 1, TaskState::Running)]);
    assert_eq!(running, ["write 60 1:RUNNING", "send 60 1:RUNNING", "write heard 60 1"]);
    assert_eq!(story.updates(vec![update(60, 1, TaskState::Running)]), [""; 0], "said twice, taken once");
    let over = story.updates(vec![update(60, 2, TaskState::Finished)]);
    assert_eq!(over, ["write 60 2:FINISHED", "send 60 2:FINISHED", "write heard 60 2", "resize 50 2000 64"]);
    // It has no container that could be forgotten.
    assert_eq!(story.orders(5, vec![confirm(60, 2)]), ["write forgotten 60"]);
    assert_eq!(story.updates(vec![update(60, 2, TaskState::Finished)]), [""; 0], "its answer was lost");

    // The tasks' ends come before the executor's.
    let over = story.event(ended(50, end(Some(7), None)));
    assert_eq!(
        over,
        [
            "end listening 50",
            "write 61 1:FAILED(executor_ended)",
            "send 61 1:FAILED(executor_ended)",
            "write 50 3:FAILED(exit_code)",
            "send 50 3:FAILED(exit_code)"
        ]
    );
    assert_eq!(story.status_of(61).message, "its executor has ended: it exited with code 7");
    let late = story.orders(5, vec![task(4, 62)]);
    assert_eq!(late.last().unwrap(), "send 62 1:DROPPED(executor_ended)");
    let refused = story.core.on_executor_updates(EXECUTOR, vec![update(61, 1, TaskState::Running)]);
    assert_eq!(refused, Err(ExecutorRefusal::Ending));
}

#[test]
fn after_a_crash_an_executor_takes_up_where_it_was() {
    let mut story = Story::with_executor();
    story.orders(5, vec![task(2, 60), task(3, 61), task(4, 62)]);
    story.updates(vec![update(60, 1, TaskState::Running), update(62, 1, TaskState::Running)]);
    story.updates(vec![update(62, 2, TaskState::Finished)]);
    story.orders(5, vec![kill(5, 60, 900), confirm(62, 2)]);
    story.restart();
    // Only the executor has a container.
    assert_eq!(story.effects(), ["recover [50]"]);
    assert_eq!(story.event(started(50)), ["listen 50"]);
    // 61 was lost on the way, the answer to the end of 62 too.
    assert_eq!(
        story.subscribe(9, &[60, 62]),
        ["greet 50 as ex", "resize 50 3000 96", "hand [61] to 50", "tell 50 to kill 60 900"]
    );
    assert_eq!(story.updates(vec![update(60, 1, TaskState::Running)]), [""; 0]);
    assert_eq!(story.updates(vec![update(62, 2, TaskState::Finished)]), [""; 0]);
    let killed = story.updates(vec![update(60, 2, TaskState::Killed)]);
    assert_eq!(killed[0], "write 60 3:KILLED(kill_requested)");
}

/// The agent dies between the two records of an end, and so the executor says it again.
#[test]
fn an_end_that_was_written_down_but_not_counted_is_no_lie() {
    let mut story = Story::with_executor();
    story.orders(5, vec![task(2, 60)]);
    story.updates(vec![update(60, 1, TaskState::Running), update(60, 2, TaskState::Finished)]);
    assert!(matches!(story.records.pop(), Some(Record::Heard { .. })));
    story.restart();
    story.event(started(50));
    story.subscribe(9, &[60]);
    assert_eq!(story.updates(vec![update(60, 2, TaskState::Finished)]), ["write heard 60 2"]);
    assert_eq!(story.updates(vec![update(60, 2, TaskState::Finished)]), [""; 0]);
}

#[test]
fn a_task_of_an_executor_is_killed_by_it() {
    let mut story = Story::with_executor();
    story.orders(5, vec![task(2, 60)]);
    story.updates(vec![update(60, 1, TaskState::Starting)]);
    assert_eq!(
        story.orders(5, vec![kill(3, 60, 500)]),
        [
            "write kill 60 500",
            "write 60 2:KILLING(kill_requested)",
            "send 60 2:KILLING(kill_requested)",
            "tell 50 to kill 60 500"
        ]
    );
    // It had said so before it heard of the kill.
    assert_eq!(
        story.updates(vec![update(60, 2, TaskState::Running)])[0],
        "write 60 3:KILLING(kill_requested)"
    );
    assert_eq!(story.updates(vec![update(60, 3, TaskState::Finished)])[0], "write 60 4:FINISHED");

    let both = story.orders(5, vec![task(4, 61), kill(5, 61, 0)]);
    assert!(both.contains(&"send 61 1:KILLED(killed_during_launch)".to_owned()), "{both:?}");
}

#[test]
fn a_task_that_waits_for_its_executor_can_be_killed() {
    let mut story = Story::open();
    story.orders(5, vec![executor(1), task(2, 60), task(3, 61)]);
    let killed = story.orders(5, vec![kill(4, 60, 0)]);
    assert_eq!(killed[1], "write 60 1:KILLED(killed_during_launch)");
    // And the other ends with an executor that cannot be started, for the same reason.
    let failed = Event::LaunchFailed {
        launch: EXECUTOR,
        reason: Reason::ExecFailed,
        message: "no such program".into(),
        exit_code: Some(127),
    };
    let failed = story.event(failed);
    assert_eq!(failed[0], "write 61 1:FAILED(exec_failed)");
    assert_eq!(failed[2], "write 50 1:FAILED(exec_failed)");
}

#[test]
fn who_does_not_subscribe_is_ended() {
    let mut story = Story::open();
    story.core.on_time(1_000, 0);
    story.orders(5, vec![executor(1), task(2, 60)]);
    story.event(started(50));
    story.core.on_time(3_000, 0);
    story.orders(5, vec![]);
    story.core.on_session_lost();
    assert_eq!(story.core.deadline_ms(), Some(61_000));
    story.core.on_time(61_000, 0);
    let condemned = [
        "write condemned 50 executor_registration_timeout",
        "write 50 2:KILLING(executor_registration_timeout)",
        "kill 50 3000",
    ];
    assert_eq!(story.effects(), condemned);
    assert_eq!(story.core.on_executor_subscribed(EXECUTOR, 1, &[]), Err(ExecutorRefusal::Ending));
    let mut end = end(None, Some(15));
    end.kill_sent = KillSent::Term;
    let over = story.event(ended(50, end));
    assert_eq!(over[1], "write 60 1:FAILED(executor_registration_timeout)");
    assert_eq!(over[2], "write 50 3:FAILED(executor_registration_timeout)");

    // Who loses its stream has as long again, and no longer.
    let mut story = Story::with_executor();
    assert_eq!(story.core.deadline_ms(), Some(2_500), "only the session's");
    story.core.on_executor_lost(EXECUTOR, 7);
    assert_eq!(story.core.deadline_ms(), Some(2_500), "of an older stream");
    story.core.on_executor_lost(EXECUTOR, 1);
    story.core.on_session_lost();
    assert_eq!(story.core.deadline_ms(), Some(60_000));
    assert_eq!(story.subscribe(2, &[]), ["greet 50 as ex"]);
    assert_eq!(story.core.deadline_ms(), None);
}

#[test]
fn who_lies_is_ended_with_its_tasks() {
    type Lie = (Vec<ExecutorUpdate>, &'static str);
    let lies: [Lie; 6] = [
        (vec![update(99, 1, TaskState::Running)], "it spoke of launch 99, which is not its"),
        (vec![update(70, 1, TaskState::Running)], "it spoke of launch 70, which is not its"),
        (
            vec![update(60, 1, TaskState::Finished), update(60, 2, TaskState::Running)],
            "it said RUNNING of launch 60 after FINISHED",
        ),
        (
            vec![update(60, 1, TaskState::Running), update(60, 2, TaskState::Starting)],
            "it said STARTING of launch 60 after RUNNING",
        ),
        (
            vec![update(60, 1, TaskState::Unreachable)],
            "it said UNREACHABLE of launch 60, which is not for executors to say",
        ),
        (
            vec![update(60, 1, TaskState::Staging)],
            "it said STAGING of launch 60, which is not for executors to say",
        ),
    ];
    for (lie, what) in lies {
        let mut story = Story::with_executor();
        // 70 is a task of its own.
        story.orders(5, vec![task(2, 60), task(3, 61)]);
        story.launch(4, 70);
        let refused = story.core.on_executor_updates(EXECUTOR, lie);
        assert_eq!(refused, Err(ExecutorRefusal::Misbehaved(what.into())));
        let effects = story.effects();
        assert_eq!(
            effects[effects.len() - 5..],
            [
                format!("tell 50 off: {what}"),
                "write condemned 50 executor_misbehaved".into(),
                "write 50 3:KILLING(executor_misbehaved)".into(),
                "send 50 3:KILLING(executor_misbehaved)".into(),
                "kill 50 3000".into()
            ]
        );
        assert_eq!(
            story.core.on_executor_updates(EXECUTOR, vec![update(61, 1, TaskState::Running)]),
            Err(ExecutorRefusal::Ending)
        );
        // A crash in between does not excuse it.
        story.restart();
        story.effects();
        assert_eq!(story.event(started(50)), ["listen 50", "kill 50 0"]);
        story.event(ended(50, end(None, Some(9))));
        let (task, own) = (story.status_of(61), story.status_of(50));
        assert_eq!((task.state, task.reason), (TaskState::Failed, Reason::ExecutorMisbehaved));
        assert_eq!((own.state, own.reason), (TaskState::Failed, Reason::ExecutorMisbehaved));
        assert!(task.message.contains(what), "{}", task.message);
        // The neighbour goes on.
        assert_eq!(story.core.launch(LaunchId(70)).unwrap().phase, Phase::Recovering);
    }
    // To forget a task that was said to run is a lie too.
    let mut story = Story::with_executor();
    story.orders(5, vec![task(2, 60)]);
    story.updates(vec![update(60, 1, TaskState::Running)]);
    let refused = story.core.on_executor_subscribed(EXECUTOR, 2, &[]).unwrap_err();
    assert!(matches!(refused, ExecutorRefusal::Misbehaved(_)), "{refused}");
}

#[test]
fn an_executor_is_shut_down_before_it_is_killed() {
    let mut story = Story::with_executor();
    story.orders(5, vec![task(2, 60)]);
    assert_eq!(
        story.orders(5, vec![kill(3, 50, 700)]),
        [
            "write kill 50 700",
            "write 50 3:KILLING(kill_requested)",
            "send 50 3:KILLING(kill_requested)",
            "shut down 50 700"
        ]
    );
    // What comes now was meant for another.
    assert_eq!(story.orders(5, vec![task(4, 61)]), ["write launch 61"]);
    story.core.on_session_lost();
    assert_eq!(story.core.deadline_ms(), Some(700));
    story.core.on_time(700, 0);
    assert_eq!(story.effects(), ["kill 50 0"]);
    let mut end = end(None, Some(9));
    end.kill_sent = KillSent::Kill;
    story.event(ended(50, end));
    let of = |launch| (story.status_of(launch).state, story.status_of(launch).reason);
    assert_eq!(of(60), (TaskState::Killed, Reason::KillRequested));
    assert_eq!(of(61), (TaskState::Dropped, Reason::ExecutorEnded));
    assert_eq!(of(50), (TaskState::Killed, Reason::KillRequested));

    // Without a stream the supervisor tells it.
    let mut story = Story::with_executor();
    story.core.on_executor_lost(EXECUTOR, 1);
    assert_eq!(story.orders(5, vec![kill(3, 50, 700)]).last().unwrap(), "kill 50 700");
}

#[test]
fn bytes_go_both_ways_or_are_lost() {
    let mut story = Story::with_executor();
    let message = || AgentOrder::Message { launch: EXECUTOR, data: b"ping".to_vec() };
    assert_eq!(story.orders(5, vec![message()]), ["tell 50 ping"]);
    story.core.on_executor_message(EXECUTOR, b"pong".to_vec()).unwrap();
    assert_eq!(story.effects(), ["message 50 pong"]);
    story.core.on_executor_lost(EXECUTOR, 1);
    assert_eq!(story.orders(5, vec![message()]), [""; 0]);
    story.core.on_session_lost();
    story.core.on_executor_message(EXECUTOR, b"pong".to_vec()).unwrap();
    assert_eq!(story.effects(), [""; 0]);
}

#[test]
fn tasks_of_an_executor_are_forgotten_with_it() {
    let mut story = Story::with_executor();
    story.orders(5, vec![task(2, 60), task(3, 61)]);
    let forget = |launch| AgentOrder::Forget { launch: LaunchId(launch) };
    assert_eq!(story.orders(5, vec![forget(60)]), ["write forget 60", "tell 50 to kill 60 3000"]);
    assert_eq!(
        story.updates(vec![update(60, 1, TaskState::Killed)]),
        ["write forgotten 60", "cleaned [60]", "resize 50 2000 64"]
    );
    story.orders(5, vec![forget(61), forget(50)]);
    let over = story.event(ended(50, end(None, Some(15))));
    assert_eq!(
        over,
        [
            "end listening 50",
            "write forgotten 61",
            "cleaned [61]",
            "write forgotten 50",
            "forget 50",
            "cleaned [50]"
        ]
    );
}

#[test]
fn a_rewritten_checkpoint_says_the_same_of_executors() {
    let mut story = Story::with_executor();
    story.orders(5, vec![task(2, 60), task(3, 61), task(4, 62)]);
    story.updates(vec![update(60, 1, TaskState::Running), update(61, 4, TaskState::Finished)]);
    story.core.on_executor_updates(EXECUTOR, vec![update(99, 1, TaskState::Running)]).unwrap_err();
    story.effects();
    let of = |records: Vec<Record>| {
        let mut core = Core::recover(config(1), story.identity.clone(), records, RequestId(1));
        core.take_effects(&mut |_| InstanceId(1));
        let phases: Vec<_> = core.held().map(|held| (held.launch, held.phase)).collect();
        let own = |task: &super::super::task::Task| (task.heard, task.condemned);
        (phases, core.held.values().map(own).collect::<Vec<_>>(), core.listing())
    };
    assert_eq!(of(story.core.records()), of(story.records.clone()));
}

/// An answer may be lost with the agent; the stream of the next one is opened in its own time.
#[test]
fn who_repeats_itself_before_it_subscribes_is_no_liar() {
    let mut story = Story::with_executor();
    story.orders(5, vec![task(2, 60)]);
    let over = vec![update(60, 1, TaskState::Finished)];
    story.updates(over.clone());
    story.restart();
    story.effects();
    story.event(started(50));
    story.attach(5);
    assert_eq!(story.orders(5, vec![confirm(60, 1)]), ["write forgotten 60"]);
    let early = story.core.on_executor_updates(EXECUTOR, over.clone());
    assert_eq!(early, Err(ExecutorRefusal::Unsubscribed));
    assert_eq!(story.effects(), [""; 0]);
    story.subscribe(1, &[60]);
    assert_eq!(story.updates(over), [""; 0], "nobody asks for it any more");
}

#[test]
fn a_condemned_executor_is_ended_under_a_supervisor_that_hangs() {
    let mut story = Story::with_executor();
    story.core.on_executor_updates(EXECUTOR, vec![update(99, 1, TaskState::Running)]).unwrap_err();
    story.effects();
    story.restart();
    assert_eq!(story.effects(), ["recover [50]"]);
    // Nothing was heard of it.
    assert_eq!(story.event(Event::Recovered), ["kill 50 0"]);
}

#[test]
fn an_executor_that_is_forgotten_before_it_starts_leaves_no_task() {
    let mut story = Story::open();
    story.orders(5, vec![executor(1), task(2, 60)]);
    story.orders(5, vec![AgentOrder::Forget { launch: EXECUTOR }]);
    story.event(Event::NotStarted { launch: EXECUTOR });
    assert!(story.core.launch(EXECUTOR).is_none());
    let over = story.status_of(60);
    assert_eq!((over.state, over.reason), (TaskState::Dropped, Reason::ExecutorEnded));
}
