//! A pod's service account as a principal, in an enhanced OKE cluster: its token
//! is exchanged for a session token of a key that is generated here.
//!
//! Each pod has a credential of its own, which no other pod gets. It is fetched when
//! a request needs it, replaced when half of its life is over, and dropped when
//! the pod's requests have ended.

use std::sync::{Arc, Mutex};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::oke_service::{Exchange, TokenOwner};
use super::own_account::OwnAccount;
use super::recently_used::RecentlyUsed;
use super::{Credential, CredentialSource, Identity, lock};
use crate::oci::clock::Clock;
use crate::oci::error::StorageError;
use crate::oci::settings::Settings;
use crate::source::Workload;

/// What to do about a pod's token that has expired, and about one that is refused.
const EXPIRED: &str = "kubelet gives the driver a new one with its next call";
const REFUSED: &str =
    "check the audience in tokenRequests of the CSIDriver object: \"\" is the cluster's own";

/// The identities of pods, and that of this process's own service account; cheap to clone.
#[derive(Clone)]
pub(crate) struct Workloads(Arc<WorkloadsInner>);

struct WorkloadsInner {
    exchange: Arc<Exchange>,
    own: OwnIdentity,
    known: RecentlyUsed<Workload, KnownIdentity>,
}

/// The identity of this process's own service account.
#[derive(Clone)]
pub(crate) struct OwnIdentity {
    pub(crate) identity: Identity,
    pub(crate) account: Arc<OwnAccount>,
}

#[derive(Clone)]
struct KnownIdentity {
    identity: Identity,
    account: Arc<PodAccount>,
}

impl Workloads {
    pub(crate) fn new(settings: &Settings, clock: Clock) -> Result<Self, StorageError> {
        let exchange = Arc::new(Exchange::new(settings, clock.clone())?);
        let account = Arc::new(OwnAccount::new(settings, Arc::clone(&exchange)));
        let identity = Identity::new(Arc::clone(&account), clock);
        let own = OwnIdentity { identity, account };
        Ok(Self(Arc::new(WorkloadsInner { exchange, own, known: RecentlyUsed::default() })))
    }

    /// The identity of this process's own service account.
    pub(crate) fn own(&self) -> &OwnIdentity {
        &self.0.own
    }

    /// The identity of a pod; requests use this token from now on.
    pub(crate) fn of(&self, workload: &Workload, token: &str) -> Identity {
        let KnownIdentity { identity, account } = self.0.known.get_or_insert_with(workload, || {
            let account = Arc::new(PodAccount {
                exchange: Arc::clone(&self.0.exchange),
                who: workload.to_string(),
                token: Mutex::default(),
            });
            let clock = self.0.exchange.clock.clone();
            let identity = Identity::new(Arc::clone(&account), clock);
            KnownIdentity { identity, account }
        });
        token.clone_into(&mut lock(&account.token));
        identity
    }
}

/// One pod's service account. No `Debug`: it has a token.
struct PodAccount {
    exchange: Arc<Exchange>,
    who: String,
    /// As kubelet last sent it.
    token: Mutex<String>,
}

impl CredentialSource for Arc<PodAccount> {
    fn fetch(&self) -> BoxFuture<'_, Result<Credential, StorageError>> {
        async {
            let token = lock(&self.token).clone();
            let owner = TokenOwner { who: &self.who, expired: EXPIRED, refused: REFUSED };
            self.exchange.credential(&owner, &token).await
        }
        .boxed()
    }

    fn is_renewed_ahead(&self) -> bool {
        // No request may need it again, and its token ends.
        false
    }
}

#[cfg(test)]
#[path = "workload_tests.rs"]
pub(super) mod tests;
