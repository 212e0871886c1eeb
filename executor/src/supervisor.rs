//! The loop: what is ready, what is due, and what both mean for the launches.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proffer_launcher::{self as launcher, Event, Template, heap, proc, seqpacket};
use proffer_wire::supervisor::v1::launch_info::End;
use proffer_wire::supervisor::v1::to_agent::Message;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{
    Draining, FailureKind, Hello, Kill, KillSent, Launch as Request, Launches, Listener, Refused,
    TakeListener, TakeTerminal, Terminal, ToAgent, ToSupervisor, Unknown, Welcome,
};
use prost::Message as _;

use crate::config::{Config, Isolation};
use crate::connection::{Connection, Received};
use crate::daemon::Error;
use crate::launch::{Checked, Launch, Said, State, failure, message};
use crate::logs::Logs;
use crate::poller::{Poller, Token};
use crate::pump_protocol::Which;
use crate::records::{Records, unix_ms};

/// The protocol version spoken here.
const PROTOCOL: u32 = 1;
/// How long the report of an end waits for the end of the logs: something may hold a pipe open.
const LOGS_WAIT: Duration = Duration::from_secs(5);
/// And how long in all while nothing does and only the pump is behind, on a slow disk. Shorter than an agent waits
/// for the end of a container that it has told to end.
const LOGS_WAIT_MAX: Duration = Duration::from_secs(15);
/// How many datagrams of one connection are done before anything else has its turn.
const TURN_DATAGRAMS: usize = 64;
/// How many launches go into one `Launches`: each is below 1 KiB.
const LIST_PART: usize = 200;

/// The supervisor of one framework's containers.
pub struct Supervisor {
    config: Config,
    start_ticks: u64,
    poller: Poller,
    listener: OwnedFd,
    /// By the serial in their tokens; at most one is welcomed.
    connections: BTreeMap<u64, Connection>,
    current: Option<u64>,
    welcomes: u64,
    launches: BTreeMap<u64, Launch>,
    serials: BTreeMap<u64, u64>,
    next_serial: u64,
    logs: Logs,
    records: Records,
    template: Option<Template>,
    null_in: OwnedFd,
    null_out: OwnedFd,
    draining: bool,
}

impl Supervisor {
    /// Prepares everything and listens. To be called in the process that is to run it, with one thread.
    pub fn open(config: &Config) -> Result<Self, Error> {
        // These sit on the lowest numbers for good.
        let null = |write: bool| {
            let path = PathBuf::from("/dev/null");
            File::options().read(!write).write(write).open(&path).map_err(Error::file("open", &path))
        };
        let (null_in, null_out) = (null(false)?.into(), null(true)?.into());
        let template = match config.isolation {
            Isolation::Linux => {
                let template = Template::build(&config.cover)?;
                // What is executed from here on, the pump, needs no capability.
                launcher::drop_bounding_set()?;
                Some(template)
            }
            Isolation::Process => None,
        };
        let pid = std::process::id();
        let start_ticks = proc::start_ticks(pid as i32).map_err(Error::system("read own stat"))?;
        let poller = Poller::new().map_err(Error::system("epoll_create"))?;
        let records = Records::create(&config.runtime_dir)?;
        let mut logs = Logs::new();
        logs.start_pump(&poller).map_err(Error::system("start the log pump"))?;
        let listener = seqpacket::listen(&config.socket).map_err(Error::file("listen on", &config.socket))?;
        poller.add(&listener, Token::Listener).map_err(Error::system("epoll_ctl"))?;
        records
            .write_identity(config, pid, start_ticks)
            .map_err(Error::file("write", &config.runtime_dir))?;
        Ok(Supervisor {
            config: config.clone(),
            start_ticks,
            poller,
            listener,
            connections: BTreeMap::new(),
            current: None,
            welcomes: 0,
            launches: BTreeMap::new(),
            serials: BTreeMap::new(),
            next_serial: 1,
            logs,
            records,
            template,
            null_in,
            null_out,
            draining: false,
        })
    }

    /// Supervises until told to shut down and without launches.
    pub fn run(&mut self) {
        while !(self.draining && self.launches.is_empty()) {
            let tokens = match self.poller.wait(self.next_deadline()) {
                Ok(tokens) => tokens,
                Err(error) => {
                    // Nothing is ready and nothing will be: only a wrong descriptor leads here.
                    self.records.log(&format!("epoll_wait: {error}"));
                    break;
                }
            };
            for token in tokens {
                self.on_ready(token);
            }
            self.on_time(Instant::now());
        }
        if let Some(connection) = self.current.and_then(|serial| self.connections.get_mut(&serial)) {
            let _ = connection.flush();
        }
        let _ = std::fs::remove_file(&self.config.socket);
        self.records.remove_identity();
    }

