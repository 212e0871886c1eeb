//! A program run inside a task for an operator.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proffer_containerizer::{ExecEvent, ExecId, Stdio, resize};
use proffer_types::LaunchId;
use proffer_wire::admin::v1 as admin;
use proffer_wire::admin::v1::exec_request::Message as Said;
use proffer_wire::admin::v1::exec_response::Message as Told;
use proffer_wire::agent::v1::data_chunk::Answer;
use proffer_wire::agent::v1::data_request::Ask;
use proffer_wire::agent::v1::{DataChunk, DataRequest};
use proffer_wire::from_proto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;

use super::{Gone, Outbound, Refusal, Wish, next_ask, terminal_size};

/// Read at once from a program.
const PIECE_BYTES: usize = 32 << 10;
/// Input that waits for a program that does not read: beyond it no more is taken from the operator, who is told how much
/// was taken and may be as far ahead as this.
const INPUT_BYTES_MAX: usize = 256 << 10;
/// How long what a program left behind may hold its output open after its end.
const DRAIN: Duration = Duration::from_secs(2);
/// The most that a program can have written and not had read when it ends: what a pipe holds, or a terminal. So much is told
/// of each of its streams, however slowly its operator reads.
const LEFT_BYTES_MAX: usize = 128 << 10;
/// How long a program whose operator is gone may take to end by itself.
const HANGUP_GRACE: Duration = Duration::from_secs(10);
/// Signals that may be sent: the ordinary ones.
const SIGNAL_MAX: i32 = 31;

/// Runs a program until it ends or its operator is gone.
pub(super) async fn run(
    launch: LaunchId,
    first: admin::ExecRequest,
    wishes: &mpsc::Sender<Wish>,
    outbound: &Outbound,
    requests: &mut Streaming<DataRequest>,
) -> Result<(), Gone> {
    let Some(Said::Start(start)) = first.message else {
        return outbound.refuse(Refusal::new("INVALID", "an exec begins with `start`")).await;
    };
    let command = match from_proto::exec_start(&start) {
        Ok(command) => command,
        Err(error) => return outbound.refuse(error.into()).await,
    };
    let (events_in, mut events) = mpsc::unbounded_channel();
    let (reply, named) = oneshot::channel();
    wishes.send(Wish::Exec { launch, command, events: events_in, reply }).await.map_err(|_| Gone)?;
    let Ok(exec) = named.await else {
        return outbound.refuse(Refusal::new("TASK_NOT_RUNNING", "the task does not run on its agent")).await;
    };
    let mut program = Program { exec, wishes: wishes.clone(), ended: false };
    let stdio = match events.recv().await {
        Some(ExecEvent::Started(stdio)) => stdio,
        other => {
            program.ended = true;
            return end(other, outbound).await;
        }
    };
    tell(outbound, Told::Started(admin::ExecStarted {})).await?;
    let ends = match Ends::new(stdio) {
        Ok(ends) => ends,
        Err(error) => {
            return outbound.refuse(Refusal::new("IO_ERROR", format!("the program's ends: {error}"))).await;
        }
    };
    let how = converse(ends, &program, &mut events, outbound, requests).await?;
    program.ended = true;
    end(how, outbound).await
}

/// A program that was started, and is ended with this.
struct Program {
    exec: ExecId,
    wishes: mpsc::Sender<Wish>,
    ended: bool,
}

impl Program {
    async fn signal(&self, signal: i32) {
        let _ = self.wishes.send(Wish::Signal { exec: self.exec, signal }).await;
    }
}

impl Drop for Program {
    /// Its operator is gone: it hears what a program hears whose terminal is, and does not outlive that for long.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (exec, wishes) = (self.exec, self.wishes.clone());
        tokio::spawn(async move {
            for (signal, pause) in [(1, HANGUP_GRACE), (9, Duration::ZERO)] {
                if wishes.send(Wish::Signal { exec, signal }).await.is_err() {
                    return;
                }
                sleep(pause).await;
            }
        });
    }
}

/// Our ends of a program's input and output, which wait without a thread.
struct Ends {
    stdin: Sender,
    stdout: Receiver,
    stderr: Option<Receiver>,
    /// To set its size.
    terminal: Option<OwnedFd>,
}

impl Ends {
    fn new(stdio: Stdio) -> std::io::Result<Self> {
        Ok(match stdio {
            Stdio::Terminal(terminal) => Self {
                stdin: typed_on(terminal.try_clone()?)?,
                // It is read as a pipe is.
                stdout: Receiver::from_owned_fd_unchecked(terminal.try_clone()?)?,
                stderr: None,
                terminal: Some(terminal),
            },
            Stdio::Pipes { stdin, stdout, stderr } => Self {
                stdin: Sender::from_owned_fd(stdin)?,
                stdout: Receiver::from_owned_fd(stdout)?,
                stderr: Some(Receiver::from_owned_fd(stderr)?),
                terminal: None,
            },
        })
    }
}

/// The writing side of a terminal: it is written to as a pipe is.
pub(super) fn typed_on(terminal: OwnedFd) -> std::io::Result<Sender> {
    Sender::from_owned_fd_unchecked(terminal)
}

