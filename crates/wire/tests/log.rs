//! The log's and the snapshots' encoding: every kind there and back, every broken record refused, and what was written
//! once stays readable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use proffer_types::command::{
    AcceptPart, Ack, AdminId, Answer, Attach, CallId, Command, CompletionReason, Entry, Held, Launch, Member,
    Operation, Refusal, Rejection,
};
use proffer_types::container::{
    Burst, Check, Container, ExecutorSpec, HealthCheck, Io, IoLimit, Probe, ProbePort, Rlimit, RlimitValue,
    Seccomp, UserNamespace,
};
use proffer_types::event::{Group, LaunchKind};
use proffer_types::image::{
    AdminAnswerImage, AnswerImage, FinishedImage, Meta, Segment, SessionImage, SpecImage, TaskImage,
};
use proffer_types::resources::{AttributionParts, Disk, DiskKind, Quantities, Volume};
use proffer_types::task::KillOrder;
use proffer_types::{
    Agent, AgentId, AgentInfo, AgentState, AttributeValue, BootId, Caller, ClusterId, ClusterTime,
    ExecutorId, Framework, FrameworkId, FrameworkInfo, FrameworkState, LaunchId, MasterId, Ranges, Reason,
    RequestId, Resources, Role, SessionId, Source, SpecDigest, Status, TaskId, TaskLaunch, TaskSpec,
    TaskState,
};
use proffer_wire::{RecordError, from_proto, to_proto};

/// Random values from a seed (splitmix64): the same on every machine.
struct Dice {
    state: u64,
    /// Only what the log's first (1) or second (2) version has is thrown; with [`NEWEST`] all there is.
    version: u32,
}

/// Whatever this program knows.
const NEWEST: u32 = 3;

impl Dice {
    /// How many there are of something in its version.
    fn known(&self, counts: [usize; 3]) -> usize {
        counts[self.version as usize - 1]
    }

    fn new(state: u64) -> Self {
        Self { state, version: NEWEST }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Small, large and border values alike.
    fn number(&mut self) -> u64 {
        match self.below(5) {
            0 => 0,
            1 => u64::MAX,
            2 => self.below(200),
            _ => self.next() >> self.below(60),
        }
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.flag() { Some(make(self)) } else { None }
    }

    fn some<T>(&mut self, most: u64, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(most + 1)).map(|_| make(self)).collect()
    }

    fn text(&mut self) -> String {
        let words = ["", "x", "a long text with spaces", "ümläut", "line\nbreak", "\0", "日本"];
        words[self.below(words.len() as u64) as usize].to_owned()
    }

    fn word(&mut self) -> String {
        format!("w{}", self.below(1_000))
    }

