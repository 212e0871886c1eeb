//! What operators do to a task: programs, terminals, files; and what tasks use.
//!
//! None of it is repeated by itself: a program that may have run is not run again, a file that may be half there is for
//! the caller to send again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use proffer_types::{AgentId, FrameworkId, TaskId};
use proffer_wire::admin::v1 as pb;
use proffer_wire::admin::v1::admin_service_client::AdminServiceClient;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::admin::{AdminClient, Error};
use crate::core::{Failure, Refused, RefusedKind};
use crate::failure::failure;

pub use pb::{ExecEnd, FileEntry, FileHead, FileKind, FileSkipped, FilesEnd, NodeUsage, TaskUsage};

/// What is said and not sent yet, on any stream.
const SAID_QUEUED: usize = 4;
/// Input is sent in pieces of at most this.
const INPUT_BYTES_MAX: usize = 32 << 10;
/// A file's data is sent in pieces of at most this.
pub const DATA_BYTES_MAX: usize = 64 << 10;
/// Between two attempts to find the leader.
const PAUSE: Duration = Duration::from_millis(100);

/// The reason of a refusal that is none: the connection was lost, or could not be made.
pub const CONNECTION_LOST: &str = "CONNECTION_LOST";

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

impl WindowSize {
    fn told(self) -> pb::TerminalSize {
        pb::TerminalSize { rows: self.rows.into(), cols: self.cols.into() }
    }
}

/// A program to run in a task's container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Added to the task's environment.
    pub env: BTreeMap<String, String>,
    /// Where it starts; empty for where the task's own program did.
    pub working_directory: String,
    /// With a terminal of this size.
    pub terminal: Option<WindowSize>,
}

/// What comes of a program.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecEvent {
    /// It runs.
    Started,
    /// From its standard output, or its terminal.
    Stdout(Bytes),
    /// From its standard error.
    Stderr(Bytes),
    /// It ended; nothing follows.
    End(ExecEnd),
}

/// Bytes of input that may be on their way to a program that does not take them: beyond that nothing could be said.
const INPUT_AHEAD_MAX: u64 = 256 << 10;

/// The way to a program. Dropping every clone ends its input, and what else there was to say.
#[derive(Clone, Debug)]
pub struct ExecHand {
    said: mpsc::Sender<pb::ExecRequest>,
    /// Bytes of input that were sent.
    sent: Arc<AtomicU64>,
    /// And that the program has taken.
    taken: watch::Receiver<u64>,
}

impl ExecHand {
    /// Waits for room; `false` if nobody listens any more.
    async fn tell(&self, message: pb::exec_request::Message) -> bool {
        self.said.send(pb::ExecRequest { message: Some(message) }).await.is_ok()
    }

    /// For its standard input, or typed on its terminal. Waits while the program takes no more; `false` if it is over.
    pub async fn input(&self, mut bytes: Bytes) -> bool {
        let mut taken = self.taken.clone();
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(INPUT_BYTES_MAX));
            let sent = self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed) + piece.len() as u64;
            if taken.wait_for(|taken| sent <= taken + INPUT_AHEAD_MAX).await.is_err() {
                return false;
            }
            if !self.tell(pb::exec_request::Message::Input(piece)).await {
                return false;
            }
        }
        true
    }

    /// Its standard input ends.
    pub async fn end_input(&self) -> bool {
        self.tell(pb::exec_request::Message::InputEnd(pb::InputEnd {})).await
    }

    /// Its terminal has another size.
    pub async fn resize(&self, size: WindowSize) -> bool {
        self.tell(pb::exec_request::Message::Resize(size.told())).await
    }

    /// Sends it a signal, as in signal(7).
    pub async fn signal(&self, signal: i32) -> bool {
        self.tell(pb::exec_request::Message::Signal(signal)).await
    }
}

/// The way to a task that was joined. Dropping every clone says no more.
#[derive(Clone, Debug)]
pub struct AttachHand {
    said: mpsc::Sender<pb::AttachRequest>,
}

impl AttachHand {
    async fn tell(&self, message: pb::attach_request::Message) -> bool {
        self.said.send(pb::AttachRequest { message: Some(message) }).await.is_ok()
    }

    /// Typed on the task's terminal. Waits while the task takes no more; `false` if it is over.
    pub async fn input(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(INPUT_BYTES_MAX));
            if !self.tell(pb::attach_request::Message::Input(piece)).await {
                return false;
            }
        }
        true
    }

    /// The terminal has another size.
    pub async fn resize(&self, size: WindowSize) -> bool {
        self.tell(pb::attach_request::Message::Resize(size.told())).await
    }
}

