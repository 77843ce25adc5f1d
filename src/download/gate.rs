//! How many requests run at once, and whose is next.
//!
//! At once run as many as are configured, fewer after Object Storage throttled,
//! and more again while it does not. Who is next, of those that wait:
//!
//! 1. a model that somebody waits for, before those that are downloaded ahead;
//! 2. the model with the fewest requests under way, and of several the one whose
//!    last turn was longest ago: two models share the connections evenly,
//!    however many objects and ranges each of them has;
//! 3. the smaller object, since a loader starts with the configuration and the
//!    tokenizer;
//! 4. who came first.
//!
//! A request that runs is never interrupted: a prefetch gives its connection to
//! a pod's model at the end of the range.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::share::{Demand, Share};

/// Requests that have to succeed before one more may run at once again.
const SUCCESSES_PER_STEP: usize = 32;

/// Admits requests of all downloads; clones are the same gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    most: usize,
    /// What may run at once now, `1..=most`.
    limit: usize,
    /// Above `limit` until enough of them came back.
    running: usize,
    successes: usize,
    /// Admissions so far.
    turns: u64,
    /// What waits, by object.
    lines: BTreeMap<u64, Line>,
}

/// The requests of one object that wait, in the order in which they came.
#[derive(Debug)]
struct Line {
    visitor: Visitor,
    waiting: VecDeque<oneshot::Sender<Slot>>,
}

/// One object's download, as the gate knows it; clones stand in the same line.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    /// Unique in this process, and ascending.
    id: u64,
    demand: Demand,
    size: u64,
}

impl Visitor {
    /// A download of an object of this size.
    pub(crate) fn new(demand: Demand, size: u64) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), demand, size }
    }

    pub(super) fn demand(&self) -> &Demand {
        &self.demand
    }
}

/// A running request's place; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Option<(Gate, Share)>);

impl Gate {
    pub(crate) fn new(most: usize) -> Self {
        let state =
            State { most, limit: most, running: 0, successes: 0, turns: 0, lines: BTreeMap::new() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Waits for a place. Cancellation safe: who goes away loses the turn.
    pub(crate) async fn enter(&self, visitor: &Visitor) -> Slot {
        let (grant, granted) = oneshot::channel();
        {
            let mut state = self.lock();
            let line = state.lines.entry(visitor.id);
            let line =
                line.or_insert_with(|| Line { visitor: visitor.clone(), waiting: VecDeque::new() });
            line.waiting.push_back(grant);
            self.admit(&mut state);
        }
        granted.await.expect("a line ends only with its gate")
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
            self.admit(&mut state);
        }
    }

    fn admit(&self, state: &mut State) {
        while state.running < state.limit {
            let Some((share, grant)) = state.next() else { return };
            state.turns += 1;
            state.running += 1;
            share.admitted(state.turns);
            if let Err(mut refused) = grant.send(Slot(Some((self.clone(), share)))) {
                // Its caller went away just now. Taken apart here, since its
                // drop would lock the gate once more.
                if let Some((_, share)) = refused.0.take() {
                    state.leave(&share);
                }
            }
        }
    }

    /// What may run at once now.
    #[cfg(test)]
    pub(crate) fn limit(&self) -> usize {
        self.lock().limit
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the next one out of its line. Looks at each line once: there are as
    /// many as objects under way, however many requests each of them has.
    fn next(&mut self) -> Option<(Share, oneshot::Sender<Slot>)> {
        self.lines.retain(|_, line| {
            while line.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                line.waiting.pop_front();
            }
            !line.waiting.is_empty()
        });
        let lines = self.lines.iter().map(|(id, line)| (line.visitor.demand.account(), *id, line));
        let (share, id, _) = lines.min_by_key(|(share, id, line)| {
            let ahead = !share.is_urgent();
            (ahead, share.running(), share.last_turn(), line.visitor.size, *id)
        })?;
        let grant = self.lines.get_mut(&id)?.waiting.pop_front()?;
        Some((share, grant))
    }

    fn leave(&mut self, share: &Share) {
        self.running -= 1;
        share.left();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((gate, share)) = self.0.take() {
            let mut state = gate.lock();
            state.leave(&share);
            gate.admit(&mut state);
        }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
