//! Where the bucket of a request is, and as whom it is read: in the driver's
//! own place and as the driver, unless the administrator lists the bucket, or a
//! `StorageClass` names a region or an identity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    ModelRequest, NamespaceName, PodIdentity, PodTokens, RequestDigest, Tenant, account_uid,
};
use crate::oci::{self, AuthMethod, ObjectStorage, Settings, Workload};

/// Clients kept for other places; beyond that they are made for each request.
const KEPT: usize = 64;

/// What begins an identity in a scope.
const APART: &str = "auth/";

/// A bucket that is reached in another way than the driver's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBucket {
    /// Its name.
    pub name: String,
    /// Its Object Storage namespace; `None`: the driver's own tenancy's.
    pub namespace: Option<String>,
    /// Its region; `None`: the driver's.
    pub region: Option<String>,
    /// `http(s)://host[:port]` in place of the region's.
    pub endpoint: Option<String>,
    /// How its requests are signed; `None`: as the driver's.
    pub auth: Option<AuthMethod>,
}

/// All ways to buckets; cheap to clone.
#[derive(Clone)]
pub struct ClientPool(Arc<ClientPoolInner>);

struct ClientPoolInner {
    own: ObjectStorage,
    /// What clients of other identities are made of.
    settings: Settings,
    listed: Vec<ListedBucket>,
    /// One for each other identity, in the driver's own place. One that cannot
    /// be made is tried again by the next request.
    others: Mutex<HashMap<AuthMethod, Arc<OnceCell<ObjectStorage>>>>,
    elsewhere: Mutex<HashMap<BucketLocation, ObjectStorage>>,
}

/// What an administrator chose of a way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct BucketLocation {
    region: Option<String>,
    endpoint: Option<String>,
    auth: Option<AuthMethod>,
}

/// Who asks for a model.
#[derive(Debug, Clone, Copy)]
pub enum Requester<'a> {
    /// The driver itself: a prefetch, a command.
    Driver,
    /// The Controller, for a claim.
    Claim {
        /// The claim's Kubernetes namespace, where the provisioner sends it.
        namespace: Option<&'a str>,
    },
    /// A pod, as far as kubelet tells of it.
    Pod {
        /// Which one.
        pod: Option<&'a PodIdentity>,
        /// The tokens of its service account.
        tokens: Option<&'a PodTokens>,
    },
}

impl Requester<'_> {
    /// To whom the work for this caller is accounted.
    pub fn tenant(&self) -> Tenant {
        match self {
            Self::Driver => Tenant::Driver,
            Self::Claim { namespace } => namespace.map_or(Tenant::Unknown, Tenant::of_namespace),
            Self::Pod { pod, .. } => Tenant::of_pod(*pod),
        }
    }
}

/// How one request is served: where, as whom, for whom, and apart from whom.
#[derive(Debug, Clone)]
pub struct Route {
    client: ObjectStorage,
    location: String,
    scope: String,
    tenant: Tenant,
}

impl Route {
    /// Asks Object Storage.
    pub fn client(&self) -> &ObjectStorage {
        &self.client
    }

    /// The region's name, or the endpoint's URL.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// To whom the request's work is accounted.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// Which cached copies may be shared with whom.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The identity that a scope keeps apart, as [`ClientPool::route`] notes it.
    pub(crate) fn auth_of_scope(scope: &str) -> Option<&str> {
        scope.split(' ').find_map(|part| part.strip_prefix(APART))
    }

    /// The pod whose own identity asks, where it is not the driver's.
    pub fn workload(&self) -> Option<&Workload> {
        self.client.workload()
    }

    /// The digest that "the same request" means on this way.
    pub fn digest(&self, request: &ModelRequest) -> RequestDigest {
        request.digest(&self.scope, &self.location)
    }
}

impl ClientPool {
    /// One client for every bucket. A request that wants another is refused
    /// where that cannot be had from this client's settings.
    pub fn alone(own: ObjectStorage) -> Self {
        let settings = Settings::new(own.method());
        Self::new(own, settings, Vec::new())
    }

    /// The driver's own client, which is connected now, and what is listed,
    /// which is connected when somebody asks for it.
    ///
    /// # Errors
    /// Those of [`ObjectStorage::connect`] for the driver's own settings.
    pub async fn connect(settings: Settings, listed: Vec<ListedBucket>) -> oci::Result<Self> {
        let own = ObjectStorage::connect(settings.clone()).await?;
        Ok(Self::new(own, settings, listed))
    }

