//! What nodes say to each other: raft's own messages, and news about a snapshot being fetched.

use bytes::{Buf, BufMut, Bytes};
use protobuf::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};

/// A message that is not processed: not decodable, not for this node, or not something a peer may say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("message from peer {from} dropped: {what}")]
pub struct BadMessage {
    /// The peer it came from.
    pub from: u64,
    /// What is wrong with it.
    pub what: &'static str,
}

const RAFT: u8 = 1;
const FETCH_NEWS: u8 = 2;

/// A decoded message.
#[derive(Debug)]
pub(crate) enum Decoded {
    Raft(Message),
    FetchNews(FetchNews),
}

/// How the fetch of a snapshot goes, told by the receiver to the leader that offered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FetchNews {
    pub(crate) index: u64,
    /// It will not be completed; offer another.
    pub(crate) failed: bool,
}

pub(crate) fn encode_raft(message: &Message) -> Bytes {
    let mut out = Vec::with_capacity(1 + message.compute_size() as usize);
    out.push(RAFT);
    message.write_to_vec(&mut out).expect("a message that raft-rs built is complete");
    out.into()
}

pub(crate) fn encode_news(news: FetchNews) -> Bytes {
    let mut out = Vec::with_capacity(10);
    out.put_u8(FETCH_NEWS);
    out.put_u64_le(news.index);
    out.put_u8(news.failed.into());
    out.into()
}

/// Decodes a message and refuses what raft-rs would trust blindly or panic on.
pub(crate) fn decode(from: u64, to: u64, bytes: &Bytes) -> Result<Decoded, BadMessage> {
    let bad = |what| BadMessage { from, what };
    match bytes.first() {
        Some(&RAFT) => {
            let message = Message::parse_from_carllerche_bytes(&bytes.slice(1..));
            let message = message.map_err(|_| bad("not decodable"))?;
            check(from, to, &message).map_err(bad)?;
            Ok(Decoded::Raft(message))
        }
        Some(&FETCH_NEWS) => {
            let mut rest = &bytes[1..];
            let index = rest.try_get_u64_le().map_err(|_| bad("not decodable"))?;
            let failed = rest.try_get_u8().map_err(|_| bad("not decodable"))? != 0;
            Ok(Decoded::FetchNews(FetchNews { index, failed }))
        }
        _ => Err(bad("of an unknown kind")),
    }
}

fn check(from: u64, to: u64, message: &Message) -> Result<(), &'static str> {
    if message.from != from {
        return Err("in the name of another node");
    }
    if message.to != to {
        return Err("meant for another node");
    }
    match message.get_msg_type() {
        // A forwarded proposal may be committed although its author was told it failed: never stepped,
        // as we never send one.
        MessageType::MsgPropose => return Err("a forwarded proposal"),
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum => return Err("a message that only a node itself may make"),
        MessageType::MsgTransferLeader | MessageType::MsgTimeoutNow => {
            return Err("a leader transfer, which no node of this version starts");
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            let one = message.entries.len() == 1;
            return if one { Ok(()) } else { Err("a read without its context") };
        }
        _ => {}
    }
    if message.term == 0 {
        return Err("without a term");
    }
    let mut previous = (message.index, message.log_term);
    for entry in message.get_entries() {
        if entry.get_entry_type() != EntryType::EntryNormal {
            return Err("an entry of a kind that this version does not know");
        }
        if entry.index != previous.0 + 1 || entry.term < previous.1 || entry.term > message.term {
            return Err("entries out of order");
        }
        previous = (entry.index, entry.term);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: MessageType) -> Message {
        let mut message = Message { from: 2, to: 1, term: 3, ..Message::default() };
        message.set_msg_type(kind);
        message
    }

    #[test]
    fn refuses_what_a_peer_must_not_say() {
        for kind in [
            MessageType::MsgPropose,
            MessageType::MsgHup,
            MessageType::MsgBeat,
            MessageType::MsgUnreachable,
            MessageType::MsgSnapStatus,
            MessageType::MsgCheckQuorum,
            MessageType::MsgTimeoutNow,
        ] {
            assert!(decode(2, 1, &encode_raft(&message(kind))).is_err(), "{kind:?}");
        }
        let heartbeat = encode_raft(&message(MessageType::MsgHeartbeat));
        assert!(decode(2, 1, &heartbeat).is_ok());
        assert!(decode(3, 1, &heartbeat).is_err());
        assert!(decode(2, 3, &heartbeat).is_err());
        let mut gap = message(MessageType::MsgAppend);
        gap.mut_entries().push(raft::eraftpb::Entry { index: 2, term: 3, ..Default::default() });
        assert!(decode(2, 1, &encode_raft(&gap)).is_err());
        gap.mut_entries()[0].index = 1;
        assert!(decode(2, 1, &encode_raft(&gap)).is_ok());
        for garbage in [&b""[..], b"\x01\xff\xff", b"\x02abc", b"\x09"] {
            assert!(decode(2, 1, &Bytes::copy_from_slice(garbage)).is_err());
        }
    }

    #[test]
    fn news_round_trips() {
        let news = FetchNews { index: 77, failed: true };
        let Ok(Decoded::FetchNews(back)) = decode(2, 1, &encode_news(news)) else { panic!("not news") };
        assert_eq!(back, news);
    }
}
