//! The agent's settings: flags over `PROFFER_…` variables over the configuration file over defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Parser;
use proffer_containerizer::Users;
use proffer_settings::{Problems, Reader, parse_address, parse_bool, parse_dir};
use proffer_telemetry::Format;
use proffer_types::limits::{EXECUTOR_REGISTRATION_MS, KILL_GRACE_MAX_MS};
use proffer_types::resources::{parse_bytes, parse_milli};
use proffer_types::{AttributeValue, Resources};

/// Read if `--config` does not name another file and this one is there.
const CONFIG_FILE: &str = "/etc/proffer/agent.toml";

/// A proffer agent: offers this node's resources and runs the tasks that were accepted.
///
/// Every flag is also a key of the configuration file (`work-dir = "…"`), and a variable (`PROFFER_WORK_DIR`).
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "proffer-agent", version)]
pub struct Flags {
    /// The masters as HOST:PORT,…; any of them will do, as they name their leader [default: 127.0.0.1:5050]
    #[arg(long, env = "PROFFER_MASTERS", value_name = "HOST:PORT,…")]
    masters: Option<String>,
    /// Where /healthz and /state are served, for this machine's own use [default: 127.0.0.1:5051]
    #[arg(long, env = "PROFFER_LISTEN", value_name = "IP:PORT")]
    listen: Option<String>,
    /// What must survive a restart: identity, checkpoint, sandboxes, logs [default: /var/lib/proffer/agent]
    #[arg(long, env = "PROFFER_WORK_DIR", value_name = "DIR")]
    work_dir: Option<String>,
    /// What must not survive a restart of the host: supervisors' sockets and records; on a tmpfs, and one for each
    /// agent [default: /run/proffer]
    #[arg(long, env = "PROFFER_RUNTIME_DIR", value_name = "DIR")]
    runtime_dir: Option<String>,
    /// What to offer, whole, as in cpus:4;mem:8GiB;disk:100GiB;ports:[31000-32000] [default: what the node has, less a
    /// reserve of 0.1 cpu and the greater of 512MiB and 10 % of memory]
    #[arg(long, env = "PROFFER_RESOURCES", value_name = "KIND:AMOUNT;…")]
    resources: Option<String>,
    /// Facts about the node, for placement, as in rack:a1;generation:3
    #[arg(long, env = "PROFFER_ATTRIBUTES", value_name = "NAME:VALUE;…")]
    attributes: Option<String>,
    /// How tasks are separated: `linux` (cgroups and namespaces), `process` (not at all), or `auto`: linux, or refuse
    /// to start [default: auto]
    #[arg(long, env = "PROFFER_CONTAINERIZER", value_name = "auto|linux|process")]
    containerizer: Option<String>,
    /// Where the cgroup hierarchies are mounted [default: found by itself]
    #[arg(long, env = "PROFFER_CGROUP_ROOT", value_name = "DIR")]
    cgroup_root: Option<String>,
    /// The supervisor's program [default: proffer-executor beside this one]
    #[arg(long, env = "PROFFER_EXECUTOR", value_name = "FILE")]
    executor: Option<String>,
    /// Users of this node that tasks may ask to run as, beside nobody; `*` for all but root, `root` for root itself
    /// [default: none]
    #[arg(long, env = "PROFFER_TASK_USERS", value_name = "USER,…")]
    task_users: Option<String>,
    /// How much of what a task writes to its stdout, and as much to its stderr, is kept in a second; what it writes
    /// beyond is thrown away and counted, so that it cannot make the node's disk slow for others [default: 32MiB]
    #[arg(long, env = "PROFFER_TASK_LOG_RATE", value_name = "SIZE")]
    task_log_rate: Option<String>,
    /// Whether a task that does not say has user ids of its own: root inside is nobody outside, and any user may be
    /// asked for. `auto` is on where the kernel has user namespaces [default: auto]
    #[arg(long, env = "PROFFER_USER_NAMESPACES", value_name = "auto|on|off")]
    user_namespaces: Option<String>,
    /// The first of the user and group ids that are tasks' own; they must be nobody else's [default: 1048576]
    #[arg(long, env = "PROFFER_ID_BASE", value_name = "ID")]
    id_base: Option<String>,
    /// How many tasks may have 65,536 ids of their own at once; 0 if none may [default: 4096]
    #[arg(long, env = "PROFFER_ID_RANGES", value_name = "N")]
    id_ranges: Option<String>,
    /// Profiles of system calls that tasks may name: NAME.json in the format of OCI or Docker [default:
    /// /etc/proffer/seccomp if it is there]
    #[arg(long, env = "PROFFER_SECCOMP_PROFILES", value_name = "DIR")]
    seccomp_profiles: Option<String>,
    /// How long an executor of a framework may be without a connection, after its start or later, before it is ended
    /// [default: 60s]
    #[arg(long, env = "PROFFER_EXECUTOR_REGISTRATION_TIMEOUT", value_name = "DURATION")]
    executor_registration_timeout: Option<String>,
    /// Serve diagnostics on an address that is not loopback, to whoever can reach it
    #[arg(long, env = "PROFFER_INSECURE", num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    insecure: Option<String>,
    /// What to log: error, warn, info, debug, trace, or target=level pairs [default: info]
    #[arg(long, env = "PROFFER_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Log as JSON, one object per line
    #[arg(long, env = "PROFFER_LOG_JSON", num_args = 0..=1, default_missing_value = "true", value_name = "true|false")]
    log_json: Option<String>,
    /// A TOML file with these settings [default: /etc/proffer/agent.toml if there is one]
    #[arg(long, env = "PROFFER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// End every task and supervisor that an agent on these directories has left, remove its cgroups and its runtime
    /// directory, and exit. The agent must not run. Its next start reports the tasks as failed
    #[arg(long)]
    pub clean_up: bool,
}

