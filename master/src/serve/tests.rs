//! The port as clients find it, with a driver that is played by the test.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proffer_registry::Registry;
use proffer_types::call::Call;
use proffer_types::event::{
    AgentOrder, AgentReport, FrameworkEvent, Hello, Refused, Reply, StreamEnd, Update,
};
use proffer_types::{
    AgentId, AgentInfo, BootId, ClusterTime, Epoch, FrameworkId, FrameworkInfo, LaunchId, RequestId, Role,
    SessionId, TaskId,
};
use proffer_wire::admin::v1 as admin;
use proffer_wire::admin::v1::admin_service_client::AdminServiceClient;
use proffer_wire::agent::v1::agent_service_client::AgentServiceClient;
use proffer_wire::scheduler::v1 as pb;
use proffer_wire::scheduler::v1::scheduler_service_client::SchedulerServiceClient;
use proffer_wire::status::Problem;
use proffer_wire::told::Event;
use proffer_wire::{from_proto, to_proto};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{Rpc, Server};
use crate::driver::{Ask, FrameworkItem, Inbox, Notice, View, channel};
use crate::listen::{RAFT_BYTE, listen};

const EPOCH: Epoch = Epoch { generation: 0, term: 3 };

/// A port in front of a played driver.
struct Port {
    address: SocketAddr,
    inbox: Inbox,
    raft: std::sync::mpsc::Receiver<std::net::TcpStream>,
    _stop: watch::Sender<bool>,
}

impl Port {
    async fn open() -> Self {
        let (handle, inbox) = channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (stop, stopped) = watch::channel(false);
        let (to_raft, raft) = std::sync::mpsc::channel();
        let server = Server::new(handle, 15_000).await;
        tokio::spawn(listen(listener, server, move |stream| drop(to_raft.send(stream)), stopped));
        Self { address, inbox, raft, _stop: stop }
    }

    async fn dial(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("a connection")
    }

    /// The next thing that the driver is asked, in at most a few seconds.
    async fn ask(&mut self) -> Ask {
        let ask = tokio::time::timeout(Duration::from_secs(5), self.inbox.asks.recv()).await;
        ask.expect("something is asked").expect("the handle lives")
    }

    /// Answers the next read with the state of an empty cluster.
    async fn answer_view(&mut self) {
        match self.ask().await {
            Ask::View { reply, .. } => assert!(reply.send(Ok(view())).is_ok()),
            _ => panic!("a read was expected"),
        }
    }
}

fn view() -> View {
    View {
        registry: Registry::new(),
        offers: Arc::default(),
        connected: Arc::default(),
        masters: Arc::default(),
        leader_id: 1,
        leader: "127.0.0.1:5050".into(),
        epoch: EPOCH,
        time: ClusterTime(1),
    }
}

fn header() -> Option<pb::CallHeader> {
    Some(pb::CallHeader { framework_id: 7, session: 8, seq: 1, done_below: 0 })
}

fn raw(address: SocketAddr) -> std::net::TcpStream {
    let stream = std::net::TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    stream
}

