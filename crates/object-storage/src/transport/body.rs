//! Bodies of answers, chunk by chunk, and the progress that they must make.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::failure::{TransportFailure, causes};
use crate::error::Cause;

/// Bytes that a body must deliver in [`WINDOW`]: 2 KiB/s for each request, which a node on a slow
/// line reaches with all its requests side by side.
const MINIMUM: u64 = 64 * 1024;

/// Time spent waiting for the network after which a body must have delivered [`MINIMUM`].
const WINDOW: Duration = Duration::from_secs(30);

/// The minimum progress of one body: a pause of `idle` at most, and [`MINIMUM`] bytes in each
/// [`WINDOW`]. Only the time spent waiting for the network counts: what the reader does between two
/// chunks (its own pacing, the disk) is not the server's slowness.
#[derive(Debug)]
pub(crate) struct MinimumProgress {
    idle: Duration,
    waited: Duration,
    arrived: u64,
}

impl MinimumProgress {
    pub(crate) fn new(idle: Duration) -> Self {
        Self { idle, waited: Duration::ZERO, arrived: 0 }
    }

    /// Counts a wait and the bytes that it delivered.
    pub(super) fn progressed(
        &mut self,
        waited: Duration,
        bytes: usize,
    ) -> Result<(), TransportFailure> {
        self.waited += waited;
        self.arrived += u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.arrived < MINIMUM && self.waited >= WINDOW {
            let (arrived, seconds) = (self.arrived, self.waited.as_secs());
            let what = format!("the body trickles: {arrived} bytes in {seconds} s");
            return Err(TransportFailure::new(what));
        }
        if self.arrived >= MINIMUM {
            (self.waited, self.arrived) = (Duration::ZERO, 0);
        }
        Ok(())
    }
}

/// Returns the next piece of a body; `None` at its end.
///
/// Cancel safe: a chunk is either returned or still in the body.
pub(super) async fn next_chunk(
    body: &mut Incoming,
    patience: &mut MinimumProgress,
) -> Result<Option<Bytes>, TransportFailure> {
    loop {
        let (idle, asked) = (patience.idle, Instant::now());
        match tokio::time::timeout(idle, body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    patience.progressed(asked.elapsed(), data.len())?;
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
                Err(_trailers) => {}
            },
            Ok(Some(Err(error))) => {
                let what = format!("the body broke off: {}", causes(&error));
                let cause: Cause = Arc::new(error);
                return Err(TransportFailure { what, reason: None, cause: Some(cause) });
            }
            Err(_) => {
                let what = format!("the body stalled for {} s", idle.as_secs_f64());
                return Err(TransportFailure::new(what));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many chunks of a body pass when they arrive in these intervals.
    fn passed(chunk: usize, every: Duration) -> usize {
        let mut patience = MinimumProgress::new(Duration::from_secs(30));
        (0..1000).take_while(|_| patience.progressed(every, chunk).is_ok()).count()
    }

    #[test]
    fn a_body_that_trickles_fails_after_the_window_and_a_slow_one_does_not() {
        assert_eq!(passed(1, Duration::from_secs(5)), 5, "a byte each 5 s ends after 30 s");
        assert_eq!(passed(1024, Duration::from_millis(600)), 49);
        assert_eq!(passed(1024, Duration::from_millis(400)), 1000, "2.5 KiB/s is slow");
        assert_eq!(passed(1 << 18, Duration::from_secs(25)), 1000);
    }
}
