//! Streams whose caller has set a deadline.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

/// A response's body that ends with `status` at a certain moment, wherever it is then.
pub(crate) struct Until {
    inner: Option<Body>,
    deadline: Pin<Box<Sleep>>,
    status: Status,
}

impl Until {
    pub(crate) fn new(inner: Body, deadline: Instant, status: Status) -> Self {
        Self { inner: Some(inner), deadline: Box::pin(sleep_until(deadline)), status }
    }
}

impl hyper::body::Body for Until {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        match self.deadline.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => {
                // The stream's worker sees that nobody reads any more.
                self.inner = None;
                let mut trailers = HeaderMap::new();
                let _ = self.status.add_header(&mut trailers);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(|inner| inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
