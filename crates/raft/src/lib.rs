//! raft.
