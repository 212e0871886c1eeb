//! Streams between agents or frameworks and masters: in order while they last, and able to break at one end long
//! before the other knows.

use std::collections::VecDeque;

use proffer_client::core::{DialId, Failure, Heard};
use proffer_types::Epoch;
use proffer_types::call::{Call, ConnectionId};
use proffer_types::event::{AgentOrder, StreamEnd};
use proffer_wire::agent::v1 as pb;
use proffer_wire::{from_proto, to_proto};
use prost::Message;

use super::world::{Happening, World};

/// A partition that lasts longer is noticed by keep-alives.
const NOTICED_MS: u64 = 3_000;

/// The end of a link that is not a master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Agent { agent: usize, life: u64 },
    Framework { framework: usize, life: u64, dial: DialId },
}

/// From a master.
#[derive(Clone, Debug)]
pub(crate) enum Down {
    Orders { epoch: Epoch, orders: Vec<AgentOrder> },
    Heard(Vec<Heard>),
    End { end: StreamEnd, leader: Option<String> },
}

/// To a master.
#[derive(Clone, Debug)]
pub(crate) enum Up {
    Call(Box<Call>),
    Gone,
}

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) master: usize,
    pub(crate) master_life: u64,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    up_at: u64,
    down_at: u64,
    blocked_since: Option<u64>,
    pub(crate) client_open: bool,
    pub(crate) master_open: bool,
}

impl World {
    /// A new link; its number is the connection's at the master.
    pub(crate) fn open_link(&mut self, client: Client, master: usize) -> ConnectionId {
        self.last_link += 1;
        let link = Link {
            client,
            master,
            master_life: self.masters[master].life,
            up: VecDeque::new(),
            down: VecDeque::new(),
            up_at: self.now,
            down_at: self.now,
            blocked_since: None,
            client_open: true,
            master_open: true,
        };
        self.links.insert(self.last_link, link);
        ConnectionId(self.last_link)
    }

    pub(crate) fn send_up(&mut self, link: u64, what: Up) {
        let delay = self.delay();
        let Some(found) = self.links.get_mut(&link).filter(|l| l.client_open) else { return };
        found.up.push_back(what);
        found.up_at = found.up_at.max(self.now + delay);
        let wait = found.up_at - self.now;
        self.at(wait, Happening::FlowUp(link));
    }

    pub(crate) fn send_down(&mut self, link: u64, what: Down) {
        let delay = self.delay();
        let Some(found) = self.links.get_mut(&link).filter(|l| l.master_open) else { return };
        if let (Down::Heard(more), Some(Down::Heard(waiting))) = (&what, found.down.back_mut()) {
            waiting.extend(more.iter().cloned());
            return;
        }
        found.down.push_back(what);
        found.down_at = found.down_at.max(self.now + delay);
        let wait = found.down_at - self.now;
        self.at(wait, Happening::FlowDown(link));
    }

    /// Whether a link carries anything now; breaks it if it has not for long.
    fn flows(&mut self, link: u64) -> bool {
        let Some(found) = self.links.get_mut(&link) else { return false };
        let pair = (found.client.place(), super::world::Place::Master(found.master));
        let blocked = self.blocked.contains(&pair) || self.blocked.contains(&(pair.1, pair.0));
        if !blocked {
            found.blocked_since = None;
            return true;
        }
        let since = *found.blocked_since.get_or_insert(self.now);
        if self.now - since > NOTICED_MS {
            self.break_link(link);
        }
        false
    }

    pub(crate) fn flow_up(&mut self, link: u64) {
        if !self.flows(link) {
            if self.links.contains_key(&link) {
                self.at(100, Happening::FlowUp(link));
            }
            return;
        }
        let Some(found) = self.links.get_mut(&link) else { return };
        let Some(what) = found.up.pop_front() else { return };
        let (master, life, open) = (found.master, found.master_life, found.master_open);
        if open && self.masters[master].life == life && self.masters[master].is_up() {
            match what {
                Up::Call(call) => self.master_call(master, None, *call),
                Up::Gone => self.master_lost_link(link),
            }
        }
    }

