//! Pre-authenticated requests: URLs that are credentials. They need no signature.
//!
//! `https://HOST/p/TOKEN/n/NAMESPACE/b/BUCKET/o/OBJECT`; that of many objects ends behind `/o/`.
//! Nothing of the token leaves this module but in a request and as a digest.

use std::fmt;
use std::net::IpAddr;

use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::encode::strict;
use super::endpoint::Endpoint;
use super::error::{StorageError, StorageErrorKind};
use super::key::{hex, sha256};
use crate::source::Bucket;

/// The longest URL that is read: an object's name of 1,024 bytes, each of them encoded.
const LONGEST: usize = 4096;

/// The shortest token that is looked for in answers; the service's have 64 characters.
const SHORTEST_TOKEN: usize = 16;

/// What replaces it there. Headers are ASCII.
const HIDDEN: &[u8] = b"...";

/// The form, for messages.
const FORM: &str = "https://HOST/p/TOKEN/n/NAMESPACE/b/BUCKET/o/";

/// The URL of a pre-authenticated request, taken apart once. `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct ParUrl {
    endpoint: Endpoint,
    token: Zeroizing<String>,
    bucket: Bucket,
    object: String,
}

impl ParUrl {
    /// Parses a URL, with blanks around it.
    ///
    /// # Errors
    /// `Invalid`, with what is wrong and without any part of the URL.
    pub fn parse(text: &str) -> Result<Self, StorageError> {
        let refuse = |why: &str| {
            let attempted = "reading the URL of the pre-authenticated request";
            StorageError::new(StorageErrorKind::Invalid, attempted, why)
                .with_remedy(format!("it has the form {FORM}, and is shown when it is created"))
        };
        let text = text.trim();
        if text.len() > LONGEST {
            return Err(refuse("it is longer than such a URL can be"));
        }
        if text.contains(char::is_whitespace) {
            return Err(refuse("there is more than one line or word"));
        }
        let split = text.split_once("/p/").ok_or_else(|| refuse("it has no /p/"))?;
        let (origin, path) = split;
        // The endpoint's own errors quote it, and it may be anything.
        let endpoint = Endpoint::parse_bare(origin, "the host")
            .map_err(|_| refuse("it does not begin with https:// and a host"))?;
        if path.contains(['?', '#']) {
            return Err(refuse("it has a query or a fragment"));
        }
        let mut segments = path.splitn(7, '/');
        let mut next = || segments.next().unwrap_or_default();
        let (token, n, namespace, b, bucket) = (next(), next(), next(), next(), next());
        let (o, object) = (next(), next());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%+=".contains(&byte);
        if token.is_empty() || !token.bytes().all(plain) || (n, b, o) != ("n", "b", "o") {
            return Err(refuse("its path has another form"));
        }
        let decoded = |raw: &str| {
            let text = percent_decode_str(raw).decode_utf8();
            text.map(std::borrow::Cow::into_owned).map_err(|_| refuse("its path is not UTF-8"))
        };
        let bucket = Bucket::new(decoded(namespace)?, decoded(bucket)?);
        if bucket.namespace.is_empty() || bucket.name.is_empty() {
            return Err(refuse("it names no namespace or no bucket"));
        }
        let token = Zeroizing::new(token.to_owned());
        Ok(Self { endpoint, token, bucket, object: decoded(object)? })
    }

    /// The bucket that it is about.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// What follows `/o/`: the one object, or the beginning of the names of many. Empty where the
    /// URL does not say.
    pub fn object(&self) -> &str {
        &self.object
    }

    /// Whether its requests, and with them the token, would go over the network as plain text.
    pub fn is_in_the_clear(&self) -> bool {
        let host = self.endpoint.hostname();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let is_local = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        self.endpoint.origin().starts_with("http://") && !is_local
    }

    /// `scheme://host[:port]`.
    pub fn origin(&self) -> String {
        self.endpoint.origin()
    }

    /// SHA-256 of the token in hex, which recognizes it later.
    pub(super) fn digest(&self) -> String {
        hex(sha256(self.token.as_bytes()).as_ref())
    }

