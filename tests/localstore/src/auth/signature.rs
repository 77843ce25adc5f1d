//! Verification of OCI request signatures: draft-cavage HTTP signatures,
//! version 1, rsa-sha256, over the raw request target.

use std::fmt;
use std::time::SystemTime;

use aws_lc_rs::signature::{ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;

use crate::clock::MAX_SKEW;

/// Signed headers that a reading request must have, beside `date` or `x-date`.
pub(crate) const READING: &[&str] = &["(request-target)", "host"];
/// Those of a request whose body is signed too.
pub(crate) const WITH_BODY: &[&str] =
    &["(request-target)", "host", "content-length", "content-type", "x-content-sha256"];
/// Those of the certificate exchange: no client signs its host.
pub(crate) const FEDERATION: &[&str] =
    &["(request-target)", "content-length", "content-type", "x-content-sha256"];

/// Why a request is not authenticated. The client never sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    NoAuthorization,
    Malformed,
    UnknownKey,
    ExpiredToken,
    /// A token for another service than this one.
    Audience,
    NotSigned(String),
    HeaderMissing(String),
    Skew {
        seconds: u64,
    },
    WrongSignature,
    WrongBody,
    Certificate(&'static str),
}

impl Refusal {
    /// The name under which refusals are counted.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::NoAuthorization => "no_authorization",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown_key",
            Self::ExpiredToken => "expired_token",
            Self::Audience => "wrong_audience",
            Self::NotSigned(_) => "header_not_signed",
            Self::HeaderMissing(_) => "header_missing",
            Self::Skew { .. } => "clock_skew",
            Self::WrongSignature => "wrong_signature",
            Self::WrongBody => "wrong_body_digest",
            Self::Certificate(_) => "certificate",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSigned(name) => write!(f, "{name} is not among the signed headers"),
            Self::HeaderMissing(name) => write!(f, "{name} is signed but not in the request"),
            Self::Skew { seconds } => write!(f, "the signed date is {seconds} s from the clock"),
            Self::Certificate(problem) => f.write_str(problem),
            other => f.write_str(&other.name().replace('_', " ")),
        }
    }
}

/// An `Authorization: Signature …` header, parsed by parameter names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) key_id: String,
    headers: Vec<String>,
    bytes: Vec<u8>,
}

impl Signature {
    pub(crate) fn parse(value: &str) -> Result<Self, Refusal> {
        let mut rest = value.strip_prefix("Signature ").ok_or(Refusal::Malformed)?.trim();
        let (mut key_id, mut headers, mut signature, mut algorithm) = (None, None, None, None);
        while !rest.is_empty() {
            let (name, after) = rest.split_once("=\"").ok_or(Refusal::Malformed)?;
            let (value, after) = after.split_once('"').ok_or(Refusal::Malformed)?;
            match name.trim() {
                "keyId" => key_id = Some(value),
                "headers" => headers = Some(value),
                "signature" => signature = Some(value),
                "algorithm" => algorithm = Some(value),
                "version" if value == "1" => {}
                "version" => return Err(Refusal::Malformed),
                _ => {}
            }
            rest = after.trim_start().trim_start_matches(',').trim_start();
        }
        if algorithm != Some("rsa-sha256") {
            return Err(Refusal::Malformed);
        }
        let headers: &str = headers.ok_or(Refusal::Malformed)?;
        Ok(Self {
            key_id: key_id.ok_or(Refusal::Malformed)?.to_owned(),
            headers: headers.split_whitespace().map(str::to_ascii_lowercase).collect(),
            bytes: BASE64
                .decode(signature.ok_or(Refusal::Malformed)?)
                .map_err(|_| Refusal::Malformed)?,
        })
    }

    fn signs(&self, name: &str) -> bool {
        self.headers.iter().any(|signed| signed == name)
    }
}

/// The parts of a request that a signature covers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SignedRequest<'a> {
    /// Upper case, as on the request line.
    pub(crate) method: &'a str,
    /// Path and query, byte for byte as on the request line.
    pub(crate) target: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

