//! From the request line to an operation, on the raw bytes of the path.
//!
//! The path is never normalized: everything after `/o/` or `/u/` is the object's
//! name, percent-decoded once, so that `//`, `..` and a literal `%20` survive.

use http::Method;
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ApiResult};

/// The operation of a request. The serialized names are those of fault rules and statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// GetNamespace: `GET /n`.
    GetNamespace,
    /// GetNamespaceMetadata: `GET /n/{ns}`.
    GetNamespaceMetadata,
    /// ListBuckets.
    ListBuckets,
    /// CreateBucket.
    CreateBucket,
    /// GetBucket.
    GetBucket,
    /// HeadBucket.
    HeadBucket,
    /// UpdateBucket.
    UpdateBucket,
    /// DeleteBucket.
    DeleteBucket,
    /// ListObjects.
    List,
    /// GetObject.
    Get,
    /// HeadObject.
    Head,
    /// PutObject.
    Put,
    /// DeleteObject.
    Delete,
    /// CreateMultipartUpload.
    CreateUpload,
    /// ListMultipartUploads.
    ListUploads,
    /// UploadPart.
    UploadPart,
    /// ListMultipartUploadParts.
    ListParts,
    /// CommitMultipartUpload.
    CommitUpload,
    /// AbortMultipartUpload.
    AbortUpload,
    /// RestoreObjects.
    Restore,
    /// CreatePreauthenticatedRequest.
    CreatePar,
    /// ListPreauthenticatedRequests.
    ListPars,
    /// GetPreauthenticatedRequest.
    GetPar,
    /// DeletePreauthenticatedRequest.
    DeletePar,
    /// The instance metadata service.
    Imds,
    /// The identity service's certificate exchange, `POST /v1/x509`.
    Federation,
    /// OKE's exchange of service-account tokens, `POST /resourcePrincipalSessionTokens`.
    WorkloadIdentity,
    /// This server's own `/_localstore/…`.
    Admin,
    /// Anything else.
    Unknown,
}

impl Operation {
    /// Whether the request's body is an object's bytes: streamed, and not signed.
    pub fn carries_object_bytes(self) -> bool {
        matches!(self, Self::Put | Self::UploadPart)
    }
}

/// A parsed request line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) operation: Operation,
    pub(crate) namespace: String,
    /// Empty where the operation has no bucket.
    pub(crate) bucket: String,
    /// Empty where the operation has no object.
    pub(crate) object: String,
    /// The raw path, for the operations that are not Object Storage's.
    pub(crate) path: String,
    pub(crate) query: Query,
    /// The secret of a pre-authenticated request: `/p/{secret}/n/…`.
    pub(crate) par: Option<String>,
}

impl Target {
    /// The target of a request that matches no route.
    pub(crate) fn unknown(path: &str) -> Self {
        Self {
            operation: Operation::Unknown,
            namespace: String::new(),
            bucket: String::new(),
            object: String::new(),
            path: path.to_owned(),
            query: Query::default(),
            par: None,
        }
    }

    pub(crate) fn parse(method: &Method, path: &str, query: Option<&str>) -> ApiResult<Self> {
        let mut target = Self::unknown(path);
        target.query = Query::parse(query.unwrap_or_default());
        target.operation = if path.starts_with("/opc/") {
            Operation::Imds
        } else if path == "/v1/x509" {
            Operation::Federation
        } else if path == "/resourcePrincipalSessionTokens" {
            Operation::WorkloadIdentity
        } else if path.starts_with("/_localstore/") {
            Operation::Admin
        } else if path == "/n" || path == "/n/" {
            if method == Method::GET { Operation::GetNamespace } else { Operation::Unknown }
        } else if let Some(rest) = path.strip_prefix("/n/") {
            target.parse_namespaced(method, rest)?
        } else if let Some((secret, rest)) =
            path.strip_prefix("/p/").and_then(|rest| rest.split_once("/n/"))
        {
            target.par = Some(decode(secret, "InvalidParameter")?);
            target.parse_namespaced(method, rest)?
        } else {
            Operation::Unknown
        };
        Ok(target)
    }

    /// `{ns}`, `{ns}/b`, `{ns}/b/{bucket}`, `{ns}/b/{bucket}/{kind}`, `{ns}/b/{bucket}/{kind}/{object}`.
    fn parse_namespaced(&mut self, method: &Method, rest: &str) -> ApiResult<Operation> {
        let mut segments = rest.splitn(5, '/');
        let mut next = || segments.next().unwrap_or_default();
        self.namespace = decode(next(), "InvalidParameter")?;
        let (b, bucket, kind, object) = (next(), next(), next(), next());
        self.bucket = decode(bucket, "InvalidBucketName")?;
        self.object = decode(object, "InvalidObjectName")?;
        let method = method.as_str();
        Ok(match (b, bucket, kind, object) {
            ("", "", "", "") if method == "GET" => Operation::GetNamespaceMetadata,
            ("b", "", "", "") => match method {
                "GET" => Operation::ListBuckets,
                "POST" => Operation::CreateBucket,
                _ => Operation::Unknown,
            },
            ("b", _, "", "") => match method {
                "GET" => Operation::GetBucket,
                "HEAD" => Operation::HeadBucket,
                "POST" => Operation::UpdateBucket,
                "DELETE" => Operation::DeleteBucket,
                _ => Operation::Unknown,
            },
            ("b", _, "o", "") if method == "GET" => Operation::List,
            ("b", _, "o", object) if !object.is_empty() => match method {
                "GET" => Operation::Get,
                "HEAD" => Operation::Head,
                "PUT" => Operation::Put,
                "DELETE" => Operation::Delete,
                _ => Operation::Unknown,
            },
            ("b", _, "u", "") => match method {
                "GET" => Operation::ListUploads,
                "POST" => Operation::CreateUpload,
                _ => Operation::Unknown,
            },
            ("b", _, "u", _) => match method {
                "PUT" => Operation::UploadPart,
                "GET" => Operation::ListParts,
                "POST" => Operation::CommitUpload,
                "DELETE" => Operation::AbortUpload,
                _ => Operation::Unknown,
            },
            ("b", _, "p", "") => match method {
                "GET" => Operation::ListPars,
                "POST" => Operation::CreatePar,
                _ => Operation::Unknown,
            },
            ("b", _, "p", _) => match method {
                "GET" => Operation::GetPar,
                "DELETE" => Operation::DeletePar,
                _ => Operation::Unknown,
            },
            ("b", _, "actions", "restoreObjects") if method == "POST" => Operation::Restore,
            _ => Operation::Unknown,
        })
    }
}

