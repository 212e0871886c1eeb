//! How launches end: told, lost or never begun; emptied, reported, removed.

use std::time::{Duration, Instant};

use proffer_types::{LaunchId, Reason};
use proffer_wire::supervisor::v1::to_agent::Message as Told;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{Forget, Kill};

use super::engine::{ESCALATE_AFTER, Engine};
use super::launch::{Phase, Terminal};
use super::records::Record;
use super::supervisor::Stage;
use crate::{Cause, Event, InstanceId};

/// How long a supervisor may be silent about a container that we emptied past it, before its end is reported without.
/// Longer than it waits for the end of the logs.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long SIGKILL may take before it is told that it does.
const STUCK_AFTER: Duration = Duration::from_secs(10);

impl Engine {
    /// What is to be done about a launch with time.
    pub(super) fn advance(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get(&id) else { return };
        match launch.phase {
            Phase::Queued | Phase::Asked | Phase::Sent | Phase::Running => {
                self.go_on_resizing(id);
                self.press(id);
            }
            Phase::Emptying(_) => self.go_on_emptying(id),
            Phase::Removing { .. } => self.go_on_removing(id),
            Phase::Ended => {}
        }
    }

    /// The grace is over and the supervisor has not said that the launch has ended.
    fn press(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let Some(kill_at) = launch.kill_at else { return };
        let now = Instant::now();
        if now < kill_at + ESCALATE_AFTER {
            // Armed for a longer grace before: the nearer one is armed too.
            return;
        }
        let given_up = self.supervisors.get(&launch.instance).is_some_and(|it| it.silence.is_given_up());
        let population = self.confinement.population(id);
        if population != Some(0) {
            tracing::warn!(launch.id = id.0, "its supervisor did not end a container in time");
            // Processes that were not seen prove no beginning.
            launch.killed_past_supervisor |= population.is_some();
            self.confinement.kill(id);
        } else if given_up || now >= kill_at + ESCALATE_AFTER + SILENCE_MAX {
            let instance = launch.instance;
            if let Record::Ended(told @ (Told::Exited(_) | Told::LaunchFailed(_))) =
                self.dirs.record(instance, id)
            {
                return self.on_end(instance, told);
            }
            if !self.may_still_begin(id) {
                return self.empty(id, Terminal::Killed);
            }
            self.tell_unanswered(id);
        }
        self.arm(now + Duration::from_millis(500), id);
    }

    /// A launch has ended; its end is reported when nothing of it is left.
    pub(super) fn empty(&mut self, id: LaunchId, terminal: Terminal) {
        let Some(launch) = self.launches.get_mut(&id).filter(|launch| launch.is_open()) else { return };
        launch.spec = None;
        launch.empty(terminal);
        self.go_on_emptying(id);
    }

    fn go_on_emptying(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let past = launch.killed_past_supervisor;
        let Phase::Emptying(emptying) = &mut launch.phase else { return };
        let told = matches!(emptying.terminal, Terminal::Exited(_) | Terminal::Failed(_));
        let processes = match told && !past && self.confinement.trusts_supervisor() {
            true => 0,
            false => self.confinement.processes(id),
        };
        if processes == 0 {
            return self.report(id);
        }
        self.confinement.kill(id);
        emptying.tries += 1;
        let again = Instant::now() + pause(emptying.tries);
        let late = emptying.since.elapsed() >= STUCK_AFTER;
        let stuck = late && !emptying.stuck_told;
        emptying.stuck_told |= late;
        self.arm(again, id);
        if stuck {
            self.emit(Event::StuckKill { launch: id, processes });
        }
    }

    fn report(&mut self, id: LaunchId) {
        let counters = self.confinement.counters(id);
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let Phase::Emptying(emptying) = &launch.phase else { return };
        let event = launch.event(id, &emptying.terminal, counters);
        self.end(id, event);
    }

