//! What the agent orders.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use proffer_launcher::{self as launcher, heap};
use proffer_wire::supervisor::v1::launch_info::End;
use proffer_wire::supervisor::v1::to_agent::Message;
use proffer_wire::supervisor::v1::{
    FailureKind, Kill, KillCause, KillSent, Launch as Request, LaunchInfo, LaunchState, Launches, Listener,
    Terminal, Unknown,
};
use prost::Message as _;

use crate::checks::Watch;
use crate::launch::{Killed, Launch, State, failure, message};
use crate::poller::Token;
use crate::records::unix_ms;
use crate::request::Checked;
use crate::supervisor::Supervisor;

/// How much goes into one `Launches`, in bytes encoded; each launch takes below 4 KiB.
const LIST_PART_BYTES: usize = 128 * 1024;

/// Why a container was not made.
#[derive(Debug)]
pub(crate) struct Unmade {
    step: &'static str,
    errno: i32,
    object: Option<String>,
}

impl From<launcher::Error> for Unmade {
    fn from(error: launcher::Error) -> Self {
        Unmade { step: error.step.name(), errno: error.errno, object: error.object }
    }
}

impl Unmade {
    pub(crate) fn io(step: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Unmade { step, errno: error.raw_os_error().unwrap_or(libc::EIO), object: None }
    }
}

impl Supervisor {
    pub(crate) fn on_launch(&mut self, serial: u64, request: Request, descriptors: Vec<OwnedFd>) {
        let id = request.launch_id;
        if let Some(known) = self.launches.get(&id) {
            if let Some(answer) = known.answer() {
                self.send(serial, answer);
            }
            return;
        }
        if self.draining {
            return self.refuse(serial, id, "this supervisor is draining".into());
        }
        let checked = Checked::parse(request, descriptors, &mut self.users);
        let checked = match checked.and_then(|checked| self.permit(checked)) {
            Ok(checked) => checked,
            Err(reason) => return self.refuse(serial, id, reason),
        };
        if checked.group.is_some() {
            return self.gather(serial, checked);
        }
        // Before the clone: whoever finds this supervisor dead must know that the launch may have begun.
        if let Err(error) = self.records.write_launches([id]) {
            return self.refuse(serial, id, format!("its record cannot be written: {error}"));
        }
        self.begin(checked, None);
    }

    fn permit(&self, checked: Checked) -> Result<Checked, String> {
        if checked.linux() && self.template.is_none() {
            return Err("this supervisor was not started with --isolation linux".into());
        }
        let own = self.own_uid;
        if own != 0 && checked.kept.uid != own {
            return Err(format!("user {} needs root, this supervisor is user {own}", checked.kept.uid));
        }
        Ok(checked)
    }

    /// Clones a launch whose record is written; a member of a group waits before its program, and shares with the
    /// member `with`, if that has begun. A failure is kept like any other end.
    pub(crate) fn begin(&mut self, mut checked: Checked, with: Option<u64>) {
        let id = checked.id;
        let group = checked.group.map(|group| group.first);
        match self.clone(&mut checked, with) {
            Ok(mut launch) => {
                // What is left of it is a terminal's.
                let terminal_log = checked.log_to.take();
                let max = (checked.max_completion_ms > 0).then_some(checked.max_completion_ms);
                let (kept, watches) = checked.into_kept();
                // Until it starts, a duration from then.
                launch.complete_after = max.map(Duration::from_millis);
                (launch.kept, launch.watches, launch.terminal_log) = (Some(kept), watches, terminal_log);
                (launch.group, launch.held) = (group, group.is_some());
                self.serials.insert(launch.serial, id);
                self.launches.insert(id, Box::new(launch));
            }
            Err(unmade) => {
                let text = match &unmade.object {
                    Some(object) => format!("the container could not be made ({object})"),
                    None => "the container could not be made".into(),
                };
                if checked.executor {
                    self.records.remove_socket(id);
                }
                self.not_made(id, group, unmade.step, unmade.errno, text, Killed::default());
            }
        }
    }

