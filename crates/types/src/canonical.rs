//! The canonical encoding: one byte string per value, the same on every machine and in every version. Digests are
//! taken of it (a spec's, the replicated state's); nothing is ever decoded from it.
//!
//! Rules: integers as 8 bytes little-endian (128-bit ones as 16), truth values as 1 byte, texts, lists and maps with
//! their length before them, options with 0 or 1 before them, enums as their number. The fields of a record follow
//! one another in the order of these functions. A field that is added later is appended, and only where it differs
//! from its default, behind a number of its own: what was encoded before keeps its digest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::command::{Answer, Refusal, Rejection};
use crate::container::{Burst, Container};
use crate::resources::{AttributionParts, Custom, DiskKind};
use crate::{
    Agent, AgentId, AgentInfo, AgentState, AttributeValue, BootId, Caller, CallerKind, ClusterId,
    ClusterTime, ExecutorId, Framework, FrameworkId, FrameworkInfo, FrameworkState, LaunchId, MasterId,
    Quantities, Ranges, Reason, RequestId, Resources, Role, SessionId, Source, SpecDigest, Status, TaskId,
    TaskSpec, TaskState,
};

/// Where an encoding goes.
pub trait Sink {
    /// Takes the next bytes.
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for Sha256 {
    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// A value with a canonical encoding.
pub trait Canonical {
    /// Writes the encoding.
    fn encode(&self, out: &mut dyn Sink);
}

/// The SHA-256 of a value's encoding.
pub fn digest(value: &dyn Canonical) -> [u8; 32] {
    let mut hash = Sha256::new();
    value.encode(&mut hash);
    hash.finalize().into()
}

impl TaskSpec {
    /// What identifies the spec: the SHA-256 of its canonical encoding.
    pub fn digest(&self) -> SpecDigest {
        SpecDigest(digest(self))
    }

    /// The size of its canonical encoding in bytes, which is what limits count.
    pub fn encoded_bytes(&self) -> u64 {
        struct Count(u64);
        impl Sink for Count {
            fn put(&mut self, bytes: &[u8]) {
                self.0 += bytes.len() as u64;
            }
        }
        let mut count = Count(0);
        self.encode(&mut count);
        count.0
    }
}

macro_rules! as_u64 {
    ($($name:ty),*) => {
        $(impl Canonical for $name {
            fn encode(&self, out: &mut dyn Sink) {
                out.put(&u64::from(*self).to_le_bytes());
            }
        })*
    };
}

as_u64!(u8, u16, u32, u64);

impl Canonical for u128 {
    fn encode(&self, out: &mut dyn Sink) {
        out.put(&self.to_le_bytes());
    }
}

impl Canonical for i64 {
    fn encode(&self, out: &mut dyn Sink) {
        out.put(&self.to_le_bytes());
    }
}

impl Canonical for i32 {
    fn encode(&self, out: &mut dyn Sink) {
        i64::from(*self).encode(out);
    }
}

impl Canonical for bool {
    fn encode(&self, out: &mut dyn Sink) {
        out.put(&[u8::from(*self)]);
    }
}

impl Canonical for str {
    fn encode(&self, out: &mut dyn Sink) {
        (self.len() as u64).encode(out);
        out.put(self.as_bytes());
    }
}

impl Canonical for String {
    fn encode(&self, out: &mut dyn Sink) {
        self.as_str().encode(out);
    }
}

impl<T: Canonical + ?Sized> Canonical for &T {
    fn encode(&self, out: &mut dyn Sink) {
        (**self).encode(out);
    }
}

impl<T: Canonical + ?Sized> Canonical for Arc<T> {
    fn encode(&self, out: &mut dyn Sink) {
        (**self).encode(out);
    }
}

impl<T: Canonical> Canonical for Option<T> {
    fn encode(&self, out: &mut dyn Sink) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
}

impl<T: Canonical> Canonical for [T] {
    fn encode(&self, out: &mut dyn Sink) {
        (self.len() as u64).encode(out);
        self.iter().for_each(|item| item.encode(out));
    }
}

impl<T: Canonical> Canonical for Vec<T> {
    fn encode(&self, out: &mut dyn Sink) {
        self.as_slice().encode(out);
    }
}

impl<T: Canonical> Canonical for BTreeSet<T> {
    fn encode(&self, out: &mut dyn Sink) {
        (self.len() as u64).encode(out);
        self.iter().for_each(|item| item.encode(out));
    }
}

impl<K: Canonical, V: Canonical> Canonical for BTreeMap<K, V> {
    fn encode(&self, out: &mut dyn Sink) {
        (self.len() as u64).encode(out);
        self.iter().for_each(|pair| pair.encode(out));
    }
}

impl<A: Canonical, B: Canonical> Canonical for (A, B) {
    fn encode(&self, out: &mut dyn Sink) {
        self.0.encode(out);
        self.1.encode(out);
    }
}

macro_rules! as_inner {
    ($($name:ty),*) => {
        $(impl Canonical for $name {
            fn encode(&self, out: &mut dyn Sink) {
                self.0.encode(out);
            }
        })*
    };
}

as_inner!(AgentId, FrameworkId, SessionId, LaunchId, MasterId, RequestId, BootId, ClusterTime);

macro_rules! as_bytes {
    ($($name:ty),*) => {
        $(impl Canonical for $name {
            fn encode(&self, out: &mut dyn Sink) {
                out.put(&self.0);
            }
        })*
    };
}

as_bytes!(ClusterId, SpecDigest);

macro_rules! as_number {
    ($($name:ty),*) => {
        $(impl Canonical for $name {
            fn encode(&self, out: &mut dyn Sink) {
                self.number().encode(out);
            }
        })*
    };
}

as_number!(
    TaskState,
    Reason,
    Source,
    Refusal,
    Rejection,
    crate::container::UserNamespace,
    crate::container::Rlimit
);

macro_rules! as_text {
    ($($name:ty),*) => {
        $(impl Canonical for $name {
            fn encode(&self, out: &mut dyn Sink) {
                self.as_str().encode(out);
            }
        })*
    };
}

as_text!(TaskId, ExecutorId, Role);

macro_rules! in_order {
    ($($name:ty { $($field:ident),* $(,)? })*) => {
        $(impl Canonical for $name {
            fn encode(&self, out: &mut dyn Sink) {
                $(self.$field.encode(out);)*
            }
        })*
    };
}

in_order! {
    crate::task::KillOrder { grace_ms, agent_seq, reason }
    AgentInfo { hostname, resources, attributes, features, isolation, version }
    Agent {
        id, info, instance, boot_id, state, last_seq, used, attachment, registered_at, registered_wall_ms,
    }
    FrameworkInfo { name, user, roles, failover_timeout_ms, ends_with_tasks, hostname, labels }
    Framework {
        id, info, owner, origin, session, state, completion_reason, launched, live_tasks, spec_bytes, registered_at,
        registered_wall_ms,
    }
    Answer { index, content, first_launch, outcomes, rejected }
    AttributionParts { reservation, volume, disk, revocable, shared }
    crate::resources::Volume { id, container_path }
    crate::resources::Disk { kind, id }
    crate::resources::Entry { attribution, quantities, copies }
    Custom { scalars, ranges, sets }
}

in_order! {
    Container { working_directory, hostname, terminal, seccomp, users, rlimits, cpuset, io, hugetlb }
    crate::container::Seccomp { profile, also }
    crate::container::RlimitValue { soft, hard }
    crate::container::Io { weight, limits }
    crate::container::IoLimit { read_bytes, write_bytes, read_ops, write_ops }
    Burst { cpus_milli, memory_bytes }
    crate::container::Check { probe, delay_ms, interval_ms, timeout_ms }
    crate::container::HealthCheck { check, grace_ms, failures }
    crate::container::ExecutorSpec { id, spec }
}

impl Canonical for TaskSpec {
    fn encode(&self, out: &mut dyn Sink) {
        let Self { argv, env, user, resources, kill_grace_ms, pids_max, needs, labels, .. } = self;
        (argv, env).encode(out);
        (user, resources).encode(out);
        (kill_grace_ms, pids_max).encode(out);
        (needs, labels).encode(out);
        let Self { container, burst, health, readiness, max_completion_ms, executor, data, .. } = self;
        if *container != Container::default() {
            (1u8, container).encode(out);
        }
        if *burst != Burst::default() {
            (2u8, burst).encode(out);
        }
        if let Some(health) = health {
            (3u8, health).encode(out);
        }
        if let Some(readiness) = readiness {
            (4u8, readiness).encode(out);
        }
        if *max_completion_ms > 0 {
            (5u8, max_completion_ms).encode(out);
        }
        if let Some(executor) = executor {
            (6u8, executor).encode(out);
        }
        if !data.is_empty() {
            (7u8, data).encode(out);
        }
    }
}

impl Canonical for Status {
    fn encode(&self, out: &mut dyn Sink) {
        let Self { master_seq, task_seq, state, reason, source, message, exit_code, signal, .. } = self;
        (master_seq, task_seq).encode(out);
        (state, reason).encode(out);
        (source, message).encode(out);
        (exit_code, signal).encode(out);
        let Self { memory_peak_bytes, isolation, wall_ms, .. } = self;
        (memory_peak_bytes, (isolation, wall_ms)).encode(out);
        let Self { healthy, ready, output_dropped_bytes, data, .. } = self;
        if let Some(healthy) = healthy {
            (1u8, healthy).encode(out);
        }
        if let Some(ready) = ready {
            (2u8, ready).encode(out);
        }
        if let Some(dropped) = output_dropped_bytes {
            (3u8, dropped).encode(out);
        }
        if !data.is_empty() {
            (4u8, data).encode(out);
        }
    }
}

impl Canonical for crate::container::Probe {
    fn encode(&self, out: &mut dyn Sink) {
        use crate::container::Probe;
        match self {
            Probe::Command(argv) => (0u8, argv).encode(out),
            Probe::Http { port, path } => (1u8, (port, path)).encode(out),
            Probe::Tcp { port } => (2u8, port).encode(out),
            Probe::Grpc { port, service } => (3u8, (port, service)).encode(out),
        }
    }
}

impl Canonical for crate::container::ProbePort {
    fn encode(&self, out: &mut dyn Sink) {
        match self {
            Self::Number(number) => (0u8, number).encode(out),
            Self::Index(index) => (1u8, index).encode(out),
        }
    }
}

impl Canonical for Caller {
    fn encode(&self, out: &mut dyn Sink) {
        self.principal.encode(out);
        let kind: u8 = match self.kind {
            CallerKind::Anonymous => 0,
            CallerKind::Master => 1,
        };
        kind.encode(out);
    }
}

impl Canonical for AttributeValue {
    fn encode(&self, out: &mut dyn Sink) {
        match self {
            Self::Text(text) => (0u8, text).encode(out),
            Self::Milli(milli) => (1u8, milli).encode(out),
        }
    }
}

impl Canonical for AgentState {
    fn encode(&self, out: &mut dyn Sink) {
        match self {
            Self::Reachable => 0u8.encode(out),
            Self::Unreachable { since } => (1u8, since).encode(out),
        }
    }
}

impl Canonical for FrameworkState {
    fn encode(&self, out: &mut dyn Sink) {
        match self {
            Self::Connected => 0u8.encode(out),
            Self::Disconnected { deadline } => (1u8, deadline).encode(out),
            Self::Completed { at } => (2u8, at).encode(out),
        }
    }
}

impl Canonical for DiskKind {
    fn encode(&self, out: &mut dyn Sink) {
        let kind: u8 = match self {
            Self::Path => 0,
            Self::Mount => 1,
            Self::Block => 2,
            Self::Raw => 3,
        };
        kind.encode(out);
    }
}

impl Canonical for crate::Attribution {
    fn encode(&self, out: &mut dyn Sink) {
        self.parts().encode(out);
    }
}

impl Canonical for Ranges {
    fn encode(&self, out: &mut dyn Sink) {
        self.iter().collect::<Vec<_>>().encode(out);
    }
}

impl Canonical for Quantities {
    fn encode(&self, out: &mut dyn Sink) {
        self.scalar_array().as_slice().encode(out);
        self.ports().encode(out);
        self.custom().encode(out);
    }
}

impl Canonical for Resources {
    fn encode(&self, out: &mut dyn Sink) {
        self.entries().encode(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_keep_neighbours_apart() {
        let one = TaskSpec { argv: vec!["ab".into(), "c".into()], ..Default::default() };
        let two = TaskSpec { argv: vec!["a".into(), "bc".into()], ..Default::default() };
        let three = TaskSpec { argv: vec!["ab".into(), "c".into()], user: "x".into(), ..Default::default() };
        assert_ne!(one.digest(), two.digest());
        assert_ne!(one.digest(), three.digest());
        assert_eq!(one.digest(), one.clone().digest());
        let mut bytes = Vec::new();
        one.encode(&mut bytes);
        assert_eq!(bytes.len() as u64, one.encoded_bytes());
    }

    /// Digests are in the log's and the snapshots' task records: they must not change.
    #[test]
    fn the_digest_of_a_spec_is_the_same_for_ever() {
        let spec = TaskSpec {
            argv: vec!["sleep".into(), "1".into()],
            env: [("A".to_owned(), "b".to_owned())].into(),
            resources: Resources::parse("cpus:0.5;mem:32MiB;ports:[31000-31001];licence:2;sets:{a,b}")
                .unwrap(),
            kill_grace_ms: 5_000,
            ..Default::default()
        };
        let hex: String = spec.digest().0.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "33f27fc2db6ca736a1259c8cb8815c8d7d2f7f00cafcb06be98fd081c24c8d2c");
    }
}
