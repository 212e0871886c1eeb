//! Child processes: each in a process group of its own, each with a limit, none left behind.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::interrupt;

/// How often a wait looks at the clock, the child and the interrupt flag.
const LOOK: Duration = Duration::from_millis(20);
/// How long a pipe is read after the child has ended: whoever else holds it may keep it open for ever.
const DRAIN: Duration = Duration::from_secs(1);

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// `None` if it was killed because its time was up.
    pub(crate) status: Option<ExitStatus>,
    /// How long it ran.
    pub(crate) took: Duration,
}

impl Ended {
    /// Whether it ended by itself, with 0.
    pub(crate) fn ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// For people.
    pub(crate) fn how(&self) -> String {
        match self.status {
            None => format!("killed after {} s, its limit", self.took.as_secs()),
            Some(status) => status.to_string(),
        }
    }
}

/// What of a child's output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Both streams, merged in the order of writing.
    Both,
    /// Standard output; standard error goes where ours goes.
    Out,
}

/// Runs `command` to its end, or kills its process group after `limit`; every line goes to `line`.
///
/// # Errors
/// If it cannot be started, or somebody interrupted us; its group is killed first.
pub(crate) fn lines(
    mut command: Command,
    limit: Duration,
    read: Read,
    mut line: impl FnMut(&str),
) -> Result<Ended> {
    let (reader, writer) = std::io::pipe().context("pipe")?;
    if read == Read::Both {
        command.stderr(writer.try_clone().context("pipe")?);
    }
    command.stdout(writer).stdin(Stdio::null()).process_group(0);
    let name = command.get_program().to_string_lossy().into_owned();
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start {name}"))?;
    // The command holds our copies of the writing end.
    drop(command);

    let (sender, receiver) = mpsc::sync_channel(1_024);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&bytes);
            if sender.send(text.trim_end_matches(['\n', '\r']).to_owned()).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    let mut ended: Option<(Option<ExitStatus>, Instant)> = None;
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(text) => line(&text),
            Err(RecvTimeoutError::Disconnected) if ended.is_none() => std::thread::sleep(LOOK),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        match ended {
            Some((_, at)) if at.elapsed() > DRAIN => break,
            Some(_) => {}
            None if interrupt::asked() => {
                end(&mut child);
                bail!("interrupted");
            }
            None if start.elapsed() > limit => {
                end(&mut child);
                ended = Some((None, Instant::now()));
            }
            None => {
                if let Some(status) = child.try_wait().with_context(|| format!("wait for {name}"))? {
                    ended = Some((Some(status), Instant::now()));
                }
            }
        }
    }
    let (status, at) = ended.expect("the loop ends only after the child");
    Ok(Ended { status, took: at - start })
}

/// Like [`lines`], with the output as one text.
///
/// # Errors
/// As [`lines`].
pub(crate) fn text(command: Command, limit: Duration, read: Read) -> Result<(Ended, String)> {
    let mut text = String::new();
    let ended = lines(command, limit, read, |line| {
        text.push_str(line);
        text.push('\n');
    })?;
    Ok((ended, text))
}

/// Runs `command` with its output going where ours goes.
///
/// # Errors
/// As [`lines`].
pub(crate) fn show(command: Command, limit: Duration) -> Result<Ended> {
    lines(command, limit, Read::Both, |line| println!("{line}"))
}

/// A child that goes on beside us; dropping it kills its process group.
#[derive(Debug)]
pub(crate) struct Background {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Background {
    /// Starts `command`, both streams into the file `log`.
    ///
    /// # Errors
    /// If the file cannot be made or the program not started.
    pub(crate) fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stderr(file.try_clone().context("log")?).stdout(file).stdin(Stdio::null()).process_group(0);
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { child, ended: None })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Asks it to end as Ctrl-C does, and waits; kills its group after `limit`.
    pub(crate) fn stop(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.ended().is_none() {
            let _ = killpg(group(&self.child), Signal::SIGINT);
            self.wait(limit)
        } else {
            self.ended
        }
    }

    /// Waits until it ends; `None` if it had to be killed.
    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        while self.ended().is_none() {
            if Instant::now() > deadline {
                end(&mut self.child);
                return None;
            }
            std::thread::sleep(LOOK);
        }
        self.ended
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.ended().is_none() {
            end(&mut self.child);
        }
    }
}

/// Kills a child that has not been waited for, with its group: the group's number cannot be another's yet.
fn end(child: &mut Child) {
    let _ = killpg(group(child), Signal::SIGKILL);
    let _ = child.wait();
}

fn group(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().expect("a process id is positive and small"))
}

/// Waits until `ready` gives something.
///
/// # Errors
/// What `ready` says, after an interrupt, or when `limit` has passed.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if interrupt::asked() {
            bail!("interrupted");
        }
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn streams_are_merged_in_order() {
        let (ended, text) =
            text(shell("echo a; echo b >&2; echo c; exit 3"), Duration::from_secs(20), Read::Both)
                .expect("ran");
        assert_eq!(text, "a\nb\nc\n");
        assert_eq!(ended.status.and_then(|status| status.code()), Some(3));
    }

    #[test]
    fn what_is_too_slow_is_killed_with_its_group() {
        let (ended, text) =
            text(shell("sleep 300 & echo $!; wait"), Duration::from_millis(300), Read::Both).expect("ran");
        assert!(ended.status.is_none(), "{ended:?}");
        let sleeper = Path::new("/proc").join(text.trim());
        let gone = || Ok((!sleeper.exists()).then_some(()));
        until("the sleeper's end", Duration::from_secs(10), gone).expect("gone");
    }

    #[test]
    fn a_pipe_that_outlives_the_child_does_not_hold_us() {
        let start = Instant::now();
        let kept = shell("sleep 3 & echo b");
        let (ended, text) = text(kept, Duration::from_secs(20), Read::Both).expect("ran");
        assert!(ended.ok() && text == "b\n", "{ended:?} {text}");
        assert!(start.elapsed() < Duration::from_millis(2_900));
    }
}
