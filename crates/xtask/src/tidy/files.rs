//! What every file keeps to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace;

/// A file longer than this hides something; a table of cases may be longer.
const LINES_MAX: usize = 850;
const TABLE_LINES_MAX: usize = 1_200;
const TABLES: [&str; 1] = ["tests/tests/bad_input/rows.rs"];
/// What is never in the repository. Written in two halves, so that this file keeps to it.
const NEVER: [(&str, &str, &str); 7] = [
    ("/work/", "main", "a directory of one machine"),
    ("/work/", "shared", "a directory of one machine"),
    ("/root", "/.", "a directory of one user"),
    ("FIX", "ME", "fix it, or say in the changelog what is known"),
    ("coming ", "soon", "what is not there is not mentioned"),
    ("<<<<", "<<<", "an unresolved merge"),
    (">>>>", ">>>", "an unresolved merge"),
];
/// What the source of every dependency begins with: a package registry, never somebody's repository.
const SOURCE: &str = "registry+";
/// What says what is where, beside everything in `docs`.
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"];

/// Length, spaces, and words that must not be there.
pub(super) fn check() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for file in workspace::tracked()? {
        let Ok(text) = std::fs::read_to_string(workspace::root().join(&file)) else { continue };
        let name = file.display();
        if file.file_name().is_some_and(|name| name == "Cargo.lock") {
            let sources =
                text.lines().filter_map(|line| line.strip_prefix("source = ")).map(|s| s.trim_matches('"'));
            let sources: BTreeSet<&str> = sources.collect();
            let strange = sources.iter().filter(|source| !source.starts_with(SOURCE));
            problems.extend(strange.map(|source| format!("{name}: a dependency from {source}")));
            if sources.len() > 1 {
                problems.push(format!("{name}: dependencies from {} places", sources.len()));
            }
            continue;
        }
        let table = TABLES.iter().any(|table| file == Path::new(table));
        let lines_max = if table { TABLE_LINES_MAX } else { LINES_MAX };
        if text.lines().count() > lines_max && file.extension().is_some_and(|kind| kind == "rs") {
            problems.push(format!("{name}: more than {lines_max} lines"));
        }
        for (first, second, why) in NEVER {
            let word = format!("{first}{second}");
            if let Some(line) = text.lines().position(|line| line.contains(&word)) {
                problems.push(format!("{name}:{}: `{word}`: {why}", line + 1));
            }
        }
        let patch = file.extension().is_some_and(|kind| kind == "patch");
        if let Some(line) = text.lines().position(|line| line.ends_with([' ', '\t']) && !patch) {
            problems.push(format!("{name}:{}: a space at the end", line + 1));
        }
    }
    Ok(problems)
}

/// Every path in backticks in a document leads somewhere.
pub(super) fn check_documents() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let in_docs = |file: &Path| file.starts_with("docs") && file.extension().is_some_and(|kind| kind == "md");
    let docs = workspace::tracked()?.into_iter().filter(|file| in_docs(file));
    for file in DOCUMENTS.into_iter().map(PathBuf::from).chain(docs) {
        let path = workspace::root().join(&file);
        let document = file.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("read {document}"))?;
        for path in paths(&text) {
            // A link is read from where the document lies.
            let beside = file.with_file_name(path);
            if !workspace::root().join(path).exists() && !workspace::root().join(beside).exists() {
                problems.push(format!("{document}: there is no {path}"));
            }
        }
    }
    Ok(problems)
}

/// The paths that a document names: in backticks, or as a link; below a directory of the repository.
fn paths(text: &str) -> Vec<&str> {
    const TOPS: [&str; 9] =
        ["proto", "crates", "master", "agent", "executor", "tests", "deploy", "docs", ".ci"];
    let quoted = text.split('`').skip(1).step_by(2);
    let linked = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(path, _)| path);
    let mut paths: Vec<&str> = Vec::new();
    for word in quoted.chain(linked) {
        let top = word.split_once('/').map(|(top, _)| top);
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        let root_file = !word.contains('/') && word.ends_with(".md");
        if plain && (top.is_some_and(|top| TOPS.contains(&top)) || root_file) {
            paths.push(word);
        }
    }
    paths
}

/// What a document quotes of a program is what the program says: each block of Python is, line for line, in one of the
/// files of the example.
pub(super) fn check_quotations() -> Result<Vec<String>> {
    let document = "docs/framework-in-python.md";
    let read = |path: &str| {
        std::fs::read_to_string(workspace::root().join(path)).with_context(|| format!("read {path}"))
    };
    let programs = [read("examples/python/session.py")?, read("examples/python/batch.py")?];
    let text = read(document)?;
    let strange = quotations(&text).filter(|block| !programs.iter().any(|program| program.contains(block)));
    Ok(strange.map(|block| format!("{document}: quoted, and not there:\n{block}")).collect())
}

fn quotations(text: &str) -> impl Iterator<Item = &str> {
    text.split("```python\n").skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block)
}

/// The changelog's first section says something.
pub(super) fn check_changelog() -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(workspace::root().join(Path::new("CHANGELOG.md"))).context("CHANGELOG.md")?;
    let section = text.split("\n## ").nth(1).unwrap_or_default();
    let says_something = section.lines().any(|line| line.starts_with("- "));
    Ok(if says_something { Vec::new() } else { vec!["CHANGELOG.md: nothing under the first heading".into()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotations_are_found() {
        let text = "a\n```python\nx = 1\n```\n```sh\ny\n```\n```python\nz\n```\n";
        assert_eq!(quotations(text).collect::<Vec<_>>(), ["x = 1\n", "z\n"]);
    }

    #[test]
    fn paths_are_told_from_other_words() {
        let text = "See `crates/wal/src/log.rs`, [how](docs/ledger.md), `a/b`, `proffer run`, [x](https://x.y/z), `agent/src/core/{a,b}.rs`.";
        assert_eq!(paths(text), ["crates/wal/src/log.rs", "docs/ledger.md"]);
    }
}
