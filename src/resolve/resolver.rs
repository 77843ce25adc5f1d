//! Resolves a request to the exact set of object versions that it means now.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use tracing::field::Empty;

use super::authorize::{Authorizer, Permission, unseen};
use super::client_pool::{ClientPool, Requester, Route};
use super::directories::DirectoryListings;
use super::known_buckets::KnownBuckets;
use super::listings::{HeldListing, Listings, SMALL_MANIFEST};
use super::outage::LastAnswer;
use crate::blocking::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::fair::FairSemaphore;
use crate::flight::{Flights, Waiter};
use crate::model::{
    Attachment, Manifest, ModelKey, ModelRequest, ModelSource, NamespaceName, RequestDigest,
    Selected, Tenant, TreeLimits,
};
use crate::source::{Bucket, ObjectName, PodPrincipal};
use crate::trace;

/// How long resolving continues without a waiter: long enough for the retry of a
/// caller that gave up early.
const GRACE: Duration = Duration::from_secs(30);

/// How many listings are arranged at once, at most two of them for one tenant: malicious patterns
/// and names can take seconds.
const ARRANGED_AT_ONCE: usize = 3;

/// The limits of one model.
#[derive(Debug, Clone, Copy)]
pub struct ResolveLimits {
    /// The maximum number of objects under the prefix.
    pub max_objects: usize,
    /// The maximum size of the model in bytes; `None` for no limit.
    pub max_bytes: Option<u64>,
}

/// Asks Object Storage which revision of a model is current.
#[derive(Clone)]
pub struct Resolver(Arc<ResolverInner>);

struct ResolverInner {
    pool: ClientPool,
    limits: ResolveLimits,
    buckets: Arc<KnownBuckets>,
    directories: DirectoryListings,
    listings: Listings,
    /// An answer to a pod's own identity is never shared with another identity, and a
    /// tenant never waits in the queue of another.
    flights: Flights<(RequestDigest, Option<PodPrincipal>, Tenant), LastAnswer, Arc<Manifest>>,
    authorizer: Arc<Authorizer>,
    /// Fair between tenants.
    arranging: FairSemaphore,
}

/// The cause of the error for a prefix whose listing was answered, and has no object.
#[derive(Debug)]
struct EmptyPrefix;

impl fmt::Display for EmptyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no object has this prefix")
    }
}

impl StdError for EmptyPrefix {}

/// The cause of the error for a listing that was answered, and has no object that can be used.
#[derive(Debug)]
pub(super) struct NothingSelected;

impl fmt::Display for NothingSelected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no object is selected")
    }
}

impl StdError for NothingSelected {}

/// Waits for a listing, in a span of its own: the flight has other callers, and outlives them.
pub(super) async fn listed(mut waiter: Waiter<LastAnswer, Arc<Manifest>>) -> Result<Arc<Manifest>> {
    let (joined, objects, bytes) = (waiter.joined(), Empty, Empty);
    let span = tracing::info_span!(target: trace::STEP, "listing", joined, objects, bytes);
    let answered = waiter.completed().instrument(span.clone()).await;
    if let Ok(manifest) = &answered {
        span.record("objects", manifest.files.len());
        span.record("bytes", manifest.bytes());
    }
    answered
}

/// The result of arranging a listing.
enum ArrangedListing {
    Nothing,
    /// It needs memory of this weight first.
    Large(u64),
    Manifest(Box<Manifest>),
}

impl Resolver {
    /// Creates a resolver that reads through `pool`.
    pub fn new(
        pool: ClientPool,
        limits: ResolveLimits,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let flights = Flights::new(GRACE, tasks.clone(), shutdown.clone());
        let buckets = Arc::default();
        let authorizer = Arc::default();
        Self(Arc::new(ResolverInner {
            pool,
            limits,
            listings: Listings::new(limits.max_objects, tasks, shutdown, &buckets, &authorizer),
            buckets,
            directories: DirectoryListings::default(),
            authorizer,
            flights,
            arranging: FairSemaphore::new(ARRANGED_AT_ONCE),
        }))
    }

