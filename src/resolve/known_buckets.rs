//! Buckets that have answered within the last hour. The service is known to answer
//! 404 for an existing bucket at times; such an answer is retried.
//!
//! Only an answer to the same kind of request by the same identity counts: an
//! identity that may list may not be allowed to read, and one identity must not learn
//! what another has seen.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::Route;
use super::proofs::AccountKey;
use crate::error::Result;
use crate::source::{AuthMethod, Bucket, StorageError, StorageErrorKind};
use crate::sync::lock;

/// How long a bucket that answered is assumed to exist despite a 404.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// The maximum number of remembered buckets.
const KEPT: usize = 4096;

/// The delays before the retries of a request for a known bucket.
const RETRY_DELAYS: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// The kind of a request for a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum BucketOperation {
    /// List objects.
    List,
    /// Read an object.
    Read,
}

/// Operation, location, bucket and identity.
type Key = (BucketOperation, String, Bucket, AuthMethod, Option<AccountKey>);

#[derive(Debug, Default)]
pub(super) struct KnownBuckets(Mutex<HashMap<Key, Instant>>);

impl KnownBuckets {
    /// Sends a request, and retries it if it says that the bucket does not exist although
    /// the bucket answered this identity and operation within the last hour. A missing
    /// object is an answer and is not retried.
    pub(super) async fn ask<T, F>(
        &self,
        asked: BucketOperation,
        (route, bucket): (&Route, &Bucket),
        mut request: impl FnMut() -> F,
    ) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let account = route.principal().and_then(AccountKey::of);
        let method = route.client().method();
        let key = (asked, route.location().to_owned(), bucket.clone(), method, account);
        for delay in RETRY_DELAYS {
            match request().await {
                Err(error) if is_of_bucket(&error) && self.knows(&key) => {
                    tracing::warn!(%error, "Object Storage reports a known bucket as missing; retrying");
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
        lock(&self.0)
    }
}

fn is_of_bucket(error: &StorageError) -> bool {
    error.kind() == StorageErrorKind::NotFound && error.code() != Some("ObjectNotFound")
}
