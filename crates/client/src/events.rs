//! What becomes true in the cluster, read across lost connections from whichever master answers.

use std::time::Duration;

use proffer_wire::admin::v1 as pb;
use proffer_wire::from_proto;
use proffer_wire::rows::EventRow;
use tokio::time::{Instant, sleep};
use tonic::Streaming;

use crate::admin::{AdminClient, Error};
use crate::core::{Failure, Refused, RefusedKind};
use crate::failure::failure;

const WHAT: &str = "watch events";
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A place in the order of events: (log index, place among what became true at it).
pub type Cursor = (u64, u32);

/// Reads events.
#[derive(Debug)]
pub struct EventReader {
    client: AdminClient,
    after: Option<Cursor>,
    follow: bool,
    /// For how long to try again when no master answers.
    patience: Duration,
    stream: Option<Streaming<pb::WatchEventsResponse>>,
    failing_since: Option<Instant>,
    pause: Duration,
}

impl EventReader {
    /// Reads what came after `after`, or all that is kept; with `follow` it goes on as events come.
    pub fn new(client: AdminClient, after: Option<Cursor>, follow: bool, patience: Duration) -> Self {
        Self { client, after, follow, patience, stream: None, failing_since: None, pause: PAUSE_MIN }
    }

    /// Some events, maybe none; `None` when there are no more.
    ///
    /// # Errors
    /// No master answers for longer than the patience; or, with the reason `RESYNC`, events are missed that no master
    /// keeps any more: a new reader without a place to begin at goes on with what is kept.
    pub async fn next(&mut self) -> Result<Option<Vec<EventRow>>, Error> {
        loop {
            let message = match &mut self.stream {
                Some(stream) => stream.message().await,
                None => {
                    let cursor = |(index, ordinal)| pb::Cursor { index, ordinal };
                    let request =
                        pb::WatchEventsRequest { after: self.after.map(cursor), follow: self.follow };
                    match self.client.ask(WHAT, async |mut c| c.watch_events(request).await).await {
                        Ok(stream) => {
                            self.stream = Some(stream);
                            continue;
                        }
                        Err(error @ Error::Unavailable { .. }) => {
                            self.rest(error).await?;
                            continue;
                        }
                        Err(error) => return Err(named(error)),
                    }
                }
            };
            match message {
                Ok(Some(part)) => {
                    (self.failing_since, self.pause) = (None, PAUSE_MIN);
                    if let Some(at) = part.cursor {
                        self.after = Some((at.index, at.ordinal));
                    }
                    self.client.seen_cluster(&part.cluster_id);
                    return Ok(Some(part.events.into_iter().map(from_proto::event_row).collect()));
                }
                Ok(None) if !self.follow => return Ok(None),
                // A master that stops ends its streams.
                Ok(None) => {
                    self.stream = None;
                    let waited = self.failing_since.map_or(Duration::ZERO, |since| since.elapsed());
                    let masters = vec![("master".into(), "ended the stream".into())];
                    self.rest(Error::Unavailable { what: WHAT, waited, masters }).await?;
                }
                Err(status) => {
                    self.stream = None;
                    match failure(&status) {
                        Failure::Resync => return Err(resync(status.message())),
                        Failure::Refused(refused) => return Err(Error::Refused { what: WHAT, refused }),
                        other => {
                            let waited = self.failing_since.map_or(Duration::ZERO, |since| since.elapsed());
                            let masters = vec![("master".into(), format!("{other:?}"))];
                            self.rest(Error::Unavailable { what: WHAT, waited, masters }).await?;
                        }
                    }
                }
            }
        }
    }

    async fn rest(&mut self, why: Error) -> Result<(), Error> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.patience {
            return Err(why);
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        Ok(())
    }
}

fn resync(message: &str) -> Error {
    let message = if message.is_empty() { "events were missed that are kept no more" } else { message };
    let refused =
        Refused { kind: RefusedKind::Precondition, reason: "RESYNC".into(), message: message.into() };
    Error::Refused { what: WHAT, refused }
}

/// A refused opening says nothing of pages.
fn named(error: Error) -> Error {
    match error {
        Error::Refused { refused, .. } if refused.reason == "RESYNC" => {
            resync("the events before are kept no more")
        }
        other => other,
    }
}