    /// The directories that were listed to name them in messages.
    pub(super) fn directories(&self) -> &DirectoryListings {
        &self.0.directories
    }

    /// The most objects of a model.
    pub(crate) fn most_objects(&self) -> usize {
        self.0.limits.max_objects
    }

    /// The source of the request's model.
    pub async fn source(&self, request: &ModelRequest, route: &Route) -> Result<ModelSource> {
        self.0.source(request, route).await
    }

    /// The route of a request of the driver in this cache scope. Use the same route for
    /// all operations of the request.
    ///
    /// # Errors
    /// Those of [`ClientPool::route`].
    pub async fn route(&self, request: &ModelRequest, scope: &str) -> Result<Route> {
        self.0.pool.route(request, scope, Requester::Driver).await
    }

    /// As [`Resolver::route`], for any requester; with its own identity if the
    /// administrator chose that.
    ///
    /// # Errors
    /// Those of [`ClientPool::route`].
    pub async fn route_of(
        &self,
        caller: Requester<'_>,
        request: &ModelRequest,
        scope: &str,
    ) -> Result<Route> {
        self.0.pool.route(request, scope, caller).await
    }

    /// The Object Storage namespace of requests that name none.
    ///
    /// # Errors
    /// Those of [`ClientPool::namespace_for`].
    pub async fn own_namespace(&self, caller: Requester<'_>) -> Result<NamespaceName> {
        self.0.pool.namespace_for(caller).await
    }

    /// The namespace of the driver's own tenancy, once it is known.
    pub(crate) fn known_namespace(&self) -> Option<NamespaceName> {
        self.0.pool.known_namespace()
    }

    /// Whether only a pod's own identity may read the request's bucket.
    ///
    /// # Errors
    /// Those of [`ClientPool::route`].
    pub async fn needs_pod(&self, request: &ModelRequest) -> Result<bool> {
        self.0.pool.needs_pod(request).await
    }

    /// Checks whether the pod of the route may read the objects of this revision. The
    /// driver's own identity is not checked.
    ///
    /// # Errors
    /// Those of [`Authorizer::ask`].
    pub(super) async fn authorize(&self, route: &Route, manifest: &Manifest) -> Result<Permission> {
        self.0.authorizer.ask(&self.0.buckets, route, manifest).await
    }

    /// In place of the error of an empty prefix, the one that says that an object has this name, if
    /// one has. The object lies beside the prefix: only for requesters that may see the directory
    /// of both. A pod's own identity was asked already.
    pub(crate) async fn or_object(
        &self,
        error: Error,
        request: &ModelRequest,
        route: &Route,
    ) -> Error {
        if !is_of_empty_prefix(&error) {
            return error;
        }
        let Ok(source) = self.source(request, route).await else { return error };
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        self.0.object_named(route, &source, &bucket).await.unwrap_or(error)
    }

    /// Checks whether the pod of the route may read the objects of this revision, as far as that
    /// can be proved.
    ///
    /// # Errors
    /// Those of [`Authorizer::ask`].
    pub(crate) async fn check_reader(&self, route: &Route, manifest: &Manifest) -> Result<()> {
        self.authorize(route, manifest).await.map(drop)
    }

    /// Causes the requests of [`Resolver::authorize`] where nothing is cached.
    ///
    /// # Errors
    /// Those of [`Authorizer::ask`].
    pub(super) async fn authorize_nothing(
        &self,
        request: &ModelRequest,
        route: &Route,
    ) -> Result<Permission> {
        let source = self.source(request, route).await?;
        self.0.authorizer.ask_for_nothing(&self.0.buckets, route, &source).await
    }

