//! What supervisor and pump say to each other. Both are the same binary, so the form may change with it.

/// Which of a task's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Stdout,
    Stderr,
}

impl Which {
    /// The first part of the file names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Which::Stdout => "stdout",
            Which::Stderr => "stderr",
        }
    }
}

/// To the pump, with two descriptors: the pipe's read end and the log directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Add {
    pub(crate) stream: u64,
    pub(crate) which: Which,
    pub(crate) file_bytes: u64,
    pub(crate) files: u32,
    pub(crate) bytes_per_second: u64,
    /// How far the stream was, and how much of it was thrown away, when a pump last said so.
    pub(crate) offset: u64,
    pub(crate) dropped: u64,
    /// What is in the pipe is the last to be written. Said again of a stream that the pump has.
    pub(crate) closing: bool,
}

impl Add {
    pub(crate) fn encode(self) -> Vec<u8> {
        let numbers = [
            self.stream,
            self.file_bytes,
            self.files.into(),
            self.bytes_per_second,
            self.offset,
            self.dropped,
            u64::from(self.which == Which::Stderr),
            self.closing.into(),
        ];
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Add> {
        let [stream, file_bytes, files, bytes_per_second, offset, dropped, stderr, closing] = numbers(bytes)?;
        Some(Add {
            stream,
            which: if stderr == 0 { Which::Stdout } else { Which::Stderr },
            file_bytes,
            files: files.try_into().ok()?,
            bytes_per_second,
            offset,
            dropped,
            closing: closing != 0,
        })
    }
}

/// From the pump: how far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) stream: u64,
    /// It is at its end and written.
    pub(crate) ended: bool,
    /// The offset of its next byte.
    pub(crate) offset: u64,
    /// Bytes thrown away so far.
    pub(crate) dropped: u64,
}

impl Told {
    pub(crate) fn encode(self) -> Vec<u8> {
        let numbers = [self.stream, self.ended.into(), self.offset, self.dropped];
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Told> {
        let [stream, ended, offset, dropped] = numbers(bytes)?;
        Some(Told { stream, ended: ended != 0, offset, dropped })
    }
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
        for which in [Which::Stdout, Which::Stderr] {
            let add = Add {
                stream: 1 << 40,
                which,
                file_bytes: 10 << 20,
                files: 2,
                bytes_per_second: 3,
                offset: 4,
                dropped: 5,
                closing: which == Which::Stderr,
            };
            assert_eq!(Add::decode(&add.encode()), Some(add));
            assert_eq!(Add::decode(&add.encode()[1..]), None);
            assert_eq!(Add::decode(&add.encode()[8..]), None);
        }
        let told = Told { stream: 7, ended: true, offset: 1 << 50, dropped: 2 };
        assert_eq!(Told::decode(&told.encode()), Some(told));
        assert_eq!(Told::decode(b""), None);
    }
}
