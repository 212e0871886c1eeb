//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proffer_types::{Role, TaskState};

use crate::cmd::hands::copy::Place;
use crate::parse;

/// A two-level resource scheduler for Linux clusters.
///
/// Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 denied, 5 unavailable, 6 conflict, 124 timeout; `run` returns
/// the task's own.
#[derive(Debug, Parser)]
#[command(name = "proffer", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Masters of the cluster; any of them will do.
    #[arg(
        long,
        global = true,
        env = "PROFFER_MASTER",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:5050",
        value_parser = parse::address
    )]
    pub(crate) master: Vec<String>,
    /// How to print.
    #[arg(short = 'o', long, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Print ids only in lists, and no notices.
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One JSON object per line.
    Jsonl,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a local cluster until Ctrl-C.
    Dev(DevArgs),
    /// Run a command in the cluster and return its exit code.
    Run(RunArgs),
    /// The cluster at a glance.
    Status,
    /// Tasks.
    #[command(subcommand)]
    Task(TaskVerb),
    /// Agents: the nodes of the cluster.
    #[command(subcommand)]
    Agent(AgentVerb),
    /// Frameworks: the programs that decide what runs.
    #[command(subcommand)]
    Framework(FrameworkVerb),
    /// Executors: frameworks' own programs that run their tasks.
    #[command(subcommand)]
    Executor(ExecutorVerb),
    /// Offers.
    #[command(subcommand)]
    Offer(OfferVerb),
    /// Masters.
    #[command(subcommand)]
    Master(MasterVerb),
    /// What became true in the cluster, in the order of the log.
    ///
    /// Every master answers, from the last some ten thousand events.
    #[command(
        after_help = "Examples:\n  proffer events -f\n  proffer events --from 1200 -o jsonl | jq .kind"
    )]
    Events {
        /// Go on as events come.
        #[arg(short, long)]
        follow: bool,
        /// From this log index on; without it, all that is kept.
        #[arg(long, value_name = "INDEX")]
        from: Option<u64>,
    },
    /// What tasks and nodes use, measured while you look.
    #[command(after_help = "Examples:\n  proffer top --sort mem\n  proffer top --once -o json")]
    Top(TopArgs),
    /// Print a script with which a shell completes verbs, flags and ids.
    #[command(
        after_help = "Examples:\n  bash: source <(proffer completions bash)\n  zsh:  source <(proffer completions zsh)\n  \
                      fish: proffer completions fish | source"
    )]
    Completions {
        /// For which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// What may come next on a command line; for the scripts of `completions`.
    #[command(name = "__complete", hide = true)]
    Complete {
        /// The words so far; the last one is to be completed.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU bash.
    Bash,
    /// Z shell.
    Zsh,
    /// Fish.
    Fish,
}

/// What comes first in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortBy {
    /// What uses most processor time.
    Cpu,
    /// What uses most memory.
    Mem,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct TopArgs {
    /// Only this agent; without it the 32 that are used most.
    #[arg(long, value_name = "ID")]
    pub(crate) agent: Option<String>,
    /// What comes first.
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) sort: SortBy,
    /// From one look to the next.
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Print once and end; so it is wherever the output is no terminal, but for `-o jsonl`, which goes on.
    #[arg(long)]
    pub(crate) once: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ExecArgs {
    /// Pass on what is typed or piped in.
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Added to the task's environment; may be repeated.
    #[arg(long, value_name = "K=V", value_parser = parse::env)]
    pub(crate) env: Vec<(String, String)>,
    /// Where the program starts; by default where the task's did.
    #[arg(long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// FRAMEWORK/TASK, or TASK where that is unique; ids may be shortened.
    pub(crate) task: String,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// How many masters: 1, 3 or 5 [default: 1, or what the directory was made with].
    #[arg(long, value_parser = masters)]
    pub(crate) masters: Option<u16>,
    /// How many agents; they share this machine's resources [default: 1, or what the directory was made with].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) agents: Option<u16>,
    /// Where to keep the cluster's state: kept, and resumed the next time. Without it a temporary directory is used and
    /// removed.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// The first master's port; the others follow, agents begin ten above [default: 5050, or what the directory was made
    /// with].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub(crate) port: Option<u16>,
    /// How tasks are kept apart. `process` works without root, and keeps nothing apart.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) containerizer: Containerizer,
}

/// How tasks are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Containerizer {
    /// Containers; refuses to start where that is not possible.
    Auto,
    /// Containers: namespaces and cgroups.
    Linux,
    /// Plain processes.
    Process,
}

