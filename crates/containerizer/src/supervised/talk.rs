//! What is said to supervisors, and what they say.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use proffer_launcher::seqpacket;
use proffer_types::{LaunchId, Reason};
use proffer_wire::supervisor::v1::launch_info::End as ListedEnd;
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{
    self as pb, Descriptor, Forget, Kill, LaunchInfo, LaunchState, LogSettings, ToSupervisor,
};
use prost::Message as _;

use super::engine::{Engine, chain};
use super::launch::{Launch, Phase, Terminal};
use super::supervisor::{Out, Stage, Supervisor};
use super::{asked, user};
use crate::{Cause, CheckKind, ContainerSpec, Event, InstanceId, Isolation, Probe, Supervision, Users};

/// Why a launch cannot be sent.
struct Unfit {
    reason: Reason,
    message: String,
}

fn reason(error: &crate::Error) -> Reason {
    match error {
        crate::Error::Refused { .. } => Reason::ContainerRefused,
        _ => Reason::LaunchFailed,
    }
}

impl Engine {
    /// Sends an order, if the supervisor is up; if it is not, what it needs to hear is worked out when it is.
    pub(super) fn order(&mut self, instance: InstanceId, order: Order) {
        if let Some(supervisor) = self.supervisors.get_mut(&instance).filter(|supervisor| supervisor.is_up())
        {
            supervisor.out.push_back(Out::order(order));
            self.flush(instance);
        }
    }

    /// Sends an order with what goes along.
    pub(super) fn order_with(&mut self, instance: InstanceId, order: Order, descriptors: Vec<Arc<OwnedFd>>) {
        if let Some(supervisor) = self.supervisors.get_mut(&instance).filter(|supervisor| supervisor.is_up())
        {
            let body = ToSupervisor { message: Some(order) }.encode_to_vec();
            supervisor.out.push_back(Out::Ready { body, descriptors, launch: None });
            self.flush(instance);
        }
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self, instance: InstanceId) {
        loop {
            let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
            if supervisor.blocked {
                return;
            }
            let Stage::Up { connection } = &supervisor.stage else { return };
            let Some(out) = supervisor.out.pop_front() else { return };
            let (body, descriptors, launch) = match out {
                Out::Launch(id) => {
                    if !self.launches.get(&id).is_some_and(|launch| matches!(launch.phase, Phase::Queued)) {
                        continue;
                    }
                    match self.prepare(id) {
                        Ok(ready) => {
                            if let Some(supervisor) = self.supervisors.get_mut(&instance) {
                                supervisor.out.push_front(ready);
                            }
                        }
                        Err(unfit) => {
                            self.confinement.remove(id);
                            self.fail(id, unfit.reason, unfit.message);
                        }
                    }
                    continue;
                }
                Out::Ready { body, descriptors, launch } => (body, descriptors, launch),
            };
            // It may have been killed while it waited for room.
            if launch
                .is_some_and(|id| !self.launches.get(&id).is_some_and(|l| matches!(l.phase, Phase::Queued)))
            {
                continue;
            }
            let borrowed: Vec<BorrowedFd<'_>> =
                descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
            match seqpacket::send(connection.as_fd(), &body, &borrowed) {
                Ok(()) => {
                    if let Some(launch) = launch.and_then(|id| self.launches.get_mut(&id)) {
                        launch.phase = Phase::Sent;
                        supervisor.silence.sent();
                    }
                }
                Err(seqpacket::Error::WouldBlock) => {
                    supervisor.out.push_front(Out::Ready { body, descriptors, launch });
                    supervisor.blocked = true;
                    return;
                }
                Err(error @ seqpacket::Error::TooLarge { .. }) => {
                    if let Some(id) = launch {
                        self.confinement.remove(id);
                        self.fail(id, Reason::LaunchFailed, format!("its command and environment: {error}"));
                    }
                }
                Err(error) => {
                    tracing::info!(%instance, error = chain(&error), "the connection to a supervisor ended");
                    supervisor.disconnected();
                    return self.lost_answers(instance);
                }
            }
        }
    }

