//! Other people's programs, where they are installed, doing what the benches do.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::LIMIT;
use crate::process::{self, Read};
use crate::workspace;

/// Containers of one measurement.
const RUNS: u32 = 60;

/// `crun run` of a container that does nothing: namespaces, cgroups with limits, a read-only root.
pub(super) struct Crun {
    bundle: PathBuf,
    version: String,
}

impl Crun {
    /// Writes what it is to run; `None` if it is not installed.
    pub(super) fn find() -> Result<Option<Self>> {
        let mut command = Command::new("crun");
        command.arg("--version");
        let Ok((ended, text)) = process::text(command, LIMIT, Read::Out) else { return Ok(None) };
        ensure!(ended.ok(), "crun --version: {}", ended.how());
        let version = text.lines().next().unwrap_or_default().to_owned();
        let bundle = workspace::scratch("crun/rootfs/bin/true")?;
        // A static program, which the floor has made.
        fs::copy(workspace::scratch("idle")?, &bundle).context("copy the container's program")?;
        let bundle = workspace::scratch("crun/config.json")?;
        for dir in ["proc", "dev"] {
            fs::create_dir_all(workspace::scratch("crun/rootfs")?.join(dir)).context("make the root")?;
        }
        fs::write(&bundle, config().to_string()).context("write config.json")?;
        let bundle = bundle.parent().context("it has a directory")?.to_owned();
        Ok(Some(Self { bundle, version }))
    }

    /// So many, one after the other. crun refuses a machine on which both versions of cgroups are mounted: in a mount
    /// namespace of its own it sees v1 alone.
    pub(super) fn measure(&self, cores: &str, round: usize) -> Result<Value> {
        let script = format!(
            "umount /sys/fs/cgroup/unified 2>/dev/null; i=0; while [ $i -lt {RUNS} ]; do i=$((i+1)); \
             crun --root \"$1/state\" run -b \"$1\" proffer-bench-$$-$i || exit 1; done; rm -rf \"$1/state\""
        );
        let mut command = Command::new("taskset");
        command.args(["-c", cores, "unshare", "-m", "sh", "-c", &script, "sh"]).arg(&self.bundle);
        let start = Instant::now();
        let (ended, text) = process::text(command, LIMIT, Read::Both)?;
        ensure!(ended.ok(), "crun run: {}\n{text}", ended.how());
        let per_second = f64::from(RUNS) / start.elapsed().as_secs_f64();
        Ok(json!({
            "bench": "launch", "peer": self.version, "what": "rate", "round": round, "cores": cores, "tasks": RUNS,
            "at_once": 1, "per_second": per_second,
        }))
    }
}

fn config() -> Value {
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": { "bounding": [], "effective": [], "permitted": [] },
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "task",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": {
                "cpu": { "shares": 1024 }, "memory": { "limit": 64 << 20 }, "pids": { "limit": 64 },
            },
        },
    })
}

/// An array of jobs that do nothing, on a Slurm of one node; `None` if it is not installed.
pub(super) fn slurm() -> Result<Option<Vec<Value>>> {
    let script = workspace::root().join("crates/xtask/peers/slurm.sh");
    let dir = std::env::temp_dir().join(format!("proffer-slurm-{}", std::process::id()));
    // In a process namespace of its own, which nothing of it outlives.
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
        .arg(script)
        .arg(&dir)
        .arg("400");
    let (ended, text) = process::text(command, Duration::from_secs(180), Read::Out)?;
    let _ = fs::remove_dir_all(&dir);
    if ended.status.and_then(|status| status.code()) == Some(77) {
        return Ok(None);
    }
    ensure!(ended.ok(), "slurm.sh: {}\n{text}", ended.how());
    let figures = text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    figures.collect::<Result<Vec<Value>>>().map(Some)
}