impl Containerizer {
    /// The word for the agent's flag.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Linux => "linux",
            Self::Process => "process",
        }
    }
}

#[derive(Clone, Debug, Args)]
pub(crate) struct RunArgs {
    /// Name of the task and of its framework; by default the program's.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Cpus per task.
    #[arg(long, default_value = "0.1", value_parser = parse::cpus)]
    pub(crate) cpus: u64,
    /// Memory per task.
    #[arg(long, default_value = "64MiB", value_name = "SIZE", value_parser = parse::size)]
    pub(crate) mem: u64,
    /// Disk per task.
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) disk: Option<u64>,
    /// In whose share of the cluster.
    #[arg(long, default_value = "*", value_parser = parse::role)]
    pub(crate) role: Role,
    /// The Unix user; by default `nobody`.
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Added to the task's environment; may be repeated.
    #[arg(long, value_name = "K=V", value_parser = parse::env)]
    pub(crate) env: Vec<(String, String)>,
    /// Give the task a terminal instead of pipes; `proffer task attach` types on it.
    #[arg(long)]
    pub(crate) tty: bool,
    /// Run N tasks, with PROFFER_ARRAY_INDEX from 1 to N.
    #[arg(long, value_name = "1-N", value_parser = parse::array)]
    pub(crate) array: Option<u32>,
    /// Return when everything is launched.
    #[arg(long)]
    pub(crate) detach: bool,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskVerb {
    /// List tasks, finished ones too.
    List {
        /// Only of this framework.
        #[arg(long, value_name = "ID")]
        framework: Option<String>,
        /// Only on this agent.
        #[arg(long, value_name = "ID")]
        agent: Option<String>,
        /// Only in these states, as in RUNNING,FAILED.
        #[arg(long, value_delimiter = ',', value_parser = task_state)]
        state: Vec<TaskState>,
    },
    /// Show one task.
    Show {
        /// FRAMEWORK/TASK, or TASK where that is unique; ids may be shortened.
        task: String,
    },
    /// Print a task's output.
    Logs {
        /// FRAMEWORK/TASK, or TASK where that is unique; ids may be shortened.
        task: String,
        /// Go on until the task has ended.
        #[arg(short, long)]
        follow: bool,
        /// Only this stream.
        #[arg(long, value_enum)]
        stream: Option<Stream>,
    },
    /// Run a program in a running task's container: in its namespaces and cgroup, as its user.
    ///
    /// Returns the program's exit code; 128+n if signal n ended it. Signals are passed on. The program ends with the
    /// task, and with this command.
    #[command(
        after_help = "Examples:\n  proffer task exec -it web -- sh\n  proffer task exec web -- cat /proc/self/status\n  \
                      tar c . | proffer task exec -i web -- tar x"
    )]
    Exec(ExecArgs),
    /// Join a running task: see its output from now on and, if it has a terminal, type on it.
    ///
    /// Ctrl-P Ctrl-Q leaves the task to itself. Returns the task's exit code when it ends.
    Attach {
        /// FRAMEWORK/TASK, or TASK where that is unique; ids may be shortened.
        task: String,
        /// Only look: nothing that is typed is passed on.
        #[arg(long)]
        no_stdin: bool,
    },
    /// List the files of a task's sandbox.
    #[command(after_help = "Examples:\n  proffer task files web\n  proffer task files web logs -o json")]
    Files {
        /// FRAMEWORK/TASK, or TASK where that is unique; ids may be shortened.
        task: String,
        /// A directory or file beneath the sandbox.
        #[arg(default_value = "")]
        path: String,
        /// However many there are.
        #[arg(long)]
        all: bool,
    },
    /// Copy files and directories from or to a task's sandbox.
    ///
    /// One side is TASK:PATH, beneath the sandbox; the other is a local path, or `-` for stdout. Symbolic links and
    /// special files are left out, and told.
    #[command(
        after_help = "Examples:\n  proffer task cp web:results ./results\n  proffer task cp web:core - | file -\n  \
                      proffer task cp ./input web:"
    )]
    Cp {
        /// What to copy.
        #[arg(value_name = "FROM", value_parser = crate::cmd::hands::copy::place)]
        from: Place,
        /// Where to.
        #[arg(value_name = "TO", value_parser = crate::cmd::hands::copy::place)]
        to: Place,
    },
    /// End tasks: SIGTERM, the grace, SIGKILL.
    Kill {
        /// FRAMEWORK/TASK, or TASK where that is unique; ids may be shortened.
        #[arg(required = true)]
        task: Vec<String>,
        /// Instead of the task's own grace.
        #[arg(long, value_parser = parse::duration)]
        grace: Option<Duration>,
    },
}

