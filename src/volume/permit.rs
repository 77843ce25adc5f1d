//! Checks a model against the administrator's current rules.

use tokio::sync::watch;

use crate::error::Result;
use crate::model::ModelRequest;
use crate::policy::{Policy, PolicyDecision, Subject};
use crate::resolve::{Requester, Resolver};

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
