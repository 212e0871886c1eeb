//! Processes that join a running container: checks, and programs that the agent asks for.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::{Gid, Uid, fchown, pipe2};
use proffer_launcher::{self as launcher, Call, Event, Joined, Sandbox, WindowSize, heap};
use proffer_wire::supervisor::v1::to_agent::Message;
use proffer_wire::supervisor::v1::{
    self as pb, CheckKind, ExecExited, ExecFailed, ExecSignal, ExecStarted, KillCause,
};

use crate::launch::{Launch, State};
use crate::poller::Token;
use crate::probe::{self, Probe};
use crate::request::{Cgroups, Kept};
use crate::supervisor::Supervisor;

/// How long until the end of something that was traced is asked for again.
const REAP_AGAIN: Duration = Duration::from_millis(100);
/// The most programs that run at once for agents.
const EXECS_MAX: usize = 256;

/// A process that joined a container.
pub(crate) struct Inside {
    launch: u64,
    joined: Joined,
    what: What,
}

enum What {
    Try(Try),
    Exec(Exec),
}

/// A try of a check.
struct Try {
    kind: CheckKind,
    /// What it says of a failure.
    answer: Option<File>,
    /// Why it could not be made.
    failed: Option<String>,
    /// Its time was over, and its result is no longer waited for.
    late: bool,
}

/// A program for an agent.
struct Exec {
    id: u64,
    connection: u64,
    /// The ends that go to the agent when it has started.
    ends: Vec<OwnedFd>,
    failed: bool,
}

/// What is run inside, as far as it is not the container's own.
struct Program<'a> {
    argv: &'a [String],
    env: &'a [String],
    working_directory: &'a str,
    stdio: [BorrowedFd<'a>; 3],
    terminal: Option<WindowSize>,
    cgroups: Option<&'a Cgroups>,
    call: Option<Call<'a>>,
}

impl Supervisor {
    fn join(&self, launch: &Launch, kept: &Kept, program: &Program<'_>) -> Result<Joined, String> {
        let container = launch.container.as_ref().ok_or("it does not run")?;
        let (isolation, _, _) = self.isolation(kept.linux);
        heap::keep_out_of_children();
        let request = launcher::Request {
            env: program.env,
            uid: kept.uid,
            gid: kept.gid,
            working_directory: program.working_directory,
            limits: &kept.limits,
            sandbox: kept.sandbox.as_ref().map(|dir| Sandbox::Dir(dir.as_fd())),
            user_namespace: kept.user_namespace.as_ref(),
            seccomp: &kept.seccomp,
            cgroup_dir: program.cgroups.and_then(Cgroups::dir),
            cgroup_procs: &program.cgroups.map(Cgroups::procs).unwrap_or_default(),
            terminal: program.terminal,
            bounding_set_dropped: self.template.is_some(),
            ..launcher::Request::new(program.argv, isolation, program.stdio)
        };
        launcher::join(container, &request, program.call).map_err(|error| error.to_string())
    }

    fn watch_inside(&mut self, launch: u64, joined: Joined, what: What) -> Result<u64, String> {
        let serial = self.next_serial();
        let watched = self.poller.add_edge(joined.status_fd(), Token::InsideStatus(serial));
        let watched = watched.and_then(|()| self.poller.add_once(joined.pidfd(), Token::InsideExit(serial)));
        if let Err(error) = watched {
            // Dropping it kills it; until it is reaped its container cannot end.
            self.reap_at.get_or_insert_with(|| Instant::now() + REAP_AGAIN);
            return Err(format!("epoll_ctl: {error}"));
        }
        self.inside.insert(serial, Inside { launch, joined, what });
        Ok(serial)
    }

