//! Tasks that start together or not at all, and end together.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use proffer_tests::cluster::{Cluster, Framework, Options, info, is_root, shell, until_true};
use proffer_types::container::{Container, UserNamespace};
use proffer_types::{Reason, TaskSpec, TaskState};

use super::{LIMIT, beside_others, best, ran_on};

const NEEDED: &str = "cpus:0.3;mem:96MiB";

async fn cluster() -> (Cluster, Framework) {
    let cluster = Cluster::start(Options { containerizer: best(), ..Options::default() }).await;
    let framework = Framework::connect(&cluster.addresses(), info("groups")).await;
    (cluster, framework)
}

/// How many files of this name are in the agent's sandboxes.
fn made(cluster: &Cluster, name: &str) -> usize {
    let sandboxes = fs::read_dir(cluster.agents[0].dir.join("sandboxes"));
    sandboxes.map_or(0, |all| all.flatten().filter(|sandbox| sandbox.path().join(name).exists()).count())
}

#[tokio::test]
async fn one_that_ends_badly_takes_the_others_with_it() {
    let _machine = beside_others().await;
    let (cluster, mut framework) = cluster().await;
    let waits = shell("until [ -e \"$PROFFER_GROUP/go\" ]; do sleep 0.05; done; exit 3");
    let ends = shell("exit 0");
    let members = [("long", shell("exec sleep 1000")), ("well", ends), ("badly", waits)];
    framework.launch_group(LIMIT, NEEDED, &members).await;
    framework.state(LIMIT, "long", TaskState::Running).await;
    let well = framework.end_of(LIMIT, "well").await;
    assert_eq!(well.state, TaskState::Finished, "{well:?}");
    assert!(framework.status("long").is_some_and(|s| s.state == TaskState::Running), "0 ends nobody else");

    let sibling = shell("touch \"$PROFFER_SANDBOX/alone\"; exec sleep 1000");
    framework.launch(LIMIT, "sibling", &sibling, None).await;
    framework.state(LIMIT, "sibling", TaskState::Running).await;
    touch_in_group(&cluster, "go");
    let badly = framework.end_of(LIMIT, "badly").await;
    assert_eq!((badly.state, badly.exit_code), (TaskState::Failed, Some(3)), "{badly:?}");
    let long = framework.end_of(LIMIT, "long").await;
    assert_eq!((long.state, long.reason), (TaskState::Killed, Reason::GroupEnded), "{long:?}");
    assert!(framework.status("sibling").is_some_and(|s| s.state == TaskState::Running));
    framework.kill("sibling").await;
    framework.end_of(LIMIT, "sibling").await;

    // One that is killed takes them too.
    let pair = [("left", shell("exec sleep 1000")), ("right", shell("exec sleep 1000"))];
    framework.launch_group(LIMIT, NEEDED, &pair).await;
    framework.state(LIMIT, "left", TaskState::Running).await;
    framework.state(LIMIT, "right", TaskState::Running).await;
    framework.kill("left").await;
    let left = framework.end_of(LIMIT, "left").await;
    let right = framework.end_of(LIMIT, "right").await;
    assert_eq!((left.state, left.reason), (TaskState::Killed, Reason::KillRequested), "{left:?}");
    assert_eq!((right.state, right.reason), (TaskState::Killed, Reason::GroupEnded), "{right:?}");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// Makes a file in the directory of every group.
fn touch_in_group(cluster: &Cluster, name: &str) {
    let groups = cluster.agents[0].dir.join("groups");
    for group in fs::read_dir(&groups).unwrap_or_else(|e| panic!("{}: {e}", groups.display())).flatten() {
        fs::write(group.path().join("data").join(name), "").expect("a file in a group's directory");
    }
}

#[tokio::test]
async fn members_share_a_directory_and_memory_and_nothing_else_does() {
    let _machine = beside_others().await;
    if !is_root("members_share_a_directory_and_memory_and_nothing_else_does") {
        return;
    }
    let (cluster, mut framework) = cluster().await;
    // The exit codes say what was not there.
    let writes = shell(
        "echo files > $PROFFER_GROUP/f && echo memory > /dev/shm/m && touch $PROFFER_SANDBOX/own || exit 2; \
         until [ -e $PROFFER_GROUP/read ]; do sleep 0.05; done",
    );
    let reads = shell(
        "until [ -e /dev/shm/m ]; do sleep 0.05; done; \
         [ \"$(cat $PROFFER_GROUP/f)\" = files ] || exit 3; [ \"$(cat /dev/shm/m)\" = memory ] || exit 4; \
         [ ! -e $PROFFER_SANDBOX/own ] || exit 5; touch $PROFFER_GROUP/read || exit 6",
    );
    framework.launch_group(LIMIT, NEEDED, &[("writes", writes), ("reads", reads)]).await;
    let reads = framework.end_of(LIMIT, "reads").await;
    assert_eq!((reads.state, reads.exit_code), (TaskState::Finished, Some(0)), "{reads:?}");
    assert_eq!(framework.end_of(LIMIT, "writes").await.state, TaskState::Finished);

    let ipc = |name: &str| shell(&format!("readlink /proc/self/ns/ipc > $PROFFER_GROUP/{name}"));
    let compares = shell(
        "until [ -s $PROFFER_GROUP/a ]; do sleep 0.05; done; \
         [ \"$(cat $PROFFER_GROUP/a)\" = \"$(readlink /proc/self/ns/ipc)\" ]",
    );
    framework.launch_group(LIMIT, NEEDED, &[("a", ipc("a")), ("compares", compares)]).await;
    assert_eq!(framework.end_of(LIMIT, "compares").await.state, TaskState::Finished);
    assert_eq!(framework.end_of(LIMIT, "a").await.state, TaskState::Finished);
    let alone =
        shell("[ ! -e /dev/shm/m ] && [ -z \"$PROFFER_GROUP\" ] && [ -z \"$(ls /mnt/proffer/group 2>&-)\" ]");
    framework.launch(LIMIT, "alone", &alone, None).await;
    let alone = framework.end_of(LIMIT, "alone").await;
    assert_eq!(alone.state, TaskState::Finished, "{alone:?}");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn none_starts_if_one_cannot() {
    let _machine = beside_others().await;
    if !is_root("none_starts_if_one_cannot") {
        return;
    }
    let (cluster, mut framework) = cluster().await;
    let works = shell("touch $PROFFER_SANDBOX/began; exec sleep 1000");
    // With ids of its own it might be whoever it likes.
    let container = Container { users: UserNamespace::Host, ..Container::default() };
    let refused = Arc::new(TaskSpec { user: "no-such-user".into(), container, ..(*works).clone() });
    framework.launch_group(LIMIT, NEEDED, &[("fine", works.clone()), ("refused", refused)]).await;
    let refused = framework.end_of(LIMIT, "refused").await;
    assert_eq!((refused.state, refused.reason), (TaskState::Failed, Reason::UserRefused), "{refused:?}");
    let fine = framework.end_of(LIMIT, "fine").await;
    assert_eq!(fine.reason, Reason::GroupNotStarted, "{fine:?}");
    assert_eq!(made(&cluster, "began"), 0);

    // The same where only the master knows: nothing is launched, and all are told why.
    let too_much = Arc::new(TaskSpec {
        resources: proffer_types::Resources::parse("cpus:1000;mem:32MiB").expect("resources"),
        ..(*works).clone()
    });
    let member = |task: &str, spec: &Arc<TaskSpec>| proffer_client::Member {
        spec: spec.clone(),
        task: proffer_tests::cluster::named(task),
    };
    let members = vec![member("small", &works), member("large", &too_much)];
    let operation = proffer_client::Operation::LaunchGroup(members);
    let outcomes = framework.operate(LIMIT, NEEDED, operation, None).await;
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn an_agent_that_dies_in_the_middle_starts_all_or_none() {
    let _machine = beside_others().await;
    let (mut cluster, mut framework) = cluster().await;
    for round in 0..4 {
        let began = format!("began-{round}");
        let script = format!("touch $PROFFER_SANDBOX/{began}; until [ -e go-{round} ]; do sleep 0.05; done");
        let names: Vec<String> = (0..3).map(|n| format!("r{round}-{n}")).collect();
        let members: Vec<_> = names.iter().map(|name| (name.as_str(), shell(&script))).collect();
        framework.launch_group(LIMIT, NEEDED, &members).await;
        // Killed at another moment each time.
        tokio::time::sleep(Duration::from_millis(round * 7)).await;
        cluster.agents[0].kill();
        // A child that was about to become a supervisor may hold the port for another moment.
        let address = cluster.agents[0].address.clone();
        until_true("its port is free", LIMIT, || TcpListener::bind(&address).is_ok()).await;
        cluster.agents[0].start();
        cluster.ready(LIMIT).await;
        for name in &names {
            let settled = |f: &Framework| {
                f.status(name).is_some_and(|s| s.state == TaskState::Running || s.state.is_terminal())
            };
            framework.until("it runs or has ended", LIMIT, |f| settled(f).then_some(())).await;
        }
        let running = names
            .iter()
            .filter(|name| framework.status(name).is_some_and(|status| status.state == TaskState::Running));
        let running = running.count();
        assert!(running == 0 || running == 3, "half a group: {:#?}", framework.newest);
        until_true("as many have begun", LIMIT, || made(&cluster, &began) == running).await;
        for sandbox in fs::read_dir(cluster.agents[0].dir.join("sandboxes")).expect("sandboxes").flatten() {
            fs::write(sandbox.path().join(format!("go-{round}")), "").expect("a file");
        }
        for name in &names {
            framework.end_of(LIMIT, name).await;
        }
    }
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}
