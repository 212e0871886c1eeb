//! What happens to the agent, told as sequences of inputs and the effects they must have.

use std::collections::BTreeMap;
use std::sync::Arc;

use proffer_containerizer::{Cause, End, Event, InstanceId, KillSent, Oom};
use proffer_types::event::{AgentOrder, AgentRefusal, AgentReport, LaunchKind, LaunchOrder};
use proffer_types::{
    AgentId, AgentInfo, BootId, ClusterId, Epoch, FrameworkId, LaunchId, Reason, RequestId, Resources, Role,
    Source, TaskId, TaskSpec, TaskState,
};

use super::*;

#[path = "executor_stories.rs"]
mod executors;
#[path = "group_stories.rs"]
mod groups;

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);

pub(super) fn epoch(term: u64) -> Epoch {
    Epoch { generation: 0, term }
}

pub(super) fn config(boot: u128) -> Config {
    let info = AgentInfo { features: ["x".to_owned()].into(), ..AgentInfo::default() };
    Config { info, boot_id: BootId(boot), registration_ms: 60_000 }
}

pub(crate) fn order(seq: u64, launch: u64) -> LaunchOrder {
    LaunchOrder {
        agent_seq: seq,
        launch: LaunchId(launch),
        framework: FrameworkId(1),
        task_id: TaskId::new(&format!("t{launch}")).unwrap(),
        role: Role::new("*").unwrap(),
        spec: Arc::new(TaskSpec {
            argv: vec!["true".into()],
            resources: Resources::parse("cpus:1;mem:32MiB").unwrap(),
            kill_grace_ms: 3_000,
            pids_max: 100,
            ..TaskSpec::default()
        }),
        framework_user: String::new(),
        resources: Resources::parse("cpus:1;mem:32MiB").unwrap(),
        env: BTreeMap::new(),
        array: None,
        group: None,
        kind: LaunchKind::Task,
    }
}

pub(super) fn welcome(last_seq: u64) -> AgentOrder {
    AgentOrder::Welcome {
        agent: AgentId(9),
        cluster: CLUSTER,
        ping_ms: 1_000,
        reattach_spread_ms: 5,
        last_seq,
    }
}

pub(super) fn kill(seq: u64, launch: u64, grace_ms: u64) -> AgentOrder {
    AgentOrder::Kill { agent_seq: seq, launch: LaunchId(launch), grace_ms, reason: Reason::KillRequested }
}

pub(super) fn end(exit_code: Option<i32>, signal: Option<i32>) -> End {
    End {
        cause: Cause::Exited,
        exit_code,
        signal,
        oom: None,
        oom_kills: 0,
        memory_peak_bytes: None,
        kill_sent: KillSent::None,
        started_unix_ms: 1,
        finished_unix_ms: 2,
        ..End::default()
    }
}

fn started(launch: u64) -> Event {
    Event::Started { launch: LaunchId(launch), isolation: "linux", started_unix_ms: 1 }
}

fn ended(launch: u64, end: End) -> Event {
    Event::Ended { launch: LaunchId(launch), end }
}

fn confirm(launch: u64, task_seq: u32) -> AgentOrder {
    AgentOrder::Confirm { launch: LaunchId(launch), task_seq }
}

/// An agent and what it has written down.
struct Story {
    core: Core,
    identity: Option<Identity>,
    records: Vec<Record>,
    boot: u128,
}

impl Story {
    fn begin() -> Self {
        let core = Core::recover(config(1), None, [], RequestId(11));
        let mut story = Self { core, identity: None, records: Vec::new(), boot: 1 };
        story.effects();
        story.core.on_container_event(Event::Recovered);
        story
    }

    /// An agent with an open session under term 5.
    fn open() -> Self {
        let mut story = Self::begin();
        story.core.on_connected(RequestId(12));
        story.orders(5, vec![welcome(0), welcome(0)]);
        story
    }

    fn restart(&mut self) {
        self.core =
            Core::recover(config(self.boot), self.identity.clone(), self.records.clone(), RequestId(13));
    }

