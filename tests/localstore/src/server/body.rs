//! Bodies of answers: a few bytes, or an object streamed in chunks, with its faults.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::buffers::{Buffers, CHUNK};
use super::connection::ResetSwitch;
use crate::faults::{BodyFaults, Cut};
use crate::objects::Reader;
use crate::range::ByteRange;
use crate::stats::{InFlight, SentBytes};

/// How long a body pauses before it is cut off, so that earlier bytes are on the wire.
const BEFORE_BREAK: Duration = Duration::from_millis(20);

/// The body of an answer. The request counts as under way until it is dropped.
#[derive(Debug)]
pub(crate) struct ReplyBody {
    inner: Inner,
    in_flight: Option<InFlight>,
    length_is_hidden: bool,
}

#[derive(Debug)]
enum Inner {
    Bytes(Bytes),
    Object(Box<ObjectBody>),
}

impl ReplyBody {
    fn new(inner: Inner) -> Self {
        Self { inner, in_flight: None, length_is_hidden: false }
    }

    /// Sends it in chunks.
    pub(crate) fn hide_length(&mut self) {
        self.length_is_hidden = true;
        if let Inner::Object(body) = &mut self.inner {
            body.is_open_ended = true;
        }
    }

    pub(crate) fn empty() -> Self {
        Self::bytes(Bytes::new())
    }

    pub(crate) fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::new(Inner::Bytes(bytes.into()))
    }

    pub(crate) fn object(body: ObjectBody) -> Self {
        Self::new(Inner::Object(Box::new(body)))
    }

    pub(crate) fn hold(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.inner {
            Inner::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Inner::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Inner::Object(body) => {
                body.poll_chunk(context).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Bytes(bytes) => bytes.is_empty(),
            Inner::Object(body) => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.length_is_hidden {
            return SizeHint::default();
        }
        SizeHint::with_exact(match &self.inner {
            Inner::Bytes(bytes) => bytes.len() as u64,
            Inner::Object(body) => body.end - body.at,
        })
    }
}

/// A range of an object on its way out.
#[derive(Debug)]
pub(crate) struct ObjectBody {
    reader: Reader,
    at: u64,
    end: u64,
    buffers: Buffers,
    sent: SentBytes,
    faults: BodyFaults,
    /// Where and how it is cut off.
    break_at: Option<(u64, Break)>,
    /// Sent in chunks: only its end, which may be cut off too, shows that it is complete.
    is_open_ended: bool,
    breaking: bool,
    pause: Option<Pin<Box<Sleep>>>,
    reset: ResetSwitch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Reset,
    Stall,
    Close,
}

impl ObjectBody {
    pub(crate) fn new(
        reader: Reader,
        range: ByteRange,
        buffers: Buffers,
        sent: SentBytes,
        faults: BodyFaults,
        reset: ResetSwitch,
    ) -> Self {
        let break_at = faults.cut.and_then(|cut| {
            let (offset, how) = match cut {
                Cut::ResetAfter(bytes) => (range.start.saturating_add(bytes), Break::Reset),
                Cut::StallAfter(bytes) => (range.start.saturating_add(bytes), Break::Stall),
                Cut::Missing(bytes) => {
                    (range.end.saturating_sub(bytes).max(range.start), Break::Close)
                }
            };
            (offset <= range.end).then_some((offset, how))
        });
        Self {
            reader,
            at: range.start,
            end: range.end,
            buffers,
            sent,
            faults,
            break_at,
            is_open_ended: false,
            breaking: false,
            pause: None,
            reset,
        }
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        if self.is_over() {
            return Poll::Ready(None);
        }
        if let Some((offset, how)) = self.break_at
            && self.at == offset
        {
            return self.poll_break(how, context);
        }
        Poll::Ready(Some(self.next_chunk()))
    }

    fn is_over(&self) -> bool {
        let breaks_at_end = self.break_at.is_some_and(|(offset, _)| offset == self.end);
        self.at == self.end && !(self.is_open_ended && breaks_at_end)
    }

    fn poll_break(
        &mut self,
        how: Break,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Bytes>>> {
        if how == Break::Stall {
            // Nothing wakes this body; the connection's end drops it.
            return Poll::Pending;
        }
        if !self.breaking {
            self.breaking = true;
            let mut pause = Box::pin(tokio::time::sleep(BEFORE_BREAK));
            let pending = pause.as_mut().poll(context).is_pending();
            self.pause = Some(pause);
            if pending {
                return Poll::Pending;
            }
        }
        if how == Break::Reset {
            self.reset.set();
        }
        Poll::Ready(Some(Err(io::Error::other("broken off by a fault rule"))))
    }

    fn next_chunk(&mut self) -> io::Result<Bytes> {
        let stop = self.break_at.map_or(self.end, |(offset, _)| offset);
        let mut want = (stop - self.at).min(CHUNK as u64);
        for throttle in &self.faults.throttles {
            want = want.min(throttle.chunk());
        }
        let len = usize::try_from(want).expect("no more than a chunk");
        let mut buffer = self.buffers.take();
        let space = buffer.space(len);
        self.reader.read_exact_at(self.at, space)?;
        for &flip in &self.faults.flips {
            if (self.at..self.at + want).contains(&flip) {
                space[usize::try_from(flip - self.at).expect("no more than a chunk")] ^= 1;
            }
        }
        self.at += want;
        self.sent.add(want);
        let wait = self.faults.throttles.iter().map(|throttle| throttle.spend(want)).max();
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            self.pause = Some(Box::pin(tokio::time::sleep(wait)));
        }
        Ok(buffer.filled(len))
    }
}
