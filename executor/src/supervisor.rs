//! The loop: what is ready, what is due, and what both mean for the launches.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use proffer_launcher::seqpacket::{self, Receiver};
use proffer_launcher::{self as launcher, Template, proc};
use proffer_wire::supervisor::v1::to_agent::Message;
use proffer_wire::supervisor::v1::to_supervisor::Message as Order;
use proffer_wire::supervisor::v1::{Draining, Hello, Refused, ToAgent, ToSupervisor, Welcome};
use prost::Message as _;

use crate::config::{Config, Isolation};
use crate::connection::{Connection, Received};
use crate::daemon::Error;
use crate::groups::Group;
use crate::inside::Inside;
use crate::launch::Launch;
use crate::logs::Logs;
use crate::poller::{Poller, Token};
use crate::pump_protocol::Which;
use crate::records::Records;
use crate::users::Users;

/// The protocol version spoken here. From 2 on an agent reads the journal.
const PROTOCOL: u32 = 2;
/// How many datagrams of one connection are done before anything else has its turn.
const TURN_DATAGRAMS: usize = 64;
/// The supervisor of one framework's containers.
pub struct Supervisor {
    pub(crate) config: Config,
    start_ticks: u64,
    pub(crate) own_uid: u32,
    build: String,
    pub(crate) poller: Poller,
    listener: OwnedFd,
    receiver: Receiver,
    /// By the serial in their tokens; at most one is welcomed.
    pub(crate) connections: BTreeMap<u64, Connection>,
    current: Option<u64>,
    welcomes: u64,
    /// In boxes: a map with values this large keeps room for twice as many.
    pub(crate) launches: BTreeMap<u64, Box<Launch>>,
    /// The launches by the serial in their containers' tokens.
    pub(crate) serials: BTreeMap<u64, u64>,
    /// When launches want to be looked at: one entry each at most.
    timers: BTreeSet<(Instant, u64)>,
    /// By their first member.
    pub(crate) groups: BTreeMap<u64, Group>,
    /// What joined containers, by the serial in their tokens.
    pub(crate) inside: BTreeMap<u64, Inside>,
    /// Of `inside` and of the containers, those that have ended but are traced.
    pub(crate) unreaped: Vec<u64>,
    pub(crate) reap_at: Option<Instant>,
    next_serial: u64,
    pub(crate) logs: Logs,
    pub(crate) records: Records,
    pub(crate) users: Users,
    pub(crate) template: Option<Template>,
    pub(crate) null_in: OwnedFd,
    pub(crate) null_out: OwnedFd,
    pub(crate) draining: bool,
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
        let own = Path::new("/proc/self/exe");
        let build = launcher::build_id(own).map_err(Error::file("read", own))?;
        let records = Records::create(&config.runtime_dir, config.isolation)?;
        let mut logs = Logs::new();
        logs.start_pump(&poller).map_err(Error::system("start the log pump"))?;
        let listener = seqpacket::listen(&config.socket).map_err(Error::file("listen on", &config.socket))?;
        poller.add(&listener, Token::Listener).map_err(Error::system("epoll_ctl"))?;
        one_thread()?;
        records
            .write_identity(config, pid, start_ticks)
            .map_err(Error::file("write", &config.runtime_dir))?;
        Ok(Supervisor {
            config: config.clone(),
            start_ticks,
            own_uid: nix::unistd::geteuid().as_raw(),
            build,
            poller,
            listener,
            receiver: Receiver::default(),
            connections: BTreeMap::new(),
            current: None,
            welcomes: 0,
            launches: BTreeMap::new(),
            serials: BTreeMap::new(),
            timers: BTreeSet::new(),
            groups: BTreeMap::new(),
            inside: BTreeMap::new(),
            unreaped: Vec::new(),
            reap_at: None,
            next_serial: 1,
            logs,
            records,
            users: Users::default(),
            template,
            null_in,
            null_out,
            draining: false,
        })
    }

    /// Supervises until told to shut down and without launches, and until a pump was told of all that they wrote.
    pub fn run(&mut self) {
        while !(self.draining && self.launches.is_empty() && !self.logs.owes()) {
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

    /// Leaves nothing of a supervisor that nobody was told of.
    pub(crate) fn abandon(self) {
        let _ = std::fs::remove_file(&self.config.socket);
        let _ = std::fs::remove_dir_all(&self.config.runtime_dir);
    }

    fn on_ready(&mut self, token: Token) {
        match token {
            Token::Listener => self.on_listener(),
            Token::Connection(serial) => self.on_connection(serial),
            Token::Status(serial) => self.on_status(serial),
            Token::Exit(serial) => self.on_init_exit(serial),
            Token::InsideStatus(serial) => self.on_inside_status(serial),
            Token::InsideExit(serial) => self.on_inside_exit(serial),
            Token::PumpControl => {
                let heard = self.logs.on_control(&mut self.receiver, &self.poller);
                // All of it is taken in before an end is reported, which tells of both streams.
                for progress in &heard {
                    if let Some(launch) = self.launches.get_mut(&progress.launch_id) {
                        launch.dropped[usize::from(progress.which == Which::Stderr)] = progress.dropped;
                    }
                }
                for progress in heard.iter().filter(|progress| progress.ended) {
                    self.report_if_due(progress.launch_id, Instant::now());
                }
            }
            Token::PumpExit => {
                if let Some(line) = self.logs.on_exit(&self.poller) {
                    self.records.log(&line);
                }
            }
        }
    }

    pub(crate) fn next_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }
}

