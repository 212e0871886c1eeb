//! House rules, held by a machine. Each rule gives what is wrong; none is good news.

mod arrows;
mod files;
mod plants;
mod pure;

use anyhow::Result;

/// A rule: what it is called, and what looks for what is wrong.
pub(crate) type Rule = (&'static str, fn() -> Result<Vec<String>>);

/// All rules.
pub(crate) const RULES: [Rule; 8] = [
    ("crates depend in one direction", arrows::check),
    ("every crate takes the workspace's lints and versions", arrows::check_manifests),
    ("what decides does nothing", pure::check),
    ("files are short and name nothing of one machine", files::check),
    ("documents name only files that exist", files::check_documents),
    ("documents quote programs as they are", files::check_quotations),
    ("the changelog has something to say", files::check_changelog),
    ("planted bugs still apply", plants::check),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_its_rules() {
        for (rule, check) in RULES {
            let problems = check().expect("the rule can be checked");
            assert!(problems.is_empty(), "{rule}:\n  {}", problems.join("\n  "));
        }
    }
}
