//! The unit of accounting: slots, listings, memory, events and failures are
//! counted per tenant, so that the problems of one stay with that one.

use std::fmt;
use std::sync::Arc;

use super::PodIdentity;

/// A tenant of the node: a Kubernetes namespace, or the driver itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tenant {
    /// The driver: prefetches, and the commands of the node's administrator.
    Driver,
    /// All pods and claims of a Kubernetes namespace.
    Namespace(Arc<str>),
    /// All pods whose namespace kubelet does not send.
    Unknown,
}

impl Tenant {
    /// The tenant of a pod, as kubelet describes it.
    pub fn of_pod(pod: Option<&PodIdentity>) -> Self {
        pod.map_or(Self::Unknown, |pod| Self::of_namespace(&pod.namespace))
    }

    /// The tenant of a Kubernetes namespace.
    pub fn of_namespace(namespace: &str) -> Self {
        Self::Namespace(namespace.into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver => f.write_str("the driver"),
            Self::Namespace(namespace) => write!(f, "namespace {namespace}"),
            Self::Unknown => f.write_str("pods of unknown namespaces"),
        }
    }
}
