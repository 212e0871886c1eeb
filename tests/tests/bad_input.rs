//! Bad input, one row per case, against the port of a running master: each is refused with the code and the words that
//! are promised, the master serves on, and nothing it knows has changed.

#![allow(clippy::print_stdout, reason = "why a test was skipped is told on standard output")]

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use proffer_client::rows::TaskFilter;
use proffer_tests::cluster::{Cluster, Options, until, until_true};
use proffer_wire::admin::v1 as admin;
use proffer_wire::admin::v1::admin_service_client::AdminServiceClient;
use proffer_wire::agent::v1 as agent;
use proffer_wire::agent::v1::agent_service_client::AgentServiceClient;
use proffer_wire::common::v1 as common;
use proffer_wire::scheduler::v1 as pb;
use proffer_wire::scheduler::v1::scheduler_service_client::SchedulerServiceClient;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

const LIMIT: Duration = Duration::from_secs(30);
/// No offer may come back to whoever declined it while the test runs.
const DAY_MS: u64 = 24 * 3_600_000;

/// A subscribed framework that speaks the protocol by hand.
struct Raw {
    client: SchedulerServiceClient<Channel>,
    framework: u64,
    session: u64,
    seq: u64,
    events: mpsc::UnboundedReceiver<pb::event::Event>,
    offers: BTreeMap<u64, pb::Offer>,
}

fn subscribe_request(name: &str, origin: u8) -> pb::SubscribeRequest {
    pb::SubscribeRequest {
        info: Some(common::FrameworkInfo {
            name: name.into(),
            roles: vec!["*".into()],
            failover_timeout_ms: 600_000,
            ..Default::default()
        }),
        origin: vec![origin; 16].into(),
        ..Default::default()
    }
}

impl Raw {
    async fn subscribe(channel: &Channel, request: pb::SubscribeRequest) -> Self {
        let mut client = SchedulerServiceClient::new(channel.clone());
        let mut stream = client.subscribe(request).await.expect("subscribed").into_inner();
        let (to_events, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                for event in message.events.into_iter().filter_map(|event| event.event) {
                    if to_events.send(event).is_err() {
                        return;
                    }
                }
            }
        });
        let mut raw = Self { client, framework: 0, session: 0, seq: 0, events, offers: BTreeMap::new() };
        raw.until("the subscription is told", |raw| raw.session > 0).await;
        raw
    }

    /// Takes note of events until `holds`.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + LIMIT;
        while !holds(self) {
            let event = tokio::time::timeout_at(deadline, self.events.recv()).await;
            match event.unwrap_or_else(|_| panic!("{what}: not in time")).expect("the stream goes on") {
                pb::event::Event::Subscribed(told) => {
                    (self.framework, self.session) = (told.framework_id, told.session);
                }
                pb::event::Event::Offers(told) => {
                    self.offers
                        .extend(told.offers.into_iter().map(|offer| (offer.id.expect("an id").n, offer)));
                }
                pb::event::Event::Rescind(told) => {
                    told.offer_ids.iter().for_each(|id| drop(self.offers.remove(&id.n)));
                }
                _ => {}
            }
        }
    }

    fn call(&self) -> Option<pb::CallHeader> {
        Some(pb::CallHeader {
            framework_id: self.framework,
            session: self.session,
            seq: self.seq,
            done_below: self.seq,
        })
    }
}

/// What the rows are played against.
struct Bench {
    cluster: Cluster,
    channel: Channel,
    own: Raw,
    other: Raw,
    /// A framework with two sessions: this one is over.
    fenced: (u64, u64),
}

/// One request.
enum Ask {
    Accept(pb::AcceptRequest),
    Decline(pb::DeclineRequest),
    Suppress(pb::SuppressRequest),
    Kill(pb::KillRequest),
    Acknowledge(pb::AcknowledgeRequest),
    Reconcile(pb::ReconcileRequest),
    Teardown(pb::TeardownRequest),
    SendMessage(pb::SendMessageRequest),
    UpdateFramework(pb::UpdateFrameworkRequest),
    Subscribe(pb::SubscribeRequest),
    ListTasks(admin::ListTasksRequest),
    KillTask(admin::KillTaskRequest),
    GetAgent(admin::GetAgentRequest),
    TeardownFramework(admin::TeardownFrameworkRequest),
}

