//! Frameworks' own executors: many tasks in one container, over the death of whatever is above them, and what becomes
//! of executors that do not do as they should.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use proffer_client::{Launch, Operation};
use proffer_tests::cluster::{
    Cluster, Framework, Options, Visible, audit, info, named, shell, until, until_true,
};
use proffer_types::container::ExecutorSpec;
use proffer_types::{ExecutorId, Reason, Resources, TaskLaunch, TaskSpec, TaskState};

use super::{LIMIT, beside_others, best, good, ran_on};

async fn cluster(options: Options) -> (Cluster, Framework) {
    let cluster = Cluster::start(Options { containerizer: best(), ..options }).await;
    let framework = Framework::connect(&cluster.addresses(), info("executors")).await;
    (cluster, framework)
}

fn name() -> ExecutorId {
    ExecutorId::new("ex").expect("a name")
}

/// A task that holds little and is handed to an executor that runs this.
fn task_of(argv: &[&str], resources: &str, data: &str) -> Arc<TaskSpec> {
    let spec = TaskSpec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        resources: Resources::parse("cpus:0.2;mem:64MiB").expect("resources"),
        kill_grace_ms: 2_000,
        ..TaskSpec::default()
    };
    Arc::new(TaskSpec {
        executor: Some(ExecutorSpec { id: name(), spec: Arc::new(spec) }),
        resources: Resources::parse(resources).expect("resources"),
        data: data.as_bytes().to_vec(),
        kill_grace_ms: 1_000,
        ..TaskSpec::default()
    })
}

/// A script for the SDK's example of an executor.
fn script(executor: &Visible, data: &str) -> Arc<TaskSpec> {
    task_of(&[executor.path()], "cpus:0.01;mem:4MiB", data)
}

/// A task of an executor that does not do as it should.
fn bad(program: &Visible, mode: &str) -> Arc<TaskSpec> {
    task_of(&[program.path(), mode], "cpus:0.01;mem:4MiB", "")
}

/// `count` tasks of one spec, in one call.
async fn launch_array(
    framework: &mut Framework,
    prefix: &str,
    spec: &Arc<TaskSpec>,
    count: u32,
) -> Vec<String> {
    let names: Vec<String> = (1..=count).map(|n| format!("{prefix}-{n}")).collect();
    let task = |(n, name): (usize, &String)| TaskLaunch {
        array: Some((u32::try_from(n).expect("few") + 1, count)),
        ..named(name)
    };
    let tasks = names.iter().enumerate().map(task).collect();
    let operation = Operation::Launch(Launch { spec: spec.clone(), tasks });
    for outcome in framework.operate(LIMIT, "cpus:2;mem:1GiB", operation, None).await {
        outcome.unwrap_or_else(|refused| panic!("{refused}"));
    }
    names
}

/// The one sandbox that has this file.
fn sandbox(cluster: &Cluster, file: &str) -> Option<PathBuf> {
    let all = fs::read_dir(cluster.agents[0].dir.join("sandboxes")).ok()?;
    all.flatten().map(|sandbox| sandbox.path()).find(|sandbox| sandbox.join(file).exists())
}

