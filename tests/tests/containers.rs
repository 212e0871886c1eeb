//! A container is a container: limits hold, nothing escapes, and the end is the end. As root only.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proffer_tests::cluster::{
    Cluster, Framework, Options, audit, info, is_root, shell, spec, until, until_true,
};
use proffer_types::{Reason, TaskId, TaskSpec, TaskState};

use super::{LIMIT, alone, beside_others, good, json, ran_on};

/// Ticks of a process's time in a second: what Linux has told programs since it runs on more than one machine.
const TICKS: f64 = 100.0;

async fn linux() -> Cluster {
    Cluster::start(Options { containerizer: "linux", ..Options::default() }).await
}

async fn cluster() -> (Cluster, Framework) {
    let cluster = linux().await;
    let framework = Framework::connect(&cluster.addresses(), info("containers")).await;
    (cluster, framework)
}

/// A language that this machine has, and programs in it.
struct Language {
    program: &'static str,
    flag: &'static str,
    /// Forks for ever, whatever comes of it, deaf to SIGTERM.
    bomb: &'static str,
    /// Connects to the socket whose path it is given.
    connect: &'static str,
}

const LANGUAGES: [Language; 2] = [
    Language {
        program: "perl",
        flag: "-e",
        bomb: "$SIG{TERM} = 'IGNORE'; fork while 1",
        connect: "use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) or die; connect(S, sockaddr_un($ARGV[0])) or \
                  die \"refused: $!\\n\"; print \"connected\\n\"",
    },
    Language {
        program: "python3",
        flag: "-c",
        bomb: "import os, signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        connect: "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('connected')",
    },
];

/// A language, if there is root and one of them; else says that `test` is skipped.
fn language(test: &str) -> Option<&'static Language> {
    if !is_root(test) {
        return None;
    }
    let found = LANGUAGES.iter().find(|language| Path::new("/usr/bin").join(language.program).is_file());
    if found.is_none() {
        println!("SKIPPED: {test}: needs perl or python3");
    }
    found
}

