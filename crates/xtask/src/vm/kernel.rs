//! The machine's kernel: Debian's own, by its package manager.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{self, Read};
use crate::workspace;

/// Packages that depend on the newest kernel of their line; the first that is known is taken. From 6.3 on a tmpfs can be
/// mounted with other user ids.
const LINES: [&str; 2] = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"];
const APT_LIMIT: Duration = Duration::from_secs(180);

/// A kernel that qemu can boot. Root on ext4 on an NVMe disk is built into it, so that no module is needed, and it
/// unpacks itself in two seconds.
pub(super) struct Kernel {
    /// The package it comes from, with its version in the name.
    pub(super) package: String,
    /// The bootable file.
    pub(super) image: PathBuf,
}

/// The kernel that was fetched before, or else fetches one.
///
/// # Errors
/// If the package manager is not there or does not have it.
pub(super) fn get() -> Result<Kernel> {
    let dir = workspace::scratch("vm/kernel/x")?.with_file_name("");
    if let Some(kernel) = cached(&dir) {
        return Ok(kernel);
    }
    // Lists that were never fetched name nothing, and old ones name what is no longer there.
    if fetch(&dir).is_err() {
        apt("apt-get", &["-q", "update"], &dir)?;
        fetch(&dir)?;
    }
    cached(&dir).context("the kernel's package holds no kernel")
}

fn cached(dir: &Path) -> Option<Kernel> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let mut packages: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    packages.retain(|name| name.starts_with("linux-image-") && dir.join(name).is_dir());
    packages.sort();
    let package = packages.pop()?;
    let boot = std::fs::read_dir(dir.join(&package).join("boot")).ok()?.flatten();
    let mut images = boot.map(|entry| entry.path());
    let image = images
        .find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"vmlinuz")))?;
    Some(Kernel { package, image })
}

/// Downloads the package and unpacks it into a directory of its name.
fn fetch(dir: &Path) -> Result<()> {
    let mut package = None;
    for line in LINES {
        let text = apt("apt-cache", &["depends", line], dir).unwrap_or_default();
        package = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-").map(str::to_owned));
        if package.is_some() {
            break;
        }
    }
    let package = format!("linux-image-{}", package.context("apt knows no kernel for clouds")?);
    println!("getting {package}");
    // Several of us may do this at a time: each in a place of its own, and the first rename wins.
    let own = dir.join(format!("get-{}", std::process::id()));
    let result = unpack(&package, &own, dir);
    let _ = std::fs::remove_dir_all(&own);
    result
}

fn unpack(package: &str, own: &Path, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(own).with_context(|| format!("create {}", own.display()))?;
    apt("apt-get", &["-q", "download", package], own)?;
    let mut files = std::fs::read_dir(own).context("the download")?.flatten().map(|entry| entry.path());
    let file = files
        .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .context("apt-get download left no file")?;
    let tree = own.join("tree");
    apt("dpkg", &["-x", &file.to_string_lossy(), &tree.to_string_lossy()], own)?;
    // Modules are not used, and are most of it.
    let _ = std::fs::remove_dir_all(tree.join("lib"));
    let _ = std::fs::remove_dir_all(tree.join("usr"));
    let place = dir.join(package);
    match std::fs::rename(&tree, &place) {
        Err(error) if !place.is_dir() => Err(error).with_context(|| format!("create {}", place.display())),
        _ => Ok(()),
    }
}

fn apt(program: &str, args: &[&str], dir: &Path) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).current_dir(dir).env("LC_ALL", "C");
    let (ended, text) = process::text(command, APT_LIMIT, Read::Both)?;
    if !ended.ok() {
        bail!("{program} {}: {}: {}", args.join(" "), ended.how(), text.trim().replace('\n', "; "));
    }
    Ok(text)
}