    pub(crate) fn on_inside_status(&mut self, serial: u64) {
        while let Some(inside) = self.inside.get_mut(&serial) {
            let Some(event) = inside.joined.event() else { return };
            match (event, &mut inside.what) {
                (Event::Closed, _) => return,
                (Event::Terminal, What::Exec(exec)) => exec.ends.extend(inside.joined.take_terminal()),
                (Event::Started, What::Exec(exec)) => {
                    let (launch_id, exec_id, connection) = (inside.launch, exec.id, exec.connection);
                    let ends = std::mem::take(&mut exec.ends);
                    let started = Message::ExecStarted(ExecStarted { launch_id, exec_id });
                    self.send_with(connection, started, ends);
                }
                (
                    Event::SetupFailed { step, errno } | Event::ExecFailed { step, errno },
                    What::Exec(exec),
                ) => {
                    exec.failed = true;
                    let (connection, exec_id) = (exec.connection, exec.id);
                    let text = format!("the program could not be executed: {}", why(step, errno));
                    let failed = exec_failed(inside.launch, exec_id, step.name(), errno, text);
                    self.send(connection, failed);
                }
                (Event::SetupFailed { step, errno } | Event::ExecFailed { step, errno }, What::Try(one)) => {
                    one.failed = Some(why(step, errno));
                }
                _ => {}
            }
        }
    }

    pub(crate) fn on_inside_exit(&mut self, serial: u64) {
        // What it said before it ended is still to be read.
        self.on_inside_status(serial);
        let Some(inside) = self.inside.get(&serial) else { return };
        let status = match inside.joined.reap() {
            Ok(Some(status)) => status,
            // Something in the container traces it.
            Ok(None) => return self.reap_later(serial),
            Err(error) => {
                self.records.log(&format!("launch {}: waitpid inside: {error}", inside.launch));
                libc::SIGKILL
            }
        };
        let Some(Inside { launch, what, .. }) = self.inside.remove(&serial) else { return };
        match what {
            What::Try(one) if one.late => {}
            What::Try(one) => {
                let kind = one.kind;
                self.on_tried(launch, kind, one.result(status), Instant::now());
            }
            What::Exec(exec) if exec.failed => {}
            What::Exec(Exec { id: exec_id, connection, .. }) => {
                let exited = ExecExited { launch_id: launch, exec_id, wait_status: status };
                self.send(connection, Message::ExecExited(exited));
            }
        }
    }

    /// What ends while it is traced is the tracer's first: its end is asked for again.
    pub(crate) fn reap_later(&mut self, serial: u64) {
        self.unreaped.push(serial);
        self.reap_at.get_or_insert_with(|| Instant::now() + REAP_AGAIN);
    }

    /// Asks again for the ends of what was traced.
    pub(crate) fn reap_again(&mut self, now: Instant) {
        if self.reap_at.is_some_and(|at| at <= now) {
            self.reap_at = None;
            for serial in std::mem::take(&mut self.unreaped) {
                self.on_inside_exit(serial);
                self.on_init_exit(serial);
            }
            if launcher::reap_dropped() {
                self.reap_at.get_or_insert(now + REAP_AGAIN);
            }
        }
    }

    /// What runs inside a container that has ended is ended too; where there is a pid namespace it already is.
    pub(crate) fn end_inside_of(&mut self, launch: u64) {
        for inside in self.inside.values().filter(|inside| inside.launch == launch) {
            inside.joined.kill();
        }
    }

    /// Nobody hears any more of what was run for a connection.
    pub(crate) fn end_execs_of(&mut self, serial: u64) {
        for inside in self.inside.values() {
            if matches!(&inside.what, What::Exec(exec) if exec.connection == serial) {
                inside.joined.kill();
            }
        }
    }
}

