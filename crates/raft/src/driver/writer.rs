//! The log thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use super::node::Input;
use super::{AbortOnPanic, Error, Shared};
use crate::store::{Store, Write};

/// Writes of about this many bytes share an append, so that one fsync does not wait for too much of another's.
const BATCH_WRITES_MAX: usize = 4096;

/// Starts the log thread. It ends when the sender is gone, or at the first fault, which it reports: a disk
/// that failed once is not asked again, since a failed fsync is told only once.
pub(super) fn start(
    shared: &Arc<Shared>,
    mut store: Store,
    writes: Receiver<Vec<Write>>,
) -> Result<(), Error> {
    shared.spawn("log", move |shared| {
        let _abort = AbortOnPanic(Arc::clone(shared));
        while let Ok(first) = writes.recv() {
            let mut batch = first;
            while batch.len() < BATCH_WRITES_MAX {
                match writes.try_recv() {
                    Ok(more) => batch.extend(more),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            match store.write(&batch) {
                Ok(Some(number)) => shared.tell(Input::Persisted { number }),
                Ok(None) => {}
                Err(error) => {
                    shared.tell(Input::Fault { error: error.into() });
                    return;
                }
            }
        }
    })
}