    /// Makes everything a launch needs and writes its message. Done again after a failed delivery, it finds things
    /// made.
    fn prepare(&mut self, id: LaunchId) -> Result<Out, Unfit> {
        let failed = |error: crate::Error| Unfit { reason: reason(&error), message: chain(&error) };
        let Some(spec) = self.launches.get(&id).and_then(|launch| launch.spec.as_deref()) else {
            return Err(Unfit {
                reason: Reason::LaunchFailed,
                message: "there is no specification".to_owned(),
            });
        };
        let users = &self.options.users;
        let asked = asked::check(spec, &self.options, &self.dirs.sandbox(id)).map_err(failed)?;
        let group = self.launches.get(&id).and_then(|launch| launch.group);
        // Those of a group share files, and so the ids of their owners.
        let others = || self.launches.iter().filter(|(_, other)| other.group == group);
        let kin = group.map_or_else(Vec::new, |_| others().map(|(other, _)| *other).collect());
        let ids = self.confinement.ids(spec, &kin, users).map_err(failed)?;
        let account = self.accounts.find(&spec.user, ids.is_some(), &self.options.task_users);
        let account =
            account.map_err(|refused| Unfit { reason: Reason::UserRefused, message: refused.to_string() })?;
        let mut descriptors = self.confinement.make(spec, ids).map_err(failed)?;
        let (sandbox, logs) = self.dirs.make_sandbox(id, account.uid, account.gid).map_err(failed)?;
        descriptors.push((Descriptor::SandboxDir, Arc::new(sandbox)));
        descriptors.push((Descriptor::LogDir, Arc::new(logs)));
        if let Some(group) = group {
            let shared = self.dirs.join_group(group.first, id).map_err(failed)?;
            // A plain process reaches it by its path.
            if self.options.isolation == Isolation::Linux {
                descriptors.push((Descriptor::MountDir, Arc::new(shared)));
            }
        }
        let message = pb::Launch {
            limits: asked.limits,
            seccomp: asked.seccomp,
            user_namespace: ids.map(|first| pb::IdRange { first, count: Users::RANGE }),
            working_directory: asked.working_directory,
            ..self.message(spec, account, &descriptors)
        };
        let body = ToSupervisor { message: Some(Order::Launch(message)) }.encode_to_vec();
        let descriptors = descriptors.into_iter().map(|(_, fd)| fd).collect();
        Ok(Out::Ready { body, descriptors, launch: Some(id) })
    }

    fn message(
        &self,
        spec: &ContainerSpec,
        user: user::Account,
        fds: &[(Descriptor, Arc<OwnedFd>)],
    ) -> pb::Launch {
        let isolation = match self.options.isolation {
            Isolation::Linux => pb::Isolation::Linux,
            Isolation::Process => pb::Isolation::Process,
        };
        let group = self.launches.get(&spec.launch).and_then(|launch| launch.group);
        let Supervision { max_completion_ms, kill_grace_ms, executor, terminal, .. } = spec.supervision;
        let size = terminal.unwrap_or_default();
        pb::Launch {
            launch_id: spec.launch.0,
            argv: spec.argv.clone(),
            env: spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            uid: user.uid,
            gid: user.gid,
            isolation: isolation.into(),
            hostname: spec.container.hostname.clone(),
            logs: Some(LogSettings {
                file_bytes: spec.logs.file_bytes,
                files: spec.logs.files,
                bytes_per_second: match spec.logs.bytes_per_second {
                    0 => self.options.log_bytes_per_second,
                    own => own,
                },
            }),
            descriptors: fds.iter().map(|(what, _)| (*what).into()).collect(),
            mounts: mounts(fds),
            checks: checks(&spec.supervision),
            max_completion_ms,
            kill_grace_ms,
            group: group.map(|group| pb::Group { first: group.first.0, size: group.size }),
            executor,
            tty: terminal.is_some(),
            rows: size.rows.into(),
            cols: size.cols.into(),
            ..pb::Launch::default()
        }
    }

    pub(super) fn on_told(&mut self, instance: InstanceId, told: Told, descriptors: Vec<OwnedFd>) {
        match told {
            Told::Welcome(welcome) => self.on_welcome(instance, &welcome),
            Told::Launches(part) => {
                let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
                if let Some(all) = supervisor.listed(part.launches, part.more) {
                    self.on_listed(instance, all);
                }
            }
            Told::Launched(launched) => {
                self.on_launched(LaunchId(launched.launch_id), launched.started_unix_ms)
            }
            Told::LaunchFailed(_) | Told::Exited(_) => self.on_end(instance, told),
            Told::Refused(refused) => self.on_refused(instance, refused),
            // An order crossed an end, or a connection's: there is nothing to order any more.
            Told::Unknown(_) | Told::Draining(_) => {}
            Told::CheckResult(result) => self.on_check_result(result),
            Told::ExecStarted(_)
            | Told::ExecFailed(_)
            | Told::ExecExited(_)
            | Told::Terminal(_)
            | Told::Listener(_) => self.on_answer(instance, told, descriptors),
        }
    }

    fn on_welcome(&mut self, instance: InstanceId, welcome: &pb::Welcome) {
        let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
        if welcome.instance != instance.to_string() {
            tracing::error!(%instance, other = welcome.instance, "another supervisor listens on this one's socket");
            supervisor.disconnected();
            return self.lost_answers(instance);
        }
        supervisor.build.clone_from(&welcome.build);
        // While there is no program none is newer.
        supervisor.outdated =
            proffer_launcher::build_id(&self.options.executor).is_ok_and(|build| build != welcome.build);
        if supervisor.list().is_err() {
            supervisor.disconnected();
        }
    }