    fn on_ready(&mut self, token: Token) {
        match token {
            Token::Listener => self.on_listener(),
            Token::Connection(serial) => self.on_connection(serial),
            Token::Status(serial) => self.on_status(serial),
            Token::Exit(serial) => self.on_init_exit(serial),
            Token::PumpControl => {
                for progress in self.logs.on_control(&self.poller) {
                    if let Some(launch) = self.launches.get_mut(&progress.launch_id) {
                        launch.dropped[usize::from(progress.which == Which::Stderr)] = progress.dropped;
                    }
                    if progress.ended {
                        self.report_if_due(progress.launch_id, Instant::now());
                    }
                }
            }
            Token::PumpExit => {
                if let Some(line) = self.logs.on_exit() {
                    self.records.log(&line);
                }
            }
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }
}

/// Time.
impl Supervisor {
    fn next_deadline(&self) -> Option<Instant> {
        let launches = self.launches.values().flat_map(|launch| {
            let logs = match launch.state {
                State::Ended { logs_until, .. } => logs_until,
                _ => None,
            };
            launch.kill_at.into_iter().chain(logs)
        });
        launches.chain(self.logs.restart_at()).min()
    }

    fn on_time(&mut self, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut ended = Vec::new();
        for launch in self.launches.values_mut() {
            if due(launch.kill_at) {
                launch.kill_at = None;
                launch.kill_sent = KillSent::Kill;
                if let Some(container) = &launch.container {
                    container.kill();
                }
            }
            if matches!(launch.state, State::Ended { logs_until, .. } if due(logs_until)) {
                ended.push(launch.id);
            }
        }
        for launch_id in ended {
            self.report_if_due(launch_id, now);
        }
        if due(self.logs.restart_at())
            && let Err(error) = self.logs.start_pump(&self.poller)
        {
            self.logs.start_failed();
            self.records.log(&format!("start the log pump: {error}"));
        }
    }
}

/// Connections.
impl Supervisor {
    fn on_listener(&mut self) {
        loop {
            let socket = match seqpacket::accept(self.listener.as_fd()) {
                Ok(Some(socket)) => socket,
                Ok(None) => return,
                Err(error) => {
                    self.records.log(&format!("accept: {error}"));
                    return;
                }
            };
            // SAFETY: geteuid cannot fail.
            let own = unsafe { libc::geteuid() };
            match seqpacket::peer(socket.as_fd()) {
                Ok(peer) if peer.uid == 0 || peer.uid == own => {
                    let serial = self.next_serial();
                    if self.poller.add(&socket, Token::Connection(serial)).is_ok() {
                        self.connections.insert(serial, Connection::new(socket));
                    }
                }
                Ok(peer) => self.records.log(&format!("refused user {} (pid {})", peer.uid, peer.pid)),
                Err(error) => self.records.log(&format!("SO_PEERCRED: {error}")),
            }
        }
    }

    fn on_connection(&mut self, serial: u64) {
        for _ in 0..TURN_DATAGRAMS {
            // Looked up each time: a datagram may close it.
            let Some(connection) = self.connections.get_mut(&serial) else { return };
            if connection.is_full() {
                // Its answers wait: what it asks next waits too.
                if let Err(lost) = connection.flush() {
                    return self.close(serial, &lost.0);
                }
                if connection.is_full() {
                    break;
                }
            }
            match connection.recv() {
                Ok(Some(datagram)) => self.on_datagram(serial, &datagram.body, datagram.descriptors),
                Ok(None) => break,
                Err(Received::Refused(reason)) => self.refuse(serial, 0, reason),
                Err(Received::End) => return self.close(serial, "closed"),
                Err(Received::Broken(reason)) => return self.close(serial, &reason),
            }
        }
        self.watch_room(serial);
    }