#[tokio::test]
async fn a_memory_hog_is_killed_alone_and_told_so() {
    if !is_root("a_memory_hog_is_killed_alone_and_told_so") {
        return;
    }
    let _machine = beside_others().await;
    let (cluster, mut framework) = cluster().await;
    framework.launch(LIMIT, "neighbour", &shell("exec sleep 300"), None).await;
    framework.state(LIMIT, "neighbour", TaskState::Running).await;
    let limit: u64 = 64 << 20;
    // It keeps all that it has read, as there is no end of line.
    framework.launch(LIMIT, "hog", &spec("cpus:1;mem:64MiB", &["tail", "/dev/zero"]), None).await;
    let status = framework.end_of(LIMIT, "hog").await;
    assert_eq!((status.state, status.reason), (TaskState::Failed, Reason::OutOfMemory), "{status:?}");
    let peak = status.memory_peak_bytes.expect("the peak");
    assert!(peak > limit / 2 && peak <= limit, "{status:?}");
    assert!(status.message.contains("64MiB"), "the limit in {status:?}");
    let show = json(cluster.run(LIMIT, &["-o", "json", "task", "show", "hog"]).await);
    assert_eq!((&show["reason"], &show["memory_peak_bytes"]), (&"oom".into(), &peak.into()), "{show}");
    assert_eq!(framework.status("neighbour").map(|status| status.state), Some(TaskState::Running));
    assert_eq!(audit::contained(&cluster.agents[0].dir).len(), 2, "the neighbour and its init");
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_fork_bomb_stays_inside_its_limit() {
    let Some(language) = language("a_fork_bomb_stays_inside_its_limit") else { return };
    let _machine = beside_others().await;
    let (cluster, mut framework) = cluster().await;
    // Besides its init, which is not the task's own doing.
    let most = 60;
    let bomb = TaskSpec {
        pids_max: most,
        kill_grace_ms: 200,
        ..(*spec("cpus:0.5;mem:512MiB", &[language.program, language.flag, language.bomb])).clone()
    };
    framework.launch(LIMIT, "bomb", &Arc::new(bomb), None).await;
    framework.state(LIMIT, "bomb", TaskState::Running).await;
    let dir = cluster.agents[0].dir.clone();
    let mut worst = 0;
    until_true("the limit is reached", LIMIT, || {
        worst = worst.max(audit::contained(&dir).len());
        worst > most as usize
    })
    .await;
    for _ in 0..200 {
        worst = worst.max(audit::contained(&dir).len());
    }
    assert_eq!(worst, most as usize + 1);
    framework.handle.kill(&TaskId::new("bomb").expect("a name"), None).await.expect("killed");
    let status = framework.end_of(LIMIT, "bomb").await;
    assert_eq!(status.state, TaskState::Killed, "{status:?}");
    assert!(audit::contained(&dir).is_empty(), "all of it is gone when that is told");
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// A process of ours that keeps one core busy, outside of any container.
struct Burner(Child);

impl Burner {
    fn start() -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]).stdin(Stdio::null());
        Self(command.spawn().expect("a shell"))
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn half_a_cpu_is_half_a_cpu_on_a_busy_machine() {
    if !is_root("half_a_cpu_is_half_a_cpu_on_a_busy_machine") {
        return;
    }
    let _machine = alone().await;
    let (cluster, mut framework) = cluster().await;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let _busy: Vec<Burner> = (0..cores).map(|_| Burner::start()).collect();
    let loops = spec("cpus:0.5;mem:32MiB", &["sh", "-c", "while :; do :; done"]);
    framework.launch(LIMIT, "half", &loops, None).await;
    framework.state(LIMIT, "half", TaskState::Running).await;
    let dir = cluster.agents[0].dir.clone();
    let used =
        || audit::contained(&dir).into_iter().filter_map(audit::stat).map(|stat| stat.used).sum::<u64>();

    // Somebody else's work may take a window from the task; nothing may give it more than its half.
    let mut seen = Vec::new();
    until("two seconds in which it used half a cpu", 2 * LIMIT, async || {
        let (begun, before) = (Instant::now(), used());
        until_true("two seconds", LIMIT, || begun.elapsed() >= Duration::from_secs(2)).await;
        let share = (used() - before) as f64 / TICKS / begun.elapsed().as_secs_f64();
        seen.push(share);
        assert!(share <= 0.55, "{seen:?}");
        (share >= 0.45).then_some(())
    })
    .await;
    println!("shares seen: {seen:?}");
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn who_ignores_sigterm_is_gone_after_its_grace_with_all_its_children() {
    if !is_root("who_ignores_sigterm_is_gone_after_its_grace_with_all_its_children") {
        return;
    }
    let _machine = beside_others().await;
    let (cluster, mut framework) = cluster().await;
    let script =
        "trap '' TERM; setsid sh -c 'sleep 300 & sleep 300' & (sleep 300 &); while :; do sleep 0.1; done";
    framework.launch(LIMIT, "stubborn", &shell(script), None).await;
    framework.state(LIMIT, "stubborn", TaskState::Running).await;
    let dir = cluster.agents[0].dir.clone();
    until_true("its children run", LIMIT, || audit::contained(&dir).len() >= 6).await;
    let (begun, grace) = (Instant::now(), Duration::from_millis(1_500));
    framework.handle.kill(&TaskId::new("stubborn").expect("a name"), Some(grace)).await.expect("killed");
    let status = framework.end_of(LIMIT, "stubborn").await;
    let took = begun.elapsed();
    assert_eq!((status.state, status.signal), (TaskState::Killed, Some(9)), "{status:?}");
    assert!(took >= grace && took < grace + Duration::from_secs(3), "after {took:?}");
    assert!(audit::contained(&dir).is_empty());

    // Who heeds it has the grace to itself, and says how it ended.
    let heeds = shell("trap 'exit 3' TERM; while :; do sleep 0.05; done");
    framework.launch(LIMIT, "polite", &heeds, None).await;
    framework.state(LIMIT, "polite", TaskState::Running).await;
    // Its shell waits for a child only when the trap is set.
    until_true("its trap is set", LIMIT, || audit::contained(&dir).len() >= 3).await;
    let begun = Instant::now();
    let long = Some(Duration::from_secs(60));
    framework.handle.kill(&TaskId::new("polite").expect("a name"), long).await.expect("killed");
    let status = framework.end_of(LIMIT, "polite").await;
    assert_eq!((status.state, status.exit_code), (TaskState::Killed, Some(3)), "{status:?}");
    assert!(begun.elapsed() < LIMIT);
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// What a task sees, one fact per line.
const INSIDE: &str = r#"
echo "uid $(id -u) gid $(id -g) groups $(id -G)"
grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs):' /proc/$$/status | tr '\t' ' '
echo "run [$(ls -A /run)] home [$(ls -A /home)] root [$(ls -A /root 2>&1)]"
echo "init $(cat /proc/1/comm) ppid $PPID pid $$"
echo "processes $(cat /proc/[0-9]*/comm | sort -u | tr '\n' ' ')"
echo "cgroup $(cut -d: -f3 /proc/self/cgroup | sort -u | tr '\n' ' ')"
for f in /etc/proffer-x /usr/proffer-x /proffer-x /sys/fs/proffer-x; do touch $f 2>/dev/null && echo "wrote $f"; done
echo x > sandbox-file && echo x > /tmp/own-file && echo "sandbox writable $(pwd)"
echo "env $(env | cut -d= -f1 | sort | tr '\n' ' ')"
true
"#;

#[tokio::test]
async fn what_a_task_sees_from_inside() {
    if !is_root("what_a_task_sees_from_inside") {
        return;
    }
    let _machine = beside_others().await;
    let cluster = linux().await;
    // Enough to start two dozen programs soon, on a slow machine too.
    let args = ["run", "--cpus", "1", "--", "sh", "-c", INSIDE];
    // What the surroundings give to the agent must not reach a task.
    let told = good(cluster.run(LIMIT, &args).await);
    let fact = |name: &str| {
        let line = told.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{name} in {told}")).to_owned()
    };
    let nobody = nix::unistd::User::from_name("nobody").expect("users").expect("nobody");
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    assert_eq!(fact("uid "), format!("uid {uid} gid {gid} groups {gid}"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(fact(set), format!("{set}: 0000000000000000"));
    }
    assert_eq!(fact("NoNewPrivs"), "NoNewPrivs: 1");
    assert_eq!(fact("run"), "run [] home [] root []");
    assert!(fact("init").ends_with(" ppid 1 pid 2"), "{told}");
    let processes = fact("processes");
    for program in ["proffer-master", "proffer-agent", "systemd", "cargo"] {
        assert!(!processes.split(' ').any(|name| name == program), "{processes}");
    }
    assert!(processes.split(' ').count() <= 8, "{processes}");
    assert_eq!(fact("cgroup"), "cgroup / ", "a cgroup namespace of its own");
    assert!(!told.contains("wrote"), "{told}");
    assert!(fact("sandbox writable").starts_with("sandbox writable /"), "{told}");
    let env = "env HOME LANG PATH PROFFER_AGENT_ID PROFFER_CPUS PROFFER_FRAMEWORK_ID PROFFER_MEMORY_BYTES \
               PROFFER_ROLE PROFFER_SANDBOX PROFFER_TASK_ID PWD TMPDIR ";
    assert_eq!(fact("env"), env);
    assert!(!Path::new("/tmp/own-file").exists());
    // A shell keeps descriptors of its own; `ls` has one, of the directory that it lists.
    assert_eq!(good(cluster.run(LIMIT, &["run", "--", "ls", "/proc/self/fd"]).await), "0\n1\n2\n3\n");
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}

#[tokio::test]
async fn a_task_cannot_connect_to_a_socket_of_the_host() {
    let Some(language) = language("a_task_cannot_connect_to_a_socket_of_the_host") else { return };
    let _machine = beside_others().await;
    let Language { program, flag, connect, .. } = language;
    let path = format!("/run/proffer-{}.sock", std::process::id());
    let _listener = UnixListener::bind(&path).expect("a socket");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("its mode");
    let outside = Command::new(program).args([*flag, *connect, path.as_str()]).output();
    let cluster = linux().await;
    let inside = cluster.run(LIMIT, &["run", "--", program, flag, connect, &path]).await;
    std::fs::remove_file(&path).expect("our own socket");
    assert_eq!(outside.expect("it runs").stdout, b"connected\n", "from outside it works");
    assert!(inside.code != Some(0) && !inside.stdout.contains("connected"), "{inside:?}");
    assert!(inside.stderr.contains("No such file"), "for the right reason: {inside:?}");
    ran_on();
    assert_eq!(cluster.end(), Vec::<String>::new());
}
