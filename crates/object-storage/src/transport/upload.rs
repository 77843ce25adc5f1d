//! Bodies of requests: a few bytes in memory, or a stream that is read while it is sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use super::body::MinimumProgress;
use super::failure::TransportFailure;

/// The interval in which a body that is being sent is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The body of a request.
pub struct RequestBody(BodyKind);

/// The chunks of a body, or why they cannot be read.
type StreamedChunks = BoxStream<'static, Result<Bytes, String>>;

enum BodyKind {
    Whole(Full<Bytes>),
    Stream { chunks: StreamedChunks, left: u64, progress: Arc<SendProgress> },
}

impl From<Full<Bytes>> for RequestBody {
    fn from(whole: Full<Bytes>) -> Self {
        Self(BodyKind::Whole(whole))
    }
}

impl RequestBody {
    /// A body of `length` bytes that is read while it is sent.
    pub(crate) fn stream(length: u64, chunks: StreamedChunks) -> Self {
        Self(BodyKind::Stream { chunks, left: length, progress: Arc::default() })
    }

    /// A body in memory.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Full::new(bytes).into()
    }

    /// How far a stream was sent; `None` for a body that is in memory.
    pub(super) fn progress(&self) -> Option<Arc<SendProgress>> {
        match &self.0 {
            BodyKind::Whole(_) => None,
            BodyKind::Stream { progress, .. } => Some(Arc::clone(progress)),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = String;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        let (chunks, left, progress) = match &mut self.0 {
            BodyKind::Whole(whole) => {
                return Pin::new(whole).poll_frame(context).map_err(|never| match never {});
            }
            BodyKind::Stream { chunks, left, progress } => (chunks, left, progress),
        };
        let polled = chunks.poll_next_unpin(context);
        Poll::Ready(match std::task::ready!(polled) {
            Some(Ok(chunk)) => {
                let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                *left = left.saturating_sub(length);
                progress.sent.fetch_add(length, Ordering::Relaxed);
                progress.is_over.store(*left == 0, Ordering::Relaxed);
                Some(Ok(Frame::data(chunk)))
            }
            Some(Err(why)) => Some(Err(why)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            BodyKind::Whole(whole) => whole.is_end_stream(),
            BodyKind::Stream { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            BodyKind::Whole(whole) => whole.size_hint(),
            BodyKind::Stream { left, .. } => SizeHint::with_exact(*left),
        }
    }
}

/// How far the connection has taken a body.
#[derive(Debug, Default)]
pub(super) struct SendProgress {
    sent: AtomicU64,
    is_over: AtomicBool,
}

impl SendProgress {
    /// Waits until all bytes were taken; or returns the failure when none were for `idle`, or
    /// fewer than a body must deliver.
    pub(super) async fn watch(
        &self,
        idle: Duration,
        mut patience: MinimumProgress,
    ) -> Option<TransportFailure> {
        let (mut before, mut unchanged) = (0, Duration::ZERO);
        while !self.is_over.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
            let sent = self.sent.load(Ordering::Relaxed);
            unchanged = if sent == before { unchanged + LOOK } else { Duration::ZERO };
            if unchanged >= idle {
                let what = format!("the upload stalled for {} s", idle.as_secs_f64());
                return Some(TransportFailure::new(what));
            }
            let more = usize::try_from(sent - before).unwrap_or(usize::MAX);
            if let Err(slow) = patience.progressed(LOOK, more) {
                return Some(slow);
            }
            before = sent;
        }
        None
    }
}