/// Carries everything either way until the program has ended and its output is told.
async fn converse(
    ends: Ends,
    program: &Program,
    events: &mut mpsc::UnboundedReceiver<ExecEvent>,
    outbound: &Outbound,
    requests: &mut Streaming<DataRequest>,
) -> Result<Option<ExecEvent>, Gone> {
    let Ends { stdin, stdout, stderr, terminal } = ends;
    let (end, ended) = watch::channel(None);
    let output = async {
        let stderr = async {
            match stderr {
                Some(stderr) => copy(stderr, outbound, Told::Stderr, ended.clone()).await,
                None => Ok(()),
            }
        };
        let (stdout, stderr) = tokio::join!(copy(stdout, outbound, Told::Stdout, ended.clone()), stderr);
        stdout.and(stderr)
    };
    let mut output = Box::pin(output);
    let mut told = false;
    let mut input = Box::pin(listen(stdin, terminal, program, outbound, requests));
    let how = loop {
        tokio::select! {
            event = events.recv() => break event,
            copied = &mut output, if !told => { copied?; told = true }
            gone = &mut input => return Err(gone),
            () = outbound.closed() => return Err(Gone),
        }
    };
    end.send_replace(Some(DRAIN));
    if !told {
        tokio::select! {
            copied = output => copied?,
            () = outbound.closed() => return Err(Gone),
        }
    }
    Ok(how)
}

/// Tells what comes out of a program, up to the end. An operator that does not read makes the program wait. Once it has
/// `ended`, what it left running is told for so long.
async fn copy(
    mut from: Receiver,
    outbound: &Outbound,
    told: fn(Bytes) -> Told,
    mut ended: watch::Receiver<Option<Duration>>,
) -> Result<(), Gone> {
    // Once it has ended: how much of what is read may still be its own, and until when what it left running is read.
    let mut left: Option<(usize, Instant)> = None;
    loop {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let read = match left {
            None => tokio::select! {
                read = from.read_buf(&mut piece) => read,
                Ok(()) = ended.changed() => {
                    left = ended.borrow().map(|drain| (LEFT_BYTES_MAX, Instant::now() + drain));
                    continue;
                }
            },
            Some((0, until)) if until <= Instant::now() => Ok(0),
            // What is there is read, however late it is.
            Some((_, until)) => timeout_at(until, from.read_buf(&mut piece)).await.unwrap_or(Ok(0)),
        };
        match read {
            // The other side of a terminal that nobody has open says EIO.
            Ok(0) | Err(_) => return Ok(()),
            Ok(bytes) => {
                left = left.map(|(own, until)| (own.saturating_sub(bytes), until));
                tell(outbound, told(piece.freeze())).await?;
            }
        }
    }
}

/// Does what the operator says, until it is gone. Signals and sizes do not wait behind input that the program does not
/// take.
async fn listen(
    stdin: Sender,
    terminal: Option<OwnedFd>,
    program: &Program,
    outbound: &Outbound,
    requests: &mut Streaming<DataRequest>,
) -> Gone {
    let mut input = Input::new(stdin);
    let mut told = 0;
    loop {
        let taken = input.taken;
        tokio::select! {
            () = input.write(), if input.is_waiting() => {}
            // An operator that does not read is heard all the same.
            room = outbound.room(), if taken > told => match room {
                Ok(room) => {
                    let answer = Answer::Exec(admin::ExecResponse { message: Some(Told::InputTaken(taken)) });
                    room.send(DataChunk { answer: Some(answer), ..DataChunk::default() });
                    told = taken;
                }
                Err(gone) => return gone,
            },
            ask = next_ask(requests), if input.has_room() => match ask {
                None => return Gone,
                Some(Ask::Exec(admin::ExecRequest { message: Some(said) })) => match said {
                    Said::Input(bytes) => input.push(bytes),
                    Said::InputEnd(_) if terminal.is_none() => input.end(),
                    Said::Resize(size) => set_size(terminal.as_ref(), &size),
                    Said::Signal(signal) if (1..=SIGNAL_MAX).contains(&signal) => {
                        program.signal(signal).await;
                    }
                    _ => {}
                },
                Some(_) => {}
            },
        }
    }
}

/// Sets a terminal's size, if there is one.
pub(super) fn set_size(terminal: Option<&impl AsFd>, size: &admin::TerminalSize) {
    if let Some(terminal) = terminal
        && let Err(error) = resize(terminal, terminal_size(size))
    {
        tracing::debug!(%error, "a terminal keeps its size");
    }
}

/// A program's input, and what of it the program has not taken.
pub(super) struct Input {
    to: Option<Sender>,
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// Bytes that the program has taken, or will never take.
    taken: u64,
    /// Nothing follows what waits.
    ends: bool,
}

impl Input {
    pub(super) fn new(to: Sender) -> Self {
        Self { to: Some(to), pieces: VecDeque::new(), bytes: 0, taken: 0, ends: false }
    }