    fn attach(&mut self, term: u64) -> Vec<String> {
        self.core.on_container_event(Event::Recovered);
        self.effects();
        self.core.on_connected(RequestId(14));
        self.effects();
        let last_seq = self.core.last_seq();
        self.orders(term, vec![welcome(last_seq)])
    }

    fn orders(&mut self, term: u64, orders: Vec<AgentOrder>) -> Vec<String> {
        self.core.on_orders(epoch(term), orders);
        self.effects()
    }

    fn launch(&mut self, seq: u64, launch: u64) -> Vec<String> {
        self.orders(5, vec![AgentOrder::Launch(Box::new(order(seq, launch)))])
    }

    fn event(&mut self, event: Event) -> Vec<String> {
        self.core.on_container_event(event);
        self.effects()
    }

    /// Performs the effects, and tells them in short.
    fn effects(&mut self) -> Vec<String> {
        let effects = self.core.take_effects(&mut |_| InstanceId(1));
        effects
            .into_iter()
            .map(|effect| {
                let text = short(&effect);
                match effect {
                    Effect::PersistIdentity(identity) => self.identity = Some(identity),
                    Effect::Checkpoint(record) => self.records.push(record),
                    _ => {}
                }
                text
            })
            .collect()
    }
}

fn short(effect: &Effect) -> String {
    match effect {
        Effect::PersistIdentity(id) => format!("identity {:?} term {}", id.agent.map(|a| a.0), id.epoch.term),
        Effect::Checkpoint(record) => match record {
            Record::Launch(order) => format!("write launch {}", order.launch.0),
            Record::Assigned { launch, .. } => format!("write assigned {}", launch.0),
            Record::Kill { launch, order } => format!("write kill {} {}", launch.0, order.grace_ms),
            Record::Seen(seq) => format!("write seen {seq}"),
            Record::Status { launch, status } => format!("write {} {}", launch.0, said(status)),
            Record::Forget(launch) => format!("write forget {}", launch.0),
            Record::Forgotten(launch) => format!("write forgotten {}", launch.0),
            Record::Handed(launch) => format!("write handed {}", launch.0),
            Record::Heard { launch, seq } => format!("write heard {} {seq}", launch.0),
            Record::Condemned { launch, reason } => format!("write condemned {} {reason}", launch.0),
        },
        Effect::Send(report) => match report {
            AgentReport::Hello(hello) => {
                format!("hello {:?} seen {}", hello.agent.map(|a| a.0), hello.last_seq)
            }
            AgentReport::Listing(held) => {
                let items: Vec<_> =
                    held.iter().map(|h| format!("{} {}", h.launch.0, said(&h.status))).collect();
                format!("listing [{}]", items.join(", "))
            }
            AgentReport::Status { launch, status } => format!("send {} {}", launch.0, said(status)),
            AgentReport::Pong { n } => format!("pong {n}"),
            AgentReport::Cleaned(launches) => {
                format!("cleaned {:?}", launches.iter().map(|l| l.0).collect::<Vec<_>>())
            }
            AgentReport::Message { launch, data } => {
                format!("message {} {}", launch.0, String::from_utf8_lossy(data))
            }
        },
        Effect::Recover(known) => {
            format!("recover {:?}", known.iter().map(|k| k.launch.0).collect::<Vec<_>>())
        }
        Effect::Launch { order, .. } => format!("launch {}", order.launch.0),
        Effect::LaunchGroup { orders, .. } => format!("launch {:?}", launches(orders)),
        Effect::Listen(launch) => format!("listen {}", launch.0),
        Effect::EndListening(launch) => format!("end listening {}", launch.0),
        Effect::Hand { executor, orders } => format!("hand {:?} to {}", launches(orders), executor.0),
        Effect::ToExecutor { executor, event } => match event {
            ExecutorEvent::Subscribed { executor: name, .. } => format!("greet {} as {name}", executor.0),
            ExecutorEvent::Launch(_) => "launch by itself".into(),
            ExecutorEvent::Kill { launch, grace_ms } => {
                format!("tell {} to kill {} {grace_ms}", executor.0, launch.0)
            }
            ExecutorEvent::Message(data) => format!("tell {} {}", executor.0, String::from_utf8_lossy(data)),
            ExecutorEvent::Shutdown { grace_ms } => format!("shut down {} {grace_ms}", executor.0),
            ExecutorEvent::Error { message } => format!("tell {} off: {message}", executor.0),
        },
        Effect::Resize { launch, cpus_milli, memory_bytes } => {
            format!("resize {} {cpus_milli} {}", launch.0, memory_bytes >> 20)
        }
        Effect::Kill { launch, grace_ms } => format!("kill {} {grace_ms}", launch.0),
        Effect::Forget(launch) => format!("forget {}", launch.0),
        Effect::OpenData { launch, .. } => format!("data {}", launch.0),
        Effect::Reconnect(why) => format!("reconnect {why:?}"),
        Effect::Stop(_) => "stop".into(),
    }
}

