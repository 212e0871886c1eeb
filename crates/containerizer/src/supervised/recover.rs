//! Finding again what an earlier life of the agent left.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use proffer_types::LaunchId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::confine::Confinement;
use super::engine::Engine;
use super::launch::{Launch, Phase, Terminal};
use super::supervisor::{Stage, Supervisor, pin};
use crate::{Cause, Event, InstanceId, Known};

/// An instance that is not known.
const NO_INSTANCE: InstanceId = InstanceId(0);

/// A recovery that is not complete.
#[derive(Debug, Default)]
pub(super) struct Recovering {
    /// The instances that have not answered yet.
    waiting: BTreeSet<InstanceId>,
    /// Until when they may.
    until: Option<Instant>,
    /// Containers that were ended before their supervisor could say that it has them.
    pub(super) removed: BTreeSet<LaunchId>,
}

impl Engine {
    pub(super) fn on_recover(&mut self, known: Vec<Known>) {
        for known in &known {
            self.launches.entry(known.launch).or_insert_with(|| Launch::of_known(known));
        }
        let mut alive = BTreeSet::new();
        let mut pids = BTreeSet::new();
        for instance in self.dirs.instances() {
            let launches = known.iter().filter(|k| k.instance == instance).map(|k| k.launch).collect();
            let identity = self.dirs.living(instance);
            let supervisor = match identity.and_then(|identity| Some((identity, pin(identity)?))) {
                Some((identity, process)) => {
                    alive.insert(instance);
                    pids.insert(identity.pid);
                    // After an upgrade the old program keeps what it has, and new launches go to the new one.
                    if runs_program(identity.pid, &self.options.executor) {
                        self.shared.current().entry(identity.framework).or_insert(instance);
                    }
                    Supervisor { launches, ..Supervisor::living(instance, identity.framework, process) }
                }
                None => {
                    let dead = Supervisor::new(instance, Default::default(), Stage::Dead);
                    Supervisor { launches, ..dead }
                }
            };
            self.supervisors.insert(instance, Supervisor { seen_up: true, ..supervisor });
        }
        self.recovering = Some(Recovering {
            waiting: alive.clone(),
            // Then the agent goes on without it: one that hangs must not take the node away from everyone else.
            until: Some(Instant::now() + self.options.supervisor_answers),
            removed: BTreeSet::new(),
        });
        self.kill_strange_supervisors(&pids);
        self.find_orphans();
        self.judge_dead(&known);
        for instance in alive {
            let socket = self.dirs.socket(instance);
            if let Some(supervisor) = self.supervisors.get_mut(&instance) {
                supervisor.connect(&socket);
            }
        }
        for launch in self.dirs.unforgotten() {
            if !self.launches.contains_key(&launch)
                && let Err(error) = self.dirs.mark_forgotten(launch)
            {
                tracing::warn!(
                    launch.id = launch.0,
                    error = super::engine::chain(&error),
                    "mark a sandbox as old"
                );
            }
        }
        self.check_recovered();
    }

    /// An instance has answered, or is dead.
    pub(super) fn heard(&mut self, instance: InstanceId) {
        if let Some(recovering) = &mut self.recovering {
            recovering.waiting.remove(&instance);
        }
        self.check_recovered();
    }

    /// When an answer that is waited for is late.
    pub(super) fn answers_due(&self) -> Option<Instant> {
        self.recovering.as_ref().filter(|recovering| !recovering.waiting.is_empty())?.until
    }

    /// Waits no longer for the supervisors that have not answered. Their containers are left alone, and what they
    /// know is taken up when they speak.
    pub(super) fn wait_no_longer(&mut self) {
        let Some(recovering) = &mut self.recovering else { return };
        for instance in std::mem::take(&mut recovering.waiting) {
            tracing::error!(%instance, "a supervisor lives and does not answer: going on without it");
        }
        self.check_recovered();
    }

    pub(super) fn check_recovered(&mut self) {
        let heard = self.recovering.as_ref().is_some_and(|recovering| recovering.waiting.is_empty());
        if heard && !self.launches.values().any(|launch| launch.orphan) {
            self.recovering = None;
            self.emit(Event::Recovered);
        }
    }

    /// What the dead instances left of the launches that the caller knows, and of others.
    fn judge_dead(&mut self, known: &[Known]) {
        for known in known.iter().filter(|known| !known.ended) {
            // An instance without a trace is as dead as one with.
            if self.supervisors.get(&known.instance).is_none_or(Supervisor::is_dead) {
                self.judge(known.launch);
            }
        }
        let dead = self.supervisors.values().filter(|supervisor| supervisor.is_dead());
        for instance in dead.map(|supervisor| supervisor.instance).collect::<Vec<_>>() {
            for id in self.dirs.recorded(instance) {
                self.adopt_orphan(instance, id);
            }
            self.bury(instance);
        }
    }

    /// Groups that belong to nothing known. Those of a living supervisor are emptied as well: it then says so.
    fn find_orphans(&mut self) {
        for id in self.confinement.launches() {
            self.adopt_orphan(NO_INSTANCE, id);
        }
    }

    fn adopt_orphan(&mut self, instance: InstanceId, id: LaunchId) {
        if let Some(launch) = self.launches.get_mut(&id) {
            if launch.orphan && launch.instance == NO_INSTANCE {
                launch.instance = instance;
                self.supervisors.get_mut(&instance).map(|supervisor| supervisor.launches.insert(id));
            }
            return;
        }
        tracing::warn!(launch.id = id.0, "something is left of a launch that nobody has on record");
        if let Some(supervisor) = self.supervisors.get_mut(&instance) {
            supervisor.launches.insert(id);
        }
        self.launches.insert(id, Launch::orphan(instance, Phase::Asked));
        // From the loop, so that everything found is known before the first is gone.
        if let Some(launch) = self.launches.get_mut(&id) {
            launch.empty(Terminal::Lost(Cause::Interrupted));
        }
        self.arm(Instant::now(), id);
    }

    /// A supervisor that was on its way when the agent died may have left no trace but its process.
    fn kill_strange_supervisors(&self, known: &BTreeSet<i32>) {
        let Confinement::Cgroups(tree) = &self.confinement else { return };
        let group = tree.supervisors();
        for raw in group.processes().unwrap_or_default() {
            let Some(process) = Pid::from_raw(raw).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            else {
                continue;
            };
            if !descends_from(raw, known) && group.processes().is_ok_and(|all| all.contains(&raw)) {
                tracing::warn!(pid = raw, "a supervisor that belongs to no instance is ended");
                let _ = pidfd_send_signal(&process, Signal::KILL);
            }
        }
    }
}

/// Whether a process runs the program that `program` is now.
fn runs_program(pid: i32, program: &Path) -> bool {
    let build = |path: &Path| proffer_launcher::build_id(path).ok();
    let now = build(program);
    now.is_some() && now == build(Path::new(&format!("/proc/{pid}/exe")))
}

/// Whether a process is one of `ancestors` or a descendant of one: their log pumps are.
fn descends_from(mut pid: i32, ancestors: &BTreeSet<i32>) -> bool {
    // Deeper than any supervisor's family.
    for _ in 0..16 {
        if ancestors.contains(&pid) {
            return true;
        }
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may hold anything: the fields go on after its last parenthesis, with the state and the parent.
        let parent =
            stat.rsplit(')').next().and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        match parent {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descent_is_followed_upwards() {
        let own = std::process::id() as i32;
        assert!(descends_from(own, &BTreeSet::from([own])));
        assert!(!descends_from(own, &BTreeSet::from([i32::MAX])));
    }
}
