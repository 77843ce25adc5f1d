//! Clients that read as a pod: with its service account, or with what its Secret has.

use std::sync::Arc;

use super::location::ServiceLocation;
use super::{ObjectStorage, ObjectStorageInner};
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::identity::workload::{OwnIdentity, Workloads};
use crate::oci::par::ParUrl;
use crate::oci::region::Region;
use crate::source::{
    ApiKeySecret, AuthMethod, ParSecret, PodCredential, PodPar, PodPrincipal, PodSecret,
    RegionName, Workload,
};

impl ObjectStorage {
    /// Whether a service account has to send the requests: that of a pod, with [`Self::as_pod`], or
    /// that of this process, with [`Self::as_own_account`].
    pub fn needs_pod(&self) -> bool {
        self.0.workloads.is_some() && self.0.identity.is_none()
    }

    /// The same location, read as the pod that has this credential. A token changes only a client
    /// that [needs a pod](Self::needs_pod).
    ///
    /// # Errors
    /// `Invalid` where the Secret has no key that can be used, or names another region.
    pub async fn as_pod(&self, credential: PodCredential<'_>) -> Result<Self, StorageError> {
        match credential {
            PodCredential::Token(workload, token) => Ok(self.as_account(workload, token)),
            PodCredential::Secret { namespace, secret: PodSecret::ApiKey(key) } => {
                self.as_key(namespace, key).await
            }
            PodCredential::Secret { namespace, secret: PodSecret::Par(url) } => {
                self.as_par(namespace, url).await
            }
        }
    }

    /// The same location, with the identity of this process's own service account. A client that
    /// needs no pod stays as it is.
    #[must_use]
    pub fn as_own_account(&self) -> Self {
        let own = self.0.workloads.as_ref().filter(|_| self.needs_pod()).map(Workloads::own);
        let Some(OwnIdentity { identity, account }) = own.cloned() else { return self.clone() };
        Self(Arc::new(ObjectStorageInner {
            identity: Some(identity),
            own_account: Some(account),
            ..ObjectStorageInner::clone(&self.0)
        }))
    }

    /// Whether this process has a service account's token of its own, for
    /// [`Self::as_own_account`].
    pub fn has_own_account(&self) -> bool {
        self.0.workloads.as_ref().is_some_and(|workloads| workloads.own().account.is_there())
    }

    /// The pod's own identity that this client uses.
    pub fn pod_principal(&self) -> Option<&PodPrincipal> {
        self.0.principal.as_ref()
    }

    fn as_account(&self, workload: &Workload, token: &str) -> Self {
        let Some(workloads) = &self.0.workloads else { return self.clone() };
        let identity = Some(workloads.of(workload, token));
        let principal = Some(PodPrincipal::Account(workload.clone()));
        Self(Arc::new(ObjectStorageInner {
            identity,
            principal,
            ..ObjectStorageInner::clone(&self.0)
        }))
    }

    async fn as_key(&self, namespace: &str, secret: &ApiKeySecret) -> Result<Self, StorageError> {
        if let Some(region) = &secret.region {
            self.check_region(region).await?;
        }
        let (identity, key) = self.0.pod_keys.of(namespace, secret, &self.0.clock).await?;
        Ok(Self(Arc::new(ObjectStorageInner {
            method: AuthMethod::ApiKey,
            identity: Some(identity),
            principal: Some(PodPrincipal::ApiKey(key)),
            workloads: None,
            // That of the key's tenancy, which may be another one.
            namespace: Arc::default(),
            ..ObjectStorageInner::clone(&self.0)
        })))
    }

    /// Reads with a pre-authenticated request. Its host has to be one of Object Storage for this
    /// client's location: a pod's author may not choose where the driver sends requests.
    async fn as_par(&self, namespace: &str, url: &ParSecret) -> Result<Self, StorageError> {
        let par = ParUrl::parse(&url.0)?;
        let place = self.place_of_par(&par).await?;
        let principal = PodPar {
            namespace: namespace.to_owned(),
            digest: par.digest(),
            bucket: par.bucket().clone(),
            object: par.object().to_owned(),
        };
        Ok(Self(Arc::new(ObjectStorageInner {
            method: AuthMethod::None,
            place,
            identity: None,
            workloads: None,
            par: Some(Arc::new(par)),
            principal: Some(PodPrincipal::Par(principal)),
            namespace: Arc::default(),
            ..ObjectStorageInner::clone(&self.0)
        })))
    }

    /// Where requests with this URL are sent: to the administrator's endpoint if there is one, else
    /// to the URL's own host, if that is one of the region.
    async fn place_of_par(&self, par: &ParUrl) -> Result<ServiceLocation, StorageError> {
        let namespace = par.bucket().namespace.as_str();
        let place = self.0.place.at_host(&par.origin(), namespace, &self.0.environment).await?;
        if let Some(place) = place {
            return Ok(place);
        }
        let attempted = "reading the pre-authenticated request of the volume's Secret";
        let why = "its host is not that of Object Storage where the bucket is read";
        let remedy = format!(
            "use one of a bucket at {}, or put its bucket into objectStorage.buckets with its region",
            self.location().await?
        );
        Err(StorageError::new(StorageErrorKind::Invalid, attempted, why).with_remedy(remedy))
    }

    /// Checks that a Secret's region is this client's. It would have no effect otherwise, and the
    /// pod would read other objects than its author thinks.
    async fn check_region(&self, named: &RegionName) -> Result<(), StorageError> {
        let refuse = |why: String, remedy: &str| {
            let attempted = "comparing the region of the volume's Secret";
            Err(StorageError::new(StorageErrorKind::Invalid, attempted, why).with_remedy(remedy))
        };
        let known = |name: &str| Region::known(name).map(|known| known.name().to_owned());
        let name = |name: &str| known(name).unwrap_or_else(|| name.to_owned());
        match self.0.place.region().await? {
            Some(ours) if name(&ours) == name(named.as_str()) => Ok(()),
            Some(ours) => refuse(
                format!("the bucket is read in {ours}, and it names another region"),
                "correct region in the Secret, or leave it out",
            ),
            None => refuse(
                format!(
                    "the bucket is read at {}, whose region is not configured",
                    self.location().await?
                ),
                "leave region out of the Secret",
            ),
        }
    }
}