/// How tasks are to be separated from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Containerizer {
    /// As `Linux`, but says what else there is if that cannot be.
    #[default]
    Auto,
    /// Cgroups and namespaces.
    Linux,
    /// Plain processes.
    Process,
}

/// The settings in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Masters to ask for the leader; at least one.
    pub masters: Vec<String>,
    /// Where diagnostics are served.
    pub listen: SocketAddr,
    /// What must survive a restart.
    pub work_dir: PathBuf,
    /// What must not survive a restart of the host.
    pub runtime_dir: PathBuf,
    /// What to offer; `None` for what the node has.
    pub resources: Option<Resources>,
    /// Facts about the node.
    pub attributes: BTreeMap<String, AttributeValue>,
    /// How tasks are separated.
    pub containerizer: Containerizer,
    /// Where the cgroup hierarchies are mounted, if not found by itself.
    pub cgroup_root: Option<PathBuf>,
    /// The supervisor's program, if not beside this one.
    pub executor: Option<PathBuf>,
    /// Users that tasks may run as beside `nobody`; `*` for all but root.
    pub task_users: BTreeSet<String>,
    /// How many bytes of each stream of a task's output are kept in a second.
    pub task_log_rate: u64,
    /// How long an executor may be without a connection (milliseconds).
    pub executor_registration_ms: u64,
    /// Whether a task that does not say has user ids of its own; if that is possible, where nothing is said.
    pub user_namespaces: Option<bool>,
    /// The user ids of tasks that have their own.
    pub users: Users,
    /// Where the profiles of system calls are, if not at the usual place.
    pub seccomp_profiles: Option<PathBuf>,
    /// Whether diagnostics may be served on an address that is not loopback.
    pub insecure: bool,
    /// What to log.
    pub log: String,
    /// How.
    pub log_format: Format,
}

impl Config {
    /// Reads the configuration file, if there is one, and puts the flags over it.
    ///
    /// # Errors
    /// Everything that is wrong with the settings.
    pub fn load(flags: &Flags) -> Result<Self, Problems> {
        Self::resolve(Reader::open(flags.list(), flags.config.as_deref(), Path::new(CONFIG_FILE))?)
    }