    /// Nothing of a launch runs or will run: says so.
    fn end(&mut self, id: LaunchId, event: Event) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        launch.phase = Phase::Ended;
        launch.spec = None;
        let (forget, orphan) = (launch.forget, launch.orphan);
        self.shared.writes_no_more(id);
        if !orphan {
            self.emit(event);
        }
        if forget {
            self.remove(id);
        }
    }

    /// A launch of which nothing was begun cannot be.
    pub(super) fn fail(&mut self, id: LaunchId, reason: Reason, message: String) {
        self.end(id, Event::LaunchFailed { launch: id, reason, message, exit_code: None });
        self.fail_group(id);
    }

    /// A member of a group will not be started: then none is. What its supervisor holds back by now is told to it.
    fn fail_group(&mut self, id: LaunchId) {
        let Some(group) = self.launches.get(&id).and_then(|launch| launch.group) else { return };
        let others = self.launches.iter().filter(|(other, launch)| {
            **other != id
                && launch.group == Some(group)
                && matches!(launch.phase, Phase::Queued | Phase::Sent)
                && !launch.group_failed
        });
        for other in others.map(|(&other, _)| other).collect::<Vec<_>>() {
            let Some(launch) = self.launches.get_mut(&other) else { continue };
            launch.group_failed = true;
            match launch.phase {
                Phase::Queued => {
                    let message = "another of its group could not be started".to_owned();
                    self.end(
                        other,
                        Event::LaunchFailed {
                            launch: other,
                            reason: Reason::GroupNotStarted,
                            message,
                            exit_code: None,
                        },
                    );
                }
                _ => {
                    let instance = launch.instance;
                    launch.kill_at = Some(Instant::now());
                    self.arm(Instant::now() + ESCALATE_AFTER, other);
                    let kill = Kill { launch_id: other.0, grace_ms: 0 };
                    self.order(instance, Order::Kill(kill));
                }
            }
        }
    }

    /// A launch was not begun, and its instance will not begin it.
    pub(super) fn not_started(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get(&id) else { return };
        if launch.kill_at.is_some() || launch.forget {
            return self.fail(id, Reason::KilledDuringLaunch, "killed before it was started".to_owned());
        }
        let instance = launch.instance;
        // What was made for it is made again.
        self.confinement.remove(id);
        self.launches.remove(&id);
        self.shared.writes_no_more(id);
        self.release(instance, id);
        self.emit(Event::NotStarted { launch: id });
    }

    /// Decides by what a dead instance, or one that does not know the launch, left of it.
    pub(super) fn judge(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get(&id) else { return };
        let (instance, started) = (launch.instance, launch.told_started || launch.was_started);
        match self.dirs.record(instance, id) {
            Record::Ended(told) => self.on_end(instance, told),
            // It has run, whatever became of its record.
            Record::Begun | Record::None if started => self.empty(id, Terminal::Lost(Cause::SupervisorLost)),
            Record::Begun => self.empty(id, Terminal::Lost(Cause::Interrupted)),
            // The records were removed by someone else.
            Record::None if self.confinement.processes(id) > 0 => {
                self.empty(id, Terminal::Lost(Cause::Interrupted));
            }
            Record::None => self.not_started(id),
        }
    }

    /// A supervisor's process is gone. What it recorded tells of its launches; what runs of them is killed before
    /// anything is reported.
    pub(super) fn on_dead(&mut self, instance: InstanceId) {
        while let Some(supervisor) = self.supervisors.get_mut(&instance) {
            match supervisor.recv(&mut self.receiver) {
                Ok(Some((told, descriptors))) => self.on_told(instance, told, descriptors),
                Ok(None) | Err(_) => break,
            }
        }
        let Some(supervisor) = self.supervisors.get_mut(&instance) else { return };
        let expected = supervisor.draining && supervisor.launches.is_empty();
        if !expected {
            tracing::warn!(%instance, launches = supervisor.launches.len(), "a supervisor is gone");
        }
        supervisor.stage = Stage::Dead;
        supervisor.process = None;
        supervisor.out.clear();
        let launches: Vec<_> = supervisor.launches.iter().copied().collect();
        let never_up = (!supervisor.seen_up).then(|| supervisor.complaint.clone().unwrap_or_default());
        self.shared.current().retain(|_, current| *current != instance);
        self.lost_answers(instance);
        for id in launches {
            let Some(launch) = self.launches.get(&id).filter(|launch| launch.is_open()) else { continue };
            match &never_up {
                // One that dies before it is up would die again, and again.
                Some(why) if matches!(launch.phase, Phase::Queued) => {
                    self.fail(id, Reason::LaunchFailed, format!("its supervisor did not start: {why}"));
                }
                _ => self.judge(id),
            }
        }
        self.heard(instance);
        self.bury(instance);
    }

    /// A supervisor cannot be reached, or does not answer, but lives: what it has recorded can be read all the same.
    pub(super) fn look_at_exits(&mut self, instance: InstanceId) {
        let Some(supervisor) = self.supervisors.get(&instance) else { return };
        if supervisor.connection().is_some() && !supervisor.silence.is_given_up() {
            return;
        }
        let open = supervisor.launches.iter().filter(|id| self.launches.get(id).is_some_and(|l| l.is_open()));
        for id in open.copied().collect::<Vec<_>>() {
            if let Record::Ended(told @ (Told::Exited(_) | Told::LaunchFailed(_))) =
                self.dirs.record(instance, id)
            {
                self.on_end(instance, told);
            }
        }
    }

    /// Begins to remove what an ended launch left.
    pub(super) fn remove(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        launch.phase = Phase::Removing { tries: 0 };
        let instance = launch.instance;
        self.order(instance, Order::Forget(Forget { launch_id: id.0 }));
        self.go_on_removing(id);
    }

    fn go_on_removing(&mut self, id: LaunchId) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let Phase::Removing { tries } = &mut launch.phase else { return };
        if !self.confinement.remove(id) {
            *tries += 1;
            let again = Instant::now() + pause(*tries);
            if self.confinement.processes(id) > 0 {
                // On v1 init moves itself: one whose supervisor has died may have come late.
                self.confinement.kill(id);
            }
            return self.arm(again, id);
        }
        let (instance, orphan) = (launch.instance, launch.orphan);
        let marked = match launch.own && launch.group.is_none() {
            true => self.dirs.mark(id),
            false => self.dirs.mark_forgotten(id),
        };
        if let Err(error) = marked {
            tracing::warn!(
                launch.id = id.0,
                error = super::engine::chain(&error),
                "a sandbox will not be collected"
            );
        }
        self.launches.remove(&id);
        self.release(instance, id);
        if let Some(recovering) = self.recovering.as_mut().filter(|_| orphan) {
            recovering.removed.insert(id);
        }
        self.emit(if orphan { Event::OrphanRemoved { launch: id } } else { Event::Gone { launch: id } });
        self.check_recovered();
    }

    /// A launch is no longer its instance's concern.
    fn release(&mut self, instance: InstanceId, id: LaunchId) {
        match self.supervisors.get_mut(&instance) {
            Some(supervisor) => {
                supervisor.launches.remove(&id);
                if supervisor.is_dead() {
                    self.dirs.remove_record(instance, id);
                    self.bury(instance);
                } else if supervisor.launches.is_empty() {
                    supervisor.idle_since = Some(Instant::now());
                }
            }
            None => self.dirs.remove_record(instance, id),
        }
    }

    /// Removes a dead instance of which no launch is kept.
    pub(super) fn bury(&mut self, instance: InstanceId) {
        if self.supervisors.get(&instance).is_some_and(|s| s.is_dead() && s.launches.is_empty()) {
            let framework = self.supervisors.remove(&instance).map(|supervisor| supervisor.framework);
            self.dirs.remove_instance(instance);
            let has = |framework| self.supervisors.values().any(|other| other.framework == framework);
            if let Some(framework) = framework.filter(|framework| !has(*framework)) {
                self.confinement.remove_idle(framework);
            }
        }
    }
}

/// From 1 ms, doubling to 256 ms.
fn pause(tries: u32) -> Duration {
    Duration::from_millis(1 << tries.min(8))
}
