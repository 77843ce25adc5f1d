//! A pod as a requester.

use std::fmt;

/// The service account of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name of the service account.
    pub service_account: String,
    /// Its UID, where the token has it: the name may belong to another account later.
    pub account_uid: Option<String>,
    /// The pod's UID.
    pub pod_uid: String,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service account {}/{}", self.namespace, self.service_account)
    }
}
