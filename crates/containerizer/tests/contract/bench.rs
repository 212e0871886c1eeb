//! A containerizer on a machine, with what a test needs to make things happen on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use proffer_containerizer::fake::{Fake, Node};
use proffer_containerizer::{
    ContainerSpec, Containerizer, Event, InstanceId, Isolation, Known, LogLimits, Options, Supervised,
    Supervision, Users, open, remove_all,
};
use proffer_types::{FrameworkId, LaunchId, Reason};
use proffer_wire::journal::{Journal, Recorded};

/// How long anything may take on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const FRAMEWORK: FrameworkId = FrameworkId(0xf);

/// What a container runs.
#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// Exits with a code once it is let.
    Gate(i32),
    /// Ends itself by a signal once it is let.
    GateSignal(i32),
    /// A program that is not there.
    Missing,
    /// Any shell script; not for the fake.
    Script(&'static str),
}

impl Program {
    fn argv(&self) -> Vec<String> {
        let script = match self {
            Self::Missing => return vec!["proffer-no-such-program".to_owned()],
            Self::Script(script) => (*script).to_owned(),
            Self::Gate(code) => format!("until test -e go; do sleep 0.01; done; exit {code}"),
            Self::GateSignal(signal) => format!("until test -e go; do sleep 0.01; done; kill -{signal} $$"),
        };
        vec!["sh".to_owned(), "-c".to_owned(), script]
    }
}

/// One machine.
pub(crate) struct Bench {
    kind: Kind,
    events: VecDeque<Event>,
    programs: std::collections::BTreeMap<LaunchId, Program>,
    next: u64,
}

enum Kind {
    Fake { node: Node, life: Option<Fake> },
    Real { options: Box<Options>, dir: PathBuf, life: Option<(Box<Supervised>, Receiver<Event>)> },
}

impl Bench {
    pub(crate) fn fake() -> Self {
        let node = Node::new();
        Self::new(Kind::Fake { node, life: None })
    }

