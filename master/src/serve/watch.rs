//! Operators who watch what becomes true.

use proffer_wire::admin::v1 as pb;
use proffer_wire::status;
use tonic::{Code, Status};

use super::pack::{Gone, Outlet, Packer};
use crate::events::{Batch, Cursor, Feed, Lost};

/// Events taken from the ring at once.
const BATCH: usize = 256;

/// Tells what comes after `after`, and then, if wanted, what becomes true.
pub(super) async fn tell(
    feed: Feed,
    after: Option<Cursor>,
    follow: bool,
    outlet: Outlet<pb::WatchEventsResponse>,
) {
    let mut changed = feed.watch();
    let mut after = after;
    let mut silent = false;
    loop {
        changed.mark_unchanged();
        let batch = match feed.read(after, BATCH) {
            Ok(batch) => batch,
            Err(lost) => return outlet.end(None, resync(&lost)).await,
        };
        let (cursor, last) = (batch.cursor, batch.last);
        // A reader that only waits hears of no entry that nothing became of.
        if !(batch.events.is_empty() && silent) && send(&feed, after, batch, &outlet).await.is_err() {
            return;
        }
        (after, silent) = (Some(cursor), true);
        if !last {
            continue;
        }
        if !follow {
            return;
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = outlet.closed() => return,
        }
    }
}

async fn send(
    feed: &Feed,
    after: Option<Cursor>,
    batch: Batch,
    outlet: &Outlet<pb::WatchEventsResponse>,
) -> Result<(), Gone> {
    let cluster_id = batch.cluster.map(|cluster| cluster.to_string()).unwrap_or_default();
    // What was told is before what is not sent yet, so this is where a reader that stopped would go on.
    let mut told = after.unwrap_or_default();
    let message = |events: Vec<pb::Event>, at: Cursor| pb::WatchEventsResponse {
        events,
        cursor: Some(pb::Cursor { index: at.index, ordinal: at.ordinal }),
        cluster_id: cluster_id.clone(),
    };
    let mut packer = Packer::new();
    for event in &batch.events {
        if let Some(full) = packer.push(event.told()) {
            let at = place(&full).unwrap_or(told);
            outlet.send(message(full, at), || feed.has_lost(told)).await?;
            told = at;
        }
    }
    outlet.send(message(packer.take(), batch.cursor), || feed.has_lost(told)).await
}

fn place(events: &[pb::Event]) -> Option<Cursor> {
    events.last().map(|event| Cursor { index: event.index, ordinal: event.ordinal })
}

/// The status for a reader that has missed something.
pub(super) fn resync(lost: &Lost) -> Status {
    let index = lost.floor.index.to_string();
    status::status(Code::Aborted, "RESYNC", lost.to_string(), &[("kept_after", &index)])
}
