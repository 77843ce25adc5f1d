//! API keys that pods present in the Secrets of their volumes.
//!
//! Reading a key takes time, and its author may have made it as slow as possible: so few are read
//! at once, off the reactor, those of a Kubernetes namespace one after the other ([`KeyTurns`]),
//! and what a key may cost is limited ([`KeyCost::OF_PODS`]). What was read is kept as long as the
//! pod's calls use it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use aws_lc_rs::digest::{Context, SHA256};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::recently_used::RecentlyUsed;
use super::{Credential, CredentialSource, Identity, lock};
use crate::oci::clock::Clock;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::key::{KeyCost, KeyError, KeyPair, hex};
use crate::source::{ApiKeySecret, PodKey};

/// Keys that are read at once, each of another namespace.
const AT_ONCE: usize = 2;

/// What was attempted, in errors.
const READING: &str = "reading the API key of the volume's Secret";

/// How to make a key of a form that is read.
const CONVERT: &str = "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD.pem -out NEW.pem";

/// The keys of pods; cheap to clone.
#[derive(Clone)]
pub(crate) struct PodKeys {
    /// By the digest of the whole Secret, so that a wrong passphrase does not find a key.
    known: RecentlyUsed<[u8; 32], LoadedKey>,
    turns: KeyTurns,
}

/// Turns for reading keys, by Kubernetes namespace; cheap to clone.
///
/// A namespace reads one key or waits for one place at a time, in the order of arrival. So one with
/// many slow keys delays another by the key that it reads, and takes its next turn after that.
#[derive(Clone)]
struct KeyTurns {
    places: Arc<Semaphore>,
    /// Of the namespaces that read or wait.
    queues: Arc<Mutex<HashMap<String, Weak<Semaphore>>>>,
}

/// A turn; it ends when it is dropped, its place first.
struct KeyTurn {
    _place: OwnedSemaphorePermit,
    _queue: OwnedSemaphorePermit,
}

/// A key that was read, or why it cannot be used.
type LoadedKey = Result<(Identity, PodKey), StorageError>;

impl PodKeys {
    pub(crate) fn new() -> Self {
        Self { known: RecentlyUsed::default(), turns: KeyTurns::new() }
    }

    /// The identity of a pod's key, and what distinguishes it from others.
    ///
    /// # Errors
    /// `Invalid` where the Secret has no key that can be used.
    pub(crate) async fn of(
        &self,
        namespace: &str,
        secret: &ApiKeySecret,
        clock: &Clock,
    ) -> LoadedKey {
        let id = digest_of(secret);
        let loaded = match self.known.get(&id) {
            Some(loaded) => loaded,
            None => self.load(id, namespace, secret, clock).await?,
        };
        let (identity, key) = loaded?;
        Ok((identity, PodKey { namespace: namespace.to_owned(), ..key }))
    }

    async fn load(
        &self,
        id: [u8; 32],
        namespace: &str,
        secret: &ApiKeySecret,
        clock: &Clock,
    ) -> Result<LoadedKey, StorageError> {
        let ended = |why: String| StorageError::new(StorageErrorKind::Unavailable, READING, why);
        let turn = self.turns.enter(namespace).await.map_err(|error| ended(error.to_string()))?;
        // Another call may have read it while this one waited.
        if let Some(loaded) = self.known.get(&id) {
            return Ok(loaded);
        }
        let (secret, clock, known) = (secret.clone(), clock.clone(), self.known.clone());
        let namespace = namespace.to_owned();
        let loading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let loaded = load(&secret, clock);
            // Here, since the call may have gone away: its next one finds the key.
            known.get_or_insert_of(&namespace, &id, || loaded)
        });
        loading.await.map_err(|error| ended(error.to_string()))
    }
}

