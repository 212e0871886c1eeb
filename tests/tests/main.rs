//! Stories of whole clusters of the real programs: what is promised, seen from outside.
//!
//! Each story starts a cluster of its own and leaves nothing. Containers are used where isolation matters and where
//! there is root; the rest runs plain processes.

#![allow(clippy::print_stdout, reason = "why a test was skipped is told on standard output")]

mod array;
mod checks;
mod containers;
mod dev;
mod ends;
mod escape;
mod executors;
mod faults;
mod files;
mod first;
mod groups;
mod hands;
mod messages;
mod nodes;
mod offers;
mod python;
mod refusals;
mod start;
mod walk;

use std::time::Duration;

use proffer_tests::cluster::Ran;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long anything may take that should be quick: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(30);

static MACHINE: RwLock<()> = RwLock::const_new(());

/// For a story that measures nothing.
async fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

/// For a story that measures what the machine does.
async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

/// `linux` where that is possible.
fn best() -> &'static str {
    if nix::unistd::geteuid().is_root() { "linux" } else { "process" }
}

/// How often to try what is tried `most` times: less where `PROFFER_LAUNCHES` asks for little, which is where everything
/// takes its time.
fn rounds(most: usize) -> usize {
    let asked = std::env::var("PROFFER_LAUNCHES").ok().and_then(|text| text.parse::<usize>().ok());
    asked.map_or(most, |launches| (launches / 10).clamp(1, most))
}

/// The standard output of a program that must have ended well.
fn good(ran: Ran) -> String {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran.stdout
}

/// What `-o json` printed.
fn json(ran: Ran) -> serde_json::Value {
    let text = good(ran);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// Says on which cgroups a test ran its containers, if it did.
fn ran_on() {
    if best() != "linux" {
        return;
    }
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").is_file();
    println!("RAN: cgroup v{}", if v2 { 2 } else { 1 });
}