    fn resolve(mut reader: Reader<'_>) -> Result<Self, Problems> {
        let config = Self::read(&mut reader);
        config.check(&mut reader);
        reader.finish(config)
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        let defaults = Self::default();
        Self {
            masters: reader.get("masters", parse_masters).unwrap_or(defaults.masters),
            listen: reader
                .get("listen", |text| text.parse().map_err(|_| format!("`{text}` is not IP:PORT")))
                .unwrap_or(defaults.listen),
            work_dir: reader.get("work-dir", parse_dir).unwrap_or(defaults.work_dir),
            runtime_dir: reader.get("runtime-dir", parse_dir).unwrap_or(defaults.runtime_dir),
            resources: reader.get("resources", |text| Resources::parse(text).map_err(|e| e.to_string())),
            attributes: reader.get("attributes", parse_attributes).unwrap_or_default(),
            containerizer: reader.get("containerizer", parse_containerizer).unwrap_or_default(),
            cgroup_root: reader.get("cgroup-root", parse_dir),
            executor: reader.get("executor", |text| Ok(PathBuf::from(text))),
            task_users: reader.get("task-users", |text| Ok(parse_users(text))).unwrap_or_default(),
            task_log_rate: reader.get("task-log-rate", parse_rate).unwrap_or(defaults.task_log_rate),
            executor_registration_ms: reader
                .get("executor-registration-timeout", parse_duration_ms)
                .unwrap_or(defaults.executor_registration_ms),
            user_namespaces: reader.get("user-namespaces", parse_on).flatten(),
            users: Users {
                private: defaults.users.private,
                base: reader.get("id-base", parse_number).unwrap_or(defaults.users.base),
                ranges: reader.get("id-ranges", parse_number).unwrap_or(defaults.users.ranges),
            },
            seccomp_profiles: reader.get("seccomp-profiles", parse_dir),
            insecure: reader.get("insecure", parse_bool).unwrap_or(false),
            log: reader
                .get("log", |text| match proffer_telemetry::check(text) {
                    Ok(()) => Ok(text.to_owned()),
                    Err(error) => Err(error.to_string()),
                })
                .unwrap_or(defaults.log),
            log_format: match reader.get("log-json", parse_bool) {
                Some(true) => Format::Json,
                Some(false) | None => Format::Text,
            },
        }
    }

    /// What each setting cannot know by itself.
    fn check(&self, reader: &mut Reader<'_>) {
        if !self.listen.ip().is_loopback() && !self.insecure {
            reader.problem(format!(
                "listen: {} is not a loopback address, and what is served there names every task of this node to \
                 whoever can reach it: listen on 127.0.0.1, or say --insecure if the network is yours alone",
                self.listen
            ));
        }
        if !self.users.fits() {
            reader.problem(format!(
                "id-base, id-ranges: {} ranges of {range} ids from {} are not all from {range} to 4294967294",
                self.users.ranges,
                self.users.base,
                range = Users::RANGE
            ));
        }
        if self.work_dir == self.runtime_dir {
            reader.problem("runtime-dir: must differ from work-dir");
        }
        if self.resources.as_ref().is_some_and(|r| r.cpus_milli() == 0 && r.memory_bytes() == 0) {
            reader.problem("resources: there is neither cpus nor mem to offer");
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            masters: vec!["127.0.0.1:5050".into()],
            listen: SocketAddr::from(([127, 0, 0, 1], 5051)),
            work_dir: "/var/lib/proffer/agent".into(),
            runtime_dir: "/run/proffer".into(),
            resources: None,
            attributes: BTreeMap::new(),
            containerizer: Containerizer::Auto,
            cgroup_root: None,
            executor: None,
            task_users: BTreeSet::new(),
            task_log_rate: 32 << 20,
            executor_registration_ms: EXECUTOR_REGISTRATION_MS,
            user_namespaces: None,
            users: Users::default(),
            seccomp_profiles: None,
            insecure: false,
            log: proffer_telemetry::DEFAULT_FILTER.into(),
            log_format: Format::Text,
        }
    }
}

