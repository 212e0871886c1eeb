//! The cgroup tree: ours are the groups `proffer/<agent-instance>/…` and nothing else.
//!
//! ```text
//! proffer/                       shared by the agents of a machine, removed by whoever finds it empty
//!   <agent-instance>/
//!     supervisors/               the supervisors and their log pumps
//!     slot-<16 hex digits>/      one container, or none for a while; an older agent named it by the launch
//!     containers/                v1: all containers, in hierarchies where all are alike
//! ```
//! On v2 that is one tree. On v1 it is repeated in each hierarchy we use: cpu, memory and pids (which limits need),
//! cpuacct (usage) and freezer (an orderly end) where they are mounted; devices and hugetlb, where all containers
//! share a group; cpuset, blkio and hugetlb for those that ask for something there.
//!
//! cgroups-rs writes the limits. Its deletion sleeps and stops at the first failing hierarchy, its readers take a
//! group that has vanished for one that uses nothing, and its builder makes a directory in every hierarchy of the
//! machine: making, reading and removing are therefore done here.

mod cpu;
mod cpuset;
mod detect;
mod devices;
mod files;
mod freezer;
mod group;
mod hugetlb;
mod io;
mod memory;
mod pids;
mod slots;
mod tree;
#[cfg(test)]
mod tree_tests;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use proffer_types::LaunchId;

use crate::Error;

pub(crate) use detect::{Layout, detect};
pub(crate) use group::{Counters, Entry, Extras, Limits, Room};
pub(crate) use tree::Tree;

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
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(Error::Path { operation: "make cgroup", path: dir.to_owned(), source }),
    }
}

/// Writes a kernel file.
fn write(path: &Path, text: &str) -> Result<(), Error> {
    let written =
        OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| Error::Path { operation: "write", path: path.to_owned(), source })
}

/// Reads a kernel file.
fn read(path: PathBuf) -> Result<String, Error> {
    fs::File::open(&path).and_then(|file| read_from(&file)).map_err(|source| Error::Path {
        operation: "read",
        path,
        source,
    })
}

/// Reads a kernel file from its start, which has the kernel write it anew; a small one with one call, for the kernel
/// gives all of it at once.
fn read_from(file: &fs::File) -> std::io::Result<String> {
    let mut start = [0; 512];
    let length = file.read_at(&mut start, 0)?;
    let mut text = start[..length].to_vec();
    while text.len() >= start.len() {
        match file.read_at(&mut start, text.len() as u64)? {
            0 => break,
            length => text.extend_from_slice(&start[..length]),
        }
    }
    String::from_utf8(text).map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidData))
}

/// The number in a kernel file.
fn read_number(path: PathBuf) -> Result<u64, Error> {
    let text = read(path.clone())?;
    text.trim().parse().map_err(|_| not_understood(path, &text))
}

fn not_understood(path: PathBuf, text: &str) -> Error {
    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, format!("not a number: {text:?}"));
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