fn launches(orders: &[LaunchOrder]) -> Vec<u64> {
    orders.iter().map(|order| order.launch.0).collect()
}

fn said(status: &Status) -> String {
    let reason = if status.reason == Reason::None { String::new() } else { format!("({})", status.reason) };
    format!("{}:{}{reason}", status.task_seq, status.state)
}

#[test]
fn registers_then_attaches_with_the_id_it_got() {
    let mut story = Story::begin();
    assert!(story.core.wants_session());
    story.core.on_connected(RequestId(12));
    assert_eq!(story.effects(), ["hello None seen 0"]);
    assert_eq!(story.orders(5, vec![welcome(0)]), ["identity Some(9) term 5", "hello Some(9) seen 0"]);
    assert_eq!(story.core.session_epoch(), None);
    assert_eq!(story.orders(5, vec![welcome(0), AgentOrder::Ping { n: 3 }]), ["pong 3"]);
    assert_eq!(story.core.session_epoch(), Some(epoch(5)));

    // Another life of the daemon is the same agent, and does not write what it knows already.
    story.restart();
    assert_eq!(story.effects(), ["recover []"]);
    assert!(!story.core.wants_session());
    story.core.on_container_event(Event::Recovered);
    story.core.on_connected(RequestId(12));
    assert_eq!(story.effects(), ["hello Some(9) seen 0"]);
}

#[test]
fn one_task_from_launch_to_confirmation() {
    let mut story = Story::open();
    assert_eq!(story.launch(1, 100), ["write launch 100", "write assigned 100", "launch 100"]);
    assert_eq!(story.event(started(100)), ["write 100 1:RUNNING", "send 100 1:RUNNING"]);
    assert_eq!(story.event(started(100)), [""; 0]);
    let over = story.event(ended(100, end(Some(0), None)));
    assert_eq!(over, ["write 100 2:FINISHED", "send 100 2:FINISHED"]);
    assert_eq!(story.orders(5, vec![confirm(100, 1)]), [""; 0]);
    assert_eq!(story.orders(5, vec![confirm(100, 2)]), ["write forgotten 100", "forget 100"]);
    assert_eq!(story.orders(5, vec![confirm(100, 2)]), [""; 0]);
    // The same launch, delivered again by a confused network, is not run again.
    assert_eq!(story.launch(1, 100), [""; 0]);
}

