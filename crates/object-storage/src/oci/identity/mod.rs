//! The identity of a client: one immutable [`Credential`] behind an atomic swap.
//!
//! A credential is key id and key together, so that no request is ever signed
//! with the key of one token under the name of another. [`Identity`] returns
//! the current one, and replaces it before it expires or when the
//! service refuses it. A source, one per authentication method, fetches new
//! credentials.

pub(crate) mod api_key;
pub(crate) mod certificate;
pub(crate) mod federation;
pub(crate) mod imds;
pub(crate) mod instance_principal;
mod oke_service;
pub(crate) mod own_account;
pub(crate) mod pod_key;
pub(crate) mod profile;
mod recently_used;
pub(crate) mod resource_principal;
pub(crate) mod session;
pub(crate) mod token;
pub(crate) mod workload;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::clock::Clock;
use super::error::{StorageError, StorageErrorKind};
use super::key::KeyPair;
use super::sign::{self, Signed};
use crate::flight::{Flights, Joined};
use crate::retry::Backoff;
use crate::sync::lock;

/// After a refresh that changed nothing, 401s do not cause another one for this long:
/// otherwise a wrong clock or a missing policy would turn each request into three.
const FUTILE_PAUSE: Duration = Duration::from_secs(30);

/// The refresher checks the clock at least this often, since wall clocks jump.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Between failed refreshes.
const REFRESH_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// Key id and key, which belong together and never change.
pub struct Credential {
    key_id: String,
    key: KeyPair,
    lifetime: Option<token::Lifetime>,
    #[cfg(feature = "oci-rust-sdk")]
    sdk: Option<super::sdk_signer::SdkSigner>,
}

impl Credential {
    /// Creates a credential that does not expire.
    pub(crate) fn permanent(key_id: String, key: KeyPair) -> Self {
        Self {
            key_id,
            key,
            lifetime: None,
            #[cfg(feature = "oci-rust-sdk")]
            sdk: None,
        }
    }

    /// Creates a credential that has to be replaced.
    fn expiring(key_id: String, key: KeyPair, lifetime: token::Lifetime) -> Self {
        Self { lifetime: Some(lifetime), ..Self::permanent(key_id, key) }
    }

    /// Creates the credential of a security token (a JWT).
    pub(crate) fn of_token(jwt: &str, key: KeyPair, lifetime: token::Lifetime) -> Self {
        Self::expiring(format!("ST${jwt}"), key, lifetime)
    }

    /// Signs through oci-rust-sdk from now on.
    #[cfg(feature = "oci-rust-sdk")]
    pub(crate) fn through_sdk(mut self) -> Result<Self, StorageError> {
        self.sdk = Some(super::sdk_signer::SdkSigner::new(&self.key_id, &self.key)?);
        Ok(self)
    }

    /// Computes the headers that sign `request`; `origin` is `scheme://host[:port]`.
    pub(crate) fn sign(
        &self,
        request: &sign::Request<'_>,
        origin: &str,
    ) -> Result<Signed, StorageError> {
        #[cfg(feature = "oci-rust-sdk")]
        if let Some(sdk) = &self.sdk {
            return sdk.sign(request, origin);
        }
        #[cfg(not(feature = "oci-rust-sdk"))]
        let _ = origin;
        sign::sign(request, &self.key_id, &self.key)
            .map_err(|error| StorageError::config("signing a request", error.to_string()))
    }

    /// The key id of its signatures; that of a token is the token itself.
    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Whether both sign alike. A token alone does not say so: where token and key are two files,
    /// the new token may have been read beside the old key.
    fn signs_as(&self, other: &Self) -> bool {
        self.key_id == other.key_id && self.key.is(&other.key)
    }

    /// The tenancy whose root compartment it may expect to list: that of an API key.
    pub(crate) fn listable_tenancy(&self) -> Option<&str> {
        let [tenancy, ..] = api_key_of(&self.key_id)?;
        tenancy.starts_with("ocid1.tenancy.").then_some(tenancy)
    }

    /// When the service stops accepting it.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.lifetime.map(|lifetime| lifetime.expires_at)
    }
}

/// Tenancy, user and fingerprint in the key id of an API key; `None` for that of a token.
pub(crate) fn api_key_of(key_id: &str) -> Option<[&str; 3]> {
    let mut parts = key_id.split('/');
    let parts = [parts.next()?, parts.next()?, parts.next()?];
    (!key_id.starts_with("ST$")).then_some(parts)
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key id of a token is the token itself.
        f.debug_struct("Credential").field("expires_at", &self.expires_at()).finish_non_exhaustive()
    }
}

