//! The request signature: a pure function.
//!
//! draft-cavage HTTP signatures as Oracle uses them ("Request Signatures" in
//! the OCI documentation): `rsa-sha256` over the lines `name: value`, the date
//! first, as the official SDKs do it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::key::{KeyError, KeyPair, sha256};

/// The content type of every body that is signed here.
pub const JSON: &str = "application/json";

/// Which header has the signed date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DateHeader {
    /// `date`.
    #[default]
    Date,
    /// `x-date`, for HTTP stacks that own the `Date` header.
    XDate,
}

/// A body whose hash is signed. Object uploads are sent without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body<'a> {
    /// The value of `content-type`.
    pub content_type: &'a str,
    /// All of its bytes.
    pub bytes: &'a [u8],
}

/// The signed parts of a request: the very values that are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// In any case.
    pub method: &'a str,
    /// Path and query exactly as in the request line.
    pub target: &'a str,
    /// The `Host` header with its port, or `None` to leave it unsigned (federation).
    pub host: Option<&'a str>,
    /// The date header's value, an HTTP date within five minutes of the service's clock.
    pub date: &'a str,
    /// The date header's name.
    pub date_header: DateHeader,
    /// Set for POST, even when it is empty.
    pub body: Option<Body<'a>>,
}

/// The input of the signature, before the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningString {
    /// The names in order, separated by blanks.
    pub headers: String,
    /// The signed text.
    pub text: String,
    /// The `x-content-sha256` header, where there is a body.
    pub content_sha256: Option<String>,
}

impl Request<'_> {
    /// Computes the names and the text to sign.
    pub fn signing_string(&self) -> SigningString {
        let date_header = match self.date_header {
            DateHeader::Date => "date",
            DateHeader::XDate => "x-date",
        };
        let target = format!("{} {}", self.method.to_ascii_lowercase(), self.target);
        let mut lines = vec![(date_header, self.date.to_owned()), ("(request-target)", target)];
        lines.extend(self.host.map(|host| ("host", host.to_owned())));
        let content_sha256 = self.body.map(|body| BASE64.encode(sha256(body.bytes)));
        if let (Some(body), Some(hash)) = (self.body, &content_sha256) {
            lines.push(("content-length", body.bytes.len().to_string()));
            lines.push(("content-type", body.content_type.to_owned()));
            lines.push(("x-content-sha256", hash.clone()));
        }
        let headers: Vec<_> = lines.iter().map(|(name, _)| *name).collect();
        let text: Vec<_> = lines.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        SigningString { headers: headers.join(" "), text: text.join("\n"), content_sha256 }
    }
}

/// A signed request's two headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The value of `authorization`.
    pub authorization: String,
    /// The value of `x-content-sha256`, where there is a body.
    pub content_sha256: Option<String>,
}

/// Signs `request` with `key`, which the service knows as `key_id`.
pub fn sign(request: &Request<'_>, key_id: &str, key: &KeyPair) -> Result<Signed, KeyError> {
    let SigningString { headers, text, content_sha256 } = request.signing_string();
    let signature = BASE64.encode(key.sign(text.as_bytes())?);
    let authorization = format!(
        "Signature version=\"1\",keyId=\"{key_id}\",algorithm=\"rsa-sha256\",\
         headers=\"{headers}\",signature=\"{signature}\""
    );
    Ok(Signed { authorization, content_sha256 })
}

#[cfg(test)]
#[path = "sign_tests.rs"]
pub(super) mod tests;