#[test]
fn how_it_ended_is_told_truly() {
    let killed = |mut end: End| {
        end.kill_sent = KillSent::Term;
        end
    };
    let of = |cause| End { cause, ..end(None, None) };
    let oom = End { oom: Some(Oom { peak_bytes: 30 << 20, limit_bytes: 32 << 20 }), ..end(None, Some(9)) };
    let cases = [
        (false, end(Some(0), None), TaskState::Finished, Reason::None, Source::Task),
        (false, end(Some(7), None), TaskState::Failed, Reason::ExitCode, Source::Task),
        (false, end(None, Some(11)), TaskState::Failed, Reason::Signal, Source::Task),
        (false, oom.clone(), TaskState::Failed, Reason::OutOfMemory, Source::Task),
        (false, of(Cause::SupervisorLost), TaskState::Failed, Reason::SupervisorLost, Source::Agent),
        (false, of(Cause::Interrupted), TaskState::Failed, Reason::LaunchInterrupted, Source::Agent),
        (true, killed(end(None, Some(15))), TaskState::Killed, Reason::KillRequested, Source::Agent),
        (true, killed(end(Some(0), None)), TaskState::Killed, Reason::KillRequested, Source::Agent),
        // It ended by itself before the order arrived.
        (true, end(Some(0), None), TaskState::Finished, Reason::None, Source::Task),
    ];
    for (kill_ordered, how, state, reason, source) in cases {
        let mut story = Story::open();
        story.launch(1, 100);
        story.event(started(100));
        if kill_ordered {
            story.orders(5, vec![kill(2, 100, 500)]);
        }
        story.event(ended(100, how.clone()));
        let status = story.core.launch(LaunchId(100)).unwrap().status.unwrap().clone();
        assert_eq!((status.state, status.reason, status.source), (state, reason, source), "{how:?}");
        assert_eq!((status.exit_code, status.signal), (how.exit_code, how.signal));
    }
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(ended(100, oom));
    let status = story.core.launch(LaunchId(100)).unwrap().status.unwrap().clone();
    assert_eq!(status.message, "held 30MiB at its peak, its limit is 32MiB");
    assert_eq!(status.memory_peak_bytes, Some(30 << 20));
}

#[test]
fn a_launch_that_fails_says_why() {
    let mut story = Story::open();
    story.launch(1, 100);
    let failed = Event::LaunchFailed {
        launch: LaunchId(100),
        reason: Reason::ExecFailed,
        message: "no such program".into(),
        exit_code: Some(127),
    };
    assert_eq!(story.event(failed), ["write 100 1:FAILED(exec_failed)", "send 100 1:FAILED(exec_failed)"]);
    let view = story.core.launch(LaunchId(100)).unwrap();
    assert_eq!((view.phase, view.status.unwrap().exit_code), (Phase::Ended, Some(127)));
}

#[test]
fn what_is_not_understood_is_not_launched() {
    let mut story = Story::open();
    let mut strange = order(1, 100);
    strange.spec = Arc::new(TaskSpec { needs: vec!["gpu.share".into(), "x".into()], ..TaskSpec::default() });
    let effects = story.orders(5, vec![AgentOrder::Launch(Box::new(strange))]);
    assert_eq!(
        effects,
        ["write launch 100", "write 100 1:DROPPED(unsupported)", "send 100 1:DROPPED(unsupported)"]
    );
    let message = &story.core.launch(LaunchId(100)).unwrap().status.unwrap().message;
    assert_eq!(message, "this agent does not know what the task needs: gpu.share");
    // Nor by an agent that was started anew before that was written down, or that knows less than the one before it.
    let mut anew = Story::open();
    anew.records.push(story.records[0].clone());
    anew.restart();
    assert_eq!(anew.effects(), ["recover []", "write 100 1:DROPPED(unsupported)"]);

    story.core.on_unreadable_launch(epoch(5), 2, LaunchId(101), "spec: missing");
    assert_eq!(
        story.effects(),
        ["write 101 1:DROPPED(unsupported)", "send 101 1:DROPPED(unsupported)", "write seen 2"]
    );
    story.restart();
    assert_eq!(story.effects(), ["recover []"]);
    assert_eq!(story.attach(5), ["send 100 1:DROPPED(unsupported)", "send 101 1:DROPPED(unsupported)"]);
}

