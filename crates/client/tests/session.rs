//! The SDK against masters of a few lines, served by the generated code over real sockets.

#[path = "fake/mod.rs"]
mod fake;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fake::{Fake, SILENCE};
use proffer_client::{
    AdminClient, CallError, ConnectError, Ended, Event, EventStream, Handle, Launch, LogReader, LogRequest,
    LogStream, Options, Scheduler,
};
use proffer_types::{FrameworkId, FrameworkInfo, Resources, Role, TaskId, TaskLaunch, TaskSpec, TaskState};

fn info() -> FrameworkInfo {
    FrameworkInfo { name: "test".into(), roles: vec![Role::star()], ..FrameworkInfo::default() }
}

fn launch(names: &[&str]) -> Launch {
    let spec = TaskSpec {
        argv: vec!["true".into()],
        resources: Resources::parse("cpus:0.1;mem:32MiB").unwrap(),
        ..TaskSpec::default()
    };
    let task = |name: &&str| TaskLaunch {
        task_id: TaskId::new(name).unwrap(),
        name: String::new(),
        env: BTreeMap::new(),
        array: None,
    };
    Launch { spec: Arc::new(spec), tasks: names.iter().map(task).collect() }
}

async fn connect(masters: &[String]) -> (Handle, EventStream) {
    Scheduler::connect(masters, info(), Options::default()).await.expect("there is a leader")
}

