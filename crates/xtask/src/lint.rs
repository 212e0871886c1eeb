//! `cargo xtask lint`: format, clippy, house rules, dependencies' licences and advisories.

use std::time::Duration;

use anyhow::Result;

use crate::test::cargo_has;
use crate::{process, tidy, workspace};

const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Runs all of it; whether everything is clean.
pub(crate) fn run() -> Result<bool> {
    let mut clean = cargo("format", &["fmt", "--all", "--", "--check"])?;
    clean &= cargo(
        "clippy",
        &["clippy", "--workspace", "--all-targets", "--keep-going", "--quiet", "--", "-D", "warnings"],
    )?;
    for (rule, check) in tidy::RULES {
        let problems = check()?;
        println!("{rule}: {}", if problems.is_empty() { "ok" } else { "FAILED" });
        problems.iter().for_each(|problem| println!("  {problem}"));
        clean &= problems.is_empty();
    }
    if cargo_has("deny") {
        clean &= cargo("dependencies", &["deny", "--workspace", "check", "licenses", "bans", "sources"])?;
        if cargo("list of known holes", &["deny", "--workspace", "fetch", "db"])? {
            clean &= cargo("known holes", &["deny", "--workspace", "check", "advisories"])?;
        } else {
            println!("known holes: skipped: their list cannot be fetched");
        }
    } else {
        println!("dependencies: skipped: there is no cargo-deny (`cargo install cargo-deny --locked`)");
    }
    println!("lint: {}", if clean { "ok" } else { "FAILED" });
    Ok(clean)
}

fn cargo(what: &str, args: &[&str]) -> Result<bool> {
    let mut command = workspace::cargo();
    command.args(args);
    let ended = process::show(command, LIMIT)?;
    println!("{what}: {}", if ended.ok() { "ok".into() } else { format!("FAILED: {}", ended.how()) });
    Ok(ended.ok())
}
