//! `cargo xtask sim`: the simulator over many seeds, and over planted bugs.
//!
//! A simulator that never failed proves nothing. Each patch in `tests/planted` puts one classic mistake into a copy of
//! the product's code; the simulator, unchanged, has to find it by its general invariants.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{self, Read};
use crate::workspace;

/// The simulator's binary, in package `proffer-tests`.
pub(crate) const PROGRAM: &str = "proffer-sim";
/// In how many seeds a planted bug must be caught.
pub(crate) const PLANT_SEEDS: u64 = 200;
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
const SEED_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed; a run of one seed is the same byte for byte.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Plant this bug first, one of `tests/planted`, or `all` of them; it must be caught within the seeds.
    #[arg(long, value_name = "NAME|all")]
    plant: Option<String>,
}

/// Runs the simulator; whether it found nothing, or the planted bugs.
pub(crate) fn run(args: &Args) -> Result<bool> {
    match args.plant.as_deref() {
        None => {
            let program = build(workspace::root(), None)?;
            Ok(process::show(command(&program, args.seed, args.seeds), limit(args.seeds))?.ok())
        }
        Some("all") => plant_all_from(args.seed, args.seeds),
        Some(name) => plant_one(name, args.seed, args.seeds),
    }
}

/// The call of the simulator for `seeds` seeds from `seed` on.
pub(crate) fn command(program: &Path, seed: u64, seeds: u64) -> Command {
    let mut command = Command::new(program);
    command.args(["--seeds", &seeds.to_string(), "--seed", &seed.to_string()]);
    command
}

/// Plants each bug in turn; whether all were caught.
pub(crate) fn plant_all(seeds: u64) -> Result<bool> {
    plant_all_from(1, seeds)
}

fn plant_all_from(seed: u64, seeds: u64) -> Result<bool> {
    let mut all = true;
    for name in plants()? {
        all &= plant_one(&name, seed, seeds)?;
    }
    Ok(all)
}

/// The names of the planted bugs.
pub(crate) fn plants() -> Result<Vec<String>> {
    let dir = workspace::root().join("tests/planted");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "patch") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// The file of a planted bug.
pub(crate) fn patch(name: &str) -> PathBuf {
    workspace::root().join("tests/planted").join(format!("{name}.patch"))
}

/// Plants one bug in a copy of the tree and looks for it; whether it was caught.
fn plant_one(name: &str, first: u64, seeds: u64) -> Result<bool> {
    if !plants()?.iter().any(|plant| plant == name) {
        bail!("there is no planted bug `{name}`; there are: {}", plants()?.join(" "));
    }
    // One directory for all of them: cargo then builds anew only what a patch changes.
    let copy = workspace::target().join("planted/tree");
    mirror(&copy)?;
    apply(&patch(name), &copy)?;
    let target = workspace::target().join("planted/target");
    let program = build(&copy, Some(&target)).with_context(|| format!("planted bug {name}"))?;
    let mut command = command(&program, first, seeds);
    command.arg("--fail-fast");
    let (ended, text) = process::text(command, limit(seeds), Read::Both)?;
    if ended.ok() {
        println!("{name}: MISSED by {seeds} seeds from {first} on");
        return Ok(false);
    }
    let Some((seed, violation)) = violation(&text) else {
        bail!("planted bug {name}: the simulator itself failed: {}\n{text}", ended.how());
    };
    println!("{name}: caught by seed {seed} after {} seeds: {violation}", seed - first + 1);
    Ok(true)
}

fn limit(seeds: u64) -> Duration {
    SEED_LIMIT.saturating_mul(u32::try_from(seeds.max(2)).unwrap_or(u32::MAX))
}

/// The first failing seed in the simulator's output, and what it violated: `seed N: what`.
fn violation(text: &str) -> Option<(u64, String)> {
    text.lines().find_map(|line| {
        let (seed, what) = line.strip_prefix("seed ")?.split_once(": ")?;
        Some((seed.parse().ok()?, what.to_owned()))
    })
}

/// Builds the simulator in the profile made for it, from the workspace at `root`.
fn build(root: &Path, target: Option<&Path>) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.current_dir(root).args(["build", "--profile", "sim", "-p", "proffer-tests", "--bin", PROGRAM]);
    if let Some(target) = target {
        command.env("CARGO_TARGET_DIR", target);
    }
    let (ended, text) = process::text(command, BUILD_LIMIT, Read::Both)?;
    if !ended.ok() {
        bail!("build the simulator: {}\n{text}", ended.how());
    }
    Ok(target.map_or_else(workspace::target, Path::to_owned).join("sim").join(PROGRAM))
}

/// Makes `copy` hold exactly the repository's files; those that are equal keep their time, so that cargo does not
/// build them again.
fn mirror(copy: &Path) -> Result<()> {
    let tracked = workspace::tracked()?;
    for file in &tracked {
        let (from, to) = (workspace::root().join(file), copy.join(file));
        let text = std::fs::read(&from).with_context(|| format!("read {}", from.display()))?;
        if std::fs::read(&to).is_ok_and(|there| there == text) {
            continue;
        }
        let dir = to.parent().expect("it is below the copy");
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        std::fs::write(&to, text).with_context(|| format!("write {}", to.display()))?;
    }
    let mut dirs = vec![copy.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let path = entry?.path();
            let name = path.strip_prefix(copy).expect("it is below the copy");
            if path.is_dir() {
                dirs.push(path);
            } else if !tracked.iter().any(|file| file == name) {
                std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
    }
    Ok(())
}

fn apply(patch: &Path, copy: &Path) -> Result<()> {
    let mut command = Command::new("git");
    // Below a clone git would look for the files in that clone; the ceiling hides it.
    command.current_dir(copy).arg("apply").arg(patch).env("GIT_CEILING_DIRECTORIES", workspace::target());
    let (ended, text) = process::text(command, Duration::from_secs(60), Read::Both)?;
    if !ended.ok() {
        bail!("apply {}: {}\n{text}", patch.display(), ended.how());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_violation_is_found() {
        let text = "seed 8: I-03: launch 4 started twice (x.rs:1)\nmore\nseed 9: x\nper seed   min\n";
        assert_eq!(violation(text), Some((8, "I-03: launch 4 started twice (x.rs:1)".into())));
        assert_eq!(violation("10 seeds green, 0 failed\n"), None);
    }
}
