//! The instance that the metadata service describes, its certificates, and the
//! identity service that exchanges them for tokens.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize,
};
use serde::Deserialize;

use super::der;
use super::keys::Keys;
use super::signature::{FEDERATION, Refusal, SignedRequest, content_sha256, public_key};
use super::token::{self, Subject};
use crate::objects::hex;
use crate::sync::Mutex;

/// The one instance of this region.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) tenancy: String,
    pub(crate) compartment: String,
    pub(crate) id: String,
    /// The answer of `/instance/region`, and the long name.
    pub(crate) region_key: String,
    pub(crate) region: String,
}

/// A leaf certificate and its key, in the forms of the metadata service.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) certificate_pem: String,
    /// PKCS#1, as real instances have it.
    pub(crate) key_pem: String,
    certificate: Vec<u8>,
    spki: Vec<u8>,
}

/// Certificates of the instance, created when first needed: RSA keys take time.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) instance: Instance,
    pub(crate) token_ttl: Duration,
    /// Issues a new leaf after this many fetches of the certificate; 0 for never.
    rotate_every: u64,
    authority: OnceLock<Arc<Authority>>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    intermediate_pem: String,
    intermediate: Vec<u8>,
    leaves: Mutex<Leaves>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// All leaves issued so far; the last is the one that is served. Earlier ones
/// stay valid, as certificates do until they expire.
struct Leaves {
    issued: Vec<Arc<Leaf>>,
    fetches: u64,
}

impl Identity {
    pub(crate) fn new(instance: Instance, token_ttl: Duration, rotate_every: u64) -> Self {
        Self { instance, token_ttl, rotate_every, authority: OnceLock::new() }
    }

    fn authority(&self) -> anyhow::Result<&Authority> {
        if let Some(authority) = self.authority.get() {
            return Ok(authority);
        }
        let made = Arc::new(Authority::new(&self.instance)?);
        // Of two that were created at once, the first stays.
        Ok(self.authority.get_or_init(|| made))
    }

    pub(crate) fn intermediate_pem(&self) -> anyhow::Result<String> {
        Ok(self.authority()?.intermediate_pem.clone())
    }

    pub(crate) fn leaf(&self) -> anyhow::Result<Arc<Leaf>> {
        let leaves = self.authority()?.leaves.lock();
        leaves.issued.last().cloned().context("an authority begins with a leaf")
    }

    /// The leaf for a fetch of its certificate, which is what rotation counts.
    pub(crate) fn leaf_for_fetch(&self) -> anyhow::Result<Arc<Leaf>> {
        let rotate = {
            let mut leaves = self.authority()?.leaves.lock();
            leaves.fetches += 1;
            self.rotate_every > 0
                && leaves.fetches > 1
                && (leaves.fetches - 1).is_multiple_of(self.rotate_every)
        };
        if rotate {
            self.rotate()?;
        }
        self.leaf()
    }

    /// Serves a new leaf certificate and key from now on.
    pub(crate) fn rotate(&self) -> anyhow::Result<()> {
        let authority = self.authority()?;
        let leaf = authority.issue_leaf(&self.instance)?;
        authority.leaves.lock().issued.push(Arc::new(leaf));
        Ok(())
    }

    /// A token for a session key. `None` when that is not an RSA key.
    pub(crate) fn issue_token(
        &self,
        subject: &Subject<'_>,
        session_spki: &[u8],
        now: SystemTime,
        ttl: Duration,
    ) -> Option<String> {
        let authority = self.authority().ok()?;
        token::issue(subject, session_spki, now, ttl, authority.issuer.key())
    }

    /// `POST /v1/x509`: the certificate and its key's signature for a token.
    pub(crate) fn exchange(
        &self,
        request: &SignedRequest<'_>,
        body: &[u8],
        now: SystemTime,
        keys: &Keys,
    ) -> Result<String, Refusal> {
        let signature = request.signature()?;
        let (key_tenancy, form, fingerprint) =
            split_key_id(&signature.key_id).ok_or(Refusal::UnknownKey)?;
        let posted: Exchange = serde_json::from_slice(body)
            .map_err(|_| Refusal::Certificate("the body is not JSON"))?;
        let certificate = decode(&posted.certificate)?;
        posted.check_fingerprint(form, fingerprint, &certificate)?;
        let authority = self.authority().map_err(|_| Refusal::Certificate("no authority"))?;
        let leaf = authority.find(&certificate)?;
        if key_tenancy != self.instance.tenancy {
            return Err(Refusal::Certificate("the keyId names another tenancy"));
        }
        let intermediates: Vec<_> = posted
            .intermediate_certificates
            .iter()
            .map(|text| decode(text))
            .collect::<Result<_, _>>()?;
        if !intermediates.contains(&authority.intermediate) {
            return Err(Refusal::Certificate("the intermediate certificate is not the issuer's"));
        }
        let leaf_key = public_key(&leaf.spki).ok_or(Refusal::Malformed)?;
        let digest = request.check(&signature, FEDERATION, now, &leaf_key)?;
        if digest.as_deref() != Some(content_sha256(body).as_str()) {
            return Err(Refusal::WrongBody);
        }
        let session_spki = decode(&posted.public_key)?;
        let subject = Subject {
            id: &self.instance.id,
            kind: "instance",
            tenancy: &self.instance.tenancy,
            compartment: &self.instance.compartment,
        };
        let not_rsa = Refusal::Certificate("publicKey is not the SPKI of an RSA key");
        let token = self
            .issue_token(&subject, &session_spki, now, self.token_ttl)
            .ok_or(not_rsa.clone())?;
        keys.add_token(&token, &self.instance.id, &session_spki, now + self.token_ttl)
            .ok_or(not_rsa)?;
        Ok(token)
    }
}

