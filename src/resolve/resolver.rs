//! From a request to the exact set of object versions it means now.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::authorize::{Authorizer, Permission, unseen};
use super::client_pool::{ClientPool, Requester, Route};
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
use crate::oci::{self, Bucket, Workload};

/// Resolving goes on this long without a caller: long enough for the retry of
/// one that gave up early.
const GRACE: Duration = Duration::from_secs(30);

/// Listings that are arranged at once, two of them of one tenant: patterns and names that are made for it take seconds.
const ARRANGED_AT_ONCE: usize = 3;

/// What is too much for one model.
#[derive(Debug, Clone, Copy)]
pub struct ResolveLimits {
    /// Objects under the prefix.
    pub max_objects: usize,
    /// Bytes of the model; `None` for no limit.
    pub max_bytes: Option<u64>,
}

/// Asks Object Storage which revision of a model is current.
#[derive(Clone)]
pub struct Resolver(Arc<ResolverInner>);

struct ResolverInner {
    stores: ClientPool,
    limits: ResolveLimits,
    buckets: Arc<KnownBuckets>,
    listings: Listings,
    /// What a pod's own identity is answered is nobody else's.
    /// Nor does a tenant wait for memory or a place in the queue of another.
    flights: Flights<(RequestDigest, Option<Workload>, Tenant), LastAnswer, Arc<Manifest>>,
    authorizer: Arc<Authorizer>,
    /// Shared by namespace.
    arranging: FairSemaphore,
}

/// What came of a listing.
enum ArrangedListing {
    Nothing,
    /// It needs memory of this weight first.
    Large(u64),
    Manifest(Box<Manifest>),
}

impl Resolver {
    /// A resolver that reads through `stores`.
    pub fn new(
        stores: ClientPool,
        limits: ResolveLimits,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let flights = Flights::new(GRACE, tasks.clone(), shutdown.clone());
        let (buckets, authorizer) = (Arc::default(), Arc::default());
        Self(Arc::new(ResolverInner {
            stores,
            limits,
            listings: Listings::new(limits.max_objects, tasks, shutdown, &buckets, &authorizer),
            buckets,
            authorizer,
            flights,
            arranging: FairSemaphore::new(ARRANGED_AT_ONCE),
        }))
    }

    /// Where the request's model comes from.
    pub async fn source(&self, request: &ModelRequest, route: &Route) -> Result<ModelSource> {
        self.0.source(request, route).await
    }

    /// How a request is served in this cache scope; the same way is to be used
    /// for all that is asked of it.
    ///
    /// # Errors
    /// Those of [`ClientPool::route`].
    pub async fn route(&self, request: &ModelRequest, scope: &str) -> Result<Route> {
        self.0.stores.route(request, scope, Requester::Driver).await
    }

    /// As [`Resolver::route`], for somebody who asks with an identity of its own
    /// where the administrator wants that.
    ///
    /// # Errors
    /// Those of [`ClientPool::route`].
    pub async fn route_of(
        &self,
        caller: Requester<'_>,
        request: &ModelRequest,
        scope: &str,
    ) -> Result<Route> {
        self.0.stores.route(request, scope, caller).await
    }

    /// The Object Storage namespace of requests that name none.
    ///
    /// # Errors
    /// Those of [`ClientPool::namespace_for`].
    pub async fn own_namespace(&self, caller: Requester<'_>) -> Result<NamespaceName> {
        self.0.stores.namespace_for(caller).await
    }

    /// Whether this is known already to be another one than requests mean that name
    /// none.
    pub(super) fn is_another(&self, route: &Route, namespace: &NamespaceName) -> bool {
        self.0.stores.is_another(route, namespace)
    }

    /// Whether only a pod's own identity may read the request's bucket.
    ///
    /// # Errors
    /// Those of [`ClientPool::route`].
    pub async fn needs_pod(&self, request: &ModelRequest) -> Result<bool> {
        self.0.stores.needs_pod(request).await
    }

    /// Whether the pod whose own identity this is may read this revision's own
    /// objects; nothing is asked where the driver's identity is used.
    ///
    /// # Errors
    /// Those of [`Authorizer::ask`].
    pub(super) async fn authorize(&self, route: &Route, manifest: &Manifest) -> Result<Permission> {
        self.0.authorizer.ask(&self.0.buckets, route, manifest).await
    }

