//! Routes requests to buckets: where a bucket is, and as whom it is read. The
//! default is the driver's own location and identity, unless the administrator lists
//! the bucket, or a `StorageClass` names a region or an identity.

use std::sync::Arc;

use super::refusals::CallRefusal;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    ModelRequest, NamespaceName, PodIdentity, PodTokens, RequestDigest, Tenant, account_uid,
};
use crate::source::{
    AuthMethod, Bucket, BucketLocation, ObjectSource, PodCredential, PodPar, PodPrincipal,
    PodSecret, RegionName, SourceConnector, Workload,
};
use crate::text::shown;

/// The longest name of a Secret that is quoted, in characters: buckets have 256.
const NAME: usize = 256;

/// The prefix of an identity in a scope.
const APART: &str = "auth/";

/// The part of the scope of copies that were read with the API keys of pods.
const OF_PODS_KEYS: &str = "pod/api_key";

/// The same with their pre-authenticated requests.
const OF_PODS_PARS: &str = "pod/par";

/// A bucket with another route than the driver's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedBucket {
    /// Its name.
    pub name: String,
    /// Its Object Storage namespace; `None` means that of the driver's own tenancy.
    pub namespace: Option<String>,
    /// Its region; `None` means the driver's.
    pub region: Option<RegionName>,
    /// `http(s)://host[:port]` to use instead of the region's endpoint.
    pub endpoint: Option<String>,
    /// How its requests are signed; `None` means the driver's method.
    pub auth: Option<AuthMethod>,
}

impl ListedBucket {
    /// Whether two entries are about the same bucket.
    pub fn is_same_bucket(&self, other: &Self) -> bool {
        (&self.name, &self.namespace) == (&other.name, &other.namespace)
    }
}

/// The clients for all routes; cheap to clone.
#[derive(Clone)]
pub struct ClientPool(Arc<ClientPoolInner>);

struct ClientPoolInner {
    own: Arc<dyn ObjectSource>,
    connector: Arc<dyn SourceConnector>,
    listed: Vec<ListedBucket>,
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
        /// The Secret of its volume, with which it reads instead of any other identity.
        secret: Option<&'a PodSecret>,
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
    client: Arc<dyn ObjectSource>,
    /// Who knows the own namespace, or why no client does.
    namer: Result<Arc<dyn ObjectSource>>,
    location: String,
    scope: String,
    tenant: Tenant,
    refusal: CallRefusal,
}

impl Route {
    /// The source of the objects.
    pub fn client(&self) -> &Arc<dyn ObjectSource> {
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

    /// What the call of this route was refused.
    pub(super) fn refusal(&self) -> &CallRefusal {
        &self.refusal
    }

    /// The cache scope: which identities share a cached copy.
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The identity in a scope, as [`ClientPool::route`] writes it; `None` for the usual one.
    ///
    /// # Errors
    /// `Precondition` for an identity that this version does not know, or that only a pod with
    /// its Secret has.
    pub(crate) fn auth_of_scope(scope: &str) -> Result<Option<AuthMethod>> {
        if scope.split(' ').any(|part| [OF_PODS_KEYS, OF_PODS_PARS].contains(&part)) {
            let text = "it was read with the Secret of a pod, which only such a pod has";
            return Err(Error::new(ErrorKind::Precondition, text));
        }
        let name = scope.split(' ').find_map(|part| part.strip_prefix(APART));
        Ok(name.map(str::parse::<AuthMethod>).transpose()?)
    }

    /// The pod's own identity that is used, or `None` for the driver's identity.
    pub fn principal(&self) -> Option<&PodPrincipal> {
        self.client.pod_principal()
    }

    /// The digest by which requests on this route are the same.
    pub fn digest(&self, request: &ModelRequest) -> RequestDigest {
        request.digest(&self.scope, &self.location)
    }

    /// The namespace of buckets that name none: that of the driver's own tenancy.
    pub async fn own_namespace(&self) -> Result<NamespaceName> {
        let namer = self.namer.as_ref().map_err(Error::clone)?;
        NamespaceName::parse(&namer.namespace().await?)
    }

    /// Whether the own namespace is known and differs from this one.
    pub(super) fn is_another(&self, namespace: &NamespaceName) -> bool {
        let known = self.namer.as_ref().ok().and_then(|namer| namer.known_namespace());
        known.is_some_and(|known| known != namespace.as_str())
    }
}

impl ClientPool {
    /// A pool of the connector's sources, with the routes of the listed buckets.
    pub fn new(connector: Arc<dyn SourceConnector>, listed: Vec<ListedBucket>) -> Self {
        Self(Arc::new(ClientPoolInner { own: connector.own(), connector, listed }))
    }