    /// Whether the pod's service account has proved within the last hour that it may
    /// read the model. The driver's own identity needs no proof.
    pub(super) fn was_authorized(&self, route: &Route, model: &ModelKey) -> bool {
        self.0.authorizer.was_granted(route, model)
    }

    /// Resolves the current revision. Callers with the same request share one listing.
    ///
    /// # Errors
    /// `NotFound` if nothing is selected (the message names both causes of a 404);
    /// `Precondition` if the selected objects cannot form a tree; `Unavailable` if
    /// Object Storage cannot be reached.
    pub async fn resolve(&self, request: &ModelRequest, route: &Route) -> Result<Arc<Manifest>> {
        listed(self.start(request, route)).await
    }

    /// As [`Resolver::resolve`], for callers that watch the progress.
    pub(super) fn start(
        &self,
        request: &ModelRequest,
        route: &Route,
    ) -> Waiter<LastAnswer, Arc<Manifest>> {
        let inner = Arc::clone(&self.0);
        let request = request.clone();
        let route = route.clone();
        let key = (route.digest(&request), route.principal().cloned(), route.tenant().clone());
        self.0.flights.join(key, LastAnswer::default(), move |pulse| async move {
            inner.ask(&request, &route, &pulse).await.map(Arc::new)
        })
    }
}

#[cfg(test)]
impl Resolver {
    /// A resolver of up to a hundred objects of a source in memory.
    pub(crate) fn of_fake(source: &oci_model_csi_fake_source::FakeSource) -> Self {
        let pool = ClientPool::new(Arc::new(source.clone()), Vec::new());
        let limits = ResolveLimits { max_objects: 100, max_bytes: None };
        Self::new(pool, limits, &TaskTracker::new(), &CancellationToken::new())
    }
}

impl ResolverInner {
    async fn source(&self, request: &ModelRequest, route: &Route) -> Result<ModelSource> {
        let location = route.location().to_owned();
        let namespace = match &request.namespace {
            Some(namespace) => namespace.clone(),
            None => route.own_namespace().await?,
        };
        let (bucket, prefix) = (request.bucket.clone(), request.prefix.clone());
        Ok(ModelSource { location, namespace, bucket, prefix })
    }

