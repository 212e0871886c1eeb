//! Where things are, and how cargo is called.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, Read};

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/xtask lies two below the root")
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// A file of our own below the target directory; its directory is made.
pub(crate) fn scratch(name: &str) -> Result<PathBuf> {
    let path = target().join("xtask").join(name);
    let dir = path.parent().expect("it is below the target directory");
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(path)
}

/// The cargo that runs us, at the root, without what `cargo run` told us about ourselves: build scripts would see
/// it change, and build again.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command
}

/// Something that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Built {
    /// The package.
    pub(crate) package: String,
    /// `lib`, `bin`, `test` or `example`.
    pub(crate) kind: String,
    /// The target's name.
    pub(crate) name: String,
    /// The target's source file.
    pub(crate) source: PathBuf,
    /// The package's directory.
    pub(crate) dir: PathBuf,
    /// The program.
    pub(crate) program: PathBuf,
    /// Whether this is a test harness.
    pub(crate) test: bool,
}

impl Built {
    /// For people: the package, and the source file in it.
    pub(crate) fn title(&self) -> String {
        let source = self.source.strip_prefix(&self.dir).unwrap_or(&self.source);
        format!("{} {}", self.package, source.display())
    }
}

/// Runs `cargo build` with `args`, and gives the programs that it made.
///
/// # Errors
/// If it fails or takes longer than `limit`.
pub(crate) fn build(args: &[&str], limit: Duration) -> Result<Vec<Built>> {
    let mut command = cargo();
    command.arg("build").args(args).arg("--message-format=json-render-diagnostics");
    let mut built = Vec::new();
    let ended = process::lines(command, limit, Read::Out, |line| built.extend(artifact(line)))?;
    if !ended.ok() {
        bail!("cargo build {}: {}", args.join(" "), ended.how());
    }
    Ok(built)
}

/// A program in a line of cargo's.
fn artifact(line: &str) -> Option<Built> {
    let message: Value = serde_json::from_str(line).ok()?;
    let program = message["executable"].as_str()?;
    let target = &message["target"];
    let dir = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
    // `path+file:///dir#name@1.0.0`, and `path+file:///dir/name#1.0.0` where the name is the directory's.
    let id = message["package_id"].as_str()?;
    let package = match id.rsplit_once('#')?.1.rsplit_once('@') {
        Some((name, _)) => name.to_owned(),
        None => dir.file_name()?.to_string_lossy().into_owned(),
    };
    Some(Built {
        package,
        kind: target["kind"][0].as_str()?.to_owned(),
        name: target["name"].as_str()?.to_owned(),
        source: target["src_path"].as_str()?.into(),
        dir,
        program: program.into(),
        test: message["profile"]["test"].as_bool()?,
    })
}

/// Every file that git knows or would add.
///
/// # Errors
/// If git is not there, or this is no clone.
pub(crate) fn tracked() -> Result<Vec<PathBuf>> {
    let mut command = Command::new("git");
    command.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = command.output().context("git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("a file's name is not UTF-8")?;
    let files = text.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    // Deleted, and not committed yet.
    Ok(files.filter(|file| root().join(file).is_file()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_found_in_cargos_words() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///r/crates/wal#proffer-wal@0.1.0",
            "manifest_path":"/r/crates/wal/Cargo.toml","target":{"kind":["lib"],"name":"proffer_wal",
            "src_path":"/r/crates/wal/src/lib.rs"},"profile":{"test":true},"executable":"/r/target/debug/deps/x-1"}"#;
        let built = artifact(&line.replace('\n', "")).expect("an artifact");
        assert_eq!((built.package.as_str(), built.kind.as_str(), built.test), ("proffer-wal", "lib", true));
        assert_eq!(built.dir, Path::new("/r/crates/wal"));
        assert_eq!(artifact(r#"{"reason":"compiler-artifact","executable":null}"#), None);
        assert_eq!(artifact("warning: x"), None);
    }

    #[test]
    fn the_root_has_a_workspace() {
        assert!(root().join("Cargo.toml").is_file() && root().join("proto").is_dir());
    }
}