/// What a program says.
#[derive(Debug)]
pub struct ExecOutput {
    stream: Streaming<pb::ExecResponse>,
    taken: watch::Sender<u64>,
}

impl ExecOutput {
    /// The next thing; `None` behind [`ExecEvent::End`].
    ///
    /// # Errors
    /// It could not be run, or the connection was lost: what becomes of it is then not known.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, Error> {
        use pb::exec_response::Message;
        loop {
            let Some(response) = self.stream.message().await.map_err(|s| error("run a program", &s))? else {
                return Ok(None);
            };
            return Ok(Some(match response.message {
                Some(Message::Started(_)) => ExecEvent::Started,
                Some(Message::Stdout(bytes)) => ExecEvent::Stdout(bytes),
                Some(Message::Stderr(bytes)) => ExecEvent::Stderr(bytes),
                Some(Message::End(end)) => ExecEvent::End(end),
                Some(Message::InputTaken(bytes)) => {
                    self.taken.send_replace(bytes);
                    continue;
                }
                // Of a later version.
                None => continue,
            }));
        }
    }
}

/// What comes of a task that was joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttachEvent {
    /// It is joined; whether it has a terminal.
    Attached {
        /// One can type on it.
        terminal: bool,
    },
    /// From its standard output, or its terminal.
    Stdout(Bytes),
    /// From its standard error.
    Stderr(Bytes),
    /// It has ended; nothing follows.
    End,
}

/// What a task that was joined says.
#[derive(Debug)]
pub struct AttachOutput {
    stream: Streaming<pb::AttachResponse>,
}

impl AttachOutput {
    /// The next thing; `None` behind [`AttachEvent::End`].
    ///
    /// # Errors
    /// It could not be joined, or the connection was lost.
    pub async fn next(&mut self) -> Result<Option<AttachEvent>, Error> {
        use pb::attach_response::Message;
        loop {
            let Some(response) = self.stream.message().await.map_err(|s| error("join a task", &s))? else {
                return Ok(None);
            };
            return Ok(Some(match response.message {
                Some(Message::Attached(attached)) => AttachEvent::Attached { terminal: attached.terminal },
                Some(Message::Stdout(bytes)) => AttachEvent::Stdout(bytes),
                Some(Message::Stderr(bytes)) => AttachEvent::Stderr(bytes),
                Some(Message::End(_)) => AttachEvent::End,
                None => continue,
            }));
        }
    }
}

/// A page of a directory.
#[derive(Clone, Debug, Default)]
pub struct FilePage {
    /// The entries, or the one file that was named.
    pub entries: Vec<FileEntry>,
    /// What gives the next page; empty if this is the last.
    pub next: Bytes,
    /// Whether a directory was named.
    pub directory: bool,
}

/// A piece of files on their way.
#[derive(Clone, Debug, PartialEq)]
pub enum FilePiece {
    /// A file or directory begins.
    Head(FileHead),
    /// More of the file that began last.
    Data(Bytes),
    /// Something was left out.
    Skipped(FileSkipped),
    /// That was all.
    End(FilesEnd),
}

/// Files as they come.
#[derive(Debug)]
pub struct FileReader {
    stream: Streaming<pb::ReadFilesResponse>,
    pieces: std::vec::IntoIter<pb::FileItem>,
}

impl FileReader {
    /// The next piece; `None` at the end of the stream, which is an orderly one only behind [`FilePiece::End`].
    ///
    /// # Errors
    /// What was asked for cannot be read, or the connection was lost.
    pub async fn next(&mut self) -> Result<Option<FilePiece>, Error> {
        use pb::file_item::Item;
        loop {
            match self.pieces.next() {
                Some(pb::FileItem { item: Some(item) }) => {
                    return Ok(Some(match item {
                        Item::Head(head) => FilePiece::Head(head),
                        Item::Data(data) => FilePiece::Data(data),
                        Item::Skipped(skipped) => FilePiece::Skipped(skipped),
                        Item::End(end) => FilePiece::End(end),
                    }));
                }
                Some(_) => continue,
                None => {}
            }
            let next = self.stream.message().await.map_err(|status| error(READ_FILES, &status))?;
            let Some(response) = next else { return Ok(None) };
            self.pieces = response.items.into_iter();
        }
    }
}

/// Files on their way to a task.
#[derive(Debug)]
pub struct FileWriter {
    said: mpsc::Sender<pb::WriteFilesRequest>,
    done: tokio::task::JoinHandle<Result<Response<pb::WriteFilesResponse>, Status>>,
}