/// A stream of a task's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentVerb {
    /// List agents.
    List,
    /// Show one agent.
    Show {
        /// Its id; may be shortened.
        agent: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum FrameworkVerb {
    /// List frameworks.
    List {
        /// Completed ones too.
        #[arg(long)]
        completed: bool,
    },
    /// Show one framework.
    Show {
        /// Its id; may be shortened.
        framework: String,
    },
    /// End a framework and all its tasks.
    Teardown {
        /// Its id; may be shortened.
        framework: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExecutorVerb {
    /// List executors.
    List {
        /// Only of this framework.
        #[arg(long, value_name = "ID")]
        framework: Option<String>,
        /// Ended ones that are remembered too.
        #[arg(long)]
        ended: bool,
    },
    /// Show one executor.
    Show {
        /// Its launch, FRAMEWORK/EXECUTOR, or EXECUTOR where that is unique; ids may be shortened.
        executor: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OfferVerb {
    /// List the outstanding offers.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MasterVerb {
    /// List the masters.
    List,
}

fn interval(text: &str) -> Result<Duration, String> {
    let least = Duration::from_millis(proffer_types::limits::USAGE_INTERVAL_MIN_MS);
    parse::duration(text).and_then(|given| {
        if given < least { Err(format!("must be at least {}ms", least.as_millis())) } else { Ok(given) }
    })
}

fn masters(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        _ => Err(format!("`{text}` is not 1, 3 or 5: an even number survives no more losses than one less")),
    }
}

fn task_state(text: &str) -> Result<TaskState, String> {
    let found = TaskState::ALL.iter().find(|state| state.name().eq_ignore_ascii_case(text));
    found.copied().ok_or_else(|| {
        let names: Vec<_> = TaskState::ALL.iter().map(|state| state.name()).collect();
        format!("`{text}` is not one of {}", names.join(" "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_a_command_with_its_own_flags() {
        let cli = parse("proffer run --cpus 0.5 --array 1-3 --env A=b --env C=d -- sh -c --x").unwrap();
        let Verb::Run(run) = cli.verb else { panic!() };
        assert_eq!((run.cpus, run.mem, run.array), (500, 64 << 20, Some(3)));
        assert_eq!(run.command, ["sh", "-c", "--x"]);
        assert_eq!(run.env, [("A".into(), "b".into()), ("C".into(), "d".into())]);
        let cli = parse("proffer --master a:1,b:2 run echo -n").unwrap();
        assert_eq!(cli.master, ["a:1", "b:2"]);
        let Verb::Run(run) = cli.verb else { panic!() };
        assert_eq!(run.command, ["echo", "-n"]);
    }

    #[test]
    fn exec_leaves_the_command_its_flags() {
        let cli = parse("proffer task exec -it web -- sh -c --x").unwrap();
        let Verb::Task(TaskVerb::Exec(exec)) = cli.verb else { panic!() };
        assert_eq!((exec.interactive, exec.tty, exec.task.as_str()), (true, true, "web"));
        assert_eq!(exec.command, ["sh", "-c", "--x"]);
        assert!(parse("proffer task exec web").is_err());
    }

    #[test]
    fn usage_errors_are_code_2() {
        for line in [
            "proffer run",
            "proffer run --cpus x -- a",
            "proffer run --gpus 1 -- a",
            "proffer task list --state RUNING",
            "proffer --master nowhere status",
            "proffer dev --masters 2",
            "proffer nonsense",
            "proffer top --interval 10ms",
            "proffer task cp :a b",
            "proffer completions tcsh",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn states_are_found_in_any_case() {
        assert_eq!(task_state("running"), Ok(TaskState::Running));
        assert!(task_state("RUNING").unwrap_err().contains("RUNNING"));
    }
}