    async fn ask(
        &self,
        request: &ModelRequest,
        route: &Route,
        pulse: &LastAnswer,
    ) -> Result<Manifest> {
        let source = self.source(request, route).await?;
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let mut listing = self.listings.start(route, &source);
        pulse.follow(Arc::clone(&listing.progress().pulse));
        let held = listing.completed().await?;
        // From here on, only `held` keeps the listing's memory.
        drop(listing);
        let largest = held.largest().filter(|_| route.principal().is_some());
        let manifest = match self.arrange(held, request, route, &source, pulse).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => {
                // Only an identity that may read the objects may learn which ones exist.
                let may_know = route.principal().is_none() || largest.is_some();
                self.authorizer.ask_for_one(&self.buckets, route, &source, largest).await?;
                return Err(self.nothing(request, route, &source, &bucket, may_know).await);
            }
            Err(error) => {
                self.authorizer.ask_for_one(&self.buckets, route, &source, largest).await?;
                return Err(error);
            }
        };
        // An identity that may list may not be allowed to read. A model without files has
        // nothing beyond its listing.
        if let Some(principal) = route.principal().filter(|_| !manifest.files.is_empty())
            && self.authorizer.ask(&self.buckets, route, &manifest).await? != Permission::Granted
        {
            return Err(unseen(route, &manifest.source, principal));
        }
        Ok(manifest)
    }

    /// Builds the manifest of the objects that the request's filters select, off the
    /// reactor.
    async fn arrange(
        &self,
        held: Arc<HeldListing>,
        request: &ModelRequest,
        route: &Route,
        source: &ModelSource,
        pulse: &LastAnswer,
    ) -> Result<Option<Manifest>> {
        let limits =
            TreeLimits { directories: self.limits.max_objects, bytes: self.limits.max_bytes };
        let mut permit = None;
        loop {
            let place = self.arranging.enter(route.tenant()).await;
            let (held, filters) = (Arc::clone(&held), request.filters.clone());
            let (source, scope) = (source.clone(), route.scope().to_owned());
            let (most, allowed) =
                (permit.as_ref().map_or(SMALL_MANIFEST, |(most, _)| *most), permit.take());
            let arranged = blocking(move || {
                let _place = place;
                let selected = Selected::of(&held.listing, &filters, &limits)?;
                Ok(match selected {
                    None => ArrangedListing::Nothing,
                    Some(selected) if selected.weight() > most => {
                        ArrangedListing::Large(selected.weight())
                    }
                    Some(selected) => {
                        let manifest = Manifest::new(source, &scope, selected.tree());
                        let mut manifest = manifest.with_equal_bytes_once();
                        manifest.kept = allowed.map(Attachment::new).unwrap_or_default();
                        ArrangedListing::Manifest(Box::new(manifest))
                    }
                })
            });
            match arranged.await? {
                ArrangedListing::Nothing => return Ok(None),
                ArrangedListing::Manifest(manifest) => return Ok(Some(*manifest)),
                // Take the memory before building the manifest.
                ArrangedListing::Large(weight) => {
                    let taken = self.listings.for_manifest(route.tenant(), weight, pulse).await?;
                    permit = Some((weight, taken));
                }
            }
        }
    }

    /// Explains why nothing is selected. `may_know` is whether the requester has proved
    /// that it may read the objects.
    async fn nothing(
        &self,
        request: &ModelRequest,
        route: &Route,
        source: &ModelSource,
        bucket: &Bucket,
        may_know: bool,
    ) -> Error {
        let place = format!("bucket {} of namespace {}", source.bucket, source.namespace);
        let not_found = |text: String| Error::new(ErrorKind::NotFound, text);
        if !request.filters.is_everything() && may_know {
            return not_found(format!(
                "no object under {:?} in {place} matches include and exclude, or the prefix is \
                 empty; `oci os object list` with --prefix lists the names",
                source.prefix.as_str()
            ))
            .caused_by(NothingSelected);
        }
        if let Some(principal) = route.principal() {
            let named = self.object_named(route, source, bucket).await;
            return named.unwrap_or_else(|| unseen(route, source, principal));
        }
        let (bucket, namespace) = (&source.bucket, &source.namespace);
        not_found(format!(
            "no object under {} in {place}: the listing was answered, so the prefix is empty or \
             misspelt; `oci-model-csi ls oci://{bucket}@{namespace}/` lists the bucket's models",
            if source.prefix.as_str().is_empty() { "/" } else { source.prefix.as_str() },
        ))
        .caused_by(EmptyPrefix)
    }

    /// The error that says that a prefix is the name of an object, if it is and if the identity of
    /// the route may read it.
    async fn object_named(
        &self,
        route: &Route,
        source: &ModelSource,
        bucket: &Bucket,
    ) -> Option<Error> {
        let name = source.prefix.as_object_name()?;
        let object = ObjectName::new(Arc::new(bucket.clone()), name);
        let client = route.client();
        match route.principal() {
            Some(_) => client.may_read(&object, None, false).await.ok()?,
            None => client.head(&object, None).await.map(drop).ok()?,
        }
        let place = format!("bucket {} of namespace {}", source.bucket, source.namespace);
        let text = format!(
            "prefix {name:?} in {place} is an object, not a directory of objects: name its \
             directory, with include for this object only"
        );
        Some(Error::new(ErrorKind::NotFound, text).caused_by(NothingSelected))
    }
}

/// Whether this is the error of a prefix whose listing was answered, and has no object.
pub(crate) fn is_of_empty_prefix(error: &Error) -> bool {
    matches!(StdError::source(error), Some(cause) if cause.is::<EmptyPrefix>())
}
