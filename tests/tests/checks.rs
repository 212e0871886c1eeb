//! What watches a task: whether it is well, whether it is ready, and how long it may run.

use std::fs;
use std::sync::Arc;

use proffer_tests::cluster::{Cluster, Framework, Options, Visible, info, is_root, shell, spec, until_true};
use proffer_types::container::{Check, HealthCheck, Probe, ProbePort};
use proffer_types::{Reason, TaskSpec, TaskState};
use tokio::time::Instant;

use super::{LIMIT, beside_others, best, ran_on};

async fn cluster() -> (Cluster, Framework) {
    let options = Options {
        containerizer: best(),
        resources: "cpus:4;mem:4GiB;ports:[27100-27199]",
        ..Options::default()
    };
    let cluster = Cluster::start(options).await;
    let framework = Framework::connect(&cluster.addresses(), info("checks")).await;
    (cluster, framework)
}

fn check(probe: Probe) -> Check {
    Check { probe, delay_ms: 0, interval_ms: 100, timeout_ms: 2_000 }
}

fn command(script: &str) -> Check {
    check(Probe::Command(["/bin/sh", "-c", script].map(str::to_owned).into()))
}

/// Failures before the first success count only after a while: the machine may be slow.
fn with_health(of: &Arc<TaskSpec>, check: Check, failures: u32, grace_ms: u64) -> Arc<TaskSpec> {
    Arc::new(TaskSpec { health: Some(HealthCheck { check, grace_ms, failures }), ..(**of).clone() })
}

fn with_readiness(of: &Arc<TaskSpec>, check: Check) -> Arc<TaskSpec> {
    Arc::new(TaskSpec { readiness: Some(check), ..(**of).clone() })
}

/// Makes a file in every sandbox of the agent, or removes it.
fn put(cluster: &Cluster, name: &str, there: bool) {
    for sandbox in fs::read_dir(cluster.agents[0].dir.join("sandboxes")).expect("sandboxes").flatten() {
        let path = sandbox.path().join(name);
        if there {
            fs::write(path, "").expect("a file in a sandbox");
        } else {
            let _ = fs::remove_file(path);
        }
    }
}