/// What must come of it: a code, the reason in ErrorInfo, and words in the message. With code Ok, a task that is
/// refused for this reason.
type Expected = (Code, &'static str, &'static str);

impl Bench {
    async fn start() -> Self {
        let options = Options {
            agents: 3,
            resources: "cpus:2;mem:1GiB",
            offer_timeout_ms: 600_000,
            ..Options::default()
        };
        let cluster = Cluster::start(options).await;
        let endpoint = Endpoint::from_shared(format!("http://{}", cluster.masters[0].address));
        let channel = endpoint.expect("an address").connect().await.expect("a connection");

        let mut own = Raw::subscribe(&channel, subscribe_request("own", 1)).await;
        own.until("all agents are offered", |raw| raw.offers.len() == 3).await;
        // One task that is there all the time.
        own.seq = 1;
        let offer = own.offers.values().next().and_then(|offer| offer.id).expect("an offer");
        let launch = launch(spec(), &["held"]);
        let request = accept(&own, vec![(vec![offer], vec![launch])]);
        let answer = own.client.accept(request).await.expect("accepted").into_inner();
        assert_eq!(refusals(&answer), [""]);
        own.offers.remove(&offer.n);
        own.until("the rest is offered again", |raw| raw.offers.len() == 3).await;
        let tasks = cluster.admin();
        until("the task runs", LIMIT, async || {
            let tasks = tasks.tasks(&TaskFilter::default()).await.ok()?;
            (tasks.first()?.status.state.name() == "RUNNING").then_some(())
        })
        .await;

        // The other one gets one offer, and wants no more.
        let mut other = Raw::subscribe(&channel, subscribe_request("other", 2)).await;
        let last = own.offers.values().next_back().and_then(|offer| offer.id).expect("an offer");
        let decline = pb::DeclineRequest { call: own.call(), offer_ids: vec![last], filter_ms: Some(DAY_MS) };
        own.client.decline(decline).await.expect("declined");
        own.offers.remove(&last.n);
        other.until("an offer", |raw| raw.offers.len() == 1).await;
        let suppress = pb::SuppressRequest { call: other.call(), roles: Vec::new() };
        other.client.suppress(suppress).await.expect("suppressed");

        let silent = |origin| pb::SubscribeRequest {
            suppressed_roles: vec!["*".into()],
            ..subscribe_request("twice", origin)
        };
        let first = Raw::subscribe(&channel, silent(3)).await;
        let fenced = (first.framework, first.session);
        let again = pb::SubscribeRequest { framework_id: Some(first.framework), ..silent(4) };
        // Both streams may go: the framework stays for its failover timeout, which is told as remaining, so it is
        // ended, and the sessions with it.
        let second = Raw::subscribe(&channel, again).await;
        assert_ne!(second.session, fenced.1);
        std::mem::forget(second);
        Self { cluster, channel, own, other, fenced }
    }

    /// Offers of two agents, for a row to misuse.
    async fn ready(&mut self) {
        self.own.seq += 1;
        self.own.until("two offers", |raw| raw.offers.len() >= 2).await;
    }

    fn offer(&self, at: usize) -> pb::OfferId {
        self.own.offers.values().nth(at).and_then(|offer| offer.id).expect("an offer")
    }

    /// An Accept of the first offer.
    fn accept(&self, launch: pb::Launch) -> Ask {
        Ask::Accept(accept(&self.own, vec![(vec![self.offer(0)], vec![launch])]))
    }

    /// An Accept of these offers, which launches a good task.
    fn offers(&self, offers: Vec<pb::OfferId>) -> Ask {
        Ask::Accept(accept(&self.own, vec![(offers, vec![launch(spec(), &["new"])])]))
    }

    /// Everything that is replicated, as text, without what offers change.
    async fn state(&self) -> (u64, String) {
        let admin = self.cluster.admin();
        let (view, _) = admin.status().await.expect("the status");
        let tasks = admin.tasks(&TaskFilter::default()).await.expect("the tasks");
        let mut agents = admin.agents().await.expect("the agents");
        let mut frameworks = admin.frameworks(true).await.expect("the frameworks");
        agents.iter_mut().for_each(|agent| agent.offered = Default::default());
        frameworks.iter_mut().for_each(|framework| framework.offered = Default::default());
        (view.index, format!("{tasks:#?}\n{agents:#?}\n{frameworks:#?}"))
    }

