//! `proffer task attach`

use std::time::Duration;

use bytes::Bytes;
use proffer_client::hands::{AttachEvent, AttachHand, AttachOutput};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::exec::{interrupted, print};
use super::once_running;
use super::terminal::{self, Heard, Leaving, Raw, Signals};
use crate::cmd::Cluster;
use crate::cmd::run::exit;
use crate::fail::{Code, Failure};
use crate::ids;
use crate::render::Out;

/// How long the end of a task may take to be committed.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// How often may be typed while the task takes nothing.
const TYPED_WAITING: usize = 1024;
/// And how long what was typed may take when the user leaves.
const TYPED_PATIENCE: Duration = Duration::from_millis(500);

/// How it was left.
enum Left {
    /// The task ended.
    Ended,
    /// The user left.
    Detached,
}

pub(crate) async fn attach(cluster: &Cluster, given: &str, no_stdin: bool, out: &Out) -> Result<u8, Failure> {
    let (framework, task) = ids::task(cluster, given).await?;
    let name = format!("{}/{task}", framework.text(cluster.cell()));
    let keyboard = !no_stdin && terminal::has_keyboard();
    let mut signals = Signals::new()?;
    let size = (!no_stdin).then(terminal::size);
    let join = async {
        let attach = async || cluster.admin.attach(framework, &task, size).await;
        let (hand, mut output) = once_running(cluster, framework, &task, attach).await?;
        let first = output.next().await?;
        Ok::<_, Failure>((hand, output, first))
    };
    let (hand, output, first) = tokio::select! {
        joined = join => joined?,
        code = interrupted(&mut signals) => return Ok(code),
    };
    let has_terminal = match first {
        Some(AttachEvent::Attached { terminal }) => terminal,
        Some(AttachEvent::End) => return code(cluster, framework, &task).await,
        _ => return Err(Failure::new(Code::Unavailable, "the connection ended before the task was joined")),
    };
    if !out.is_quiet() {
        let how = match (has_terminal, keyboard) {
            (true, true) => "Ctrl-P Ctrl-Q leaves it",
            (true, false) => "Ctrl-C leaves it",
            (false, _) => "it has no terminal: output only, Ctrl-C leaves it",
        };
        eprintln!("proffer: joined task {name}; {how}");
    }
    let raw = if has_terminal && keyboard { Some(Raw::enter()?) } else { None };
    let typing = (has_terminal && !no_stdin).then(terminal::input);
    // Typed bytes have a worker of their own: a task that takes none must not keep us from hearing the user.
    let (give, typed) = mpsc::channel(TYPED_WAITING);
    let (keys, passed) = match typing {
        Some(keys) if raw.is_some() => (Some(keys), typed),
        Some(piped) => (None, piped),
        None => (None, typed),
    };
    let passing = tokio::spawn(pass(hand.clone(), passed));
    let left = talk(&hand, output, &mut signals, keys, give).await;
    // What was typed before the user left.
    let _ = timeout(TYPED_PATIENCE, passing).await;
    drop(raw);
    match left? {
        Left::Ended => code(cluster, framework, &task).await,
        Left::Detached => {
            if !out.is_quiet() {
                eprintln!("\nproffer: left task {name}; it goes on");
            }
            Ok(0)
        }
    }
}

async fn talk(
    hand: &AttachHand,
    output: AttachOutput,
    signals: &mut Signals,
    mut keys: Option<mpsc::Receiver<Bytes>>,
    give: mpsc::Sender<Bytes>,
) -> Result<Left, Failure> {
    let mut leaving = Leaving::default();
    // A worker of its own: our own output may be a pipe that nobody reads.
    let mut showing = tokio::spawn(show(output));
    loop {
        let typed = async {
            match &mut keys {
                Some(keys) => keys.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            shown = &mut showing => {
                let died = |died| Failure::new(Code::Failed, format!("show output: {died}"));
                return shown.map_err(died)?.map(|()| Left::Ended);
            }
            typed = typed => match typed {
                None => keys = None,
                Some(bytes) => {
                    let (passed, leave) = leaving.filter(&bytes);
                    if !passed.is_empty() {
                        // Of a task that has taken nothing of so much, no more is expected.
                        let _ = give.try_send(passed.into());
                    }
                    if leave {
                        return Ok(Left::Detached);
                    }
                }
            },
            heard = signals.next() => match heard {
                Heard::Window => drop(hand.resize(terminal::size()).await),
                Heard::Signal(1 | 2 | 3 | 15) => return Ok(Left::Detached),
                Heard::Signal(_) => {}
            },
        }
    }
}

/// Shows what the task says, to its end.
async fn show(mut output: AttachOutput) -> Result<(), Failure> {
    while let Some(event) = output.next().await? {
        match event {
            AttachEvent::Attached { .. } => {}
            AttachEvent::Stdout(bytes) => print(bytes, false).await?,
            AttachEvent::Stderr(bytes) => print(bytes, true).await?,
            AttachEvent::End => return Ok(()),
        }
    }
    let what = "the connection ended before the task did";
    Err(Failure::new(Code::Unavailable, what).next("join it again"))
}

/// Types on the task's terminal.
async fn pass(hand: AttachHand, mut typed: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = typed.recv().await {
        if !hand.input(bytes).await {
            return;
        }
    }
}

/// What `run` would return for the task.
async fn code(
    cluster: &Cluster,
    framework: proffer_types::FrameworkId,
    task: &proffer_types::TaskId,
) -> Result<u8, Failure> {
    // All its output was told before its end is committed.
    let until = Instant::now() + END_PATIENCE;
    while Instant::now() < until {
        let row = cluster.admin.task(framework, task).await?;
        if row.status.state.is_terminal() {
            return Ok(exit::code(&row.status));
        }
        sleep(Duration::from_millis(100)).await;
    }
    let name = format!("{}/{task}", framework.text(cluster.cell()));
    Err(Failure::new(
        Code::Unavailable,
        format!("task {name} says nothing more, but how it ended is not known yet"),
    )
    .next(format!("proffer task show {name}")))
}