/// Checks.
impl Supervisor {
    /// Begins the tries that are due, and gives up those whose time is over.
    pub(crate) fn look_at_checks(&mut self, id: u64, now: Instant) {
        let count = self.launches.get(&id).map_or(0, |launch| launch.watches.len());
        for index in 0..count {
            let Some(watch) = self.launches.get(&id).and_then(|launch| launch.watches.get(index)) else {
                return;
            };
            let (kind, timeout) = (watch.kind(), watch.timeout);
            if let Some((serial, until)) = watch.running
                && until <= now
            {
                if let Some(inside) = self.inside.get_mut(&serial) {
                    inside.joined.kill();
                    if let What::Try(one) = &mut inside.what {
                        one.late = true;
                    }
                }
                let text = format!("no answer within {} ms", timeout.as_millis());
                self.on_tried(id, kind, Err(text), now);
            } else if watch.next.is_some_and(|next| next <= now) {
                match self.begin_try(id, index) {
                    Ok(serial) => {
                        let launch = self.launches.get_mut(&id);
                        if let Some(watch) = launch.and_then(|launch| launch.watches.get_mut(index)) {
                            watch.begun(serial, now);
                        }
                    }
                    Err(why) => self.on_tried(id, kind, Err(why), now),
                }
            }
        }
    }

    fn begin_try(&mut self, id: u64, index: usize) -> Result<u64, String> {
        let launch = self.launches.get(&id).ok_or("it is gone")?;
        let (watch, kept) = launch.watches.get(index).zip(launch.kept.as_deref()).ok_or("it is gone")?;
        let kind = watch.kind();
        let still = |inside: &Inside| {
            inside.launch == id && matches!(&inside.what, What::Try(one) if one.kind == kind)
        };
        if self.inside.values().any(still) {
            return Err("an earlier try was killed and does not end".into());
        }
        let env = kept.env.unpack();
        let (_, null_in, null_out) = self.isolation(kept.linux);
        let mut program = Program {
            argv: &[],
            env: &env,
            working_directory: &kept.working_directory,
            stdio: [null_in, null_out, null_out],
            terminal: None,
            cgroups: kept.cgroups.as_ref(),
            call: None,
        };
        let mut answer = None;
        let joined = match &watch.probe {
            Probe::Command(argv) => {
                program.argv = argv;
                self.join(launch, kept, &program)
            }
            Probe::Network(input) => {
                let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
                    .map_err(|error| format!("make a pipe: {error}"))?;
                answer = Some(File::from(read));
                program.stdio[1] = write.as_fd();
                program.call = Some(Call { function: probe::try_it, input });
                self.join(launch, kept, &program)
            }
        };
        let joined = joined.map_err(|error| format!("the check could not be started: {error}"))?;
        self.watch_inside(id, joined, What::Try(Try { kind, answer, failed: None, late: false }))
    }

    fn on_tried(&mut self, id: u64, kind: CheckKind, result: Result<(), String>, now: Instant) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let Some(watch) = launch.watches.iter_mut().find(|watch| watch.kind() == kind) else { return };
        let outcome = watch.over(result, now);
        let grace_ms = launch.kept.as_ref().map_or(0, |kept| kept.kill_grace_ms);
        self.rearm(id);
        let why = outcome.tell.as_ref().map(|told| {
            format!("its health check failed {} times in a row: {}", told.consecutive_failures, told.message)
        });
        if let Some(told) = outcome.tell {
            self.tell(Message::CheckResult(told));
        }
        if outcome.kill {
            self.kill(id, grace_ms, KillCause::Health, &why.unwrap_or_default());
        }
    }
}

/// The longest sentence that is taken from a check.
const ANSWER_MAX: usize = 256;

impl Try {
    fn result(self, status: i32) -> Result<(), String> {
        if let Some(why) = self.failed {
            return Err(why);
        }
        if status == 0 {
            return Ok(());
        }
        let mut answer = vec![0; ANSWER_MAX];
        // Its writer is gone: what there is, is all.
        let length = self.answer.and_then(|mut pipe| pipe.read(&mut answer).ok()).unwrap_or(0);
        Err(match String::from_utf8_lossy(&answer[..length]).into_owned() {
            text if !text.is_empty() => text,
            _ if libc::WIFSIGNALED(status) => format!("signal {}", libc::WTERMSIG(status)),
            _ => format!("exit code {}", libc::WEXITSTATUS(status)),
        })
    }
}

