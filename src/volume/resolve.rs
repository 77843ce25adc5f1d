//! From a request to the exact set of object versions it means now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::proofs::Proofs;
use super::stores::{Caller, Route, Stores};
use crate::blocking::blocking;
use crate::cache::flight::{Flights, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{
    ListedObject, Manifest, ModelRequest, NamespaceName, RequestDigest, Source, Tree, size_text,
};
use crate::oci::{self, Bucket, ObjectSummary, Workload};

/// Resolving goes on this long without a caller: long enough for the retry of
/// one that gave up early.
const GRACE: Duration = Duration::from_secs(30);

/// How long a bucket that was listed is believed to exist, against a 404.
const BUCKET_REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// The delays before asking again for a bucket that flickers.
const FLICKER: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

/// Listings that are arranged at once: patterns and names that are made for it take seconds.
const ARRANGED_AT_ONCE: usize = 2;

/// What is too much for one model.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Objects under the prefix.
    pub max_objects: usize,
    /// Bytes of the model; `None` for no limit.
    pub max_bytes: Option<u64>,
}

/// Asks Object Storage which revision of a model is current.
#[derive(Clone)]
pub struct Resolver(Arc<Inner>);

struct Inner {
    stores: Stores,
    limits: Limits,
    /// When a bucket was listed last.
    seen: Mutex<HashMap<(String, Bucket), Instant>>,
    /// What a pod's own identity is answered is nobody else's.
    flights: Flights<(RequestDigest, Option<Workload>), Pulse, Arc<Manifest>>,
    proofs: Proofs,
    arranging: Arc<Semaphore>,
}

