//! When a service that does not answer is an outage, and what a call does then.
//!
//! An outage has lasted since the first attempt that nothing answered, counted
//! over all attempts of a volume: a new listing, a `Retry-After`, an answer that
//! is none, and kubelet's next call for the volume begin no other count. What
//! ends it is an answer: a page of a listing, or a refusal.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};

/// How long nothing has answered before an older revision is mounted.
pub(super) const OUTAGE: Duration = Duration::from_secs(10);

/// Between two attempts during an outage.
const RETRY: Duration = Duration::from_secs(1);

/// How long a call of an outage that has lasted long enough still tries itself.
const LOOK: Duration = Duration::from_secs(1);

/// When an attempt was answered last: a long listing is no outage.
#[derive(Debug, Default)]
pub(super) struct LastAnswer {
    own: Mutex<Option<Instant>>,
    /// What it waits for.
    followed: OnceLock<Arc<LastAnswer>>,
}

impl LastAnswer {
    /// Something that was asked for has come.
    pub(super) fn beat(&self) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Beats with another, too.
    pub(super) fn follow(&self, other: Arc<Self>) {
        let _ = self.followed.set(other);
    }

    fn last(&self) -> Option<Instant> {
        let own = *self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.max(self.followed.get().and_then(|followed| followed.last()))
    }
}

/// Since when nothing has answered for one volume; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnansweredSince(Arc<Mutex<Option<Instant>>>);

impl UnansweredSince {
    /// Begins now, unless it lasts already; when it began.
    fn begin(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now)
    }

    /// Something was answered at this time; since when nothing has been from then on.
    fn broken_at(&self, answered: Option<Instant>) -> Instant {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = *since.get_or_insert_with(Instant::now);
        *since.insert(answered.map_or(begun, |answered| answered.max(begun)))
    }

    fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// One attempt to have something answered.
pub(super) struct WatchedAttempt<'a, T> {
    /// Beats with each part of the answer.
    pub(super) pulse: Arc<LastAnswer>,
    /// The answer; dropping it need not end what goes on.
    pub(super) answer: BoxFuture<'a, Result<T>>,
}

/// What came of asking.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AttemptOutcome<T, F> {
    Answered(T),
    /// There was an outage; this is instead of the answer.
    Instead(F, Option<Error>),
}

/// Asks until there is an answer, or the outage has lasted [`OUTAGE`] and there is
/// something to go on with instead.
///
/// # Errors
/// What is answered, at once; what was no answer, at once where there is nothing
/// to go on with.
pub(super) async fn ask<'a, T, F>(
    silence: &UnansweredSince,
    attempt: impl Fn() -> WatchedAttempt<'a, T>,
    instead: impl Fn() -> BoxFuture<'a, Option<F>>,
) -> Result<AttemptOutcome<T, F>> {
    let begun = Instant::now();
    let mut since = silence.begin();
    let mut current = attempt();
    loop {
        let end = |since: Instant| (since + OUTAGE).max(begun + LOOK);
        let error = tokio::select! {
            answer = &mut current.answer => match answer {
                Err(error) if error.kind() == ErrorKind::Unavailable => Some(error),
                answer => {
                    silence.end();
                    return answer.map(AttemptOutcome::Answered);
                }
            },
            () = tokio::time::sleep_until(end(since)) => None,
        };
        since = silence.broken_at(current.pulse.last());
        let over = Instant::now() >= end(since);
        if error.is_none() && !over {
            continue;
        }
        match (instead().await, error) {
            (Some(instead), error) if over => return Ok(AttemptOutcome::Instead(instead, error)),
            (Some(_), _) => {
                tokio::time::sleep_until((Instant::now() + RETRY).min(end(since))).await;
                current = attempt();
            }
            (None, Some(error)) => return Err(error),
            (None, None) => {
                let answer = current.answer.await?;
                silence.end();
                return Ok(AttemptOutcome::Answered(answer));
            }
        }
    }
}

#[cfg(test)]
#[path = "outage_tests.rs"]
mod tests;
