//! Containers on a simulated host, and the supervisors that start, watch and end them. They outlive the agent's process
//! but not the host.

use std::collections::BTreeSet;

use proffer_containerizer::{Cause, CheckKind, End, Event, KillCause, KillSent, Known};
use proffer_types::event::{Group, LaunchKind, LaunchOrder};
use proffer_types::{FrameworkId, LaunchId, Reason};

use super::world::{Happening, World};

/// A container that a supervisor knows of.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    framework: FrameworkId,
    /// The group that it starts and ends with.
    group: Option<Group>,
    executor: bool,
    /// Whether a check looks at it.
    checked: bool,
    pub(crate) state: State,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// Delivered to its supervisor, not begun.
    Delivered,
    Running,
    /// Ended in one way or the other, and not forgotten.
    Over(Event),
}

impl World {
    /// Containers are given to their supervisor, one or a group.
    pub(crate) fn deliver_containers(&mut self, n: usize, orders: &[LaunchOrder]) {
        let first = orders[0].launch;
        let containers = &mut self.agents[n].containers;
        let known = containers.contains_key(&first);
        for order in orders {
            let container = Container {
                framework: order.framework,
                group: order.group,
                executor: matches!(order.kind, LaunchKind::Executor(_)),
                checked: order.spec.health.is_some(),
                state: State::Delivered,
            };
            containers.insert(order.launch, container);
        }
        if !known {
            let delay = 1 + self.rng.below(30);
            let boot = self.agents[n].boot;
            self.at(delay, Happening::ContainerStarts { agent: n, boot, launch: first });
        }
    }

    /// Tells what became of everything an earlier life of the agent left, and ends what nobody knows.
    pub(crate) fn recover_containers(&mut self, n: usize, known: &[Known]) {
        let names: BTreeSet<LaunchId> = known.iter().map(|k| k.launch).collect();
        let unknown = self.agents[n].containers.keys().filter(|launch| !names.contains(launch));
        for launch in unknown.copied().collect::<Vec<_>>() {
            self.agents[n].containers.remove(&launch);
            self.end_program(n, launch);
        }
        let mut events = Vec::new();
        for known in known.iter().filter(|k| !k.ended) {
            let launch = known.launch;
            match self.agents[n].containers.get(&launch).map(|container| &container.state) {
                None => events.push(Event::NotStarted { launch }),
                Some(State::Delivered) => {}
                Some(State::Running) => events.push(started(launch)),
                Some(State::Over(event)) => events.push(event.clone()),
            }
        }
        events.push(Event::Recovered);
        for event in events {
            self.tell_agent(n, event);
        }
    }

    fn tell_agent(&mut self, n: usize, event: Event) {
        let life = self.agents[n].life;
        if self.agents[n].live.is_some() {
            self.at(1, Happening::ContainerEvent { agent: n, life, event });
        }
    }

    pub(crate) fn forget_container(&mut self, n: usize, launch: LaunchId) {
        if let Some(container) = self.agents[n].containers.remove(&launch)
            && container.state == State::Running
        {
            self.end_program(n, launch);
            self.tell_agent(n, ended(launch, None, KillCause::Order));
        }
        self.tell_agent(n, Event::Gone { launch });
    }

    /// The members of a container's group, itself among them.
    fn together(&self, n: usize, launch: LaunchId) -> Vec<LaunchId> {
        let group = self.agents[n].containers.get(&launch).and_then(|container| container.group);
        group.map_or_else(|| vec![launch], |group| group.launches().collect())
    }

    fn is(&self, n: usize, launch: LaunchId, state: &State) -> bool {
        self.agents[n].containers.get(&launch).is_some_and(|container| container.state == *state)
    }

    /// A container is over.
    fn put_over(&mut self, n: usize, launch: LaunchId, event: Event, code: Option<i32>) {
        let Some(container) = self.agents[n].containers.get_mut(&launch) else { return };
        container.state = State::Over(event.clone());
        self.end_program(n, launch);
        self.checker.on_ended(launch, code);
        self.tell_agent(n, event);
    }

