//! The rows: what is asked, and what must come of it.

use proffer_wire::admin::v1 as admin;
use proffer_wire::common::v1 as common;
use proffer_wire::scheduler::v1 as pb;
use tonic::Code;

use crate::bench::{
    Ask, Bench, Expected, accept, amount, launch, named, ports, spec, subscribe_request, with_resources,
};

pub(crate) const INVALID: Code = Code::InvalidArgument;
pub(crate) const FIELD: &str = "INVALID_FIELD";

/// Name, request, what must come of it.
pub(crate) type Row = (&'static str, fn(&Bench) -> Ask, Expected);

pub(crate) const IDS: &[Row] = &[
    ("an empty task id", |b| b.accept(named("")), (INVALID, FIELD, "task_id: must not be empty")),
    (
        "an over-long task id",
        |b| b.accept(named(&"x".repeat(256))),
        (INVALID, FIELD, "is longer than 255 bytes"),
    ),
    ("a slash in a task id", |b| b.accept(named("a/b")), (INVALID, FIELD, "tasks[0].task_id: contains `/`")),
    (
        "a backslash in a task id",
        |b| b.accept(named("a\\b")),
        (INVALID, FIELD, "task_id: contains `/` or `\\`"),
    ),
    (
        "a control character in a task id",
        |b| b.accept(named("a\u{7}b")),
        (INVALID, FIELD, "a control character"),
    ),
    ("a task id that is a path", |b| b.accept(named("..")), (INVALID, FIELD, "must not be `.` or `..`")),
    (
        "a bad id behind a good one",
        |b| b.accept(launch(spec(), &["good", "a/b"])),
        (INVALID, FIELD, "tasks[1].task_id"),
    ),
    (
        "an empty id to kill",
        |b| Ask::Kill(pb::KillRequest { call: b.own.call(), ..Default::default() }),
        (INVALID, FIELD, "task_id"),
    ),
    (
        "a slash in an id to kill",
        |b| Ask::Kill(pb::KillRequest { call: b.own.call(), task_id: "../x".into(), grace_ms: None }),
        (INVALID, FIELD, "task_id"),
    ),
    (
        "a bad id to reconcile",
        |b| Ask::Reconcile(pb::ReconcileRequest { call: b.own.call(), task_ids: vec!["\n".into()] }),
        (INVALID, FIELD, "task_ids[0]"),
    ),
    ("no role", |_| subscribe(|info| info.roles.clear()), (INVALID, FIELD, "info.roles")),
    (
        "an empty role",
        |_| subscribe(|info| info.roles = vec![String::new()]),
        (INVALID, FIELD, "info.roles[0]"),
    ),
    (
        "a role with an empty component",
        |_| subscribe(|info| info.roles = vec!["a//b".into()]),
        (INVALID, FIELD, "info.roles[0]"),
    ),
    (
        "a role that climbs",
        |_| subscribe(|info| info.roles = vec!["a/../b".into()]),
        (INVALID, FIELD, "info.roles[0]"),
    ),
    (
        "a role with a control character",
        |_| subscribe(|info| info.roles = vec!["a\u{0}".into()]),
        (INVALID, FIELD, "info.roles[0]"),
    ),
    (
        "an over-long role",
        |_| subscribe(|info| info.roles = vec!["r".repeat(300)]),
        (INVALID, FIELD, "info.roles[0]"),
    ),
    (
        "a role twice",
        |_| subscribe(|info| info.roles = vec!["a".into(), "a".into()]),
        (INVALID, FIELD, "info.roles"),
    ),
    (
        "a failover timeout of 500 million years",
        |_| subscribe(|info| info.failover_timeout_ms = u64::MAX),
        (INVALID, FIELD, "failover_timeout_ms"),
    ),
    (
        "an origin of 3 bytes",
        |_| Ask::Subscribe(pb::SubscribeRequest { origin: vec![1; 3].into(), ..subscribe_request("x", 9) }),
        (INVALID, FIELD, "origin"),
    ),
    (
        "no framework info",
        |_| Ask::Subscribe(pb::SubscribeRequest { info: None, ..subscribe_request("x", 9) }),
        (INVALID, FIELD, "info"),
    ),
];

pub(crate) const RESOURCES: &[Row] = &[
    ("no resources", |b| b.accept(with_resources(Vec::new())), (INVALID, FIELD, "resources")),
    (
        "no memory",
        |b| b.accept(with_resources(vec![amount("cpus", 100)])),
        (INVALID, FIELD, "a task must hold some mem"),
    ),
    (
        "zero cpus",
        |b| b.accept(with_resources(vec![amount("cpus", 0)])),
        (INVALID, FIELD, "resources[0].amount: must be greater than 0"),
    ),
    (
        "negative memory",
        |b| b.accept(with_resources(vec![amount("mem", -1i64 as u64)])),
        (INVALID, FIELD, "less than 2^63"),
    ),
    (
        "memory that overflows",
        |b| b.accept(with_resources(vec![amount("mem", 1 << 63)])),
        (INVALID, FIELD, "less than 2^63"),
    ),
    (
        "cpus twice",
        |b| b.accept(with_resources(vec![amount("cpus", 1), amount("cpus", 1)])),
        (INVALID, FIELD, "given twice"),
    ),
    ("a kind without a name", |b| b.accept(with_resources(vec![amount("", 1)])), (INVALID, FIELD, "kind")),
    ("a kind with a slash", |b| b.accept(with_resources(vec![amount("a/b", 1)])), (INVALID, FIELD, "kind")),
    (
        "ports as an amount",
        |b| b.accept(with_resources(vec![amount("ports", 1)])),
        (INVALID, FIELD, "`ports` are ranges"),
    ),
    (
        "cpus as ranges",
        |b| b.accept(with_resources(vec![common::Resource { kind: "cpus".into(), ..ports(&[(1, 2)]) }])),
        (INVALID, FIELD, "`cpus` is an amount"),
    ),
    (
        "a port over 65535",
        |b| b.accept(with_resources(vec![ports(&[(1, 70_000)])])),
        (INVALID, FIELD, "65535"),
    ),
    (
        "a range backwards",
        |b| b.accept(with_resources(vec![ports(&[(9, 3)])])),
        (INVALID, FIELD, "first <= last"),
    ),
    (
        "overlapping ranges",
        |b| b.accept(with_resources(vec![ports(&[(1, 5), (5, 9)])])),
        (INVALID, FIELD, "ranges"),
    ),
    (
        "a resource without a value",
        |b| b.accept(with_resources(vec![common::Resource { value: None, ..amount("cpus", 1) }])),
        (INVALID, FIELD, "must be given"),
    ),
    (
        "more cpus than the offer holds",
        |b| b.accept(with_resources(vec![amount("cpus", 2_001), amount("mem", 32 << 20)])),
        (Code::Ok, "NOT_OFFERED", ""),
    ),
    (
        "the most there can be",
        |b| b.accept(with_resources(vec![amount("mem", (1 << 63) - 1)])),
        (Code::Ok, "NOT_OFFERED", ""),
    ),
    (
        "what the offer does not have",
        |b| b.accept(with_resources(vec![amount("cpus", 1), amount("mem", 32 << 20), ports(&[(80, 80)])])),
        (Code::Ok, "NOT_OFFERED", ""),
    ),
    (
        "a reservation",
        |b| b.accept(with_resources(vec![attributed(|a| a.reservation = vec!["eng".into()])])),
        (Code::Unimplemented, "UNSUPPORTED", "reservation"),
    ),
    (
        "revocable cpus",
        |b| b.accept(with_resources(vec![attributed(|a| a.revocable = true)])),
        (Code::Unimplemented, "UNSUPPORTED", "revocable"),
    ),
];

pub(crate) const OFFERS: &[Row] = &[
    ("no part", |b| Ask::Accept(accept(&b.own, Vec::new())), (INVALID, FIELD, "parts")),
    ("no offer", |b| b.offers(Vec::new()), (INVALID, FIELD, "parts[0].offer_ids")),
    (
        "an offer twice in a part",
        |b| b.offers(vec![b.offer(0), b.offer(0)]),
        (INVALID, FIELD, "offer_ids[1]: is there twice"),
    ),
    (
        "an offer in two parts",
        |b| {
            let part = |task| (vec![b.offer(0)], vec![named(task)]);
            Ask::Accept(accept(&b.own, vec![part("one"), part("two")]))
        },
        (INVALID, FIELD, "parts[1].offer_ids[0]: is there twice"),
    ),
    (
        "an offer without an epoch",
        |b| b.offers(vec![pb::OfferId { epoch: None, n: 1 }]),
        (INVALID, FIELD, "epoch"),
    ),
    (
        "offers of two agents in one part",
        |b| b.offers(vec![b.offer(0), b.offer(1)]),
        (INVALID, FIELD, "must be of one agent and one role"),
    ),
    (
        "somebody else's offer",
        |b| b.offers(vec![b.other.offers.values().next().and_then(|offer| offer.id).expect("its offer")]),
        (Code::FailedPrecondition, "INVALID_OFFER", "another framework's"),
    ),
    (
        "an offer that never was",
        |b| b.offers(vec![pb::OfferId { n: 1 << 40, ..b.offer(0) }]),
        (Code::FailedPrecondition, "INVALID_OFFER", "used, declined, rescinded or has expired"),
    ),
    (
        "an offer of another leadership",
        |b| {
            b.offers(vec![pb::OfferId {
                epoch: Some(common::Epoch { generation: 0, term: 99 }),
                ..b.offer(0)
            }])
        },
        (Code::FailedPrecondition, "INVALID_OFFER", ""),
    ),
    // The first offer ever told was used by the first task.
    (
        "an offer that was used",
        |b| b.offers(vec![pb::OfferId { n: 1, ..b.offer(0) }]),
        (Code::FailedPrecondition, "INVALID_OFFER", "used, declined"),
    ),
    (
        "a dead offer beside a live one",
        |b| b.offers(vec![b.offer(0), pb::OfferId { n: 1, ..b.offer(0) }]),
        (Code::FailedPrecondition, "INVALID_OFFER", "used, declined"),
    ),
    ("a task id in use", |b| b.accept(named("held")), (Code::Ok, "TASK_ID_IN_USE", "")),
    (
        "a filter of more than a year",
        |b| match b.offers(vec![b.offer(0)]) {
            Ask::Accept(ask) => Ask::Accept(pb::AcceptRequest { filter_ms: Some(u64::MAX), ..ask }),
            other => other,
        },
        (INVALID, FIELD, "filter_ms: must be at most"),
    ),
    ("no spec", |b| b.accept(pb::Launch { spec: None, ..named("new") }), (INVALID, FIELD, "spec")),
    ("no tasks", |b| b.accept(launch(spec(), &[])), (INVALID, FIELD, "tasks: must not be empty")),
    (
        "no command",
        |b| b.accept(launch(common::TaskSpec { argv: Vec::new(), ..spec() }, &["new"])),
        (INVALID, FIELD, "argv"),
    ),
    (
        "a command with a zero byte",
        |b| b.accept(launch(common::TaskSpec { argv: vec!["a\0b".into()], ..spec() }, &["new"])),
        (INVALID, FIELD, "argv[0]"),
    ),
    (
        "a variable with `=` in its name",
        |b| {
            b.accept(launch(
                common::TaskSpec { env: [("a=b".into(), "c".into())].into(), ..spec() },
                &["new"],
            ))
        },
        (INVALID, FIELD, "env"),
    ),
    (
        "a grace of more than a day",
        |b| b.accept(launch(common::TaskSpec { kill_grace_ms: Some(u64::MAX), ..spec() }, &["new"])),
        (INVALID, FIELD, "kill_grace_ms"),
    ),
    (
        "an array's place without its size",
        |b| {
            let mut launch = named("new");
            launch.tasks[0].array_index = 3;
            b.accept(launch)
        },
        (INVALID, FIELD, "array_"),
    ),
    (
        "an operation of a later version",
        |b| {
            let part = pb::accept_request::Part {
                offer_ids: vec![b.offer(0)],
                operations: vec![pb::Operation { operation: None }],
            };
            Ask::Accept(pb::AcceptRequest { parts: vec![part], ..accept(&b.own, Vec::new()) })
        },
        (Code::Unimplemented, "UNSUPPORTED", "parts[0].operations[0]"),
    ),
    (
        "a feature that no agent knows",
        |b| b.accept(launch(common::TaskSpec { needs: vec!["teleport".into()], ..spec() }, &["new"])),
        (Code::Ok, "FEATURE_UNKNOWN", ""),
    ),
];

pub(crate) const GROUPS: &[Row] = &[
    ("a group of none", |b| group(b, Vec::new()), (INVALID, FIELD, "members: must be 1 to 64")),
    ("a group of 65", |b| group(b, vec![spec(); 65]), (INVALID, FIELD, "must be 1 to 64, and are 65")),
    (
        "a group with one invalid task",
        |b| group(b, vec![spec(), common::TaskSpec { argv: Vec::new(), ..spec() }, spec()]),
        (INVALID, FIELD, "parts[0].operations[0].launch_group.members[1].spec.argv"),
    ),
    (
        "a group with one task too large",
        |b| {
            let resources = vec![amount("cpus", 2_001), amount("mem", 32 << 20)];
            group(b, vec![spec(), common::TaskSpec { resources, ..spec() }])
        },
        (Code::Ok, "GROUP,NOT_OFFERED", ""),
    ),
    (
        "a group that is too large together",
        |b| group(b, vec![common::TaskSpec { argv: vec!["x".repeat(60_000)], ..spec() }; 9]),
        (INVALID, FIELD, "the limit is 524288"),
    ),
    (
        "a group with one task of a name that is in use",
        |b| match group(b, vec![spec(), spec()]) {
            Ask::Accept(mut ask) => {
                let Some(pb::operation::Operation::LaunchGroup(group)) =
                    &mut ask.parts[0].operations[0].operation
                else {
                    unreachable!("it is a group")
                };
                group.members[1].task.as_mut().expect("a task").task_id = "held".into();
                Ask::Accept(ask)
            }
            other => other,
        },
        (Code::Ok, "GROUP,TASK_ID_IN_USE", ""),
    ),
    (
        "a group of which an executor runs a part",
        |b| group(b, vec![spec(), run_by(100)]),
        (INVALID, FIELD, "members[1].spec.executor: must be that of members[0]"),
    ),
];

pub(crate) const EXECUTORS: &[Row] = &[
    (
        "an executor and the same otherwise described",
        |b| {
            let launches = vec![launch(run_by(100), &["one"]), launch(run_by(200), &["two"])];
            let ask = accept(&b.own, vec![(vec![b.offer(0)], launches)]);
            Ask::Accept(pb::AcceptRequest { atomic: true, ..ask })
        },
        (
            Code::FailedPrecondition,
            "ATOMIC",
            "task 1 (counted from 0 over all operations) was refused: the framework has an executor of this name, described differently",
        ),
    ),
    (
        "a task that fits, of an executor that does not",
        |b| b.accept(launch(run_by(1_950), &["new"])),
        (Code::Ok, "NOT_OFFERED", ""),
    ),
    (
        "an executor without a name",
        |b| {
            let mut spec = run_by(100);
            spec.executor.as_mut().expect("it has one").executor_id = String::new();
            b.accept(launch(spec, &["new"]))
        },
        (INVALID, FIELD, "executor_id"),
    ),
    (
        "a message to an unknown executor",
        |b| message(b, "nobody", Vec::new()),
        (Code::NotFound, "NOT_FOUND", "executor `nobody`"),
    ),
    (
        "a message to an executor of no name",
        |b| message(b, "", Vec::new()),
        (INVALID, FIELD, "executor_id: must not be empty"),
    ),
    (
        "a message over 64 KiB",
        |b| message(b, "nobody", vec![0; (64 << 10) + 1]),
        (INVALID, FIELD, "data: has 65537 bytes, the limit is 65536"),
    ),
    (
        "a message to an unknown agent",
        |b| {
            Ask::SendMessage(pb::SendMessageRequest {
                call: b.own.call(),
                agent_id: 1 << 40,
                executor_id: "x".into(),
                data: Vec::new().into(),
            })
        },
        (Code::NotFound, "NOT_FOUND", ""),
    ),
    (
        "the end of an unknown executor",
        |b| {
            Ask::ShutdownExecutor(pb::ShutdownExecutorRequest {
                call: b.own.call(),
                agent_id: b.own.offers.values().next().map_or(0, |offer| offer.agent_id),
                executor_id: "nobody".into(),
            })
        },
        (Code::NotFound, "NOT_FOUND", "executor `nobody`"),
    ),
];

pub(crate) const CALLS: &[Row] = &[
    (
        "no header",
        |b| Ask::Decline(pb::DeclineRequest { call: None, offer_ids: vec![b.offer(0)], filter_ms: None }),
        (INVALID, FIELD, "call: must be given"),
    ),
    (
        "framework 0",
        |b| {
            Ask::Suppress(pb::SuppressRequest {
                call: Some(pb::CallHeader { framework_id: 0, ..b.own.call().expect("it") }),
                roles: Vec::new(),
            })
        },
        (INVALID, FIELD, "call.framework_id"),
    ),
    (
        "an unknown framework",
        |b| {
            Ask::Suppress(pb::SuppressRequest {
                call: Some(pb::CallHeader { framework_id: 1 << 40, ..b.own.call().expect("it") }),
                roles: Vec::new(),
            })
        },
        (Code::NotFound, "UNKNOWN_FRAMEWORK", ""),
    ),
    (
        "an unknown framework that subscribes",
        |_| Ask::Subscribe(pb::SubscribeRequest { framework_id: Some(1 << 40), ..subscribe_request("x", 9) }),
        (Code::NotFound, "UNKNOWN_FRAMEWORK", ""),
    ),
    (
        "an unknown framework, to an operator",
        |_| Ask::TeardownFramework(admin::TeardownFrameworkRequest { call: None, framework_id: 1 << 40 }),
        (INVALID, FIELD, "call"),
    ),
    (
        "a session of somebody else",
        |b| {
            Ask::Kill(pb::KillRequest {
                call: Some(pb::CallHeader { session: b.other.session, ..b.own.call().expect("it") }),
                task_id: "held".into(),
                grace_ms: None,
            })
        },
        (Code::FailedPrecondition, "SESSION_FENCED", ""),
    ),
    (
        "a stale session",
        |b| {
            let call =
                pb::CallHeader { framework_id: b.fenced.0, session: b.fenced.1, seq: 1, done_below: 1 };
            Ask::Teardown(pb::TeardownRequest { call: Some(call) })
        },
        (Code::FailedPrecondition, "SESSION_FENCED", ""),
    ),
    (
        "a stale session that accepts",
        |b| match b.offers(vec![b.offer(0)]) {
            Ask::Accept(ask) => Ask::Accept(pb::AcceptRequest {
                call: Some(pb::CallHeader {
                    framework_id: b.fenced.0,
                    session: b.fenced.1,
                    seq: 1,
                    done_below: 1,
                }),
                ..ask
            }),
            other => other,
        },
        (Code::FailedPrecondition, "SESSION_FENCED", ""),
    ),
    (
        "a stale session that resumes",
        |b| {
            Ask::Subscribe(pb::SubscribeRequest {
                framework_id: Some(b.fenced.0),
                session: Some(b.fenced.1),
                ..subscribe_request("twice", 9)
            })
        },
        (Code::FailedPrecondition, "SESSION_FENCED", ""),
    ),
    (
        "a session without its framework",
        |b| {
            Ask::Subscribe(pb::SubscribeRequest { session: Some(b.own.session), ..subscribe_request("x", 9) })
        },
        (INVALID, FIELD, "session: needs framework_id"),
    ),
    (
        "done with what is not asked yet",
        |b| {
            Ask::Kill(pb::KillRequest {
                call: Some(pb::CallHeader { seq: 5, done_below: 9, ..b.own.call().expect("it") }),
                task_id: "held".into(),
                grace_ms: None,
            })
        },
        (INVALID, FIELD, "done_below"),
    ),
    (
        "an unknown task to kill",
        |b| Ask::Kill(pb::KillRequest { call: b.own.call(), task_id: "nobody".into(), grace_ms: None }),
        (Code::NotFound, "NOT_FOUND", "nobody"),
    ),
    (
        "a grace of 500 million years",
        |b| {
            Ask::Kill(pb::KillRequest {
                call: b.own.call(),
                task_id: "held".into(),
                grace_ms: Some(u64::MAX),
            })
        },
        (INVALID, FIELD, "grace_ms"),
    ),
    (
        "a role it is not in",
        |b| Ask::Suppress(pb::SuppressRequest { call: b.own.call(), roles: vec!["eng".into()] }),
        (INVALID, FIELD, "roles[0]"),
    ),
    (
        "an acknowledgement of launch 0",
        |b| Ask::Acknowledge(pb::AcknowledgeRequest { call: b.own.call(), acks: vec![Default::default()] }),
        (INVALID, FIELD, "acks[0].launch_id"),
    ),
    (
        "a change of the framework to nothing",
        |b| Ask::UpdateFramework(pb::UpdateFrameworkRequest { call: b.own.call(), info: None }),
        (INVALID, FIELD, "info"),
    ),
    (
        "a change to a role that climbs",
        |b| update(b, |info| info.roles = vec!["eng".into(), "a/../b".into()]),
        (INVALID, FIELD, "info.roles[1]"),
    ),
    ("a change to no role", |b| update(b, |info| info.roles.clear()), (INVALID, FIELD, "info.roles")),
    (
        "a change of the user",
        |b| update(b, |info| info.user = "root".into()),
        (INVALID, FIELD, "info.user: cannot change"),
    ),
    (
        "a change by a stale session",
        |b| match update(b, |_| {}) {
            Ask::UpdateFramework(ask) => Ask::UpdateFramework(pb::UpdateFrameworkRequest {
                call: Some(pb::CallHeader {
                    framework_id: b.fenced.0,
                    session: b.fenced.1,
                    seq: 1,
                    done_below: 1,
                }),
                ..ask
            }),
            other => other,
        },
        (Code::FailedPrecondition, "SESSION_FENCED", ""),
    ),
    (
        "a page token of nobody",
        |_| {
            Ask::ListTasks(admin::ListTasksRequest {
                page: Some(admin::Page { size: 10, token: "../etc".into() }),
                ..Default::default()
            })
        },
        (INVALID, FIELD, "token"),
    ),
    ("an agent 0", |_| Ask::GetAgent(admin::GetAgentRequest::default()), (INVALID, FIELD, "agent_id")),
    (
        "an unknown agent",
        |_| Ask::GetAgent(admin::GetAgentRequest { agent_id: 1 << 40, read: None }),
        (Code::NotFound, "", ""),
    ),
    (
        "an operator's kill without its id",
        |b| {
            Ask::KillTask(admin::KillTaskRequest {
                framework_id: b.own.framework,
                task_id: "held".into(),
                ..Default::default()
            })
        },
        (INVALID, FIELD, "call"),
    ),
];

pub(crate) const LARGE: &[Row] = &[
    (
        "10,001 tasks",
        |b| {
            let names: Vec<String> = (0..10_001).map(|n| format!("t{n}")).collect();
            b.accept(launch(spec(), &names.iter().map(String::as_str).collect::<Vec<_>>()))
        },
        (INVALID, FIELD, "10001 tasks, the limit of one call is 10000"),
    ),
    (
        "a spec over 64 KiB",
        |b| b.accept(launch(common::TaskSpec { argv: vec!["x".repeat(70_000)], ..spec() }, &["new"])),
        (INVALID, FIELD, "spec"),
    ),
    (
        "an Accept over 16 MiB",
        |b| b.accept(launch(common::TaskSpec { argv: vec!["x".repeat(17 << 20)], ..spec() }, &["new"])),
        (Code::OutOfRange, "TOO_LARGE", "16777216"),
    ),
    (
        "a Decline over 256 KiB",
        |b| {
            Ask::Decline(pb::DeclineRequest {
                call: b.own.call(),
                offer_ids: vec![b.offer(0); 40_000],
                filter_ms: None,
            })
        },
        (Code::OutOfRange, "TOO_LARGE", "262144"),
    ),
    (
        "a Subscribe over 256 KiB",
        |_| subscribe(|info| info.name = "x".repeat(300_000)),
        (Code::OutOfRange, "TOO_LARGE", "262144"),
    ),
];

pub(crate) fn subscribe(change: fn(&mut common::FrameworkInfo)) -> Ask {
    let mut request = subscribe_request("bad", 9);
    change(request.info.as_mut().expect("it has one"));
    Ask::Subscribe(request)
}

pub(crate) fn attributed(change: fn(&mut common::Attribution)) -> common::Resource {
    let mut attribution = common::Attribution::default();
    change(&mut attribution);
    common::Resource { attribution: Some(attribution), ..amount("cpus", 100) }
}

/// An Accept of the first offer, which launches a group.
fn group(bench: &Bench, specs: Vec<common::TaskSpec>) -> Ask {
    let member = |(n, spec)| pb::launch_group::Member {
        spec: Some(spec),
        task: Some(common::TaskLaunch { task_id: format!("new{n}"), ..Default::default() }),
    };
    let group = pb::LaunchGroup { members: specs.into_iter().enumerate().map(member).collect() };
    let part = pb::accept_request::Part {
        offer_ids: vec![bench.offer(0)],
        operations: vec![pb::Operation { operation: Some(pb::operation::Operation::LaunchGroup(group)) }],
    };
    Ask::Accept(pb::AcceptRequest { parts: vec![part], ..accept(&bench.own, Vec::new()) })
}

/// What is run by an executor that holds so much itself.
fn run_by(cpus_milli: u64) -> common::TaskSpec {
    let own =
        common::TaskSpec { resources: vec![amount("cpus", cpus_milli), amount("mem", 32 << 20)], ..spec() };
    let executor = common::ExecutorSpec { executor_id: "x".into(), spec: Some(Box::new(own)) };
    common::TaskSpec { argv: Vec::new(), executor: Some(Box::new(executor)), ..spec() }
}

fn message(bench: &Bench, executor: &str, data: Vec<u8>) -> Ask {
    Ask::SendMessage(pb::SendMessageRequest {
        call: bench.own.call(),
        agent_id: bench.own.offers.values().next().map_or(0, |offer| offer.agent_id),
        executor_id: executor.into(),
        data: data.into(),
    })
}

fn update(bench: &Bench, change: fn(&mut common::FrameworkInfo)) -> Ask {
    let mut info = subscribe_request("own", 1).info.expect("it has one");
    change(&mut info);
    Ask::UpdateFramework(pb::UpdateFrameworkRequest { call: bench.own.call(), info: Some(info) })
}