    fn on_datagram(&mut self, serial: u64, body: &[u8], descriptors: Vec<OwnedFd>) {
        let order = match ToSupervisor::decode(body) {
            Ok(ToSupervisor { message: Some(order) }) => order,
            Ok(ToSupervisor { message: None }) => {
                return self.refuse(serial, 0, "a message of a kind not known here".into());
            }
            Err(error) => return self.refuse(serial, 0, format!("not a message: {error}")),
        };
        let welcomed = self.connections.get(&serial).is_some_and(|connection| connection.welcomed);
        match order {
            Order::Hello(hello) => self.on_hello(serial, &hello),
            _ if !welcomed => self.refuse(serial, 0, "Hello comes first".into()),
            Order::Launch(request) => self.on_launch(serial, request, descriptors),
            Order::Kill(kill) => self.on_kill(serial, &kill),
            Order::Forget(forget) => self.on_forget(serial, forget.launch_id),
            Order::List(_) => self.on_list(serial),
            Order::Exec(exec) => self.refuse(serial, exec.launch_id, "exec is not known here".into()),
            Order::TakeTerminal(TakeTerminal { launch_id }) => {
                self.send(
                    serial,
                    Message::Terminal(Terminal { launch_id, reason: "it has no terminal".into() }),
                );
            }
            Order::TakeListener(TakeListener { launch_id }) => {
                self.send(
                    serial,
                    Message::Listener(Listener { launch_id, reason: "it is no executor".into() }),
                );
            }
            Order::ExecSignal(_) => {}
            Order::Shutdown(_) => {
                self.draining = true;
                let launches = self.launches.len() as u32;
                self.send(serial, Message::Draining(Draining { launches }));
            }
        }
    }

    fn on_hello(&mut self, serial: u64, hello: &Hello) {
        if hello.protocol == 0 {
            return self.refuse(serial, 0, "protocol is 0".into());
        }
        // First the older ones with all that is unread on them, then the answer: an agent that has been
        // answered knows that nothing of its predecessor's will be done any more.
        let older = self.connections.keys().copied().filter(|&other| other != serial).collect::<Vec<_>>();
        for other in older {
            if self.connections.get(&other).is_some_and(|connection| connection.welcomed) {
                self.close(other, "replaced");
            }
        }
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        connection.welcomed = true;
        self.current = Some(serial);
        self.welcomes += 1;
        let welcome = Welcome {
            protocol: hello.protocol.min(PROTOCOL),
            instance: self.config.instance.clone(),
            framework: self.config.framework.clone(),
            pid: std::process::id() as i32,
            start_ticks: self.start_ticks,
            connection: self.welcomes,
            build: String::new(),
        };
        self.send(serial, Message::Welcome(welcome));
    }

    fn close(&mut self, serial: u64, why: &str) {
        if let Some(connection) = self.connections.remove(&serial) {
            self.poller.remove(connection.fd());
            self.records.log(&format!("connection {serial} ends: {why}"));
        }
        if self.current == Some(serial) {
            self.current = None;
        }
    }

    fn send(&mut self, serial: u64, message: Message) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        match connection.send(&ToAgent { message: Some(message) }) {
            Ok(()) => self.watch_room(serial),
            Err(lost) => self.close(serial, &lost.0),
        }
    }

    /// Tells the agent of the moment, if there is one; else it will ask.
    fn tell(&mut self, message: Message) {
        if let Some(serial) = self.current {
            self.send(serial, message);
        }
    }

    fn refuse(&mut self, serial: u64, launch_id: u64, reason: String) {
        self.send(serial, Message::Refused(Refused { launch_id, reason }));
    }

    fn watch_room(&mut self, serial: u64) {
        if let Some(connection) = self.connections.get(&serial) {
            // While answers wait nothing is read, and what is unread must not keep the loop awake.
            let full = connection.is_full();
            let _ = self.poller.watch(connection.fd(), Token::Connection(serial), !full, full);
        }
    }
}

/// Orders.
impl Supervisor {
    fn on_launch(&mut self, serial: u64, request: Request, descriptors: Vec<OwnedFd>) {
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
        let checked = match Checked::parse(request, descriptors).and_then(|checked| self.permit(checked)) {
            Ok(checked) => checked,
            Err(reason) => return self.refuse(serial, id, reason),
        };
        // Before the clone: whoever finds this supervisor dead must know that the launch may have begun.
        if let Err(error) = self.records.write_launch(id) {
            self.records.remove_launch(id);
            return self.refuse(serial, id, format!("its record cannot be written: {error}"));
        }
        match self.clone(&checked) {
            Ok(launch) => {
                self.serials.insert(launch.serial, id);
                self.launches.insert(id, launch);
            }
            Err(error) => self.on_clone_failed(id, &error),
        }
    }

    fn permit(&self, checked: Checked) -> Result<Checked, String> {
        if checked.linux && self.template.is_none() {
            return Err("this supervisor was not started with --isolation linux".into());
        }
        // SAFETY: cannot fail.
        let own = unsafe { libc::geteuid() };
        if own != 0 && checked.request.uid != own {
            return Err(format!("user {} needs root, this supervisor is user {own}", checked.request.uid));
        }
        // The child of a threaded process would own locks that nobody releases.
        match proc::thread_count() {
            Ok(1) => Ok(checked),
            Ok(threads) => Err(format!("this supervisor has {threads} threads instead of one")),
            Err(error) => Err(format!("counting threads: {error}")),
        }
    }

