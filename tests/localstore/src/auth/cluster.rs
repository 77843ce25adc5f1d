//! A Kubernetes cluster with OKE's identity service: which service-account tokens
//! are trusted, and which token is issued in exchange.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD as BASE64, URL_SAFE_NO_PAD as BASE64URL};
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize, SigningKey as _};
use serde::Deserialize;
use serde_json::{Value, json};

use super::der;
use super::identity::Identity;
use super::keys::Keys;
use super::signature::{Refusal, public_key};
use super::token::Subject;
use crate::clock;
use crate::sync::{Mutex, RwLock};

/// The beginning of the subject of a service account's token.
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// The audiences of a cluster's own API server, the first of which its own tokens have here. OKE's
/// identity service is known to take tokens for it; those that kubelet projects for another
/// audience it cannot verify.
const AUDIENCES: [&str; 2] =
    ["https://kubernetes.default.svc.cluster.local", "https://kubernetes.default.svc"];

/// The trusted signers and tokens.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    /// Subjects of tokens that are accepted as they are.
    listed: RwLock<HashMap<String, String>>,
    keys: RwLock<Vec<ClusterKey>>,
    /// The key of the tokens that this server issues.
    own: OnceLock<KeyPair>,
    making: Mutex<()>,
    /// How often an account was created again, by its subject.
    made_again: RwLock<HashMap<String, u64>>,
}

/// A key that signs tokens of service accounts.
#[derive(Debug)]
enum ClusterKey {
    Spki(ParsedPublicKey),
    Components { n: Vec<u8>, e: Vec<u8> },
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    #[serde(default)]
    aud: Audiences,
}

/// The `aud` of a token: one name or several. Tokens in Secrets have none, and are for the API
/// server.
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::One(AUDIENCES[0].to_owned())
    }
}

impl Audiences {
    fn has_api_server(&self) -> bool {
        let is_api_server = |name: &String| AUDIENCES.contains(&name.as_str());
        match self {
            Self::One(name) => is_api_server(name),
            Self::Several(names) => names.iter().any(is_api_server),
        }
    }
}

/// A token to issue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AccountToken<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) pod_uid: Option<&'a str>,
    /// Whom it is for; `None` for the cluster's own API server.
    pub(crate) audience: Option<&'a str>,
    pub(crate) ttl: Duration,
}

/// The body of an exchange.
#[derive(Deserialize)]
struct Exchange {
    #[serde(rename = "podKey")]
    pod_key: String,
}

impl Cluster {
    /// Accepts this token for the service account, whatever its content.
    pub(crate) fn list(&self, token: &str, namespace: &str, name: &str) {
        let subject = format!("{SERVICE_ACCOUNT}{namespace}:{name}");
        self.listed.write().insert(token.to_owned(), subject);
    }

    /// Trusts tokens that are signed by the keys of a file: a public key in PEM, as the
    /// API server's `--service-account-key-file` has it, or a JWKS, as `kubectl
    /// get --raw /openid/v1/jwks` gives it. RSA only.
    pub(crate) fn trust(&self, file: &Path) -> anyhow::Result<()> {
        let shown = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {shown}"))?;
        let keys = match der::from_pem(&text) {
            Some((_, spki)) => public_key(&spki).map(ClusterKey::Spki).into_iter().collect(),
            None => jwks(&text).with_context(|| format!("{shown} is neither PEM nor a JWKS"))?,
        };
        if keys.is_empty() {
            bail!("{shown} has no RSA key of at least 2048 bits");
        }
        self.keys.write().extend(keys);
        Ok(())
    }

    /// Deletes a service account and creates another one with its name.
    pub(crate) fn make_again(&self, namespace: &str, name: &str) {
        let subject = format!("{SERVICE_ACCOUNT}{namespace}:{name}");
        *self.made_again.write().entry(subject).or_default() += 1;
    }

