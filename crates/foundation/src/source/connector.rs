//! From a location and an identity to a source.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{AuthMethod, ObjectSource, RegionName};
use crate::error::Result;

/// Where and as whom a bucket is read; what is `None` is the driver's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct BucketLocation {
    /// The region.
    pub region: Option<RegionName>,
    /// `http(s)://host[:port]` to use instead of the region's endpoint.
    pub endpoint: Option<String>,
    /// How requests are signed.
    pub auth: Option<AuthMethod>,
}

/// Connects sources at other locations and with other identities than the driver's own.
pub trait SourceConnector: Send + Sync {
    /// The driver's own source: its own location, read with its own identity.
    fn own(&self) -> Arc<dyn ObjectSource>;

    /// The source at this location.
    ///
    /// # Errors
    /// `Precondition` if the administrator's settings for it cannot be used; `Unavailable` if a
    /// service that is needed to find it cannot be reached.
    fn source<'a>(
        &'a self,
        place: &'a BucketLocation,
    ) -> BoxFuture<'a, Result<Arc<dyn ObjectSource>>>;

    /// Whether this location is in the region already.
    fn is_in<'a>(
        &'a self,
        place: &'a BucketLocation,
        region: &'a RegionName,
    ) -> BoxFuture<'a, Result<bool>>;
}
