//! Listings: one for all who ask for a prefix as the same identity, whatever
//! their filters, in memory that is taken before it is listed.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::authorize::Authorizer;
use super::known_buckets::{Asked, KnownBuckets};
use super::outage::Pulse;
use super::stores::Route;
use crate::budget::{Budget, Permit, memory_limit};
use crate::cache::flight::{Flights, Ticket};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ListedObject, Listing, Source, Tenant, size_text};
use crate::oci::{self, Bucket, ObjectSummary, Workload};

/// A listing goes on this long without a caller.
const GRACE: Duration = Duration::from_secs(30);

/// What a listing may take before it needs a place among the large ones: some
/// thousands of objects, and the answer that is read.
const SMALL: u64 = 1 << 20;

/// What a manifest may take that needs no place: a thousand files.
pub(super) const SMALL_MANIFEST: u64 = 256 << 10;

/// How long memory is waited for before the caller is to come again: whoever
/// waits holds what it has listed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A prefix as one identity sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    identity: String,
    workload: Option<Workload>,
    location: String,
    bucket: Bucket,
    prefix: String,
}

/// A complete listing, and its memory.
pub(super) struct Held {
    pub(super) listing: Listing,
    permit: Permit,
}

/// The listings under way, and the memory for them and what is made of them.
#[derive(Clone)]
pub(super) struct Listings(Arc<Inner>);

struct Inner {
    flights: Flights<Key, Pulse, Arc<Held>>,
    buckets: Arc<KnownBuckets>,
    authorizer: Arc<Authorizer>,
    max_objects: usize,
    small: Budget,
    large: Budget,
    manifests: Budget,
}

impl Listings {
    pub(super) fn new(
        max_objects: usize,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
        buckets: &Arc<KnownBuckets>,
        authorizer: &Arc<Authorizer>,
    ) -> Self {
        // Of the rest, downloads take the most.
        let part = memory_limit() / 32;
        Self(Arc::new(Inner {
            flights: Flights::new(GRACE, tasks.clone(), shutdown.clone()),
            buckets: Arc::clone(buckets),
            authorizer: Arc::clone(authorizer),
            max_objects,
            small: Budget::new("listings", (part * 2).max(SMALL * 4)),
            large: Budget::new("large listings", part * 5),
            manifests: Budget::new("large models", part * 10),
        }))
    }

    /// Joins the listing of this prefix, or starts it.
    pub(super) fn start(
        &self,
        route: &Route,
        source: &Source,
        title: &str,
    ) -> Ticket<Pulse, Arc<Held>> {
        let bucket = Bucket::new(source.namespace.as_str(), source.bucket.as_str());
        let key = Key {
            identity: route.client().method().to_string(),
            workload: route.workload().cloned(),
            location: route.location().to_owned(),
            bucket: bucket.clone(),
            prefix: source.prefix.as_str().to_owned(),
        };
        let (inner, route, title) = (Arc::clone(&self.0), route.clone(), title.to_owned());
        let source = source.clone();
        self.0.flights.join(key, Pulse::default(), move |pulse| async move {
            inner.list(&route, &source, &bucket, &title, &pulse).await.map(Arc::new)
        })
    }

    /// Memory for a manifest of this weight; none is needed for a small one.
    pub(super) async fn for_manifest(
        &self,
        tenant: &Tenant,
        weight: u64,
        pulse: &Pulse,
    ) -> Result<Option<Permit>> {
        match weight {
            0..=SMALL_MANIFEST => Ok(None),
            _ => wait_for(&self.0.manifests, tenant, weight, pulse).await.map(Some),
        }
    }
}

impl Inner {
    async fn list(
        &self,
        route: &Route,
        source: &Source,
        bucket: &Bucket,
        title: &str,
        pulse: &Pulse,
    ) -> Result<Held> {
        let once = || self.list_once(route, source, bucket, title, pulse);
        match self.buckets.ask(Asked::List, (route, bucket), once).await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(Refused { error, largest })) => {
                // Who may list need not be one who may read, and then hears of nothing else.
                let largest = largest.filter(|_| route.workload().is_some());
                self.authorizer.ask_for_one(&self.buckets, route, source, largest).await?;
                Err(error)
            }
            Err(error) => Err(self.authorizer.refusal(route, source, error)),
        }
    }

    /// What Object Storage said, and what that comes to.
    async fn list_once(
        &self,
        route: &Route,
        source: &Source,
        bucket: &Bucket,
        title: &str,
        pulse: &Pulse,
    ) -> oci::Result<std::result::Result<Held, Refused>> {
        let mut held = match wait_for(&self.small, route.tenant(), SMALL, pulse).await {
            Ok(permit) => Held { listing: Listing::new(source.prefix.clone()), permit },
            Err(error) => return Ok(Err(Refused { error, largest: None })),
        };
        let mut pages = route.client().pages(bucket, source.prefix.as_str(), self.max_objects);
        let mut most = SMALL;
        while let Some(page) = pages.next().await? {
            pulse.beat();
            if let Err(error) = self.add(&mut held, &mut most, page, (route, title, pulse)).await {
                return Ok(Err(Refused { error, largest: held.largest() }));
            }
        }
        if pages.truncated() {
            let error = Error::new(
                ErrorKind::Precondition,
                format!(
                    "{title} has more than {} objects (limits.maxObjects): name a longer prefix, or \
                     ask the administrator to raise the limit",
                    self.max_objects
                ),
            );
            return Ok(Err(Refused { error, largest: held.largest() }));
        }
        held.permit.shrink(held.listing.weight());
        Ok(Ok(held))
    }

    /// Adds a page, with a place among the large listings once it is one.
    async fn add(
        &self,
        held: &mut Held,
        most: &mut u64,
        page: Vec<ObjectSummary>,
        (route, title, pulse): (&Route, &str, &Pulse),
    ) -> Result<()> {
        held.listing.push(page.into_iter().map(listed))?;
        let weight = held.listing.weight();
        if weight > *most && *most == SMALL {
            let large = self.large.most();
            held.permit = wait_for(&self.large, route.tenant(), large, pulse).await?;
            *most = large;
        }
        if weight > *most {
            return Err(too_long(title, *most));
        }
        Ok(())
    }
}

/// Why there is no listing, and whom it would tell.
struct Refused {
    error: Error,
    largest: Option<ObjectSummary>,
}

impl Held {
    /// The largest object, whose bytes are worth the most.
    pub(super) fn largest(&self) -> Option<ObjectSummary> {
        let (name, size, etag) = self.listing.largest()?;
        Some(ObjectSummary { name, size, etag, ..ObjectSummary::default() })
    }
}

/// Takes memory, and says meanwhile that this is no outage.
async fn wait_for(budget: &Budget, tenant: &Tenant, bytes: u64, pulse: &Pulse) -> Result<Permit> {
    let taking = budget.take(tenant, bytes);
    tokio::pin!(taking);
    let until = Instant::now() + PATIENCE;
    loop {
        tokio::select! {
            taken = &mut taking => return taken,
            () = tokio::time::sleep(Duration::from_secs(1)) => pulse.beat(),
        }
        if Instant::now() >= until {
            let text = format!(
                "waiting for {} of memory: {} are in use by other large models; it is tried again",
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
             name a longer prefix, or ask the administrator to raise the memory limit of the \
             driver's container",
            size_text(most)
        ),
    )
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