    fn map(&mut self) -> BTreeMap<String, String> {
        self.some(3, |dice| (dice.word(), dice.text())).into_iter().collect()
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    fn role(&mut self) -> Role {
        Role::new(self.of(&["*", "eng", "eng/build", "ops/日本"])).unwrap()
    }

    fn task_id(&mut self) -> TaskId {
        TaskId::new(&self.word()).unwrap()
    }

    fn quantities(&mut self) -> Quantities {
        let texts = [
            "cpus:0.5;mem:64MiB",
            "cpus:9;mem:18GiB;disk:1TiB;gpus:2;ports:[31000-31009,31020-31020]",
            "mem:1B",
            "licence:2;slots:[0-3,9-9];zones:{a,b,c}",
            "cpus:9223372036854775.807",
        ];
        Resources::parse(self.of(&texts)).unwrap().entries()[0].quantities.clone()
    }

    fn resources(&mut self) -> Resources {
        let mut sum = Resources::new();
        for n in 0..self.below(4) {
            let mut parts = AttributionParts { revocable: n == 1, ..Default::default() };
            if n > 1 {
                parts.reservation = vec![Role::new("eng").unwrap(), Role::new("eng/build").unwrap()];
                let id = self.word();
                parts.volume = self.maybe(|_| Volume { id, container_path: "data".into() });
                let kind = self.of(&[DiskKind::Path, DiskKind::Mount, DiskKind::Block, DiskKind::Raw]);
                parts.disk = self.maybe(|dice| Disk { kind, id: dice.text() });
                parts.shared = parts.volume.is_some() && self.flag();
            }
            let shared = parts.shared;
            let one = Resources::of(parts.into(), self.quantities());
            let _ = sum.add(&one);
            if shared {
                let _ = sum.add(&one);
            }
        }
        sum
    }

    fn reason(&mut self) -> Reason {
        self.of(&Reason::ALL[..self.known([21, 30, Reason::ALL.len()])])
    }

    fn status(&mut self) -> Status {
        let mut status = Status::new(self.of(TaskState::ALL), self.reason(), self.of(Source::ALL));
        status.master_seq = self.number() as u32;
        status.task_seq = self.number() as u32;
        status.message = self.text();
        status.exit_code = self.maybe(|dice| dice.number() as i32);
        status.signal = self.maybe(|dice| dice.below(65) as i32);
        status.memory_peak_bytes = self.maybe(Self::number);
        status.isolation = self.maybe(Self::text);
        status.wall_ms = self.number();
        if self.version == 1 {
            return status;
        }
        status.healthy = self.maybe(Self::flag);
        status.ready = self.maybe(Self::flag);
        status.output_dropped_bytes = self.maybe(Self::number);
        status.data = self.maybe(Self::text).unwrap_or_default().into_bytes();
        status
    }

    fn container(&mut self) -> Container {
        let limit = |dice: &mut Self| IoLimit { write_bytes: dice.number(), ..IoLimit::default() };
        Container {
            working_directory: self.text(),
            hostname: self.text(),
            terminal: self.flag(),
            seccomp: Seccomp { profile: self.text(), also: self.text() },
            users: self.of(UserNamespace::ALL),
            rlimits: self
                .some(3, |dice| {
                    let value = RlimitValue { soft: dice.number(), hard: dice.maybe(Self::number) };
                    (dice.of(Rlimit::ALL), value)
                })
                .into_iter()
                .collect(),
            cpuset: Ranges::new("cpuset", [(0, 1), (3, 3 + self.below(5))]).unwrap(),
            io: Io {
                weight: self.below(100) as u32,
                limits: self.some(2, |dice| (dice.word(), limit(dice))).into_iter().collect(),
            },
            hugetlb: self.some(2, |dice| (dice.number(), dice.number())).into_iter().collect(),
        }
    }

    fn check(&mut self) -> Check {
        let port = match self.flag() {
            true => ProbePort::Number(1 + self.below(9_000) as u16),
            false => ProbePort::Index(self.below(3) as u32),
        };
        let probe = match self.below(4) {
            0 => Probe::Command(vec!["true".into(), self.text()]),
            1 => Probe::Http { port, path: format!("/{}", self.word()) },
            2 => Probe::Tcp { port },
            _ => Probe::Grpc { port, service: self.text() },
        };
        Check { probe, delay_ms: self.number(), interval_ms: self.number(), timeout_ms: self.number() }
    }

    fn spec(&mut self) -> Arc<TaskSpec> {
        let plain = self.plain_spec();
        if self.version == 1 {
            return Arc::new(plain);
        }
        let health = |dice: &mut Self| HealthCheck { check: dice.check(), grace_ms: 1, failures: 3 };
        let executor = |dice: &mut Self| ExecutorSpec {
            id: ExecutorId::new("ex").unwrap(),
            spec: Arc::new(dice.plain_spec()),
        };
        Arc::new(TaskSpec {
            container: self.maybe(Self::container).unwrap_or_default(),
            burst: Burst { cpus_milli: self.maybe(Self::number), memory_bytes: self.maybe(Self::number) },
            health: self.maybe(health),
            readiness: self.maybe(Self::check),
            max_completion_ms: self.number(),
            executor: self.maybe(executor),
            data: self.text().into_bytes(),
            ..plain
        })
    }

    fn plain_spec(&mut self) -> TaskSpec {
        TaskSpec {
            argv: self.some(3, Self::text),
            env: self.map(),
            user: self.text(),
            resources: self.resources(),
            kill_grace_ms: self.number(),
            pids_max: self.number(),
            needs: self.some(2, Self::word),
            labels: self.map(),
            ..TaskSpec::default()
        }
    }

    fn agent_info(&mut self) -> AgentInfo {
        let attribute = |dice: &mut Self| match dice.flag() {
            true => AttributeValue::Text(dice.text()),
            false => AttributeValue::Milli(dice.number() as i64),
        };
        AgentInfo {
            hostname: self.text(),
            resources: self.resources(),
            attributes: self.some(3, |dice| (dice.word(), attribute(dice))).into_iter().collect(),
            features: self.some(3, Self::word).into_iter().collect::<BTreeSet<_>>(),
            isolation: self.word(),
            version: self.text(),
        }
    }

    fn framework_info(&mut self) -> FrameworkInfo {
        FrameworkInfo {
            name: self.text(),
            user: self.text(),
            roles: self.some(3, Self::role),
            failover_timeout_ms: self.number(),
            ends_with_tasks: self.flag(),
            hostname: self.text(),
            labels: self.map(),
        }
    }

    fn random(&mut self) -> u128 {
        u128::from(self.number()) << 64 | u128::from(self.number())
    }

    fn caller(&mut self) -> Caller {
        if self.flag() {
            Caller::master()
        } else {
            Caller { principal: self.text().into(), ..Caller::anonymous() }
        }
    }

    fn call_id(&mut self) -> CallId {
        CallId {
            framework: FrameworkId(self.number()),
            session: SessionId(self.number()),
            seq: self.number(),
            done_below: self.number(),
            content: self.number(),
        }
    }

    fn admin_id(&mut self) -> AdminId {
        AdminId { request: RequestId(self.random()), time: ClusterTime(self.number()) }
    }

    fn launch_status(&mut self) -> (LaunchId, Status) {
        (LaunchId(self.number()), self.status())
    }

    fn array(&mut self) -> Option<(u32, u32)> {
        self.maybe(|dice| (dice.number() as u32, dice.number() as u32))
    }

    fn refusal(&mut self) -> Refusal {
        self.of(&Refusal::ALL[..self.known([8, 10, Refusal::ALL.len()])])
    }

    fn rejection(&mut self) -> Rejection {
        self.of(&Rejection::ALL[..self.known([15, 16, Rejection::ALL.len()])])
    }

    fn task(&mut self) -> Result<TaskLaunch, Refusal> {
        match self.below(4) {
            0 => Err(self.refusal()),
            _ => Ok(TaskLaunch {
                task_id: self.task_id(),
                name: self.text(),
                env: self.map(),
                array: self.array(),
            }),
        }
    }

    fn operation(&mut self) -> Operation {
        if self.version > 1 && self.flag() {
            let member = |dice: &mut Self| Member { spec: dice.spec(), task: dice.task() };
            let first = member(self);
            return Operation::LaunchGroup([vec![first], self.some(3, member)].concat());
        }
        Operation::Launch(Launch { spec: self.spec(), tasks: self.some(4, Self::task) })
    }

    fn executor_id(&mut self) -> ExecutorId {
        ExecutorId::new(&self.word()).unwrap()
    }

    fn command(&mut self, kind: usize) -> Command {
        match kind {
            0 => Command::Form {
                cluster: ClusterId(self.random().to_be_bytes()),
                masters: self.some(3, |dice| (MasterId(dice.number()), dice.text())),
            },
            1 => Command::Tick,
            2 => Command::RegisterAgent {
                instance: RequestId(self.random()),
                info: self.agent_info(),
                boot_id: BootId(self.random()),
            },
            3 => Command::AttachAgent(Attach {
                agent: AgentId(self.number()),
                instance: RequestId(self.random()),
                info: self.agent_info(),
                boot_id: BootId(self.random()),
                last_seq: self.number(),
                digest: self.number(),
                held: self.maybe(|dice| {
                    dice.some(4, |dice| {
                        let (launch, status) = dice.launch_status();
                        Held { launch, status }
                    })
                }),
            }),
            4 => Command::MarkUnreachable { agent: AgentId(self.number()), attachment: self.number() },
            5 => Command::RemoveAgent { agent: AgentId(self.number()) },
            6 => Command::OpenSession {
                framework: self.maybe(Self::number).map(FrameworkId),
                origin: RequestId(self.random()),
                info: self.framework_info(),
            },
            7 => Command::Reconnect {
                framework: FrameworkId(self.number()),
                session: SessionId(self.number()),
            },
            8 => Command::Disconnect {
                framework: FrameworkId(self.number()),
                session: SessionId(self.number()),
            },
            9 => Command::Accept {
                call: self.call_id(),
                atomic: self.flag(),
                parts: self.some(3, |dice| AcceptPart {
                    agent: AgentId(dice.number()),
                    role: dice.role(),
                    offered: dice.resources(),
                    operations: dice.some(3, Self::operation),
                }),
            },
            10 => Command::Kill {
                call: self.call_id(),
                task: self.task_id(),
                grace_ms: self.maybe(Self::number),
            },
            11 => Command::Acknowledge {
                call: self.call_id(),
                acks: self.some(5, |dice| Ack {
                    launch: LaunchId(dice.number()),
                    master_seq: dice.number() as u32,
                    task_seq: dice.number() as u32,
                }),
            },
            12 => Command::Teardown { call: self.call_id() },
            13 => Command::AdminKill {
                call: self.admin_id(),
                framework: FrameworkId(self.number()),
                task: self.task_id(),
                grace_ms: self.maybe(Self::number),
            },
            14 => Command::AdminTeardown { call: self.admin_id(), framework: FrameworkId(self.number()) },
            15 => Command::Complete {
                framework: FrameworkId(self.number()),
                session: SessionId(self.number()),
                reason: self.of(&CompletionReason::ALL),
            },
            16 => Command::Statuses {
                agent: AgentId(self.number()),
                attachment: self.number(),
                statuses: self.some(5, Self::launch_status),
            },
            17 => Command::UpdateFramework { call: self.call_id(), info: self.framework_info() },
            18 => Command::ShutdownExecutor {
                call: self.call_id(),
                agent: AgentId(self.number()),
                executor: self.executor_id(),
            },
            _ => unreachable!("there are {COMMANDS} kinds"),
        }
    }

    fn entry(&mut self, kind: usize) -> Entry {
        Entry {
            term: self.number(),
            time: ClusterTime(self.number()),
            wall_ms: self.number(),
            caller: self.caller(),
            command: self.command(kind),
        }
    }

    fn answer(&mut self) -> Answer {
        Answer {
            index: self.number(),
            content: self.number(),
            first_launch: LaunchId(self.number()),
            outcomes: self.some(5, |dice| dice.maybe(Self::refusal)),
            rejected: self.maybe(Self::rejection),
        }
    }

    fn task_image(&mut self) -> TaskImage {
        let mut digest = [0; 32];
        digest[..16].copy_from_slice(&self.random().to_be_bytes());
        let mut image = TaskImage {
            launch_id: LaunchId(self.number()),
            task_id: self.task_id(),
            name: self.text(),
            framework: FrameworkId(self.number()),
            agent: AgentId(self.number()),
            role: self.role(),
            digest: SpecDigest(digest),
            env: self.map(),
            array: self.array(),
            resources: self.resources(),
            agent_seq: self.number(),
            kill: self.maybe(|dice| KillOrder {
                grace_ms: dice.number(),
                agent_seq: dice.number(),
                reason: dice.reason(),
            }),
            status: self.status(),
            agent_status: self.maybe(Self::status),
            pending: self.some(3, Self::status),
            created_at: ClusterTime(self.number()),
            created_wall_ms: self.number(),
            started_wall_ms: self.maybe(Self::number),
            finished_wall_ms: self.maybe(Self::number),
            group: None,
            kind: LaunchKind::Task,
        };
        if self.version > 1 {
            image.group = self
                .maybe(|dice| Group { first: LaunchId(1 + dice.below(99)), size: 1 + dice.below(9) as u32 });
            image.kind = match self.below(3) {
                0 => LaunchKind::Task,
                1 => LaunchKind::Executor(ExecutorId::new(image.task_id.as_str()).unwrap()),
                _ => LaunchKind::TaskOf(LaunchId(1 + self.below(99))),
            };
        }
        image
    }

    fn agent(&mut self) -> Agent {
        Agent {
            id: AgentId(self.number()),
            info: self.agent_info(),
            instance: RequestId(self.random()),
            boot_id: BootId(self.random()),
            state: match self.flag() {
                true => AgentState::Reachable,
                false => AgentState::Unreachable { since: ClusterTime(self.number()) },
            },
            last_seq: self.number(),
            used: self.resources(),
            attachment: self.number(),
            registered_at: ClusterTime(self.number()),
            registered_wall_ms: self.number(),
        }
    }

    fn framework(&mut self) -> Framework {
        Framework {
            id: FrameworkId(self.number()),
            info: self.framework_info(),
            owner: self.caller(),
            origin: RequestId(self.random()),
            session: SessionId(self.number()),
            state: match self.below(3) {
                0 => FrameworkState::Connected,
                1 => FrameworkState::Disconnected { deadline: ClusterTime(self.number()) },
                _ => FrameworkState::Completed { at: ClusterTime(self.number()) },
            },
            completion_reason: self.text(),
            launched: self.flag(),
            live_tasks: self.number(),
            spec_bytes: self.number(),
            registered_at: ClusterTime(self.number()),
            registered_wall_ms: self.number(),
        }
    }

    fn segment(&mut self, kind: usize) -> Segment {
        match kind {
            0 => Segment::Meta(Meta {
                state_version: self.number() as u32,
                cluster: self.maybe(|dice| ClusterId(dice.random().to_be_bytes())),
                masters: self.some(3, |dice| (MasterId(dice.number()), dice.text())),
                time: ClusterTime(self.number()),
                applied: self.number(),
                last_id: self.number(),
                last_finished: self.number(),
            }),
            1 => Segment::Agents(self.some(3, Self::agent)),
            2 => Segment::Frameworks(self.some(3, Self::framework)),
            3 => Segment::Sessions(self.some(3, |dice| SessionImage {
                session: SessionId(dice.number()),
                framework: FrameworkId(dice.number()),
                origin: RequestId(dice.random()),
                done_below: dice.number(),
            })),
            4 => Segment::Answers(self.some(3, |dice| AnswerImage {
                session: SessionId(dice.number()),
                seq: dice.number(),
                answer: dice.answer(),
            })),
            5 => Segment::AdminAnswers(self.some(3, |dice| AdminAnswerImage {
                request: RequestId(dice.random()),
                until: ClusterTime(dice.number()),
                answer: dice.answer(),
            })),
            6 => Segment::Specs(
                self.some(3, |dice| SpecImage { framework: FrameworkId(dice.number()), spec: dice.spec() }),
            ),
            7 => Segment::Tasks(self.some(3, Self::task_image)),
            8 => Segment::Finished(
                self.some(3, |dice| FinishedImage { number: dice.number(), task: dice.task_image() }),
            ),
            _ => unreachable!("there are {SEGMENTS} kinds"),
        }
    }
}

const COMMANDS: usize = 19;
/// Those of the first release.
const FIRST_COMMANDS: usize = 17;
const SEGMENTS: usize = 9;

#[test]
fn every_command_comes_back_as_it_was() {
    let mut dice = Dice::new(1);
    for round in 0..200 {
        for kind in 0..COMMANDS {
            let entry = dice.entry(kind);
            let bytes = to_proto::entry(&entry);
            assert_eq!(from_proto::entry(&bytes).as_ref(), Ok(&entry), "round {round}");
            assert_eq!(to_proto::entry(&entry), bytes, "one value, one encoding");
        }
    }
}

#[test]
fn every_segment_comes_back_as_it_was() {
    let mut dice = Dice::new(2);
    for round in 0..100 {
        for kind in 0..SEGMENTS {
            let segment = dice.segment(kind);
            let bytes = to_proto::segment(&segment);
            assert_eq!(from_proto::segment(&bytes).as_ref(), Ok(&segment), "round {round}");
        }
    }
}

#[test]
fn broken_records_are_refused_and_nothing_panics() {
    let mut dice = Dice::new(3);
    for _ in 0..30 {
        for kind in 0..COMMANDS {
            let bytes = to_proto::entry(&dice.entry(kind));
            for end in 0..bytes.len() {
                assert!(from_proto::entry(&bytes[..end]).is_err(), "cut at {end} of {}", bytes.len());
            }
            for _ in 0..50 {
                let mut flipped = bytes.clone();
                let at = dice.below(bytes.len() as u64) as usize;
                flipped[at] ^= 1 << dice.below(8);
                // It may still be a record (the log's checksums find the flip): what is understood of it is a value
                // like any other.
                if let Ok(entry) = from_proto::entry(&flipped) {
                    assert_eq!(from_proto::entry(&to_proto::entry(&entry)), Ok(entry));
                }
            }
        }
        for kind in 0..SEGMENTS {
            let bytes = to_proto::segment(&dice.segment(kind));
            for _ in 0..50 {
                let mut flipped = bytes.clone();
                let at = dice.below(bytes.len() as u64) as usize;
                flipped[at] ^= 1 << dice.below(8);
                let _ = from_proto::segment(&flipped);
            }
        }
    }
    for _ in 0..10_000 {
        let garbage: Vec<u8> = dice.some(64, |dice| dice.next() as u8);
        assert!(from_proto::entry(&garbage).is_err());
        assert!(from_proto::segment(&garbage).is_err());
    }
}

#[test]
fn what_is_not_known_is_named() {
    use proffer_wire::log::v1 as pb;
    use prost::Message;
    let good = |f: &dyn Fn(&mut pb::Entry)| {
        let mut entry = pb::Entry::decode(&*to_proto::entry(&Dice::new(4).entry(1))).unwrap();
        f(&mut entry);
        from_proto::entry(&entry.encode_to_vec())
    };
    assert!(good(&|_| {}).is_ok());
    assert!(matches!(good(&|e| e.kind = 99), Err(RecordError::UnknownKind { kind: 99, version: 1, .. })));
    assert!(matches!(
        good(&|e| e.version = 2),
        Err(RecordError::UnknownVersion { kind: 17, version: 2, known: 1, .. })
    ));
    assert!(matches!(good(&|e| e.version = 0), Err(RecordError::UnknownVersion { .. })));
    assert!(matches!(good(&|e| e.kind = 16), Err(RecordError::WrongBody { kind: 16, body: Some(17), .. })));
    assert!(matches!(good(&|e| e.body = None), Err(RecordError::WrongBody { body: None, .. })));
    // A member of the oneof and a field that do not exist in this version: numbers 60 and 61.
    let mut bytes = to_proto::entry(&Dice::new(4).entry(1));
    bytes.extend_from_slice(&[0xe2, 0x03, 0x00]);
    assert!(matches!(from_proto::entry(&bytes), Err(RecordError::NotUnderstood { kind: 17, .. })));
}

#[test]
fn a_record_has_the_lowest_version_that_has_all_it_uses() {
    use proffer_wire::log::v1 as pb;
    use prost::Message;
    let version = |entry: &Entry| pb::Entry::decode(&*to_proto::entry(entry)).unwrap().version;
    let mut dice = Dice { state: 5, version: 1 };
    assert!((0..FIRST_COMMANDS).all(|kind| version(&dice.entry(kind)) == 1));
    let mut dice = Dice::new(5);
    let later =
        (0..50).map(|_| dice.entry(9)).find(|entry| version(entry) == 2).expect("an accept with a group");
    // One that says less than it uses was not written by any version of this program.
    let mut entry = pb::Entry::decode(&*to_proto::entry(&later)).unwrap();
    entry.version = 1;
    assert!(matches!(from_proto::entry(&entry.encode_to_vec()), Err(RecordError::Invalid { kind: 25, .. })));
    let segments = || (0..20).map(|_| Dice::new(6).segment(7));
    assert!(segments().all(|segment| from_proto::segment(&to_proto::segment(&segment)) == Ok(segment)));
}

/// `tests/golden/log-v1.bin` and `log-v2.bin`: records that were written once, each behind its length (4 bytes,
/// little-endian), entries first. The first are those of the first release; the second use everything that came with
/// groups, executors, checks and containment. Neither is ever written again; a later encoding gets a file of its own.
#[test]
fn what_was_written_once_stays_readable() {
    stays_readable("log-v1.bin", Dice { state: 20_261_122, version: 1 }, FIRST_COMMANDS);
    stays_readable("log-v2.bin", Dice { state: 20_261_123, version: 2 }, COMMANDS);
}

fn stays_readable(file: &str, mut dice: Dice, commands: usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    let mut entries = Vec::new();
    let mut segments = Vec::new();
    for _ in 0..8 {
        entries.extend((0..commands).map(|kind| dice.entry(kind)));
        segments.extend((0..SEGMENTS).map(|kind| dice.segment(kind)));
    }
    if std::env::var_os("PROFFER_WRITE_GOLDEN").is_some() && !path.exists() {
        let records = entries.iter().map(to_proto::entry).chain(segments.iter().map(to_proto::segment));
        let bytes: Vec<u8> =
            records.flat_map(|r| [(r.len() as u32).to_le_bytes().to_vec(), r].concat()).collect();
        std::fs::write(&path, bytes).unwrap();
    }
    let bytes = std::fs::read(&path).unwrap();
    let mut rest = bytes.as_slice();
    let mut next = || {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let (record, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
        rest = tail;
        Some(record)
    };
    for entry in &entries {
        assert_eq!(from_proto::entry(next().unwrap()).as_ref(), Ok(entry));
    }
    for segment in &segments {
        assert_eq!(from_proto::segment(next().unwrap()).as_ref(), Ok(segment));
    }
    assert_eq!(next(), None);
}