    /// Everything that the supervisor knows, and from here on what we know too. What was unread on an older
    /// connection has been discarded: a launch that is not listed was not begun and will not be.
    fn on_listed(&mut self, instance: InstanceId, listed: Vec<LaunchInfo>) {
        let mut listed: BTreeMap<_, _> =
            listed.into_iter().map(|info| (LaunchId(info.launch_id), info)).collect();
        let ours = self.supervisors.get(&instance).map(|s| s.launches.iter().copied().collect::<Vec<_>>());
        let outdated = self.supervisors.get(&instance).is_some_and(|supervisor| supervisor.outdated);
        if outdated {
            self.retire(instance);
        }
        for id in ours.unwrap_or_default() {
            self.on_listed_launch(instance, id, listed.remove(&id));
        }
        for (id, info) in listed {
            self.on_stranger(instance, id, info);
        }
        if let Some(supervisor) = self.supervisors.get_mut(&instance) {
            supervisor.idle_since = supervisor.launches.is_empty().then(Instant::now);
        }
        self.flush(instance);
        self.heard(instance);
    }

    fn on_listed_launch(&mut self, instance: InstanceId, id: LaunchId, info: Option<LaunchInfo>) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let (open, forget) = (launch.is_open(), launch.forget);
        match (&launch.phase, info) {
            (_, Some(info)) if open => match info.end {
                Some(ListedEnd::Exited(exited)) => self.on_end(instance, Told::Exited(exited)),
                Some(ListedEnd::LaunchFailed(failed)) => self.on_end(instance, Told::LaunchFailed(failed)),
                None => {
                    if info.state() == LaunchState::Running {
                        self.on_launched(id, info.started_unix_ms);
                        info.checks.into_iter().for_each(|result| self.on_check_result(result));
                    } else {
                        launch.phase = Phase::Sent;
                        self.supervisors.get_mut(&instance).into_iter().for_each(|it| it.silence.sent());
                    }
                    self.repeat_kill(instance, id);
                }
            },
            (Phase::Removing { .. }, Some(_)) if forget => self.push_forget(instance, id),
            (Phase::Queued | Phase::Sent, None) if launch.spec.is_some() => {
                let wanted = launch.kill_at.is_none() && !forget;
                launch.phase = Phase::Queued;
                match self.supervisors.get_mut(&instance) {
                    _ if !wanted => self.not_started(id),
                    Some(supervisor) if supervisor.draining => self.not_started(id),
                    Some(supervisor) => supervisor.out.push_back(Out::Launch(id)),
                    None => {}
                }
            }
            (Phase::Queued | Phase::Asked | Phase::Sent, None) => self.judge(id),
            (Phase::Running, None) => self.empty(id, Terminal::Lost(Cause::SupervisorLost)),
            _ => {}
        }
    }

    /// A launch that the supervisor knows and we do not.
    fn on_stranger(&mut self, instance: InstanceId, id: LaunchId, info: LaunchInfo) {
        let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
        if let Some(launch) = self.launches.get_mut(&id) {
            // Found by its cgroup before its supervisor was heard.
            launch.instance = instance;
            supervisor.launches.insert(id);
            if matches!(launch.phase, Phase::Removing { .. }) {
                self.push_forget(instance, id);
            }
            return;
        }
        if info.state() == LaunchState::Ended {
            self.confinement.remove(id);
            return self.push_forget(instance, id);
        }
        if self.recovering.as_ref().is_some_and(|recovering| recovering.removed.contains(&id)) {
            // It is gone, and its supervisor is about to see that.
            return;
        }
        tracing::warn!(launch.id = id.0, %instance, "a container that nobody has on record is ended");
        supervisor.launches.insert(id);
        let mut orphan = Launch::orphan(instance, Phase::Running);
        orphan.kill_at = Some(Instant::now());
        self.launches.insert(id, orphan);
        self.arm(Instant::now() + super::engine::ESCALATE_AFTER, id);
        self.repeat_kill(instance, id);
    }

    fn repeat_kill(&mut self, instance: InstanceId, id: LaunchId) {
        let grace = self.launches.get(&id).and_then(|launch| launch.grace_left(Instant::now()));
        if let (Some(grace), Some(supervisor)) = (grace, self.supervisors.get_mut(&instance)) {
            let grace_ms = grace.as_millis().try_into().unwrap_or(u64::MAX);
            supervisor.out.push_back(Out::order(Order::Kill(Kill { launch_id: id.0, grace_ms })));
        }
    }

    pub(super) fn push_forget(&mut self, instance: InstanceId, id: LaunchId) {
        if let Some(supervisor) = self.supervisors.get_mut(&instance) {
            supervisor.out.push_back(Out::order(Order::Forget(Forget { launch_id: id.0 })));
        }
    }

    fn on_launched(&mut self, id: LaunchId, started_unix_ms: u64) {
        let Some(launch) = self.launches.get_mut(&id).filter(|launch| launch.is_open()) else { return };
        launch.phase = Phase::Running;
        launch.spec = None;
        launch.started_unix_ms = started_unix_ms;
        if !launch.told_started && !launch.orphan {
            launch.told_started = true;
            let isolation = self.options.isolation.name();
            self.emit(Event::Started { launch: id, isolation, started_unix_ms });
        }
    }

    fn on_check_result(&mut self, result: pb::CheckResult) {
        let launch = LaunchId(result.launch_id);
        let kind = match result.kind() {
            pb::CheckKind::Health => CheckKind::Health,
            pb::CheckKind::Readiness => CheckKind::Readiness,
            pb::CheckKind::Unspecified => return,
        };
        let runs = |known: &Launch| matches!(known.phase, Phase::Running) && !known.orphan;
        if self.launches.get(&launch).is_some_and(runs) {
            let pb::CheckResult { ok, consecutive_failures, message, .. } = result;
            self.emit(Event::Checked { launch, kind, ok, consecutive_failures, message });
        }
    }

    /// A launch has ended, by its supervisor's word or its record.
    pub(super) fn on_end(&mut self, instance: InstanceId, told: Told) {
        let (id, terminal) = match told {
            Told::Exited(exited) => (LaunchId(exited.launch_id), Terminal::Exited(exited)),
            Told::LaunchFailed(failed) => (LaunchId(failed.launch_id), Terminal::Failed(failed)),
            _ => return,
        };
        match self.launches.get(&id).map(|launch| &launch.phase) {
            // We let go of it before its supervisor knew its end, and so could not.
            None | Some(Phase::Removing { .. }) => {
                self.order(instance, Order::Forget(Forget { launch_id: id.0 }));
            }
            Some(_) => self.empty(id, terminal),
        }
    }

    fn on_refused(&mut self, instance: InstanceId, refused: pb::Refused) {
        let id = LaunchId(refused.launch_id);
        tracing::warn!(launch.id = id.0, %instance, reason = refused.reason, "a supervisor refused");
        let Some(launch) = self.launches.get(&id).filter(|launch| matches!(launch.phase, Phase::Sent)) else {
            return;
        };
        let killed = launch.kill_at.is_some();
        let draining =
            self.supervisors.get(&instance).is_some_and(|supervisor: &Supervisor| supervisor.draining);
        self.confinement.remove(id);
        if draining {
            self.not_started(id);
        } else {
            let reason = if killed { Reason::KilledDuringLaunch } else { Reason::LaunchFailed };
            self.fail(id, reason, refused.reason);
        }
    }
}