/// Programs for agents.
impl Supervisor {
    pub(crate) fn on_exec(&mut self, serial: u64, exec: pb::Exec, descriptors: Vec<OwnedFd>) {
        let (launch_id, exec_id) = (exec.launch_id, exec.exec_id);
        if let Err(why) = self.begin_exec(serial, exec, descriptors) {
            self.send(serial, exec_failed(launch_id, exec_id, "", 0, why));
        }
    }

    fn begin_exec(&mut self, serial: u64, exec: pb::Exec, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let cgroups = Cgroups::of(&exec.descriptors, descriptors)?;
        let launch = self.launches.get(&exec.launch_id).ok_or("there is no such launch")?;
        let running = matches!(launch.state, State::Running);
        let kept = launch.kept.as_deref().filter(|_| running).ok_or("it does not run")?;
        if exec.argv.is_empty() {
            return Err("argv is empty".into());
        }
        let execs = self.inside.values().filter(|inside| matches!(inside.what, What::Exec(_))).count();
        if execs >= EXECS_MAX {
            return Err(format!("{EXECS_MAX} programs run at once already"));
        }
        let failed = |error: nix::Error| format!("make a pipe: {error}");
        let mut pipes = Vec::new();
        let mut ends = Vec::new();
        if !exec.tty {
            let (uid, gid) = kept.host_ids();
            for index in 0..3 {
                let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
                let (own, childs) = if index == 0 { (write, read) } else { (read, write) };
                // So that it can open its own /dev/stdin. Only root may give it away, and must.
                let _ = fchown(&childs, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                ends.push(own);
                pipes.push(childs);
            }
        }
        let (_, null_in, null_out) = self.isolation(kept.linux);
        let size =
            |value: u32, default| if value == 0 { default } else { value.try_into().unwrap_or(u16::MAX) };
        let own = if exec.env.is_empty() { kept.env.unpack() } else { Vec::new() };
        let program = Program {
            argv: &exec.argv,
            env: if exec.env.is_empty() { &own } else { &exec.env },
            working_directory: match exec.working_directory.as_str() {
                "" => &kept.working_directory,
                path => path,
            },
            stdio: [
                pipes.first().map_or(null_in, AsFd::as_fd),
                pipes.get(1).map_or(null_out, AsFd::as_fd),
                pipes.get(2).map_or(null_out, AsFd::as_fd),
            ],
            terminal: exec
                .tty
                .then(|| WindowSize { rows: size(exec.rows, 24), columns: size(exec.cols, 80) }),
            cgroups: Some(&cgroups),
            call: None,
        };
        let joined = self.join(launch, kept, &program)?;
        let what = What::Exec(Exec { id: exec.exec_id, connection: serial, ends, failed: false });
        self.watch_inside(exec.launch_id, joined, what).map(drop)
    }

    pub(crate) fn on_exec_signal(&mut self, serial: u64, signal: &ExecSignal) {
        let found = self.inside.values().find(|inside| {
            matches!(&inside.what, What::Exec(exec) if exec.id == signal.exec_id && exec.connection == serial)
        });
        let Some(inside) = found.filter(|inside| inside.launch == signal.launch_id) else { return };
        match signal.signal {
            libc::SIGKILL => {
                inside.joined.kill();
            }
            other => {
                inside.joined.signal_group(other);
            }
        }
    }
}

fn why(step: launcher::Step, errno: i32) -> String {
    format!("{}: {}", step.name(), std::io::Error::from_raw_os_error(errno))
}

fn exec_failed(launch_id: u64, exec_id: u64, step: &str, errno: i32, message: String) -> Message {
    Message::ExecFailed(ExecFailed { launch_id, exec_id, step: step.to_owned(), errno, message })
}
