//! Where a local cluster keeps what, and how its programs are called.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::children::{Children, Daemon};
use super::share;
use crate::args::{Containerizer, DevArgs};
use crate::fail::{Code, Failure};

const PORT: u16 = 5050;
/// The first agent's port lies this far above the first master's.
const AGENT_PORTS_FROM: u16 = 10;
/// A supervisor's socket lies below the runtime directory, and the kernel takes 107 bytes for a socket's path.
const RUNTIME_DIR_BYTES_MAX: usize = 64;
/// How long a daemon of an earlier life may take to end.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(4);
/// What the daemons must not take from our environment: their flags have the same names there.
const SETTINGS_PREFIX: &str = "PROFFER_";
/// The one setting that is passed on.
const LOG_SETTING: &str = "PROFFER_LOG";

/// `cluster.json`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct ClusterFile {
    masters: Vec<Member>,
    agents: Vec<Member>,
}

/// One daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Member {
    id: u64,
    addr: String,
    pid: u32,
}

/// A local cluster's directory and shape.
#[derive(Debug)]
pub(super) struct Layout {
    dir: PathBuf,
    /// Removes the directory at the end, unless it was given.
    temporary: Option<tempfile::TempDir>,
    /// Runtime directories, where DIR is too long a path for sockets.
    short: Option<tempfile::TempDir>,
    masters: u16,
    agents: u16,
    port: u16,
    containerizer: Containerizer,
    programs: PathBuf,
    shares: Vec<String>,
    /// Held for as long as the cluster runs.
    _lock: Option<Flock<File>>,
}

impl Layout {
    /// Makes the directories and sees that the ports are free.
    pub(super) fn prepare(args: &DevArgs) -> Result<Self, Failure> {
        let (dir, temporary) = match &args.dir {
            Some(dir) => (make_dir(dir)?, None),
            None => {
                let made = temporary_dir("proffer-dev-")?;
                (made.path().to_owned(), Some(made))
            }
        };
        let lock = lock(&dir)?;
        let before = read(&dir)?;
        end_leftovers(&dir, &before);
        let port_before =
            before.masters.first().and_then(|first| first.addr.rsplit_once(':')?.1.parse().ok());
        let masters = unchanged(&dir, "masters", args.masters, count(&before.masters), 1)?;
        let port = unchanged(&dir, "port", args.port, port_before, PORT)?;
        // Agents may come and go.
        let agents = args.agents.or_else(|| count(&before.agents)).unwrap_or(1);
        let longest = dir.join(format!("agent-{agents}/run"));
        let short = match longest.as_os_str().len() {
            0..=RUNTIME_DIR_BYTES_MAX => None,
            _ => Some(temporary_dir("proffer-run-")?),
        };
        let shares = share::split(&dir, agents)?;
        let containerizer = args.containerizer;
        let programs = programs()?;
        let _lock = Some(lock);
        let layout =
            Self { dir, temporary, short, masters, agents, port, containerizer, programs, shares, _lock };
        layout.check_ports()?;
        for n in 1..=masters {
            make_dir(&layout.dir.join(format!("master-{n}/data")))?;
        }
        for n in 1..=agents {
            make_dir(&layout.work_dir(n))?;
            make_dir(&layout.runtime_dir(n))?;
        }
        Ok(layout)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The masters' addresses.
    pub(super) fn masters(&self) -> Vec<String> {
        (1..=self.masters).map(|n| address(self.master_port(n))).collect()
    }

    pub(super) fn agents_wanted(&self) -> usize {
        self.agents.into()
    }

    /// What makes other verbs speak to this cluster; empty if they do so anyway.
    pub(super) fn hint(&self) -> String {
        if self.port == PORT { String::new() } else { format!("PROFFER_MASTER={} ", address(self.port)) }
    }

    /// What to start.
    pub(super) fn daemons(&self) -> Vec<Daemon> {
        let masters = (1..=self.masters).map(|n| self.master(n));
        masters.chain((1..=self.agents).map(|n| self.agent(n))).collect()
    }

    /// What removes all that the agents have made outside their work directories.
    pub(super) fn clean_ups(&self) -> Vec<Daemon> {
        let clean_up = |n| {
            let mut agent = self.agent(n);
            agent.name.push_str(" --clean-up");
            agent.args.push("--clean-up".into());
            agent
        };
        (1..=self.agents).map(clean_up).collect()
    }

    /// Writes `cluster.json`.
    pub(super) fn write(&self, children: &Children) -> Result<(), Failure> {
        let member = |agent: bool, n: u16, port: u16| Member {
            id: n.into(),
            addr: address(port),
            pid: children.pid(agent, n).unwrap_or(0),
        };
        let file = ClusterFile {
            masters: (1..=self.masters).map(|n| member(false, n, self.master_port(n))).collect(),
            agents: (1..=self.agents).map(|n| member(true, n, self.agent_port(n))).collect(),
        };
        let path = self.dir.join("cluster.json");
        // Whoever reads it must find all of it, at any time.
        let new = self.dir.join("cluster.json.new");
        let text = serde_json::to_string_pretty(&file).expect("it has text keys only");
        fs::write(&new, text + "\n")
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| io("write", &path, error))
    }