/// The next event that `wanted` wants; others are dealt with.
async fn wait_for<T>(events: &mut EventStream, mut wanted: impl FnMut(&Event) -> Option<T>) -> T {
    let found = async {
        loop {
            let event = events.next().await.expect("the stream goes on");
            if let Some(found) = wanted(&event) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found).await.expect("the event comes in time")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_task_goes_through_its_life() {
    let master = Fake::start().await;
    let (handle, mut events) = connect(&[master.addr()]).await;
    let offer = wait_for(&mut events, |e| match e {
        Event::Offers(offers) => Some(offers[0].clone()),
        _ => None,
    })
    .await;
    let accepted = handle.launch(&offer, launch(&["a"]), None).await.unwrap();
    assert_eq!(accepted.tasks().filter(|t| t.is_ok()).count(), 1);
    master.status("a", TaskState::Running);
    master.status("a", TaskState::Finished);
    let mut states = Vec::new();
    wait_for(&mut events, |e| match e {
        Event::Update(view) => {
            states.push(view.status.state);
            (view.status.state == TaskState::Finished).then_some(())
        }
        _ => None,
    })
    .await;
    assert_eq!(states, [TaskState::Staging, TaskState::Running, TaskState::Finished]);
    assert_eq!(events.tasks().len(), 1);
    assert!(master.state().tasks.contains_key("a"), "the end is not acknowledged before it is dealt with");
    drop(tokio::time::timeout(Duration::from_millis(1), events.next()).await);
    until("the end is acknowledged", || !master.state().tasks.contains_key("a")).await;
    assert!(events.tasks().is_empty());
    handle.teardown().await.unwrap();
    let end = loop {
        if let Err(end) = events.next().await {
            break end;
        }
    };
    assert_eq!(end, Ended::TornDown);
}

#[tokio::test]
async fn a_lost_answer_is_not_a_second_launch() {
    let master = Fake::start().await;
    let (handle, mut events) = connect(&[master.addr()]).await;
    let offer = wait_for(&mut events, |e| match e {
        Event::Offers(offers) => Some(offers[0].clone()),
        _ => None,
    })
    .await;
    master.state().lose_answers = 2;
    let accepted = handle.launch(&offer, launch(&["a", "b"]), None).await.unwrap();
    assert_eq!(accepted.tasks().filter(|t| t.is_ok()).count(), 2);
    let state = master.state();
    assert_eq!((state.executed, state.subscriptions, state.sessions), (1, 3, 1));
}

#[tokio::test]
async fn the_leader_is_found_and_followed() {
    let (first, second, third) = (Fake::start().await, Fake::start().await, Fake::start().await);
    second.follow(&first);
    third.follow(&first);
    // Only a follower is known at first.
    let (handle, mut events) = connect(&[second.addr()]).await;
    wait_for(&mut events, |e| matches!(e, Event::Offers(_)).then_some(())).await;
    // The leader becomes another.
    third.lead_after(&first);
    second.follow(&third);
    let call = tokio::spawn(async move { handle.decline(Vec::new(), None).await });
    wait_for(&mut events, |e| matches!(e, Event::Disconnected).then_some(())).await;
    wait_for(&mut events, |e| matches!(e, Event::Subscribed { resumed: true, .. }).then_some(())).await;
    assert_eq!(call.await.unwrap(), Ok(()));
    // A slow machine may need two attempts; each resumes the session.
    assert!(third.state().subscriptions >= 1);
    assert_eq!(third.state().sessions, 0);
}

#[tokio::test]
async fn an_instance_that_was_replaced_is_told_and_stops() {
    let master = Fake::start().await;
    let (old, mut old_events) = connect(&[master.addr()]).await;
    let framework = old.identity().framework;
    let options = Options { framework: Some(framework), ..Options::default() };
    let (new, _events) = Scheduler::connect(&[master.addr()], info(), options).await.unwrap();
    assert_eq!(new.identity().framework, framework);
    assert_ne!(new.identity().session, old.identity().session);
    let end = loop {
        if let Err(end) = old_events.next().await {
            break end;
        }
    };
    assert_eq!(end, Ended::Fenced);
    assert_eq!(old.suppress(Vec::new()).await, Err(CallError::Ended(Ended::Fenced)));
    let before = master.state().subscriptions;
    tokio::task::yield_now().await;
    assert_eq!(master.state().subscriptions, before, "it does not come back");
}

#[tokio::test]
async fn without_a_leader_every_master_is_blamed() {
    let lonely = Fake::start().await;
    lonely.state().leads = false;
    let closed = "127.0.0.1:1".to_owned();
    let options = Options { connect_timeout: Duration::from_millis(300), ..Options::default() };
    let error = Scheduler::connect(&[lonely.addr(), closed], info(), options).await.unwrap_err();
    let ConnectError::NoLeader { masters, .. } = &error else { panic!("{error}") };
    assert_eq!(masters.len(), 2);
    assert!(
        error.to_string().contains("knows no leader") && error.to_string().contains("refused"),
        "{error}"
    );
}

#[tokio::test]
async fn a_refusal_is_typed() {
    let master = Fake::start().await;
    let (handle, _events) = connect(&[master.addr()]).await;
    let error = handle.kill(&TaskId::new("nobody").unwrap(), None).await.unwrap_err();
    let CallError::Refused(refused) = error else { panic!("{error}") };
    assert_eq!(
        (refused.kind, refused.reason.as_str()),
        (proffer_client::RefusedKind::NotFound, "UNKNOWN_TASK")
    );
}

#[tokio::test]
async fn an_operator_is_led_to_the_leader() {
    let (leader, follower) = (Fake::start().await, Fake::start().await);
    follower.follow(&leader);
    let client = AdminClient::new(&[follower.addr()]);
    let (_, status) = client.status().await.unwrap();
    assert_eq!(status.leader, leader.addr());
    assert_eq!(client.cell().0, 0xabab);
    let error = client.task(FrameworkId(9), &TaskId::new("none").unwrap()).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn an_operator_s_kill_happens_once_though_its_answer_is_lost() {
    let master = Fake::start().await;
    let (handle, mut events) = connect(&[master.addr()]).await;
    let offer = wait_for(&mut events, |e| match e {
        Event::Offers(offers) => Some(offers[0].clone()),
        _ => None,
    })
    .await;
    handle.launch(&offer, launch(&["a"]), None).await.unwrap();
    let client = AdminClient::new(&[master.addr()]);
    client.status().await.unwrap();
    master.state().lose_answers = 1;
    client.kill_task(handle.identity().framework, &TaskId::new("a").unwrap(), None).await.unwrap();
    assert_eq!(master.state().admin_requests.len(), 1, "both attempts had one request id");
}

fn output(patience: Duration) -> LogRequest {
    LogRequest {
        framework: FrameworkId(1),
        task: TaskId::new("a").unwrap(),
        stream: LogStream::Stdout,
        offset: 0,
        follow: true,
        patience,
    }
}

/// One that has nothing to say is not one that fails, however often it is disturbed.
#[tokio::test]
async fn a_quiet_output_is_followed_over_many_disturbances() {
    let master = Fake::start().await;
    master.state().silent_logs = 4;
    master.state().logs = "at last".into();
    let patience = SILENCE / 2;
    let mut reader = LogReader::new(AdminClient::new(&[master.addr()]), output(patience));
    assert_eq!(reader.next().await.unwrap().unwrap().data, "at last");
}

#[tokio::test]
async fn output_is_read_on_where_it_broke_off() {
    let master = Fake::start().await;
    master.state().cut_logs_after = Some(4);
    master.state().logs = "0123456789".into();
    let request = output(Duration::from_secs(5));
    let mut reader = LogReader::new(AdminClient::new(&[master.addr()]), request);
    let mut text = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        text.extend_from_slice(&piece.data);
    }
    assert_eq!(text, b"0123456789");
    assert!(master.state().log_reads > 1);
}
