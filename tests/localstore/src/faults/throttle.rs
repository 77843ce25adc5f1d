//! A rate that several bodies share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::Mutex;

/// Hands out times to send at, so that all bodies together keep the rate.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_sec: u64,
    /// Bodies at once beyond which the rate falls.
    bodies: Option<u64>,
    free_at: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_sec: u64) -> Self {
        let (bytes_per_sec, free_at) = (bytes_per_sec.max(1), Mutex::new(Instant::now()));
        Self { bytes_per_sec, bodies: None, free_at }
    }

    /// A rate that falls where more than so many bodies share it.
    pub(crate) fn crowded(bytes_per_sec: u64, bodies: u64) -> Self {
        Self { bodies: Some(bodies.max(1)), ..Self::new(bytes_per_sec) }
    }

    /// Short enough for an even flow: a twentieth of a second.
    pub(crate) fn chunk(&self) -> u64 {
        (self.bytes_per_sec / 20).max(1)
    }

    /// How long to wait after sending this many bytes.
    pub(crate) fn spend(self: &Arc<Self>, bytes: u64) -> Duration {
        let now = Instant::now();
        let mut nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_sec);
        if let Some(bodies) = self.bodies {
            // Each body has one of the references; the rule has one, too.
            let sharing = Arc::strong_count(self).saturating_sub(1);
            let sharing = u64::try_from(sharing).unwrap_or(u64::MAX).max(bodies);
            nanos = nanos * u128::from(sharing) / u128::from(bodies);
        }
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock();
        *free_at = (*free_at).max(now) + cost;
        free_at.saturating_duration_since(now)
    }
}