/// Where the directories appear that are sent to be mounted: there is but one kind.
fn mounts(fds: &[(Descriptor, Arc<OwnedFd>)]) -> Vec<pb::Mount> {
    let dirs = fds.iter().filter(|(what, _)| *what == Descriptor::MountDir);
    dirs.map(|_| pb::Mount { target: super::GROUP_INSIDE.to_owned(), read_only: false }).collect()
}

fn checks(supervision: &Supervision) -> Vec<pb::Check> {
    let check = |kind: pb::CheckKind, check: &crate::Check| pb::Check {
        kind: kind.into(),
        probe: Some(probe(&check.probe)),
        delay_ms: check.delay_ms,
        interval_ms: check.interval_ms,
        timeout_ms: check.timeout_ms,
        ..pb::Check::default()
    };
    let health = supervision.health.as_ref().map(|health| pb::Check {
        grace_ms: health.grace_ms,
        failures: health.failures,
        ..check(pb::CheckKind::Health, &health.check)
    });
    let readiness = supervision.readiness.as_ref().map(|look| check(pb::CheckKind::Readiness, look));
    health.into_iter().chain(readiness).collect()
}

fn probe(probe: &Probe) -> pb::check::Probe {
    match probe.clone() {
        Probe::Command(argv) => pb::check::Probe::Command(pb::check::Command { argv }),
        Probe::Http { port, path } => pb::check::Probe::Http(pb::check::Http { port: port.into(), path }),
        Probe::Tcp { port } => pb::check::Probe::Tcp(pb::check::Tcp { port: port.into() }),
        Probe::Grpc { port, service } => {
            pb::check::Probe::Grpc(pb::check::Grpc { port: port.into(), service })
        }
    }
}