impl Flags {
    /// Every key with what flag or variable said.
    fn list(&self) -> proffer_settings::Flags<'_> {
        [
            ("masters", &self.masters),
            ("listen", &self.listen),
            ("work-dir", &self.work_dir),
            ("runtime-dir", &self.runtime_dir),
            ("resources", &self.resources),
            ("attributes", &self.attributes),
            ("containerizer", &self.containerizer),
            ("cgroup-root", &self.cgroup_root),
            ("executor", &self.executor),
            ("task-users", &self.task_users),
            ("task-log-rate", &self.task_log_rate),
            ("user-namespaces", &self.user_namespaces),
            ("id-base", &self.id_base),
            ("id-ranges", &self.id_ranges),
            ("seccomp-profiles", &self.seccomp_profiles),
            ("executor-registration-timeout", &self.executor_registration_timeout),
            ("insecure", &self.insecure),
            ("log", &self.log),
            ("log-json", &self.log_json),
        ]
        .map(|(key, value)| (key, value.as_deref()))
        .into()
    }
}

/// Reads `500ms`, `10s`, `5m`: at least a second's tenth, at most a day.
fn parse_duration_ms(text: &str) -> Result<u64, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let read = units.into_iter().find_map(|(unit, ms)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(ms)
    });
    match read {
        Some(ms) if (100..=KILL_GRACE_MAX_MS).contains(&ms) => Ok(ms),
        Some(_) => Err(format!("`{text}` is not between 100ms and 24h")),
        None => Err(format!("`{text}` is not a duration such as 500ms, 10s or 5m")),
    }
}

fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("nothing at all would be kept".into()),
        bytes => Ok(bytes),
    }
}

fn parse_masters(text: &str) -> Result<Vec<String>, String> {
    let items = text.split(',').filter(|item| !item.trim().is_empty());
    let masters: Vec<String> = items.map(parse_address).collect::<Result<_, _>>()?;
    if masters.is_empty() { Err("there is none".into()) } else { Ok(masters) }
}

fn parse_users(text: &str) -> BTreeSet<String> {
    text.split(',').map(str::trim).filter(|user| !user.is_empty()).map(str::to_owned).collect()
}

fn parse_on(text: &str) -> Result<Option<bool>, String> {
    match text {
        "auto" => Ok(None),
        "on" | "true" => Ok(Some(true)),
        "off" | "false" => Ok(Some(false)),
        _ => Err(format!("`{text}` is none of auto, on, off")),
    }
}

fn parse_number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number from 0 to 4294967295"))
}

fn parse_containerizer(text: &str) -> Result<Containerizer, String> {
    match text {
        "auto" => Ok(Containerizer::Auto),
        "linux" => Ok(Containerizer::Linux),
        "process" => Ok(Containerizer::Process),
        _ => Err(format!("`{text}` is none of auto, linux, process")),
    }
}