fn decode(raw: &str, code: &'static str) -> ApiResult<String> {
    percent_decode_str(raw)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| ApiError::bad_request(code, format!("'{raw}' is not UTF-8 once decoded")))
}

/// The query, where `+` and `%20` are both a space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(raw: &str) -> Self {
        let decode = |text: &str| {
            percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
        };
        Self(
            raw.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A required parameter.
    pub(crate) fn required(&self, name: &'static str) -> ApiResult<&str> {
        self.get(name).ok_or_else(|| {
            ApiError::bad_request(
                "MissingParameter",
                format!("The query parameter {name} is missing"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object_of(path: &str) -> (Operation, String) {
        let target = Target::parse(&Method::GET, path, None).unwrap();
        (target.operation, target.object)
    }

    #[test]
    fn an_object_name_is_all_that_follows_o_decoded_once() {
        for (path, name) in [
            ("/n/ns/b/bk/o/llama%2Fa", "llama/a"),
            ("/n/ns/b/bk/o/llama/a", "llama/a"),
            ("/n/ns/b/bk/o//a//b/", "/a//b/"),
            ("/n/ns/b/bk/o/a/../b", "a/../b"),
            ("/n/ns/b/bk/o/..", ".."),
            ("/n/ns/b/bk/o/a+b%2520c", "a+b%20c"),
            ("/n/ns/b/bk/o/%C3%BCn%C3%AF", "ünï"),
            ("/n/ns/b/bk/o/o/o", "o/o"),
        ] {
            assert_eq!(object_of(path), (Operation::Get, name.to_owned()), "{path}");
        }
    }

    #[test]
    fn names_that_are_not_utf8_are_refused() {
        let error = Target::parse(&Method::GET, "/n/ns/b/bk/o/%FF", None).unwrap_err();
        assert_eq!(error.code, "InvalidObjectName");
    }

    #[test]
    fn routes_follow_the_path_table() {
        use Operation as Op;
        for (method, path, operation) in [
            ("GET", "/n", Op::GetNamespace),
            ("GET", "/n/", Op::GetNamespace),
            ("GET", "/n/ns", Op::GetNamespaceMetadata),
            ("GET", "/n/ns/b", Op::ListBuckets),
            ("POST", "/n/ns/b/", Op::CreateBucket),
            ("HEAD", "/n/ns/b/bk", Op::HeadBucket),
            ("POST", "/n/ns/b/bk/", Op::UpdateBucket),
            ("GET", "/n/ns/b/bk/o", Op::List),
            ("GET", "/n/ns/b/bk/o/", Op::List),
            ("PUT", "/n/ns/b/bk/o/x", Op::Put),
            ("PUT", "/n/ns/b/bk/o/", Op::Unknown),
            ("POST", "/n/ns/b/bk/u", Op::CreateUpload),
            ("PUT", "/n/ns/b/bk/u/x/y", Op::UploadPart),
            ("POST", "/n/ns/b/bk/u/x", Op::CommitUpload),
            ("POST", "/n/ns/b/bk/actions/restoreObjects", Op::Restore),
            ("POST", "/n/ns/b/bk/p/", Op::CreatePar),
            ("GET", "/n/ns/b/bk/p", Op::ListPars),
            ("DELETE", "/n/ns/b/bk/p/id", Op::DeletePar),
            ("GET", "/p/secret/n/ns/b/bk/o/", Op::List),
            ("GET", "/p/secret/n/ns/b/bk/o/x/y", Op::Get),
            ("GET", "/opc/v2/instance/region", Op::Imds),
            ("POST", "/v1/x509", Op::Federation),
            ("POST", "/resourcePrincipalSessionTokens", Op::WorkloadIdentity),
            ("GET", "/elsewhere", Op::Unknown),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let target = Target::parse(&method, path, None).unwrap();
            assert_eq!(target.operation, operation, "{method} {path}");
        }
    }

    #[test]
    fn plus_is_a_space_in_the_query_only() {
        let query = Query::parse("prefix=llama+3%2F&start=a%2Bb&flag&x=%20");
        assert_eq!(query.get("prefix"), Some("llama 3/"));
        assert_eq!(query.get("start"), Some("a+b"));
        assert_eq!(query.get("flag"), Some(""));
        assert_eq!(query.get("x"), Some(" "));
        assert_eq!(query.required("uploadId").unwrap_err().code, "MissingParameter");
    }
}