#[test]
fn a_running_task_is_killed_and_the_grace_only_shrinks() {
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(started(100));
    assert_eq!(
        story.orders(5, vec![kill(2, 100, 500)]),
        [
            "write kill 100 500",
            "write 100 2:KILLING(kill_requested)",
            "send 100 2:KILLING(kill_requested)",
            "kill 100 500"
        ]
    );
    assert_eq!(story.orders(5, vec![kill(2, 100, 500)]), [""; 0]);
    assert_eq!(story.orders(5, vec![kill(3, 100, 9_000)]), ["write seen 3"]);
    assert_eq!(story.orders(5, vec![kill(4, 100, 20)]), ["write kill 100 20", "kill 100 20"]);
    assert_eq!(story.orders(5, vec![kill(5, 999, 20)]), ["write seen 5"]);
}

#[test]
fn a_launch_read_together_with_its_kill_is_never_started() {
    let mut story = Story::open();
    let both = vec![AgentOrder::Launch(Box::new(order(1, 100))), kill(2, 100, 0)];
    let killed = "100 1:KILLED(killed_during_launch)";
    assert_eq!(
        story.orders(5, both),
        [
            "write launch 100".into(),
            "write kill 100 0".into(),
            format!("write {killed}"),
            format!("send {killed}")
        ]
    );
    // One message apart, but before the agent came to act on the first.
    let mut story = Story::open();
    story.core.on_orders(epoch(5), vec![AgentOrder::Launch(Box::new(order(1, 100)))]);
    story.core.on_orders(epoch(5), vec![kill(2, 100, 0)]);
    assert!(!story.effects().contains(&"launch 100".to_owned()));
}

#[test]
fn a_kill_during_the_launch_reaches_the_containerizer() {
    let mut story = Story::open();
    story.launch(1, 100);
    assert_eq!(story.orders(5, vec![kill(2, 100, 500)]), ["write kill 100 500", "kill 100 500"]);
    // It was too late to stop it.
    assert_eq!(
        story.event(started(100)),
        [
            "write 100 1:RUNNING",
            "send 100 1:RUNNING",
            "write 100 2:KILLING(kill_requested)",
            "send 100 2:KILLING(kill_requested)",
            "kill 100 500"
        ]
    );
}

#[test]
fn after_a_crash_each_launch_is_what_the_containerizer_says() {
    let mut story = Story::open();
    for (seq, launch) in [(1, 100), (2, 101), (3, 102), (4, 103)] {
        story.launch(seq, launch);
    }
    story.event(started(100));
    story.event(started(101));
    story.orders(5, vec![kill(5, 103, 10)]);
    story.restart();
    assert_eq!(story.effects(), ["recover [100, 101, 102, 103]"]);
    assert_eq!(story.event(started(100)), [""; 0]);
    // Ended while the agent was dead, with its true status.
    assert_eq!(story.event(ended(101, end(Some(7), None))), ["write 101 2:FAILED(exit_code)"]);
    // Never begun: it may be started now, or, if it was killed, never.
    let not_started = |launch| Event::NotStarted { launch: LaunchId(launch) };
    assert_eq!(story.event(not_started(102)), ["write assigned 102", "launch 102"]);
    assert_eq!(story.event(not_started(103)), ["write 103 1:KILLED(killed_during_launch)"]);
    // All that was not confirmed is sent to the next leader, in order.
    assert_eq!(
        story.attach(6),
        [
            "identity Some(9) term 6",
            "send 100 1:RUNNING",
            "send 101 1:RUNNING",
            "send 101 2:FAILED(exit_code)",
            "send 103 1:KILLED(killed_during_launch)"
        ]
    );
}

#[test]
fn what_was_never_handed_over_is_started_without_asking() {
    let mut story = Story::open();
    story.core.on_orders(epoch(5), vec![AgentOrder::Launch(Box::new(order(1, 100)))]);
    // Crash after the first effect.
    let first = story.core.take_effects(&mut |_| InstanceId(1)).remove(0);
    let Effect::Checkpoint(record) = first else { panic!("{first:?}") };
    story.records.push(record);
    story.restart();
    assert_eq!(story.effects(), ["recover []", "write assigned 100", "launch 100"]);
    assert_eq!(story.core.last_seq(), 1);
}

