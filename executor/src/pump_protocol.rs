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
    /// What is in the pipe is the last to be written. Said again of a stream that the pump has.
    pub(crate) closing: bool,
}

const ADD_BYTES: usize = 8 + 1 + 8 + 4 + 1;

impl Add {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ADD_BYTES);
        bytes.extend(self.stream.to_le_bytes());
        bytes.push(u8::from(self.which == Which::Stderr));
        bytes.extend(self.file_bytes.to_le_bytes());
        bytes.extend(self.files.to_le_bytes());
        bytes.push(u8::from(self.closing));
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Add> {
        let (stream, rest) = bytes.split_first_chunk::<8>()?;
        let (which, rest) = rest.split_first()?;
        let (file_bytes, rest) = rest.split_first_chunk::<8>()?;
        let (files, rest) = rest.split_first_chunk::<4>()?;
        let &[closing] = rest else { return None };
        Some(Add {
            stream: u64::from_le_bytes(*stream),
            which: if *which == 0 { Which::Stdout } else { Which::Stderr },
            file_bytes: u64::from_le_bytes(*file_bytes),
            files: u32::from_le_bytes(*files),
            closing: closing != 0,
        })
    }
}

/// From the pump: the stream is at its end and written.
pub(crate) fn encode_done(stream: u64) -> [u8; 8] {
    stream.to_le_bytes()
}

pub(crate) fn decode_done(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_le_bytes)
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
                closing: which == Which::Stderr,
            };
            assert_eq!(Add::decode(&add.encode()), Some(add));
            assert_eq!(Add::decode(&add.encode()[1..]), None);
        }
        assert_eq!(decode_done(&encode_done(7)), Some(7));
        assert_eq!(decode_done(b""), None);
    }
}
