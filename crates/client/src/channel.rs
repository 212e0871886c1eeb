//! Connections to masters.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

/// Largest message that is received: masters send at most 1 MiB.
pub(crate) const RECEIVE_BYTES_MAX: usize = 4 << 20;
/// A connection that answers no ping for [`PING_EVERY`] + [`PING_TIMEOUT`] is dead: the kernel of a stopped master
/// still completes connections, so no other time-out would notice.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// What one stream may have in flight: bounds what a slow author holds in memory.
const STREAM_WINDOW: u32 = 256 << 10;

/// A connection that is opened with the first call on it. Fails only if the address is none.
pub(crate) fn lazy(master: &str) -> Result<Channel, String> {
    endpoint(master).map(|endpoint| endpoint.connect_lazy())
}

/// A connection of its own for one event stream.
pub(crate) async fn connect(master: &str) -> Result<Channel, String> {
    endpoint(master)?.connect().await.map_err(|error| chain(&error))
}

fn endpoint(master: &str) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(format!("http://{master}")).map_err(|error| chain(&error))?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW))
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
