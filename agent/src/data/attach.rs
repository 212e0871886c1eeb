//! An operator joins a task: sees what it says from now on and, if the task has a terminal, types on it.
//!
//! What a task writes to its terminal is logged like any output, and read from there: any number of operators see the
//! same, and one that reads slowly, or not at all, costs the task nothing.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use proffer_containerizer::resize;
use proffer_types::LaunchId;
use proffer_wire::admin::v1 as admin;
use proffer_wire::admin::v1::attach_request::Message as Said;
use proffer_wire::admin::v1::attach_response::Message as Told;
use proffer_wire::agent::v1 as pb;
use proffer_wire::agent::v1::DataRequest;
use proffer_wire::agent::v1::data_chunk::Answer;
use proffer_wire::agent::v1::data_request::Ask;
use proffer_wire::told::{LogRange, LogStream};
use tokio::sync::oneshot;
use tonic::Streaming;

use super::exec::{Input, set_size, typed_on};
use super::logs::{self, Logs};
use super::wake::Wake;
use super::{Gone, Outbound, Refusal, Tools, Wish, next_ask, terminal_size};

/// Shows a task's output until it ends or its operator leaves.
pub(super) async fn run<L: Logs>(
    launch: LaunchId,
    first: admin::AttachRequest,
    tools: &Tools<L>,
    outbound: &Outbound,
    requests: &mut Streaming<DataRequest>,
) -> Result<(), Gone> {
    let Some(Said::Start(start)) = first.message else {
        return outbound.refuse(Refusal::new("INVALID", "an attach begins with `start`")).await;
    };
    let wake = tools.wakers.subscribe(tools.container, tools.logs_dir.as_deref());
    // Before the terminal is touched: what its new size makes the program say belongs to what is shown.
    let stdout = logs::end(&tools.logs, LogStream::Stdout).await;
    let stderr = logs::end(&tools.logs, LogStream::Stderr).await;
    let terminal = match &start.terminal {
        Some(size) => terminal(launch, tools).await.inspect(|terminal| {
            // The same size says nothing to the program: one that differs makes it draw itself anew.
            let wanted = terminal_size(size);
            let other = proffer_containerizer::TerminalSize { rows: wanted.rows.saturating_add(1), ..wanted };
            let _ = resize(terminal, other);
            let _ = resize(terminal, wanted);
        }),
        None => None,
    };
    tell(outbound, Told::Attached(admin::Attached { terminal: terminal.is_some() }), false).await?;
    let output = async {
        let (stdout, stderr) = tokio::join!(
            show(&tools.logs, LogStream::Stdout, stdout, &wake, outbound),
            show(&tools.logs, LogStream::Stderr, stderr, &wake, outbound),
        );
        Ok(stdout?.or(stderr?))
    };
    let unread = tokio::select! {
        shown = output => shown?,
        gone = listen(terminal, requests) => return Err(gone),
        () = outbound.closed() => return Err(Gone),
    };
    if let Some(error) = unread {
        return outbound.refuse(Refusal::new("IO_ERROR", format!("the task's output: {error}"))).await;
    }
    tell(outbound, Told::End(admin::AttachEnd {}), true).await
}

/// The task's terminal, if it has one.
async fn terminal<L>(launch: LaunchId, tools: &Tools<L>) -> Option<OwnedFd> {
    let (reply, answer) = oneshot::channel();
    tools.wishes.send(Wish::Terminal { launch, reply }).await.ok()?;
    let given = answer.await.ok()?;
    given.ok()
}

/// Shows a stream to its end; why it cannot be read any more, if that is so before.
async fn show<L: Logs>(
    logs: &L,
    stream: LogStream,
    from: u64,
    wake: &Wake,
    outbound: &Outbound,
) -> Result<Option<String>, Gone> {
    let unread = OnceLock::new();
    let offset = i64::try_from(from).unwrap_or(i64::MAX);
    let range = LogRange { stream, offset, limit: 0, follow: true };
    logs::copy_as(logs, range, wake, outbound, |chunk| {
        if let Some(error) = chunk.error {
            let _ = unread.set(error);
            return None;
        }
        let told = match stream {
            _ if chunk.data.is_empty() => return None,
            LogStream::Stdout => Told::Stdout(chunk.data),
            LogStream::Stderr => Told::Stderr(chunk.data),
        };
        Some(chunk_of(told, false))
    })
    .await?;
    Ok(unread.into_inner())
}

/// Does what the operator says, until it is gone.
async fn listen(terminal: Option<OwnedFd>, requests: &mut Streaming<DataRequest>) -> Gone {
    let mut input = terminal.as_ref().and_then(|fd| typed_on(fd.try_clone().ok()?).ok()).map(Input::new);
    loop {
        let (has_room, is_waiting) =
            input.as_ref().map_or((true, false), |input| (input.has_room(), input.is_waiting()));
        let write = async {
            match &mut input {
                Some(input) => input.write().await,
                None => std::future::pending().await,
            }
        };
        let said = tokio::select! {
            () = write, if is_waiting => continue,
            ask = next_ask(requests), if has_room => match ask {
                None => return Gone,
                Some(Ask::Attach(admin::AttachRequest { message })) => message,
                Some(_) => None,
            },
        };
        match said {
            Some(Said::Input(bytes)) => input.iter_mut().for_each(|input| input.push(bytes.clone())),
            Some(Said::Resize(size)) => set_size(terminal.as_ref(), &size),
            Some(Said::Start(_)) | None => {}
        }
    }
}

async fn tell(outbound: &Outbound, told: Told, end: bool) -> Result<(), Gone> {
    outbound.send(chunk_of(told, end)).await
}

fn chunk_of(told: Told, end: bool) -> pb::DataChunk {
    let answer = Answer::Attach(admin::AttachResponse { message: Some(told) });
    pb::DataChunk { answer: Some(answer), end, ..pb::DataChunk::default() }
}
