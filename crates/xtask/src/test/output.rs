//! What test programs say, counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::process::Ended;

/// How much of a program that gave no account of itself is shown.
const TAIL_LINES: usize = 60;

/// The outcome of one test program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Test and reason.
    pub(crate) skipped: BTreeMap<String, String>,
    /// Tests that ran a container on cgroup v1, and on v2.
    pub(crate) on_cgroups: [BTreeSet<String>; 2],
}

impl Counted {
    /// One line.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!("{} passed", self.passed);
        if self.failed > 0 {
            text.push_str(&format!(", {} FAILED", self.failed));
        }
        if !self.skipped.is_empty() {
            text.push_str(&format!(", {} skipped", self.skipped.len()));
        }
        text
    }
}

/// Reads the output of a test program that ran with `--show-output`.
///
/// A program that ended badly without saying which test failed counts as one failure.
pub(crate) fn count(text: &str, ended: &Ended) -> Counted {
    let mut counted = Counted::default();
    let mut said_passed: u64 = 0;
    let mut skipped_themselves = BTreeSet::new();
    let mut test = None;
    for line in text.lines() {
        if let Some(name) = section(line) {
            test = Some(name.to_owned());
        } else if let Some(numbers) = line.strip_prefix("test result: ") {
            said_passed += number_before(numbers, " passed");
            counted.failed += number_before(numbers, " failed");
            test = None;
        } else if let Some((name, reason)) = ignored(line) {
            counted.skipped.insert(name.to_owned(), reason.to_owned());
        } else if let Some((name, reason)) = skip(line, test.as_deref()) {
            skipped_themselves.insert(name.clone());
            counted.skipped.entry(name).or_insert(reason);
        } else if let Some(version) = ran_on(line) {
            let name = test.clone().unwrap_or_else(|| line.to_owned());
            counted.on_cgroups[version].insert(name);
        }
    }
    // They returned early, so libtest says that they passed.
    counted.passed = said_passed.saturating_sub(skipped_themselves.len() as u64);
    if !ended.ok() && counted.failed == 0 {
        counted.failed = 1;
    }
    counted
}

/// `---- module::test stdout ----`
fn section(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// `test module::test ... ignored, reason`
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((name, rest.strip_prefix(", ").unwrap_or("ignored")))
}

/// `SKIPPED: <test>: <reason>`; in a test's own section the test need not be named.
fn skip(line: &str, test: Option<&str>) -> Option<(String, String)> {
    let rest = line.trim_start().strip_prefix("SKIPPED: ")?;
    let named = rest.split_once(": ").filter(|(name, _)| !name.contains(' '));
    match (test, named) {
        (Some(test), Some((_, reason))) => Some((test.to_owned(), reason.to_owned())),
        (Some(test), None) => Some((test.to_owned(), rest.to_owned())),
        (None, Some((name, reason))) => Some((name.to_owned(), reason.to_owned())),
        (None, None) => Some((rest.to_owned(), rest.to_owned())),
    }
}

/// `RAN: cgroup v1` is 0, `RAN: cgroup v2` is 1.
fn ran_on(line: &str) -> Option<usize> {
    match line.trim() {
        "RAN: cgroup v1" => Some(0),
        "RAN: cgroup v2" => Some(1),
        _ => None,
    }
}

fn number_before(text: &str, word: &str) -> u64 {
    let number = text.split(word).next().and_then(|before| before.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Counts a program's output, and says how it went.
pub(crate) fn tell(title: &str, ended: &Ended, text: &str, report: &mut Report) {
    let counted = count(text, ended);
    println!("{title}: {} ({:.1} s)", counted.summary(), ended.took.as_secs_f64());
    if counted.failed > 0 {
        println!("{}", failures(text, ended));
    }
    report.add(title, counted);
}

/// The part of the output that tells why something failed.
pub(crate) fn failures(text: &str, ended: &Ended) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.iter().position(|line| *line == "failures:");
    let told = from.map(|from| &lines[from..]).filter(|_| text.contains("test result: FAILED"));
    match told {
        Some(told) => told.join("\n"),
        None => {
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            format!("{}\nthe program itself failed: {}", tail.join("\n"), ended.how())
        }
    }
}

/// The outcome of everything.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    skipped: Vec<(String, String)>,
    on_cgroups: [usize; 2],
    failing: Vec<String>,
}