/// A source of credentials: one implementation per authentication method.
pub(crate) trait CredentialSource: Send + Sync + 'static {
    /// Fetches a new credential; transient failures are repeated inside. Its `refresh_at` has to
    /// lie in the future, because the next one is fetched then.
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>>;

    /// Whether a credential is replaced even while no request needs it.
    fn is_renewed_ahead(&self) -> bool {
        true
    }
}

/// Reads a credential from files on a thread that may block.
async fn blocking_credential(
    attempted: &'static str,
    read: impl FnOnce() -> Result<Credential, StorageError> + Send + 'static,
) -> Result<Credential, StorageError> {
    let ended = |error: tokio::task::JoinError| {
        Err(StorageError::new(StorageErrorKind::Identity, attempted, error.to_string()))
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_else(ended)
}

/// Returns the current credential and keeps it current; cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<CredentialInner>);

/// What a refresh came to. For the flight it is a value, so a failure is not remembered.
type Refreshed = Result<Arc<Credential>, StorageError>;

/// A renewal that failed while the old credential is still good.
#[derive(Default)]
struct OverdueRenewal {
    failed: u32,
    /// No request begins another one before.
    not_before: Option<Instant>,
}

struct CredentialInner {
    source: Box<dyn CredentialSource>,
    clock: Clock,
    current: ArcSwapOption<Credential>,
    /// The running refresh, if there is one. It continues when its callers are dropped.
    flights: Flights<(), (), Refreshed>,
    /// The last time that a refresh after a 401 did not help.
    futile: Mutex<Option<Instant>>,
    /// The failures since the last credential, where requests renew it ahead of its end.
    overdue: Mutex<OverdueRenewal>,
    refresher: Mutex<Option<tokio::task::JoinHandle<()>>>,
    refreshes: AtomicU64,
    failures: AtomicU64,
}

impl Identity {
    pub(crate) fn new(source: impl CredentialSource, clock: Clock) -> Self {
        Self(Arc::new(CredentialInner {
            source: Box::new(source),
            clock,
            current: ArcSwapOption::empty(),
            flights: Flights::detached(),
            futile: Mutex::default(),
            overdue: Mutex::default(),
            refresher: Mutex::default(),
            refreshes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }))
    }

    /// The current credential; a new one where there is none or it has expired.
    ///
    /// Cancel safe: a refresh that has begun continues, and the next call joins it.
    pub async fn credentials(&self) -> Result<Arc<Credential>, StorageError> {
        let current = self.0.current.load_full();
        match &current {
            Some(credential) if !self.0.has_expired(credential) => {
                self.0.renew_if_due(credential);
                Ok(Arc::clone(credential))
            }
            seen => self.0.refresh(seen.as_ref()).await,
        }
    }

    /// After a 401 to a request signed with `seen`: another credential to repeat
    /// it with, or `None` where there is no other and the refusal is final.
    pub async fn invalidate(
        &self,
        seen: &Arc<Credential>,
    ) -> Result<Option<Arc<Credential>>, StorageError> {
        if let Some(current) = self.0.current.load_full()
            && !current.signs_as(seen)
        {
            return Ok(Some(current));
        }
        if lock(&self.0.futile).is_some_and(|since| since.elapsed() < FUTILE_PAUSE) {
            return Ok(None);
        }
        let fresh = self.0.refresh(Some(seen)).await?;
        if fresh.signs_as(seen) {
            self.repeat_was_futile();
            return Ok(None);
        }
        Ok(Some(fresh))
    }

    /// Whether both are one identity, or clones of one.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Records that the repeated request was refused too.
    pub fn repeat_was_futile(&self) {
        *lock(&self.0.futile) = Some(Instant::now());
    }

    /// Credentials fetched so far.
    pub fn refreshes(&self) -> u64 {
        self.0.refreshes.load(Ordering::Relaxed)
    }

    /// Failed fetches so far, repetitions inside a fetch not counted.
    pub fn refresh_failures(&self) -> u64 {
        self.0.failures.load(Ordering::Relaxed)
    }

    /// When the current credential expires; `None` where it does not, or there is none yet.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.0.current.load().as_ref()?.expires_at()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("expires_at", &self.expires_at()).finish_non_exhaustive()
    }
}

