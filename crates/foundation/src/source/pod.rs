//! The identities of pods, and what proves them.

use std::fmt;

use zeroize::Zeroizing;

use super::{Bucket, RegionName, Workload};

/// An identity of a pod's own: answers, proofs and credentials of two of them are never mixed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PodPrincipal {
    /// The pod's service account.
    Account(Workload),
    /// The API key in the pod's Secret.
    ApiKey(PodKey),
    /// The pre-authenticated request in the pod's Secret.
    Par(PodPar),
}

/// A pre-authenticated request whose URL a pod has presented.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodPar {
    /// Kubernetes namespace of the pod; empty where kubelet does not send it.
    pub namespace: String,
    /// SHA-256 of its token in hex.
    pub digest: String,
    /// The bucket in its URL.
    pub bucket: Bucket,
    /// The one object in its URL, or the beginning of the names of many; empty where the URL does
    /// not say.
    pub object: String,
}

/// An API key whose private half a pod has presented.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodKey {
    /// Kubernetes namespace of the pod; empty where kubelet does not send it.
    pub namespace: String,
    /// The fingerprint, computed from the key itself.
    pub fingerprint: String,
    /// SHA-256 over public half, user and tenancy in hex: fingerprints are MD5s, which can be
    /// forged, and one key may belong to several users.
    pub digest: String,
}

impl PodPrincipal {
    /// The pod's Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Account(workload) => &workload.namespace,
            Self::ApiKey(key) => &key.namespace,
            Self::Par(par) => &par.namespace,
        }
    }

    /// What proves later that it is the same identity, where that is possible: a service account
    /// needs its UID, since its name may be given to another one.
    pub fn proof(&self) -> Option<String> {
        match self {
            Self::Account(workload) => {
                let uid = workload.account_uid.as_ref()?;
                Some(format!("account {} {uid}", workload.service_account))
            }
            Self::ApiKey(key) => Some(format!("key {}", key.digest)),
            Self::Par(par) => Some(format!("par {}", par.digest)),
        }
    }
}

impl fmt::Display for PodPrincipal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(workload) => workload.fmt(f),
            Self::ApiKey(key) => write!(f, "the user of API key {}", key.fingerprint),
            Self::Par(_) => f.write_str("the pre-authenticated request of its Secret"),
        }
    }
}

/// What a pod proves its identity with.
#[derive(Clone, Copy)]
pub enum PodCredential<'a> {
    /// The token of its service account.
    Token(&'a Workload, &'a str),
    /// The Secret of its volume.
    Secret {
        /// Kubernetes namespace of the pod; empty where kubelet does not send it.
        namespace: &'a str,
        /// Its content.
        secret: &'a PodSecret,
    },
}

/// The Secret of a volume (`nodePublishSecretRef`), as far as it can be checked without the key.
/// `Debug` does not print it, and it is wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub enum PodSecret {
    /// A user's API key.
    ApiKey(ApiKeySecret),
    /// The URL of a pre-authenticated request.
    Par(ParSecret),
}

/// The URL of a pre-authenticated request, as a Secret has it: short enough, and not blank.
#[derive(Clone, PartialEq, Eq)]
pub struct ParSecret(pub Zeroizing<String>);

/// A user's API key, as a Secret has it; values that are short enough, and not empty.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeySecret {
    /// OCID of the user.
    pub user: String,
    /// OCID of the user's tenancy.
    pub tenancy: String,
    /// Fingerprint of the key, in lower case.
    pub fingerprint: String,
    /// The private key in PEM.
    pub key: Zeroizing<String>,
    /// What the key is encrypted with.
    pub passphrase: Option<Zeroizing<String>>,
    /// The region that the pod's author expects.
    pub region: Option<RegionName>,
}

impl fmt::Debug for PodSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodSecret(..)")
    }
}

impl fmt::Debug for ParSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ParSecret(..)")
    }
}

impl fmt::Debug for ApiKeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeySecret(..)")
    }
}

impl fmt::Debug for PodCredential<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodCredential(..)")
    }
}

#[cfg(test)]
mod tests {
    use zeroize::ZeroizeOnDrop;

    use super::*;

    #[test]
    fn a_pods_secret_and_credential_print_nothing() {
        let [user, tenancy, fingerprint] = ["u", "t", "f"].map(str::to_owned);
        let key = Zeroizing::new("hunter2".to_owned());
        let passphrase = Some(key.clone());
        let key = ApiKeySecret { user, tenancy, fingerprint, key, passphrase, region: None };
        let secret = PodSecret::ApiKey(key.clone());
        let credential = PodCredential::Secret { namespace: "team-a", secret: &secret };
        let url = ParSecret("https://x/p/hunter2/n/ns/b/bk/o/".to_owned().into());
        let shown = format!("{key:?} {secret:?} {credential:?} {url:?}");
        assert_eq!(shown, "ApiKeySecret(..) PodSecret(..) PodCredential(..) ParSecret(..)");
    }

    #[test]
    fn what_is_secret_in_a_pods_secret_is_wiped_when_it_is_dropped() {
        // Whether it is, the compiler says.
        fn secrets<'a>(key: &'a ApiKeySecret, par: &'a ParSecret) -> [&'a dyn ZeroizeOnDrop; 3] {
            [&key.key, &key.passphrase, &par.0]
        }
        let _ = secrets;
    }
}