#[tokio::test]
async fn a_task_that_is_not_well_is_ended() {
    let _machine = beside_others().await;
    let (cluster, mut framework) = cluster().await;
    let sleeps = shell("touch well; exec sleep 1000");
    framework.launch(LIMIT, "watched", &with_health(&sleeps, command("[ -e well ]"), 3, 20_000), None).await;
    let well = |f: &Framework| f.status("watched").filter(|s| s.healthy == Some(true)).cloned();
    let status = framework.until("it is well", LIMIT, well).await;
    assert_eq!((status.state, status.reason), (TaskState::Running, Reason::CheckChanged));
    put(&cluster, "well", false);
    let ended = framework.end_of(LIMIT, "watched").await;
    assert_eq!((ended.state, ended.reason), (TaskState::Failed, Reason::Unhealthy), "{ended:?}");
    assert_eq!(ended.healthy, Some(false));

    // A check that hangs has failed, and does not keep its neighbour from ending at once.
    let hangs = Check { timeout_ms: 300, ..command("exec sleep 1000") };
    framework.launch(LIMIT, "neighbour", &shell("exec sleep 1000"), None).await;
    framework.launch(LIMIT, "hangs", &with_health(&sleeps, hangs, 2, 0), None).await;
    framework.state(LIMIT, "neighbour", TaskState::Running).await;
    framework.state(LIMIT, "hangs", TaskState::Running).await;
    let begun = Instant::now();
    framework.kill("neighbour").await;
    framework.end_of(LIMIT, "neighbour").await;
    // Far less than the time that the check would hang.
    assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
    let ended = framework.end_of(LIMIT, "hangs").await;
    assert_eq!((ended.state, ended.reason), (TaskState::Failed, Reason::Unhealthy), "{ended:?}");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn readiness_comes_and_goes_and_ends_nobody() {
    let _machine = beside_others().await;
    let (mut cluster, mut framework) = cluster().await;
    let sleeps = shell("exec sleep 1000");
    framework.launch(LIMIT, "serves", &with_readiness(&sleeps, command("[ -e ready ]")), None).await;
    for ready in [false, true, false] {
        framework.state(LIMIT, "serves", TaskState::Running).await;
        put(&cluster, "ready", ready);
        let says = |f: &Framework| f.status("serves").is_some_and(|s| s.ready == Some(ready)).then_some(());
        framework.until(&format!("ready: {ready}"), LIMIT, says).await;
    }
    // What changes while the agent is away is told when it is back.
    cluster.agents[0].kill();
    put(&cluster, "ready", true);
    cluster.agents[0].start();
    let says = |f: &Framework| f.status("serves").is_some_and(|s| s.ready == Some(true)).then_some(());
    framework.until("ready again", LIMIT, says).await;
    framework.kill("serves").await;
    let ended = framework.end_of(LIMIT, "serves").await;
    assert_eq!((ended.state, ended.healthy, ended.ready), (TaskState::Killed, None, Some(true)), "{ended:?}");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_check_asks_at_the_port_that_the_task_was_given() {
    let _machine = beside_others().await;
    if !is_root("a_check_asks_at_the_port_that_the_task_was_given") {
        return;
    }
    let (cluster, mut framework) = cluster().await;
    let program = Visible::program("proffer-test-program");
    let program = program.path();
    let script = format!("touch well; exec {program} health $PORT0 $PROFFER_SANDBOX/well");
    let port = ProbePort::Index(0);
    // Whatever answers at that port speaks HTTP/2 only: what asks for HTTP/1.1 is not satisfied.
    let probes = [
        ("grpc", Probe::Grpc { port, service: String::new() }, true),
        ("tcp", Probe::Tcp { port }, true),
        ("other", Probe::Grpc { port, service: "nobody.knows".into() }, false),
        ("http", Probe::Http { port, path: "/".into() }, false),
    ];
    for (n, (task, probe, good)) in probes.iter().enumerate() {
        let resources = format!("cpus:0.1;mem:64MiB;ports:[{}]", 27_100 + n);
        let serves = spec(&resources, &["/bin/sh", "-c", &script]);
        framework.launch(LIMIT, task, &with_readiness(&serves, check(probe.clone())), None).await;
        let says = |f: &Framework| f.status(task).is_some_and(|s| s.ready == Some(*good)).then_some(());
        framework.until(&format!("{task}: ready is {good}"), LIMIT, says).await;
    }
    put(&cluster, "well", false);
    let says = |f: &Framework| f.status("grpc").is_some_and(|s| s.ready == Some(false)).then_some(());
    framework.until("it is not serving any more", LIMIT, says).await;
    for (task, ..) in &probes {
        framework.kill(task).await;
        framework.end_of(LIMIT, task).await;
    }
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_task_runs_no_longer_than_it_may() {
    let _machine = beside_others().await;
    let (cluster, mut framework) = cluster().await;
    // Nor does it help to ignore signals: there is no grace.
    let stays = shell("trap '' TERM; touch began; while :; do sleep 1; done");
    let limited = Arc::new(TaskSpec { max_completion_ms: 700, kill_grace_ms: 60_000, ..(*stays).clone() });
    framework.launch(LIMIT, "long", &limited, None).await;
    let ended = framework.end_of(LIMIT, "long").await;
    assert_eq!((ended.state, ended.reason), (TaskState::Failed, Reason::MaxCompletion), "{ended:?}");
    let short = Arc::new(TaskSpec { max_completion_ms: 20_000, ..(*shell("exit 0")).clone() });
    framework.launch(LIMIT, "short", &short, None).await;
    assert_eq!(framework.end_of(LIMIT, "short").await.state, TaskState::Finished);
    let writes = shell("head -c 100000 /dev/zero");
    framework.launch(LIMIT, "writes", &writes, None).await;
    let ended = framework.end_of(LIMIT, "writes").await;
    assert_eq!((ended.state, ended.output_dropped_bytes), (TaskState::Finished, Some(0)), "{ended:?}");
    until_true("nothing is left of it", LIMIT, || cluster.supervisors(0).len() <= 1).await;
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}
