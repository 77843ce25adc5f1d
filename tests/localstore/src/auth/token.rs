//! Security tokens: JWTs that name the session key whose signatures they authorize.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use rcgen::SigningKey as _;
use serde_json::json;

use super::der;
use crate::clock;

/// Whom a token is for.
#[derive(Debug, Clone)]
pub(crate) struct Subject<'a> {
    /// `sub`: the OCID of an instance, of a user, …
    pub(crate) id: &'a str,
    /// `ptype`: `instance`, `user`, `workload`, …
    pub(crate) kind: &'a str,
    pub(crate) tenancy: &'a str,
    pub(crate) compartment: &'a str,
}

/// A signed JWT (RS256) for this session key. `None` when the key is not RSA.
pub(crate) fn issue(
    subject: &Subject<'_>,
    session_spki: &[u8],
    issued: SystemTime,
    ttl: Duration,
    signing_key: &rcgen::KeyPair,
) -> Option<String> {
    let (modulus, exponent) = der::rsa_components(session_spki)?;
    let jwk = json!({
        "kty": "RSA", "alg": "RS256", "use": "sig", "kid": "session",
        "n": BASE64URL.encode(modulus), "e": BASE64URL.encode(exponent),
    });
    let issued_secs = clock::unix_secs(issued);
    let claims = json!({
        "sub": subject.id,
        "ptype": subject.kind,
        "opc-tenant": subject.tenancy,
        "opc-compartment": subject.compartment,
        "res_tenant": subject.tenancy,
        "res_compartment": subject.compartment,
        "iss": "authService.oracle.com",
        "iat": issued_secs,
        "exp": issued_secs + ttl.as_secs(),
        "jti": uuid::Uuid::new_v4().to_string(),
        "jwk": jwk.to_string(),
    });
    let header = json!({"alg": "RS256", "typ": "JWT", "kid": "localstore"});
    let signed = format!(
        "{}.{}",
        BASE64URL.encode(header.to_string()),
        BASE64URL.encode(claims.to_string())
    );
    let signature = signing_key.sign(signed.as_bytes()).ok()?;
    Some(format!("{signed}.{}", BASE64URL.encode(signature)))
}
