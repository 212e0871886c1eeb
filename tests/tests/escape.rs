//! Tasks that try to reach the host through what the agent does for them: their output, their sandbox's end.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proffer_tests::cluster::{Cluster, Framework, Options, info, is_root, spec};
use proffer_types::TaskState;

use super::{LIMIT, beside_others, good, ran_on};

/// What a task does to have its output, or the removal of its sandbox, land in `{canary}`: it looks for the files that its
/// output goes to, and puts links, fifos and names of every kind in their place and in its sandbox, over and over.
const ROBBER: &str = r#"
    umask 0
    ls {agent} 2>/dev/null | sed 's/^/SEEN /'
    find / -xdev -name 'stdout.0' 2>/dev/null | grep -v ^/mnt/proffer/sandbox | sed 's/^/FOUND /'
    for fd in 1 2; do
        (: > /proc/self/fd/$fd/../stdout.0) 2>/dev/null && echo REPLACED
        ln -sf {canary}/file /proc/self/fd/$fd 2>/dev/null && echo REPLACED
    done
    mkdir -p deep/er/and/deeper; ln -s {canary} deep/er/out; ln -s / deep/root; ln -s {canary} canary
    mkfifo deep/fifo; ln {canary}/file deep/hard 2>/dev/null && echo LINKED
    (
        while [ ! -e stop ]; do
            for name in stdout.0 stdout stderr.0 logs log deep/er; do
                ln -sfn {canary} $name; rm -rf $name; mkfifo $name; rm -rf $name; mkdir -p $name; rm -rf $name
                ln -sfn ../../../../../../../..{canary} $name; rm -f $name
            done
        done
    ) 2>/dev/null &
    i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done
    touch stop; wait
    ln -sfn {canary} deep/er; ln -sfn {canary} logs
"#;

#[tokio::test]
async fn output_and_removal_stay_where_they_belong() {
    if !is_root("output_and_removal_stay_where_they_belong") {
        return;
    }
    let _machine = beside_others().await;
    let cluster = Cluster::start(Options { containerizer: "linux", ..Options::default() }).await;
    // Everyone may write to it, so that only the way to it is in a task's way.
    let place = tempfile::Builder::new().prefix("proffer-canary-").tempdir().expect("canary");
    let canary = place.path().to_owned();
    fs::write(canary.join("file"), "song").expect("canary");
    for path in [canary.clone(), canary.join("file")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("chmod");
    }
    let mut framework = Framework::connect(&cluster.addresses(), info("escape")).await;
    let agent = cluster.agents[0].dir.display().to_string();
    let script = ROBBER.replace("{canary}", &canary.display().to_string()).replace("{agent}", &agent);
    // Enough to have looked everywhere soon, on a slow machine too.
    let shell = |script: &str| spec("cpus:2;mem:32MiB", &["/bin/sh", "-c", script]);
    framework.launch(LIMIT, "robber", &shell(&script), None).await;
    // Followed while it happens.
    let output = good(cluster.run(2 * LIMIT, &["task", "logs", "-f", "--stream", "stdout", "robber"]).await);
    let wanted = (0..3000).map(|line| format!("line {line}\n")).collect::<String>();
    assert!(output == wanted, "{} bytes: {:.200}", output.len(), output);
    let status = framework.end_of(LIMIT, "robber").await;
    assert_eq!(status.state, TaskState::Finished, "{status:?}");
    // A second one at the same place, told to end while it does that.
    let endless = script.replace("-lt 3000", "-lt 300000000");
    framework.launch(LIMIT, "again", &shell(&endless), None).await;
    framework.state(LIMIT, "again", TaskState::Running).await;
    framework.kill("again").await;
    let status = framework.end_of(LIMIT, "again").await;
    assert_eq!(status.state, TaskState::Killed, "{status:?}");
    let song = || {
        let names = fs::read_dir(&canary).expect("canary").flatten().map(|entry| entry.file_name());
        (names.collect::<Vec<_>>(), fs::read_to_string(canary.join("file")).expect("the file"))
    };
    assert_eq!(song(), (vec!["file".into()], "song".into()));
    ran_on();
    drop(framework);
    // Its sandboxes are removed with everything that lies in them, and nothing else.
    assert_eq!(cluster.end(), Vec::<String>::new());
    assert_eq!(song(), (vec!["file".into()], "song".into()));
}
