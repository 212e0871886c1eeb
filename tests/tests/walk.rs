//! The documents' commands, run as a reader would run them, and what they print, compared.
//!
//! A block ```` ```console ```` holds commands, each after `$ ` and continued after `> `, and below each what it prints.
//! All of a document's commands run in one shell. A comment `<!-- until: COMMAND -->` waits for what a reader's eyes
//! would wait for. Numbers in quotes and of offers, addresses and long hexadecimal words differ from run to run: they
//! are all alike here. With `PROFFER_BLESS=1` in the environment what was printed is written into the document.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use proffer_tests::cluster::{Cluster, Options};
use tokio::process::Command;

use super::python::{done, interpreter, kept, repository};
use super::{LIMIT, beside_others, best, ran_on};

/// The stock client; reflection is built into it.
const CLIENT: &str = "@bufbuild/buf@1.75.0";
const INSTALL_LIMIT: Duration = Duration::from_secs(240);
const WALK_LIMIT: Duration = Duration::from_secs(120);
const MARK: &str = "@@step ";

/// One command of a document.
#[derive(Debug, Default)]
struct Step {
    command: String,
    /// What it prints, by the document; a wait has nothing to print.
    expected: String,
    /// Where in the document that stands: lines from, to.
    place: (usize, usize),
    wait: bool,
}

fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for (number, line) in document.lines().enumerate() {
        if let Some(condition) = line.strip_prefix("<!-- until: ").and_then(|rest| rest.strip_suffix(" -->"))
        {
            steps.push(Step { command: condition.into(), wait: true, ..Step::default() });
        } else if line.starts_with("```") {
            inside = line == "```console";
        } else if let (true, Some(command)) = (inside, line.strip_prefix("$ ")) {
            let place = (number + 1, number + 1);
            steps.push(Step { command: command.into(), place, ..Step::default() });
        } else if let (true, Some(step)) = (inside, steps.last_mut()) {
            let more = if line == ">" { Some("") } else { line.strip_prefix("> ") };
            match more.filter(|_| step.expected.is_empty()) {
                Some(more) => write!(step.command, "\n{more}").expect("a string grows"),
                None => writeln!(step.expected, "{line}").expect("a string grows"),
            }
            step.place.1 = number + 1;
            if more.is_some() && step.expected.is_empty() {
                step.place.0 = number + 1;
            }
        }
    }
    steps
}

/// All steps as one script, which marks where each begins.
fn script(steps: &[Step]) -> String {
    let mut script = String::from("set -o pipefail\n");
    for (number, Step { command, wait, .. }) in steps.iter().enumerate() {
        writeln!(script, "echo; echo '{MARK}{number}'").expect("a string grows");
        match wait {
            false => writeln!(script, "{command}"),
            true => writeln!(
                script,
                "deadline=$((SECONDS + {}))\nuntil {command}; do\n  [ $SECONDS -lt $deadline ] || {{ echo never; break; }}\n  sleep 0.05\ndone",
                LIMIT.as_secs()
            ),
        }
        .expect("a string grows");
    }
    // What was put into the background and should have ended.
    script.push_str("kill $(jobs -p) 2>/dev/null\n");
    script
}

/// What each step printed.
fn printed(output: &str, steps: usize) -> Vec<String> {
    let mut printed = vec![String::new(); steps];
    for piece in output.split(&format!("\n{MARK}")).skip(1) {
        let (number, text) = piece.split_once('\n').unwrap_or((piece, ""));
        let number: usize = number.parse().expect("a step's number");
        printed[number] = text.trim_end().to_owned();
    }
    printed
}