    fn new(own: ObjectStorage, settings: Settings, listed: Vec<ListedBucket>) -> Self {
        let (others, elsewhere) = (Mutex::default(), Mutex::default());
        Self(Arc::new(ClientPoolInner { own, settings, listed, others, elsewhere }))
    }

    /// The driver's own identity, where requests are signed.
    pub fn identity(&self) -> Option<&oci::identity::Identity> {
        self.0.own.identity()
    }

    /// The namespace of buckets that name none: the driver's own tenancy's.
    pub async fn own_namespace(&self, route: &Route) -> Result<NamespaceName> {
        NamespaceName::parse(&self.who_knows(route).namespace().await?)
    }

    /// Whether that is known already to be another one.
    pub(super) fn is_another(&self, route: &Route, namespace: &NamespaceName) -> bool {
        let known = self.who_knows(route).known_namespace();
        known.is_some_and(|known| known != namespace.as_str())
    }

    /// Where pods ask with their own identities, the driver has none to ask with.
    fn who_knows<'a>(&'a self, route: &'a Route) -> &'a ObjectStorage {
        if self.0.own.needs_pod() { &route.client } else { &self.0.own }
    }

    /// As [`ClientPool::own_namespace`], before the way is known.
    ///
    /// # Errors
    /// `Precondition` when only a pod can be told, and none asks.
    pub async fn namespace_for(&self, caller: Requester<'_>) -> Result<NamespaceName> {
        NamespaceName::parse(&as_caller(self.0.own.clone(), caller)?.namespace().await?)
    }

    /// Whether only a pod's own identity may read the request's bucket.
    ///
    /// # Errors
    /// Those of [`ClientPool::route`].
    pub async fn needs_pod(&self, request: &ModelRequest) -> Result<bool> {
        Ok(self.client_of(request, Requester::Driver).await?.0.needs_pod())
    }

    /// The way of a request in this cache scope.
    ///
    /// # Errors
    /// `Precondition` when a pod's own identity is needed, and no pod asks, or
    /// kubelet sends no token of it. `Invalid` for an identity that is none; `Precondition` when the
    /// administrator's settings for it cannot be used; `Unavailable` when it
    /// takes a service to know the way, and that cannot be reached.
    pub async fn route(
        &self,
        request: &ModelRequest,
        scope: &str,
        caller: Requester<'_>,
    ) -> Result<Route> {
        let (client, usual_method) = self.client_of(request, caller).await?;
        let client = as_caller(client, caller)?;
        let location = client.location().await?;
        // What was brought as somebody else was not permitted to this one.
        let scope = match client.method() {
            method if method == usual_method => scope.to_owned(),
            method if scope.is_empty() => format!("{APART}{method}"),
            method => format!("{scope} {APART}{method}"),
        };
        Ok(Route { client, location, scope, tenant: caller.tenant() })
    }

    /// Who asks where, before a pod's own identity; and how such a bucket is
    /// read usually.
    async fn client_of(
        &self,
        request: &ModelRequest,
        caller: Requester<'_>,
    ) -> Result<(ObjectStorage, AuthMethod)> {
        let usual = self.usual(request, caller).await?;
        let usual_method = usual.auth.unwrap_or_else(|| self.0.own.method());
        let mut place = usual.clone();
        if let Some(auth) = &request.auth {
            place.auth =
                Some(auth.parse().map_err(|e: oci::StorageError| Error::invalid(e.to_string()))?);
        }
        if let Some(region) = &request.region
            && !self.is_in(&usual, region).await?
        {
            (place.region, place.endpoint) = (Some(region.clone()), None);
        }
        Ok((self.client(&place).await?, usual_method))
    }

    /// What the administrator listed for the bucket.
    async fn usual(&self, request: &ModelRequest, caller: Requester<'_>) -> Result<BucketLocation> {
        for listed in self.0.listed.iter().filter(|one| one.name == request.bucket.as_str()) {
            let (theirs, wanted) = (listed.namespace.as_deref(), request.namespace.as_ref());
            let same = match (theirs, wanted.map(NamespaceName::as_str)) {
                (None, None) => true,
                (Some(theirs), Some(wanted)) => theirs == wanted,
                (Some(named), None) | (None, Some(named)) => {
                    self.namespace_for(caller).await?.as_str() == named
                }
            };
            if same {
                let ListedBucket { region, endpoint, auth, .. } = listed.clone();
                return Ok(BucketLocation { region, endpoint, auth });
            }
        }
        Ok(BucketLocation::default())
    }

