//! Listings of prefixes. Requests with the same identity share one listing of a
//! prefix, whatever their filters. Memory is reserved before the listing.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::authorize::Authorizer;
use super::client_pool::Route;
use super::known_buckets::{BucketOperation, KnownBuckets};
use super::outage::LastAnswer;
use crate::budget::{MemoryBudget, MemoryPermit, memory_limit};
use crate::error::{Error, ErrorKind, Result};
use crate::flight::{Flights, Waiter};
use crate::model::{ListedObject, ModelSource, ObjectListing, Tenant, size_text};
use crate::source::{Bucket, ObjectSummary, PodPrincipal, StorageError};

/// How long a listing continues without a waiter.
const GRACE: Duration = Duration::from_secs(30);

/// The memory of a small listing in bytes: some thousands of objects, and the answer
/// being read. A larger one needs a permit of the large listings.
const SMALL: u64 = 1 << 20;

/// The memory of a manifest that needs no permit, in bytes: a thousand files.
pub(super) const SMALL_MANIFEST: u64 = 256 << 10;

/// How long to wait for memory before the caller must retry: a waiting listing holds
/// the memory of what it has listed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many tenants of one listing queue for memory; further ones wait for these.
const TENANTS: usize = 64;

/// A prefix as one identity sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    identity: String,
    principal: Option<PodPrincipal>,
    location: String,
    bucket: Bucket,
    prefix: String,
}

/// The waiters of a listing.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    pub(super) pulse: Arc<LastAnswer>,
    tenants: watch::Sender<Vec<Tenant>>,
}

impl Waiters {
    fn add(&self, tenant: &Tenant) {
        self.tenants.send_if_modified(|tenants| {
            let is_new = tenants.len() < TENANTS && !tenants.contains(tenant);
            if is_new {
                tenants.push(tenant.clone());
            }
            is_new
        });
    }

    /// Takes memory as soon as it is the turn of one of the tenants, including those
    /// that join meanwhile: memory that the first one already uses must not delay the others.
    async fn take(&self, budget: &MemoryBudget, bytes: u64) -> Result<MemoryPermit> {
        let mut tenants = self.tenants.subscribe();
        let mut taking = FuturesUnordered::new();
        loop {
            let known = tenants.borrow_and_update().clone();
            for tenant in known.into_iter().skip(taking.len()) {
                taking.push(async move { budget.take(&tenant, bytes).await });
            }
            tokio::select! {
                Some(taken) = taking.next() => return taken,
                // The sender is this value's own.
                _ = tenants.changed() => {}
            }
        }
    }
}

/// A complete listing with its memory permit.
pub(super) struct HeldListing {
    pub(super) listing: ObjectListing,
    permit: MemoryPermit,
}

/// The running listings, and the memory budgets for listings and manifests.
#[derive(Clone)]
pub(super) struct Listings(Arc<ListingsInner>);

struct ListingsInner {
    flights: Flights<Key, Waiters, Arc<HeldListing>>,
    buckets: Arc<KnownBuckets>,
    authorizer: Arc<Authorizer>,
    max_objects: usize,
    small: MemoryBudget,
    large: MemoryBudget,
    manifests: MemoryBudget,
}

impl Listings {
    pub(super) fn new(
        max_objects: usize,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
        buckets: &Arc<KnownBuckets>,
        authorizer: &Arc<Authorizer>,
    ) -> Self {
        // Downloads take most of the rest.
        let part = memory_limit() / 32;
        Self(Arc::new(ListingsInner {
            flights: Flights::new(GRACE, tasks.clone(), shutdown.clone()),
            buckets: Arc::clone(buckets),
            authorizer: Arc::clone(authorizer),
            max_objects,
            small: MemoryBudget::new("listings", (part * 2).max(SMALL * 4)),
            large: MemoryBudget::new("large listings", part * 5),
            manifests: MemoryBudget::new("large models", part * 10),
        }))
    }

