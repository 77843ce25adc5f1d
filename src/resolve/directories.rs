//! The directories of buckets, listed once for all callers within a while: a thousand pods with
//! one misspelt prefix cost one listing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::Route;
use crate::error::Result;
use crate::flight::{Flights, Joined};
use crate::source::{AuthMethod, Bucket};
use crate::sync::lock;

/// How long a listing is used again. It only serves messages, so a new directory may be missing.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// The most listings that are kept.
const KEPT: usize = 64;

/// Location, bucket, the directory above, and as whom it is listed. Pods with an identity of their
/// own are never shown directories.
type Key = (String, Bucket, String, AuthMethod);

/// Directories as full names that end in `/`.
type Directories = Arc<[String]>;

/// The listings of the driver's own identities.
pub(super) struct DirectoryListings {
    flights: Flights<Key, (), Directories>,
    known: Arc<Mutex<HashMap<Key, (Instant, Directories)>>>,
}

impl Default for DirectoryListings {
    fn default() -> Self {
        Self { flights: Flights::detached(), known: Arc::default() }
    }
}

impl DirectoryListings {
    /// The directories directly below `parent`, as of this moment or a little before.
    ///
    /// # Errors
    /// Those of the listing.
    pub(super) async fn below(
        &self,
        route: &Route,
        bucket: &Bucket,
        parent: &str,
    ) -> Result<Directories> {
        let method = route.client().method();
        let key = (route.location().to_owned(), bucket.clone(), parent.to_owned(), method);
        let recent = || {
            let known = lock(&self.known);
            let (listed, found) = known.get(&key)?;
            (listed.elapsed() < KEPT_FOR).then(|| Arc::clone(found))
        };
        let (client, known, own) =
            (Arc::clone(route.client()), Arc::clone(&self.known), key.clone());
        let listing = |_| async move {
            let found: Directories = client.directories(&own.1, &own.2).await?.into();
            let mut known = lock(&known);
            if known.len() >= KEPT {
                known.retain(|_, (listed, _)| listed.elapsed() < KEPT_FOR);
            }
            if known.len() < KEPT {
                known.insert(own, (Instant::now(), Arc::clone(&found)));
            }
            Ok(found)
        };
        match self.flights.join_unless(key.clone(), (), recent, listing) {
            Joined::Known(found) => Ok(found),
            Joined::Flight(mut flight) => flight.completed().await,
        }
    }
}