    /// Whether a place is in the region already.
    async fn is_in(&self, place: &BucketLocation, region: &str) -> Result<bool> {
        let settings = &self.0.settings;
        let here = place.region.is_none() && place.endpoint.is_none();
        let configured = match here {
            true => settings.region.as_ref(),
            false => place.region.as_ref(),
        };
        if configured.is_some_and(|configured| settings.same_region(configured, region)) {
            return Ok(true);
        }
        // Also a region that the identity's services told.
        Ok(here && self.0.own.is_in(region).await?)
    }

    async fn client(&self, place: &BucketLocation) -> Result<ObjectStorage> {
        if *place == BucketLocation::default() {
            return Ok(self.0.own.clone());
        }
        if let Some(kept) = self.elsewhere().get(place) {
            return Ok(kept.clone());
        }
        let identity = match place.auth {
            Some(method) if method != self.0.own.method() => self.other(method, place).await?,
            _ => self.0.own.clone(),
        };
        let client = identity.at(place.region.as_deref(), place.endpoint.as_deref())?;
        let mut elsewhere = self.elsewhere();
        if elsewhere.len() < KEPT {
            // Who was faster made the one that both use.
            return Ok(elsewhere.entry(place.clone()).or_insert(client).clone());
        }
        Ok(client)
    }

    /// Another identity, in the driver's own place.
    async fn other(&self, method: AuthMethod, place: &BucketLocation) -> Result<ObjectStorage> {
        let cell = {
            let mut others = self.0.others.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(others.entry(method).or_default())
        };
        let connecting = || async {
            let mut settings = Settings { auth: method, ..self.0.settings.clone() };
            // Any place will do to make it; where it asks is said below.
            settings.region = settings.region.or_else(|| place.region.clone());
            if method != AuthMethod::InstancePrincipal && settings.region.is_none() {
                let location = self.0.own.location().await?;
                match location.contains("://") {
                    true => settings.endpoint = Some(location),
                    false => settings.region = Some(location),
                }
            }
            Ok::<_, oci::StorageError>(ObjectStorage::connect(settings).await?.beside(&self.0.own))
        };
        let connected = cell.get_or_try_init(connecting).await;
        Ok(connected
            .map_err(|error| Error::from(error).context(format!("reading as {method}")))?
            .clone())
    }

    fn elsewhere(&self) -> std::sync::MutexGuard<'_, HashMap<BucketLocation, ObjectStorage>> {
        self.0.elsewhere.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client as whom the caller asks: the pod's own identity, where that is
/// what the administrator chose.
fn as_caller(client: ObjectStorage, caller: Requester<'_>) -> Result<ObjectStorage> {
    if !client.needs_pod() {
        return Ok(client);
    }
    let missing = |what: &str| {
        let text = format!(
            "this bucket is read with the pods' own identities (oke_workload_identity), and {what}"
        );
        Err(Error::new(ErrorKind::Precondition, text))
    };
    match caller {
        Requester::Driver | Requester::Claim { .. } => missing(
            "no pod asks here: a bucket that the driver brings in by itself needs another auth in \
             objectStorage.buckets",
        ),
        Requester::Pod { pod: None, .. } => missing(
            "kubelet does not say whose volume this is: set podInfoOnMount: true in the CSIDriver \
             object",
        ),
        Requester::Pod { tokens: None, .. } => missing(
            "kubelet sent no token of the pod's service account: set tokenRequests: [{audience: \
             \"\"}] in the CSIDriver object (csiDriver.tokenRequests of the chart)",
        ),
        Requester::Pod { pod: Some(pod), tokens: Some(tokens) } => {
            let token = tokens.of(pod)?;
            let workload = Workload {
                namespace: pod.namespace.clone(),
                service_account: pod.service_account.clone(),
                account_uid: account_uid(&token),
                pod_uid: pod.uid.clone(),
            };
            Ok(client.as_pod(&workload, &token))
        }
    }
}

#[cfg(test)]
#[path = "client_pool_tests.rs"]
mod tests;