    /// Issues a token of this server's own cluster.
    pub(crate) fn issue(
        &self,
        wanted: AccountToken<'_>,
        now: SystemTime,
    ) -> anyhow::Result<String> {
        let AccountToken { namespace, name, pod_uid, audience, ttl } = wanted;
        let issued = clock::unix_secs(now);
        let subject = format!("{SERVICE_ACCOUNT}{namespace}:{name}");
        let generation = self.made_again.read().get(&subject).copied().unwrap_or_default();
        let account = json!({ "name": name, "uid": format!("{subject}#{generation}") });
        let mut kubernetes = json!({ "namespace": namespace, "serviceaccount": account });
        if let Some(uid) = pod_uid {
            kubernetes["pod"] = json!({ "name": "pod", "uid": uid });
        }
        let claims = json!({
            "aud": [audience.unwrap_or(AUDIENCES[0])],
            "iss": AUDIENCES[0],
            "sub": subject,
            "iat": issued,
            "nbf": issued,
            "exp": issued + ttl.as_secs(),
            "kubernetes.io": kubernetes,
        });
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": "localstore-cluster"});
        let encode = |value: &Value| BASE64URL.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.own_key()?.sign(signed.as_bytes()).context("signing a token")?;
        Ok(format!("{signed}.{}", BASE64URL.encode(signature)))
    }

    /// Created when first needed: RSA keys take time.
    fn own_key(&self) -> anyhow::Result<&KeyPair> {
        let _one = self.making.lock();
        if let Some(own) = self.own.get() {
            return Ok(own);
        }
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
            .context("generating the cluster's key")?;
        let public = public_key(&key.subject_public_key_info()).context("a generated key")?;
        self.keys.write().push(ClusterKey::Spki(public));
        Ok(self.own.get_or_init(|| key))
    }

    /// `system:serviceaccount:NAMESPACE:NAME` of a token that is good now.
    fn subject_of(&self, token: &str, now: SystemTime) -> Result<String, Refusal> {
        if let Some(subject) = self.listed.read().get(token) {
            return Ok(subject.clone());
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Refusal::UnknownKey)?;
        let signature = BASE64URL.decode(signature).map_err(|_| Refusal::Malformed)?;
        if !self.keys.read().iter().any(|key| key.verifies(signed.as_bytes(), &signature)) {
            return Err(Refusal::WrongSignature);
        }
        let (_, claims) = signed.split_once('.').ok_or(Refusal::Malformed)?;
        let claims = BASE64URL.decode(claims).map_err(|_| Refusal::Malformed)?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| Refusal::Malformed)?;
        if clock::unix_secs(now) >= claims.exp {
            return Err(Refusal::ExpiredToken);
        }
        if !claims.aud.has_api_server() {
            return Err(Refusal::Audience);
        }
        let is_account = claims.sub.starts_with(SERVICE_ACCOUNT);
        if is_account { Ok(claims.sub) } else { Err(Refusal::UnknownKey) }
    }

    /// `POST /resourcePrincipalSessionTokens`: a service account's token and a
    /// session key for a token of that key. The caller is the token's subject.
    pub(crate) fn exchange(
        &self,
        authorization: Option<&str>,
        body: &[u8],
        now: SystemTime,
        identity: &Identity,
        keys: &Keys,
    ) -> Result<String, Refusal> {
        let token = authorization.and_then(|value| value.strip_prefix("Bearer "));
        let caller = self.subject_of(token.ok_or(Refusal::NoAuthorization)?, now)?;
        let posted: Exchange = serde_json::from_slice(body).map_err(|_| Refusal::Malformed)?;
        // The Python SDK sends bare base64, the Go SDK a whole PEM.
        let spki = match der::from_pem(&posted.pod_key) {
            Some((_, spki)) => spki,
            None => BASE64.decode(posted.pod_key.trim()).map_err(|_| Refusal::Malformed)?,
        };
        let subject = Subject {
            id: &caller,
            kind: "workload",
            tenancy: &identity.instance.tenancy,
            compartment: &identity.instance.compartment,
        };
        let (ttl, not_rsa) = (identity.token_ttl, Refusal::Certificate("podKey is no RSA key"));
        let session =
            identity.issue_token(&subject, &spki, now, ttl).ok_or_else(|| not_rsa.clone())?;
        keys.add_token(&session, &caller, &spki, now + ttl).ok_or(not_rsa)?;
        Ok(session)
    }
}