    /// As [`Route::own_namespace`], before the route is known.
    ///
    /// # Errors
    /// `Precondition` if the service account of the requester has to look it up, and its token is
    /// missing.
    pub async fn namespace_for(&self, caller: Requester<'_>) -> Result<NamespaceName> {
        NamespaceName::parse(&self.namer(caller).await?.namespace().await?)
    }

    /// The own namespace, if it was looked up already or is configured.
    pub(super) fn known_namespace(&self) -> Option<NamespaceName> {
        NamespaceName::parse(self.0.own.known_namespace()?).ok()
    }

    /// The client that knows the own namespace. If pods use their own identities, the driver has
    /// none to ask with. The key of a pod is never asked: a key of another tenancy would decide
    /// which bucket the rules and the cache mean.
    async fn namer(&self, caller: Requester<'_>) -> Result<Arc<dyn ObjectSource>> {
        let own = Arc::clone(&self.0.own);
        let Requester::Pod { secret: Some(_), tokens, .. } = caller else {
            return as_account(own, caller).await;
        };
        if own.known_namespace().is_some() {
            return Ok(own);
        }
        let has_no_identity = own.method() == AuthMethod::None;
        if has_no_identity || (own.needs_pod() && tokens.is_none()) {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!(
                    "the driver does not know its own namespace, and cannot look it up as {}: write \
                     the attribute namespace, or the administrator sets objectStorage.namespace",
                    own.method()
                ),
            ));
        }
        as_account(own, caller).await
    }

    /// Whether the request's bucket is read by service accounts: pods by theirs, and the driver by
    /// its own.
    ///
    /// # Errors
    /// Those of [`ClientPool::route`].
    pub async fn needs_pod(&self, request: &ModelRequest) -> Result<bool> {
        Ok(self.client_of(request, Requester::Driver).await?.0.needs_pod())
    }

    /// The route of a request in this cache scope.
    ///
    /// # Errors
    /// `Precondition` if a pod's own identity is needed and kubelet sends no token of it, or if the administrator's settings for it cannot be used. `Unavailable` if a service
    /// that is needed to find the route cannot be reached.
    pub async fn route(
        &self,
        request: &ModelRequest,
        scope: &str,
        caller: Requester<'_>,
    ) -> Result<Route> {
        let (client, usual_method) = self.client_of(request, caller).await?;
        let client = as_caller(client, caller).await?;
        if let Some(PodPrincipal::Par(par)) = client.pod_principal() {
            check_par(par, request)?;
        }
        let location = client.location().await?;
        // This identity may not be allowed to read what another one downloaded.
        let apart = match (client.pod_principal(), client.method()) {
            (Some(PodPrincipal::ApiKey(_)), _) => OF_PODS_KEYS.to_owned(),
            (Some(PodPrincipal::Par(_)), _) => OF_PODS_PARS.to_owned(),
            (_, method) if method == usual_method => String::new(),
            (_, method) => format!("{APART}{method}"),
        };
        let parts = [scope, &apart].into_iter().filter(|part| !part.is_empty());
        let scope = parts.collect::<Vec<_>>().join(" ");
        let has_secret = matches!(caller, Requester::Pod { secret: Some(_), .. });
        let namer = if self.0.own.needs_pod() && !has_secret {
            Ok(Arc::clone(&client))
        } else {
            self.namer(caller).await
        };
        // An error of this requester alone: others with the same key may know the namespace.
        if let (Err(error), None) = (&namer, &request.namespace) {
            return Err(error.clone());
        }
        let (tenant, refusal) = (caller.tenant(), CallRefusal::default());
        Ok(Route { client, namer, location, scope, tenant, refusal })
    }

    /// The client of a request, without a pod's own identity, and the usual
    /// authentication method of its bucket.
    async fn client_of(
        &self,
        request: &ModelRequest,
        caller: Requester<'_>,
    ) -> Result<(Arc<dyn ObjectSource>, AuthMethod)> {
        let usual = self.usual(request, caller).await?;
        let usual_method = usual.auth.unwrap_or_else(|| self.0.own.method());
        let mut place = usual.clone();
        place.auth = request.auth.or(place.auth);
        if let Some(region) = &request.region
            && !self.0.connector.is_in(&usual, region).await?
        {
            (place.region, place.endpoint) = (Some(region.clone()), None);
        }
        Ok((self.0.connector.source(&place).await?, usual_method))
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
}

