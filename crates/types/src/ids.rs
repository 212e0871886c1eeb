//! Identifiers minted by the cluster.
//!
//! Every minted id is a `u64` from one replicated counter: the top 16 bits are the recovery generation, the rest
//! counts. An id is therefore never used twice in the life of a cluster, even after a recovery that lost the end of
//! the log. In text an id carries a prefix that names its kind and the cell's short tag: `fw_7f3a_1c`.

use std::fmt;

/// Identifies a cluster for ever: the first 16 bytes of the hash of its founding masters' (id, nonce) pairs.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// The short tag that is part of every printed id of this cluster.
    pub fn tag(self) -> CellTag {
        CellTag(u16::from_be_bytes([self.0[0], self.0[1]]))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl std::str::FromStr for ClusterId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError { text: text.into(), expected: "32 hexadecimal digits" };
        if text.len() != 32 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

/// The first two bytes of a [`ClusterId`], printed in every id so that ids of two cells are not confused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellTag(pub u16);

/// A text that is not an id of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an id: expected {expected}")]
pub struct IdError {
    /// What was given.
    pub text: String,
    /// What an id of this kind looks like.
    pub expected: &'static str,
}

macro_rules! minted_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $shape:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// What the text form begins with.
            pub const PREFIX: &'static str = $prefix;

            /// The recovery generation under which this id was minted.
            pub fn generation(self) -> u16 {
                (self.0 >> 48) as u16
            }

            /// The text form, with the tag of the cell that minted it.
            pub fn text(self, cell: CellTag) -> String {
                format!(concat!($prefix, "_{:04x}_{:x}"), cell.0, self.0)
            }

            /// Reads the text form strictly; the cell's tag comes back with it.
            pub fn parse(text: &str) -> Result<(CellTag, Self), IdError> {
                let wrong = || IdError { text: text.chars().take(80).collect(), expected: $shape };
                let rest = text.strip_prefix(concat!($prefix, "_")).ok_or_else(wrong)?;
                let (cell, number) = rest.split_once('_').ok_or_else(wrong)?;
                let hex = |s: &str| {
                    (!s.is_empty() && s.len() <= 16 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
                        .then(|| u64::from_str_radix(s, 16).ok())
                        .flatten()
                };
                let (cell, number) = (hex(cell).filter(|_| cell.len() == 4), hex(number));
                match (cell, number) {
                    (Some(cell), Some(number)) => Ok((CellTag(cell as u16), Self(number))),
                    _ => Err(wrong()),
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{:x}"), self.0)
            }
        }
    };
}

minted_id!(
    /// A registered agent.
    AgentId, "agt", "agt_CELL_NUMBER, as in agt_7f3a_1c"
);
minted_id!(
    /// A framework, for as long as the cluster remembers it.
    FrameworkId, "fw", "fw_CELL_NUMBER, as in fw_7f3a_1c"
);
minted_id!(
    /// One subscription epoch of a framework; a later session of the same framework fences this one.
    SessionId, "ses", "ses_CELL_NUMBER, as in ses_7f3a_1c"
);
minted_id!(
    /// One launch of one task: unique for ever, so that a task can be started at most once.
    LaunchId, "lch", "lch_CELL_NUMBER, as in lch_7f3a_1c"
);

/// A master's configured integer id (greater than zero).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MasterId(pub u64);

/// An outstanding offer. Offers are not replicated: the leadership that made one is part of its id, so an offer of an
/// earlier leader can never be taken for one of the present leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfferId {
    /// The leadership that made the offer.
    pub epoch: Epoch,
    /// Counts the offers of that leadership.
    pub n: u64,
}

impl OfferId {
    /// The text form: `off_CELL_GENERATION-TERM-N`, in hexadecimal.
    pub fn text(self, cell: CellTag) -> String {
        format!("off_{:04x}_{:x}-{:x}-{:x}", cell.0, self.epoch.generation, self.epoch.term, self.n)
    }
}

/// A leadership, ordered: first the recovery generation, then the Raft term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Raised by a recovery from lost quorum.
    pub generation: u16,
    /// The Raft term.
    pub term: u64,
}

/// A 128-bit random id of a client's request; zero means "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

/// The kernel's `/proc/sys/kernel/random/boot_id`: tells one life of a host from the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub u128);

/// SHA-256 of a task spec's canonical encoding.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecDigest(pub [u8; 32]);

impl fmt::Debug for SpecDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spec_{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_and_parse_strictly() {
        let cell = CellTag(0x7f3a);
        let id = FrameworkId(0x1c);
        assert_eq!(id.text(cell), "fw_7f3a_1c");
        assert_eq!(FrameworkId::parse("fw_7f3a_1c"), Ok((cell, id)));
        for wrong in [
            "",
            "fw",
            "fw_",
            "fw_7f3a",
            "fw_7f3a_",
            "fw_7F3A_1c",
            "agt_7f3a_1c",
            "fw_7f3a_+1",
            "fw_7f3a_11111111111111111",
            "fw_07f3a_1",
        ] {
            assert!(FrameworkId::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cluster_id_round_trips() {
        let id = ClusterId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("ab".parse::<ClusterId>().is_err());
    }
}