impl KeyTurns {
    fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), queues: Arc::default() }
    }

    /// Waits for a turn. Cancellation safe: a caller that leaves loses its turn.
    async fn enter(&self, namespace: &str) -> Result<KeyTurn, AcquireError> {
        let queue = self.queue_of(namespace).acquire_owned().await?;
        let place = Arc::clone(&self.places).acquire_owned().await?;
        Ok(KeyTurn { _place: place, _queue: queue })
    }

    /// The queue of a namespace. Those without a reader or waiter are dropped.
    fn queue_of(&self, namespace: &str) -> Arc<Semaphore> {
        let mut queues = lock(&self.queues);
        queues.retain(|_, queue| queue.strong_count() > 0);
        let known = queues.get(namespace).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let queue = Arc::new(Semaphore::new(1));
            queues.insert(namespace.to_owned(), Arc::downgrade(&queue));
            queue
        })
    }
}

/// Reads a key, and checks that the fingerprint is its own.
fn load(secret: &ApiKeySecret, clock: Clock) -> LoadedKey {
    let ApiKeySecret { user, tenancy, fingerprint, key, passphrase, .. } = secret;
    let refuse = |(why, remedy): (String, &str)| {
        StorageError::new(StorageErrorKind::Invalid, READING, why).with_remedy(remedy)
    };
    let passphrase = passphrase.as_ref().map(|text| text.as_str());
    let pair = KeyPair::from_pem_within(key, passphrase, &KeyCost::OF_PODS)
        .map_err(|error| refuse(explain(error)))?;
    let broken = |error: KeyError| refuse(explain(error));
    let actual = pair.fingerprint().map_err(broken)?;
    if actual != *fingerprint {
        let why = format!("the fingerprint of its key is {actual}, and it has another one");
        return Err(refuse((why, "correct fingerprint or key: they belong to different keys")));
    }
    let public = pair.public_der().map_err(broken)?;
    let digest = digest_of_fields([public.as_slice(), user.as_bytes(), tenancy.as_bytes()]);
    let digest = hex(&digest);
    let key_id = format!("{tenancy}/{user}/{actual}");
    let identity = Identity::new(UnchangingKey { key_id, pair }, clock);
    Ok((identity, PodKey { namespace: String::new(), fingerprint: actual, digest }))
}

/// The cause and the remedy of a key that cannot be used, without any part of it.
fn explain(error: KeyError) -> (String, &'static str) {
    match error {
        KeyError::Missing { .. } => (
            "its key is not a private key in PEM".to_owned(),
            "put the whole file of the key into key, with its first and last line",
        ),
        KeyError::Public => (
            "its key is a public one".to_owned(),
            "put the private key that belongs to it into key",
        ),
        KeyError::PassphraseMissing => (
            "its key is encrypted, and it has no passphrase".to_owned(),
            "add passphrase to the Secret",
        ),
        KeyError::PassphraseWrong => {
            ("its passphrase does not open its key".to_owned(), "correct passphrase in the Secret")
        }
        KeyError::Unsupported { .. } => {
            ("the form or encryption of its key is not supported".to_owned(), CONVERT)
        }
        KeyError::Costly { what } => (
            format!("its key costs more than a pod's key may: {what}"),
            "encrypt it with at most 200,000 iterations, and use at most 4096 bits",
        ),
        KeyError::Malformed { .. } => (
            "its key is damaged, or no RSA key of at least 2048 bits".to_owned(),
            "copy it again, or create a new one",
        ),
    }
}

/// A digest of the whole Secret.
fn digest_of(secret: &ApiKeySecret) -> [u8; 32] {
    let ApiKeySecret { user, tenancy, fingerprint, key, passphrase, region: _ } = secret;
    // An empty passphrase is none.
    let passphrase = passphrase.as_ref().map_or("", |text| text.as_str());
    let fields = [user.as_str(), tenancy, fingerprint, key, passphrase];
    digest_of_fields(fields.map(str::as_bytes))
}

/// SHA-256 over the fields, each with its length, so that no two lists have the same bytes.
fn digest_of_fields<const N: usize>(fields: [&[u8]; N]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for field in fields {
        context.update(&field.len().to_be_bytes());
        context.update(field);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// A key that stays the same; there is no other one after a 401.
struct UnchangingKey {
    key_id: String,
    pair: KeyPair,
}

impl CredentialSource for UnchangingKey {
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        ready(Ok(Credential::permanent(self.key_id.clone(), self.pair.clone()))).boxed()
    }
}

#[cfg(test)]
#[path = "pod_key_tests.rs"]
mod tests;