    /// Whether this pod's service account has shown within the hour that it may
    /// read the model. The driver's own identity needs no proof.
    pub(super) fn was_authorized(&self, route: &Route, model: &ModelKey) -> bool {
        self.0.authorizer.was_granted(route, model)
    }

    /// The current revision. Callers that ask for the same at the same time
    /// share one listing.
    ///
    /// # Errors
    /// `NotFound` when nothing is selected (the message names both causes that
    /// a 404 has); `Precondition` when what is selected cannot be a tree;
    /// `Unavailable` when Object Storage cannot be asked.
    pub async fn resolve(&self, request: &ModelRequest, route: &Route) -> Result<Arc<Manifest>> {
        self.start(request, route).completed().await
    }

    /// As [`Resolver::resolve`], for callers that watch how it goes on.
    pub(super) fn start(
        &self,
        request: &ModelRequest,
        route: &Route,
    ) -> Waiter<LastAnswer, Arc<Manifest>> {
        let (inner, request, route) = (Arc::clone(&self.0), request.clone(), route.clone());
        let key = (route.digest(&request), route.workload().cloned(), route.tenant().clone());
        self.0.flights.join(key, LastAnswer::default(), move |pulse| async move {
            inner.ask(&request, &route, &pulse).await.map(Arc::new)
        })
    }
}

impl ResolverInner {
    async fn source(&self, request: &ModelRequest, route: &Route) -> Result<ModelSource> {
        let location = route.location().to_owned();
        let namespace = match &request.namespace {
            Some(namespace) => namespace.clone(),
            None => self.stores.own_namespace(route).await?,
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
        let mut listing = self.listings.start(route, &source, &request.title());
        pulse.follow(Arc::clone(&listing.progress().pulse));
        let held = listing.completed().await?;
        // Only what is held counts from here on: it ends with its last user.
        drop(listing);
        let largest = held.largest().filter(|_| route.workload().is_some());
        let manifest = match self.arrange(held, request, route, &source, pulse).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => {
                // What there is to be selected from is for those to know who may read it.
                let may_know = route.workload().is_none() || largest.is_some();
                self.authorizer.ask_for_one(&self.buckets, route, &source, largest).await?;
                return Err(self.nothing(request, route, &source, &bucket, may_know).await);
            }
            Err(error) => {
                self.authorizer.ask_for_one(&self.buckets, route, &source, largest).await?;
                return Err(error);
            }
        };
        // Who may list need not be one who may read. Of a model without files the
        // listing has shown everything.
        if let Some(workload) = route.workload().filter(|_| !manifest.files.is_empty())
            && self.authorizer.ask(&self.buckets, route, &manifest).await? != Permission::Granted
        {
            return Err(unseen(&manifest.source, workload));
        }
        Ok(manifest)
    }

    /// The manifest of what the request's filters select, off the reactor.
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
                // Nothing is built before there is memory for it.
                ArrangedListing::Large(weight) => {
                    let taken = self.listings.for_manifest(route.tenant(), weight, pulse).await?;
                    permit = Some((weight, taken));
                }
            }
        }
    }

    /// Why nothing is selected, as far as it can be told: `may_know` is whether who
    /// asks has shown to be one who may read what is there.
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
                "nothing under {:?} in {place} is selected by include and exclude, or nothing is \
                 there; `oci os object list` with --prefix shows the names",
                source.prefix.as_str()
            ));
        }
        if let Some(name) = source.prefix.as_object_name() {
            let object = oci::ObjectName::new(Arc::new(bucket.clone()), name);
            let client = route.client();
            let is_object = match route.workload() {
                Some(_) => client.may_read(&object, None, false).await.is_ok(),
                None => client.head_object(&object, None).await.is_ok(),
            };
            if is_object {
                return not_found(format!(
                    "prefix {name:?} in {place} is an object, not a directory of objects: name \
                     the directory that holds it, with include for this object only"
                ));
            }
        }
        if let Some(workload) = route.workload() {
            return unseen(source, workload);
        }
        not_found(format!(
            "no object under {} in {place}, or the driver may not see it; to allow it: {}",
            if source.prefix.as_str().is_empty() { "/" } else { source.prefix.as_str() },
            oci::statement(source.bucket.as_str(), route.client().method(), None)
        ))
    }
}
