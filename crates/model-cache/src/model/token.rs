//! The tokens of a pod's service account, from kubelet.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::PodIdentity;
use crate::error::{Error, ErrorKind, Result};

/// The tokens of a pod's service account, as kubelet sends them (`tokenRequests`
/// of the CSIDriver object). `Debug` does not print them, and they are wiped from memory when this
/// is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct PodTokens(Zeroizing<String>);

#[derive(Deserialize)]
struct TokenEntry {
    token: String,
}

/// The claims of a token, which the cluster's identity service verifies.
#[derive(Deserialize)]
struct PodTokenClaims {
    sub: String,
    #[serde(rename = "kubernetes.io", default)]
    kubernetes: KubernetesClaim,
}

#[derive(Default, Deserialize)]
struct KubernetesClaim {
    pod: Option<BoundObject>,
    serviceaccount: Option<BoundObject>,
}

/// An object of the cluster that a token is bound to.
#[derive(Deserialize)]
struct BoundObject {
    #[serde(default)]
    uid: String,
}

impl PodTokens {
    /// The value of `csi.storage.k8s.io/serviceAccount.tokens`.
    pub fn new(json: impl Into<String>) -> Self {
        Self(Zeroizing::new(json.into()))
    }

    /// The token for the cluster's own audience, `""`, or the only one.
    ///
    /// # Errors
    /// `Invalid` when this is not what kubelet writes, or a token belongs to another
    /// pod: then a pod's author has written it. `Precondition` when there are
    /// several and none of them is for the cluster's own audience.
    pub fn of(&self, pod: &PodIdentity) -> Result<String> {
        let entries: BTreeMap<String, TokenEntry> =
            serde_json::from_str(&self.0).map_err(|_| {
                Error::invalid(
                    "csi.storage.k8s.io/serviceAccount.tokens is not what kubelet writes",
                )
            })?;
        let only = if entries.len() == 1 { entries.values().next() } else { None };
        let Some(TokenEntry { token }) = entries.get("").or(only) else {
            return Err(Error::new(
                ErrorKind::Precondition,
                format!(
                    "kubelet sent tokens for {} audiences, and none for the cluster's own: list \
                     audience \"\" in tokenRequests of the CSIDriver object",
                    entries.len()
                ),
            ));
        };
        // A token that is not a JWT is left to the identity service.
        match claims(token) {
            Some(claims) if !claims.are_of(pod) => Err(Error::invalid(
                "the service account's token is another pod's; the attribute \
                 csi.storage.k8s.io/serviceAccount.tokens is kubelet's to write (tokenRequests in \
                 the CSIDriver object)",
            )),
            _ => Ok(token.clone()),
        }
    }
}

/// The UID of the service account that a token is bound to: a name can be given
/// to another account, a UID cannot. `None` where the token does not say.
pub fn account_uid(token: &str) -> Option<String> {
    let uid = claims(token)?.kubernetes.serviceaccount?.uid;
    (!uid.is_empty()).then_some(uid)
}

impl fmt::Debug for PodTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PodTokens")
    }
}

fn claims(jwt: &str) -> Option<PodTokenClaims> {
    let payload = jwt.split('.').nth(1)?;
    let json = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&json).ok()
}

impl PodTokenClaims {
    fn are_of(&self, pod: &PodIdentity) -> bool {
        let PodIdentity { namespace, service_account, uid, .. } = pod;
        self.sub == format!("system:serviceaccount:{namespace}:{service_account}")
            && self.kubernetes.pod.as_ref().is_none_or(|theirs| theirs.uid == *uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodIdentity {
        let [namespace, name, uid, service_account] =
            ["team-a", "vllm-0", "u-1", "vllm"].map(str::to_owned);
        PodIdentity { namespace, name, uid, service_account }
    }

    fn jwt(subject: &str, uid: &str) -> String {
        let claims = serde_json::json!({"sub": subject, "kubernetes.io": {"pod": {"uid": uid}}});
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn of(entries: &[(&str, &str)]) -> Result<String> {
        let entries: BTreeMap<_, _> = entries
            .iter()
            .map(|(audience, token)| (*audience, serde_json::json!({ "token": token })))
            .collect();
        PodTokens::new(serde_json::to_string(&entries).unwrap()).of(&pod())
    }

    #[test]
    fn the_token_for_the_clusters_own_audience_is_used_or_the_only_one() {
        assert_eq!(of(&[("", "a"), ("vault", "b")]).unwrap(), "a");
        assert_eq!(of(&[("vault", "b")]).unwrap(), "b");
        let error = of(&[("vault", "b"), ("other", "c")]).unwrap_err();
        assert!(error.message().contains("tokenRequests"), "{error}");
        assert_eq!(of(&[]).unwrap_err().kind(), ErrorKind::Precondition);
    }

    #[test]
    fn a_token_of_another_pod_or_account_is_not_this_pods() {
        let account = "system:serviceaccount:team-a:vllm";
        assert!(of(&[("", &jwt(account, "u-1"))]).is_ok());
        for (subject, uid) in [
            (account, "u-2"),
            ("system:serviceaccount:team-b:vllm", "u-1"),
            ("system:serviceaccount:team-a:other", "u-1"),
        ] {
            let token = jwt(subject, uid);
            let error = of(&[("", &token)]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(!error.message().contains(&token), "{error}");
        }
    }

    #[test]
    fn the_uid_of_a_tokens_account_is_read_or_unknown() {
        let of = |kubernetes: serde_json::Value| {
            let claims = serde_json::json!({"sub": "s", "kubernetes.io": kubernetes});
            account_uid(&format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string())))
        };
        let uid = |uid: &str| serde_json::json!({"serviceaccount": {"name": "vllm", "uid": uid}});
        assert_eq!(of(uid("u-1")), Some("u-1".to_owned()));
        assert_eq!(of(uid("")), None);
        assert_eq!(of(serde_json::json!({"serviceaccount": {"name": "vllm"}})), None);
        assert_eq!(of(serde_json::json!({})), None);
        assert_eq!(account_uid("opaque"), None);
    }

    #[test]
    fn text_that_kubelet_does_not_write_is_refused_and_not_repeated() {
        for text in ["", "secret", "[]", "{\"\": \"secret\"}"] {
            let error = PodTokens::new(text).of(&pod()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(!error.message().contains("secret"));
        }
        assert_eq!(format!("{:?}", PodTokens::new("secret")), "PodTokens");
    }
}