    /// The body of an answer without the token. Proxies and portals quote the URL of a request, in
    /// whatever way they encode it, and a message may end in the middle of it.
    pub(super) fn hidden_in(&self, body: &[u8]) -> Vec<u8> {
        let token = self.token.as_bytes();
        let (mut hidden, mut rest) = (Vec::with_capacity(body.len()), body);
        if token.len() >= SHORTEST_TOKEN {
            while let Some(at) = rest.windows(token.len()).position(|part| part == token) {
                hidden.extend_from_slice(&rest[..at]);
                hidden.extend_from_slice(HIDDEN);
                rest = &rest[at + token.len()..];
            }
        }
        hidden.extend_from_slice(rest);
        hidden
    }

    /// The headers of an answer without the token.
    pub(super) fn hidden_in_headers(&self, headers: &HeaderMap) -> HeaderMap {
        let mut headers = headers.clone();
        for value in headers.values_mut() {
            if let Ok(hidden) = HeaderValue::from_bytes(&self.hidden_in(value.as_bytes())) {
                *value = hidden;
            }
        }
        headers
    }

    /// The target of a request about a bucket, sent with the token in place of a signature.
    ///
    /// # Errors
    /// Why this URL cannot permit the request.
    pub(super) fn target(
        &self,
        bucket: Option<&Bucket>,
        target: &str,
    ) -> Result<String, NotPermitted> {
        let bucket = bucket.ok_or(NotPermitted::Operation)?;
        if *bucket != self.bucket {
            return Err(NotPermitted::Bucket);
        }
        let objects = format!("/n/{}/b/{}/o", strict(&bucket.namespace), strict(&bucket.name));
        let below = target.strip_prefix(&objects).filter(|rest| rest.starts_with(['?', '/']));
        let below = below.ok_or(NotPermitted::Operation)?;
        // The service wants a slash before the query of a listing.
        let slash = if below.starts_with('?') { "/" } else { "" };
        Ok(format!("/p/{}{objects}{slash}{below}", *self.token))
    }
}

/// Why a pre-authenticated request cannot permit something, whatever the service says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotPermitted {
    /// It is about another bucket or namespace.
    Bucket,
    /// It neither lists nor reads objects.
    Operation,
}

impl fmt::Debug for ParUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ParUrl(..)")
    }
}

