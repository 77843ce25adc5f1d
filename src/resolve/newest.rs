//! The newest cached revision of a request. A request without a namespace and one
//! that names the namespace of the driver's own tenancy mean the same, so a result
//! is recorded for both, and neither needs the network to find it.

use std::time::Duration;

use super::{Resolver, Route};
use crate::cache::{Cache, CachedModel};
use crate::error::Result;
use crate::model::{ModelKey, ModelRequest, NamespaceName};

/// How long to wait for the name of the own namespace if it is needed; this bounds
/// the delay of a mount during an outage.
const NAMESPACE: Duration = Duration::from_secs(1);

/// The newest cached revision of a request, if it is complete.
pub(super) async fn find(
    resolver: &Resolver,
    cache: &Cache,
    request: &ModelRequest,
    route: &Route,
) -> Result<Option<CachedModel>> {
    let found = cache.latest(&route.digest(request)).await?;
    // A record without a namespace means the own namespace at that time.
    let is_meant = |model: &CachedModel| {
        request.namespace.is_some() || !route.is_another(&model.summary.source.namespace)
    };
    let found = found.filter(is_meant);
    if found.is_some() || request.namespace.is_some() || !cache.has_models().await? {
        return Ok(found);
    }
    // Perhaps only requests that name the namespace were served until now.
    match tokio::time::timeout(NAMESPACE, resolver.source(request, route)).await {
        Ok(Ok(source)) => {
            cache.latest(&route.digest(&naming(request, Some(&source.namespace)))).await
        }
        _ => Ok(None),
    }
}

/// Records what a request got as its newest revision. Blocks.
pub(crate) fn record(
    cache: &Cache,
    request: &ModelRequest,
    route: &Route,
    model: &CachedModel,
) -> Result<()> {
    let source = &model.summary.source;
    let left_out = route.digest(&naming(request, None));
    // A record without a namespace means the own one.
    let is_own = request.namespace.is_none()
        || cache
            .recorded_latest(&left_out)?
            .is_some_and(|(key, revision)| key == ModelKey::of(route.scope(), source, &revision));
    if is_own {
        cache.record_latest(&left_out, model)?;
    }
    cache.record_latest(&route.digest(&naming(request, Some(&source.namespace))), model)
}

fn naming(request: &ModelRequest, namespace: Option<&NamespaceName>) -> ModelRequest {
    ModelRequest { namespace: namespace.cloned(), ..request.clone() }
}
