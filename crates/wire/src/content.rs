//! A hash of what a call asks, by which a repetition is told from another call with the same number.

use prost::Message;

/// The 64-bit hash of a message's encoding under a name. Two masters of one version agree on it; it guards against
/// mistakes, not against a liar, who could only confuse himself.
pub(crate) fn content_hash(name: &[u8], message: &impl Message) -> u64 {
    let mut bytes = Vec::with_capacity(name.len() + message.encoded_len());
    bytes.extend_from_slice(name);
    message.encode_raw(&mut bytes);
    hash(&bytes)
}

/// FNV-1a over words of eight bytes, stirred after each and at the end.
fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::v1::{KillRequest, TeardownRequest};

    #[test]
    fn content_is_told_apart() {
        let kill = |task: &str, grace_ms| KillRequest { call: None, task_id: task.into(), grace_ms };
        let hashes = [
            content_hash(b"kill", &kill("a", None)),
            content_hash(b"kill", &kill("b", None)),
            content_hash(b"kill", &kill("a", Some(0))),
            content_hash(b"kill", &kill("", None)),
            content_hash(b"teardown", &TeardownRequest { call: None }),
        ];
        for (i, one) in hashes.iter().enumerate() {
            assert!(!hashes[i + 1..].contains(one), "{i}");
        }
        // Masters of several versions live side by side during an upgrade: the function must not change.
        assert_eq!(hash(b"proffer"), 4_869_237_063_039_365_585);
    }
}