    /// Removes what was made for this run only.
    pub(super) fn remove(self) {
        for dir in [self.temporary, self.short].into_iter().flatten() {
            let path = dir.path().to_owned();
            if let Err(error) = dir.close() {
                eprintln!("proffer dev: cannot remove {}: {error}", path.display());
            }
        }
    }

    fn master(&self, n: u16) -> Daemon {
        let listen = address(self.master_port(n));
        let mut args = vec!["--id".into(), n.to_string(), "--listen".into(), listen.clone()];
        args.extend(["--advertise".into(), listen]);
        args.extend(["--data-dir".into(), text(&self.dir.join(format!("master-{n}/data")))]);
        if self.masters > 1 {
            let peer = |n: u16| format!("{n}={}", address(self.master_port(n)));
            let peers: Vec<String> = (1..=self.masters).map(peer).collect();
            args.extend(["--peers".into(), peers.join(",")]);
        }
        self.daemon(false, n, "proffer-master", args, self.dir.join(format!("master-{n}/log")))
    }

    fn agent(&self, n: u16) -> Daemon {
        let mut args = vec!["--masters".into(), self.masters().join(",")];
        args.extend(["--listen".into(), address(self.agent_port(n))]);
        args.extend(["--work-dir".into(), text(&self.work_dir(n))]);
        args.extend(["--runtime-dir".into(), text(&self.runtime_dir(n))]);
        args.extend(["--resources".into(), self.shares[usize::from(n) - 1].clone()]);
        args.extend(["--containerizer".into(), self.containerizer.name().into()]);
        self.daemon(true, n, "proffer-agent", args, self.dir.join(format!("agent-{n}/log")))
    }

    fn daemon(&self, agent: bool, n: u16, program: &str, mut args: Vec<String>, log: PathBuf) -> Daemon {
        // This machine's own configuration files are about its own cluster.
        args.extend(["--config".into(), "/dev/null".into()]);
        let foreign = |name: &String| name.starts_with(SETTINGS_PREFIX) && name != LOG_SETTING;
        let unset =
            std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()).filter(foreign).collect();
        let name = format!("{program} {n}");
        Daemon {
            agent,
            n,
            name,
            program: self.programs.join(program),
            args,
            unset,
            log,
            deaths: 0,
            end: String::new(),
        }
    }

    fn work_dir(&self, n: u16) -> PathBuf {
        self.dir.join(format!("agent-{n}/work"))
    }

    fn runtime_dir(&self, n: u16) -> PathBuf {
        match &self.short {
            Some(short) => short.path().join(n.to_string()),
            None => self.dir.join(format!("agent-{n}/run")),
        }
    }

    fn master_port(&self, n: u16) -> u16 {
        self.port + n - 1
    }

    fn agent_port(&self, n: u16) -> u16 {
        self.port + AGENT_PORTS_FROM + n - 1
    }

    fn check_ports(&self) -> Result<(), Failure> {
        let masters = (1..=self.masters).map(|n| ("master", n, self.master_port(n)));
        let agents = (1..=self.agents).map(|n| ("agent", n, self.agent_port(n)));
        for (kind, n, port) in masters.chain(agents) {
            if let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
                let what = format!("port {port}, for {kind} {n}, cannot be used: {error}");
                return Err(Failure::new(Code::Failed, what).next("choose another with --port"));
            }
        }
        Ok(())
    }
}

/// One cluster per directory.
fn lock(dir: &Path) -> Result<Flock<File>, Failure> {
    let path = dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| io("open", &path, error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => {
            Failure::new(Code::Conflict, format!("another `proffer dev` runs in {}", dir.display()))
                .next("end it first, or use another --dir")
        }
        errno => io("lock", &path, errno.into()),
    })
}