impl Report {
    pub(crate) fn add(&mut self, title: &str, counted: Counted) {
        self.passed += counted.passed;
        self.failed += counted.failed;
        if counted.failed > 0 {
            self.failing.push(title.to_owned());
        }
        for (sum, tests) in self.on_cgroups.iter_mut().zip(&counted.on_cgroups) {
            *sum += tests.len();
        }
        let skipped = counted.skipped.into_iter();
        self.skipped.extend(skipped.map(|(test, reason)| (format!("{title} {test}"), reason)));
    }

    /// Something that could not run.
    pub(crate) fn skip(&mut self, title: &str, reason: &str) {
        self.skipped.push((title.to_owned(), reason.to_owned()));
    }

    /// Something that is one test.
    pub(crate) fn add_one(&mut self, title: &str, passed: bool) {
        let one = Counted { passed: passed.into(), failed: (!passed).into(), ..Counted::default() };
        self.add(title, one);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for title in &self.failing {
            writeln!(f, "FAILED: {title}")?;
        }
        for (test, reason) in &self.skipped {
            writeln!(f, "skipped: {test}: {reason}")?;
        }
        let [v1, v2] = self.on_cgroups;
        writeln!(f, "{v1} tests ran containers on cgroup v1, {v2} on v2")?;
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;
    use std::time::Duration;

    use super::*;

    fn ended(code: i32) -> Ended {
        Ended { status: Some(ExitStatus::from_raw(code << 8)), took: Duration::ZERO }
    }

    const OUTPUT: &str = "
running 5 tests
test a::one ... ok
test a::two ... ok
test b ... ignored, needs a second disk
test c ... ok
test d ... FAILED

successes:

---- a::two stdout ----
SKIPPED: a::two: needs root

---- c stdout ----
SKIPPED: no cgroup v2 here
RAN: cgroup v1

successes:
    a::one

failures:

---- d stdout ----
thread 'd' panicked at x.rs:1:1:
no

failures:
    d

test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

    #[test]
    fn tests_that_skip_themselves_have_not_passed() {
        let counted = count(OUTPUT, &ended(101));
        assert_eq!((counted.passed, counted.failed), (1, 1));
        let skipped: Vec<_> = counted.skipped.iter().map(|(test, why)| format!("{test}={why}")).collect();
        assert_eq!(skipped, ["a::two=needs root", "b=needs a second disk", "c=no cgroup v2 here"]);
        assert_eq!(counted.on_cgroups.map(|tests| tests.len()), [1, 0]);
    }

    #[test]
    fn a_program_that_dies_has_failed() {
        let counted = count("running 1 test\n", &ended(134));
        assert_eq!((counted.passed, counted.failed), (0, 1));
        let killed = Ended { status: None, took: Duration::from_secs(9) };
        assert_eq!(count("running 1 test\n", &killed).failed, 1);
        assert!(failures("running 1 test\n", &killed).contains("9 s"));
        assert!(failures(OUTPUT, &ended(101)).starts_with("failures:\n\n---- d stdout"));
    }

    #[test]
    fn the_results_of_several_programs_are_summed() {
        let twice = format!("{OUTPUT}{}", OUTPUT.replace("a::", "e::"));
        let counted = count(&twice, &ended(101));
        assert_eq!((counted.failed, counted.skipped.len()), (2, 4));
        let mut report = Report::default();
        report.add("x", counted);
        report.add_one("simulator", true);
        let text = report.to_string();
        assert!(text.ends_with("4 passed, 2 failed, 4 skipped"), "{text}");
        assert!(
            text.contains("FAILED: x\n") && text.contains("1 tests ran containers on cgroup v1, 0 on v2\n"),
            "{text}"
        );
    }
}
