//! The parts that decide: no clock, no randomness, no files, no sockets, no threads, no hash order.

use std::path::Path;

use anyhow::Result;

use crate::workspace;

/// Crates with a `clippy.toml` that bans the same by name.
const CRATES: [&str; 4] = ["crates/types", "crates/registry", "crates/allocator", "crates/broker"];
/// Parts of crates that do other things as well.
const MODULES: [&str; 3] = ["agent/src/core", "crates/client/src/core", "crates/raft/src/core"];
const BANNED: [&str; 11] = [
    "tokio",
    "tonic",
    "prost::",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "Instant::now",
    "SystemTime",
    "HashMap",
    "HashSet",
];

/// Looks for what the pure parts must not name.
pub(super) fn check() -> Result<Vec<String>> {
    let root = workspace::root();
    let mut problems: Vec<String> = CRATES
        .iter()
        .filter(|dir| !root.join(dir).join("clippy.toml").is_file())
        .map(|dir| format!("{dir}: no clippy.toml with the bans of a pure crate"))
        .collect();
    for file in workspace::tracked()? {
        let module = MODULES.iter().any(|dir| file.starts_with(dir));
        let library = CRATES.iter().any(|dir| file.starts_with(Path::new(dir).join("src")));
        if !(module || library) || file.extension().is_none_or(|kind| kind != "rs") || is_test(&file) {
            continue;
        }
        let text = std::fs::read_to_string(root.join(&file))?;
        problems.extend(found(&text).map(|(line, word)| format!("{}:{line}: {word}", file.display())));
    }
    Ok(problems)
}

/// Line and word of each banned one outside comments and tests.
fn found(text: &str) -> impl Iterator<Item = (usize, &'static str)> {
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().enumerate().flat_map(|(number, line)| {
        let line = line.split("//").next().unwrap_or_default().to_owned();
        BANNED.into_iter().filter(move |word| line.contains(word)).map(move |word| (number + 1, word))
    })
}

fn is_test(file: &Path) -> bool {
    let mut names = file.components().map(|part| part.as_os_str().to_string_lossy());
    names.any(|name| {
        let name = name.trim_end_matches(".rs");
        name == "sim" || name == "stories" || name == "tests" || name.ends_with("_tests")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_comments_and_tests_are_free() {
        let text =
            "use a;\n// tokio\nlet x = Instant::now();\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert_eq!(found(text).collect::<Vec<_>>(), [(3, "Instant::now")]);
        assert!(is_test(Path::new("agent/src/core/stories.rs")));
        assert!(!is_test(Path::new("agent/src/core/task.rs")));
    }
}