/// How often each line is in a file.
fn counted(path: PathBuf) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn a_hundred_tasks_run_in_one_executor() {
    let _machine = beside_others().await;
    let executor = Visible::program("proffer-test-executor");
    let (cluster, mut framework) = cluster(Options::default()).await;
    let runs =
        script(&executor, "echo $PROFFER_TASK_ID >> $PROFFER_SANDBOX/ran; exit $((PROFFER_ARRAY_INDEX % 2))");
    let names = launch_array(&mut framework, "t", &runs, 100).await;
    for (n, name) in names.iter().enumerate() {
        let ended = framework.end_of(LIMIT, name).await;
        let expected = match (n + 1) % 2 {
            0 => (TaskState::Finished, Some(0), Reason::None),
            _ => (TaskState::Failed, Some(1), Reason::ExitCode),
        };
        assert_eq!((ended.state, ended.exit_code, ended.reason), expected, "{name}: {ended:?}");
    }
    let dir = sandbox(&cluster, "ran").expect("the executor's sandbox");
    // What a task has left is where its executor is, though the agent holds the task no more.
    assert!(good(cluster.run(LIMIT, &["task", "files", &names[0]]).await).contains("ran"));
    assert_eq!(counted(dir.join("ran")), names.into_iter().map(|name| (name, 1)).collect());

    // It lives on, in its one container; bytes go to it and come back.
    let agent = cluster.agent_rows().await[0].id;
    framework.handle.send_message(agent, &name(), b"over and out".to_vec()).await.expect("on their way");
    let echo = |f: &Framework| f.messages.contains(&(name(), b"over and out".to_vec())).then_some(());
    framework.until("the echo", LIMIT, echo).await;

    // A task is killed by it, the executor by the master.
    framework.launch(LIMIT, "long", &script(&executor, "exec sleep 1000"), None).await;
    framework.launch(LIMIT, "left", &script(&executor, "exec sleep 1000"), None).await;
    framework.state(LIMIT, "long", TaskState::Running).await;
    framework.state(LIMIT, "left", TaskState::Running).await;
    framework.kill("long").await;
    let ended = framework.end_of(LIMIT, "long").await;
    assert_eq!((ended.state, ended.reason), (TaskState::Killed, Reason::KillRequested), "{ended:?}");
    framework.handle.shutdown_executor(agent, &name()).await.expect("committed");
    let ended = framework.end_of(LIMIT, "left").await;
    assert_eq!(ended.state, TaskState::Killed, "{ended:?}");
    let over = |f: &Framework| f.executors_ended.first().cloned();
    let (executor, status) = framework.until("the executor's end", LIMIT, over).await;
    assert_eq!((executor, status.state.is_terminal()), (name(), true), "{status:?}");
    cluster.all_free(LIMIT).await;

    // Operators are told of executors as such, and not of a task by that name.
    framework.handle.update_framework(info("another name")).await.expect("committed");
    let text = good(cluster.run(LIMIT, &["events", "-o", "jsonl"]).await);
    let events: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let kinds = |key: &str, value: &str| {
        let of_it = events.iter().filter(|event| event[key] == value);
        of_it.map(|event| event["kind"].as_str().expect("a kind").to_owned()).collect::<Vec<_>>()
    };
    let of_executor = kinds("executor_id", "ex");
    assert_eq!(of_executor[..2], ["EXECUTOR_LAUNCHED", "EXECUTOR_STATUS"], "{of_executor:?}");
    assert!(of_executor.contains(&"EXECUTOR_KILL_ORDERED".to_owned()), "{of_executor:?}");
    let last = events.iter().rfind(|event| event["executor_id"] == "ex").expect("its end");
    assert_eq!((&last["kind"], &last["state"]), (&"EXECUTOR_STATUS".into(), &status.state.name().into()));
    assert_eq!(kinds("task_id", "ex"), [""; 0]);
    assert_eq!(kinds("task_id", "left")[0], "TASK_LAUNCHED");
    let updated = events.last().expect("events");
    assert_eq!(updated["kind"], "FRAMEWORK_UPDATED", "{updated}");
    assert!(updated["text"].as_str().expect("text").contains("`another name`"), "{updated}");
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn an_executors_container_is_as_large_as_its_tasks() {
    let _machine = beside_others().await;
    let (cluster, mut framework) = cluster(Options::default()).await;
    // The last 96 MiB of it are held until the end is seen: the executor alone may hold 64.
    let executor = Visible::program("proffer-test-executor");
    let holds = "[ $(head -c 120000000 /dev/zero | tail -c 100000000 | wc -c) = 100000000 ]";
    let large = task_of(&[executor.path()], "cpus:0.5;mem:160MiB", holds);
    framework.launch(LIMIT, "large", &large, None).await;
    let ended = framework.end_of(LIMIT, "large").await;
    assert_eq!((ended.state, ended.exit_code), (TaskState::Finished, Some(0)), "{ended:?}");
    if best() == "linux" {
        let small = task_of(&[executor.path()], "cpus:0.5;mem:1MiB", holds);
        framework.launch(LIMIT, "small", &small, None).await;
        let ended = framework.end_of(LIMIT, "small").await;
        assert_eq!(ended.state, TaskState::Failed, "{ended:?}");
    }
    let agent = cluster.agent_rows().await[0].id;
    // It may have been killed for want of memory, and then there is none.
    let _ = framework.handle.shutdown_executor(agent, &name()).await;
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn tasks_of_an_executor_survive_agents_and_leaders() {
    let _machine = beside_others().await;
    let executor = Visible::program("proffer-test-executor");
    let (mut cluster, mut framework) = cluster(Options { masters: 3, ..Options::default() }).await;
    let waits = script(
        &executor,
        "echo $PROFFER_TASK_ID >> $PROFFER_SANDBOX/began; \
         until [ -e $PROFFER_SANDBOX/go ]; do sleep 0.1; done; echo $PROFFER_TASK_ID >> $PROFFER_SANDBOX/done",
    );
    let first = launch_array(&mut framework, "a", &waits, 20).await;
    for name in &first {
        framework.state(LIMIT, name, TaskState::Running).await;
    }
    let dir = sandbox(&cluster, "began").expect("the executor's sandbox");
    // More are on their way while the leader dies, and then the agent.
    let second = launch_array(&mut framework, "b", &waits, 20).await;
    let leader = cluster.leader().await;
    cluster.masters[leader].kill();
    cluster.agents[0].kill();
    fs::write(dir.join("go"), "").expect("a file in its sandbox");
    until_true("the first end while there is no agent", LIMIT, || counted(dir.join("done")).len() >= 20)
        .await;
    cluster.agents[0].start();
    cluster.masters[leader].start();
    for name in first.iter().chain(&second) {
        let ended = framework.end_of(LIMIT, name).await;
        assert_eq!((ended.state, ended.exit_code), (TaskState::Finished, Some(0)), "{name}: {ended:?}");
    }
    let all: BTreeMap<String, u32> = first.into_iter().chain(second).map(|name| (name, 1)).collect();
    assert_eq!(counted(dir.join("began")), all, "each began once");
    assert_eq!(counted(dir.join("done")), all, "and ended once");
    framework.handle.teardown().await.expect("committed");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn who_never_registers_is_ended() {
    let _machine = beside_others().await;
    let program = Visible::program("proffer-test-program");
    let options = Options { agent_flags: &["--executor-registration-timeout", "1s"], ..Options::default() };
    let (cluster, mut framework) = cluster(options).await;
    framework.launch(LIMIT, "t", &bad(&program, "silent"), None).await;
    let ended = framework.end_of(LIMIT, "t").await;
    assert_eq!((ended.state, ended.reason), (TaskState::Failed, Reason::ExecutorUnregistered), "{ended:?}");
    // One that cannot even be started is told at once, for its own reason.
    framework.launch(LIMIT, "u", &task_of(&["/no/such/program"], "cpus:0.01;mem:1MiB", ""), None).await;
    let ended = framework.end_of(LIMIT, "u").await;
    assert_eq!((ended.state, ended.reason), (TaskState::Failed, Reason::ExecFailed), "{ended:?}");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn who_lies_or_exits_takes_its_tasks_along_and_nobody_else() {
    let _machine = beside_others().await;
    let program = Visible::program("proffer-test-program");
    let (cluster, mut framework) = cluster(Options::default()).await;
    framework.launch(LIMIT, "neighbour", &shell("exec sleep 1000"), None).await;
    framework.state(LIMIT, "neighbour", TaskState::Running).await;
    for (mode, reason, says) in [
        ("stranger", Reason::ExecutorMisbehaved, "which is not its"),
        ("backwards", Reason::None, ""),
        ("forgets", Reason::ExecutorMisbehaved, "subscribed without launch"),
        ("exits", Reason::ExecutorEnded, "it exited with code 7"),
    ] {
        framework.launch(LIMIT, mode, &bad(&program, mode), None).await;
        let ended = framework.end_of(LIMIT, mode).await;
        assert_eq!(ended.reason, reason, "{mode}: {ended:?}");
        assert!(ended.message.contains(says), "{mode}: {ended:?}");
        // What it had said before it lied holds: it had finished.
        let state = if mode == "backwards" { TaskState::Finished } else { TaskState::Failed };
        assert_eq!(ended.state, state, "{mode}");
        let over = |f: &Framework| f.executors_ended.first().map(|(_, status)| status.clone());
        let status = framework.until("the executor's end", LIMIT, over).await;
        let expected = if mode == "exits" { Reason::ExitCode } else { Reason::ExecutorMisbehaved };
        assert_eq!((status.state, status.reason), (TaskState::Failed, expected), "{mode}: {status:?}");
        framework.executors_ended.clear();
    }
    assert!(framework.status("neighbour").is_some_and(|s| s.state == TaskState::Running));
    framework.kill("neighbour").await;
    framework.end_of(LIMIT, "neighbour").await;
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn who_does_not_shut_down_is_killed() {
    let _machine = beside_others().await;
    let program = Visible::program("proffer-test-program");
    let (cluster, mut framework) = cluster(Options::default()).await;
    framework.launch(LIMIT, "t", &bad(&program, "stuck"), None).await;
    framework.state(LIMIT, "t", TaskState::Running).await;
    // Its word is not needed for the end of its task.
    framework.kill("t").await;
    framework.state(LIMIT, "t", TaskState::Killing).await;
    let agent = cluster.agent_rows().await[0].id;
    framework.handle.shutdown_executor(agent, &name()).await.expect("committed");
    let ended = framework.end_of(LIMIT, "t").await;
    assert_eq!((ended.state, ended.reason), (TaskState::Killed, Reason::KillRequested), "{ended:?}");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn who_floods_is_told_to_wait() {
    let _machine = beside_others().await;
    let program = Visible::program("proffer-test-program");
    let (cluster, mut framework) = cluster(Options::default()).await;
    let agent = cluster.agents[0].pid();
    let before = audit::resident_bytes(agent);
    framework.launch(LIMIT, "floods", &bad(&program, "floods"), None).await;
    framework.state(LIMIT, "floods", TaskState::Running).await;
    // Meanwhile the agent does what it is there for.
    for n in 0..3 {
        let task = format!("between-{n}");
        framework.launch(LIMIT, &task, &shell("exit 0"), None).await;
        assert_eq!(framework.end_of(LIMIT, &task).await.state, TaskState::Finished);
    }
    let ended = framework.end_of(LIMIT, "floods").await;
    assert_eq!(ended.state, TaskState::Finished, "{ended:?}");
    let refused = ended.message.strip_prefix("refused ").and_then(|rest| rest.split(' ').next());
    assert!(refused.is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n > 0)), "{ended:?}");
    let grown = audit::resident_bytes(agent).saturating_sub(before);
    assert!(grown < 64 << 20, "the agent has grown by {grown} bytes");
    let row = cluster.agent_rows().await;
    framework.handle.shutdown_executor(row[0].id, &name()).await.expect("committed");
    until("its end", LIMIT, async || {
        cluster.admin().agents().await.ok().filter(|agents| agents[0].used.is_empty()).map(drop)
    })
    .await;
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}
