//! What the tests need of the machine.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use nix::unistd::geteuid;

use crate::process::{self, Read};

/// Program, Debian package, and what for.
const PROGRAMS: [(&str, &str, &str); 3] = [
    ("cc", "gcc libc6-dev", "to link the programs"),
    ("git", "git", "to list the repository's files, and to plant bugs"),
    ("sh", "dash", "as the payload of tasks"),
];
const INSTALL_LIMIT: Duration = Duration::from_secs(300);

/// Says what there is, and installs what is missing where that is possible: as root, by apt.
pub(crate) fn check() -> Result<()> {
    let root = geteuid().is_root();
    println!("user: {}", if root { "root" } else { "not root: tests of containers will be skipped" });
    println!("cgroups: {}", cgroups());
    let missing: Vec<_> = PROGRAMS.iter().filter(|(program, _, _)| !there(program)).collect();
    for (program, package, what_for) in &missing {
        println!("missing: {program}, {what_for} (Debian: {package})");
    }
    if missing.is_empty() || !root || !there("apt-get") {
        return Ok(());
    }
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "--no-install-recommends"]).env("DEBIAN_FRONTEND", "noninteractive");
    missing.iter().for_each(|(_, packages, _)| {
        command.args(packages.split(' '));
    });
    let (ended, text) = process::text(command, INSTALL_LIMIT, Read::Both)?;
    if !ended.ok() {
        println!("apt-get install: {}\n{text}", ended.how());
    }
    Ok(())
}

/// Whether `program` is in PATH.
fn there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Which versions are mounted where.
fn cgroups() -> String {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else { return "unknown".into() };
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(at), Some(kind), Some(options)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        match kind {
            "cgroup2" => {
                let controllers = std::fs::read_to_string(Path::new(at).join("cgroup.controllers"));
                found.push(format!("v2 with [{}]", controllers.unwrap_or_default().trim()));
            }
            "cgroup" => {
                let known = ["cpu", "memory", "pids", "freezer"];
                let here = options.split(',').filter(|option| known.contains(option));
                found.extend(here.map(|controller| format!("v1 {controller}")));
            }
            _ => {}
        }
    }
    if found.is_empty() { "none".into() } else { found.join(", ") }
}

/// Whether `cargo NAME` can be called.
pub(crate) fn cargo_has(name: &str) -> bool {
    let mut command = crate::workspace::cargo();
    command.args([name, "--version"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
