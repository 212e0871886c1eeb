//! The example framework in Python, which has nothing of ours but stubs generated from `proto`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use proffer_tests::cluster::{Cluster, ran};
use tokio::process::Command;

use super::array::{TASKS, checked, options, share};
use super::{LIMIT, beside_others, good, ran_on};

/// To download and unpack what it needs; nothing to do the next time.
const INSTALL_LIMIT: Duration = Duration::from_secs(240);
/// The packages that have messages which frameworks and operators use.
const PROTOS: [&str; 3] = ["common/v1/common.proto", "scheduler/v1/scheduler.proto", "admin/v1/admin.proto"];

/// A file of the repository.
pub(super) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join(path)
}

/// A place below the target directory that is kept between runs.
pub(super) fn kept(name: &str) -> PathBuf {
    let program = proffer_tests::cluster::program("proffer");
    program.ancestors().nth(2).expect("target/debug/proffer").join(name)
}

/// Runs a command to its end; what it said if it failed.
pub(super) async fn done(command: &mut Command, limit: Duration) -> Result<String, String> {
    let what = format!("{:?}", command.as_std());
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output.map_err(|_| format!("{what}: not done in {limit:?}"))?;
    let output = output.map_err(|error| format!("{what}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{what}: {}: {} {}", output.status, text(&output.stdout), text(&output.stderr))),
    }
}

/// A Python of our own with what `requirements.txt` names.
///
/// # Errors
/// Why there is none: no Python here, or its packages cannot be fetched.
pub(super) async fn interpreter() -> Result<PathBuf, String> {
    let wanted = fs::read_to_string(repository("examples/python/requirements.txt")).expect("requirements");
    let dir = kept("python");
    fs::create_dir_all(&dir).expect("a directory below target");
    // Test programs of two checkouts may share it.
    let lock = fs::File::create(dir.join("lock")).expect("a lock file");
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.expect("it ends");
    let _lock = lock.expect("locked");
    let (venv, stamp) = (dir.join("venv"), dir.join("installed.txt"));
    let python = venv.join("bin/python");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && python.exists() {
        return Ok(python);
    }
    done(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv), INSTALL_LIMIT).await?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]);
    done(pip.arg(repository("examples/python/requirements.txt")), INSTALL_LIMIT).await?;
    fs::write(stamp, wanted).expect("a note");
    Ok(python)
}

/// Makes the stubs.
async fn generate(python: &Path, stubs: &Path) {
    fs::create_dir(stubs).expect("a directory");
    let protos = repository("proto");
    let mut protoc = Command::new(python);
    protoc.args(["-m", "grpc_tools.protoc", "-I"]).arg(&protos);
    protoc.arg(format!("--python_out={0}", stubs.display()));
    protoc.arg(format!("--grpc_python_out={0}", stubs.display()));
    protoc.args(PROTOS.map(|file| protos.join("proffer").join(file)));
    done(&mut protoc, LIMIT).await.expect("stubs");
}

#[tokio::test]
async fn the_python_framework_runs_a_thousand_tasks_over_a_killed_leader() {
    let _machine = beside_others().await;
    let python = match interpreter().await {
        Ok(python) => python,
        Err(why) => {
            let why = why.lines().next_back().unwrap_or_default();
            return println!("SKIPPED: no Python with gRPC: {why}");
        }
    };
    let mut cluster = Cluster::start(options(3)).await;
    let (stubs, masters) = (cluster.dir().join("stubs"), cluster.addresses().join(","));
    generate(&python, &stubs).await;
    let example = |tasks: usize, script: &str| {
        let mut command = Command::new(&python);
        command.env("PYTHONPATH", &stubs).env("PYTHONDONTWRITEBYTECODE", "1");
        command.arg(repository("examples/python/batch.py")).args(["--masters", &masters]);
        command.args(["--tasks", &tasks.to_string(), "--", "sh", "-c", script]);
        command
    };
    let batch = example(TASKS, &share());
    checked(&mut cluster, batch, async |cluster: &mut Cluster| {
        let leader = cluster.leader().await;
        cluster.masters[leader].kill();
    })
    .await;

    let failed = ran(example(2, "echo out; exit $PROFFER_ARRAY_INDEX"), LIMIT).await;
    assert_eq!((failed.code, failed.stdout.as_str()), (Some(1), "out\nout\n"), "{failed:?}");
    assert!(failed.stderr.contains("FAILED exit_code") && failed.stderr.contains("0 of 2"), "{failed:?}");
    let frameworks = good(cluster.run(LIMIT, &["framework", "list", "-o", "json"]).await);
    assert!(!frameworks.contains("batch.py"), "it ends itself: {frameworks}");
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}
