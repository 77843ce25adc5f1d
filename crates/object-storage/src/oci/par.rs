//! Pre-authenticated requests: URLs that are credentials. They need no signature.
//!
//! `https://HOST/p/TOKEN/n/NAMESPACE/b/BUCKET/o/OBJECT`; that of many objects ends behind `/o/`.
//! Nothing of the token leaves this module but in a request and as a digest.

use std::fmt;
use std::net::IpAddr;

use percent_encoding::percent_decode_str;

use super::encode::strict;
use super::endpoint::Endpoint;
use super::error::{StorageError, StorageErrorKind};
use super::key::{hex, sha256};
use crate::source::Bucket;

/// The longest URL that is read: an object's name of 1,024 bytes, each of them encoded.
const LONGEST: usize = 4096;

/// The form, for messages.
const FORM: &str = "https://HOST/p/TOKEN/n/NAMESPACE/b/BUCKET/o/";

/// The URL of a pre-authenticated request, taken apart once. `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct ParUrl {
    endpoint: Endpoint,
    token: String,
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
        Ok(Self { endpoint, token: token.to_owned(), bucket, object: decoded(object)? })
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
        Ok(format!("/p/{}{objects}{slash}{below}", self.token))
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