/// When Object Storage answered last: a long listing is no outage.
#[derive(Debug)]
pub(super) struct Pulse(Mutex<Instant>);

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Pulse {
    fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The last answer, or the start.
    pub(super) fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver {
    /// A resolver that reads through `stores`.
    pub fn new(
        stores: Stores,
        limits: Limits,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Self {
        let flights = Flights::new(GRACE, tasks.clone(), shutdown.clone());
        Self(Arc::new(Inner {
            stores,
            limits,
            seen: Mutex::default(),
            proofs: Proofs::default(),
            flights,
            arranging: Arc::new(Semaphore::new(ARRANGED_AT_ONCE)),
        }))
    }

    /// Where the request's model comes from.
    pub async fn source(&self, request: &ModelRequest, route: &Route) -> Result<Source> {
        self.0.source(request, route).await
    }

    /// How a request is served in this cache scope; the same way is to be used
    /// for all that is asked of it.
    ///
    /// # Errors
    /// Those of [`Stores::route`].
    pub async fn route(&self, request: &ModelRequest, scope: &str) -> Result<Route> {
        self.0.stores.route(request, scope, Caller::Driver).await
    }

    /// As [`Resolver::route`], for somebody who asks with an identity of its own
    /// where the administrator wants that.
    ///
    /// # Errors
    /// Those of [`Stores::route`].
    pub async fn route_of(
        &self,
        caller: Caller<'_>,
        request: &ModelRequest,
        scope: &str,
    ) -> Result<Route> {
        self.0.stores.route(request, scope, caller).await
    }

    /// The Object Storage namespace of requests that name none.
    ///
    /// # Errors
    /// Those of [`Stores::namespace_for`].
    pub async fn own_namespace(&self, caller: Caller<'_>) -> Result<NamespaceName> {
        self.0.stores.namespace_for(caller).await
    }

    /// Whether only a pod's own identity may read the request's bucket.
    ///
    /// # Errors
    /// Those of [`Stores::route`].
    pub async fn needs_pod(&self, request: &ModelRequest) -> Result<bool> {
        self.0.stores.needs_pod(request).await
    }

    /// Asks whether the pod whose own identity this is may read what is under
    /// the prefix; nothing is asked where the driver's identity is used.
    ///
    /// # Errors
    /// What Object Storage or the identity service say.
    pub(super) async fn permit(&self, request: &ModelRequest, route: &Route) -> Result<()> {
        let Some(workload) = route.workload() else { return Ok(()) };
        let asked = self.0.look(request, route).await;
        self.0.proofs.note(workload, route.digest(request), &asked);
        asked
    }

    /// Whether this pod's service account could read the model before. The
    /// driver's own identity needs no proof.
    pub(super) fn was_permitted(&self, request: &ModelRequest, route: &Route) -> bool {
        let proved = |workload| self.0.proofs.has(workload, &route.digest(request));
        route.workload().is_none_or(proved)
    }

    /// The current revision. Callers that ask for the same at the same time
    /// share one listing.
    ///
    /// # Errors
    /// `NotFound` when nothing is selected (the message names both causes that
    /// a 404 has); `Precondition` when what is selected cannot be a tree;
    /// `Unavailable` when Object Storage cannot be asked.
    pub async fn resolve(&self, request: &ModelRequest, route: &Route) -> Result<Arc<Manifest>> {
        self.start(request, route).landed().await
    }

    /// As [`Resolver::resolve`], for callers that watch how it goes on.
    pub(super) fn start(
        &self,
        request: &ModelRequest,
        route: &Route,
    ) -> Ticket<Pulse, Arc<Manifest>> {
        let digest = route.digest(request);
        let (inner, request, route) = (Arc::clone(&self.0), request.clone(), route.clone());
        let key = (digest.clone(), route.workload().cloned());
        self.0.flights.join(key, Pulse::default(), move |pulse| async move {
            let asked = inner.ask(&request, &route, &pulse).await;
            if let Some(workload) = route.workload() {
                inner.proofs.note(workload, digest, &asked);
            }
            asked.map(Arc::new)
        })
    }
}

impl Inner {
    async fn source(&self, request: &ModelRequest, route: &Route) -> Result<Source> {
        let location = route.location().to_owned();
        let namespace = match &request.namespace {
            Some(namespace) => namespace.clone(),
            None => self.stores.own_namespace(route).await?,
        };
        let (bucket, prefix) = (request.bucket.clone(), request.prefix.clone());
        Ok(Source { location, namespace, bucket, prefix })
    }

    async fn ask(&self, request: &ModelRequest, route: &Route, pulse: &Pulse) -> Result<Manifest> {
        let source = self.source(request, route).await?;
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let listing = self.list(route, &bucket, source.prefix.as_str(), pulse).await?;
        if listing.truncated {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!(
                    "{} has more than {} objects (limits.maxObjects): name a longer prefix, or \
                     ask the administrator to raise the limit",
                    request.title(),
                    self.limits.max_objects
                ),
            ));
        }
        let Some(tree) = self.arrange(listing, request).await? else {
            return Err(self.nothing(request, route, &source, &bucket).await);
        };
        let bytes = tree.bytes();
        if self.limits.max_bytes.is_some_and(|most| bytes > most) {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!(
                    "{} is {} large, more than limits.maxModelSize allows",
                    request.title(),
                    size_text(bytes)
                ),
            ));
        }
        if let Some(file) = tree.files.first().filter(|_| route.workload().is_some()) {
            // Who may list need not be one who may read.
            let name = format!("{}{}", source.prefix, file.path);
            self.prove(route, bucket, &name, &file.etag).await?;
        }
        Ok(Manifest::new(source, route.scope(), tree))
    }

    /// The tree of a listing, off the reactor.
    async fn arrange(&self, listing: oci::Listing, request: &ModelRequest) -> Result<Option<Tree>> {
        let turn = Arc::clone(&self.arranging).acquire_owned().await;
        let turn = turn.map_err(|e| Error::internal(format!("arranging a listing: {e}")))?;
        let (prefix, filters) = (request.prefix.clone(), request.filters.clone());
        blocking(move || {
            let _turn = turn;
            Tree::arrange(listing.objects.into_iter().map(listed), &prefix, &filters)
        })
        .await
    }

    /// One object of the prefix, listed and asked for.
    async fn look(&self, request: &ModelRequest, route: &Route) -> Result<()> {
        let source = self.source(request, route).await?;
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let listing = route.client().list_objects(&bucket, source.prefix.as_str(), 1).await?;
        match listing.objects.first() {
            Some(object) => self.prove(route, bucket, &object.name, &object.etag).await,
            // The bucket moved on; that it was answered has to do.
            None => Ok(()),
        }
    }

    async fn prove(&self, route: &Route, bucket: Bucket, name: &str, etag: &str) -> Result<()> {
        let object = oci::ObjectName::new(Arc::new(bucket), name);
        match route.client().may_read(&object, etag).await {
            // Deleted just now, which is not refused.
            Err(error) if error.code() == Some("ObjectNotFound") => Ok(()),
            asked => Ok(asked?),
        }
    }

    /// Lists, and asks again when a bucket that was there within the hour is
    /// said not to be: the service is known to answer so for moments.
    async fn list(
        &self,
        route: &Route,
        bucket: &Bucket,
        prefix: &str,
        pulse: &Pulse,
    ) -> Result<oci::Listing> {
        let (client, place) = (route.client(), (route.location().to_owned(), bucket.clone()));
        let most = self.limits.max_objects;
        let on_page = || pulse.beat();
        for delay in FLICKER {
            match client.list_objects_watched(bucket, prefix, most, on_page).await {
                Err(error) if error.kind() == oci::ErrorKind::NotFound && self.saw(&place) => {
                    tracing::warn!(%error, "a bucket that was there is said to be gone; asking again");
                    tokio::time::sleep(delay).await;
                }
                other => {
                    if other.is_ok() {
                        self.lock().insert(place, Instant::now());
                    }
                    return Ok(other?);
                }
            }
        }
        Ok(client.list_objects_watched(bucket, prefix, most, on_page).await?)
    }

    fn saw(&self, place: &(String, Bucket)) -> bool {
        self.lock().get(place).is_some_and(|seen| seen.elapsed() < BUCKET_REMEMBERED)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(String, Bucket), Instant>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing is selected, as far as it can be told.
    async fn nothing(
        &self,
        request: &ModelRequest,
        route: &Route,
        source: &Source,
        bucket: &Bucket,
    ) -> Error {
        let place = format!("bucket {} of namespace {}", source.bucket, source.namespace);
        let not_found = |text: String| Error::new(ErrorKind::NotFound, text);
        if !request.filters.is_everything() {
            return not_found(format!(
                "nothing under {:?} in {place} is selected by include and exclude, or nothing is \
                 there; `oci os object list` with --prefix shows the names",
                source.prefix.as_str()
            ));
        }
        if let Some(name) = source.prefix.as_object_name() {
            let object = oci::ObjectName::new(Arc::new(bucket.clone()), name);
            if route.client().head_object(&object, None).await.is_ok() {
                return not_found(format!(
                    "prefix {name:?} in {place} is an object, not a directory of objects: name \
                     the directory that holds it, with include for this object only"
                ));
            }
        }
        if let Some(workload) = route.workload() {
            return not_found(format!(
                "no object under {:?} in {place}, which {workload} may list",
                source.prefix.as_str()
            ));
        }
        not_found(format!(
            "no object under {} in {place}, or the driver may not see it; to allow it: Allow \
             dynamic-group <the nodes' group> to read objects in compartment <the bucket's> where \
             target.bucket.name='{}'",
            if source.prefix.as_str().is_empty() { "/" } else { source.prefix.as_str() },
            source.bucket
        ))
    }
}

fn listed(object: ObjectSummary) -> ListedObject {
    // "Restored" can be read; what is being restored cannot yet.
    let archived = match object.archival_state.as_deref() {
        Some(state) => !state.eq_ignore_ascii_case("restored"),
        None => object.storage_tier.as_deref().is_some_and(|t| t.eq_ignore_ascii_case("archive")),
    };
    let (name, size, etag, md5) = (object.name, object.size, object.etag, object.md5);
    ListedObject { name, size, etag, md5, archived }
}
