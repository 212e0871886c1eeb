//! What is asked of a supervisor about a running container: programs run inside it, its terminal, its executor's socket.
//! None of it outlives the connection that it was asked on.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use proffer_types::LaunchId;
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{self as pb, ExecSignal, TakeListener, TakeTerminal};

use super::engine::Engine;
use super::launch::Phase;
use crate::{Answer, ExecEvent, ExecId, ExecSink, ExecSpec, InstanceId, NotThere, Stdio};

/// What a supervisor may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    Terminal,
    Listener,
}

/// What waits for words of supervisors.
#[derive(Default)]
pub(super) struct Asked {
    execs: BTreeMap<ExecId, Exec>,
    /// In the order of the questions, which is that of the answers.
    things: BTreeMap<(InstanceId, LaunchId, Thing), VecDeque<Answer<OwnedFd>>>,
}

struct Exec {
    instance: InstanceId,
    launch: LaunchId,
    sink: ExecSink,
}

impl Engine {
    /// The instance that runs a launch, if one can be asked about it now.
    fn asked_of(&self, launch: LaunchId) -> Result<InstanceId, NotThere> {
        let known =
            self.launches.get(&launch).ok_or_else(|| NotThere("it is not on this node".to_owned()))?;
        if !matches!(known.phase, Phase::Running) {
            return Err(NotThere("it does not run".to_owned()));
        }
        match self.supervisors.get(&known.instance) {
            Some(supervisor) if supervisor.is_up() && supervisor.build.is_empty() => {
                Err(NotThere("its supervisor is of an older release, which cannot do that".to_owned()))
            }
            Some(supervisor) if supervisor.is_up() => Ok(known.instance),
            _ => Err(NotThere("its supervisor cannot be reached at the moment".to_owned())),
        }
    }

    pub(super) fn on_exec(&mut self, launch: LaunchId, exec: ExecId, spec: ExecSpec, mut sink: ExecSink) {
        let instance = match self.asked_of(launch) {
            Ok(instance) => instance,
            Err(why) => return sink(ExecEvent::Failed { message: why.to_string(), exit_code: None }),
        };
        let fds = match self.confinement.entry(launch) {
            Ok(fds) => fds,
            Err(error) => {
                let message = format!("its cgroup cannot be entered: {}", super::engine::chain(&error));
                return sink(ExecEvent::Failed { message, exit_code: None });
            }
        };
        let size = spec.terminal.unwrap_or_default();
        let order = Order::Exec(pb::Exec {
            launch_id: launch.0,
            exec_id: exec.0,
            argv: spec.argv,
            env: spec.env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            working_directory: spec.working_directory,
            tty: spec.terminal.is_some(),
            rows: size.rows.into(),
            cols: size.cols.into(),
            descriptors: fds.iter().map(|(what, _)| (*what).into()).collect(),
        });
        self.asked.execs.insert(exec, Exec { instance, launch, sink });
        self.order_with(instance, order, fds.into_iter().map(|(_, fd)| fd).collect());
    }

    pub(super) fn on_exec_signal(&mut self, exec: ExecId, signal: i32) {
        let Some(Exec { instance, launch, .. }) = self.asked.execs.get(&exec) else { return };
        let (instance, launch_id) = (*instance, launch.0);
        self.order(instance, Order::ExecSignal(ExecSignal { launch_id, exec_id: exec.0, signal }));
    }

    pub(super) fn on_ask(&mut self, launch: LaunchId, thing: Thing, answer: Answer<OwnedFd>) {
        match self.asked_of(launch) {
            Err(why) => answer(Err(why)),
            Ok(instance) => {
                self.asked.things.entry((instance, launch, thing)).or_default().push_back(answer);
                let launch_id = launch.0;
                self.order(
                    instance,
                    match thing {
                        Thing::Terminal => Order::TakeTerminal(TakeTerminal { launch_id }),
                        Thing::Listener => Order::TakeListener(TakeListener { launch_id }),
                    },
                );
            }
        }
    }

    /// A supervisor's word about what was asked.
    pub(super) fn on_answer(&mut self, instance: InstanceId, told: Told, descriptors: Vec<OwnedFd>) {
        match told {
            Told::ExecStarted(started) => self.on_exec_started(ExecId(started.exec_id), descriptors),
            Told::ExecFailed(failed) => {
                if let Some(mut exec) = self.asked.execs.remove(&ExecId(failed.exec_id)) {
                    let exit_code = match (failed.step.as_str(), failed.errno) {
                        ("execve", libc::ENOENT) => Some(127),
                        ("execve", _) => Some(126),
                        _ => None,
                    };
                    (exec.sink)(ExecEvent::Failed { message: failed.message, exit_code });
                }
            }
            Told::ExecExited(exited) => {
                if let Some(mut exec) = self.asked.execs.remove(&ExecId(exited.exec_id)) {
                    let status = exited.wait_status;
                    let signalled = libc::WIFSIGNALED(status);
                    (exec.sink)(ExecEvent::Exited {
                        exit_code: (!signalled).then(|| libc::WEXITSTATUS(status)),
                        signal: signalled.then(|| libc::WTERMSIG(status)),
                    });
                }
            }
            Told::Terminal(told) => {
                let given = descriptors.into_iter().next().ok_or(told.reason);
                self.on_thing((instance, LaunchId(told.launch_id), Thing::Terminal), given);
            }
            Told::Listener(told) => {
                let given = descriptors.into_iter().next().ok_or(told.reason);
                self.on_thing((instance, LaunchId(told.launch_id), Thing::Listener), given);
            }
            _ => {}
        }
    }

    fn on_exec_started(&mut self, id: ExecId, descriptors: Vec<OwnedFd>) {
        let Some(exec) = self.asked.execs.get_mut(&id) else { return };
        let mut descriptors = descriptors.into_iter();
        let stdio = match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (Some(stdin), Some(stdout), Some(stderr)) => Stdio::Pipes { stdin, stdout, stderr },
            (Some(terminal), None, None) => Stdio::Terminal(terminal),
            // They did not all fit into this process: with what came dropped, the program sees its end.
            _ => {
                (exec.sink)(ExecEvent::Lost);
                self.on_exec_signal(id, libc::SIGKILL);
                self.asked.execs.remove(&id);
                return;
            }
        };
        (exec.sink)(ExecEvent::Started(stdio));
    }

    fn on_thing(&mut self, asked: (InstanceId, LaunchId, Thing), given: Result<OwnedFd, String>) {
        let Some(waiting) = self.asked.things.get_mut(&asked) else { return };
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.asked.things.remove(&asked);
        }
        if let Some(answer) = next {
            answer(given.map_err(|reason| {
                NotThere(if reason.is_empty() { "no descriptor is free".to_owned() } else { reason })
            }));
        }
    }

    /// A connection ended, and with it everything that was asked on it.
    pub(super) fn lost_answers(&mut self, instance: InstanceId) {
        let execs = self.asked.execs.extract_if(.., |_, exec| exec.instance == instance).collect::<Vec<_>>();
        execs.into_iter().for_each(|(_, mut exec)| (exec.sink)(ExecEvent::Lost));
        let things =
            self.asked.things.extract_if(.., |(asked, _, _), _| *asked == instance).collect::<Vec<_>>();
        for answer in things.into_iter().flat_map(|(_, answers)| answers) {
            answer(Err(NotThere("the connection to its supervisor was lost".to_owned())));
        }
    }
}