impl CredentialInner {
    fn has_expired(&self, credential: &Credential) -> bool {
        credential.expires_at().is_some_and(|end| end <= self.clock.now())
    }

    /// A credential other than `seen`: the current one, the running refresh's, or a new one.
    async fn refresh(self: &Arc<Self>, seen: Option<&Arc<Credential>>) -> Refreshed {
        match self.join_refresh(seen) {
            Joined::Known(current) => current,
            Joined::Flight(mut refresh) => refresh.completed().await.unwrap_or_else(|_| {
                Err(StorageError::new(
                    StorageErrorKind::Identity,
                    "refreshing the credential",
                    "the refresh was ended by the process",
                ))
            }),
        }
    }

    /// Begins to replace a credential that is still good and has no refresh loop. After a failure
    /// it waits: each of a download's requests would ask the failing service again.
    fn renew_if_due(self: &Arc<Self>, credential: &Arc<Credential>) {
        let due = credential.lifetime.is_some_and(|life| life.refresh_at <= self.clock.now());
        let waits = || lock(&self.overdue).not_before.is_some_and(|end| Instant::now() < end);
        if due && !self.source.is_renewed_ahead() && !waits() {
            drop(self.join_refresh(Some(credential)));
        }
    }

    /// Records a failure, after which requests do not renew a good credential for a while.
    fn renewal_failed(&self, error: &StorageError) {
        let failed = {
            let mut overdue = lock(&self.overdue);
            overdue.failed = overdue.failed.saturating_add(1);
            let pause = REFRESH_BACKOFF.pause(overdue.failed, error.retry_after());
            overdue.not_before = Some(Instant::now() + pause);
            overdue.failed
        };
        let is_good = |credential: &Arc<Credential>| !self.has_expired(credential);
        if self.current.load_full().as_ref().is_some_and(is_good) {
            tracing::warn!(%error, failed, "refreshing the credential failed");
        }
    }

    /// Joins the running refresh or starts one, unless the current credential is another
    /// than `seen` already.
    fn join_refresh(self: &Arc<Self>, seen: Option<&Arc<Credential>>) -> Joined<(), Refreshed> {
        let current = || {
            let current = self.current.load_full()?;
            seen.is_none_or(|seen| !Arc::ptr_eq(seen, &current)).then_some(Ok(current))
        };
        let inner = Arc::clone(self);
        self.flights.join_unless((), (), current, |_| async move { Ok(inner.fetch().await) })
    }

    async fn fetch(self: &Arc<Self>) -> Refreshed {
        let result = self.source.fetch().await.map(Arc::new);
        match &result {
            Ok(credential) => {
                self.current.store(Some(Arc::clone(credential)));
                self.refreshes.fetch_add(1, Ordering::Relaxed);
                *lock(&self.overdue) = OverdueRenewal::default();
                self.ensure_refresh_loop(credential);
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                if !self.source.is_renewed_ahead() {
                    self.renewal_failed(error);
                }
            }
        }
        result
    }

    /// Ensures that one task refreshes a credential that expires.
    fn ensure_refresh_loop(self: &Arc<Self>, credential: &Credential) {
        if credential.lifetime.is_none() || !self.source.is_renewed_ahead() {
            return;
        }
        let mut refresher = lock(&self.refresher);
        // The task ends with its runtime, which may be another one than this.
        if refresher.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            *refresher = Some(tokio::spawn(refresh_loop(Arc::downgrade(self))));
        }
    }
}

/// Replaces the credential before it expires, for as long as the identity is in use.
///
/// A failed refresh keeps the old credential, which is used until it expires.
async fn refresh_loop(identity: Weak<CredentialInner>) {
    let mut failed = 0_u32;
    loop {
        let nap = {
            let Some(shared) = identity.upgrade() else { return };
            let Some(current) = shared.current.load_full() else { return };
            let Some(lifetime) = current.lifetime else { return };
            match lifetime.refresh_at.duration_since(shared.clock.now()) {
                Ok(early) if !early.is_zero() => early.min(LONGEST_SLEEP),
                _ => match shared.refresh(Some(&current)).await {
                    Ok(_) => {
                        failed = 0;
                        continue;
                    }
                    Err(error) => {
                        failed = failed.saturating_add(1);
                        tracing::warn!(%error, failed, "refreshing the credential failed");
                        REFRESH_BACKOFF.pause(failed, error.retry_after())
                    }
                },
            }
        };
        tokio::time::sleep(nap).await;
    }
}

#[cfg(test)]
mod tests;
