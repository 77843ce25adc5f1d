//! Whether a request gets its bytes, measured by the time that it waits for the network.
//!
//! What a worker does between two chunks does not count: under `bandwidthLimit` it
//! waits for its turn, and it waits for the disk. The server causes neither.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::lock;

/// Bytes within [`WINDOW`] of waiting below which a request is slow: 64 KiB/s.
const SLOW_BYTES: u64 = 32 << 10;

/// Time spent waiting for the network after which a request is judged.
const WINDOW: Duration = Duration::from_millis(500);

/// The throughput of one request; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flow(Arc<Mutex<FlowState>>);

#[derive(Debug, Default)]
struct FlowState {
    /// Since when it has waited for the network.
    since: Option<Instant>,
    waited: Duration,
    bytes: u64,
    slow: bool,
}

impl Flow {
    /// Waits for the network.
    pub(super) async fn waiting<T>(&self, wait: impl Future<Output = T>) -> T {
        self.lock().since = Some(Instant::now());
        let came = wait.await;
        let mut state = self.lock();
        if let Some(since) = state.since.take() {
            state.waited += since.elapsed();
        }
        came
    }

    /// Records bytes that arrived.
    pub(super) fn arrived(&self, bytes: u64) {
        let mut state = self.lock();
        state.bytes += bytes;
        state.judge();
    }

    /// Whether it received next to nothing lately. Only of use to compare requests:
    /// on a slow line all of them are slow.
    pub(super) fn is_slow(&self) -> bool {
        let mut state = self.lock();
        let now = Instant::now();
        if let Some(since) = state.since.replace(now) {
            state.waited += now - since;
        } else {
            state.since = None;
        }
        state.judge();
        state.slow
    }

    fn lock(&self) -> MutexGuard<'_, FlowState> {
        lock(&self.0)
    }
}

impl FlowState {
    fn judge(&mut self) {
        let fast = self.bytes >= SLOW_BYTES;
        if fast || self.waited >= WINDOW {
            (self.slow, self.bytes, self.waited) = (!fast, 0, Duration::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_is_slow_while_it_waits_and_nothing_comes() {
        let flow = Flow::default();
        let waiting = flow.waiting(sleep(Duration::from_secs(5)));
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(WINDOW / 2, &mut waiting).await.is_err() && !flow.is_slow());
        assert!(tokio::time::timeout(WINDOW / 2, &mut waiting).await.is_err() && flow.is_slow());
        waiting.await;
        flow.arrived(1);
        assert!(flow.is_slow());
        flow.waiting(sleep(Duration::from_millis(10))).await;
        flow.arrived(SLOW_BYTES);
        assert!(!flow.is_slow(), "it is fast again");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_between_two_chunks_is_not_counted() {
        let flow = Flow::default();
        for _ in 0..10 {
            flow.waiting(sleep(Duration::from_millis(20))).await;
            flow.arrived(1000);
            sleep(Duration::from_secs(60)).await;
        }
        assert!(!flow.is_slow());
    }
}
