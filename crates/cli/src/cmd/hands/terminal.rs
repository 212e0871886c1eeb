//! The terminal in front of the user.

use std::io::{IsTerminal, Read};

use bytes::Bytes;
use proffer_client::hands::WindowSize;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::fail::{Code, Failure};

/// Read at once from the keyboard or a pipe.
const PIECE_BYTES: usize = 32 << 10;
/// Pieces that wait to be sent.
const PIECES_WAITING: usize = 2;

/// Whether there is a keyboard.
pub(super) fn has_keyboard() -> bool {
    std::io::stdin().is_terminal()
}

/// The size of the terminal on stdin or stdout; the usual one where there is none.
pub(super) fn size() -> WindowSize {
    let size = tcgetwinsize(std::io::stdin()).or_else(|_| tcgetwinsize(std::io::stdout()));
    size.map(|size| WindowSize { rows: size.ws_row, cols: size.ws_col }).unwrap_or_default()
}

/// Every key goes to the program as it is, until this is dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    pub(super) fn enter() -> Result<Self, Failure> {
        let failed = |error| Failure::new(Code::Failed, format!("cannot set up the terminal: {error}"));
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // What was typed and not read stays for the shell.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// What is typed or piped in, until its end. The reading has a thread of its own, which nothing can interrupt.
pub(super) fn input() -> mpsc::Receiver<Bytes> {
    let (pieces, received) = mpsc::channel(PIECES_WAITING);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin();
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            match stdin.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    if pieces.blocking_send(piece.into()).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    received
}

/// Signals that are passed on, and changes of the window.
pub(super) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    user1: Signal,
    user2: Signal,
    window: Signal,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A signal, by its number.
    Signal(i32),
    /// The window has another size.
    Window,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| Failure::new(Code::Failed, format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            quit: listen(SignalKind::quit())?,
            terminate: listen(SignalKind::terminate())?,
            user1: listen(SignalKind::user_defined1())?,
            user2: listen(SignalKind::user_defined2())?,
            window: listen(SignalKind::window_change())?,
        })
    }

    pub(super) async fn next(&mut self) -> Heard {
        let number = |kind: SignalKind| Heard::Signal(kind.as_raw_value());
        tokio::select! {
            _ = self.hangup.recv() => number(SignalKind::hangup()),
            _ = self.interrupt.recv() => number(SignalKind::interrupt()),
            _ = self.quit.recv() => number(SignalKind::quit()),
            _ = self.terminate.recv() => number(SignalKind::terminate()),
            _ = self.user1.recv() => number(SignalKind::user_defined1()),
            _ = self.user2.recv() => number(SignalKind::user_defined2()),
            _ = self.window.recv() => Heard::Window,
        }
    }
}

/// Keys that leave a task without ending it: Ctrl-P, then Ctrl-Q.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// The first of them came last.
    begun: bool,
}

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

impl Leaving {
    /// What of `typed` is for the task; `true` if the rest means to leave.
    pub(super) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            match (self.begun, key) {
                (true, CTRL_Q) => return (passed, true),
                (true, CTRL_P) => passed.push(CTRL_P),
                (false, CTRL_P) => self.begun = true,
                (begun, key) => {
                    passed.extend(begun.then_some(CTRL_P));
                    passed.push(key);
                    self.begun = false;
                }
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_keys_leave_and_all_others_pass() {
        let mut keys = Leaving::default();
        assert_eq!(keys.filter(b"ab\x11"), (b"ab\x11".to_vec(), false));
        assert_eq!(keys.filter(b"\x10"), (vec![], false), "held until the next key");
        assert_eq!(keys.filter(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10\x10y"), (b"\x10\x10\x10y".to_vec(), false));
        assert_eq!(keys.filter(b"z\x10"), (b"z".to_vec(), false));
        assert_eq!(keys.filter(b"\x11z"), (vec![], true));
    }
}
