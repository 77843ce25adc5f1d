//! Pods that read with their own service accounts.

use std::path::Path;
use std::time::Duration;

use localstore::{LocalStore, Operation};

use super::driver::Setup;
use super::kubelet::{Kubelet, Volume};

pub(crate) const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A driver whose own identity is not that of any pod.
pub(crate) fn setup(scratch: &Path, store: &LocalStore) -> Setup {
    let mut setup = Setup::new(scratch, store);
    setup.auth = "oke_workload_identity";
    setup.arguments = vec!["--oke-endpoint".to_owned(), store.endpoint()];
    setup
}

/// A pod of this namespace as kubelet presents it, with its token.
pub(crate) fn pod(
    kubelet: &Kubelet,
    store: &LocalStore,
    n: u32,
    team: &str,
    attributes: &[(&str, &str)],
) -> Volume {
    of_team(kubelet.inline(&n.to_string(), attributes), store, team)
}

pub(crate) fn of_team(mut volume: Volume, store: &LocalStore, team: &str) -> Volume {
    team.clone_into(&mut volume.namespace);
    renew(&mut volume, store, HOUR);
    volume
}

/// Renews the token, as kubelet does before every call whose token is old.
pub(crate) fn renew(volume: &mut Volume, store: &LocalStore, ttl: Duration) {
    let token = store.service_account_token(&volume.namespace, "default", Some(&volume.uid), ttl);
    let tokens = serde_json::json!({"": {
        "token": token.unwrap(), "expirationTimestamp": "2099-01-01T00:00:00Z",
    }});
    volume.attributes.insert(TOKENS.to_owned(), tokens.to_string());
}

pub(crate) fn caller(team: &str) -> String {
    format!("system:serviceaccount:{team}:default")
}

/// Bytes of objects that were sent.
pub(crate) fn sent(store: &LocalStore) -> u64 {
    store.stats().object_bytes.values().sum()
}

/// The callers of requests to the bucket.
pub(crate) fn callers(store: &LocalStore, operation: Operation) -> Vec<String> {
    let asked = store.requests().into_iter().filter(|one| one.operation == operation);
    let mut callers: Vec<_> = asked.filter_map(|one| one.caller).collect();
    callers.dedup();
    callers
}
