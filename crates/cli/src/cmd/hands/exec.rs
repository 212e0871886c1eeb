//! `proffer task exec`

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use proffer_client::hands::{Command, ExecEnd, ExecEvent, ExecHand, ExecOutput};
use proffer_types::{FrameworkId, TaskId, TaskState};
use tokio::time::{Instant, sleep};

use super::once_running;
use super::terminal::{self, Heard, Raw, Signals};
use crate::args::ExecArgs;
use crate::cmd::Cluster;
use crate::fail::{Code, Failure};
use crate::ids;
use crate::render::text;

/// A signal that comes so often is not for the program any more.
const SIGNALS_MAX: u32 = 3;
/// SIGINT, as in 128 + 2.
const INTERRUPTED: u8 = 130;
/// How long a task that ended may take to say so.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// And one that nobody ends.
const RUNNING_PATIENCE: Duration = Duration::from_millis(500);

pub(crate) async fn exec(cluster: &Cluster, args: ExecArgs) -> Result<u8, Failure> {
    let (framework, task) = ids::task(cluster, &args.task).await?;
    let name = format!("{}/{task}", framework.text(cluster.cell()));
    let keyboard = args.interactive && terminal::has_keyboard();
    if args.tty && args.interactive && !keyboard {
        // A terminal has no end of input: what was piped in would be typed, and its reader wait for more.
        return Err(Failure::new(
            Code::Usage,
            "standard input is not a terminal, so that -t cannot have it typed",
        )
        .next("leave -t out to pipe input in, or -i for a terminal without input"));
    }
    let mut env: std::collections::BTreeMap<String, String> = args.env.into_iter().collect();
    if args.tty
        && let Ok(term) = std::env::var("TERM")
    {
        env.entry("TERM".into()).or_insert(term);
    }
    let command = Command {
        argv: args.command,
        env,
        working_directory: args.workdir.unwrap_or_default(),
        terminal: args.tty.then(terminal::size),
    };
    // Before anything runs, so that no Ctrl-C goes past us.
    let mut signals = Signals::new()?;
    let (hand, output) = tokio::select! {
        begun = once_running(cluster, framework, &task, async || {
            cluster.admin.exec(framework, &task, command.clone()).await
        }) => begun?,
        heard = interrupted(&mut signals) => return Ok(heard),
    };
    let raw = if keyboard && args.tty { Some(Raw::enter()?) } else { None };
    let feeding = tokio::spawn(feed(hand.clone(), args.interactive));
    let end = talk(&hand, output, &mut signals, args.tty).await;
    feeding.abort();
    drop(raw);
    match end? {
        Some(end) => verdict(cluster, framework, &task, &name, &end).await,
        None => Ok(INTERRUPTED),
    }
}

/// The exit code of the first signal that means to give up.
pub(super) async fn interrupted(signals: &mut Signals) -> u8 {
    loop {
        if let Heard::Signal(number @ (1 | 2 | 3 | 15)) = signals.next().await {
            return 128 + u8::try_from(number).unwrap_or(0);
        }
    }
}

/// Passes on what is typed or piped in, and its end.
async fn feed(hand: ExecHand, interactive: bool) {
    if interactive {
        let mut input = terminal::input();
        while let Some(piece) = input.recv().await {
            if !hand.input(piece).await {
                return;
            }
        }
    }
    hand.end_input().await;
}

/// Passes signals on while the program runs; `None` if the user insists on leaving.
async fn talk(
    hand: &ExecHand,
    output: ExecOutput,
    signals: &mut Signals,
    tty: bool,
) -> Result<Option<ExecEnd>, Failure> {
    let mut interrupts = 0;
    // A worker of its own: our own output may be a pipe that nobody reads.
    let mut showing = tokio::spawn(show(output));
    loop {
        tokio::select! {
            shown = &mut showing => {
                let died = |died| Failure::new(Code::Failed, format!("show output: {died}"));
                return shown.map_err(died)?.map(Some);
            }
            heard = signals.next() => match heard {
                Heard::Window if tty => drop(hand.resize(terminal::size()).await),
                Heard::Window => {}
                Heard::Signal(number) => {
                    interrupts += u32::from(matches!(number, 1 | 2 | 15));
                    if interrupts > SIGNALS_MAX {
                        return Ok(None);
                    }
                    hand.signal(number).await;
                }
            },
        }
    }
}

/// Shows what the program says, to its end.
async fn show(mut output: ExecOutput) -> Result<ExecEnd, Failure> {
    while let Some(event) = output.next().await? {
        match event {
            ExecEvent::Started => {}
            ExecEvent::Stdout(bytes) => print(bytes, false).await?,
            ExecEvent::Stderr(bytes) => print(bytes, true).await?,
            ExecEvent::End(end) => return Ok(end),
        }
    }
    Err(Failure::new(Code::Unavailable, "the connection ended before the program did"))
}

/// Writes to our own output, off the thread that listens.
pub(super) async fn print(bytes: Bytes, stderr: bool) -> Result<(), Failure> {
    let wrote = tokio::task::spawn_blocking(move || {
        if stderr {
            return std::io::stderr().lock().write_all(&bytes);
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&bytes).and_then(|()| stdout.flush())
    });
    match wrote.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::new(Code::Failed, format!("cannot write output: {error}"))),
        Err(died) => Err(Failure::new(Code::Failed, format!("cannot write output: {died}"))),
    }
}

/// The program's own code, 128 + n after signal n; says what else there is to say.
async fn verdict(
    cluster: &Cluster,
    framework: FrameworkId,
    task: &TaskId,
    name: &str,
    end: &ExecEnd,
) -> Result<u8, Failure> {
    if !end.message.is_empty() {
        let code = match end.exit_code {
            Some(126) => Code::NotExecutable,
            Some(127) => Code::NoProgram,
            _ => Code::Failed,
        };
        let what = format!("run a program in task {name}: {}", text::clean(&end.message));
        return Err(Failure::new(code, what));
    }
    if let Some(code) = end.exit_code {
        return Ok(u8::try_from(code).unwrap_or(1));
    }
    let signal = end.signal.and_then(|signal| u8::try_from(signal).ok()).unwrap_or(0);
    // Whatever ends a task ends what runs in it: then that is the reason.
    if signal == 9
        && let Some(state) = ended(cluster, framework, task).await
    {
        eprintln!("proffer: task {name} has ended ({state}), and the program with it");
    }
    Ok(128_u8.saturating_add(signal))
}

/// The state of a task that has ended, or does within moments: its end is told when nothing of it is left.
async fn ended(cluster: &Cluster, framework: FrameworkId, task: &TaskId) -> Option<&'static str> {
    let began = Instant::now();
    loop {
        let row = cluster.admin.task(framework, task).await.ok()?;
        let state = row.status.state;
        if state.is_terminal() {
            return Some(state.name());
        }
        // One that goes on running was not the reason.
        let patience = if state == TaskState::Killing { END_PATIENCE } else { RUNNING_PATIENCE };
        if began.elapsed() > patience {
            return None;
        }
        sleep(Duration::from_millis(50)).await;
    }
}
