//! `proffer task attach`

use proffer_client::hands::{AttachEvent, AttachHand, AttachOutput};

use super::exec::print;
use super::once_running;
use super::terminal::{self, Heard, Leaving, Raw, Signals};
use crate::cmd::Cluster;
use crate::cmd::run::exit;
use crate::fail::{Code, Failure};
use crate::ids;
use crate::render::Out;

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
    let attach = async || cluster.admin.attach(framework, &task, size).await;
    let (hand, mut output) = once_running(cluster, framework, &task, attach).await?;
    let has_terminal = match output.next().await? {
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
    let left = talk(&hand, &mut output, &mut signals, typing, raw.is_some()).await;
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
    output: &mut AttachOutput,
    signals: &mut Signals,
    mut typing: Option<tokio::sync::mpsc::Receiver<bytes::Bytes>>,
    keys: bool,
) -> Result<Left, Failure> {
    let mut leaving = Leaving::default();
    loop {
        let typed = async {
            match &mut typing {
                Some(typing) => typing.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = output.next() => match event? {
                Some(AttachEvent::Attached { .. }) => {}
                Some(AttachEvent::Stdout(bytes)) => print(bytes, false).await?,
                Some(AttachEvent::Stderr(bytes)) => print(bytes, true).await?,
                Some(AttachEvent::End) => return Ok(Left::Ended),
                None => {
                    let what = "the connection ended before the task did";
                    return Err(Failure::new(Code::Unavailable, what).next("join it again"));
                }
            },
            typed = typed => match typed {
                None => typing = None,
                Some(bytes) => {
                    let (passed, leave) =
                        if keys { leaving.filter(&bytes) } else { (bytes.to_vec(), false) };
                    if !passed.is_empty() {
                        hand.input(passed.into()).await;
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

/// What `run` would return for the task.
async fn code(
    cluster: &Cluster,
    framework: proffer_types::FrameworkId,
    task: &proffer_types::TaskId,
) -> Result<u8, Failure> {
    // All its output was told before its end is committed.
    for _ in 0..50 {
        let row = cluster.admin.task(framework, task).await?;
        if row.status.state.is_terminal() {
            return Ok(exit::code(&row.status));
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    Ok(0)
}