#[test]
fn a_task_that_ran_is_never_started_again() {
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(started(100));
    story.restart();
    story.effects();
    let lost = story.event(Event::NotStarted { launch: LaunchId(100) });
    assert_eq!(lost, ["write 100 2:FAILED(supervisor_lost)"]);
}

#[test]
fn a_launch_of_a_supervisor_that_hangs_can_be_ended() {
    let mut story = Story::open();
    story.launch(1, 100);
    story.launch(2, 101);
    story.event(started(100));
    story.orders(5, vec![kill(3, 100, 1_000)]);
    story.restart();
    story.effects();
    // Nobody has said what became of them, and recovery is over.
    assert_eq!(story.event(Event::Recovered), ["kill 100 1000"]);
    story.attach(5);
    assert_eq!(story.orders(5, vec![kill(4, 101, 2_000)]), ["write kill 101 2000", "kill 101 2000"]);
}

#[test]
fn a_crash_before_forgetting_leaves_no_container() {
    let mut story = Story::open();
    assert_eq!(story.event(ended(100, end(Some(0), None))), ["forget 100"]);
    assert_eq!(story.event(started(101)), ["forget 101"]);
}

#[test]
fn a_reboot_ends_everything_but_the_agent() {
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(started(100));
    story.boot = 2;
    // Even if the records are given, they are not read.
    story.restart();
    assert_eq!(story.effects(), ["identity Some(9) term 5", "recover []"]);
    story.core.on_container_event(Event::Recovered);
    story.core.on_connected(RequestId(1));
    assert_eq!(story.effects(), ["hello Some(9) seen 0"]);
    assert_eq!(story.core.held().count(), 0);
    story.orders(5, vec![welcome(17)]);
    assert_eq!(story.core.last_seq(), 17);
    assert_eq!(story.launch(17, 200), [""; 0]);
    assert_eq!(story.launch(18, 201).last().unwrap(), "launch 201");
}

#[test]
fn a_leader_of_the_past_is_refused() {
    let mut story = Story::open();
    story.core.on_session_lost();
    story.core.on_connected(RequestId(1));
    story.effects();
    assert_eq!(story.orders(4, vec![welcome(0)]), ["reconnect OldLeader"]);
    assert_eq!(story.launch(1, 100), [""; 0], "nothing is heard without a session");

    story.core.on_connected(RequestId(1));
    story.effects();
    assert_eq!(story.orders(7, vec![welcome(0)]), ["identity Some(9) term 7"]);
    assert_eq!(story.orders(6, vec![AgentOrder::Ping { n: 1 }]), ["reconnect OldLeader"]);

    // A leadership that changes within the stream knows nothing of this session.
    assert_eq!(story.attach(7), [""; 0]);
    assert_eq!(story.orders(8, vec![AgentOrder::Ping { n: 1 }]), ["reconnect LeaderChanged"]);
    // A later recovery generation is later whatever its term; it counts its orders anew.
    story.core.on_connected(RequestId(1));
    story.core.on_orders(Epoch { generation: 1, term: 1 }, vec![welcome(0)]);
    assert_eq!(story.core.identity().epoch, Epoch { generation: 1, term: 1 });
}

#[test]
fn orders_before_the_welcome_are_not_followed() {
    let mut story = Story::begin();
    story.core.on_connected(RequestId(1));
    story.effects();
    assert_eq!(story.launch(1, 100), ["reconnect Confused"]);
    assert_eq!(story.core.held().count(), 0);
}

#[test]
fn lists_what_it_holds_when_asked() {
    let mut story = Story::open();
    story.launch(1, 100);
    story.launch(2, 101);
    story.event(started(101));
    assert_eq!(story.orders(5, vec![AgentOrder::SendListing]), ["listing [100 0:STAGING, 101 1:RUNNING]"]);
}

