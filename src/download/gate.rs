//! How many requests run at once: the configured concurrency, lowered when
//! Object Storage throttles and raised again while it does not.

use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests that have to succeed before one more may run at once again.
const SUCCESSES_PER_STEP: usize = 32;

/// Admits requests, first come first served over all downloads.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    slots: Arc<Semaphore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    most: usize,
    /// What may run at once now, `1..=most`.
    limit: usize,
    /// Permits that exist: above `limit` until the running ones came back.
    permits: usize,
    successes: usize,
}

/// A running request's place; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    gate: Gate,
}

impl Gate {
    pub(crate) fn new(most: usize) -> Self {
        let state = State { most, limit: most, permits: most, successes: 0 };
        Self { slots: Arc::new(Semaphore::new(most)), state: Arc::new(Mutex::new(state)) }
    }

    pub(crate) async fn enter(&self) -> Slot {
        // The semaphore is never closed, so there always is a permit in the end.
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok();
        Slot { permit, gate: self.clone() }
    }

    /// Object Storage said 429 or 503: half of what was allowed.
    pub(crate) fn throttled(&self) {
        let mut state = self.lock();
        state.limit = (state.limit / 2).max(1);
        state.successes = 0;
    }

    /// A request succeeded.
    pub(crate) fn succeeded(&self) {
        let mut state = self.lock();
        if state.limit == state.most {
            return;
        }
        state.successes += 1;
        if state.successes >= SUCCESSES_PER_STEP {
            state.successes = 0;
            state.limit += 1;
            if state.permits < state.limit {
                state.permits += 1;
                self.slots.add_permits(1);
            }
        }
    }

    /// What may run at once now.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> usize {
        self.lock().limit
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if state.permits > state.limit
            && let Some(permit) = self.permit.take()
        {
            state.permits -= 1;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn throttling_halves_and_successes_raise_step_by_step() {
        let gate = Gate::new(8);
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(gate.enter().await);
        }
        gate.throttled();
        assert_eq!(gate.limit(), 4);
        held.clear();
        assert_eq!(gate.slots.available_permits(), 4);
        gate.throttled();
        gate.throttled();
        gate.throttled();
        assert_eq!(gate.limit(), 1, "never zero");
        for _ in 0..SUCCESSES_PER_STEP * 20 {
            drop(gate.enter().await);
            gate.succeeded();
        }
        assert_eq!(gate.limit(), 8, "and never above what is configured");
        assert_eq!(gate.slots.available_permits(), 8);
    }
}
