//! What a pod, a claim or a command requests.

use super::{BucketName, Filters, NamespaceName, Prefix, RequestDigest, Revision};
use crate::error::{Error, Result};
use crate::source::{AuthMethod, RegionName};
use crate::text::shown;

/// When to check in Object Storage which revision is current.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// On every publish; changed objects are downloaded.
    #[default]
    Always,
    /// Only when no complete revision of the same request is cached.
    IfNotPresent,
    /// Never: an uncached model is `NotFound`.
    Never,
}

impl PullPolicy {
    /// Parses `Always`, `IfNotPresent` or `Never`, as Kubernetes spells them.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "Always" => Ok(Self::Always),
            "IfNotPresent" => Ok(Self::IfNotPresent),
            "Never" => Ok(Self::Never),
            _ => Err(Error::invalid(format!(
                "pullPolicy {:?} is invalid: expected Always, IfNotPresent or Never",
                shown(text, 50)
            ))),
        }
    }
}

/// Which pods share cached bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheScope {
    /// With every pod of the node.
    #[default]
    Cluster,
    /// With pods of the same Kubernetes namespace.
    Namespace,
}

impl CacheScope {
    /// Parses `cluster` or `namespace`.
    pub fn parse(text: &str) -> Result<Self> {
        match text {
            "cluster" => Ok(Self::Cluster),
            "namespace" => Ok(Self::Namespace),
            _ => Err(Error::invalid(format!(
                "cacheScope {:?} is invalid: expected cluster or namespace",
                shown(text, 50)
            ))),
        }
    }
}

/// The pod of a request, as kubelet describes it (`podInfoOnMount`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodIdentity {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Service account.
    pub service_account: String,
}

/// One model, as requested and before it is resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRequest {
    /// Object Storage namespace; `None`: the driver's own tenancy's.
    pub namespace: Option<NamespaceName>,
    /// Bucket.
    pub bucket: BucketName,
    /// Prefix.
    pub prefix: Prefix,
    /// The filters.
    pub filters: Filters,
    /// When to check Object Storage.
    pub pull_policy: PullPolicy,
    /// This exact revision or nothing.
    pub revision: Option<Revision>,
    /// Region of the bucket (administrators only).
    pub region: Option<RegionName>,
    /// Identity to read it with (administrators only).
    pub auth: Option<AuthMethod>,
    /// Which pods share the cached bytes (administrators only).
    pub scope: CacheScope,
}

impl ModelRequest {
    /// The request for everything under a prefix.
    pub fn of(namespace: Option<NamespaceName>, bucket: BucketName, prefix: Prefix) -> Self {
        Self {
            namespace,
            bucket,
            prefix,
            filters: Filters::default(),
            pull_policy: PullPolicy::default(),
            revision: None,
            region: None,
            auth: None,
            scope: CacheScope::default(),
        }
    }

    /// The scope's part of every cache id: empty for the whole cluster.
    ///
    /// A namespace scope without a trusted pod namespace is `Invalid`: the
    /// administrator excluded sharing between unknown namespaces.
    pub fn scope_id(&self, pod: Option<&PodIdentity>) -> Result<String> {
        match (self.scope, pod) {
            (CacheScope::Cluster, _) => Ok(String::new()),
            (CacheScope::Namespace, Some(pod)) => {
                Ok(format!("namespace/{}", escaped(&pod.namespace)))
            }
            (CacheScope::Namespace, None) => Err(Error::invalid(
                "cacheScope namespace needs to know the pod's namespace: set podInfoOnMount: true \
                 in the CSIDriver object",
            )),
        }
    }

    /// The digest that defines "the same request" for pull policies.
    pub fn digest(&self, scope: &str, location: &str) -> RequestDigest {
        RequestDigest::of(
            scope,
            location,
            self.namespace.as_ref(),
            &self.bucket,
            &self.prefix,
            &self.filters,
        )
    }

    /// The name of the model in messages: `models/phi3/ from ai-model-cache`.
    /// A long prefix is shortened, so that it does not push out the remedy.
    pub fn title(&self) -> String {
        title(&self.prefix, &self.bucket)
    }
}

/// A Kubernetes namespace as it is; in any other text the separators of a
/// scope's parts are escaped, so that no two names make one scope.
fn escaped(namespace: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    let bytes = namespace.bytes();
    bytes.map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02x}") }).collect()
}

/// A model's name for people.
pub(super) fn title(prefix: &Prefix, bucket: &BucketName) -> String {
    if prefix.as_str().is_empty() {
        format!("the whole bucket {bucket}")
    } else {
        format!("{} from {bucket}", shown(prefix.as_str(), 200))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_one_namespaces_whatever_its_name_has_in_it() {
        let mut request =
            ModelRequest::of(None, BucketName::parse("b").unwrap(), Prefix::parse("p").unwrap());
        request.scope = CacheScope::Namespace;
        let scope = |namespace: &str| {
            let pod = PodIdentity { namespace: namespace.to_owned(), ..PodIdentity::default() };
            request.scope_id(Some(&pod)).unwrap()
        };
        assert_eq!(scope("team-a.b"), "namespace/team-a.b");
        assert_eq!(scope("x auth/none"), "namespace/x%20auth%2fnone");
        assert_ne!(scope("x%20"), scope("x "));
    }
}