#[test]
fn forgets_without_a_status() {
    let mut story = Story::open();
    let forget = |launch| AgentOrder::Forget { launch: LaunchId(launch) };
    assert_eq!(story.orders(5, vec![forget(99)]), ["cleaned [99]"]);
    story.launch(1, 100);
    story.event(started(100));
    assert_eq!(story.orders(5, vec![forget(100)]), ["write forget 100", "kill 100 3000"]);
    story.restart();
    story.effects();
    assert_eq!(story.event(started(100)), ["kill 100 3000"]);
    story.attach(5);
    let over = story.event(ended(100, end(None, Some(15))));
    assert_eq!(over, ["write forgotten 100", "forget 100", "cleaned [100]"]);
}

#[test]
fn an_agent_without_a_record_ends_everything_before_it_registers_anew() {
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(started(100));
    story.launch(2, 101);
    story.event(ended(101, end(Some(0), None)));
    assert_eq!(
        story.orders(6, vec![AgentOrder::Refused(AgentRefusal::UnknownAgent)]),
        ["reconnect LeaderChanged"]
    );
    story.core.on_connected(RequestId(55));
    story.effects();
    assert_eq!(
        story.orders(6, vec![AgentOrder::Refused(AgentRefusal::UnknownAgent)]),
        [
            "identity Some(9) term 6",
            "reconnect UnknownAgent",
            "write forget 100",
            "kill 100 3000",
            "write forgotten 101",
            "forget 101"
        ]
    );
    assert!(!story.core.wants_session());
    let over = story.event(ended(100, end(None, Some(15))));
    assert_eq!(over, ["write forgotten 100", "forget 100", "write seen 0", "identity None term 6"]);
    assert_eq!(story.core.identity().instance, RequestId(55));
    assert!(story.core.wants_session());
    story.core.on_connected(RequestId(56));
    assert_eq!(story.effects(), ["hello None seen 0"]);
}

#[test]
fn another_cluster_is_refused_aloud() {
    let mut story = Story::open();
    story.core.on_session_lost();
    story.core.on_connected(RequestId(1));
    story.effects();
    let other = ClusterId([8; 16]);
    let welcome = AgentOrder::Welcome {
        agent: AgentId(9),
        cluster: other,
        ping_ms: 1,
        reattach_spread_ms: 0,
        last_seq: 0,
    };
    story.core.on_orders(epoch(50), vec![welcome]);
    let effects = story.core.take_effects(&mut |_| InstanceId(1));
    assert_eq!(effects, [Effect::Stop(Fatal::WrongCluster { mine: CLUSTER, theirs: Some(other) })]);
    // Its leadership says nothing about ours.
    assert_eq!(story.core.identity().epoch, epoch(5));
}

#[test]
fn a_younger_cluster_is_refused_aloud_too() {
    let mut story = Story::open();
    story.core.on_session_lost();
    story.core.on_connected(RequestId(1));
    story.effects();
    story.core.on_orders(epoch(1), vec![AgentOrder::Refused(AgentRefusal::WrongCluster)]);
    let effects = story.core.take_effects(&mut |_| InstanceId(1));
    assert_eq!(effects, [Effect::Stop(Fatal::WrongCluster { mine: CLUSTER, theirs: None })]);
}

#[test]
fn silence_ends_the_session() {
    let mut story = Story::open();
    story.core.on_time(1_000, 0);
    story.orders(5, vec![]);
    assert_eq!(story.core.deadline_ms(), Some(3_500));
    story.core.on_time(3_500, 0);
    assert_eq!(story.effects(), [""; 0]);
    story.core.on_time(3_501, 0);
    assert_eq!(story.effects(), ["reconnect Silent"]);
}

#[test]
fn a_container_that_survives_sigkill_is_said_to() {
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(started(100));
    story.orders(5, vec![kill(2, 100, 0)]);
    let stuck = story.event(Event::StuckKill { launch: LaunchId(100), processes: 2 });
    assert_eq!(stuck, ["write 100 3:KILLING(kill_requested)", "send 100 3:KILLING(kill_requested)"]);
}

