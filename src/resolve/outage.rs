//! Defines when an unresponsive service is an outage, and what a call does then.
//!
//! An outage begins with the first unanswered attempt, counted over all attempts of
//! a volume: a new listing, a `Retry-After`, an invalid answer, and kubelet's next
//! call for the volume do not restart the count. An answer ends the outage: a page
//! of a listing, or a refusal.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;

/// How long an outage must last before an older revision is mounted.
pub(super) const OUTAGE: Duration = Duration::from_secs(10);

/// The pause between two attempts during an outage.
const RETRY: Duration = Duration::from_secs(1);

/// How long a call tries by itself when the outage has already lasted [`OUTAGE`].
const OWN_ATTEMPT: Duration = Duration::from_secs(1);

/// The time of the last answer within an attempt: a long listing is not an outage.
#[derive(Debug, Default)]
pub(super) struct LastAnswer {
    own: Mutex<Option<Instant>>,
    /// The attempt that this one waits for.
    followed: OnceLock<Arc<LastAnswer>>,
}

impl LastAnswer {
    /// Records an answer now.
    pub(super) fn beat(&self) {
        *lock(&self.own) = Some(Instant::now());
    }

    /// Counts the answers of another attempt, too.
    pub(super) fn follow(&self, other: Arc<Self>) {
        let _ = self.followed.set(other);
    }

    fn last(&self) -> Option<Instant> {
        let own = *lock(&self.own);
        own.max(self.followed.get().and_then(|followed| followed.last()))
    }
}

/// The time since which one volume has had no answer; clones share one state.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnansweredSince(Arc<Mutex<Option<Instant>>>);

impl UnansweredSince {
    /// Begins the silence now, unless it began before. Returns when it began.
    fn begin(&self) -> Instant {
        *lock(&self.0).get_or_insert_with(Instant::now)
    }

    /// Moves the beginning to the last answer, if there was one. Returns the beginning.
    fn restart_at(&self, answered: Option<Instant>) -> Instant {
        let mut since = lock(&self.0);
        let begun = *since.get_or_insert_with(Instant::now);
        *since.insert(answered.map_or(begun, |answered| answered.max(begun)))
    }

    fn end(&self) {
        *lock(&self.0) = None;
    }
}

/// One attempt to get an answer.
pub(super) struct WatchedAttempt<'a, T> {
    /// Beats with each part of the answer.
    pub(super) pulse: Arc<LastAnswer>,
    /// The answer; dropping it does not necessarily stop the attempt.
    pub(super) answer: BoxFuture<'a, Result<T>>,
}

/// Outcome of an attempt.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AttemptOutcome<T, F> {
    Answered(T),
    /// There was an outage; this replaces the answer.
    Instead(F, Option<Error>),
}

/// Retries until there is an answer, or until the outage has lasted [`OUTAGE`] and
/// `instead` has a replacement.
///
/// # Errors
/// An error that is an answer, at once. An error that is not an answer, at once if
/// there is no replacement.
pub(super) async fn ask<'a, T, F>(
    silence: &UnansweredSince,
    attempt: impl Fn() -> WatchedAttempt<'a, T>,
    instead: impl Fn() -> BoxFuture<'a, Option<F>>,
) -> Result<AttemptOutcome<T, F>> {
    let begun = Instant::now();
    let mut since = silence.begin();
    let mut current = attempt();
    loop {
        let end = |since: Instant| (since + OUTAGE).max(begun + OWN_ATTEMPT);
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
        since = silence.restart_at(current.pulse.last());
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
