//! The cgroup tree: ours are the groups `proffer/<agent-instance>/…` and nothing else.
//!
//! ```text
//! proffer/                       shared by the agents of a machine, removed by whoever finds it empty
//!   <agent-instance>/
//!     supervisors/               the supervisors and their log pumps
//!     <launch, 16 hex digits>/   one container
//! ```
//! On v2 that is one tree. On v1 it is repeated in each hierarchy we use: cpu, memory and pids (which limits need),
//! cpuacct (usage) and freezer (an orderly end) where they are mounted.
//!
//! cgroups-rs writes the limits. Its deletion sleeps and stops at the first failing hierarchy, its readers take a
//! group that has vanished for one that uses nothing, and its builder makes a directory in every hierarchy of the
//! machine: making, reading and removing are therefore done here.

mod cpu;
mod detect;
mod freezer;
mod group;
mod memory;
mod pids;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use proffer_types::LaunchId;

use crate::Error;

pub(crate) use detect::{Layout, detect};
pub(crate) use group::{Counters, Entry, Group, Limits};

/// The directory all our groups are under.
const TOP: &str = "proffer";
const SUPERVISORS: &str = "supervisors";
/// What our cpus weigh against those of the machine's own groups. More would make daemons wait too long for their
/// turn when tasks are busy.
const TOP_SHARE: u64 = 8;

/// One agent's groups.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    layout: Layout,
    instance: String,
}

impl Tree {
    /// Makes the groups that are there for as long as the agent is.
    pub(crate) fn create(layout: Layout, instance: &str) -> Result<Self, Error> {
        let tree = Self { layout, instance: instance.to_owned() };
        let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        for root in tree.layout.roots() {
            tree.create_in(&root)?;
        }
        // A group's share is compared with its siblings' only, and each process of the root group is one: a busy
        // machine would leave the tasks a fraction of what they were promised. Their limits, not the share, keep
        // them from taking the machine.
        let cpu = tree.layout.cpu_root();
        for group in [cpu.join(TOP), cpu.join(TOP).join(instance)] {
            cpu::set_share(&group, cpus * 1000 * TOP_SHARE, tree.layout.is_v2())?;
        }
        Ok(tree)
    }

    fn create_in(&self, root: &Path) -> Result<(), Error> {
        let top = root.join(TOP);
        let own = top.join(&self.instance);
        let v2 = self.layout.is_v2();
        if v2 {
            delegate(root)?;
        }
        let mut tries = 0;
        loop {
            let made =
                make(&top).and_then(|()| if v2 { delegate(&top) } else { Ok(()) }).and_then(|()| make(&own));
            match made {
                // Another agent that ends may just have found the top empty.
                Err(Error::Path { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && tries < 100 =>
                {
                    tries += 1
                }
                made => break made?,
            }
        }
        if v2 {
            delegate(&own)?;
        }
        make(&own.join(SUPERVISORS))
    }

    /// The tree of an agent that may or may not have made it.
    pub(crate) fn existing(layout: Layout, instance: &str) -> Self {
        Self { layout, instance: instance.to_owned() }
    }

    /// The group of one container, made or not.
    pub(crate) fn group(&self, launch: LaunchId) -> Group {
        Group::new(self.layout.clone(), &Path::new(TOP).join(&self.instance).join(name(launch)))
    }

    /// The supervisors' group.
    pub(crate) fn supervisors(&self) -> Group {
        Group::new(self.layout.clone(), &Path::new(TOP).join(&self.instance).join(SUPERVISORS))
    }

    /// Files by which a process enters the supervisors' group: it writes `0` to each.
    pub(crate) fn supervisor_entries(&self) -> Result<Vec<File>, Error> {
        let own =
            self.layout.roots().into_iter().map(|root| root.join(TOP).join(&self.instance).join(SUPERVISORS));
        own.map(|dir| {
            let path = dir.join("cgroup.procs");
            let file = OpenOptions::new().write(true).open(&path);
            file.map_err(|source| Error::Path { operation: "open for writing", path, source })
        })
        .collect()
    }

    /// The containers that have a group, in any hierarchy, in ascending order.
    pub(crate) fn launches(&self) -> Vec<LaunchId> {
        let mut launches = Vec::new();
        for root in self.layout.roots() {
            let Ok(entries) = fs::read_dir(root.join(TOP).join(&self.instance)) else { continue };
            let names = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            launches.extend(names.filter_map(|entry| entry.file_name().to_str().and_then(parse)));
        }
        launches.sort_unstable();
        launches.dedup();
        launches
    }

    /// Removes the agent's own groups, which must be empty, and ours at the top if no other agent has any.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        for root in self.layout.roots() {
            let top = root.join(TOP);
            let own = top.join(&self.instance);
            for dir in [own.join(SUPERVISORS), own] {
                match fs::remove_dir(&dir) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => return Err(Error::Path { operation: "remove cgroup", path: dir, source }),
                }
            }
            // Another agent's group keeps it.
            let _ = fs::remove_dir(&top);
        }
        Ok(())
    }
}

/// The directory name of a launch, in cgroup trees and elsewhere: never a name that a client chose.
pub(crate) fn name(launch: LaunchId) -> String {
    format!("{:016x}", launch.0)
}

/// The launch that a directory name stands for.
pub(crate) fn parse(name: &str) -> Option<LaunchId> {
    let hex = name.len() == 16 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    hex.then(|| u64::from_str_radix(name, 16).ok()).flatten().map(LaunchId)
}

/// Makes a group; an existing one is as good.
fn make(dir: &Path) -> Result<(), Error> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::Path { operation: "make cgroup", path: dir.to_owned(), source }),
    }
}

/// v2: lets the groups below have the controllers we use.
fn delegate(dir: &Path) -> Result<(), Error> {
    let path = dir.join("cgroup.subtree_control");
    fs::write(&path, "+cpu +memory +pids").map_err(|source| Error::Path {
        operation: "enable cpu, memory, pids in",
        path,
        source,
    })
}

/// Reads a small kernel file.
fn read(path: PathBuf) -> Result<String, Error> {
    fs::read_to_string(&path).map_err(|source| Error::Path { operation: "read", path, source })
}

/// The number in a kernel file.
fn read_number(path: PathBuf) -> Result<u64, Error> {
    let text = read(path.clone())?;
    text.trim().parse().map_err(|_| not_understood(path, &text))
}

/// The number behind `key` in a file of `key number` lines; `None` if there is no such line.
fn read_keyed(path: PathBuf, key: &str) -> Result<Option<u64>, Error> {
    let text = read(path.clone())?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.map(|value| value.trim().parse().map_err(|_| not_understood(path, value))).transpose()
}

fn not_understood(path: PathBuf, text: &str) -> Error {
    let source = io::Error::new(io::ErrorKind::InvalidData, format!("not a number: {text:?}"));
    Error::Path { operation: "read a number in", path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_launches() {
        assert_eq!(parse(&name(LaunchId(0x1c))), Some(LaunchId(0x1c)));
        for other in ["supervisors", "1c", "000000000000001C", "+00000000000001c", "", "00000000000000000"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