/// Reads `rack:a1;generation:3`: a value that is a decimal number is one, any other is text.
fn parse_attributes(text: &str) -> Result<BTreeMap<String, AttributeValue>, String> {
    let mut attributes = BTreeMap::new();
    for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
        let (name, value) = item.split_once(':').ok_or_else(|| format!("`{item}` is not NAME:VALUE"))?;
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || value.is_empty() {
            return Err(format!("`{item}` is not NAME:VALUE"));
        }
        let value = match parse_milli(value).ok().and_then(|milli| i64::try_from(milli).ok()) {
            Some(milli) => AttributeValue::Milli(milli),
            None => AttributeValue::Text(value.to_owned()),
        };
        if attributes.insert(name.to_owned(), value).is_some() {
            return Err(format!("`{name}` is there twice"));
        }
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(list: &[&str]) -> Flags {
        Flags::try_parse_from(["proffer-agent"].iter().chain(list)).expect("flags")
    }

    fn resolve(list: &[&str], text: &str) -> Result<Config, Problems> {
        Config::resolve(Reader::over(flags(list).list(), text, Path::new("agent.toml")))
    }

    #[test]
    fn a_flag_is_stronger_than_the_file_and_the_file_than_the_default() {
        let file = "masters = [\"a:1\", \"b:2\"]\nwork-dir = \"/w\"\ntask_users = [\"daemon\", \"*\"]\nlog-json = true\n";
        let config = resolve(&["--work-dir", "/x"], file).unwrap();
        assert_eq!(config.masters, ["a:1", "b:2"]);
        assert_eq!(config.work_dir, Path::new("/x"));
        assert!(config.task_users.contains("daemon") && config.task_users.contains("*"));
        assert_eq!(config.log_format, Format::Json);
        assert_eq!(config.listen.port(), 5051);
        let timeout = |text| {
            resolve(&["--executor-registration-timeout", text], "").map(|c| c.executor_registration_ms)
        };
        assert_eq!(timeout("2m").unwrap(), 120_000);
        assert_eq!(timeout("500ms").unwrap(), 500);
        for wrong in ["5", "1ms", "25h", "s", "99999999999999999999h"] {
            assert!(timeout(wrong).is_err(), "{wrong}");
        }
        let rate = |text| resolve(&["--task-log-rate", text], "").map(|c| c.task_log_rate);
        assert_eq!(rate("1MiB").unwrap(), 1 << 20);
        assert!(rate("0").is_err() && rate("fast").is_err());
        assert_eq!(resolve(&[], "").unwrap(), Config::default());
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let file = "work_dirs = \"/w\"\nlisten = 5051\nruntime-dir = \"run\"\ncolour = \"red\"\n";
        let list =
            ["--masters", "a", "--resources", "cpus:x", "--containerizer", "docker", "--log", "proffer=loud"];
        let problems = resolve(&list, file).unwrap_err().to_string();
        let parts = [
            "`work-dirs` is not a setting",
            "`colour` is not a setting",
            "listen: `5051` is not",
            "runtime-dir: `run`",
            "masters: `a`",
            "resources:",
            "containerizer: `docker`",
            "log: ",
        ];
        for part in parts {
            assert!(problems.contains(part), "{part} in {problems}");
        }
        assert!(resolve(&[], "a = ").unwrap_err().to_string().contains("agent.toml"));
    }

    #[test]
    fn only_loopback_unless_said_otherwise() {
        let problems = resolve(&["--listen", "0.0.0.0:5051"], "").unwrap_err().to_string();
        assert!(problems.contains("loopback"), "{problems}");
        assert!(resolve(&["--listen", "0.0.0.0:5051", "--insecure"], "").is_ok());
        assert!(resolve(&["--listen", "[::1]:5051"], "").is_ok());
    }

    #[test]
    fn ranges_of_user_ids_must_exist() {
        let on = resolve(&["--user-namespaces", "on", "--id-base", "65536"], "id-ranges = 10\n").unwrap();
        assert_eq!(on.users, Users { private: false, base: 65_536, ranges: 10 });
        assert_eq!(on.user_namespaces, Some(true));
        for wrong in [&["--id-base", "1000"][..], &["--id-ranges", "65536"], &["--user-namespaces", "maybe"]]
        {
            assert!(resolve(wrong, "").is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn attributes_are_numbers_or_texts() {
        let attributes = parse_attributes("rack:a1; generation:3.5;os:linux").unwrap();
        assert_eq!(attributes["rack"], AttributeValue::Text("a1".into()));
        assert_eq!(attributes["generation"], AttributeValue::Milli(3_500));
        for wrong in ["rack", "rack:", ":a", "a:1;a:2"] {
            assert!(parse_attributes(wrong).is_err(), "{wrong}");
        }
    }
}
