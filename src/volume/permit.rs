//! Checks a model against the administrator's current rules.

use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::model::ModelRequest;
use crate::policy::{Policy, PolicyDecision, Subject};
use crate::resolve::{Requester, Resolver, Route, is_of_empty_prefix};

/// Checks whether the rules allow the model. Asks Object Storage for the own
/// tenancy's namespace only if a rule depends on it and it is not known yet.
///
/// # Errors
/// `Denied` by the rules; those of [`Resolver::own_namespace`] if it is needed.
pub(super) async fn permit(
    policy: &watch::Receiver<Policy>,
    resolver: &Resolver,
    (who, caller): (Subject<'_>, Requester<'_>),
    request: &ModelRequest,
) -> Result<()> {
    let policy = policy.borrow().clone();
    if policy.check(who, request, None)? == PolicyDecision::NeedsOwnNamespace {
        let own = resolver.own_namespace(caller).await?;
        policy.check(who, request, Some(&own))?;
    }
    Ok(())
}

/// Adds to the error of an empty prefix that an object has its name, for requesters whom the
/// rules allow the directory of both.
pub(super) async fn or_object(
    policy: &watch::Receiver<Policy>,
    resolver: &Resolver,
    asking: (Subject<'_>, Requester<'_>),
    (request, route): (&ModelRequest, &Route),
    error: Error,
) -> Error {
    if !is_of_empty_prefix(&error) {
        return error;
    }
    let beside = ModelRequest { prefix: request.prefix.parent(), ..request.clone() };
    match permit(policy, resolver, asking, &beside).await {
        Ok(()) => resolver.or_object(error, request, route).await,
        Err(_) => error,
    }
}

/// Whether every pod of the cluster may mount a model: the rules allow it to all of them, and its
/// bucket is not read with identities of their own. `false` if that cannot be found out.
pub async fn is_for_every_pod(
    policy: &watch::Receiver<Policy>,
    resolver: &Resolver,
    request: &ModelRequest,
) -> bool {
    if !matches!(resolver.needs_pod(request).await, Ok(false)) {
        return false;
    }
    let policy = policy.borrow().clone();
    let own = match policy.rules() {
        0 => None,
        _ => resolver.own_namespace(Requester::Driver).await.ok(),
    };
    policy.allows_every_pod(request, own.as_ref())
}