/// The body of an exchange.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exchange {
    certificate: String,
    public_key: String,
    #[serde(default)]
    intermediate_certificates: Vec<String>,
    #[serde(default)]
    fingerprint_algorithm: Option<String>,
}

impl Exchange {
    fn check_fingerprint(
        &self,
        form: FingerprintForm,
        given: &str,
        certificate: &[u8],
    ) -> Result<(), Refusal> {
        if form == FingerprintForm::Sha256
            && self.fingerprint_algorithm.as_deref() != Some("SHA256")
        {
            return Err(Refusal::Certificate("fed-x509-sha256 needs fingerprintAlgorithm SHA256"));
        }
        if form.of(certificate) == given {
            Ok(())
        } else {
            Err(Refusal::Certificate("the fingerprint is not the certificate's"))
        }
    }
}

/// The two forms of a certificate's name in a keyId.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FingerprintForm {
    /// `fed-x509`: the Python SDK's; upper case.
    Sha1,
    /// `fed-x509-sha256`: the Go SDK's; lower case.
    Sha256,
}

impl FingerprintForm {
    fn of(self, certificate: &[u8]) -> String {
        use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
        match self {
            Self::Sha1 => hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, certificate).as_ref(), ":")
                .to_ascii_uppercase(),
            Self::Sha256 => hex(digest(&SHA256, certificate).as_ref(), ":"),
        }
    }
}

/// Tenancy, form and fingerprint of `{tenancy}/fed-x509[-sha256]/{fingerprint}`.
fn split_key_id(key_id: &str) -> Option<(&str, FingerprintForm, &str)> {
    let mut parts = key_id.split('/');
    let (tenancy, form, fingerprint) = (parts.next()?, parts.next()?, parts.next()?);
    let form = match form {
        "fed-x509" => FingerprintForm::Sha1,
        "fed-x509-sha256" => FingerprintForm::Sha256,
        _ => return None,
    };
    parts.next().is_none().then_some((tenancy, form, fingerprint))
}

fn decode(text: &str) -> Result<Vec<u8>, Refusal> {
    BASE64.decode(text).map_err(|_| Refusal::Certificate("not base64 of DER"))
}

impl Authority {
    fn new(instance: &Instance) -> anyhow::Result<Self> {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
            .context("generating the intermediate's key")?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "localstore identity intermediate");
        let certificate = params.self_signed(&key).context("signing the intermediate")?;
        let authority = Self {
            intermediate_pem: certificate.pem(),
            intermediate: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
            leaves: Mutex::new(Leaves { issued: Vec::new(), fetches: 0 }),
        };
        let first = authority.issue_leaf(instance)?;
        authority.leaves.lock().issued.push(Arc::new(first));
        Ok(authority)
    }

    fn issue_leaf(&self, instance: &Instance) -> anyhow::Result<Leaf> {
        let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)
            .context("generating a leaf key")?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, instance.id.as_str());
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, format!("opc-tenant:{}", instance.tenancy));
        let certificate = params.signed_by(&key, &self.issuer).context("signing a leaf")?;
        let pkcs8 = key.serialize_der();
        let pkcs1 = der::pkcs1_of_pkcs8(&pkcs8).context("an RSA key in PKCS#8")?;
        Ok(Leaf {
            certificate_pem: certificate.pem(),
            key_pem: der::to_pem("RSA PRIVATE KEY", pkcs1),
            certificate: certificate.der().to_vec(),
            spki: key.subject_public_key_info(),
        })
    }

    /// Only certificates of this authority are accepted: their issuer, subject and
    /// key need no further proof.
    fn find(&self, certificate: &[u8]) -> Result<Arc<Leaf>, Refusal> {
        let leaves = self.leaves.lock();
        let found = leaves.issued.iter().find(|leaf| leaf.certificate == certificate);
        found.cloned().ok_or(Refusal::Certificate("not issued by this authority"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::vectors;

    #[test]
    fn both_fingerprint_forms_are_those_of_the_official_signers() {
        let vectors = vectors::load();
        let (_, certificate) =
            der::from_pem(vectors["leaf_certificate_pem"].as_str().unwrap()).unwrap();
        for (form, name) in [
            (FingerprintForm::Sha1, "leaf_fingerprint_sha1"),
            (FingerprintForm::Sha256, "leaf_fingerprint_sha256"),
        ] {
            assert_eq!(form.of(&certificate), vectors[name].as_str().unwrap());
        }
    }

    #[test]
    fn key_ids_of_other_forms_are_refused() {
        assert!(split_key_id("t/fed-x509/AA:BB").is_some());
        assert!(split_key_id("t/fed-x509-sha256/aa:bb").is_some());
        for other in ["t/fed-x509", "t/u/aa:bb", "ST$x.y.z", "t/fed-x509/AA/BB"] {
            assert_eq!(split_key_id(other), None, "{other}");
        }
    }

    #[test]
    fn a_rotation_serves_another_certificate() {
        let instance = Instance {
            tenancy: "t".to_owned(),
            compartment: "c".to_owned(),
            id: "i".to_owned(),
            region_key: "iad".to_owned(),
            region: "us-ashburn-1".to_owned(),
        };
        let identity = Identity::new(instance, Duration::from_secs(60), 2);
        let first = identity.leaf_for_fetch().unwrap();
        let second = identity.leaf_for_fetch().unwrap();
        let third = identity.leaf_for_fetch().unwrap();
        assert_eq!(first.certificate, second.certificate);
        assert_ne!(second.certificate, third.certificate);
        assert!(first.key_pem.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    }
}
