//! Clients of Object Storage at other locations and with other identities than the driver's own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::identity::Identity;
use super::{ObjectStorage, Settings};
use crate::error::{Error, Result};
use crate::source::{
    AuthMethod, BucketLocation, ObjectSource, RegionName, SourceConnector, StorageError,
};
use crate::sync::lock;

/// How many clients for other locations are kept; further ones are created per request.
const KEPT: usize = 64;

/// Connects clients of Object Storage; the driver's own is connected from the start.
pub struct StorageConnector {
    own: ObjectStorage,
    own_source: Arc<dyn ObjectSource>,
    /// The settings for clients of other identities.
    settings: Settings,
    /// One client per other identity, in the driver's own location. The next request
    /// retries a failed connection.
    others: Mutex<HashMap<AuthMethod, Arc<OnceCell<ObjectStorage>>>>,
    elsewhere: Mutex<HashMap<BucketLocation, Arc<dyn ObjectSource>>>,
}

impl StorageConnector {
    /// Connects the driver's own client. Others are connected at their first use.
    ///
    /// # Errors
    /// Those of [`ObjectStorage::connect`] for the driver's own settings.
    pub async fn connect(settings: Settings) -> Result<Self, StorageError> {
        let own = ObjectStorage::connect(settings.clone()).await?;
        let own_source: Arc<dyn ObjectSource> = Arc::new(own.clone());
        let (others, elsewhere) = (Mutex::default(), Mutex::default());
        Ok(Self { own, own_source, settings, others, elsewhere })
    }

    /// The driver's own client.
    pub fn own_client(&self) -> &ObjectStorage {
        &self.own
    }

    /// The driver's own identity, if requests are signed.
    pub fn identity(&self) -> Option<&Identity> {
        self.own.identity()
    }

    async fn is_at(&self, place: &BucketLocation, region: &RegionName) -> Result<bool> {
        let here = place.region.is_none() && place.endpoint.is_none();
        let configured = if here { self.settings.region.as_ref() } else { place.region.as_ref() };
        if configured.is_some_and(|configured| self.settings.same_region(configured, region)) {
            return Ok(true);
        }
        // This includes a region that the identity's services reported.
        Ok(here && self.own.is_in(region).await?)
    }

    async fn client(&self, place: &BucketLocation) -> Result<Arc<dyn ObjectSource>> {
        if *place == BucketLocation::default() {
            return Ok(self.own());
        }
        if let Some(kept) = self.elsewhere().get(place) {
            return Ok(Arc::clone(kept));
        }
        let identity = match place.auth {
            Some(method) if method != self.own.method() => self.other(method, place).await?,
            _ => self.own.clone(),
        };
        let client = identity.at(place.region.as_ref(), place.endpoint.as_deref())?;
        let client: Arc<dyn ObjectSource> = Arc::new(client);
        let mut elsewhere = self.elsewhere();
        if elsewhere.len() < KEPT {
            // A concurrent request may have inserted a client; both use that one.
            return Ok(Arc::clone(elsewhere.entry(place.clone()).or_insert(client)));
        }
        Ok(client)
    }

    /// The client of another identity, in the driver's own location.
    async fn other(&self, method: AuthMethod, place: &BucketLocation) -> Result<ObjectStorage> {
        let cell = {
            let mut others = lock(&self.others);
            Arc::clone(others.entry(method).or_default())
        };
        let connecting = || async {
            let mut settings = Settings { auth: method, ..self.settings.clone() };
            // Any location will do to create it; the caller sets the final one.
            settings.region = settings.region.or_else(|| place.region.clone());
            if method != AuthMethod::InstancePrincipal && settings.region.is_none() {
                let location = self.own.location().await?;
                if location.contains("://") {
                    settings.endpoint = Some(location);
                } else {
                    settings.region = Some(location.parse()?);
                }
            }
            Ok::<_, StorageError>(ObjectStorage::connect(settings).await?.beside(&self.own))
        };
        let connected = cell.get_or_try_init(connecting).await;
        Ok(connected
            .map_err(|error| Error::from(error).context(format!("reading as {method}")))?
            .clone())
    }

    fn elsewhere(&self) -> MutexGuard<'_, HashMap<BucketLocation, Arc<dyn ObjectSource>>> {
        lock(&self.elsewhere)
    }
}

impl SourceConnector for StorageConnector {
    fn own(&self) -> Arc<dyn ObjectSource> {
        Arc::clone(&self.own_source)
    }

    fn source<'a>(
        &'a self,
        place: &'a BucketLocation,
    ) -> BoxFuture<'a, Result<Arc<dyn ObjectSource>>> {
        self.client(place).boxed()
    }

    fn is_in<'a>(
        &'a self,
        place: &'a BucketLocation,
        region: &'a RegionName,
    ) -> BoxFuture<'a, Result<bool>> {
        self.is_at(place, region).boxed()
    }
}