    /// `None`, said aloud, if this machine cannot.
    pub(crate) fn real(isolation: Isolation) -> Option<Self> {
        if isolation == Isolation::Linux
            && let Some(why) = proffer_containerizer::linux_unavailable(None)
        {
            eprintln!("SKIPPED: no Linux containers here: {why}");
            return None;
        }
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("proffer-{name}"));
        let options = Options {
            isolation,
            agent_instance: name.clone(),
            cgroup_root: None,
            work_dir: dir.join("work"),
            runtime_dir: PathBuf::from(format!("/dev/shm/proffer-{name}")),
            executor: executor(),
            log_bytes_per_second: 0,
            covers: Vec::new(),
            task_users: BTreeSet::new(),
            supervisor_idle: Duration::from_secs(60),
            supervisor_answers: Duration::from_secs(15),
            // Tests bind sockets too.
            socket_look: Duration::from_secs(3600),
            supervisors_memory_bytes: 256 << 20,
            // So that everything can be tried with both.
            users: Users {
                private: std::env::var("PROFFER_USER_NAMESPACES").is_ok_and(|value| value == "on"),
                ..Users::default()
            },
            seccomp: Default::default(),
        };
        let bench = Self::new(Kind::Real { options: Box::new(options), dir, life: None });
        if isolation == Isolation::Linux {
            let v2 = Path::new("/sys/fs/cgroup/proffer").exists();
            eprintln!("RAN: cgroup v{}", if v2 { 2 } else { 1 });
        }
        Some(bench)
    }

    fn new(kind: Kind) -> Self {
        let mut bench = Self { kind, events: VecDeque::new(), programs: Default::default(), next: 1 };
        bench.restart(&[]);
        bench.expect("recovery on an empty machine", |event| *event == Event::Recovered);
        bench
    }

    /// Changes the options for the next life.
    pub(crate) fn options(&mut self) -> &mut Options {
        match &mut self.kind {
            Kind::Real { options, .. } => options,
            Kind::Fake { .. } => panic!("the fake has no options"),
        }
    }

    /// Ends this life of the agent.
    pub(crate) fn stop(&mut self) {
        self.events.clear();
        match &mut self.kind {
            Kind::Fake { life, .. } => *life = None,
            Kind::Real { life, .. } => *life = None,
        }
    }

    /// Begins another one, which knows of these launches.
    pub(crate) fn restart(&mut self, known: &[Known]) {
        self.stop();
        match &mut self.kind {
            Kind::Fake { node, life } => *life = Some(Fake::new(node)),
            Kind::Real { options, life, .. } => {
                let (send, receive) = channel();
                let sink = move |event| drop(send.send(event));
                *life = Some((Box::new(open((**options).clone(), sink).expect("opened")), receive));
            }
        }
        self.agent().recover(known.to_vec());
    }

    pub(crate) fn agent(&mut self) -> &mut dyn Containerizer {
        match &mut self.kind {
            Kind::Fake { life, .. } => life.as_mut().expect("alive"),
            Kind::Real { life, .. } => &mut *life.as_mut().expect("alive").0,
        }
    }

    /// A new launch's specification.
    pub(crate) fn spec(&mut self, program: &Program) -> ContainerSpec {
        let launch = LaunchId(self.next);
        self.next += 1;
        self.programs.insert(launch, program.clone());
        let instance = self.agent().assign(FRAMEWORK);
        let sandbox = self.agent().sandbox_path(launch).display().to_string();
        ContainerSpec {
            launch,
            framework: FRAMEWORK,
            instance,
            argv: program.argv(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("PROFFER_SANDBOX".into(), sandbox)],
            user: String::new(),
            cpus_milli: 500,
            memory_bytes: 64 << 20,
            pids_max: 50,
            burst: Default::default(),
            container: Default::default(),
            logs: LogLimits::default(),
            supervision: Supervision::default(),
        }
    }

    /// Launches it.
    pub(crate) fn launch(&mut self, program: &Program) -> ContainerSpec {
        let spec = self.spec(program);
        self.deliver(&spec);
        spec
    }

    pub(crate) fn deliver(&mut self, spec: &ContainerSpec) {
        let missing = matches!(self.programs[&spec.launch], Program::Missing);
        if let Kind::Fake { node, .. } = &self.kind {
            node.start_at_once(!missing);
        }
        self.agent().launch(spec.clone());
        if let (Kind::Fake { node, .. }, true) = (&self.kind, missing) {
            node.fail(spec.launch, Reason::ExecFailed, "no such program");
        }
    }

    /// Launches it and waits until it runs.
    pub(crate) fn run(&mut self, program: &Program) -> ContainerSpec {
        let spec = self.launch(program);
        self.expect(
            "it runs",
            |event| matches!(event, Event::Started { launch, .. } if *launch == spec.launch),
        );
        spec
    }

    /// Opens a gate.
    pub(crate) fn let_go(&mut self, launch: LaunchId) {
        match &self.kind {
            Kind::Fake { node, .. } => {
                let ended = match self.programs[&launch] {
                    Program::Gate(code) => node.exit(launch, code),
                    Program::GateSignal(signal) => node.signal(launch, signal),
                    _ => panic!("not a gate"),
                };
                assert!(ended, "it runs");
            }
            Kind::Real { .. } => std::fs::write(self.sandbox(launch).join("go"), b"").expect("a sandbox"),
        }
    }

    /// Kills the supervisor with SIGKILL.
    pub(crate) fn lose_supervisor(&mut self, instance: InstanceId) {
        match &self.kind {
            Kind::Fake { node, .. } => node.lose_supervisor(instance),
            Kind::Real { .. } => {
                let pid = self.supervisor_pid(instance);
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
                    .expect("killed");
            }
        }
    }

    pub(crate) fn supervisor_pid(&self, instance: InstanceId) -> i32 {
        let path = self.runtime().join("supervisors").join(instance.to_string()).join("supervisor.json");
        let text = std::fs::read_to_string(path).expect("supervisor.json");
        let file: serde_json::Value = serde_json::from_str(&text).expect("json");
        file["pid"].as_i64().expect("a pid") as i32
    }

    /// What a supervisor has recorded of its launches.
    pub(crate) fn recorded(&self, instance: InstanceId) -> BTreeMap<u64, Recorded> {
        let path = self.runtime().join("supervisors").join(instance.to_string()).join("journal");
        Journal::read(&std::fs::read(path).expect("a journal")).launches
    }

    pub(crate) fn sandbox(&self, launch: LaunchId) -> PathBuf {
        self.work().join("sandboxes").join(format!("{:016x}", launch.0))
    }

    pub(crate) fn work(&self) -> &Path {
        match &self.kind {
            Kind::Real { options, .. } => &options.work_dir,
            Kind::Fake { .. } => panic!("the fake has no directories"),
        }
    }

    pub(crate) fn runtime(&self) -> &Path {
        match &self.kind {
            Kind::Real { options, .. } => &options.runtime_dir,
            Kind::Fake { .. } => panic!("the fake has no directories"),
        }
    }

    pub(crate) fn is_fake(&self) -> bool {
        matches!(self.kind, Kind::Fake { .. })
    }

    /// How the caller's record of a launch reads.
    pub(crate) fn known(spec: &ContainerSpec, ended: bool) -> Known {
        let ContainerSpec { launch, framework, instance, memory_bytes, .. } = *spec;
        Known { launch, framework, instance, memory_bytes, started: ended, ended }
    }

    /// The next event.
    pub(crate) fn event(&mut self, what: &str) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            match &mut self.kind {
                Kind::Fake { life, .. } => {
                    let events = life.as_mut().expect("alive").take_events();
                    assert!(!events.is_empty(), "the fake has no event: {what}");
                    self.events.extend(events);
                }
                Kind::Real { life, .. } => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let event = life.as_ref().expect("alive").1.recv_timeout(left);
                    self.events
                        .push_back(event.unwrap_or_else(|_| panic!("no event within {PATIENCE:?}: {what}")));
                }
            }
        }
    }

    /// Waits for an event; others before it are kept for later.
    pub(crate) fn expect(&mut self, what: &str, is: impl Fn(&Event) -> bool) -> Event {
        let mut others = VecDeque::new();
        loop {
            let event = self.event(&format!("{what}; before it: {others:?}"));
            if is(&event) {
                others.extend(std::mem::take(&mut self.events));
                self.events = others;
                return event;
            }
            others.push_back(event);
        }
    }

    /// Waits for the next event of a launch.
    pub(crate) fn of(&mut self, launch: LaunchId) -> Event {
        self.expect(&format!("an event of {launch:?}"), |event| event.launch() == Some(launch))
    }

    /// What a launch has written to its standard output.
    pub(crate) fn output(&mut self, launch: LaunchId) -> String {
        let logs = self.agent().logs(launch);
        let chunk = logs.read(proffer_containerizer::Stream::Stdout, 0, 1 << 16);
        chunk.map_or_else(|_| String::new(), |chunk| String::from_utf8_lossy(&chunk.bytes).into_owned())
    }

    /// Takes what was told of a launch's start and checks, of which a test has seen enough.
    pub(crate) fn expect_none_but_started(&mut self, launch: LaunchId) {
        self.events.retain(|event| match event {
            Event::Started { launch: of, .. } | Event::Checked { launch: of, .. } => *of != launch,
            _ => true,
        });
    }

    /// Waits for a launch's end, which must come as `Ended`.
    pub(crate) fn end(&mut self, launch: LaunchId) -> proffer_containerizer::End {
        match self.of(launch) {
            Event::Ended { end, .. } => end,
            other => panic!("not an end: {other:?}"),
        }
    }

    pub(crate) fn forget(&mut self, launch: LaunchId) {
        self.agent().forget(launch);
        assert_eq!(self.of(launch), Event::Gone { launch });
    }

    /// Ends the test: nothing may be left over, neither an untold event nor anything on the machine.
    pub(crate) fn close(mut self) {
        if let Kind::Fake { life, .. } = &mut self.kind {
            self.events.extend(life.as_mut().expect("alive").take_events());
        }
        if let Kind::Real { life: Some((_, receive)), .. } = &self.kind {
            self.events.extend(receive.try_iter());
        }
        assert!(self.events.is_empty(), "untold: {:?}", self.events);
        self.stop();
        self.sweep();
        if let Kind::Real { options, dir, .. } = &self.kind {
            assert!(!options.runtime_dir.exists());
            assert!(groups(&options.agent_instance).is_empty());
            assert!(!dir.exists());
        }
    }

    fn sweep(&mut self) {
        if let Kind::Real { options, dir, life } = &mut self.kind {
            *life = None;
            let removed = remove_all(options, PATIENCE);
            let _ = std::fs::remove_dir_all(dir);
            if !std::thread::panicking() {
                removed.expect("everything can be removed");
            }
        }
    }

    /// The processes in a launch's group, in any hierarchy.
    pub(crate) fn processes(&self, launch: LaunchId) -> Vec<i32> {
        let Kind::Real { options, .. } = &self.kind else { return Vec::new() };
        let Some(group) = self.group(launch) else { return Vec::new() };
        let group = PathBuf::from("proffer").join(&options.agent_instance).join(group);
        let root = Path::new("/sys/fs/cgroup");
        let roots = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let lists = roots.chain([root.to_owned()]).map(|root| root.join(&group).join("cgroup.procs"));
        let texts = lists.filter_map(|list| std::fs::read_to_string(list).ok());
        texts
            .flat_map(|text| text.lines().map(|pid| pid.parse().expect("a pid")).collect::<Vec<_>>())
            .collect()
    }

    /// The name of a launch's group.
    pub(crate) fn group(&self, launch: LaunchId) -> Option<String> {
        let held = std::fs::read_link(self.runtime().join("held").join(format!("{:016x}", launch.0))).ok()?;
        let slot = held.to_str()?.split(' ').next()?;
        Some(format!("slot-{slot:0>16}"))
    }

    /// The agent's groups in every hierarchy, relative to its own, but for those that wait for a container and
    /// those that all containers share.
    pub(crate) fn groups(&self) -> Vec<String> {
        match &self.kind {
            Kind::Real { options, .. } => {
                let entries =
                    std::fs::read_dir(options.runtime_dir.join("held")).into_iter().flatten().flatten();
                let launches = entries.filter_map(|entry| {
                    u64::from_str_radix(entry.file_name().to_str()?, 16).ok().map(LaunchId)
                });
                let held: Vec<_> = launches.filter_map(|launch| self.group(launch)).collect();
                let idle =
                    |name: &String| name == "containers" || name.starts_with("slot-") && !held.contains(name);
                groups(&options.agent_instance).into_iter().filter(|name| !idle(name)).collect()
            }
            Kind::Fake { .. } => Vec::new(),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.sweep();
    }
}

fn groups(instance: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = vec![PathBuf::from("/sys/fs/cgroup/proffer")];
    look.extend(
        std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path().join("proffer")),
    );
    for top in look {
        let own = top.join(instance);
        if own.exists() {
            found.push(String::new());
        }
        let entries = std::fs::read_dir(own).into_iter().flatten().flatten();
        found.extend(
            entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned()),
        );
    }
    found.sort();
    found.dedup();
    found
}

/// Waits for a condition.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

fn executor() -> PathBuf {
    let path = std::env::var_os("PROFFER_EXECUTOR").map(PathBuf::from).unwrap_or_else(|| {
        let own = std::env::current_exe().expect("own path");
        own.parent().and_then(Path::parent).expect("target/debug/deps").join("proffer-executor")
    });
    assert!(
        path.exists(),
        "{} is missing: run `cargo build -p proffer-executor`, or set PROFFER_EXECUTOR",
        path.display()
    );
    path
}
