//! A base URL whose paths go to the wire byte for byte.

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

use super::error::StorageError;

/// `http(s)://host[:port][/path]`, taken apart once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    scheme: Scheme,
    authority: Authority,
    /// Without a trailing slash; empty for a bare host.
    path: String,
}

impl Endpoint {
    /// Parses `text`, which came from `what`: user info, query and fragment are refused.
    pub(crate) fn parse(text: &str, what: &str) -> Result<Self, StorageError> {
        let refuse = |why: &str| {
            Err(StorageError::config(format!("reading {what} {text:?}"), why)
                .with_remedy("write it as https://HOST or http://HOST:PORT"))
        };
        if text.contains(['?', '#']) {
            return refuse("it must have neither a query nor a fragment");
        }
        let Ok(uri) = text.trim().parse::<Uri>() else { return refuse("it is not a URL") };
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return refuse("it needs a scheme and a host");
        };
        if scheme != Scheme::HTTP && scheme != Scheme::HTTPS {
            return refuse("the scheme must be http or https");
        }
        if authority.as_str().contains('@') {
            return refuse("it must not contain user information");
        }
        // The signature covers the Host header, which omits a default port.
        let default_port = if scheme == Scheme::HTTPS { 443 } else { 80 };
        let host = authority.host().to_ascii_lowercase();
        let authority = match authority.port_u16() {
            Some(port) if port != default_port => format!("{host}:{port}"),
            _ => host,
        };
        let Ok(authority) = authority.parse() else { return refuse("its host is not valid") };
        let path = parts.path_and_query.map_or(String::new(), |path| path.as_str().to_owned());
        Ok(Self { scheme, authority, path: path.trim_end_matches('/').to_owned() })
    }

    /// As [`parse`](Self::parse), but a path is refused too.
    pub(crate) fn parse_bare(text: &str, what: &str) -> Result<Self, StorageError> {
        let endpoint = Self::parse(text, what)?;
        if endpoint.path.is_empty() {
            return Ok(endpoint);
        }
        Err(StorageError::config(format!("reading {what} {text:?}"), "it must not have a path"))
    }

    /// The `Host` header's value.
    pub(crate) fn host(&self) -> &str {
        self.authority.as_str()
    }

    pub(crate) fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// The host without its port.
    pub(crate) fn hostname(&self) -> &str {
        self.authority.host()
    }

    /// `scheme://host[:port]`.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// This endpoint's own path followed by `below`, which is already encoded.
    pub(crate) fn target(&self, below: &str) -> String {
        format!("{}{below}", self.path)
    }

    /// The URI of a target; `http::Uri` keeps its bytes, `..` included.
    pub(crate) fn uri(&self, target: &str) -> Result<Uri, http::Error> {
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(PathAndQuery::try_from(target)?)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_lower_case_and_without_a_default_port() {
        for (text, host) in [
            ("https://Objectstorage.example.com:443/", "objectstorage.example.com"),
            ("http://127.0.0.1:18080", "127.0.0.1:18080"),
            ("http://localhost:80", "localhost"),
            ("http://[::1]:80/opc/v2", "[::1]"),
        ] {
            assert_eq!(Endpoint::parse(text, "endpoint").unwrap().host(), host);
        }
    }

    #[test]
    fn an_invalid_endpoint_is_refused_with_the_reason() {
        for (text, why) in [
            ("objectstorage.example.com", "scheme"),
            ("ftp://x", "http or https"),
            ("https://user:secret@x", "user information"),
            ("https://x/?a=b", "query"),
            ("https://x/n", "path"),
            ("https:// x", "not a URL"),
        ] {
            let error = Endpoint::parse_bare(text, "endpoint").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn dots_and_encoded_slashes_reach_the_uri_unchanged() {
        let endpoint = Endpoint::parse_bare("https://x", "endpoint").unwrap();
        for target in ["/n/ns/b/bk/o/..", "/n/ns/b/bk/o/a%2F..%2Fx", "/n/a//b/../c?q=%2e%2e"] {
            let uri = endpoint.uri(target).unwrap();
            assert_eq!(uri.path_and_query().unwrap().as_str(), target);
        }
    }
}
