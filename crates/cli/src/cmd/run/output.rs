//! Tasks' output on its way to our own, line by line.

use std::io::{ErrorKind, Write};

use indicatif::ProgressBar;
use proffer_client::{LogReader, LogStream};
use tokio::sync::{mpsc, oneshot};

use crate::fail::{Code, Failure};

/// Pieces that wait for a slow terminal or pipe.
const PIECES_WAITING: usize = 64;
/// A longer line is printed in parts.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Some whole lines of one stream.
struct Piece {
    stream: LogStream,
    bytes: Vec<u8>,
}

/// Writes pieces whole, one at a time. The writing has a thread of its own, because a pipe that nobody reads may block
/// it for ever.
#[derive(Clone)]
pub(crate) struct Printer {
    pieces: mpsc::Sender<Piece>,
}

/// The other end of a printer's thread.
pub(crate) struct Done(oneshot::Receiver<std::io::Result<()>>);

impl Printer {
    /// A printer for plain output.
    pub(crate) fn start() -> (Self, Done) {
        Self::beside(None)
    }

    /// A printer that clears `bar` from the screen while it writes.
    pub(crate) fn beside(bar: Option<ProgressBar>) -> (Self, Done) {
        let (pieces, waiting) = mpsc::channel(PIECES_WAITING);
        let (done_in, done) = oneshot::channel();
        std::thread::spawn(move || drop(done_in.send(write_all(waiting, bar))));
        (Self { pieces }, Done(done))
    }

    /// Waits until nothing can be written any more.
    pub(crate) async fn closed(&self) {
        self.pieces.closed().await;
    }
}

impl Done {
    /// Waits until everything is written; all printers must be dropped. That nobody reads any more is no failure.
    pub(crate) async fn wait(self) -> Result<(), Failure> {
        match self.0.await {
            Ok(Err(error)) if error.kind() != ErrorKind::BrokenPipe => {
                Err(Failure::new(Code::Failed, format!("cannot write output: {error}")))
            }
            _ => Ok(()),
        }
    }
}

fn write_all(mut pieces: mpsc::Receiver<Piece>, bar: Option<ProgressBar>) -> std::io::Result<()> {
    while let Some(Piece { stream, bytes }) = pieces.blocking_recv() {
        let write = || match stream {
            LogStream::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush())
            }
            LogStream::Stderr => std::io::stderr().lock().write_all(&bytes),
        };
        match &bar {
            Some(bar) => bar.suspend(write)?,
            None => write()?,
        }
    }
    Ok(())
}

/// One stream of one task.
pub(crate) struct Sink {
    printer: Printer,
    stream: LogStream,
    /// Whether others write between our lines, so that the last must have an end.
    shared: bool,
    held: Vec<u8>,
}

impl Sink {
    pub(crate) fn new(printer: Printer, stream: LogStream, shared: bool) -> Self {
        Self { printer, stream, shared, held: Vec::new() }
    }

    /// Copies everything that `reader` reads. Output that is kept no more is told on stderr. Returns early if nothing
    /// can be written.
    pub(crate) async fn copy(&mut self, mut reader: LogReader) -> Result<(), Failure> {
        while let Some(chunk) = reader.next().await? {
            if chunk.lost > 0 {
                let text =
                    format!("proffer: {} bytes of {} are kept no more\n", chunk.lost, self.stream.name());
                if !self.print(LogStream::Stderr, text.into_bytes()).await {
                    return Ok(());
                }
            }
            let lines = self.push(&chunk.data);
            if !lines.is_empty() && !self.print(self.stream, lines).await {
                return Ok(());
            }
        }
        let last = self.finish();
        if !last.is_empty() {
            self.print(self.stream, last).await;
        }
        Ok(())
    }

    async fn print(&self, stream: LogStream, bytes: Vec<u8>) -> bool {
        self.printer.pieces.send(Piece { stream, bytes }).await.is_ok()
    }

    /// Takes bytes; returns what can be printed: whole lines.
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        let ends = |byte: &u8| *byte == b'\n' || (*byte == b'\r' && !self.shared);
        let end = match self.held.iter().rposition(ends) {
            Some(at) => at + 1,
            None if self.held.len() > LINE_BYTES_MAX => self.held.len(),
            None => 0,
        };
        let rest = self.held.split_off(end);
        std::mem::replace(&mut self.held, rest)
    }

    /// What is left at the end.
    fn finish(&mut self) -> Vec<u8> {
        let mut last = std::mem::take(&mut self.held);
        if self.shared && !last.is_empty() {
            last.push(b'\n');
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sink(shared: bool) -> Sink {
        let (pieces, _) = mpsc::channel(1);
        Sink::new(Printer { pieces }, LogStream::Stdout, shared)
    }

    #[test]
    fn lines_stay_whole() {
        let mut sink = sink(true);
        assert_eq!(sink.push(b"on"), b"");
        assert_eq!(sink.push(b"e\ntwo\nthr"), b"one\ntwo\n");
        assert_eq!(sink.push(b"ee"), b"");
        assert_eq!(sink.finish(), b"three\n", "others write after it");
        assert_eq!(sink.finish(), b"");
    }

    #[test]
    fn a_single_task_s_output_is_copied_byte_for_byte() {
        let mut sink = sink(false);
        assert_eq!(sink.push(b"10%\r20%"), b"10%\r");
        assert_eq!(sink.finish(), b"20%");
    }

    #[test]
    fn an_endless_line_is_not_held_for_ever() {
        let mut sink = sink(true);
        assert!(sink.push(&vec![b'x'; LINE_BYTES_MAX]).is_empty());
        assert_eq!(sink.push(b"x").len(), LINE_BYTES_MAX + 1);
    }
}