    /// Joins the listing of this prefix, or starts it.
    pub(super) fn start(
        &self,
        route: &Route,
        source: &ModelSource,
    ) -> Waiter<Waiters, Arc<HeldListing>> {
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let key = Key {
            identity: route.client().method().to_string(),
            principal: route.principal().cloned(),
            location: route.location().to_owned(),
            bucket: bucket.clone(),
            prefix: source.prefix.as_str().to_owned(),
        };
        let tenant = route.tenant();
        let inner = Arc::clone(&self.0);
        let route = route.clone();
        let source = source.clone();
        let waiter = self.0.flights.join(key, Waiters::default(), move |waiters| async move {
            inner.list(&route, &source, &bucket, &waiters).await.map(Arc::new)
        });
        waiter.progress().add(tenant);
        waiter
    }

    /// Takes memory for a manifest of this weight; a small one needs none.
    pub(super) async fn for_manifest(
        &self,
        tenant: &Tenant,
        weight: u64,
        pulse: &LastAnswer,
    ) -> Result<Option<MemoryPermit>> {
        match weight {
            0..=SMALL_MANIFEST => Ok(None),
            _ => {
                let budget = &self.0.manifests;
                wait_for(budget, budget.take(tenant, weight), weight, pulse).await.map(Some)
            }
        }
    }
}

impl ListingsInner {
    async fn list(
        &self,
        route: &Route,
        source: &ModelSource,
        bucket: &Bucket,
        waiters: &Waiters,
    ) -> Result<HeldListing> {
        let once = || self.list_once(route, source, bucket, waiters);
        match self.buckets.ask(BucketOperation::List, (route, bucket), once).await {
            Ok(ListingOutcome::Listed(held)) => Ok(held),
            Ok(ListingOutcome::Refused { error, largest }) => {
                // An identity that may list may not be allowed to read; it must not learn anything else.
                let largest = largest.filter(|_| route.principal().is_some());
                self.authorizer.ask_for_one(&self.buckets, route, source, largest).await?;
                Err(error)
            }
            Err(error) => Err(self.authorizer.refusal(route, source, error)),
        }
    }

    /// Lists the prefix once.
    async fn list_once(
        &self,
        route: &Route,
        source: &ModelSource,
        bucket: &Bucket,
        waiters: &Waiters,
    ) -> Result<ListingOutcome, StorageError> {
        let small = waiters.take(&self.small, SMALL);
        let mut held = match wait_for(&self.small, small, SMALL, &waiters.pulse).await {
            Ok(permit) => {
                HeldListing { listing: ObjectListing::new(source.prefix.clone()), permit }
            }
            Err(error) => return Ok(ListingOutcome::Refused { error, largest: None }),
        };
        let mut pages = route.client().pages(bucket, source.prefix.as_str(), self.max_objects);
        let mut most = SMALL;
        while let Some(page) = pages.next().await? {
            waiters.pulse.beat();
            if let Err(error) = self.add(&mut held, &mut most, page, source, waiters).await {
                return Ok(ListingOutcome::Refused { error, largest: held.largest() });
            }
        }
        if pages.truncated() {
            let error = Error::new(
                ErrorKind::Precondition,
                format!(
                    "{} has more than {} objects (limits.maxObjects): name a longer prefix, or ask \
                     the administrator to raise the limit",
                    source.title(),
                    self.max_objects
                ),
            );
            return Ok(ListingOutcome::Refused { error, largest: held.largest() });
        }
        held.permit.shrink(held.listing.weight());
        Ok(ListingOutcome::Listed(held))
    }

    /// Adds a page; takes a permit of the large listings once the listing is large.
    async fn add(
        &self,
        held: &mut HeldListing,
        most: &mut u64,
        page: Vec<ObjectSummary>,
        source: &ModelSource,
        waiters: &Waiters,
    ) -> Result<()> {
        held.listing.push(page.into_iter().map(ListedObject::from))?;
        let weight = held.listing.weight();
        if weight > *most && *most == SMALL {
            let large = self.large.most();
            let taking = waiters.take(&self.large, large);
            held.permit = wait_for(&self.large, taking, large, &waiters.pulse).await?;
            *most = large;
        }
        if weight > *most {
            return Err(too_long(&source.title(), *most));
        }
        Ok(())
    }
}