    fn clone(&mut self, checked: &Checked) -> Result<Launch, launcher::Error> {
        let request = &checked.request;
        let id = request.launch_id;
        let mut ends = Vec::new();
        if let Some(dir) = &checked.log_dir {
            for which in [Which::Stdout, Which::Stderr] {
                let added = self.logs.add(id, which, dir, checked.rotation, &self.poller);
                ends.push(added.map_err(|error| launcher::Error {
                    step: launcher::Step::Stdio,
                    errno: error.raw_os_error().unwrap_or(libc::EIO),
                    object: None,
                })?);
            }
        }
        for end in &ends {
            // So that a task can open its own /dev/stdout. Only root may give it away, and must.
            let (uid, gid) =
                (nix::unistd::Uid::from_raw(request.uid), nix::unistd::Gid::from_raw(request.gid));
            let _ = nix::unistd::fchown(end, Some(uid), Some(gid));
        }
        let (isolation, null_in, null_out) = match &self.template {
            Some(template) if checked.linux => {
                (launcher::Isolation::Linux(template), template.null(), template.null())
            }
            _ => (launcher::Isolation::Process, self.null_in.as_fd(), self.null_out.as_fd()),
        };
        heap::keep_out_of_children();
        let stdout = ends.first().map_or(null_out, AsFd::as_fd);
        let stderr = ends.get(1).map_or(null_out, AsFd::as_fd);
        let container = launcher::spawn(&launcher::Request {
            env: &request.env,
            uid: request.uid,
            gid: request.gid,
            working_directory: &request.working_directory,
            hostname: &request.hostname,
            limits: &checked.limits,
            sandbox: checked.sandbox(),
            cgroup_dir: checked.cgroup_dir(),
            cgroup_procs: &checked.cgroup_procs(),
            bounding_set_dropped: self.template.is_some(),
            ..launcher::Request::new(&request.argv, isolation, [null_in, stdout, stderr])
        })?;
        drop(ends);
        let serial = self.next_serial();
        let watched = self.poller.add(container.status_fd(), Token::Status(serial));
        watched.and_then(|()| self.poller.add(container.pidfd(), Token::Exit(serial))).map_err(|error| {
            // Dropping the container kills it: unwatched it would never be reported.
            launcher::Error {
                step: launcher::Step::StatusSocket,
                errno: error.raw_os_error().unwrap_or(libc::EIO),
                object: Some("epoll_ctl".into()),
            }
        })?;
        Ok(Launch {
            id,
            serial,
            state: State::Starting,
            init_pid: container.pid(),
            // Not reaped yet, so that its stat is there.
            init_start_ticks: proc::start_ticks(container.pid()).unwrap_or(0),
            container: Some(container),
            kill_sent: KillSent::None,
            kill_at: None,
            started_unix_ms: 0,
            said: None,
            dropped: [0; 2],
        })
    }

    /// Keeps the failure like any other end: the agent hears of it until it forgets it.
    fn on_clone_failed(&mut self, id: u64, error: &launcher::Error) {
        let text = match &error.object {
            Some(object) => format!("the container could not be made ({object})"),
            None => "the container could not be made".into(),
        };
        let mut failed = failure(id, FailureKind::Setup, error.step.name(), error.errno, text);
        failed.finished_unix_ms = unix_ms();
        let serial = self.next_serial();
        let end = End::LaunchFailed(failed);
        let launch = Launch {
            id,
            serial,
            state: State::Starting,
            container: None,
            init_pid: 0,
            init_start_ticks: 0,
            kill_sent: KillSent::None,
            kill_at: None,
            started_unix_ms: 0,
            said: None,
            dropped: [0; 2],
        };
        self.launches.insert(id, launch);
        self.end(id, end);
    }

    fn on_kill(&mut self, serial: u64, kill: &Kill) {
        let Some(launch) = self.launches.get_mut(&kill.launch_id) else {
            return self.send(serial, Message::Unknown(Unknown { launch_id: kill.launch_id }));
        };
        let Some(container) = &launch.container else {
            if let State::Ended { end, logs_until: None, .. } = &launch.state {
                let answer = message(end.clone());
                self.send(serial, answer);
            }
            return;
        };
        if launch.kill_sent == KillSent::Kill {
            return;
        }
        if kill.grace_ms == 0 {
            launch.kill_at = None;
            launch.kill_sent = KillSent::Kill;
            container.kill();
            return;
        }
        let at = Instant::now().checked_add(Duration::from_millis(kill.grace_ms));
        // A repeat may only bring the end nearer; a grace beyond the clock is no end at all.
        launch.kill_at = match (launch.kill_at, at) {
            (Some(before), Some(at)) => Some(before.min(at)),
            (before, at) => before.or(at),
        };
        if launch.kill_sent == KillSent::None {
            launch.kill_sent = KillSent::Term;
            container.terminate();
        }
    }

