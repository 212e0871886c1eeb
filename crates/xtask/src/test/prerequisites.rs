//! What the tests need of the machine.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::unistd::geteuid;

use crate::process::{self, Read};

/// Program, Debian packages, and what for.
pub(crate) type Needed = (&'static str, &'static str, &'static str);

const PROGRAMS: [Needed; 6] = [
    ("cc", "gcc libc6-dev", "to link the programs"),
    ("git", "git", "to list the repository's files, and to plant bugs"),
    ("sh", "dash", "as the payload of tasks"),
    ("jq", "jq", "for the walk through the API"),
    ("npm", "npm", "to fetch a stock gRPC client for that walk"),
    ("python3", "python3 python3-venv python3-pip", "for the example framework"),
];
const INSTALL_LIMIT: Duration = Duration::from_secs(300);

/// Says what there is, and installs what is missing where that is possible.
pub(crate) fn check() -> Result<()> {
    let root = geteuid().is_root();
    println!("user: {}", if root { "root" } else { "not root: tests of containers will be skipped" });
    println!("cgroups: {}", cgroups());
    if let Err(why) = need(&PROGRAMS) {
        println!("{why:#}");
    }
    Ok(())
}

/// Installs those that are missing, as root, by apt.
///
/// # Errors
/// If some are still missing: which, and what for.
pub(crate) fn need(programs: &[Needed]) -> Result<()> {
    let missing = || programs.iter().filter(|(program, _, _)| !there(program));
    if missing().next().is_none() {
        return Ok(());
    }
    if geteuid().is_root() && there("apt-get") {
        let packages: Vec<&str> = missing().flat_map(|(_, packages, _)| packages.split(' ')).collect();
        println!("installing {}", packages.join(", "));
        let install = [&["install", "-y", "--no-install-recommends"][..], &packages].concat();
        // A machine that never fetched the lists knows no package.
        if !apt(&install)? && apt(&["update"])? {
            apt(&install)?;
        }
    }
    let left: Vec<String> = missing()
        .map(|(program, package, what_for)| format!("missing: {program}, {what_for} (Debian: {package})"))
        .collect();
    ensure!(left.is_empty(), "{}", left.join("; "));
    Ok(())
}

fn apt(args: &[&str]) -> Result<bool> {
    let mut command = Command::new("apt-get");
    command.arg("-q").args(args).env("DEBIAN_FRONTEND", "noninteractive");
    let (ended, text) = process::text(command, INSTALL_LIMIT, Read::Both)?;
    if !ended.ok() {
        println!("apt-get {}: {}\n{text}", args.join(" "), ended.how());
    }
    Ok(ended.ok())
}

/// Whether `program` is in PATH, or where root's programs are.
fn there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(program).is_file())
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