impl FileWriter {
    /// Sends a piece; waits for room. `false` if nobody takes more: [`finish`](Self::finish) says why.
    pub async fn send(&self, piece: FilePiece) -> bool {
        use pb::file_item::Item;
        let item = Some(match piece {
            FilePiece::Head(head) => Item::Head(head),
            FilePiece::Data(data) => Item::Data(data),
            FilePiece::Skipped(skipped) => Item::Skipped(skipped),
            FilePiece::End(end) => Item::End(end),
        });
        let items = vec![pb::FileItem { item }];
        self.said.send(pb::WriteFilesRequest { start: None, items }).await.is_ok()
    }

    /// Waits for the answer: how many files were written, and bytes in them.
    ///
    /// # Errors
    /// They could not be written, or the connection was lost.
    pub async fn finish(self) -> Result<(u64, u64), Error> {
        drop(self.said);
        match self.done.await {
            Ok(Ok(response)) => {
                let done = response.into_inner();
                Ok((done.files, done.bytes))
            }
            Ok(Err(status)) => Err(error(WRITE_FILES, &status)),
            Err(died) => Err(unavailable(WRITE_FILES, died.to_string())),
        }
    }
}

/// Measurements as they come.
#[derive(Debug)]
pub struct UsageReader {
    stream: Streaming<pb::WatchUsageResponse>,
}

impl UsageReader {
    /// The next whole measurement; `None` if there is no more.
    ///
    /// # Errors
    /// The agent cannot be asked, or the connection was lost.
    pub async fn next(&mut self) -> Result<Option<(Vec<TaskUsage>, NodeUsage)>, Error> {
        let mut tasks = Vec::new();
        loop {
            let next = self.stream.message().await.map_err(|status| error("measure usage", &status))?;
            let Some(mut part) = next else { return Ok(None) };
            tasks.append(&mut part.tasks);
            if !part.more {
                return Ok(Some((tasks, part.node.unwrap_or_default())));
            }
        }
    }
}

const READ_FILES: &str = "read a task's files";
const WRITE_FILES: &str = "write a task's files";

impl AdminClient {
    /// Runs a program in a running task's container.
    ///
    /// # Errors
    /// There is no such task, it does not run, or no leader was found.
    pub async fn exec(
        &self,
        framework: FrameworkId,
        task: &TaskId,
        command: Command,
    ) -> Result<(ExecHand, ExecOutput), Error> {
        let Command { argv, env, working_directory, terminal } = command;
        let start = pb::ExecStart {
            framework_id: framework.0,
            task_id: task.as_str().into(),
            argv,
            env,
            working_directory,
            terminal: terminal.map(WindowSize::told),
        };
        let first = pb::ExecRequest { message: Some(pb::exec_request::Message::Start(start)) };
        let (said, stream) = self
            .converse("run a program", first, async |mut client, requests| client.exec(requests).await)
            .await?;
        let (taken, told) = watch::channel(0);
        let hand = ExecHand { said, sent: Arc::default(), taken: told };
        Ok((hand, ExecOutput { stream, taken }))
    }

    /// Joins a running task; with `terminal` its terminal, if it has one, gets that size.
    ///
    /// # Errors
    /// There is no such task, it does not run, or no leader was found.
    pub async fn attach(
        &self,
        framework: FrameworkId,
        task: &TaskId,
        terminal: Option<WindowSize>,
    ) -> Result<(AttachHand, AttachOutput), Error> {
        let start = pb::AttachStart {
            framework_id: framework.0,
            task_id: task.as_str().into(),
            terminal: terminal.map(WindowSize::told),
        };
        let first = pb::AttachRequest { message: Some(pb::attach_request::Message::Start(start)) };
        let (said, stream) = self
            .converse("join a task", first, async |mut client, requests| client.attach(requests).await)
            .await?;
        Ok((AttachHand { said }, AttachOutput { stream }))
    }

    /// Files of a task's sandbox; `token` is the `next` of the page before, empty for the first.
    ///
    /// # Errors
    /// There is nothing at `path`, or its agent cannot be asked.
    pub async fn list_files(
        &self,
        framework: FrameworkId,
        task: &TaskId,
        path: &[u8],
        token: Bytes,
    ) -> Result<FilePage, Error> {
        let request = pb::ListFilesRequest {
            framework_id: framework.0,
            task_id: task.as_str().into(),
            path: Bytes::copy_from_slice(path),
            size: 0,
            token,
        };
        let answer =
            self.ask("list a task's files", async |mut c| c.list_files(request.clone()).await).await?;
        Ok(FilePage { entries: answer.entries, next: answer.next, directory: answer.directory })
    }