    pub(crate) fn container_starts(&mut self, n: usize, boot: u64, launch: LaunchId) {
        let fails = self.rng.percent(3);
        if self.agents[n].boot != boot || !self.is(n, launch, &State::Delivered) {
            return;
        }
        let members = self.together(n, launch);
        if fails {
            for member in members {
                let reason = if member == launch { Reason::LaunchFailed } else { Reason::GroupNotStarted };
                self.put_over(n, member, launch_failed(member, reason), None);
            }
            return;
        }
        for launch in members {
            let Some(container) = self.agents[n].containers.get_mut(&launch) else { continue };
            container.state = State::Running;
            let (executor, checked) = (container.executor, container.checked);
            self.checker.on_started(launch);
            self.tell_agent(n, started(launch));
            if executor {
                self.begin_program(n, launch);
                continue;
            }
            let runs_for = if self.rng.percent(30) { self.rng.below(50) } else { self.rng.below(8_000) };
            self.at(runs_for, Happening::ContainerEnds { agent: n, boot, launch, killed: false });
            if checked {
                self.at(20, Happening::CheckSays { agent: n, boot, launch });
            }
        }
    }

    /// A check that changes its mind all the time.
    pub(crate) fn check_says(&mut self, n: usize, boot: u64, launch: LaunchId) {
        let (ok, ready) = (self.rng.percent(50), self.rng.percent(20));
        let delay = 20 + self.rng.below(200);
        if self.agents[n].boot != boot || !self.is(n, launch, &State::Running) {
            return;
        }
        let kind = if ready { CheckKind::Readiness } else { CheckKind::Health };
        let consecutive_failures = u32::from(!ok);
        self.checker.counts.checks += 1;
        self.tell_agent(n, Event::Checked { launch, kind, ok, consecutive_failures, message: String::new() });
        self.at(delay, Happening::CheckSays { agent: n, boot, launch });
    }

    pub(crate) fn container_ends(&mut self, n: usize, boot: u64, launch: LaunchId, killed: bool) {
        let code = if self.rng.percent(20) { 7 } else { 0 };
        if self.agents[n].boot != boot {
            return;
        }
        let Some(container) = self.agents[n].containers.get(&launch) else { return };
        match container.state {
            State::Over(_) => {}
            State::Delivered if !killed => {}
            State::Delivered => {
                for member in self.together(n, launch) {
                    let own = member == launch;
                    let reason = if own { Reason::KilledDuringLaunch } else { Reason::GroupNotStarted };
                    if self.is(n, member, &State::Delivered) {
                        self.put_over(n, member, launch_failed(member, reason), None);
                    }
                }
            }
            State::Running => {
                let code = (!killed).then_some(code);
                let cause = if killed { KillCause::Order } else { KillCause::None };
                self.put_over(n, launch, ended(launch, code, cause), code);
                if code == Some(0) {
                    return;
                }
                for member in self.together(n, launch) {
                    if self.is(n, member, &State::Running) {
                        self.put_over(n, member, ended(member, None, KillCause::Group), None);
                    }
                }
            }
        }
    }

    /// A supervisor is lost, and the containers of its framework with it.
    pub(crate) fn supervisor_dies(&mut self, n: usize) {
        let pick = self.rng.next();
        let containers = &self.agents[n].containers;
        let frameworks: BTreeSet<FrameworkId> = containers.values().map(|c| c.framework).collect();
        let Some(victim) = frameworks.iter().nth(pick as usize % frameworks.len().max(1)).copied() else {
            return;
        };
        let of_victim = containers.iter().filter(|(_, container)| container.framework == victim);
        let live = of_victim.filter(|(_, container)| !matches!(container.state, State::Over(_)));
        let live: Vec<(LaunchId, bool)> = live.map(|(l, c)| (*l, c.state == State::Running)).collect();
        for (launch, ran) in live {
            let mut event = ended(launch, None, KillCause::None);
            if let Event::Ended { end, .. } = &mut event {
                end.cause = if ran { Cause::SupervisorLost } else { Cause::Interrupted };
            }
            self.put_over(n, launch, event, None);
        }
    }
}

fn started(launch: LaunchId) -> Event {
    Event::Started { launch, isolation: "linux", started_unix_ms: 1 }
}

fn launch_failed(launch: LaunchId, reason: Reason) -> Event {
    Event::LaunchFailed { launch, reason, message: String::new(), exit_code: None }
}

fn ended(launch: LaunchId, code: Option<i32>, kill_cause: KillCause) -> Event {
    let killed = matches!(kill_cause, KillCause::Order | KillCause::Group);
    let end = End {
        exit_code: code,
        signal: killed.then_some(15),
        kill_sent: if killed { KillSent::Term } else { KillSent::None },
        kill_cause,
        started_unix_ms: 1,
        finished_unix_ms: 2,
        ..End::default()
    };
    Event::Ended { launch, end }
}