/// Ends the daemons of a `proffer dev` that was killed: it could not, and they hold the ports. Their tasks go on, and
/// the next agents take them up.
fn end_leftovers(dir: &Path, before: &ClusterFile) {
    let until = Instant::now() + LEFTOVER_TIMEOUT;
    let members = before.masters.iter().map(|m| (m, format!("master-{}/data", m.id)));
    let members = members.chain(before.agents.iter().map(|a| (a, format!("agent-{}/work", a.id))));
    let leftovers = members.filter_map(|(member, own)| {
        let pid = i32::try_from(member.pid).ok().filter(|pid| *pid > 0)?;
        // By now the number may be another's: only a process that was told our very directory is ours.
        let own = dir.join(own);
        let is_ours = move || {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).any(|word| word == own.as_os_str().as_encoded_bytes())
        };
        Some((Pid::from_raw(pid), is_ours))
    });
    let leftovers: Vec<_> = leftovers.filter(|(_, is_ours)| is_ours()).collect();
    for (pid, _) in &leftovers {
        let _ = kill(*pid, Signal::SIGTERM);
    }
    for (pid, is_ours) in &leftovers {
        while is_ours() {
            if Instant::now() >= until {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The programs beside this one.
fn programs() -> Result<PathBuf, Failure> {
    let failed =
        |error| Failure::new(Code::Failed, format!("cannot find this program's own directory: {error}"));
    let own = std::env::current_exe().map_err(failed)?;
    let dir = own.parent().expect("a program lies in a directory").to_owned();
    for program in ["proffer-master", "proffer-agent", "proffer-executor"] {
        if !dir.join(program).is_file() {
            let what = format!("{program} is not beside {}", own.display());
            return Err(Failure::new(Code::Failed, what).next("install all four programs into one directory"));
        }
    }
    Ok(dir)
}

fn count(members: &[Member]) -> Option<u16> {
    members.len().try_into().ok().filter(|count| *count > 0)
}

/// What the directory was made with stays; `asked` may only say the same.
fn unchanged(
    dir: &Path,
    flag: &str,
    asked: Option<u16>,
    before: Option<u16>,
    default: u16,
) -> Result<u16, Failure> {
    match (asked, before) {
        (Some(asked), Some(before)) if asked != before => {
            let what = format!("{} was made with --{flag} {before}, not {asked}", dir.display());
            Err(Failure::new(Code::Conflict, what).next(format!("leave --{flag} out, or use another --dir")))
        }
        (asked, before) => Ok(before.or(asked).unwrap_or(default)),
    }
}

fn read(dir: &Path) -> Result<ClusterFile, Failure> {
    let path = dir.join("cluster.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ClusterFile::default()),
        Err(error) => return Err(io("read", &path, error)),
    };
    serde_json::from_str(&text).map_err(|error| {
        let what = format!("{} is not what `proffer dev` writes: {error}", path.display());
        Failure::new(Code::Failed, what).next("use another --dir")
    })
}

/// Makes a directory that tasks' users may pass through, and resolves its path.
fn make_dir(dir: &Path) -> Result<PathBuf, Failure> {
    fs::create_dir_all(dir).map_err(|error| io("make", dir, error))?;
    fs::canonicalize(dir).map_err(|error| io("resolve", dir, error))
}

fn temporary_dir(prefix: &str) -> Result<tempfile::TempDir, Failure> {
    let dir = tempfile::Builder::new().prefix(prefix).tempdir();
    let dir = dir.map_err(|error| io("make a directory in", &std::env::temp_dir(), error))?;
    // A task's user must be able to reach its sandbox.
    let open = fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755));
    open.map_err(|error| io("open up", dir.path(), error))?;
    Ok(dir)
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn io(operation: &str, path: &Path, error: std::io::Error) -> Failure {
    Failure::new(Code::Failed, format!("cannot {operation} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_shape() {
        let dir = Path::new("/d");
        let unchanged = |asked, before| unchanged(dir, "masters", asked, before, 1);
        assert_eq!(unchanged(None, None), Ok(1));
        assert_eq!(unchanged(Some(3), None), Ok(3));
        assert_eq!(unchanged(None, Some(3)), Ok(3));
        assert_eq!(unchanged(Some(3), Some(3)), Ok(3));
        let failure = unchanged(Some(1), Some(3)).unwrap_err();
        assert_eq!(failure.code, Code::Conflict);
        assert!(failure.to_string().contains("/d was made with --masters 3, not 1"), "{failure}");
    }

    #[test]
    fn the_cluster_file_has_the_documented_shape() {
        let member = |id, addr: &str, pid| Member { id, addr: addr.into(), pid };
        let file = ClusterFile {
            masters: vec![member(1, "127.0.0.1:5050", 7)],
            agents: vec![member(1, "127.0.0.1:5060", 8)],
        };
        assert_eq!(
            serde_json::to_string(&file).unwrap(),
            r#"{"masters":[{"id":1,"addr":"127.0.0.1:5050","pid":7}],"agents":[{"id":1,"addr":"127.0.0.1:5060","pid":8}]}"#
        );
    }

    #[test]
    fn a_busy_port_is_named() {
        let busy = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = busy.local_addr().unwrap().port();
        let layout = Layout {
            dir: "/nowhere".into(),
            temporary: None,
            short: None,
            masters: 1,
            agents: 1,
            port,
            containerizer: Containerizer::Process,
            programs: PathBuf::new(),
            shares: vec!["cpus:1".into()],
            _lock: None,
        };
        let failure = layout.check_ports().unwrap_err();
        assert_eq!(failure.code.number(), 1);
        assert!(failure.to_string().contains(&port.to_string()), "{failure}");
        let agent = layout.agent(1);
        assert!(
            agent.args.windows(2).any(|pair| pair == ["--work-dir", "/nowhere/agent-1/work"]),
            "{:?}",
            agent.args
        );
        assert!(
            layout.master(1).args.windows(2).any(|pair| pair == ["--data-dir", "/nowhere/master-1/data"])
        );
    }
}
