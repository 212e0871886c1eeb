//! What the leader must now do.

use proffer_types::Caller;
use proffer_types::call::{ConnectionId, ReplyId};
use proffer_types::command::Command;
use proffer_types::event::{AgentOrder, FrameworkEvent, Refused, Reply, StreamEnd};

/// Tells a proposal from others of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Put a command into the log.
    Propose {
        /// Comes back with the outcome.
        tag: Tag,
        /// Who asked for it.
        caller: Caller,
        /// What.
        command: Box<Command>,
    },
    /// Answer a call.
    Answer {
        /// Which.
        reply: ReplyId,
        /// With what.
        result: Result<Reply, Refused>,
    },
    /// Send an event to a framework. A [`FrameworkEvent::Message`] is dropped if much waits for it.
    ToFramework {
        /// On which stream.
        connection: ConnectionId,
        /// What.
        event: FrameworkEvent,
    },
    /// Send an order to an agent.
    ToAgent {
        /// On which session.
        connection: ConnectionId,
        /// What.
        order: AgentOrder,
    },
    /// Send an order to an agent if little waits for it, and answer a call by whether it was.
    Deliver {
        /// The call.
        reply: Option<ReplyId>,
        /// On which session.
        connection: ConnectionId,
        /// What.
        order: AgentOrder,
    },
    /// End a stream or session.
    Close {
        /// Which.
        connection: ConnectionId,
        /// Why.
        end: StreamEnd,
    },
    /// Something that must not be is: for the log and for the operator.
    Alarm {
        /// What.
        message: String,
    },
}
