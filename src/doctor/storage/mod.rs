//! The way to Object Storage: identity, endpoint, clock, bucket, objects.

mod bucket;
mod identity;
mod network;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::speed::SpeedObject;
use super::{CheckId, Finding, Severity};
use crate::error::ErrorKind;
use crate::model::ModelRequest;
use crate::oci::{ObjectStorage, Settings, StorageConnector};
use crate::resolve::{ClientPool, ListedBucket, ResolveLimits, Resolver};
use crate::source::{AuthMethod, ObjectSource, StorageError, StorageErrorKind};

/// How to reach Object Storage, and what to look for there.
pub struct StorageView {
    /// The identity and the location.
    pub settings: Settings,
    /// Whether the settings are those of a driver, whose pods may have identities of their own.
    pub of_driver: bool,
    /// Buckets elsewhere that the configuration lists.
    pub buckets: Vec<ListedBucket>,
    /// The limits of one model.
    pub limits: ResolveLimits,
    /// The model to look at.
    pub model: Option<ModelRequest>,
}

/// What was found on the way to Object Storage.
pub struct StorageExamination {
    /// The findings, in the order in which a request meets their subjects.
    pub findings: Vec<Finding>,
    /// The model's objects, if they can be read.
    pub readable: Option<ReadableObjects>,
}

/// Objects that can be read, for measurements.
pub struct ReadableObjects {
    /// Their source.
    pub source: Arc<dyn ObjectSource>,
    /// The first ones that the listing has, at least one; none is in the archive tier.
    pub objects: Vec<SpeedObject>,
    /// The shape of the instance that reads them, if it is known.
    pub shape: Option<String>,
}

/// Looks at everything between this machine and the model.
pub async fn examine(view: StorageView) -> StorageExamination {
    let mut findings: Vec<Finding> = Vec::new();
    let connector = match StorageConnector::connect(view.settings.clone()).await {
        Ok(connector) => Arc::new(connector),
        Err(error) => {
            findings.push(of_storage(CheckId::Identity, &error));
            findings.extend(without_identity(view.settings).await);
            return StorageExamination { findings, readable: None };
        }
    };
    let client = own_client(&connector, view.of_driver);
    let (identity, principal) = identity::look(&client, &view.settings).await;
    let (reached, location) = network::reach(&client).await;
    findings.extend(network::proxy(&client, location.as_ref()).await);
    let answering = [Some(identity), location, reached.as_ref().map(network::clock)];
    let answering: Vec<Finding> = answering.into_iter().flatten().collect();
    let usable = answering.iter().all(|finding| finding.severity < Severity::Fault);
    findings.extend(answering);
    let mut readable = None;
    if client.needs_pod() {
        findings.push(Finding::skipped(CheckId::Bucket, bucket::ONLY_PODS));
    } else if usable {
        let (namespace, is_known) = namespace(&client).await;
        findings.push(namespace);
        if view.model.is_none() {
            let why = "no model is named: give its URI, oci://BUCKET/PREFIX";
            findings.push(Finding::skipped(CheckId::Bucket, why));
        }
        if let Some(request) = view.model.filter(|_| is_known) {
            let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
            let pool = ClientPool::new(connector, view.buckets);
            let resolver = Resolver::new(pool, view.limits, &tasks, &shutdown);
            let by_pods = principal.service_account.is_some() && view.of_driver;
            let asker = bucket::Asker { resolver: &resolver, client: &client, principal };
            let mut of_bucket = Vec::new();
            readable = asker.look(&request, &mut of_bucket).await;
            let as_warning =
                |finding: Finding| if by_pods { of_own_account(finding) } else { finding };
            findings.extend(of_bucket.into_iter().map(as_warning));
            shutdown.cancel();
        }
    }
    StorageExamination { findings, readable }
}

/// The client of this process. With workload identity it reads as the service account that this
/// process runs as; a driver need not have one.
fn own_client(connector: &StorageConnector, of_driver: bool) -> ObjectStorage {
    let client = connector.own_client();
    if of_driver && !client.has_own_account() { client.clone() } else { client.as_own_account() }
}

/// The finding about the driver's own service account, where pods read with theirs: what it may
/// not read, they may.
fn of_own_account(finding: Finding) -> Finding {
    let of_permission = matches!(finding.check, CheckId::Bucket | CheckId::Read);
    if !of_permission || finding.severity < Severity::Fault {
        return finding;
    }
    let what = format!("as the driver's own service account: {}", finding.what);
    let fix = finding.fix.unwrap_or_default();
    let fix = format!("only prefetches need that, since pods read as their own; {fix}");
    Finding::warning(finding.check, what, fix)
}

/// Looks at the endpoint and the clock when there is no credential, for which a wrong clock may be
/// the reason.
async fn without_identity(settings: Settings) -> Vec<Finding> {
    let unsigned = Settings { auth: AuthMethod::None, ..settings };
    // Without a region there is nothing to reach.
    let Ok(client) = ObjectStorage::connect(unsigned).await else { return Vec::new() };
    let (reached, location) = network::reach(&client).await;
    let proxy = network::proxy(&client, location.as_ref()).await;
    proxy.into_iter().chain(location).chain(reached.as_ref().map(network::clock)).collect()
}

async fn namespace(client: &ObjectStorage) -> (Finding, bool) {
    if client.identity().is_none() && client.known_namespace().is_none() {
        // Without a signature no tenancy is known, whose namespace this would be.
        let why = "requests are not signed: name the namespace in the URI, oci://BUCKET@NAMESPACE/";
        return (Finding::skipped(CheckId::Namespace, why), true);
    }
    let configured = client.known_namespace().is_some();
    match client.namespace().await {
        Ok(name) if configured => {
            (Finding::fine(CheckId::Namespace, format!("{name}, as configured")), true)
        }
        Ok(name) => (Finding::fine(CheckId::Namespace, format!("{name}, the tenancy's own")), true),
        Err(error) if error.kind() == StorageErrorKind::Unauthenticated => {
            (identity::refused(CheckId::Namespace, client, &error), false)
        }
        Err(error) => (of_storage(CheckId::Namespace, &error), false),
    }
}

/// An error as a fault: its remedy is what to do.
fn of_storage(check: CheckId, error: &StorageError) -> Finding {
    let kind = meaning(error);
    let what = error.clone().without_remedy().to_string();
    let fix = error.remedy().unwrap_or(match kind {
        ErrorKind::Unavailable => "run it again; if it stays, see docs/runbooks.md",
        _ => "see docs/errors.md",
    });
    Finding::fault(check, what, fix).meaning(kind)
}

fn meaning(error: &StorageError) -> ErrorKind {
    crate::Error::from(error.clone()).kind()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_drivers_own_account_may_not_read_is_a_warning_and_a_broken_model_a_fault() {
        let of = |check| of_own_account(Finding::fault(check, "403", "allow it"));
        assert_eq!(of(CheckId::Bucket).severity, Severity::Warning);
        assert!(of(CheckId::Read).fix.unwrap().ends_with("; allow it"));
        assert_eq!(of(CheckId::Model).severity, Severity::Fault);
        let fine = Finding::fine(CheckId::Bucket, "it can be listed");
        assert_eq!(of_own_account(fine.clone()), fine);
    }
}