impl SignedRequest<'_> {
    pub(crate) fn signature(&self) -> Result<Signature, Refusal> {
        let value =
            self.headers.get(http::header::AUTHORIZATION).ok_or(Refusal::NoAuthorization)?;
        Signature::parse(value.to_str().map_err(|_| Refusal::Malformed)?)
    }

    /// Checks what is signed, when, and by whom. The body is the caller's to
    /// check against the returned `x-content-sha256`, where that is signed.
    pub(crate) fn check(
        &self,
        signature: &Signature,
        required: &[&str],
        now: SystemTime,
        key: &ParsedPublicKey,
    ) -> Result<Option<String>, Refusal> {
        if let Some(missing) = required.iter().find(|name| !signature.signs(name)) {
            return Err(Refusal::NotSigned((*missing).to_owned()));
        }
        self.check_date(signature, now)?;
        key.verify_sig(&self.signing_string(signature)?, &signature.bytes)
            .map_err(|_| Refusal::WrongSignature)?;
        Ok(if signature.signs("x-content-sha256") {
            Some(self.header("x-content-sha256")?)
        } else {
            None
        })
    }

    fn check_date(&self, signature: &Signature, now: SystemTime) -> Result<(), Refusal> {
        let name = ["x-date", "date"]
            .into_iter()
            .find(|name| signature.signs(name))
            .ok_or_else(|| Refusal::NotSigned("date".to_owned()))?;
        let date =
            httpdate::parse_http_date(&self.header(name)?).map_err(|_| Refusal::Malformed)?;
        let distance =
            now.duration_since(date).or_else(|_| date.duration_since(now)).unwrap_or_default();
        if distance > MAX_SKEW {
            return Err(Refusal::Skew { seconds: distance.as_secs() });
        }
        Ok(())
    }

    /// `name: value` lines in the order that the client chose.
    pub(crate) fn signing_string(&self, signature: &Signature) -> Result<Vec<u8>, Refusal> {
        let mut lines = Vec::with_capacity(signature.headers.len());
        for name in &signature.headers {
            lines.push(if name == "(request-target)" {
                format!("{name}: {} {}", self.method.to_ascii_lowercase(), self.target)
            } else {
                format!("{name}: {}", self.header(name)?)
            });
        }
        Ok(lines.join("\n").into_bytes())
    }

    fn header(&self, name: &str) -> Result<String, Refusal> {
        let values: Vec<_> = self
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        if values.is_empty() {
            return Err(Refusal::HeaderMissing(name.to_owned()));
        }
        Ok(values.join(", "))
    }
}

/// A public RSA key from the DER of its SubjectPublicKeyInfo or of PKCS#1.
pub(crate) fn public_key(der: &[u8]) -> Option<ParsedPublicKey> {
    ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).ok()
}

