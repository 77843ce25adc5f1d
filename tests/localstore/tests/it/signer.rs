//! The client's side of request signing, independent of the server's.

use std::time::SystemTime;

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// A key and the `keyId` that names it.
pub(crate) struct Signer {
    pub(crate) key: KeyPair,
    pub(crate) key_id: String,
    pub(crate) date: SystemTime,
}

impl Signer {
    pub(crate) fn new(key: KeyPair, key_id: impl Into<String>) -> Self {
        Self { key, key_id: key_id.into(), date: SystemTime::now() }
    }

    pub(crate) fn generate(key_id: impl Into<String>) -> Self {
        Self::new(KeyPair::generate(KeySize::Rsa2048).unwrap(), key_id)
    }

    /// DER of the SubjectPublicKeyInfo.
    pub(crate) fn public(&self) -> Vec<u8> {
        let der: PublicKeyX509Der<'_> = self.key.public_key().as_der().unwrap();
        der.as_ref().to_vec()
    }

    /// The headers of a request without a signed body.
    pub(crate) fn sign(&self, method: &str, target: &str, host: &str) -> Vec<(String, String)> {
        let date = httpdate::fmt_http_date(self.date);
        let headers = [("date", date.as_str()), ("(request-target)", ""), ("host", host)];
        let mut signed = vec![("date".to_owned(), date.clone())];
        signed.push(("authorization".to_owned(), self.authorization(method, target, &headers)));
        signed
    }

    /// The headers of a request whose body is signed; `host` is empty where it is not.
    pub(crate) fn sign_body(
        &self,
        method: &str,
        target: &str,
        host: &str,
        body: &[u8],
    ) -> Vec<(String, String)> {
        let date = httpdate::fmt_http_date(self.date);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
        let (length, digest) = (body.len().to_string(), BASE64.encode(digest));
        let mut headers = vec![("date", date.as_str()), ("(request-target)", "")];
        if !host.is_empty() {
            headers.push(("host", host));
        }
        headers.push(("content-length", &length));
        headers.push(("content-type", "application/json"));
        headers.push(("x-content-sha256", &digest));
        let authorization = self.authorization(method, target, &headers);
        [
            ("date", date.as_str()),
            ("content-length", &length),
            ("content-type", "application/json"),
            ("x-content-sha256", &digest),
            ("authorization", &authorization),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    fn authorization(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> String {
        let lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| match *name {
                "(request-target)" => format!("{name}: {} {target}", method.to_lowercase()),
                _ => format!("{name}: {value}"),
            })
            .collect();
        let mut signature = vec![0; self.key.public_modulus_len()];
        let string = lines.join("\n");
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), string.as_bytes(), &mut signature)
            .unwrap();
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        format!(
            r#"Signature version="1",headers="{}",keyId="{}",algorithm="rsa-sha256",signature="{}""#,
            names.join(" "),
            self.key_id,
            BASE64.encode(signature)
        )
    }
}

/// Headers in the form that the client accepts.
pub(crate) fn borrowed(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
