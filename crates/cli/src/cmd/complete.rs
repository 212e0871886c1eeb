//! Completions: a small script for each shell, which asks `proffer __complete` what may come next. So flags and verbs
//! are those of this very program, and ids those of the cluster as it is.

use std::time::Duration;

use bytes::Bytes;
use clap::{Arg, Command, CommandFactory};
use proffer_client::rows::{TaskFilter, TaskRow};
use proffer_client::{AdminClient, hands::FileKind};
use proffer_types::TaskState;

use super::Cluster;
use crate::args::{Cli, Shell};
use crate::ids;

/// Nobody waits longer for a completion.
const PATIENCE: Duration = Duration::from_millis(1_000);
/// More than anybody reads.
const CANDIDATES_MAX: usize = 200;

const BASH: &str = r#"# bash completions for proffer; asks the cluster for ids
_proffer() {
    local line=${COMP_LINE:0:COMP_POINT} words value rest cut
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    local word=${words[${#words[@]}-1]}
    # bash replaces what follows the last of these, and not the whole word
    cut=${word%"${word##*[:=]}"}
    COMPREPLY=()
    while IFS=$'\t' read -r value rest; do
        COMPREPLY+=("${value#"$cut"}")
    done < <("${words[0]}" __complete -- "${words[@]:1}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[:/=] ]]; then
        compopt -o nospace
    fi
}
complete -o default -F _proffer proffer
"#;

const ZSH: &str = r#"#compdef proffer
# zsh completions for proffer; asks the cluster for ids
_proffer() {
    local -a plain open
    local value rest
    while IFS=$'\t' read -r value rest; do
        if [[ $value == *[:/=] ]]; then open+=("$value"); else plain+=("$value"); fi
    done < <("${words[1]}" __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#plain} + ${#open} )); then
        compadd -Q -a plain
        compadd -Q -S '' -a open
    else
        _files
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _proffer "$@"; else compdef _proffer proffer; fi
"#;

const FISH: &str = r#"# fish completions for proffer; asks the cluster for ids
function __proffer_complete
    set -l words (commandline -opc)
    $words[1] __complete -- $words[2..] (commandline -ct) 2>/dev/null
end
complete -c proffer -f -a '(__proffer_complete)'
complete -c proffer -n '__fish_seen_subcommand_from cp run dev' -F
"#;

/// The script of a shell.
pub(crate) fn script(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => BASH,
        Shell::Zsh => ZSH,
        Shell::Fish => FISH,
    }
}

/// What is being completed.
struct Place<'a> {
    /// The verb, as `task exec`.
    verb: String,
    command: &'a Command,
    /// The flag whose value comes, or the positional argument.
    arg: Option<&'a Arg>,
    /// `--flag=` before the value in the same word.
    before: String,
    /// What is there of the word.
    word: String,
    /// Verbs and flags may come too.
    open: bool,
    masters: Vec<String>,
}

/// What may stand for the last of `words`, which may be empty; each with what it is.
pub(crate) async fn candidates(masters: &[String], words: &[String]) -> Vec<(String, String)> {
    let mut root = Cli::command();
    root.build();
    let Some((word, done)) = words.split_last() else { return Vec::new() };
    let place = find(&root, done, word, masters);
    let mut found = known(&place);
    if let Some(arg) = place.arg {
        found.extend(live(&place, arg.get_id().as_str()).await);
    }
    found.retain(|(value, _)| value.starts_with(&place.word));
    found.sort();
    found.dedup_by(|a, b| a.0 == b.0);
    found.truncate(CANDIDATES_MAX);
    found.into_iter().map(|(value, what)| (format!("{}{value}", place.before), what)).collect()
}

fn find<'a>(root: &'a Command, done: &[String], word: &str, masters: &[String]) -> Place<'a> {
    let mut command = root;
    let (mut verb, mut positional, mut literal) = (Vec::new(), 0, false);
    let mut wants: Option<&Arg> = None;
    let mut masters = masters.to_vec();
    for word in done {
        if let Some(flag) = wants.take() {
            if flag.get_id() == "master" {
                masters = word.split(',').map(str::to_owned).collect();
            }
        } else if literal {
            positional += 1;
        } else if word == "--" {
            literal = true;
        } else if let Some(flag) = flag(command, word) {
            match word.split_once('=') {
                Some((_, value)) if flag.get_id() == "master" => {
                    masters = value.split(',').map(str::to_owned).collect();
                }
                None if takes_value(flag) => wants = Some(flag),
                _ => {}
            }
        } else if word.starts_with('-') && word.len() > 1 {
            // Several short flags in one word.
        } else if let Some(sub) = command.find_subcommand(word).filter(|_| positional == 0) {
            command = sub;
            verb.push(sub.get_name().to_owned());
        } else {
            positional += 1;
            // Behind the first word of a command that takes the rest, flags are the command's.
            literal |= at(command, positional - 1).is_some_and(Arg::is_trailing_var_arg_set);
        }
    }
    let (mut before, mut word, mut arg) = (String::new(), word.to_owned(), wants);
    if wants.is_none()
        && !literal
        && let Some((name, value)) = word.clone().split_once('=')
        && let Some(flag) = flag(command, name).filter(|flag| takes_value(flag))
    {
        (before, word, arg) = (format!("{name}="), value.to_owned(), Some(flag));
    }
    let is_value = arg.is_some();
    if arg.is_none() && (literal || !word.starts_with('-')) {
        arg = at(command, positional);
    }
    let open = !is_value && !literal;
    Place { verb: verb.join(" "), command, arg, before, word, open, masters }
}

fn at(command: &Command, place: usize) -> Option<&Arg> {
    let mut all = command.get_positionals();
    let last = command.get_positionals().last();
    // The last may take any number.
    all.nth(place).or_else(|| last.filter(|arg| arg.get_num_args().is_some_and(|n| n.max_values() > 1)))
}

fn flag<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let name = word.split('=').next().unwrap_or_default();
    command.get_arguments().find(|arg| {
        let long = arg.get_long().is_some_and(|long| name.strip_prefix("--") == Some(long));
        let short = arg.get_short().is_some_and(|short| name.strip_prefix('-') == Some(&short.to_string()));
        long || short
    })
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// What this program knows by itself: verbs, flags, fixed values.
fn known(place: &Place<'_>) -> Vec<(String, String)> {
    let help = |text: Option<&clap::builder::StyledStr>| {
        let text = text.map(ToString::to_string).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let mut found = Vec::new();
    if place.open && place.word.starts_with('-') {
        for arg in place.command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            found.extend(arg.get_long().map(|long| (format!("--{long}"), help(arg.get_help()))));
            if place.word.len() <= 2 && !place.word.starts_with("--") {
                found.extend(arg.get_short().map(|short| (format!("-{short}"), help(arg.get_help()))));
            }
        }
    } else if place.open {
        let subs = place.command.get_subcommands().filter(|sub| !sub.is_hide_set());
        found.extend(subs.map(|sub| (sub.get_name().to_owned(), help(sub.get_about()))));
    }
    if let Some(arg) = place.arg {
        let values = arg.get_possible_values();
        found.extend(values.iter().map(|value| (value.get_name().to_owned(), help(value.get_help()))));
        if arg.get_id() == "state" {
            found.extend(TaskState::ALL.iter().map(|state| (state.name().to_owned(), String::new())));
        }
    }
    found
}

/// What the cluster knows.
async fn live(place: &Place<'_>, arg: &str) -> Vec<(String, String)> {
    let cluster = Cluster {
        masters: place.masters.clone(),
        admin: AdminClient::new(&place.masters).with_deadline(PATIENCE),
    };
    let asked = async {
        match arg {
            "task" => tasks(&cluster, place).await,
            "from" | "to" if place.verb == "task cp" => copied(&cluster, place).await,
            "path" if place.verb == "task files" => Vec::new(),
            "agent" => {
                let rows = cluster.admin.agents().await.unwrap_or_default();
                rows.into_iter().map(|row| (row.id.text(cluster.cell()), row.hostname)).collect()
            }
            "executor" => {
                let rows = cluster.admin.executors(None, true).await.unwrap_or_default();
                rows.into_iter().map(|row| (row.launch.text(cluster.cell()), row.executor)).collect()
            }
            "framework" => {
                let rows = cluster.admin.frameworks(place.verb == "framework show").await.unwrap_or_default();
                rows.into_iter().map(|row| (row.id.text(cluster.cell()), row.info.name)).collect()
            }
            _ => Vec::new(),
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_default()
}

/// Tasks that the verb can be used on: by their own name where only one has it.
async fn tasks(cluster: &Cluster, place: &Place<'_>) -> Vec<(String, String)> {
    let wanted = |row: &TaskRow| match place.verb.as_str() {
        "task exec" | "task attach" => row.status.state == TaskState::Running,
        "task kill" => !row.status.state.is_terminal(),
        _ => true,
    };
    let rows = cluster.admin.tasks(&TaskFilter::default()).await.unwrap_or_default();
    let cell = cluster.cell();
    let whole = place.word.contains('/') || place.word.starts_with("fw_");
    let same = |id: &str| rows.iter().filter(|row| row.task_id.as_str() == id).take(2).count();
    rows.iter()
        .filter(|row| wanted(row))
        .map(|row| {
            let id = row.task_id.as_str();
            let full = format!("{}/{id}", row.framework.text(cell));
            let value = if whole || (rows.len() <= 1_000 && same(id) > 1) { full } else { id.to_owned() };
            (value, row.status.state.name().to_owned())
        })
        // What a shell would take apart, or a terminal act upon, is for the user to type.
        .filter(|(value, _)| {
            value.chars().all(|c| c.is_ascii_graphic() && !"'\"\\$`&|;<>(){}*?!#~".contains(c))
        })
        .collect()
}

/// A side of `cp`: tasks, and behind a colon what is in their sandboxes. Local files are the shell's.
async fn copied(cluster: &Cluster, place: &Place<'_>) -> Vec<(String, String)> {
    let Some((task, path)) = place.word.split_once(':') else {
        let found = tasks(cluster, place).await;
        return found.into_iter().map(|(value, what)| (format!("{value}:"), what)).collect();
    };
    let Ok((framework, id)) = ids::task(cluster, task).await else { return Vec::new() };
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let page = cluster.admin.list_files(framework, &id, dir.as_bytes(), Bytes::new()).await;
    let entries = page.map(|page| page.entries).unwrap_or_default();
    let prefix = if dir.is_empty() { format!("{task}:") } else { format!("{task}:{dir}/") };
    let files = entries.iter().filter_map(|entry| {
        let name = str::from_utf8(&entry.name).ok()?;
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+@%,".contains(c));
        let slash = if entry.kind() == FileKind::Directory { "/" } else { "" };
        plain.then(|| (format!("{prefix}{name}{slash}"), String::new()))
    });
    files.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // Nobody is there: what comes is known without a cluster.
        let masters = ["127.0.0.1:1".to_owned()];
        let found = runtime.block_on(candidates(&masters, &words));
        found.into_iter().map(|(value, _)| value).collect()
    }

    #[test]
    fn verbs_and_flags_are_the_program_s_own() {
        assert_eq!(complete("ta"), ["task"]);
        assert!(
            complete("").contains(&"events".to_owned()) && !complete("").iter().any(|v| v.starts_with('_'))
        );
        assert_eq!(complete("task e"), ["exec"]);
        assert_eq!(complete("task logs --fol"), ["--follow"]);
        assert_eq!(complete("task logs --stream st"), ["stderr", "stdout"]);
        assert_eq!(complete("task logs --stream=stdo"), ["--stream=stdout"]);
        assert_eq!(complete("-o js"), ["json", "jsonl"]);
        assert_eq!(complete("task list --state RUN"), ["RUNNING"]);
        assert_eq!(complete("completions z"), ["zsh"]);
        assert!(complete("task exec -it x -- s").is_empty(), "the command is the shell's to complete");
        assert!(complete("run --cpus 1 echo --na").is_empty(), "a command's flags are its own");
        assert!(complete("task exec -i").contains(&"-i".to_owned()));
    }
}
