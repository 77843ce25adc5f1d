//! Buckets that have answered within the hour, against a service that is known
//! to say 404 of such a bucket for moments.
//!
//! What counts is an answer to the same kind of request by the same identity: who
//! may list need not be one who may read, and what one identity has seen is not
//! for another to notice.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Route;
use super::proofs::AccountKey;
use crate::oci::{self, AuthMethod, Bucket, StorageErrorKind};

/// How long a bucket that answered is believed to exist, against a 404.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// Buckets that are remembered at once.
const KEPT: usize = 4096;

/// The delays before asking again for a bucket that flickers.
const FLICKER: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// What is asked of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum BucketOperation {
    /// Which objects there are.
    List,
    /// Bytes of an object.
    Read,
}

/// What, where, and as whom.
type Key = (BucketOperation, String, Bucket, AuthMethod, Option<AccountKey>);

#[derive(Debug, Default)]
pub(super) struct KnownBuckets(Mutex<HashMap<Key, Instant>>);

impl KnownBuckets {
    /// Asks, and asks again when a bucket that answered this identity within the
    /// hour in the same matter is said not to be there. That an object is not there is an answer.
    pub(super) async fn ask<T, F>(
        &self,
        asked: BucketOperation,
        (route, bucket): (&Route, &Bucket),
        mut request: impl FnMut() -> F,
    ) -> oci::Result<T>
    where
        F: Future<Output = oci::Result<T>>,
    {
        let account = route.workload().and_then(AccountKey::of);
        let method = route.client().method();
        let key = (asked, route.location().to_owned(), bucket.clone(), method, account);
        for delay in FLICKER {
            match request().await {
                Err(error) if is_of_bucket(&error) && self.knows(&key) => {
                    tracing::warn!(%error, "a bucket that was there is said to be gone; asking again");
                    tokio::time::sleep(delay).await;
                }
                other => {
                    if other.is_ok() {
                        self.remember(key);
                    }
                    return other;
                }
            }
        }
        request().await
    }

    fn knows(&self, key: &Key) -> bool {
        self.lock().get(key).is_some_and(|answered| answered.elapsed() < REMEMBERED)
    }

    fn remember(&self, key: Key) {
        let mut known = self.lock();
        if known.len() >= KEPT && !known.contains_key(&key) {
            known.retain(|_, answered| answered.elapsed() < REMEMBERED);
            let oldest = known.iter().min_by_key(|(_, answered)| **answered);
            let oldest = oldest.map(|(key, _)| key.clone()).filter(|_| known.len() >= KEPT);
            oldest.map(|oldest| known.remove(&oldest));
        }
        known.insert(key, Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of_bucket(error: &oci::StorageError) -> bool {
    error.kind() == StorageErrorKind::NotFound && error.code() != Some("ObjectNotFound")
}
