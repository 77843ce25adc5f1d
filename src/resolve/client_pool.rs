//! Routes requests to buckets: where a bucket is, and as whom it is read. The
//! default is the driver's own location and identity, unless the administrator lists
//! the bucket, or a `StorageClass` names a region or an identity.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    ModelRequest, NamespaceName, PodIdentity, PodTokens, RequestDigest, Tenant, account_uid,
};
use crate::oci::{self, AuthMethod, ObjectStorage, Settings, Workload};

/// How many clients for other locations are kept; further ones are created per request.
const KEPT: usize = 64;

/// The prefix of an identity in a scope.
const APART: &str = "auth/";

/// A bucket with another route than the driver's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBucket {
    /// Its name.
    pub name: String,
    /// Its Object Storage namespace; `None` means that of the driver's own tenancy.
    pub namespace: Option<String>,
    /// Its region; `None` means the driver's.
    pub region: Option<String>,
    /// `http(s)://host[:port]` to use instead of the region's endpoint.
    pub endpoint: Option<String>,
    /// How its requests are signed; `None` means the driver's method.
    pub auth: Option<AuthMethod>,
}

/// The clients for all routes; cheap to clone.
#[derive(Clone)]
pub struct ClientPool(Arc<ClientPoolInner>);

struct ClientPoolInner {
    own: ObjectStorage,
    /// The settings for clients of other identities.
    settings: Settings,
    listed: Vec<ListedBucket>,
    /// One client per other identity, in the driver's own location. The next request
    /// retries a failed connection.
    others: Mutex<HashMap<AuthMethod, Arc<OnceCell<ObjectStorage>>>>,
    elsewhere: Mutex<HashMap<BucketLocation, ObjectStorage>>,
}

/// The administrator's settings for a route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct BucketLocation {
    region: Option<String>,
    endpoint: Option<String>,
    auth: Option<AuthMethod>,
}

/// Who requests a model.
#[derive(Debug, Clone, Copy)]
pub enum Requester<'a> {
    /// The driver itself: a prefetch, a command.
    Driver,
    /// The Controller, for a claim.
    Claim {
        /// The claim's Kubernetes namespace, if the provisioner sends it.
        namespace: Option<&'a str>,
    },
    /// A pod.
    Pod {
        /// Its identity, if kubelet sends it.
        pod: Option<&'a PodIdentity>,
        /// The tokens of its service account, if kubelet sends them.
        tokens: Option<&'a PodTokens>,
    },
}

impl Requester<'_> {
    /// The tenant to which the work for this requester is accounted.
    pub fn tenant(&self) -> Tenant {
        match self {
            Self::Driver => Tenant::Driver,
            Self::Claim { namespace } => namespace.map_or(Tenant::Unknown, Tenant::of_namespace),
            Self::Pod { pod, .. } => Tenant::of_pod(*pod),
        }
    }
}

/// How one request is served: the client and its location, the cache scope, and the
/// tenant.
#[derive(Debug, Clone)]
pub struct Route {
    client: ObjectStorage,
    location: String,
    scope: String,
    tenant: Tenant,
}

impl Route {
    /// The client for Object Storage.
    pub fn client(&self) -> &ObjectStorage {
        &self.client
    }

    /// The region's name, or the endpoint's URL.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The tenant to which the request's work is accounted.
    pub fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    /// The cache scope: which identities share a cached copy.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The identity in a scope, as [`ClientPool::route`] writes it.
    pub(crate) fn auth_of_scope(scope: &str) -> Option<&str> {
        scope.split(' ').find_map(|part| part.strip_prefix(APART))
    }

    /// The pod whose own identity is used, or `None` for the driver's identity.
    pub fn workload(&self) -> Option<&Workload> {
        self.client.workload()
    }

    /// The digest by which requests on this route are the same.
    pub fn digest(&self, request: &ModelRequest) -> RequestDigest {
        request.digest(&self.scope, &self.location)
    }
}

impl ClientPool {
    /// Creates a pool of one client for every bucket. A request that needs another
    /// client is refused if it cannot be created from this client's settings.
    pub fn alone(own: ObjectStorage) -> Self {
        let settings = Settings::new(own.method());
        Self::new(own, settings, Vec::new())
    }

    /// Connects the driver's own client. The clients of listed buckets are connected
    /// at their first use.
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

    /// The driver's own identity, if requests are signed.
    pub fn identity(&self) -> Option<&oci::identity::Identity> {
        self.0.own.identity()
    }

    /// The namespace of buckets that name none: that of the driver's own tenancy.
    pub async fn own_namespace(&self, route: &Route) -> Result<NamespaceName> {
        NamespaceName::parse(&self.namespace_client(route).namespace().await?)
    }

    /// Whether the own namespace is known and differs from this one.
    pub(super) fn is_another(&self, route: &Route, namespace: &NamespaceName) -> bool {
        let known = self.namespace_client(route).known_namespace();
        known.is_some_and(|known| known != namespace.as_str())
    }

    /// The client that knows the own namespace. If pods use their own identities, the
    /// driver has none to ask with.
    fn namespace_client<'a>(&'a self, route: &'a Route) -> &'a ObjectStorage {
        if self.0.own.needs_pod() { &route.client } else { &self.0.own }
    }

    /// As [`ClientPool::own_namespace`], before the route is known.
    ///
    /// # Errors
    /// `Precondition` if only a pod's identity can look it up, and the requester is
    /// not a pod.
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

    /// The route of a request in this cache scope.
    ///
    /// # Errors
    /// `Precondition` if a pod's own identity is needed and the requester is not a pod,
    /// or kubelet sends no token of it. `Invalid` for an unknown identity. `Precondition`
    /// if the administrator's settings for it cannot be used. `Unavailable` if a service
    /// that is needed to find the route cannot be reached.
    pub async fn route(
        &self,
        request: &ModelRequest,
        scope: &str,
        caller: Requester<'_>,
    ) -> Result<Route> {
        let (client, usual_method) = self.client_of(request, caller).await?;
        let client = as_caller(client, caller)?;
        let location = client.location().await?;
        // This identity may not be allowed to read what another one downloaded.
        let scope = match client.method() {
            method if method == usual_method => scope.to_owned(),
            method if scope.is_empty() => format!("{APART}{method}"),
            method => format!("{scope} {APART}{method}"),
        };
        Ok(Route { client, location, scope, tenant: caller.tenant() })
    }

    /// The client of a request, without a pod's own identity, and the usual
    /// authentication method of its bucket.
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

    /// The administrator's settings for the bucket.
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

    /// Whether a location is in the region already.
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
        // This includes a region that the identity's services reported.
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
            // A concurrent request may have inserted a client; both use that one.
            return Ok(elsewhere.entry(place.clone()).or_insert(client).clone());
        }
        Ok(client)
    }

    /// The client of another identity, in the driver's own location.
    async fn other(&self, method: AuthMethod, place: &BucketLocation) -> Result<ObjectStorage> {
        let cell = {
            let mut others = self.0.others.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(others.entry(method).or_default())
        };
        let connecting = || async {
            let mut settings = Settings { auth: method, ..self.0.settings.clone() };
            // Any location will do to create it; the caller sets the final one.
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

/// The client with the identity of the requester: the pod's own identity, if the
/// administrator chose that.
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
            "no pod requests it here: a bucket that the driver reads by itself needs another auth \
             in objectStorage.buckets",
        ),
        Requester::Pod { pod: None, .. } => missing(
            "kubelet does not send the pod's identity: set podInfoOnMount: true in the CSIDriver \
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