/// The client with the identity of the requester: the key in the pod's Secret, else the pod's
/// service account, if the administrator chose that.
async fn as_caller(
    client: Arc<dyn ObjectSource>,
    caller: Requester<'_>,
) -> Result<Arc<dyn ObjectSource>> {
    if let Requester::Pod { pod, secret: Some(secret), .. } = caller {
        let namespace = pod.map_or("", |pod| pod.namespace.as_str());
        return Ok(client.as_pod(PodCredential::Secret { namespace, secret }).await?);
    }
    as_account(client, caller).await
}

/// Checks that the URL of a pre-authenticated request is for the volume's model, as far as it
/// says. A volume without a namespace means the driver's own, which each request is checked for.
///
/// # Errors
/// `Invalid`, with what to write in the volume.
fn check_par(par: &PodPar, request: &ModelRequest) -> Result<()> {
    let Bucket { namespace, name } = &par.bucket;
    let named = request.namespace.as_ref();
    if request.bucket.as_str() != name || named.is_some_and(|named| named.as_str() != namespace) {
        let (name, namespace) = (shown(name, NAME), shown(namespace, NAME));
        return Err(Error::invalid(format!(
            "the pre-authenticated request of the volume's Secret is of bucket {name} in namespace \
             {namespace}, and the volume names another one: correct one of the two"
        )));
    }
    if !request.prefix.as_str().starts_with(&par.object) {
        return Err(Error::invalid(format!(
            "the pre-authenticated request of the volume's Secret does not cover prefix {:?}: \
             create one for all objects with this prefix",
            shown(request.prefix.as_str(), 200)
        )));
    }
    Ok(())
}

/// The client with the service account of the pod, or else with that of this process, if the
/// administrator chose that.
async fn as_account(
    client: Arc<dyn ObjectSource>,
    caller: Requester<'_>,
) -> Result<Arc<dyn ObjectSource>> {
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
        // What it may read, the policy in OCI says; each pod still proves its own permission.
        Requester::Driver | Requester::Claim { .. } => {
            Ok(client.as_own_account().unwrap_or(client))
        }
        Requester::Pod { pod: None, .. } => missing(
            "kubelet does not send the pod's identity: set podInfoOnMount: true in the CSIDriver \
             object",
        ),
        Requester::Pod { tokens: None, .. } => missing(
            "kubelet sent no token of the pod's service account: set tokenRequests: [{audience: \
             \"\"}] in the CSIDriver object (csiDriver.tokenRequests of the chart)",
        ),
        Requester::Pod { pod: Some(pod), tokens: Some(tokens), .. } => {
            let token = tokens.of(pod)?;
            let workload = Workload {
                namespace: pod.namespace.clone(),
                service_account: pod.service_account.clone(),
                account_uid: account_uid(&token),
                pod_uid: pod.uid.clone(),
            };
            Ok(client.as_pod(PodCredential::Token(&workload, &token)).await?)
        }
    }
}

#[cfg(test)]
#[path = "client_pool_tests.rs"]
mod tests;
