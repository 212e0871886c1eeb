//! What becomes of containers.

use std::time::{Duration, Instant};

use proffer_launcher::Event;
use proffer_wire::supervisor::v1::launch_info::End;
use proffer_wire::supervisor::v1::{KillCause, KillSent, ToAgent};

use crate::launch::{Said, State, message};
use crate::records::unix_ms;
use crate::supervisor::Supervisor;

/// How long a program runs before the pump is told of what it writes: of one that ends sooner, and most that do say
/// nothing, it is told once or not at all.
const HAND_OVER_AFTER: Duration = Duration::from_millis(5);
/// How long the report of an end waits for the end of the logs: something may hold a pipe open.
const LOGS_WAIT: Duration = Duration::from_secs(5);
/// And how long in all while nothing does and only the pump is behind, on a slow disk. Shorter than an agent waits
/// for the end of a container that it has told to end.
const LOGS_WAIT_MAX: Duration = Duration::from_secs(15);

impl Supervisor {
    pub(crate) fn on_status(&mut self, serial: u64) {
        let Some(&id) = self.serials.get(&serial) else { return };
        while let Some(launch) = self.launches.get_mut(&id).filter(|launch| launch.said.is_none()) {
            let Some(container) = &launch.container else { return };
            match container.event() {
                None => return,
                Some(Event::Ready) => self.on_ready_member(id),
                Some(Event::Terminal) => {
                    let terminal = container.take_terminal();
                    self.on_terminal(id, terminal);
                }
                Some(Event::Started) => self.on_started(id),
                Some(Event::SetupFailed { step, errno }) => {
                    launch.said = Some(Said::SetupFailed(step, errno))
                }
                Some(Event::ExecFailed { step, errno }) => launch.said = Some(Said::ExecFailed(step, errno)),
                Some(Event::Exited(status)) => launch.said = Some(Said::Exited(status)),
                // Its pidfd tells the rest.
                Some(Event::Closed) => return,
            }
        }
    }

    fn on_started(&mut self, id: u64) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let now = Instant::now();
        launch.state = State::Running;
        launch.held = false;
        launch.started_unix_ms = unix_ms();
        launch.hand_over_at = Some(now + HAND_OVER_AFTER);
        launch.complete_at = launch.complete_after.and_then(|after| now.checked_add(after));
        launch.watches.iter_mut().for_each(|watch| watch.start(now));
        let launched = launch.launched();
        self.tell(launched);
        self.rearm(id);
    }

    /// Its output is read by the pump; what is written to it comes from the agent, which may have a duplicate.
    fn on_terminal(&mut self, id: u64, terminal: Option<std::os::fd::OwnedFd>) {
        let (Some(launch), Some(terminal)) = (self.launches.get_mut(&id), terminal) else { return };
        // Whoever writes to a program that does not read must not wait.
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        let _ = nix::fcntl::fcntl(&terminal, flags);
        if let (Some(to), Ok(source)) = (launch.terminal_log.take(), terminal.try_clone()) {
            self.logs.add(launch.serial, id, to, [Some(source), None]);
            self.logs.hand_over(launch.serial, &self.poller);
        }
        launch.terminal = Some(terminal);
    }

    pub(crate) fn on_init_exit(&mut self, serial: u64) {
        // What init said before it ended is still to be read.
        self.on_status(serial);
        let Some(&id) = self.serials.get(&serial) else { return };
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let Some(container) = &launch.container else { return };
        let status = match container.reap() {
            Ok(Some(status)) => status,
            // Something traces it.
            Ok(None) => return self.reap_later(serial),
            Err(error) => {
                // Nobody else reaps here; without a status it is told as killed.
                self.records.log(&format!("launch {id}: waitpid: {error}"));
                libc::SIGKILL
            }
        };
        self.serials.remove(&serial);
        let end = launch.end(status, unix_ms());
        self.end(id, end);
    }

    /// Records the end at once, and reports it when the logs are at theirs.
    pub(crate) fn end(&mut self, id: u64, mut end: End) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        self.logs.on_end(launch.serial, &self.poller);
        tell_of_logs(&mut end, launch.dropped, !self.logs.pending(launch.serial));
        self.record_end(id, end.clone());
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let now = Instant::now();
        // What only a running one needs.
        (launch.container, launch.terminal) = (None, None);
        if let Some(kept) = launch.kept.take().filter(|kept| kept.leaves_namespace_clean) {
            kept.user_namespace.into_iter().for_each(|namespace| self.users.give_back(namespace));
        }
        (launch.kill_at, launch.complete_at, launch.hand_over_at) = (None, None, None);
        launch.watches = Vec::new();
        if launch.listener.take().is_some() {
            self.records.remove_socket(id);
        }
        launch.state = State::Ended { end: end.clone(), ended: now, logs_until: Some(now + LOGS_WAIT) };
        self.end_inside_of(id);
        self.report_if_due(id, now);
        self.on_member_end(id, &end);
    }

    /// Reports an end of which the logs are at theirs, or have been waited for.
    pub(crate) fn report_if_due(&mut self, id: u64, now: Instant) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let serial = launch.serial;
        let pending = self.logs.pending(serial);
        let State::Ended { end, ended, logs_until } = &mut launch.state else { return };
        let Some(until) = *logs_until else { return };
        if pending && now < until {
            return self.rearm(id);
        }
        let last = *ended + LOGS_WAIT_MAX;
        if pending && now < last && self.logs.only_the_pump_is_late(serial) {
            *logs_until = Some(last);
            return self.rearm(id);
        }
        *logs_until = None;
        let news = tell_of_logs(end, launch.dropped, !pending);
        let end = end.clone();
        if news {
            self.record_end(id, end.clone());
        }
        self.rearm(id);
        self.tell(message(end));
    }

    fn record_end(&mut self, id: u64, end: End) {
        if let Err(error) = self.records.write_end(ToAgent { message: Some(message(end)) }) {
            self.records.log(&format!("launch {id}: its exit record cannot be written: {error}"));
        }
    }

    /// What is due of a launch.
    pub(crate) fn look_at(&mut self, id: u64, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let Some(launch) = self.launches.get_mut(&id) else { return };
        if due(launch.kill_at) {
            launch.kill_at = None;
            launch.kill.sent = KillSent::Kill;
            if let Some(container) = &launch.container {
                container.kill();
            }
        }
        if due(launch.hand_over_at) {
            launch.hand_over_at = None;
            self.logs.hand_over(launch.serial, &self.poller);
        }
        if due(launch.complete_at) {
            launch.complete_at = None;
            self.kill(id, 0, KillCause::MaxCompletion, "it ran for as long as it may");
        }
        self.look_at_checks(id, now);
        let Some(launch) = self.launches.get(&id) else { return };
        if matches!(launch.state, State::Ended { logs_until, .. } if due(logs_until)) {
            self.report_if_due(id, now);
        }
    }
}

/// Has an end say what became of the logs; whether that is news.
fn tell_of_logs(end: &mut End, dropped: [u64; 2], complete: bool) -> bool {
    let End::Exited(exited) = end else { return false };
    let said = (exited.logs_complete, [exited.stdout_dropped_bytes, exited.stderr_dropped_bytes]);
    exited.logs_complete = complete;
    [exited.stdout_dropped_bytes, exited.stderr_dropped_bytes] = dropped;
    said != (complete, dropped)
}