/// Time.
impl Supervisor {
    fn next_deadline(&self) -> Option<Instant> {
        self.timers
            .first()
            .map(|(at, _)| *at)
            .into_iter()
            .chain(self.logs.restart_at())
            .chain(self.reap_at)
            .min()
    }

    /// To be called after whatever changes when a launch wants to be looked at.
    pub(crate) fn rearm(&mut self, id: u64) {
        let Some(launch) = self.launches.get_mut(&id) else { return };
        let next = launch.deadline();
        let before = std::mem::replace(&mut launch.armed, next);
        if before != next {
            self.timers.extend(next.map(|at| (at, id)));
            before.map(|at| self.timers.remove(&(at, id)));
        }
    }

    /// Forgets a launch and when it wanted to be looked at.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Box<Launch>> {
        let launch = self.launches.remove(&id)?;
        launch.armed.map(|at| self.timers.remove(&(at, id)));
        Some(launch)
    }

    fn on_time(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, id));
            if let Some(launch) = self.launches.get_mut(&id) {
                launch.armed = None;
            }
            self.look_at(id, now);
            self.rearm(id);
        }
        self.reap_again(now);
        if self.logs.restart_at().is_some_and(|at| at <= now)
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
            let own = self.own_uid;
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
            match connection.recv(&mut self.receiver) {
                Ok(Some(datagram)) => {
                    let order = ToSupervisor::decode(datagram.body);
                    let descriptors = datagram.descriptors;
                    self.on_order(serial, order, descriptors);
                }
                Ok(None) => break,
                Err(Received::Refused(reason)) => self.refuse(serial, 0, reason),
                Err(Received::End) => return self.close(serial, "closed"),
                Err(Received::Broken(reason)) => return self.close(serial, &reason),
            }
        }
        self.watch_room(serial);
    }

    fn on_order(
        &mut self,
        serial: u64,
        order: Result<ToSupervisor, prost::DecodeError>,
        descriptors: Vec<OwnedFd>,
    ) {
        let order = match order {
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
            Order::Exec(exec) => self.on_exec(serial, exec, descriptors),
            Order::ExecSignal(signal) => self.on_exec_signal(serial, &signal),
            Order::TakeTerminal(take) => self.on_take_terminal(serial, take.launch_id),
            Order::TakeListener(take) => self.on_take_listener(serial, take.launch_id),
            Order::Shutdown(_) => {
                self.draining = true;
                self.drop_gathering(Some(serial));
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
        // What has not come whole will come again.
        self.drop_gathering(None);
        match hello.protocol {
            // Before it is answered, and so before it may take a launch for begun.
            1 => {
                let known = self.launches.keys().copied().chain(self.uncloned()).collect::<Vec<_>>();
                if let Err(error) = self.records.write_for_older(known) {
                    self.records.log(&format!("an older agent will not see every launch: {error}"));
                }
            }
            _ => self.records.write_journal_alone(),
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
            build: self.build.clone(),
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
        self.end_execs_of(serial);
    }

    pub(crate) fn send(&mut self, serial: u64, message: Message) {
        self.send_with(serial, message, Vec::new());
    }

    pub(crate) fn send_with(&mut self, serial: u64, message: Message, descriptors: Vec<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        match connection.send(&ToAgent { message: Some(message) }, descriptors) {
            Ok(()) => self.watch_room(serial),
            Err(lost) => self.close(serial, &lost.0),
        }
    }

    /// Tells the agent of the moment, if there is one; else it will ask.
    pub(crate) fn tell(&mut self, message: Message) {
        if let Some(serial) = self.current {
            self.send(serial, message);
        }
    }

    pub(crate) fn refuse(&mut self, serial: u64, launch_id: u64, reason: String) {
        self.send(serial, Message::Refused(Refused { launch_id, reason }));
    }

    fn watch_room(&mut self, serial: u64) {
        let Some(connection) = self.connections.get_mut(&serial) else { return };
        // While answers wait nothing is read, and what is unread must not keep the loop awake.
        let full = connection.is_full();
        if full != connection.watched_for_room {
            let _ = self.poller.watch(connection.fd(), Token::Connection(serial), !full, full);
            connection.watched_for_room = full;
        }
    }
}

/// The child of a threaded process would own locks that nobody releases. None is ever begun here; this is to find out
/// whether something else did.
fn one_thread() -> Result<(), Error> {
    match proc::thread_count().map_err(Error::system("count threads"))? {
        1 => Ok(()),
        threads => Err(Error::Threads(threads)),
    }
}

/// For callers that hold a path and an error.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error)
    }
}
