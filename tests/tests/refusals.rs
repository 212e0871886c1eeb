//! What a task may ask of its container, all the way from its framework: what the node can give it has, and what the
//! node cannot give is refused before anything starts, by the name of the field.

use std::fs;
use std::sync::Arc;

use proffer_tests::cluster::{Cluster, Framework, Options, info, is_root, shell};
use proffer_types::container::{Container, Io, IoLimit, Rlimit, RlimitValue, Seccomp};
use proffer_types::{Ranges, Reason, TaskSpec, TaskState};

use super::{LIMIT, beside_others, ran_on};

fn with(container: Container, script: &str) -> Arc<TaskSpec> {
    Arc::new(TaskSpec { container, ..(*shell(script)).clone() })
}

fn range(first: u64, last: u64) -> Ranges {
    Ranges::new("cpus", [(first, last)]).expect("a range")
}

fn nofile(soft: u64, hard: Option<u64>) -> Container {
    Container { rlimits: [(Rlimit::Nofile, RlimitValue { soft, hard })].into(), ..Container::default() }
}

#[tokio::test]
async fn what_a_node_cannot_give_is_refused_before_it_starts() {
    let _machine = beside_others().await;
    if !is_root("what_a_node_cannot_give_is_refused_before_it_starts") {
        return;
    }
    let cluster = Cluster::start(Options { containerizer: "linux", ..Options::default() }).await;
    let mut framework = Framework::connect(&cluster.addresses(), info("refusals")).await;
    let plain = Container::default;
    let profile = Seccomp { profile: "no-such".into(), also: String::new() };
    let also = Seccomp { profile: String::new(), also: r#"{"defaultAction": "SCMP_ACT_DANCE"}"#.into() };
    let limit = IoLimit { read_bytes: 1 << 20, ..IoLimit::default() };
    let io = Io { limits: [("250:9999".to_owned(), limit)].into(), ..Io::default() };
    let cases = [
        ("profile", Container { seccomp: profile, ..plain() }, "seccomp"),
        ("also", Container { seccomp: also, ..plain() }, "seccomp"),
        ("cpuset", Container { cpuset: range(4_000, 4_001), ..plain() }, "cpuset"),
        ("io", Container { io, ..plain() }, "io"),
        ("rlimit", nofile(10, Some(1 << 40)), "rlimits"),
        ("hugetlb", Container { hugetlb: [(1 << 40, 1 << 40)].into(), ..plain() }, "hugetlb"),
    ];
    for (task, container, field) in cases {
        framework.launch(LIMIT, task, &with(container, "touch $PROFFER_SANDBOX/began"), None).await;
        let ended = framework.end_of(LIMIT, task).await;
        let expected = (TaskState::Failed, Reason::ContainerRefused);
        assert_eq!((ended.state, ended.reason), expected, "{task}: {ended:?}");
        assert!(ended.message.contains(field), "{task}: {ended:?}");
    }
    let unknown = Arc::new(TaskSpec { user: "no-such-user".into(), ..(*shell("exit 0")).clone() });
    framework.launch(LIMIT, "user", &unknown, None).await;
    let ended = framework.end_of(LIMIT, "user").await;
    assert_eq!((ended.state, ended.reason), (TaskState::Failed, Reason::UserRefused), "{ended:?}");
    // Nothing of theirs ever ran.
    for sandbox in fs::read_dir(cluster.agents[0].dir.join("sandboxes")).expect("sandboxes").flatten() {
        assert!(!sandbox.path().join("began").exists());
    }

    // And what it can give is given.
    let has = Container {
        hostname: "inside".into(),
        cpuset: range(0, 0),
        working_directory: "/tmp".into(),
        ..nofile(77, Some(78))
    };
    let looks = "[ $(ulimit -n) = 77 ] || exit 2; [ $(ulimit -Hn) = 78 ] || exit 3; [ $PWD = /tmp ] || exit 4; \
                 [ $(uname -n) = inside ] || exit 5; grep -qx 'Cpus_allowed_list:[[:space:]]*0' /proc/self/status";
    framework.launch(LIMIT, "has", &with(has, looks), None).await;
    let ended = framework.end_of(LIMIT, "has").await;
    assert_eq!((ended.state, ended.exit_code), (TaskState::Finished, Some(0)), "{ended:?}");
    cluster.all_free(LIMIT).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}