    /// A file of a task's sandbox, or a directory with all that is beneath.
    ///
    /// # Errors
    /// There is no such task, or no leader was found.
    pub async fn read_files(
        &self,
        framework: FrameworkId,
        task: &TaskId,
        path: &[u8],
    ) -> Result<FileReader, Error> {
        let request = pb::ReadFilesRequest {
            framework_id: framework.0,
            task_id: task.as_str().into(),
            path: Bytes::copy_from_slice(path),
        };
        let stream = self.ask(READ_FILES, async |mut c| c.read_files(request.clone()).await).await?;
        Ok(FileReader { stream, pieces: Vec::new().into_iter() })
    }

    /// Puts files into a task's sandbox: into the directory at `path`, under `name`, or else under the name that `path`
    /// is.
    ///
    /// # Errors
    /// No leader was found.
    pub async fn write_files(
        &self,
        framework: FrameworkId,
        task: &TaskId,
        path: &[u8],
        name: &[u8],
    ) -> Result<FileWriter, Error> {
        let start = pb::WriteFilesStart {
            framework_id: framework.0,
            task_id: task.as_str().into(),
            path: Bytes::copy_from_slice(path),
            name: Bytes::copy_from_slice(name),
        };
        let mut client = self.leading(WRITE_FILES).await?;
        let (said, requests) = mpsc::channel(SAID_QUEUED);
        // The queue is empty.
        let _ = said.try_send(pb::WriteFilesRequest { start: Some(start), items: Vec::new() });
        let done = tokio::spawn(async move { client.write_files(ReceiverStream::new(requests)).await });
        Ok(FileWriter { said, done })
    }

    /// What an agent's tasks use, every `interval` (at least 500 ms), or once.
    ///
    /// # Errors
    /// There is no such agent, or no leader was found.
    pub async fn watch_usage(
        &self,
        agent: AgentId,
        interval: Option<Duration>,
    ) -> Result<UsageReader, Error> {
        let interval_ms = interval.map_or(0, |interval| interval.as_millis().try_into().unwrap_or(u64::MAX));
        let request = pb::WatchUsageRequest { agent_id: agent.0, interval_ms };
        let stream = self.ask("measure usage", async |mut c| c.watch_usage(request).await).await?;
        Ok(UsageReader { stream })
    }

    /// Opens a stream either way at the leader. Only what was certainly not begun is tried again.
    async fn converse<Q: Clone, S>(
        &self,
        what: &'static str,
        first: Q,
        call: impl AsyncFn(
            AdminServiceClient<Channel>,
            ReceiverStream<Q>,
        ) -> Result<Response<Streaming<S>>, Status>,
    ) -> Result<(mpsc::Sender<Q>, Streaming<S>), Error> {
        let until = Instant::now() + crate::admin::DEADLINE;
        loop {
            let client = self.leading(what).await?;
            let (said, requests) = mpsc::channel(SAID_QUEUED);
            // The queue is empty.
            let _ = said.try_send(first.clone());
            let status = match call(client, ReceiverStream::new(requests)).await {
                Ok(response) => return Ok((said, response.into_inner())),
                Err(status) => status,
            };
            let pause = match failure(&status) {
                Failure::NotLeader { .. } => PAUSE,
                Failure::Busy { retry_after_ms } => Duration::from_millis(retry_after_ms),
                _ => return Err(error(what, &status)),
            };
            if Instant::now() + pause >= until {
                return Err(error(what, &status));
            }
            sleep(pause).await;
        }
    }

    /// The leader, found by asking for the cluster's status.
    async fn leading(&self, what: &'static str) -> Result<AdminServiceClient<Channel>, Error> {
        let (_, summary) = self.status().await?;
        let leader = self.leader().unwrap_or(summary.leader);
        self.client(&leader).map_err(|why| unavailable(what, why))
    }
}

/// What was begun has no known end.
fn unavailable(what: &'static str, why: String) -> Error {
    let refused = Refused { kind: RefusedKind::Precondition, reason: CONNECTION_LOST.into(), message: why };
    Error::Refused { what, refused }
}

/// What a status means for whoever does not repeat.
fn error(what: &'static str, status: &Status) -> Error {
    match failure(status) {
        Failure::Refused(refused) => Error::Refused { what, refused },
        Failure::Busy { .. } => unavailable(what, format!("busy: {}", status.message())),
        _ => unavailable(what, status.message().to_owned()),
    }
}