/// `x-content-sha256` of these bytes.
pub(crate) fn content_sha256(body: &[u8]) -> String {
    BASE64.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderName, HeaderValue};
    use serde_json::Value;

    use super::*;
    use crate::auth::{der, vectors};

    struct Vector {
        name: String,
        method: String,
        target: String,
        headers: HeaderMap,
        signing_string: String,
        body: String,
    }

    fn text(value: &Value) -> String {
        value.as_str().unwrap_or_default().to_owned()
    }

    fn vectors() -> (ParsedPublicKey, SystemTime, Vec<Vector>) {
        let file = vectors::load();
        let (_, spki) = der::from_pem(file["public_key_spki"].as_str().unwrap()).unwrap();
        let date = httpdate::parse_http_date(file["date"].as_str().unwrap()).unwrap();
        let vectors = file["vectors"].as_array().unwrap().iter().map(|vector| {
            let mut headers = HeaderMap::new();
            let mut insert = |name: &str, value: &str| {
                headers.insert(
                    HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                );
            };
            for (name, value) in vector["header_values"].as_object().unwrap() {
                if let Some(value) = value.as_str() {
                    insert(name, value);
                }
            }
            insert("host", vector["host"].as_str().unwrap());
            insert("authorization", vector["authorization"].as_str().unwrap());
            let request_target = text(&vector["request_target"]);
            Vector {
                name: text(&vector["name"]),
                method: text(&vector["method"]),
                target: request_target.split_once(' ').unwrap().1.to_owned(),
                headers,
                signing_string: text(&vector["signing_string"]),
                body: text(&vector["body_utf8"]),
            }
        });
        (public_key(&spki).unwrap(), date, vectors.collect())
    }

    fn required(vector: &Vector) -> &'static [&'static str] {
        match (vector.method.as_str(), vector.target.as_str()) {
            (_, "/v1/x509") => FEDERATION,
            ("POST", _) => WITH_BODY,
            _ => READING,
        }
    }

    fn check(
        vector: &Vector,
        now: SystemTime,
        key: &ParsedPublicKey,
    ) -> Result<Option<String>, Refusal> {
        let request = SignedRequest {
            method: &vector.method,
            target: &vector.target,
            headers: &vector.headers,
        };
        request.check(&request.signature()?, required(vector), now, key)
    }

    #[test]
    fn every_vector_of_the_official_signer_is_accepted() {
        let (key, date, vectors) = vectors();
        assert_eq!(vectors.len(), 17);
        for vector in vectors {
            let request = SignedRequest {
                method: &vector.method,
                target: &vector.target,
                headers: &vector.headers,
            };
            let string = request.signing_string(&request.signature().unwrap()).unwrap();
            assert_eq!(String::from_utf8_lossy(&string), vector.signing_string, "{}", vector.name);
            let body_digest = check(&vector, date, &key).expect(&vector.name);
            if let Some(digest) = body_digest {
                assert_eq!(digest, content_sha256(vector.body.as_bytes()), "{}", vector.name);
            }
        }
    }

    #[test]
    fn one_changed_byte_in_anything_signed_is_refused() {
        let (key, date, vectors) = vectors();
        for vector in &vectors {
            for line in vector.signing_string.lines() {
                let name = line.split_once(": ").unwrap().0;
                let mut headers = vector.headers.clone();
                let mut target = vector.target.clone();
                if name == "(request-target)" {
                    target.push('x');
                } else {
                    let value = headers[name].to_str().unwrap();
                    // A date one second on is still a date within the skew.
                    let mut changed = value.replace(":40 GMT", ":41 GMT");
                    if changed == value {
                        changed.push('x');
                    }
                    headers.insert(
                        HeaderName::from_bytes(name.as_bytes()).unwrap(),
                        HeaderValue::from_str(&changed).unwrap(),
                    );
                }
                let request =
                    SignedRequest { method: &vector.method, target: &target, headers: &headers };
                let signature = request.signature().unwrap();
                let result = request.check(&signature, required(vector), date, &key);
                assert_eq!(result, Err(Refusal::WrongSignature), "{}: {name}", vector.name);
            }
            let method = if vector.method == "GET" { "HEAD" } else { "GET" };
            let request =
                SignedRequest { method, target: &vector.target, headers: &vector.headers };
            let signature = request.signature().unwrap();
            let result = request.check(&signature, required(vector), date, &key);
            assert_eq!(result, Err(Refusal::WrongSignature), "{}: method", vector.name);
        }
    }

    #[test]
    fn five_minutes_of_skew_pass_and_one_second_more_does_not() {
        let (key, date, vectors) = vectors();
        let vector = &vectors[0];
        let second = Duration::from_secs(1);
        for accepted in [date + MAX_SKEW, date - MAX_SKEW] {
            assert!(check(vector, accepted, &key).is_ok());
        }
        for refused in [date + MAX_SKEW + second, date - MAX_SKEW - second] {
            assert_eq!(check(vector, refused, &key), Err(Refusal::Skew { seconds: 301 }));
        }
    }

    #[test]
    fn mandatory_headers_must_be_signed() {
        let (key, date, vectors) = vectors();
        for vector in vectors.iter().filter(|vector| required(vector) == READING) {
            let request = SignedRequest {
                method: &vector.method,
                target: &vector.target,
                headers: &vector.headers,
            };
            let refusal = request.check(&request.signature().unwrap(), WITH_BODY, date, &key);
            assert_eq!(refusal, Err(Refusal::NotSigned("content-length".to_owned())));
        }
    }

    #[test]
    fn parameters_come_in_any_order() {
        let python = r#"Signature algorithm="rsa-sha256",headers="date host",keyId="k",signature="AAAA",version="1""#;
        let go = r#"Signature version="1",headers="date host", keyId="k",algorithm="rsa-sha256",signature="AAAA""#;
        assert_eq!(Signature::parse(python).unwrap(), Signature::parse(go).unwrap());
        for broken in [
            "Bearer Oracle",
            r#"Signature keyId="k""#,
            r#"Signature version="2",headers="date",keyId="k",algorithm="rsa-sha256",signature="AAAA""#,
            r#"Signature headers="date",keyId="k",algorithm="hmac-sha256",signature="AAAA""#,
            r#"Signature headers="date",keyId="k",algorithm="rsa-sha256",signature="?""#,
        ] {
            assert_eq!(Signature::parse(broken), Err(Refusal::Malformed), "{broken}");
        }
    }
}
