//! A rate that several bodies share.

use std::time::{Duration, Instant};

use crate::sync::Mutex;

/// Hands out times to send at, so that all bodies together keep the rate.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_sec: u64,
    free_at: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_sec: u64) -> Self {
        Self { bytes_per_sec: bytes_per_sec.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Short enough for an even flow: a twentieth of a second.
    pub(crate) fn chunk(&self) -> u64 {
        (self.bytes_per_sec / 20).max(1)
    }

    /// How long to wait after sending this many bytes.
    pub(crate) fn spend(&self, bytes: u64) -> Duration {
        let now = Instant::now();
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_sec);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let mut free_at = self.free_at.lock();
        *free_at = (*free_at).max(now) + cost;
        free_at.saturating_duration_since(now)
    }
}