/// Sends bytes, and waits until the other end closes; returns what came and how long it took.
async fn provoke(address: SocketAddr, bytes: &'static [u8]) -> (Vec<u8>, Duration) {
    let provoked = tokio::task::spawn_blocking(move || {
        let (mut stream, began) = (raw(address), Instant::now());
        stream.write_all(bytes).expect("room");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        (answer, began.elapsed())
    });
    provoked.await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_says_nothing_useful_is_let_go() {
    let port = Port::open().await;
    let silent = [
        provoke(port.address, b""),
        provoke(port.address, b"P"),
        provoke(port.address, b"PRI * HTTP/2"),
        provoke(port.address, b"\x16\x03\x01"),
        provoke(port.address, b"GET / HTTP/1.1\r\nHost: x\r\nX-Half: "),
    ]
    .map(tokio::spawn);
    for (i, silent) in silent.into_iter().enumerate() {
        let (_, took) = silent.await.expect("no panic");
        assert!(took < Duration::from_secs(8), "connection {i} was held for {took:?}");
    }
    // Garbage is answered or closed, and the port lives on.
    let (answer, _) = provoke(port.address, b"\x00\x01garbage garbage garbage garbage\r\n\r\n").await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400"), "{answer:?}");
    let (answer, _) = provoke(port.address, b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn masters_are_handed_over_with_nothing_read() {
    let port = Port::open().await;
    let mut peer = raw(port.address);
    peer.write_all(&[RAFT_BYTE, 1, 2, 3]).expect("room");
    let handed = tokio::task::spawn_blocking(move || {
        let mut stream = port.raft.recv_timeout(Duration::from_secs(5)).expect("a connection");
        stream.set_nonblocking(false).expect("a socket");
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).expect("what was sent");
        bytes
    });
    assert_eq!(handed.await.expect("no panic"), [RAFT_BYTE, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn calls_are_refused_where_they_must_be() {
    let mut port = Port::open().await;
    let channel = port.dial().await;
    let mut scheduler = SchedulerServiceClient::new(channel.clone()).max_decoding_message_size(1 << 20);

    // Malformed: every field is named.
    let status = scheduler.accept(pb::AcceptRequest::default()).await.expect_err("malformed");
    let Problem::Invalid { fields, .. } = Problem::from_status(&status) else { panic!("{status:?}") };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(fields.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["call", "parts"]);

    // Too large: the limit is named, and the connection lives on.
    let large = pb::KillRequest { call: header(), task_id: "x".repeat(300 << 10), grace_ms: None };
    let status = scheduler.kill(large).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    assert!(status.message().contains("262144"), "{status:?}");

    // Not the leader: the trailer says who is.
    let call = tokio::spawn(async move {
        scheduler.kill(pb::KillRequest { call: header(), task_id: "t".into(), grace_ms: None }).await
    });
    match port.ask().await {
        Ask::Call { call: Call::Kill { .. }, reply: Some(reply), .. } => {
            let refused = Refused::NotLeader { leader: Some("127.0.0.1:5051".into()) };
            assert!(reply.send(Err(refused)).is_ok());
        }
        _ => panic!("a kill was expected"),
    }
    let status = call.await.expect("no panic").expect_err("not the leader");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("proffer-leader").and_then(|v| v.to_str().ok()), Some("127.0.0.1:5051"));

    // A method that does not exist is named.
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("a channel");
    let codec = tonic_prost::ProstCodec::<pb::KillRequest, pb::KillResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/proffer.scheduler.v1.SchedulerService/Fly");
    let answer = client.unary(tonic::Request::new(pb::KillRequest::default()), path, codec).await;
    let status = answer.expect_err("no such method");
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("SchedulerService/Fly"), "{status:?}");
}

/// A call as a client would send it that leaves its deadline to the master; tonic's client keeps its own clock.
async fn bare_call(address: SocketAddr, path: &str, timeout: &str) -> http::HeaderMap {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let io = TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(axum::body::Body::from(vec![0; 5]))
        .expect("a request");
    sender.send_request(request).await.expect("an answer").headers().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_deadline_is_honoured() {
    let mut port = Port::open().await;
    let address = port.address;
    let call = tokio::spawn(async move { bare_call(address, Rpc::GetStatus.path(), "100m").await });
    let Ask::View { reply, .. } = port.ask().await else { panic!("a read was expected") };
    let status = Status::from_header_map(&call.await.expect("no panic")).expect("a status");
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(matches!(Problem::from_status(&status), Problem::Refused { reason, .. } if reason == "DEADLINE"));
    drop(reply);
    let status =
        Status::from_header_map(&bare_call(address, Rpc::GetStatus.path(), "soon").await).expect("a status");
    assert_eq!(status.code(), Code::InvalidArgument);
}

/// A body that says it has `length` bytes, sends some mebibytes of them and then waits.
struct Stalling {
    length: u32,
    mebibytes: u32,
    begun: bool,
}

impl hyper::body::Body for Stalling {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Self::Error>>> {
        use hyper::body::Frame;
        use std::task::Poll::{Pending, Ready};
        if !std::mem::replace(&mut self.begun, true) {
            let head = [&[0][..], &self.length.to_be_bytes()].concat();
            return Ready(Some(Ok(Frame::data(head.into()))));
        }
        if self.mebibytes == 0 {
            return Pending;
        }
        self.mebibytes -= 1;
        Ready(Some(Ok(Frame::data(vec![0; 1 << 20].into()))))
    }
}

/// Large messages that never end do not pile up.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_is_held_of_incomplete_messages_is_bounded() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let port = Port::open().await;
    let stream = tokio::net::TcpStream::connect(port.address).await.expect("a connection");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a handshake");
    tokio::spawn(connection);
    let (answers, mut answered) = mpsc::channel(8);
    for _ in 0..4 {
        let (mut sender, answers) = (sender.clone(), answers.clone());
        let request = http::Request::post(format!("http://{}{}", port.address, Rpc::Accept.path()))
            .header("content-type", "application/grpc")
            .body(Stalling { length: 15 << 20, mebibytes: 14, begun: false })
            .expect("a request");
        tokio::spawn(async move {
            let answer = sender.send_request(request).await.expect("an answer");
            let _ = answers.send(Status::from_header_map(answer.headers()).expect("a status")).await;
        });
    }
    // 56 MiB would be held; 32 MiB of one connection may be: two of the four are refused at once.
    for _ in 0..2 {
        let answer = tokio::time::timeout(Duration::from_secs(8), answered.recv()).await;
        let status = answer.expect("in time").expect("an answer");
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(matches!(Problem::from_status(&status), Problem::Busy { retry_ms: 1.., .. }));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_framework_is_told_what_is() {
    let mut port = Port::open().await;
    let mut client = SchedulerServiceClient::new(port.dial().await);
    let info = FrameworkInfo { name: "f".into(), roles: vec![Role::star()], ..FrameworkInfo::default() };
    let request = to_proto::subscribe(&info, None, None, RequestId(5), &[]);
    let subscribed = tokio::spawn(async move { client.subscribe(request).await });
    let Some(Notice::Framework { outbox, .. }) = port.inbox.notices.recv().await else { panic!("no stream") };
    match port.ask().await {
        Ask::Call { call: Call::Subscribe { .. }, reply: Some(reply), .. } => {
            let view = Box::new(view());
            outbox.push(FrameworkItem::Open {
                framework: FrameworkId(7),
                session: SessionId(8),
                last_seq: 2,
                view,
            });
            outbox.push(FrameworkItem::Event(FrameworkEvent::Rescind(Vec::new())));
            assert!(reply.send(Ok(Reply::Done { index: 1 })).is_ok());
        }
        _ => panic!("a subscribe was expected"),
    }
    let mut stream = subscribed.await.expect("no panic").expect("a stream").into_inner();
    let mut told = Vec::new();
    while told.len() < 3 {
        let events = stream.message().await.expect("events").expect("no end");
        told.extend(from_proto::events(events).expect("events that can be read"));
    }
    assert!(matches!(&told[0], Event::Subscribed(s) if s.framework == FrameworkId(7) && s.epoch == EPOCH));
    assert!(matches!(&told[1], Event::SnapshotEnd { .. }));
    assert!(matches!(&told[2], Event::Rescind(_)));

    // The end comes as an event and as a status; a client that leaves is noticed.
    outbox.close(StreamEnd::SessionFenced);
    let last =
        from_proto::events(stream.message().await.expect("events").expect("no end")).expect("readable");
    assert!(matches!(&last[0], Event::Error { end: Some(StreamEnd::SessionFenced), .. }));
    let status = stream.message().await.expect_err("the end");
    assert_eq!(Problem::from_status(&status), Problem::SessionFenced);
    let gone = tokio::time::timeout(Duration::from_secs(5), port.inbox.notices.recv()).await;
    assert!(matches!(gone, Ok(Some(Notice::FrameworkGone { .. }))));
}

/// Subscribes and leaves the driver's side of the stream to the test.
async fn subscribe(
    port: &mut Port,
    timeout: Option<Duration>,
) -> (tonic::Streaming<pb::Events>, impl Fn(FrameworkItem) + use<>) {
    let mut client = SchedulerServiceClient::new(port.dial().await);
    let info = FrameworkInfo { roles: vec![Role::star()], ..FrameworkInfo::default() };
    let mut request = tonic::Request::new(to_proto::subscribe(&info, None, None, RequestId(5), &[]));
    if let Some(timeout) = timeout {
        request.set_timeout(timeout);
    }
    let subscribed = tokio::spawn(async move { client.subscribe(request).await });
    let Some(Notice::Framework { outbox, .. }) = port.inbox.notices.recv().await else { panic!("no stream") };
    let Ask::Call { reply: Some(reply), .. } = port.ask().await else { panic!("a subscribe was expected") };
    assert!(reply.send(Ok(Reply::Done { index: 1 })).is_ok());
    (subscribed.await.expect("no panic").expect("a stream").into_inner(), move |item| outbox.push(item))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_ends_at_its_deadline() {
    let mut port = Port::open().await;
    let (mut stream, _tell) = subscribe(&mut port, Some(Duration::from_millis(300))).await;
    let status = stream.message().await.expect_err("the end");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let gone = tokio::time::timeout(Duration::from_secs(5), port.inbox.notices.recv()).await;
    assert!(matches!(gone, Ok(Some(Notice::FrameworkGone { .. }))));
}

/// A client that stops reading is cut once its queue is full; as nothing reaches it, its connection ends. Others live.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_that_stops_is_cut() {
    let mut port = Port::open().await;
    let (mut other, tell_other) = subscribe(&mut port, None).await;
    let (mut stream, tell) = subscribe(&mut port, None).await;
    let mut status = proffer_types::Status::new(
        proffer_types::TaskState::Running,
        proffer_types::Reason::None,
        proffer_types::Source::Agent,
    );
    status.message = "x".repeat(1_000);
    let update = Update {
        launch: Some(LaunchId(1)),
        task_id: TaskId::new("t").expect("a name"),
        agent: AgentId(1),
        status: Some(status),
        acknowledge: true,
    };
    let push = || tell(FrameworkItem::Event(FrameworkEvent::Update(update.clone())));
    // More than the client's window and the queue hold together.
    (0..40_000).for_each(|_| push());
    let gone = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            push();
            tokio::select! {
                gone = port.inbox.notices.recv() => return gone,
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
    });
    assert!(matches!(gone.await, Ok(Some(Notice::FrameworkGone { .. }))));
    let end = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "{end:?}");
    tell_other(FrameworkItem::Event(FrameworkEvent::Rescind(Vec::new())));
    assert!(other.message().await.expect("events").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_agent_opens_its_session() {
    let mut port = Port::open().await;
    let mut client = AgentServiceClient::new(port.dial().await);
    let (to_master, messages) = mpsc::channel(4);
    let hello = Hello {
        agent: None,
        instance: RequestId(9),
        info: AgentInfo::default(),
        boot_id: BootId(1),
        last_seq: 0,
        digest: 0,
        epoch_seen: Epoch::default(),
        cluster: None,
    };
    let hello = to_proto::agent_message(None, None, &[AgentReport::Hello(Box::new(hello))]);
    to_master.send(hello).await.expect("room");
    let session = tokio::spawn(async move { client.session(ReceiverStream::new(messages)).await });
    port.answer_view().await;
    let Some(Notice::Agent { outbox, .. }) = port.inbox.notices.recv().await else { panic!("no session") };
    assert!(matches!(port.ask().await, Ask::Call { call: Call::AgentHello { .. }, reply: None, .. }));
    let mut session = session.await.expect("no panic").expect("a session").into_inner();
    outbox.push(AgentOrder::Ping { n: 1 });
    let orders = from_proto::master_message(session.message().await.expect("orders").expect("no end"));
    assert_eq!(orders, Ok((EPOCH, vec![AgentOrder::Ping { n: 1 }])));

    // What it lists when asked belongs to the opening: it follows nobody yet.
    let listing = to_proto::agent_message(Some(AgentId(3)), None, &[AgentReport::Listing(Vec::new())]);
    to_master.send(listing).await.expect("room");
    assert!(matches!(port.ask().await, Ask::Call { call: Call::AgentListing { .. }, .. }));

    let pong = to_proto::agent_message(Some(AgentId(3)), Some(EPOCH), &[AgentReport::Pong { n: 1 }]);
    to_master.send(pong).await.expect("room");
    assert!(matches!(port.ask().await, Ask::Call { call: Call::AgentAlive { .. }, .. }));

    // A message for another leadership ends the session.
    let late = Epoch { generation: 0, term: 2 };
    let pong = to_proto::agent_message(Some(AgentId(3)), Some(late), &[AgentReport::Pong { n: 2 }]);
    to_master.send(pong).await.expect("room");
    let status = session.message().await.expect_err("the end");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_and_reflection_are_served() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let port = Port::open().await;
    let channel = port.dial().await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "proffer.scheduler.v1.SchedulerService", "proffer.admin.v1.AdminService"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let answer = health.check(request).await.expect(service).into_inner();
        assert_eq!(answer.status, ServingStatus::Serving as i32, "{service}");
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(request)).await.expect("a stream").into_inner();
    let answer = answers.message().await.expect("an answer").expect("no end").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    let services = ["scheduler.v1.Scheduler", "agent.v1.Agent", "admin.v1.Admin"];
    let served = services.map(|name| format!("proffer.{name}Service"));
    let ours: Vec<_> = names.iter().filter(|name| name.starts_with("proffer.")).collect();
    assert_eq!(ours, served.iter().collect::<Vec<_>>(), "what is served here, and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_says_where_the_next_begins() {
    let mut port = Port::open().await;
    let mut client = AdminServiceClient::new(port.dial().await);
    let page = Some(admin::Page { size: 1_001, token: String::new() });
    let request = admin::ListAgentsRequest { read: None, page };
    let status = client.list_agents(request).await.expect_err("too many rows");
    assert!(
        matches!(Problem::from_status(&status), Problem::Invalid { fields, .. } if fields[0].path == "page.size")
    );
    let call = tokio::spawn(async move { client.list_tasks(admin::ListTasksRequest::default()).await });
    port.answer_view().await;
    let answer = call.await.expect("no panic").expect("a list").into_inner();
    assert!(answer.tasks.is_empty() && answer.next.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_page_of_large_rows_ends_early() {
    let mut state = Registry::new();
    let agents = 40;
    for n in 1..=agents {
        let text = proffer_types::AttributeValue::Text("x".repeat(250));
        let info = AgentInfo {
            attributes: (0..200).map(|i| (format!("attribute-{i}"), text.clone())).collect(),
            ..AgentInfo::default()
        };
        let instance = RequestId(u128::from(n));
        let command = proffer_types::command::Command::RegisterAgent { instance, info, boot_id: BootId(1) };
        let caller = proffer_types::Caller::anonymous();
        let entry =
            proffer_types::command::Entry { term: 1, time: ClusterTime(0), wall_ms: 0, caller, command };
        state.apply(n, 1, &entry);
    }
    let mut port = Port::open().await;
    let client = AdminServiceClient::new(port.dial().await);
    let (mut token, mut seen, mut pages) = (String::new(), 0, 0);
    loop {
        let mut client = client.clone();
        let page = Some(admin::Page { size: 0, token });
        let call =
            tokio::spawn(
                async move { client.list_agents(admin::ListAgentsRequest { read: None, page }).await },
            );
        let Ask::View { reply, .. } = port.ask().await else { panic!("a read was expected") };
        assert!(reply.send(Ok(View { registry: state.clone(), ..view() })).is_ok());
        let answer = call.await.expect("no panic").expect("a list").into_inner();
        assert!(prost::Message::encoded_len(&answer) <= 1 << 20);
        (seen, pages, token) = (seen + answer.agents.len(), pages + 1, answer.next);
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((seen as u64, pages > 1), (agents, true));
}