    /// Keeps a launch that was not cloned like any other that ended: the agent hears of it until it forgets it.
    pub(crate) fn not_made(
        &mut self,
        id: u64,
        group: Option<u64>,
        step: &str,
        errno: i32,
        text: String,
        kill: Killed,
    ) {
        let mut failed = failure(id, FailureKind::Setup, step, errno, text);
        failed.finished_unix_ms = unix_ms();
        (failed.kill_sent, failed.kill_cause) = (kill.sent.into(), kill.cause.into());
        let mut launch = Launch::new(id, self.next_serial());
        (launch.group, launch.kill) = (group, kill);
        self.launches.insert(id, Box::new(launch));
        self.end(id, End::LaunchFailed(failed));
    }

    fn clone(&mut self, checked: &mut Checked, with: Option<u64>) -> Result<Launch, Unmade> {
        let id = checked.id;
        let log_to = checked.log_to.take_if(|_| checked.terminal.is_none());
        let checked = &*checked;
        let kept = &*checked.kept;
        let (listener, socket_dir) = match checked.executor {
            true => {
                let user = kept.user_namespace.is_none().then_some((kept.uid, kept.gid));
                let made = self.records.listen(id, user);
                let (listener, dir) = made.map_err(Unmade::io("make the executor's socket"))?;
                (Some(listener), Some(dir))
            }
            false => (None, None),
        };
        let make_pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
        let pipes = match &log_to {
            Some(_) => {
                let made = make_pipe().and_then(|out| Ok([out, make_pipe()?]));
                Some(made.map_err(|error| Unmade::io("make a log pipe")(error.into()))?)
            }
            None => None,
        };
        let ends = pipes.as_ref().map(|pipes| pipes.each_ref().map(|(_, end)| end.as_fd()));
        let (uid, gid) = kept.host_ids();
        for end in ends.iter().flatten() {
            // So that a task can open its own /dev/stdout. Only root may give it away, and must.
            let (uid, gid) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
            let _ = nix::unistd::fchown(end, Some(uid), Some(gid));
        }
        let (isolation, null_in, null_out) = self.isolation(kept.linux);
        heap::keep_out_of_children();
        let container = launcher::spawn(&launcher::Request {
            env: &checked.env,
            uid: kept.uid,
            gid: kept.gid,
            working_directory: &kept.working_directory,
            hostname: &checked.hostname,
            limits: &kept.limits,
            sandbox: checked.sandbox(),
            mounts: &checked.mounts(socket_dir.as_ref().filter(|_| kept.linux).map(AsFd::as_fd)),
            user_namespace: kept.user_namespace.as_ref(),
            seccomp: &kept.seccomp,
            share: with.and_then(|with| self.launches.get(&with)?.container.as_ref()),
            cgroup_dir: checked.cgroups().dir(),
            cgroup_procs: &checked.cgroups().procs(),
            terminal: checked.terminal,
            hold: checked.group.is_some(),
            bounding_set_dropped: self.template.is_some(),
            ..launcher::Request::new(
                &checked.argv,
                isolation,
                [null_in, ends.map_or(null_out, |[out, _]| out), ends.map_or(null_out, |[_, err]| err)],
            )
        })?;
        let serial = self.next_serial();
        // Dropping the container kills it: unwatched it would never be reported.
        let watched = self.poller.add_edge(container.status_fd(), Token::Status(serial));
        watched
            .and_then(|()| self.poller.add_once(container.pidfd(), Token::Exit(serial)))
            .map_err(Unmade::io("epoll_ctl"))?;
        if let (Some(to), Some(pipes)) = (log_to, pipes) {
            // Its own ends are closed here.
            let sources = pipes.map(|(source, _)| Some(source));
            self.logs.add(serial, id, to, sources);
        }
        let mut launch = Launch::new(id, serial);
        launch.init_pid = container.pid();
        (launch.container, launch.listener) = (Some(container), listener);
        Ok(launch)
    }

    /// How a container is separated, and its /dev/null for reading and for writing.
    pub(crate) fn isolation(
        &self,
        linux: bool,
    ) -> (launcher::Isolation<'_>, std::os::fd::BorrowedFd<'_>, std::os::fd::BorrowedFd<'_>) {
        match &self.template {
            Some(template) if linux => {
                (launcher::Isolation::Linux(template), template.null(), template.null())
            }
            _ => (launcher::Isolation::Process, self.null_in.as_fd(), self.null_out.as_fd()),
        }
    }

