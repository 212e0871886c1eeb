//! A master of the generated server: it says what the test makes it say.

#![allow(dead_code, reason = "each test program uses a part")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proffer_types::event::{AgentOrder, AgentReport, Hello};
use proffer_types::{AgentId, ClusterId, Epoch};
use proffer_wire::agent::v1 as pb;
use proffer_wire::agent::v1::agent_service_server::{AgentService, AgentServiceServer};
use proffer_wire::{from_proto, to_proto};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// The cluster it belongs to.
pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Longer than any of the agent's own pauses.
const DEADLINE: Duration = Duration::from_secs(20);

type Orders = mpsc::Sender<Result<pb::MasterMessage, Status>>;
type DataCall = (Streaming<pb::DataChunk>, mpsc::Sender<Result<pb::DataRequest, Status>>);

/// What the server's side shares with the test.
struct Service {
    /// `Some`: it follows, and names this leader.
    follows: Arc<Mutex<Option<Option<String>>>>,
    sessions: mpsc::Sender<Orders>,
    reports: mpsc::Sender<AgentReport>,
    data: mpsc::Sender<DataCall>,
}

/// The test's side.
pub(crate) struct Master {
    /// Where it listens.
    pub(crate) address: String,
    follows: Arc<Mutex<Option<Option<String>>>>,
    sessions: mpsc::Receiver<Orders>,
    session: Option<Orders>,
    reports: mpsc::Receiver<AgentReport>,
    data: mpsc::Receiver<DataCall>,
}

impl Master {
    /// A leader on a port of its own.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let follows = Arc::new(Mutex::new(None));
        let (to_sessions, sessions) = mpsc::channel(16);
        let (to_reports, reports) = mpsc::channel(1_024);
        let (to_data, data) = mpsc::channel(16);
        let service =
            Service { follows: follows.clone(), sessions: to_sessions, reports: to_reports, data: to_data };
        let server = tonic::transport::Server::builder().add_service(AgentServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, follows, sessions, session: None, reports, data }
    }

    /// Does not lead any more.
    pub(crate) fn follow(&self, leader: Option<&str>) {
        *self.follows.lock().unwrap() = Some(leader.map(str::to_owned));
    }

    /// Leads.
    pub(crate) fn lead(&self) {
        *self.follows.lock().unwrap() = None;
    }

    /// Ends the present stream as a master does that does not lead any more.
    pub(crate) async fn end_with_not_leader(&mut self) {
        let leader = self.follows.lock().unwrap().clone().expect("follow() first");
        let session = self.session.take().expect("a session");
        session.send(Err(not_leader(leader.as_deref()))).await.unwrap();
    }

    /// The Hello of the newest stream, which is answered by `send` from now on.
    pub(crate) async fn hello(&mut self) -> Hello {
        loop {
            if let AgentReport::Hello(hello) = self.report().await {
                while let Ok(session) = self.sessions.try_recv() {
                    self.session = Some(session);
                }
                return *hello;
            }
        }
    }

    /// What the agent says next.
    pub(crate) async fn report(&mut self) -> AgentReport {
        timeout(DEADLINE, self.reports.recv()).await.expect("the agent says something").unwrap()
    }

    /// Says something on the newest stream.
    pub(crate) async fn send(&self, term: u64, orders: Vec<AgentOrder>) {
        let items = orders.iter().flat_map(to_proto::agent_order).collect();
        let message = to_proto::master_message(Epoch { generation: 0, term }, items);
        self.session.as_ref().expect("a session").send(Ok(message)).await.unwrap();
    }

    /// Welcomes agent 9.
    pub(crate) fn welcome(&self, last_seq: u64) -> AgentOrder {
        AgentOrder::Welcome {
            agent: AgentId(9),
            cluster: CLUSTER,
            ping_ms: 15_000,
            reattach_spread_ms: 10,
            last_seq,
        }
    }

    /// Welcomes agent 9 to another cluster.
    pub(crate) fn welcome_of(&self, cluster: ClusterId) -> AgentOrder {
        AgentOrder::Welcome {
            agent: AgentId(9),
            cluster,
            ping_ms: 15_000,
            reattach_spread_ms: 0,
            last_seq: 0,
        }
    }

    /// Takes the connection with this ticket, asks for something and reads all of it.
    pub(crate) async fn data(&mut self, ticket: [u8; 16], request: pb::DataRequest) -> Vec<pb::DataChunk> {
        let read = async {
            let (mut chunks, requests) = self.data.recv().await.unwrap();
            let first = chunks.message().await.unwrap().unwrap();
            assert_eq!(first.ticket.as_ref(), ticket);
            requests.send(Ok(request)).await.unwrap();
            let mut list = Vec::new();
            while let Some(chunk) = chunks.message().await.unwrap() {
                assert!(chunk.ticket.is_empty());
                let end = chunk.end;
                list.push(chunk);
                if end {
                    break;
                }
            }
            list
        };
        timeout(DEADLINE, read).await.expect("the agent brings the data")
    }
}

fn not_leader(leader: Option<&str>) -> Status {
    let mut status = Status::unavailable("this master does not lead");
    if let Some(leader) = leader {
        status.metadata_mut().insert("proffer-leader", leader.parse().unwrap());
    }
    status
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<pb::MasterMessage, Status>>;
    type DataStream = ReceiverStream<Result<pb::DataRequest, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(leader) = &*self.follows.lock().unwrap() {
            return Err(not_leader(leader.as_deref()));
        }
        let (orders, stream) = mpsc::channel(16);
        self.sessions.send(orders).await.unwrap();
        let reports = self.reports.clone();
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                for report in from_proto::agent_message(message).expect("what agents say can be read").reports
                {
                    if reports.send(report).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn data(
        &self,
        request: Request<Streaming<pb::DataChunk>>,
    ) -> Result<Response<Self::DataStream>, Status> {
        let (requests, stream) = mpsc::channel(1);
        self.data.send((request.into_inner(), requests)).await.unwrap();
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