    fn on_forget(&mut self, serial: u64, launch_id: u64) {
        match self.launches.get(&launch_id).map(|launch| &launch.state) {
            None => self.send(serial, Message::Unknown(Unknown { launch_id })),
            Some(State::Ended { logs_until: None, .. }) => {
                self.logs.close(launch_id, &self.poller);
                self.records.forget(launch_id);
                self.launches.remove(&launch_id);
            }
            Some(_) => self.refuse(serial, launch_id, "it has not ended".into()),
        }
    }

    fn on_list(&mut self, serial: u64) {
        let infos = self.launches.values().map(Launch::info).collect::<Vec<_>>();
        let mut parts = infos.chunks(LIST_PART).map(<[_]>::to_vec).collect::<Vec<_>>();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        let last = parts.len() - 1;
        for (index, launches) in parts.into_iter().enumerate() {
            self.send(serial, Message::Launches(Launches { launches, more: index < last }));
        }
    }
}

/// What becomes of containers.
impl Supervisor {
    fn on_status(&mut self, serial: u64) {
        let Some(&id) = self.serials.get(&serial) else { return };
        while let Some(launch) = self.launches.get_mut(&id) {
            let Some(container) = &launch.container else { return };
            match container.event() {
                None => return,
                Some(Event::Started) => {
                    launch.state = State::Running;
                    launch.started_unix_ms = unix_ms();
                    let launched = launch.launched();
                    self.tell(launched);
                }
                Some(Event::SetupFailed { step, errno }) => {
                    launch.said = Some(Said::SetupFailed(step, errno))
                }
                Some(Event::ExecFailed { step, errno }) => launch.said = Some(Said::ExecFailed(step, errno)),
                Some(Event::Exited(status)) => launch.said = Some(Said::Exited(status)),
                // None is asked for yet.
                Some(Event::Terminal) => drop(container.take_terminal()),
                Some(Event::Ready) => {}
                Some(Event::Closed) => {
                    // Ready for ever from now on; its pidfd tells the rest.
                    self.poller.remove(container.status_fd());
                    return;
                }
            }
        }
    }

    fn on_init_exit(&mut self, serial: u64) {
        // What init said before it ended is still to be read.
        self.on_status(serial);
        let Some(&id) = self.serials.get(&serial) else { return };
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let Some(container) = &launch.container else { return };
        let status = match container.reap() {
            Ok(Some(status)) => status,
            Ok(None) => return,
            Err(error) => {
                // Nobody else reaps here; without a status it is told as killed.
                self.records.log(&format!("launch {id}: waitpid: {error}"));
                libc::SIGKILL
            }
        };
        self.poller.remove(container.status_fd());
        self.poller.remove(container.pidfd());
        launch.container = None;
        launch.kill_at = None;
        self.serials.remove(&serial);
        let end = launch.end(status, unix_ms());
        self.end(id, end);
    }

    /// Records the end at once, and reports it when the logs are at theirs.
    fn end(&mut self, id: u64, end: End) {
        let record = ToAgent { message: Some(message(end.clone())) };
        if let Err(error) = self.records.write_exit(id, &record) {
            self.records.log(&format!("launch {id}: its exit record cannot be written: {error}"));
        }
        if let Some(launch) = self.launches.get_mut(&id) {
            let now = Instant::now();
            launch.state = State::Ended { end, ended: now, logs_until: Some(now + LOGS_WAIT) };
            self.report_if_due(id, now);
        }
    }

    fn report_if_due(&mut self, id: u64, now: Instant) {
        let pending = self.logs.pending(id);
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let State::Ended { end, ended, logs_until } = &mut launch.state else { return };
        let Some(until) = *logs_until else { return };
        if pending && now < until {
            return;
        }
        let last = *ended + LOGS_WAIT_MAX;
        if pending && now < last && self.logs.only_the_pump_is_late(id) {
            *logs_until = Some(last);
            return;
        }
        *logs_until = None;
        if let End::Exited(exited) = end {
            exited.logs_complete = !pending;
            [exited.stdout_dropped_bytes, exited.stderr_dropped_bytes] = launch.dropped;
        }
        let message = message(end.clone());
        self.tell(message);
    }
}

/// For callers that hold a path and an error.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}