    pub(crate) fn flow_down(&mut self, link: u64) {
        if !self.flows(link) {
            if self.links.contains_key(&link) {
                self.at(100, Happening::FlowDown(link));
            }
            return;
        }
        let Some(found) = self.links.get_mut(&link).filter(|l| l.client_open) else { return };
        let Some(what) = found.down.pop_front() else { return };
        let client = found.client;
        match what {
            Down::Orders { epoch, orders } => {
                let items = orders.iter().flat_map(to_proto::agent_order).collect();
                let bytes = to_proto::master_message(epoch, items).encode_to_vec();
                let message = pb::MasterMessage::decode(&bytes[..]).expect("our own messages are good");
                let (epoch, orders) = from_proto::master_message(message).expect("our own messages are good");
                self.agent_orders(client, epoch, orders);
            }
            Down::Heard(heard) => self.framework_heard(client, heard),
            Down::End { end, leader } => self.client_lost(link, Some(end), leader),
        }
    }

    /// Both ends lose the link, each in its own time.
    pub(crate) fn break_link(&mut self, link: u64) {
        let (client, master) = (self.rng.below(500), self.rng.below(2_000));
        self.at(client, Happening::LinkLost { link, client: true });
        self.at(master, Happening::LinkLost { link, client: false });
    }

    pub(crate) fn link_lost(&mut self, link: u64, client: bool) {
        if client {
            self.client_lost(link, None, None);
        } else {
            self.master_lost_link(link);
        }
    }

    fn client_lost(&mut self, link: u64, end: Option<StreamEnd>, leader: Option<String>) {
        let Some(found) = self.links.get_mut(&link).filter(|l| l.client_open) else { return };
        found.client_open = false;
        let client = found.client;
        match client {
            Client::Agent { .. } => self.agent_lost(client, leader),
            Client::Framework { .. } => {
                let failure = match end {
                    None | Some(StreamEnd::Silent | StreamEnd::Replaced) => {
                        Failure::Transport("broken".into())
                    }
                    Some(StreamEnd::NotLeader) => Failure::NotLeader { leader },
                    Some(StreamEnd::SessionFenced) => Failure::Fenced,
                    Some(StreamEnd::FrameworkCompleted) => Failure::Completed("completed".into()),
                    Some(StreamEnd::Resync) => Failure::Resync,
                };
                self.framework_stream_end(client, failure);
            }
        }
        self.forget_closed(link);
    }

    pub(crate) fn master_lost_link(&mut self, link: u64) {
        let Some(found) = self.links.get_mut(&link).filter(|l| l.master_open) else { return };
        found.master_open = false;
        let (master, life, client) = (found.master, found.master_life, found.client);
        if self.masters[master].life == life && self.masters[master].is_up() {
            let connection = ConnectionId(link);
            let call = match client {
                Client::Agent { .. } => Call::AgentGone { connection },
                Client::Framework { .. } => Call::SubscriberGone { connection },
            };
            self.master_call(master, None, call);
        }
        self.forget_closed(link);
    }

    /// The client closes its end: the master learns of it later.
    pub(crate) fn client_closes(&mut self, link: u64) {
        self.send_up(link, Up::Gone);
        if let Some(found) = self.links.get_mut(&link) {
            found.client_open = false;
        }
    }

    /// The master closes its end.
    pub(crate) fn master_closes(&mut self, link: u64, end: StreamEnd, leader: Option<String>) {
        self.send_down(link, Down::End { end, leader });
        if let Some(found) = self.links.get_mut(&link) {
            found.master_open = false;
        }
    }

    fn forget_closed(&mut self, link: u64) {
        if self.links.get(&link).is_some_and(|l| !l.client_open && !l.master_open) {
            self.links.remove(&link);
        }
    }

    /// All links of a place that died break.
    pub(crate) fn break_links(&mut self, which: impl Fn(&Link) -> bool) {
        let links: Vec<u64> = self.links.iter().filter(|(_, l)| which(l)).map(|(id, _)| *id).collect();
        for link in links {
            self.break_link(link);
        }
    }
}

impl Client {
    pub(crate) fn place(self) -> super::world::Place {
        match self {
            Self::Agent { agent, .. } => super::world::Place::Agent(agent),
            Self::Framework { framework, .. } => super::world::Place::Framework(framework),
        }
    }
}