    async fn is_serving(&self, row: &str) {
        let mut client = HealthClient::new(self.channel.clone());
        let answer = client.check(tonic_health::pb::HealthCheckRequest::default());
        let answer = tokio::time::timeout(LIMIT, answer).await.expect("health answers in time");
        let status = answer.unwrap_or_else(|status| panic!("{row}: {status}")).into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{row}");
    }

    async fn play(&mut self, ask: Ask) -> Result<Vec<String>, Status> {
        let client = &mut self.own.client;
        let mut operator = AdminServiceClient::new(self.channel.clone());
        let nothing = |_| Vec::new();
        match ask {
            Ask::Accept(ask) => {
                let named: Vec<pb::OfferId> =
                    ask.parts.iter().flat_map(|part| &part.offer_ids).copied().collect();
                let result = client.accept(ask).await.map(|answer| refusals(&answer.into_inner()));
                // They were used, or given back because of a dead one beside them.
                if result.as_ref().map_or_else(|status| reason(status) == "INVALID_OFFER", |_| true) {
                    self.own.offers.retain(|_, offer| offer.id.is_none_or(|id| !named.contains(&id)));
                }
                result
            }
            Ask::Decline(ask) => {
                client.decline(ask).await.map(|answer| answer.into_inner()).map(|_| Vec::new())
            }
            Ask::Suppress(ask) => {
                client.suppress(ask).await.map(|answer| answer.into_inner()).map(|_| Vec::new())
            }
            Ask::Kill(ask) => client.kill(ask).await.map(|answer| answer.into_inner()).map(|_| Vec::new()),
            Ask::Acknowledge(ask) => client.acknowledge(ask).await.map(|_| ()).map(nothing),
            Ask::Reconcile(ask) => client.reconcile(ask).await.map(|_| ()).map(nothing),
            Ask::Teardown(ask) => client.teardown(ask).await.map(|_| ()).map(nothing),
            Ask::SendMessage(ask) => client.send_message(ask).await.map(|_| ()).map(nothing),
            Ask::UpdateFramework(ask) => client.update_framework(ask).await.map(|_| ()).map(nothing),
            Ask::Subscribe(ask) => match client.subscribe(ask).await {
                Ok(answer) => answer.into_inner().message().await.map(|_| Vec::new()),
                Err(status) => Err(status),
            },
            Ask::ListTasks(ask) => operator.list_tasks(ask).await.map(|_| ()).map(nothing),
            Ask::KillTask(ask) => operator.kill_task(ask).await.map(|_| ()).map(nothing),
            Ask::GetAgent(ask) => operator.get_agent(ask).await.map(|_| ()).map(nothing),
            Ask::TeardownFramework(ask) => operator.teardown_framework(ask).await.map(|_| ()).map(nothing),
        }
    }
}

/// Per task the reason of its refusal, empty if it was accepted.
fn refusals(answer: &pb::AcceptResponse) -> Vec<String> {
    let operations = answer.parts.iter().flat_map(|part| &part.operations);
    operations.flat_map(|operation| &operation.tasks).map(|task| task.refused.clone()).collect()
}

fn amount(kind: &str, amount: u64) -> common::Resource {
    common::Resource {
        kind: kind.into(),
        value: Some(common::resource::Value::Amount(amount)),
        attribution: None,
    }
}

fn ports(ranges: &[(u64, u64)]) -> common::Resource {
    let ranges = ranges.iter().map(|&(first, last)| common::Range { first, last }).collect();
    let value = Some(common::resource::Value::Ranges(common::Ranges { ranges }));
    common::Resource { kind: "ports".into(), value, attribution: None }
}

fn spec() -> common::TaskSpec {
    common::TaskSpec {
        argv: vec!["sleep".into(), "300".into()],
        resources: vec![amount("cpus", 100), amount("mem", 32 << 20)],
        ..Default::default()
    }
}

fn with_resources(resources: Vec<common::Resource>) -> pb::Launch {
    launch(common::TaskSpec { resources, ..spec() }, &["new"])
}