/// What to do where a pre-authenticated request does not permit something.
pub(super) fn how_to_create(bucket: &str) -> String {
    format!(
        "create one that has not expired and may list: oci os preauth-request create --bucket-name \
         {bucket} --name NAME --access-type AnyObjectRead --bucket-listing-action ListObjects \
         --time-expires DATE; if it has --object-name, end its URL with the same prefix"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::test_server::{ScriptedAnswer, TestServer};
    use crate::oci::{Environment, ObjectStorage, Settings};
    use crate::source::AuthMethod;

    const URL: &str =
        "https://objectstorage.us-ashburn-1.oraclecloud.com/p/s3cret_T-1/n/ns/b/bk/o/m/a%20b/";

    #[test]
    fn a_url_is_taken_apart_and_printed_nowhere() {
        let par = ParUrl::parse(&format!(" {URL}\n")).unwrap();
        assert_eq!(*par.bucket(), Bucket::new("ns", "bk"));
        assert_eq!(par.object(), "m/a b/");
        assert_eq!(par.origin(), "https://objectstorage.us-ashburn-1.oraclecloud.com");
        assert_eq!(format!("{par:?}"), "ParUrl(..)");
        let dedicated = "https://ns.objectstorage.x-y-1.oci.customer-oci.com/p/t/n/ns/b/bk/o/";
        assert_eq!(ParUrl::parse(dedicated).unwrap().object(), "");
        for (host, clear) in [
            ("http://127.0.0.1:80", false),
            ("http://localhost", false),
            ("http://[::1]:80", false),
            ("https://x.example", false),
            ("http://x.example:8080", true),
            ("http://127.example", true),
        ] {
            let par = ParUrl::parse(&format!("{host}/p/t/n/ns/b/bk/o/")).unwrap();
            assert_eq!(par.is_in_the_clear(), clear, "{host}");
        }
    }

    #[test]
    fn requests_for_objects_of_the_bucket_have_the_token_and_others_are_refused() {
        let par = ParUrl::parse(URL).unwrap();
        let own = Bucket::new("ns", "bk");
        let list = par.target(Some(&own), "/n/ns/b/bk/o?prefix=m%2F").unwrap();
        assert_eq!(list, "/p/s3cret_T-1/n/ns/b/bk/o/?prefix=m%2F");
        let get = par.target(Some(&own), "/n/ns/b/bk/o/m%2Fx").unwrap();
        assert_eq!(get, "/p/s3cret_T-1/n/ns/b/bk/o/m%2Fx");
        for (bucket, target, why) in [
            (Some(Bucket::new("ns", "other")), "/n/ns/b/other/o/x", NotPermitted::Bucket),
            (Some(Bucket::new("other", "bk")), "/n/other/b/bk/o/x", NotPermitted::Bucket),
            (Some(own), "/n/ns/b/bk", NotPermitted::Operation),
            (None, "/n", NotPermitted::Operation),
        ] {
            assert_eq!(par.target(bucket.as_ref(), target), Err(why), "{target}");
        }
    }

    #[test]
    fn the_token_is_hidden_wherever_an_answer_has_it() {
        let token = "s3cret".repeat(10);
        let par = ParUrl::parse(&URL.replace("s3cret_T-1", &token)).unwrap();
        let body = format!("%2Fp%2F{token}%2Fn, \\/p\\/{token}\\/n and {token}");
        let hidden = String::from_utf8(par.hidden_in(body.as_bytes())).unwrap();
        assert_eq!(hidden, "%2Fp%2F...%2Fn, \\/p\\/...\\/n and ...");
        let mut headers = HeaderMap::new();
        headers.insert("location", format!("/blocked/p/{token}").parse().unwrap());
        assert_eq!(par.hidden_in_headers(&headers)["location"], "/blocked/p/...");
        assert_eq!(par.hidden_in(b"as it is"), b"as it is");
    }

    #[tokio::test]
    async fn no_error_has_the_token_that_an_answer_repeats_encoded_or_cut_short() {
        let token = "s3cret".repeat(10);
        let encoded = format!("%2Fp%2F{token}%2Fn%2Fns");
        let server = TestServer::start(move |number, _| match number {
            0 => ScriptedAnswer::new(302, "").header("location", &format!("/x?{encoded}")),
            1 => ScriptedAnswer::new(302, "").header("location", &format!("/x/{encoded}")),
            _ => {
                let message = format!("{:x<280}{encoded}", "");
                ScriptedAnswer::new(403, format!(r#"{{"message":"{message}"}}"#))
            }
        })
        .await;
        let url = format!("{}/p/{}/n/ns/b/bk/o/", server.url, "s3cret".repeat(10));
        let settings = Settings {
            endpoint: Some(server.url.clone()),
            environment: Environment::empty(),
            par: Some(ParUrl::parse(&url).unwrap()),
            ..Settings::new(AuthMethod::None)
        };
        let client = ObjectStorage::connect(settings).await.unwrap();
        let object = std::sync::Arc::new(Bucket::new("ns", "bk")).object("m/x");
        for said in ["to /x, which", "to /x/%2Fp%2F...%2Fn%2Fns, which", "xx%2Fp%2F...%2Fn%2Fns"] {
            let error = client.get_object(&object, "e", None).await.unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("s3cret"), "{error}");
        }
        assert!(server.seen().iter().all(|one| one.target.contains("s3cret")), "the premise");
    }

    #[test]
    fn another_text_is_refused_and_never_quoted() {
        for text in [
            "",
            "s3cret",
            "oci://s3cret@ns/p/x",
            "https://x/n/s3cret/b/bk/o/",
            "https://x/p/s3cret",
            "https://x/p/s3cret/n/ns/b/bk/u/",
            "https://x/p/s3cret/n//b/bk/o/",
            "https://x/p/s3cret/n/ns/b//o/",
            "https://x/p/s3\"cret/n/ns/b/bk/o/",
            "https://x/p/s3cret/n/ns/b/bk/o/?x=y",
            "https://x/p/s3cret/n/ns/b/bk/o/%FF",
            "https://me:s3cret@x/p/t/n/ns/b/bk/o/",
            "https://x/s3cret/p/t/n/ns/b/bk/o/",
            "ftp://x/p/s3cret/n/ns/b/bk/o/",
            "https://x/p/s3cret/n/ns/b/bk/o/\nhttps://y/p/s3cret/n/ns/b/bk/o/",
            &format!("{URL}{}", "s3cret".repeat(1000)),
        ] {
            let error = ParUrl::parse(text).unwrap_err();
            assert_eq!(error.kind(), StorageErrorKind::Invalid);
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }
}