/// With all that differs from run to run made alike.
fn masked(text: &str) -> String {
    let hexadecimal = |word: &str| word.len() >= 32 && word.chars().all(|c| c.is_ascii_hexdigit());
    let address = |word: &str| {
        word.split_once(':').is_some_and(|(ip, port)| {
            ip.split('.').count() == 4
                && [ip, port].iter().all(|part| part.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    let mut masked = String::new();
    for line in text.trim_end().lines() {
        // Words with what parts them.
        let mut rest = line;
        while !rest.is_empty() {
            let inside = |c: char| {
                c.is_ascii_alphanumeric() || c == '.' || c == ':' || c == '_' || c == '+' || c == '/'
            };
            let length = rest.find(|c| !inside(c)).unwrap_or(rest.len());
            let (word, after) = rest.split_at(length.max(rest.chars().next().map_or(0, char::len_utf8)));
            let quoted = masked.ends_with('"') && after.starts_with('"');
            let named = quoted || masked.ends_with("offer ");
            let number = named && word.chars().all(|c| c.is_ascii_digit());
            // A serialised detail of an error.
            let packed = quoted && word.len() > 40 && !word.contains('.');
            let plain = word.trim_end_matches(['.', ':']);
            if number || packed || hexadecimal(word) || address(plain) {
                masked.push('#');
                masked.push_str(&word[if address(plain) { plain.len() } else { word.len() }..]);
            } else {
                masked.push_str(word);
            }
            rest = after;
        }
        masked.push('\n');
    }
    masked
}

/// The document with what was printed.
fn blessed(document: &str, steps: &[Step], printed: &[String]) -> String {
    let lines: Vec<&str> = document.lines().collect();
    let mut text = String::new();
    let mut at = 0;
    for (step, printed) in steps.iter().zip(printed).filter(|(step, _)| !step.wait) {
        lines[at..step.place.0].iter().for_each(|line| writeln!(text, "{line}").expect("a string grows"));
        // What says the same stays as it is.
        let same = masked(&step.expected) == masked(printed);
        let now = if same { step.expected.trim_end() } else { printed.as_str() };
        if !now.is_empty() {
            writeln!(text, "{now}").expect("a string grows");
        }
        at = step.place.1;
    }
    lines[at..].iter().for_each(|line| writeln!(text, "{line}").expect("a string grows"));
    text
}

/// Runs a document's commands in `dir` and compares what they print.
async fn walk(document: &str, dir: &Path, path: &[PathBuf], given: &[(&str, &str)]) {
    let file = repository(document);
    let text = std::fs::read_to_string(&file).expect("the document");
    let steps = steps(&text);
    assert!(steps.len() > 3, "{document}: commands");
    let places = path.iter().cloned().chain(std::env::split_paths("/usr/local/bin:/usr/bin:/bin"));
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(format!("exec 2>&1\n{}", script(&steps))).current_dir(dir).stdin(Stdio::null());
    shell.env_clear().env("PATH", std::env::join_paths(places).expect("a path")).env("HOME", dir);
    let output =
        tokio::time::timeout(WALK_LIMIT, shell.envs(given.iter().copied()).kill_on_drop(true).output()).await;
    let output =
        output.unwrap_or_else(|_| panic!("{document}: not done in {WALK_LIMIT:?}")).expect("bash runs");
    let printed = printed(&String::from_utf8_lossy(&output.stdout), steps.len());
    if std::env::var_os("PROFFER_BLESS").is_some() {
        return std::fs::write(&file, blessed(&text, &steps, &printed)).expect("written");
    }
    let mut wrong = String::new();
    for (step, printed) in steps.iter().zip(&printed) {
        if masked(&step.expected) != masked(printed) {
            let Step { command, expected, place, .. } = step;
            write!(
                wrong,
                "\n{document}:{}: $ {command}\n--- it says\n{expected}--- there is\n{printed}\n",
                place.0
            )
            .expect("a string grows");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// Where the stock client is.
///
/// # Errors
/// Why it is not: no npm, or it cannot be fetched.
async fn client() -> Result<PathBuf, String> {
    let dir = kept("buf");
    std::fs::create_dir_all(&dir).expect("a directory below target");
    let bin = dir.join("node_modules/.bin");
    let stamp = dir.join("installed.txt");
    if !(std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == CLIENT)
        && bin.join("buf").exists())
    {
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund", "--no-save", "--prefix"]).arg(&dir).arg(CLIENT);
        done(&mut npm, INSTALL_LIMIT).await?;
        std::fs::write(stamp, CLIENT).expect("a note");
    }
    // It is a script for node, wherever that is.
    done(Command::new(bin.join("buf")).arg("--version"), LIMIT).await?;
    Ok(bin)
}

/// Where a program of the machine's is.
async fn directory_of(program: &str) -> Result<PathBuf, String> {
    let path = done(Command::new("sh").args(["-c", &format!("command -v {program}")]), LIMIT).await;
    let path = path.map_err(|_| format!("needs {program}"))?;
    Ok(Path::new(&path).parent().expect("a directory").to_owned())
}

#[tokio::test]
async fn the_walk_through_the_api_is_as_told() {
    let _machine = beside_others().await;
    let mut path = Vec::new();
    for found in [client().await, directory_of("node").await, directory_of("jq").await] {
        match found {
            Ok(dir) => path.push(dir),
            Err(why) => {
                return println!("SKIPPED: no stock client: {}", why.lines().next_back().unwrap_or_default());
            }
        }
    }
    let options =
        Options { masters: 3, containerizer: best(), resources: "cpus:2;mem:2GiB", ..Options::default() };
    let cluster = Cluster::start(options).await;
    let (leader, follower) = (cluster.leader().await, cluster.follower().await);
    let dir = cluster.dir().join("walk");
    std::fs::create_dir(&dir).expect("a directory");
    let [leader, follower] = [leader, follower].map(|master| cluster.masters[master].address.as_str());
    walk("docs/api.md", &dir, &path, &[("MASTER", leader), ("FOLLOWER", follower)]).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn the_python_tutorial_is_as_told() {
    let _machine = beside_others().await;
    let python = match interpreter().await {
        Ok(python) => python,
        Err(why) => {
            return println!("SKIPPED: no Python with gRPC: {}", why.lines().next_back().unwrap_or_default());
        }
    };
    let cluster = Cluster::start(Options { masters: 3, containerizer: best(), ..Options::default() }).await;
    // The reader stands in the repository; what the walk makes there is not for the repository.
    let dir = cluster.dir().join("walk");
    std::fs::create_dir(&dir).expect("a directory");
    let link = |from: &Path, to: &str| std::os::unix::fs::symlink(from, dir.join(to)).expect("a link");
    ["examples", "proto"].iter().for_each(|name| link(&repository(name), name));
    // Below it is the venv that `interpreter` made: what the walk asks for is installed already.
    link(python.ancestors().nth(3).expect("venv/bin/python"), "target");
    let path = [directory_of("python3").await.expect("it made the venv")];
    let masters = cluster.addresses().join(",");
    let given = [("MASTERS", masters.as_str()), ("PYTHONDONTWRITEBYTECODE", "1")];
    walk("docs/framework-in-python.md", &dir, &path, &given).await;
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[test]
fn commands_are_found_with_what_they_print() {
    let text = "a\n\n```console\n$ one\n> two\nout\n$ three\n```\n<!-- until: four -->\n```sh\n$ five\n```\n";
    let steps = steps(text);
    let [one, three, four] = &steps[..] else { panic!("{steps:?}") };
    assert_eq!((one.command.as_str(), one.expected.as_str()), ("one\ntwo", "out\n"));
    assert_eq!((three.command.as_str(), three.expected.as_str()), ("three", ""));
    assert!(four.wait && four.command == "four");
    let now = blessed(text, &steps, &["in\nand".into(), "new".into(), String::new()]);
    assert_eq!(now, text.replace("out\n", "in\nand\n").replace("$ three\n", "$ three\nnew\n"));
}

#[test]
fn what_differs_from_run_to_run_is_masked() {
    let text =
        r#"{"index": "17", "id": "0123456789abcdef0123456789abcdef", "seq": 3} at 127.0.0.1:5050: "x1""#;
    assert_eq!(masked(text), "{\"index\": \"#\", \"id\": \"#\", \"seq\": 3} at #: \"x1\"\n");
}