fn launch(spec: common::TaskSpec, tasks: &[&str]) -> pb::Launch {
    let task = |name: &&str| common::TaskLaunch { task_id: (*name).into(), ..Default::default() };
    pb::Launch { spec: Some(spec), tasks: tasks.iter().map(task).collect() }
}

fn named(task: &str) -> pb::Launch {
    launch(spec(), &[task])
}

fn accept(raw: &Raw, parts: Vec<(Vec<pb::OfferId>, Vec<pb::Launch>)>) -> pb::AcceptRequest {
    let operation = |launch| pb::Operation { operation: Some(pb::operation::Operation::Launch(launch)) };
    let part = |(offer_ids, launches): (_, Vec<pb::Launch>)| pb::accept_request::Part {
        offer_ids,
        operations: launches.into_iter().map(operation).collect(),
    };
    pb::AcceptRequest {
        call: raw.call(),
        parts: parts.into_iter().map(part).collect(),
        atomic: false,
        filter_ms: Some(0),
    }
}

const INVALID: Code = Code::InvalidArgument;
const FIELD: &str = "INVALID_FIELD";

/// Name, request, what must come of it.
type Row = (&'static str, fn(&Bench) -> Ask, Expected);

const IDS: &[Row] = &[
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

const RESOURCES: &[Row] = &[
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

const OFFERS: &[Row] = &[
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

const CALLS: &[Row] = &[
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
        "a message to an executor",
        |b| Ask::SendMessage(pb::SendMessageRequest { call: b.own.call(), ..Default::default() }),
        (Code::Unimplemented, "UNSUPPORTED", "SendMessage"),
    ),
    (
        "a change of the framework",
        |b| Ask::UpdateFramework(pb::UpdateFrameworkRequest { call: b.own.call(), info: None }),
        (Code::Unimplemented, "UNSUPPORTED", "UpdateFramework"),
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

const LARGE: &[Row] = &[
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

fn subscribe(change: fn(&mut common::FrameworkInfo)) -> Ask {
    let mut request = subscribe_request("bad", 9);
    change(request.info.as_mut().expect("it has one"));
    Ask::Subscribe(request)
}

fn attributed(change: fn(&mut common::Attribution)) -> common::Resource {
    let mut attribution = common::Attribution::default();
    change(&mut attribution);
    common::Resource { attribution: Some(attribution), ..amount("cpus", 100) }
}

#[tokio::test]
async fn every_bad_request_is_refused_and_changes_nothing() {
    let mut bench = Bench::start().await;
    let mut wrong = Vec::new();
    for (name, ask, (code, reason, says)) in [IDS, RESOURCES, OFFERS, CALLS, LARGE].concat() {
        println!("{name}");
        bench.ready().await;
        let (index, before) = bench.state().await;
        let result = bench.play(ask(&bench)).await;
        let (got, got_reason, message) = match &result {
            Ok(refusals) => (Code::Ok, refusals.join(","), String::new()),
            Err(status) => (status.code(), self::reason(status), told(status)),
        };
        if got != code || (!reason.is_empty() && got_reason != reason) || !message.contains(says) {
            wrong.push(format!(
                "{name}: {code:?} {reason} `{says}` was expected: {got:?} {got_reason} `{message}`"
            ));
        }
        bench.is_serving(name).await;
        let (later, after) = bench.state().await;
        if after != before {
            wrong.push(format!("{name}: changed the state\n{before}\nto\n{after}"));
        }
        // A call that is refused as a whole is not even proposed; the clock alone may have moved the log.
        if code != Code::Ok && later > index + 1 {
            wrong.push(format!("{name}: the log went from {index} to {later}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let held = bench.cluster.admin().tasks(&TaskFilter::default()).await.expect("the tasks");
    assert_eq!(held.len(), 1);
    assert_eq!(bench.cluster.end(), Vec::<String>::new());
}

/// The reason in ErrorInfo.
fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The message and the violated fields.
fn told(status: &Status) -> String {
    let fields = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    let fields: Vec<String> =
        fields.iter().map(|field| format!("{}: {}", field.field, field.description)).collect();
    format!("{}; {}", status.message(), fields.join("; "))
}

#[tokio::test]
async fn an_offer_that_has_expired_is_refused() {
    let cluster = Cluster::start(Options { offer_timeout_ms: 300, ..Options::default() }).await;
    let endpoint =
        Endpoint::from_shared(format!("http://{}", cluster.masters[0].address)).expect("an address");
    let channel = endpoint.connect().await.expect("a connection");
    let mut raw = Raw::subscribe(&channel, subscribe_request("slow", 1)).await;
    raw.until("an offer", |raw| !raw.offers.is_empty()).await;
    let offer = raw.offers.values().next().and_then(|offer| offer.id).expect("an offer");
    raw.until("it expires", |raw| !raw.offers.contains_key(&offer.n)).await;
    raw.seq = 1;
    let request = accept(&raw, vec![(vec![offer], vec![named("late")])]);
    let status = raw.client.accept(request).await.expect_err("it is too late");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert_eq!(reason(&status), "INVALID_OFFER", "{status}");
    assert!(cluster.admin().tasks(&TaskFilter::default()).await.expect("the tasks").is_empty());
    assert_eq!(cluster.end(), Vec::<String>::new());
}

/// What somebody says who is no agent.
fn strange_messages(bench: &Bench) -> Vec<(&'static str, agent::AgentMessage)> {
    use agent::agent_item::Item;
    let hello = agent::Hello {
        instance: vec![7; 16].into(),
        boot_id: vec![8; 16].into(),
        info: Some(agent::AgentInfo {
            hostname: "nowhere".into(),
            resources: vec![amount("cpus", 1_000)],
            isolation: "process".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let say = |agent_id: u64, item: Item| agent::AgentMessage {
        agent_id,
        epoch: None,
        items: vec![agent::AgentItem { item: Some(item) }],
    };
    let info = |change: fn(&mut agent::AgentInfo)| {
        let mut hello = hello.clone();
        change(hello.info.as_mut().expect("it has one"));
        say(0, Item::Hello(hello))
    };
    let known = bench.own.offers.values().next().map_or(0, |offer| offer.agent_id);
    let status =
        agent::TaskStatus { launch_id: 1, status: Some(common::Status { state: 6, ..Default::default() }) };
    vec![
        ("nothing", agent::AgentMessage::default()),
        ("a pong before any hello", say(known, Item::Pong(agent::Pong { n: 1 }))),
        ("a status before any hello", say(known, Item::Status(status))),
        (
            "an instance of 3 bytes",
            say(0, Item::Hello(agent::Hello { instance: vec![1; 3].into(), ..hello.clone() })),
        ),
        ("no boot id", say(0, Item::Hello(agent::Hello { boot_id: Vec::new().into(), ..hello.clone() }))),
        ("no info", say(0, Item::Hello(agent::Hello { info: None, ..hello.clone() }))),
        ("zero cpus", info(|info| info.resources = vec![amount("cpus", 0)])),
        ("memory that overflows", info(|info| info.resources = vec![amount("mem", 1 << 63)])),
        ("an over-long host name", info(|info| info.hostname = "x".repeat(100_000))),
        ("another installation with a known id", say(known, Item::Hello(hello.clone()))),
        ("an id that was never given", say(1 << 40, Item::Hello(hello.clone()))),
        (
            "another cluster",
            say(0, Item::Hello(agent::Hello { cluster_id: "ab".repeat(16), ..hello.clone() })),
        ),
        (
            "a leadership of the far future",
            say(
                known,
                Item::Hello(agent::Hello {
                    epoch_seen: Some(common::Epoch { generation: 9, term: 9 }),
                    ..hello.clone()
                }),
            ),
        ),
    ]
}

#[tokio::test]
async fn who_only_plays_an_agent_is_refused_and_changes_nothing() {
    use agent::master_item::Item;
    let bench = Bench::start().await;
    let before = bench.state().await.1;
    for (name, message) in strange_messages(&bench) {
        let mut client = AgentServiceClient::new(bench.channel.clone());
        let (to_master, messages) = mpsc::channel(1);
        to_master.send(message).await.expect("room");
        let spoken = async {
            let mut answers =
                client.session(tokio_stream::wrappers::ReceiverStream::new(messages)).await?.into_inner();
            while let Some(message) = answers.message().await? {
                let item = message.items.into_iter().find_map(|item| item.item);
                match item {
                    Some(Item::Welcome(_) | Item::Launch(_)) => return Ok::<_, Status>(Some(item)),
                    Some(_) => return Ok(None),
                    None => {}
                }
            }
            Ok(None)
        };
        let outcome = tokio::time::timeout(LIMIT, spoken).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{name}: no answer"));
        assert!(!matches!(outcome, Ok(Some(_))), "{name}: {outcome:?}");
        drop(to_master);
        bench.is_serving(name).await;
        assert_eq!(bench.state().await.1, before, "{name}");
    }
    assert_eq!(bench.cluster.end(), Vec::<String>::new());
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a limit");
    stream
}

/// Sends bytes and reads until the other end has closed.
fn provoke(address: &str, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    // It may have had enough before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("{:?} is neither answered nor closed", &bytes[..bytes.len().min(40)])
        }
        _ => answer,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_port_harms_nobody() {
    let bench = Bench::start().await;
    let address = bench.cluster.masters[0].address.clone();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut noise = Vec::new();
    let mut x = 1u32;
    for _ in 0..65_536 {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.push((x >> 24) as u8);
    }
    let raft = [&[proffer_master::listen::RAFT_BYTE][..], &noise[..4_000]].concat();
    let frames = [&preface[..], &[0xff; 64]].concat();
    let huge = [&preface[..], &[0xff, 0xff, 0xff, 1, 4, 0x7f, 0xff, 0xff, 0xff]].concat();
    let continuation = {
        // HEADERS without END_HEADERS, then CONTINUATION without end.
        let mut bytes =
            [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0], &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82]].concat();
        (0..20_000).for_each(|_| bytes.extend([0, 0, 4, 9, 0, 0, 0, 0, 1, 0x40, 1, b'a', 0]));
        bytes
    };
    let cases: [(&str, &[u8]); 12] = [
        ("nothing", b""),
        ("a zero byte", b"\0"),
        ("a line", b"hello\r\n"),
        ("another protocol", b"GET / HTTP/1.1\r\n\r\n"),
        ("a header without end", &[&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; 100_000]].concat()),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("noise", &noise),
        ("noise as of a master", &raft),
        ("noise after the preface", &frames),
        ("a frame of 16 MiB", &huge),
        ("headers without end", &continuation),
        ("half a preface", &preface[..10]),
    ];
    for (name, bytes) in cases {
        let before = bench.state().await.1;
        let (address, bytes) = (address.clone(), bytes.to_owned());
        tokio::task::spawn_blocking(move || provoke(&address, &bytes)).await.expect("it is closed");
        bench.is_serving(name).await;
        assert_eq!(bench.state().await.1, before, "{name}");
    }
    let mut master = bench.cluster;
    assert!(master.masters[0].poll().is_none(), "the master runs");
    assert!(!master.masters[0].log_text().contains("panicked"));
    assert_eq!(master.end(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_by_the_hundred_are_let_go() {
    let bench = Bench::start().await;
    let before = bench.state().await.1;
    let address = bench.cluster.masters[0].address.clone();
    let beginnings: [&[u8]; 4] = [b"", b"PRI * HT", b"GET / HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01"];
    let mut connections: Vec<TcpStream> = Vec::new();
    for n in 0..400 {
        let mut stream = connect(&address);
        stream.write_all(beginnings[n % beginnings.len()]).expect("room");
        stream.set_nonblocking(true).expect("a flag");
        connections.push(stream);
    }
    let begun = Instant::now();
    bench.is_serving("400 half-open connections").await;
    assert_eq!(bench.state().await.1, before);
    assert!(begun.elapsed() < Duration::from_secs(5), "others are served meanwhile: {:?}", begun.elapsed());
    until_true("all of them are closed", LIMIT, || {
        connections.retain_mut(|stream| {
            loop {
                match stream.read(&mut [0; 512]) {
                    Ok(0) => return false,
                    Ok(_) => {}
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
        });
        connections.is_empty()
    })
    .await;
    bench.is_serving("afterwards").await;
    assert_eq!(bench.cluster.end(), Vec::<String>::new());
}