#[test]
fn a_launch_that_nobody_answers_for_waits_and_is_started_once() {
    let unanswered = || Event::Unanswered { launch: LaunchId(100) };
    let waits = ["write 100 1:STAGING", "send 100 1:STAGING"];
    // Its supervisor is found dead without a trace of it: another starts it.
    let mut story = Story::open();
    story.launch(1, 100);
    assert_eq!(story.event(unanswered()), waits);
    let again = story.event(Event::NotStarted { launch: LaunchId(100) });
    assert_eq!(again, ["write assigned 100", "launch 100"]);
    assert_eq!(story.event(started(100)), ["write 100 2:RUNNING", "send 100 2:RUNNING"]);
    assert_eq!(story.event(unanswered()), [""; 0], "it runs");

    // It answers after all, to another life of the agent.
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(unanswered());
    story.restart();
    story.attach(6);
    assert_eq!(story.event(started(100)), ["write 100 2:RUNNING", "send 100 2:RUNNING"]);

    // Its end is asked for: that is carried out when somebody knows what there is to be ended.
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(unanswered());
    assert_eq!(story.orders(5, vec![kill(2, 100, 0)]), ["write kill 100 0", "kill 100 0"]);
    assert_eq!(story.event(unanswered()), ["write 100 2:STAGING", "send 100 2:STAGING"]);
    story.restart();
    story.attach(6);
    let message = String::new();
    let failed = Event::LaunchFailed {
        launch: LaunchId(100),
        reason: Reason::KilledDuringLaunch,
        message,
        exit_code: None,
    };
    let killed = "100 3:KILLED(killed_during_launch)";
    assert_eq!(story.event(failed), [format!("write {killed}"), format!("send {killed}")]);
}

#[test]
fn a_new_life_knows_what_has_begun() {
    let mut story = Story::open();
    story.launch(1, 100);
    story.event(started(100));
    story.launch(2, 101);
    story.restart();
    let effects = story.core.take_effects(&mut |_| InstanceId(1));
    let known = effects.iter().find_map(|effect| match effect {
        Effect::Recover(known) => Some(known.iter().map(|k| (k.launch.0, k.started)).collect::<Vec<_>>()),
        _ => None,
    });
    assert_eq!(known, Some(vec![(100, true), (101, false)]));
}

#[test]
fn a_rewritten_checkpoint_says_the_same() {
    let mut story = Story::open();
    for (seq, launch) in [(1, 100), (2, 101), (3, 102)] {
        story.launch(seq, launch);
        story.event(started(launch));
    }
    story.orders(5, vec![confirm(100, 1), kill(4, 101, 10), confirm(101, 2)]);
    story.event(ended(101, end(Some(0), None)));
    story.orders(5, vec![AgentOrder::Forget { launch: LaunchId(102) }, kill(9, 999, 1)]);
    let mut rewritten = Core::recover(config(1), story.identity.clone(), story.core.records(), RequestId(1));
    let mut replayed = Core::recover(config(1), story.identity.clone(), story.records.clone(), RequestId(1));
    let effects = |core: &mut Core| core.take_effects(&mut |_| InstanceId(1));
    assert_eq!(effects(&mut rewritten), effects(&mut replayed));
    assert_eq!((rewritten.last_seq(), replayed.last_seq()), (9, 9));
    assert_eq!(rewritten.listing(), replayed.listing());
    for core in [&mut rewritten, &mut replayed] {
        core.on_container_event(Event::Recovered);
        core.on_connected(RequestId(1));
        core.on_orders(epoch(5), vec![welcome(9)]);
    }
    // Only what was confirmed since the last rewriting is sent once more by the other.
    let sent = |core: &mut Core| core.take_effects(&mut |_| InstanceId(1)).len();
    assert!(sent(&mut rewritten) <= sent(&mut replayed));
}
