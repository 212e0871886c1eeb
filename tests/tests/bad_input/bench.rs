//! What bad requests are played against, and how one is put together.

use std::collections::BTreeMap;
use std::time::Duration;

use proffer_client::rows::TaskFilter;
use proffer_tests::cluster::{Cluster, Options, until};
use proffer_wire::admin::v1 as admin;
use proffer_wire::admin::v1::admin_service_client::AdminServiceClient;
use proffer_wire::common::v1 as common;
use proffer_wire::scheduler::v1 as pb;
use proffer_wire::scheduler::v1::scheduler_service_client::SchedulerServiceClient;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

pub(crate) const LIMIT: Duration = Duration::from_secs(30);
/// No offer may come back to whoever declined it while the test runs.
pub(crate) const DAY_MS: u64 = 24 * 3_600_000;

/// A subscribed framework that speaks the protocol by hand.
pub(crate) struct Raw {
    pub(crate) client: SchedulerServiceClient<Channel>,
    pub(crate) framework: u64,
    pub(crate) session: u64,
    pub(crate) seq: u64,
    pub(crate) events: mpsc::UnboundedReceiver<pb::event::Event>,
    pub(crate) offers: BTreeMap<u64, pb::Offer>,
}

pub(crate) fn subscribe_request(name: &str, origin: u8) -> pb::SubscribeRequest {
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
    pub(crate) async fn subscribe(channel: &Channel, request: pb::SubscribeRequest) -> Self {
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
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
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

    pub(crate) fn call(&self) -> Option<pb::CallHeader> {
        Some(pb::CallHeader {
            framework_id: self.framework,
            session: self.session,
            seq: self.seq,
            done_below: self.seq,
        })
    }
}

/// What the rows are played against.
pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) channel: Channel,
    pub(crate) own: Raw,
    pub(crate) other: Raw,
    /// A framework with two sessions: this one is over.
    pub(crate) fenced: (u64, u64),
}

/// One request.
pub(crate) enum Ask {
    Accept(pb::AcceptRequest),
    Decline(pb::DeclineRequest),
    Suppress(pb::SuppressRequest),
    Kill(pb::KillRequest),
    Acknowledge(pb::AcknowledgeRequest),
    Reconcile(pb::ReconcileRequest),
    Teardown(pb::TeardownRequest),
    ShutdownExecutor(pb::ShutdownExecutorRequest),
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
pub(crate) type Expected = (Code, &'static str, &'static str);

impl Bench {
    pub(crate) async fn start() -> Self {
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
    pub(crate) async fn ready(&mut self) {
        self.own.seq += 1;
        self.own.until("two offers", |raw| raw.offers.len() >= 2).await;
    }

    pub(crate) fn offer(&self, at: usize) -> pb::OfferId {
        self.own.offers.values().nth(at).and_then(|offer| offer.id).expect("an offer")
    }

    /// An Accept of the first offer.
    pub(crate) fn accept(&self, launch: pb::Launch) -> Ask {
        Ask::Accept(accept(&self.own, vec![(vec![self.offer(0)], vec![launch])]))
    }

    /// An Accept of these offers, which launches a good task.
    pub(crate) fn offers(&self, offers: Vec<pb::OfferId>) -> Ask {
        Ask::Accept(accept(&self.own, vec![(offers, vec![launch(spec(), &["new"])])]))
    }

    /// Everything that is replicated, as text, without what offers change.
    pub(crate) async fn state(&self) -> (u64, String) {
        let admin = self.cluster.admin();
        let (view, _) = admin.status().await.expect("the status");
        let tasks = admin.tasks(&TaskFilter::default()).await.expect("the tasks");
        let mut agents = admin.agents().await.expect("the agents");
        let mut frameworks = admin.frameworks(true).await.expect("the frameworks");
        agents.iter_mut().for_each(|agent| agent.offered = Default::default());
        frameworks.iter_mut().for_each(|framework| framework.offered = Default::default());
        (view.index, format!("{tasks:#?}\n{agents:#?}\n{frameworks:#?}"))
    }

    pub(crate) async fn is_serving(&self, row: &str) {
        let mut client = HealthClient::new(self.channel.clone());
        let answer = client.check(tonic_health::pb::HealthCheckRequest::default());
        let answer = tokio::time::timeout(LIMIT, answer).await.expect("health answers in time");
        let status = answer.unwrap_or_else(|status| panic!("{row}: {status}")).into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{row}");
    }

    pub(crate) async fn play(&mut self, ask: Ask) -> Result<Vec<String>, Status> {
        let client = &mut self.own.client;
        let mut operator = AdminServiceClient::new(self.channel.clone());
        let nothing = |_| Vec::new();
        match ask {
            Ask::Accept(ask) => {
                let named: Vec<pb::OfferId> =
                    ask.parts.iter().flat_map(|part| &part.offer_ids).copied().collect();
                let result = client.accept(ask).await.map(|answer| refusals(&answer.into_inner()));
                // They were used, or given back because of a dead one or a refused task beside them.
                let gone = |status: &Status| ["INVALID_OFFER", "ATOMIC"].contains(&reason(status).as_str());
                if result.as_ref().map_or_else(gone, |_| true) {
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
            Ask::ShutdownExecutor(ask) => client.shutdown_executor(ask).await.map(|_| ()).map(nothing),
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
pub(crate) fn refusals(answer: &pb::AcceptResponse) -> Vec<String> {
    let operations = answer.parts.iter().flat_map(|part| &part.operations);
    operations.flat_map(|operation| &operation.tasks).map(|task| task.refused.clone()).collect()
}

pub(crate) fn amount(kind: &str, amount: u64) -> common::Resource {
    common::Resource {
        kind: kind.into(),
        value: Some(common::resource::Value::Amount(amount)),
        attribution: None,
    }
}

pub(crate) fn ports(ranges: &[(u64, u64)]) -> common::Resource {
    let ranges = ranges.iter().map(|&(first, last)| common::Range { first, last }).collect();
    let value = Some(common::resource::Value::Ranges(common::Ranges { ranges }));
    common::Resource { kind: "ports".into(), value, attribution: None }
}

pub(crate) fn spec() -> common::TaskSpec {
    common::TaskSpec {
        argv: vec!["sleep".into(), "300".into()],
        resources: vec![amount("cpus", 100), amount("mem", 32 << 20)],
        ..Default::default()
    }
}

pub(crate) fn with_resources(resources: Vec<common::Resource>) -> pb::Launch {
    launch(common::TaskSpec { resources, ..spec() }, &["new"])
}

pub(crate) fn launch(spec: common::TaskSpec, tasks: &[&str]) -> pb::Launch {
    let task = |name: &&str| common::TaskLaunch { task_id: (*name).into(), ..Default::default() };
    pb::Launch { spec: Some(spec), tasks: tasks.iter().map(task).collect() }
}

pub(crate) fn named(task: &str) -> pb::Launch {
    launch(spec(), &[task])
}

pub(crate) fn accept(raw: &Raw, parts: Vec<(Vec<pb::OfferId>, Vec<pb::Launch>)>) -> pb::AcceptRequest {
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

/// The reason in ErrorInfo.
pub(crate) fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The message and the violated fields.
pub(crate) fn told(status: &Status) -> String {
    let fields = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    let fields: Vec<String> =
        fields.iter().map(|field| format!("{}: {}", field.field, field.description)).collect();
    format!("{}; {}", status.message(), fields.join("; "))
}