    /// Takes more. Of no effect once nobody reads it, or behind its end.
    pub(super) fn push(&mut self, piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        if self.to.is_none() || self.ends {
            self.taken += piece.len() as u64;
        } else {
            self.bytes += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// The program sees the end, behind what waits.
    fn end(&mut self) {
        self.ends = true;
        self.close_if_done();
    }

    fn close_if_done(&mut self) {
        if self.ends && self.pieces.is_empty() {
            self.to = None;
        }
    }

    /// Whether there is something to write.
    pub(super) fn is_waiting(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// Whether more is taken. An operator that has sent all that it may must still be heard.
    pub(super) fn has_room(&self) -> bool {
        self.bytes <= INPUT_BYTES_MAX
    }

    /// Writes some of it. Nothing is lost if this is given up before it is done.
    pub(super) async fn write(&mut self) {
        let (Some(to), Some(piece)) = (&mut self.to, self.pieces.front_mut()) else { return };
        // Advances the piece by what was written.
        let before = piece.len();
        let wrote = to.write_buf(piece).await;
        self.bytes -= before - piece.len();
        self.taken += (before - piece.len()) as u64;
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        if wrote.is_err() {
            // Nobody reads it: what waits is of no use.
            self.taken += self.bytes as u64;
            (self.to, self.bytes) = (None, 0);
            self.pieces.clear();
        }
        self.close_if_done();
    }
}

async fn tell(outbound: &Outbound, told: Told) -> Result<(), Gone> {
    outbound.answer(Answer::Exec(admin::ExecResponse { message: Some(told) }), false).await
}

/// Says how it ended.
async fn end(how: Option<ExecEvent>, outbound: &Outbound) -> Result<(), Gone> {
    let end = match how {
        Some(ExecEvent::Exited { exit_code, signal }) => {
            admin::ExecEnd { exit_code, signal, ..admin::ExecEnd::default() }
        }
        Some(ExecEvent::Failed { message, exit_code }) => {
            admin::ExecEnd { exit_code, message, ..admin::ExecEnd::default() }
        }
        Some(ExecEvent::Lost | ExecEvent::Started(_)) | None => admin::ExecEnd {
            message: "the program was ended: what watched it was lost".into(),
            ..admin::ExecEnd::default()
        },
    };
    let told = admin::ExecResponse { message: Some(Told::End(end)) };
    outbound.answer(Answer::Exec(told), true).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As long for a test.
    const DRAIN: Duration = Duration::from_millis(20);

    /// A copy of what is in a pipe, to somebody who has not read yet.
    struct Copying {
        end: watch::Sender<Option<Duration>>,
        told: mpsc::Receiver<DataChunk>,
        copied: tokio::task::JoinHandle<Result<(), Gone>>,
    }

    impl Copying {
        fn begin(read: OwnedFd) -> Self {
            let (chunks, told) = mpsc::channel(1);
            let (end, ended) = watch::channel(None);
            let from = Receiver::from_owned_fd(read).unwrap();
            let copied =
                tokio::spawn(async move { copy(from, &Outbound { chunks }, Told::Stdout, ended).await });
            Self { end, told, copied }
        }
    }

    async fn bytes(told: &mut mpsc::Receiver<DataChunk>) -> Option<usize> {
        let Some(Answer::Exec(admin::ExecResponse { message: Some(Told::Stdout(data)) })) =
            told.recv().await?.answer
        else {
            panic!("not output");
        };
        Some(data.len())
    }

    #[tokio::test]
    async fn who_reads_slowly_is_told_all_that_a_program_wrote() {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        // More pieces than are on their way at once.
        let size = nix::fcntl::FcntlArg::F_SETPIPE_SZ(LEFT_BYTES_MAX as i32);
        nix::fcntl::fcntl(&write, size).unwrap();
        let mut wrote = 0;
        while let Ok(more) = nix::unistd::write(&write, &[b'x'; 4096]) {
            wrote += more;
        }
        let Copying { end, mut told, copied } = Copying::begin(read);
        // It ended, and left something that holds its output open and says nothing.
        end.send_replace(Some(DRAIN));
        let mut had = 0;
        while had < wrote {
            sleep(DRAIN * 2).await;
            had += bytes(&mut told).await.expect("all of it");
        }
        assert!(copied.await.unwrap().is_ok());
        assert_eq!((had, bytes(&mut told).await), (wrote, None));
    }

    #[tokio::test]
    async fn what_a_program_left_running_is_told_for_a_while() {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let Copying { end, mut told, copied } = Copying::begin(read);
        end.send_replace(Some(DRAIN));
        let mut had = 0;
        loop {
            // Fuller than it is read, for ever.
            while nix::unistd::write(&write, &[b'x'; 4096]).is_ok() {}
            sleep(DRAIN / 8).await;
            match bytes(&mut told).await {
                Some(more) => had += more,
                None => break,
            }
        }
        assert!(copied.await.unwrap().is_ok());
        assert!((LEFT_BYTES_MAX..2 * LEFT_BYTES_MAX + 8 * PIECE_BYTES).contains(&had), "{had}");
    }
}
