//! Whether the administrator's rules, as they are at this moment, allow a model.

use tokio::sync::watch;

use crate::error::Result;
use crate::model::ModelRequest;
use crate::policy::{Policy, PolicyDecision, Subject};
use crate::resolve::{Requester, Resolver};

/// Allows, or says why not. Object Storage is asked for the own tenancy's
/// namespace only where a rule depends on it and it was not asked before.
///
/// # Errors
/// `Denied` by the rules; what [`Resolver::own_namespace`] says where it is needed.
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