    pub(crate) fn on_kill(&mut self, serial: u64, kill: &Kill) {
        let id = kill.launch_id;
        let Some(launch) = self.launches.get(&id) else {
            if !self.kill_uncloned(id, kill.grace_ms) {
                self.send(serial, Message::Unknown(Unknown { launch_id: id }));
            }
            return;
        };
        if launch.container.is_none() {
            if let State::Ended { end, logs_until: None, .. } = &launch.state {
                let answer = message(end.clone());
                self.send(serial, answer);
            }
            return;
        }
        self.kill(id, kill.grace_ms, KillCause::Order, "");
    }

    /// Ends a container: SIGTERM now, SIGKILL after the grace. The first cause is the one that is told.
    pub(crate) fn kill(&mut self, id: u64, grace_ms: u64, cause: KillCause, why: &str) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let Some(container) = &launch.container else { return };
        if launch.kill.sent == KillSent::Kill {
            return;
        }
        if launch.kill.sent == KillSent::None {
            launch.kill.cause = cause;
            launch.kill.message = why.to_owned();
            // What it says on its way out is no news.
            launch.watches.iter_mut().for_each(Watch::stop);
        }
        // One that is held heeds no SIGTERM, and has nothing to bring to an end.
        if grace_ms == 0 || launch.held {
            launch.kill_at = None;
            launch.kill.sent = KillSent::Kill;
            container.kill();
            return self.rearm(id);
        }
        let at = Instant::now().checked_add(Duration::from_millis(grace_ms));
        // A repeat may only bring the end nearer; a grace beyond the clock is no end at all.
        launch.kill_at = match (launch.kill_at, at) {
            (Some(before), Some(at)) => Some(before.min(at)),
            (before, at) => before.or(at),
        };
        if launch.kill.sent == KillSent::None {
            launch.kill.sent = KillSent::Term;
            container.terminate();
        }
        self.rearm(id);
    }

    pub(crate) fn on_forget(&mut self, serial: u64, launch_id: u64) {
        match self.launches.get(&launch_id).map(|launch| (launch.serial, &launch.state)) {
            None => self.send(serial, Message::Unknown(Unknown { launch_id })),
            Some((logs, State::Ended { logs_until: None, .. })) => {
                self.logs.close(logs, &self.poller);
                if let Err(error) = self.records.forget(launch_id) {
                    self.records.log(&format!("launch {launch_id}: its record cannot be removed: {error}"));
                }
                self.remove(launch_id);
            }
            Some(_) => self.refuse(serial, launch_id, "it has not ended".into()),
        }
    }

    pub(crate) fn on_list(&mut self, serial: u64) {
        let starting = |launch_id| LaunchInfo {
            launch_id,
            state: LaunchState::Starting.into(),
            ..LaunchInfo::default()
        };
        let mut infos = self.launches.values().map(|launch| launch.info()).collect::<Vec<_>>();
        infos.extend(self.uncloned().map(starting));
        infos.sort_by_key(|info| info.launch_id);
        let mut launches = Vec::new();
        let mut bytes = 0;
        for info in infos {
            let length = info.encoded_len();
            if bytes + length > LIST_PART_BYTES {
                let part = Launches { launches: std::mem::take(&mut launches), more: true };
                self.send(serial, Message::Launches(part));
                bytes = 0;
            }
            bytes += length;
            launches.push(info);
        }
        self.send(serial, Message::Launches(Launches { launches, more: false }));
    }

    pub(crate) fn on_take_terminal(&mut self, serial: u64, launch_id: u64) {
        let terminal = self.launches.get(&launch_id).and_then(|launch| launch.terminal.as_ref());
        let (reason, descriptors) = given(terminal, "it has no terminal");
        self.send_with(serial, Message::Terminal(Terminal { launch_id, reason }), descriptors);
    }

    pub(crate) fn on_take_listener(&mut self, serial: u64, launch_id: u64) {
        let listener = self.launches.get(&launch_id).and_then(|launch| launch.listener.as_ref());
        let (reason, descriptors) = given(listener, "it is no custom executor that runs");
        self.send_with(serial, Message::Listener(Listener { launch_id, reason }), descriptors);
    }
}

fn given(thing: Option<&OwnedFd>, missing: &str) -> (String, Vec<OwnedFd>) {
    match thing.map(OwnedFd::try_clone) {
        Some(Ok(fd)) => (String::new(), vec![fd]),
        Some(Err(error)) => (error.to_string(), Vec::new()),
        None => (missing.to_owned(), Vec::new()),
    }
}