impl ClusterKey {
    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Spki(key) => key.verify_sig(signed, signature).is_ok(),
            Self::Components { n, e } => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, signed, signature)
                .is_ok(),
        }
    }
}

fn jwks(text: &str) -> anyhow::Result<Vec<ClusterKey>> {
    #[derive(Deserialize)]
    struct Jwks {
        keys: Vec<Jwk>,
    }
    #[derive(Deserialize)]
    struct Jwk {
        n: Option<String>,
        e: Option<String>,
    }
    let jwks: Jwks = serde_json::from_str(text)?;
    let rsa = jwks.keys.into_iter().filter_map(|key| Some((key.n?, key.e?)));
    rsa.map(|(n, e)| {
        let decode = |text: String| BASE64URL.decode(text.trim_end_matches('='));
        Ok(ClusterKey::Components { n: decode(n)?, e: decode(e)? })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn wanted(audience: Option<&str>) -> AccountToken<'_> {
        AccountToken { namespace: "team-a", name: "vllm", pod_uid: Some("u"), audience, ttl: HOUR }
    }

    #[test]
    fn a_token_is_accepted_until_it_expires_and_only_with_its_signature() {
        let (cluster, now) = (Cluster::default(), SystemTime::now());
        let token = cluster.issue(wanted(None), now).unwrap();
        let subject = cluster.subject_of(&token, now).unwrap();
        assert_eq!(subject, "system:serviceaccount:team-a:vllm");
        assert_eq!(cluster.subject_of(&token, now + HOUR), Err(Refusal::ExpiredToken));
        let other = Cluster::default();
        other.own_key().unwrap();
        assert_eq!(other.subject_of(&token, now), Err(Refusal::WrongSignature));
        assert!(cluster.subject_of("listed", now).is_err());
        cluster.list("listed", "team-b", "default");
        assert_eq!(
            cluster.subject_of("listed", now).unwrap(),
            "system:serviceaccount:team-b:default"
        );
    }

    #[test]
    fn keys_are_read_from_pem_and_from_a_jwks() {
        let (cluster, now) = (Cluster::default(), SystemTime::now());
        let token = cluster.issue(wanted(None), now).unwrap();
        let spki = cluster.own_key().unwrap().subject_public_key_info();
        let (n, e) = der::rsa_components(&spki).unwrap();
        let jwk = json!({"kty": "RSA", "n": BASE64URL.encode(n), "e": BASE64URL.encode(e)});
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("sa.pub", der::to_pem("PUBLIC KEY", &spki)),
            ("jwks.json", json!({"keys": [{"kty": "EC"}, jwk]}).to_string()),
        ] {
            let other = Cluster::default();
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            other.trust(&file).unwrap();
            assert!(other.subject_of(&token, now).is_ok(), "{name}");
        }
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "{\"keys\": []}").unwrap();
        assert!(Cluster::default().trust(&empty).is_err());
    }

    #[test]
    fn a_token_for_another_audience_than_the_api_server_is_refused() {
        let (cluster, now) = (Cluster::default(), SystemTime::now());
        for (audience, accepted) in
            [(None, true), (Some(AUDIENCES[1]), true), (Some("vault"), false), (Some(""), false)]
        {
            let token = cluster.issue(wanted(audience), now).unwrap();
            let refusal = cluster.subject_of(&token, now).err();
            assert_eq!(refusal, (!accepted).then_some(Refusal::Audience), "{audience:?}");
        }
        for (claims, accepted) in [
            (json!({"sub": "s", "exp": 1}), true),
            (json!({"sub": "s", "exp": 1, "aud": AUDIENCES[0]}), true),
            (json!({"sub": "s", "exp": 1, "aud": ["vault", AUDIENCES[0]]}), true),
            (json!({"sub": "s", "exp": 1, "aud": []}), false),
        ] {
            let read: Claims = serde_json::from_value(claims.clone()).unwrap();
            assert_eq!(read.aud.has_api_server(), accepted, "{claims}");
        }
    }
}
