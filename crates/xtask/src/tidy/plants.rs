//! The planted bugs in `tests/planted` must apply to the code as it is.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{sim, workspace};

/// Asks git whether each patch applies.
pub(super) fn check() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for name in sim::plants()? {
        let patch = sim::patch(&name);
        let mut command = Command::new("git");
        command.current_dir(workspace::root()).args(["apply", "--check"]).arg(&patch);
        let output = command.output().context("git apply")?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            problems.push(format!("{}: {why}", patch.display()));
        }
    }
    Ok(problems)
}
