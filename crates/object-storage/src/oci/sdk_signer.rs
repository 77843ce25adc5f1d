//! Signing through oci-rust-sdk, with the feature of that name, which is off by default.
//!
//! Only API keys are signed here: the crate fetches key id and key separately, so it
//! cannot sign with a credential that changes. docs/decisions/0001-oci-rust-sdk.md
//! describes its licence and its limits.

use std::sync::Arc;

use http::HeaderMap;
use oci_rust_sdk::auth::{AuthProvider, RequestSigner};

use super::error::StorageError;
use super::key::KeyPair;
use super::sign::{DateHeader, Request, Signed};
use crate::http_error::header_text;

/// One API key's signer.
pub(crate) struct SdkSigner(RequestSigner);

/// What the crate asks for, piece by piece.
struct FixedKey {
    key_id: String,
    pem: String,
}

impl AuthProvider for FixedKey {
    fn get_key_id(&self) -> String {
        self.key_id.clone()
    }

    fn get_private_key(&self) -> &str {
        &self.pem
    }

    fn get_passphrase(&self) -> Option<&str> {
        None
    }
}

impl SdkSigner {
    /// The crate reads unencrypted PKCS#8 only, so the key is written as that, whatever it was.
    pub(crate) fn new(key_id: &str, key: &KeyPair) -> Result<Self, StorageError> {
        let pem = key.to_pkcs8_pem().map_err(|error| refused(error.to_string()))?;
        let provider = FixedKey { key_id: key_id.to_owned(), pem };
        RequestSigner::new(Arc::new(provider)).map(Self).map_err(|error| refused(error.to_string()))
    }

    /// Signs the same as our own signer, except for the order of the headers.
    pub(crate) fn sign(&self, request: &Request<'_>, origin: &str) -> Result<Signed, StorageError> {
        // The URL's type belongs to a dependency of the crate: inferred, so that this crate needs none.
        let url = format!("{origin}{}", request.target)
            .parse()
            .map_err(|_| refused(format!("{origin}{} is not a URL", request.target)))?;
        let mut headers = HeaderMap::new();
        let date_header = match request.date_header {
            DateHeader::Date => "date",
            DateHeader::XDate => "x-date",
        };
        let mut set = |name: &'static str, value: &str| {
            let value = value.parse().map_err(|_| refused(format!("{name} is not a header")))?;
            headers.insert(name, value);
            Ok::<_, StorageError>(())
        };
        set(date_header, request.date)?;
        if let Some(host) = request.host {
            set("host", host)?;
        }
        if let Some(body) = request.body {
            set("content-type", body.content_type)?;
        }
        let body = request.body.map(|body| body.bytes);
        self.0
            .sign_request(request.method, &url, &mut headers, body)
            .map_err(|error| refused(error.to_string()))?;
        // The URL parser collapses `..` segments: another object, correctly signed.
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let seen = format!("{}{query}", url.path());
        if seen != request.target {
            return Err(refused(format!("it would sign {seen:?} instead of {:?}", request.target)));
        }
        let take = |name| header_text(&headers, name).map(str::to_owned);
        Ok(Signed {
            authorization: take("authorization").ok_or_else(|| refused("no signature".into()))?,
            content_sha256: take("x-content-sha256"),
        })
    }
}

fn refused(why: String) -> StorageError {
    StorageError::config("signing through oci-rust-sdk", why)
}
