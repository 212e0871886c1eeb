//! Real work on real input: a thousand tasks hash the files of a tree, each its share, and every start is counted.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use proffer_tests::cluster::{Cluster, Options, audit, until_true};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use super::{LIMIT, beside_others, best, ran_on};

/// How many tasks.
pub(super) const TASKS: usize = 1_000;
/// When a third has ended, something is killed.
const MIDDLE: usize = 300;
/// On two busy cores.
const ARRAY_LIMIT: Duration = Duration::from_secs(240);
/// Trees that machines have, with files that everybody may read.
const TREES: [&str; 3] = ["/usr/share/doc", "/usr/include", "/usr/share"];
/// What marks the line that each start prints.
const START: &str = "#start";

/// A task's share: every TASKSth file. The first line tells who started, and when.
const SHARE: &str = r##"
echo "#start $PROFFER_ARRAY_INDEX $(cat /proc/sys/kernel/random/uuid) $(cut -d' ' -f22 /proc/$$/stat)"
find TREE -type f | LC_ALL=C sort |
    awk -v n=$PROFFER_ARRAY_COUNT -v i=$PROFFER_ARRAY_INDEX 'NR % n == i % n' | xargs -r -d '\n' sha256sum
"##;

fn tree() -> &'static str {
    TREES.into_iter().find(|tree| Path::new(tree).is_dir()).expect("a tree of files")
}

/// What one command alone says of the tree.
async fn expected() -> BTreeSet<String> {
    let script = format!("find {} -type f | xargs -r -d '\\n' sha256sum", tree());
    let output = Command::new("sh").args(["-c", &script]).output().await.expect("a shell");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Runs the array by `proffer run`, with `middle` in its middle.
async fn thousand(cluster: &mut Cluster, middle: impl AsyncFnOnce(&mut Cluster)) {
    let range = format!("1-{TASKS}");
    let args = ["run", "--array", &range, "--cpus", "0.1", "--mem", "32MiB", "--", "sh", "-c", &share()];
    let run = cluster.proffer(&cluster.addresses(), &args);
    checked(cluster, run, middle).await;
}

/// The script of each task.
pub(super) fn share() -> String {
    SHARE.replace("TREE", tree())
}

/// Lets `run` run [`TASKS`] of [`share`] as an array and print what they print, calls `middle` when a third of it has
/// started, and checks what came out.
pub(super) async fn checked(cluster: &mut Cluster, mut run: Command, middle: impl AsyncFnOnce(&mut Cluster)) {
    run.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut run = run.spawn().expect("the framework starts");
    let mut errors = run.stderr.take().expect("a pipe");
    let mut lines = BufReader::new(run.stdout.take().expect("a pipe")).lines();
    let mut starts = Vec::new();
    let mut digests = BTreeSet::new();
    let mut middle = Some(middle);
    let work = async {
        while let Some(line) = lines.next_line().await.expect("lines") {
            match line.strip_prefix(START) {
                Some(start) => starts.push(start.trim().to_owned()),
                None => assert!(digests.insert(line.clone()), "told twice: {line}"),
            }
            if let Some(middle) = middle.take_if(|_| starts.len() >= MIDDLE) {
                middle(cluster).await;
            }
        }
        let mut text = String::new();
        errors.read_to_string(&mut text).await.expect("text");
        (run.wait().await.expect("its end"), text)
    };
    let (status, errors) = tokio::time::timeout(ARRAY_LIMIT, work).await.expect("the array ends in time");
    assert!(status.success(), "{status}: {errors}");

    let column = |n: usize| starts.iter().filter_map(|line| line.split(' ').nth(n)).collect::<BTreeSet<_>>();
    assert_eq!(starts.len(), TASKS, "starts");
    assert_eq!(column(0).len(), TASKS, "tasks that started");
    assert_eq!(column(1).len(), TASKS, "nonces");
    let expected = expected().await;
    let differ: Vec<_> = expected.symmetric_difference(&digests).take(10).collect();
    assert!(differ.is_empty(), "{} digests instead of {}: {differ:#?}", digests.len(), expected.len());
    let finished = cluster.status().await.tasks;
    assert_eq!(finished.get("FINISHED"), Some(&(TASKS as u64)), "{finished:?}");
    cluster.all_free(LIMIT).await;
}

/// More tasks at once than there are cores, as on a real node.
pub(super) fn options(masters: usize) -> Options {
    Options { masters, agents: 2, containerizer: best(), resources: "cpus:3;mem:4GiB", ..Options::default() }
}

#[tokio::test]
async fn a_thousand_tasks_do_what_one_command_does() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::start(options(1)).await;
    thousand(&mut cluster, async |_: &mut Cluster| ()).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_thousand_tasks_and_the_leader_is_killed_in_the_middle() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::start(options(3)).await;
    thousand(&mut cluster, async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        cluster.masters[leader].kill();
    })
    .await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_thousand_tasks_and_both_agents_are_killed_in_the_middle() {
    let _machine = beside_others().await;
    let mut cluster = Cluster::start(options(1)).await;
    thousand(&mut cluster, async |cluster: &mut Cluster| {
        cluster.agents.iter_mut().for_each(proffer_tests::cluster::Daemon::kill);
        // What runs ends while nobody looks.
        let dirs: Vec<_> = cluster.agents.iter().map(|agent| agent.dir.clone()).collect();
        let runs = |dir: &std::path::PathBuf| !audit::contained(dir).is_empty();
        until_true("the tasks end without their agents", LIMIT, || !dirs.iter().any(runs)).await;
        cluster.agents.iter_mut().for_each(proffer_tests::cluster::Daemon::start);
    })
    .await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}
