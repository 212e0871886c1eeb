//! What supervisor and pump say to each other. Both are the same binary, so the form may change with it.

/// Which of a task's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Stdout,
    Stderr,
}

impl Which {
    pub(crate) const BOTH: [Which; 2] = [Which::Stdout, Which::Stderr];

    /// The first part of the file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Which::Stdout => "stdout",
            Which::Stderr => "stderr",
        }
    }
}

/// How the streams of one launch are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rotation {
    pub(crate) file_bytes: u64,
    pub(crate) files: u32,
    pub(crate) bytes_per_second: u64,
}

/// How far a stream was when a pump last said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// The offset of the next byte.
    pub(crate) offset: u64,
    /// Bytes thrown away so far.
    pub(crate) dropped: u64,
}

/// To the pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Write these. With a descriptor for the log directory, and then one for each stream: the pipe's read end.
    Add(Add),
    /// What is in the pipes of these is the last to be written.
    Close {
        /// Whose.
        logs: u64,
    },
}

/// The streams of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Add {
    /// Names them; never used again.
    pub(crate) logs: u64,
    pub(crate) rotation: Rotation,
    /// What is in the pipes is the last to be written.
    pub(crate) closing: bool,
    /// No pump has been told of them before: nothing of them is in the directory.
    pub(crate) new: bool,
    /// Those that are not at their end: stdout, stderr.
    pub(crate) streams: [Option<Position>; 2],
}

const ADD: u64 = 1;
const CLOSE: u64 = 2;

impl Order {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Order::Close { logs } => bytes(&[CLOSE, logs]),
            Order::Add(add) => {
                let Rotation { file_bytes, files, bytes_per_second } = add.rotation;
                let [out, err] = add.streams.map(Option::unwrap_or_default);
                let [has_out, has_err] = add.streams.map(|stream| u64::from(stream.is_some()));
                let flags = [add.closing.into(), add.new.into(), has_out, has_err];
                let numbers = [ADD, add.logs, file_bytes, files.into(), bytes_per_second];
                let positions = [out.offset, out.dropped, err.offset, err.dropped];
                bytes(&[&numbers[..], &flags[..], &positions[..]].concat())
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Order> {
        if let Some([CLOSE, logs]) = numbers(bytes) {
            return Some(Order::Close { logs });
        }
        let [kind, logs, file_bytes, files, bytes_per_second, rest @ ..] = numbers::<13>(bytes)?;
        let [closing, new, has_out, has_err, out_offset, out_dropped, err_offset, err_dropped] = rest;
        let out = Position { offset: out_offset, dropped: out_dropped };
        let err = Position { offset: err_offset, dropped: err_dropped };
        (kind == ADD).then_some(())?;
        Some(Order::Add(Add {
            logs,
            rotation: Rotation { file_bytes, files: files.try_into().ok()?, bytes_per_second },
            closing: closing != 0,
            new: new != 0,
            streams: [(has_out != 0).then_some(out), (has_err != 0).then_some(err)],
        }))
    }
}

/// From the pump: how far a stream is. A datagram holds one or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// Of which streams this is one.
    pub(crate) logs: u64,
    pub(crate) which: Which,
    /// It is at its end and written.
    pub(crate) ended: bool,
    pub(crate) position: Position,
}

/// The most in one datagram.
pub(crate) const TOLD_MAX: usize = 1024;

impl Told {
    pub(crate) fn encode(all: impl Iterator<Item = Told>) -> Vec<u8> {
        let numbers = |told: Told| {
            let flags = u64::from(told.ended) << 1 | u64::from(told.which == Which::Stderr);
            [told.logs, flags, told.position.offset, told.position.dropped]
        };
        bytes(&all.take(TOLD_MAX).flat_map(numbers).collect::<Vec<_>>())
    }

    pub(crate) fn decode(bytes: &[u8]) -> impl Iterator<Item = Told> + '_ {
        bytes.chunks_exact(4 * 8).filter_map(|bytes| {
            let [logs, flags, offset, dropped] = numbers(bytes)?;
            let which = Which::BOTH[(flags & 1) as usize];
            Some(Told { logs, which, ended: flags & 2 != 0, position: Position { offset, dropped } })
        })
    }
}

fn bytes(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn numbers<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (words, rest) = bytes.as_chunks::<8>();
    let words: &[[u8; 8]; N] = words.try_into().ok().filter(|_| rest.is_empty())?;
    Some(words.map(u64::from_le_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_went() {
        let (one, other) = (Position { offset: 4, dropped: 5 }, Position { offset: 1 << 50, dropped: 6 });
        for streams in [[Some(one), Some(other)], [Some(one), None], [None, Some(other)]] {
            let rotation = Rotation { file_bytes: 10 << 20, files: 2, bytes_per_second: 3 };
            let [closing, new] = streams.map(|stream| stream.is_some());
            let add = Order::Add(Add { logs: 1 << 40, rotation, closing, new, streams });
            assert_eq!(Order::decode(&add.encode()), Some(add));
            assert_eq!(Order::decode(&add.encode()[1..]), None);
            assert_eq!(Order::decode(&add.encode()[8..]), None);
        }
        let close = Order::Close { logs: 7 };
        assert_eq!(Order::decode(&close.encode()), Some(close));
        assert_eq!(Order::decode(b""), None);
        let told = |which, ended| Told { logs: 7, which, ended, position: other };
        let all = [told(Which::Stdout, true), told(Which::Stderr, false), told(Which::Stderr, true)];
        let bytes = Told::encode(all.into_iter());
        assert_eq!(Told::decode(&bytes).collect::<Vec<_>>(), all);
        assert_eq!(Told::decode(b"").next(), None);
        let many = Told::encode((0..2 * TOLD_MAX as u64).map(|logs| Told { logs, ..all[0] }));
        assert_eq!(Told::decode(&many).count(), TOLD_MAX);
    }
}
