//! Who may depend on whom.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::workspace;

/// A package, and which of ours it may be built from. Tests and `tests/` may see everything.
const ARROWS: [(&str, &[&str]); 17] = [
    ("proffer-types", &[]),
    ("proffer-wal", &[]),
    ("proffer-telemetry", &[]),
    ("proffer-settings", &[]),
    ("proffer-launcher", &[]),
    ("proffer-xtask", &[]),
    ("proffer-raft", &["wal"]),
    ("proffer-wire", &["types"]),
    ("proffer-registry", &["types"]),
    ("proffer-allocator", &["types"]),
    ("proffer-broker", &["types", "registry", "allocator"]),
    ("proffer-containerizer", &["types", "wire", "launcher"]),
    ("proffer-client", &["types", "wire"]),
    ("proffer-cli", &["types", "client"]),
    ("proffer-executor", &["wire", "launcher"]),
    ("proffer-agent", &["types", "wire", "wal", "containerizer", "settings", "telemetry"]),
    ("proffer-master", &["types", "wire", "raft", "wal", "registry", "broker", "settings", "telemetry"]),
];
/// What may see everything.
const FREE: &str = "proffer-tests";

/// Foreign crates that a package must not be built from, and why.
const BANNED: [(&[&str], &[&str], &str); 2] = [
    (
        &["proffer-types", "proffer-registry", "proffer-allocator", "proffer-broker"],
        &["tokio", "tonic", "prost", "libc", "nix", "rustix", "rand", "getrandom", "tracing", "tempfile"],
        "it decides, and does nothing",
    ),
    (
        &["proffer-launcher", "proffer-executor"],
        &["tokio", "tonic", "cgroups-rs", "tracing"],
        "one thread, which never blocks, clones the containers",
    ),
];

/// Compares every package's dependencies with [`ARROWS`] and [`BANNED`].
pub(super) fn check() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (package, dependencies) in packages()? {
        for (packages, banned, why) in BANNED {
            let found =
                banned.iter().filter(|name| dependencies.iter().any(|dependency| dependency == *name));
            if packages.contains(&package.as_str()) {
                problems.extend(found.map(|name| format!("{package} depends on {name}: {why}")));
            }
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package) else {
            if package != FREE {
                problems.push(format!(
                    "{package} is not in the table of arrows: crates/xtask/src/tidy/arrows.rs"
                ));
            }
            continue;
        };
        let ours = dependencies.iter().filter_map(|name| name.strip_prefix("proffer-"));
        let wrong = ours.filter(|name| !allowed.contains(name));
        problems.extend(wrong.map(|name| format!("{package} may not depend on proffer-{name}")));
    }
    Ok(problems)
}

/// The members of the workspace with what they are built from.
fn packages() -> Result<Vec<(String, Vec<String>)>> {
    let mut command = workspace::cargo();
    let output = command.args(["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata: no packages")?;
    let read = packages.iter().map(|package| {
        let name = package["name"].as_str().unwrap_or_default().to_owned();
        let all = package["dependencies"].as_array().into_iter().flatten();
        let built_from = all.filter(|dependency| dependency["kind"].is_null());
        let names = built_from.filter_map(|dependency| dependency["name"].as_str());
        (name, names.map(str::to_owned).collect())
    });
    Ok(read.collect())
}

/// Every member takes lints and versions from the workspace.
pub(super) fn check_manifests() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for file in workspace::tracked()? {
        if file.file_name().is_none_or(|name| name != "Cargo.toml") || file.components().count() == 1 {
            continue;
        }
        let text = std::fs::read_to_string(workspace::root().join(&file))?;
        if !text.contains("[lints]\nworkspace = true") {
            problems.push(format!("{}: no `[lints] workspace = true`", file.display()));
        }
        problems.extend(own_versions(&text).map(|line| format!("{}: version here: {line}", file.display())));
    }
    Ok(problems)
}

/// Dependencies of a manifest that name a version of their own.
fn own_versions(manifest: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    manifest.lines().filter(move |line| {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        }
        inside && line.contains('=') && !line.contains("workspace = true") && !line.starts_with('#')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_in_a_member_is_found() {
        let text = "[package]\nversion = \"1\"\n[dependencies]\na.workspace = true\nb = \"1\"\n[dev-dependencies]\nc = { version = \"2\" }\n";
        assert_eq!(own_versions(text).collect::<Vec<_>>(), ["b = \"1\"", "c = { version = \"2\" }"]);
    }

    #[test]
    fn nothing_points_upwards() {
        let place = |name: &str| {
            ARROWS.iter().position(|(package, _)| package.strip_prefix("proffer-") == Some(name))
        };
        for (package, allowed) in ARROWS {
            let own = place(package.trim_start_matches("proffer-"));
            assert!(allowed.iter().all(|name| place(name).is_some() && place(name) < own), "{package}");
        }
    }
}