/// The outcome of a listing that Object Storage answered.
enum ListingOutcome {
    Listed(HeldListing),
    /// The driver's limits refuse it. Only an identity that can read the largest object
    /// may learn the reason.
    Refused {
        error: Error,
        largest: Option<ObjectSummary>,
    },
}

impl HeldListing {
    /// The largest object.
    pub(super) fn largest(&self) -> Option<ObjectSummary> {
        let (name, size, etag) = self.listing.largest()?;
        Some(ObjectSummary { name, size, etag, ..ObjectSummary::default() })
    }
}

/// Waits for memory, and signals meanwhile that this is not an outage.
async fn wait_for(
    budget: &MemoryBudget,
    taking: impl Future<Output = Result<MemoryPermit>>,
    bytes: u64,
    pulse: &LastAnswer,
) -> Result<MemoryPermit> {
    tokio::pin!(taking);
    let until = Instant::now() + PATIENCE;
    loop {
        tokio::select! {
            taken = &mut taking => return taken,
            () = tokio::time::sleep(Duration::from_secs(1)) => pulse.beat(),
        }
        if Instant::now() >= until {
            let text = format!(
                "waiting for {} of memory: {} are in use by other large models; the call will be \
                 retried",
                size_text(bytes),
                size_text(budget.taken())
            );
            return Err(Error::new(ErrorKind::InProgress, text));
        }
    }
}

fn too_long(title: &str, most: u64) -> Error {
    Error::new(
        ErrorKind::Precondition,
        format!(
            "the names under {title} take more than the {} of memory that one listing may have: \
             name a longer prefix, or ask the administrator to raise the driver's memory limit \
             (--heap-limit, or that of its container)",
            size_text(most)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::super::{ClientPool, Requester};
    use super::*;
    use crate::model::{BucketName, ModelRequest, Prefix};
    use oci_model_csi_fake_source::FakeSource;

    #[tokio::test]
    async fn a_listing_waits_for_memory_no_longer_than_any_of_its_tenants() {
        let store = FakeSource::new(&[("m/w", 10)]);
        let pool = ClientPool::new(Arc::new(store.clone()), Vec::new());
        let listings = Listings::new(
            100,
            &TaskTracker::new(),
            &CancellationToken::new(),
            &Arc::default(),
            &Arc::default(),
        );
        let prefix = Prefix::parse("m/").unwrap();
        let request = ModelRequest::of(None, BucketName::parse("b").unwrap(), prefix);
        let route = async |namespace| {
            let caller = Requester::Claim { namespace: Some(namespace) };
            pool.route(&request, "", caller).await.unwrap()
        };
        let (greedy, victim) = (route("greedy").await, route("victim").await);
        let source = ModelSource {
            location: victim.location().to_owned(),
            namespace: victim.own_namespace().await.unwrap(),
            bucket: request.bucket.clone(),
            prefix: request.prefix.clone(),
        };
        let small = &listings.0.small;
        let _all = small.take(greedy.tenant(), small.most()).await.unwrap();
        let mut first = listings.start(&greedy, &source);
        let waits = tokio::time::timeout(Duration::from_millis(100), first.completed());
        assert!(waits.await.is_err(), "it has half of the memory already");
        let mut second = listings.start(&victim, &source);
        let completed = tokio::time::timeout(Duration::from_secs(20), second.completed());
        assert_eq!(completed.await.unwrap().unwrap().listing.len(), 1);
        assert!(second.joined() && first.completed().await.is_ok(), "one listing for both");
        assert_eq!(store.listings(), 1);
    }
}
