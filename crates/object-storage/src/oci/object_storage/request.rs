//! A request: its target, its headers, and what lets the service answer it.

use std::fmt::Display;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, header};

use crate::oci::encode::strict;
use crate::oci::endpoint::Endpoint;
use crate::oci::error::{StorageError, StorageErrorKind};
use crate::oci::identity::Credential;
use crate::oci::par::{NotPermitted, ParUrl};
use crate::oci::sign;
use crate::random;
use crate::source::{Bucket, ObjectName, UploadBody};
use crate::text::shown;
use crate::transport::RequestBody;

const USER_AGENT: &str = concat!("oci-model-csi/", env!("CARGO_PKG_VERSION"));

/// A request before it is signed.
pub(in crate::oci) struct UnsignedRequest<'a> {
    pub(super) operation: &'static str,
    subject: String,
    /// That of its target, if it has one: the host may depend on it.
    pub(super) namespace: Option<&'a str>,
    pub(super) bucket: Option<&'a Bucket>,
    method: Method,
    target: String,
    pub(super) headers: Vec<(HeaderName, String)>,
    /// A body that is signed; those of objects are sent without.
    json: Option<Bytes>,
}

impl<'a> UnsignedRequest<'a> {
    pub(super) fn new(
        operation: &'static str,
        subject: impl Display,
        method: Method,
        target: String,
    ) -> Self {
        let subject = subject.to_string();
        let (namespace, bucket, headers, json) = (None, None, Vec::new(), None);
        Self { operation, subject, namespace, bucket, method, target, headers, json }
    }

    /// `/n/{namespace}/b/{bucket}/o/{object}`; the name is one segment, `/` being `%2F`.
    pub(super) fn of_object(
        operation: &'static str,
        object: &'a ObjectName,
        method: Method,
    ) -> Result<Self, StorageError> {
        Self::of_name(operation, object, method, "o", "")
    }

    /// `/n/{namespace}/b/{bucket}/{kind}/{object}`, and a query that is encoded already.
    pub(super) fn of_name(
        operation: &'static str,
        object: &'a ObjectName,
        method: Method,
        kind: &str,
        query: &str,
    ) -> Result<Self, StorageError> {
        let ObjectName { bucket, name } = object;
        let target = format!(
            "/n/{}/b/{}/{kind}/{}{query}",
            strict(&bucket.namespace),
            strict(&bucket.name),
            strict(name)
        );
        let call = Self::new(operation, object, method, target).in_bucket(bucket);
        if name.is_empty() {
            return Err(call.error(StorageErrorKind::Invalid, "the object's name is empty"));
        }
        Ok(call)
    }

    pub(super) fn in_bucket(self, bucket: &'a Bucket) -> Self {
        Self { bucket: Some(bucket), ..self.in_namespace(&bucket.namespace) }
    }

    /// About a namespace and no bucket of it.
    pub(super) fn in_namespace(mut self, namespace: &'a str) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// With a body, which is signed.
    pub(super) fn with_json(mut self, body: &serde_json::Value) -> Self {
        self.json = Some(body.to_string().into());
        self
    }

    /// With another header.
    pub(super) fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Whether the request changes something.
    pub(super) fn writes(&self) -> bool {
        !self.method.is_safe()
    }

    /// The target with the token of a pre-authenticated request.
    fn target_of_par(&self, par: &ParUrl) -> Result<String, StorageError> {
        par.target(self.bucket, &self.target).map_err(|refused| match refused {
            NotPermitted::Operation => self.error(
                StorageErrorKind::Config,
                "a pre-authenticated request only lists and reads objects of its bucket",
            ),
            NotPermitted::Bucket => {
                let Bucket { namespace, name } = par.bucket();
                let (namespace, name) = (shown(namespace, 256), shown(name, 256));
                self.error(
                    StorageErrorKind::Invalid,
                    "the pre-authenticated request is of another bucket or namespace",
                )
                .with_remedy(format!(
                    "name bucket {name} and namespace {namespace}, or use the URL of one for this \
                     bucket"
                ))
            }
        })
    }

    /// `GetObject of a/b in bucket c of namespace d`.
    pub(super) fn attempted(&self) -> String {
        format!("{} of {}", self.operation, self.subject)
    }

    pub(in crate::oci) fn error(
        &self,
        kind: StorageErrorKind,
        cause: impl Into<String>,
    ) -> StorageError {
        StorageError::new(kind, self.attempted(), cause)
    }

    pub(super) fn request(
        &self,
        endpoint: &Endpoint,
        date: &str,
        authority: Authority<'_>,
        upload: Option<UploadBody>,
    ) -> Result<Request<RequestBody>, StorageError> {
        let refuse = |error: http::Error| self.error(StorageErrorKind::Config, error.to_string());
        let uri = match authority {
            Authority::Par(par) => endpoint.uri(&self.target_of_par(par)?),
            _ => endpoint.uri(&self.target),
        };
        let uri = uri.map_err(refuse)?;
        let mut request = Request::builder()
            .method(&self.method)
            .header(header::HOST, endpoint.host())
            .header(header::DATE, date)
            .header(header::USER_AGENT, USER_AGENT)
            .header("opc-client-request-id", client_request_id());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if let Some(json) = &self.json {
            request = request
                .header(header::CONTENT_TYPE, sign::JSON)
                .header(header::CONTENT_LENGTH, json.len());
        }
        if let Some(upload) = &upload {
            request = request.header(header::CONTENT_LENGTH, upload.length);
        }
        if let Authority::Signed(credential) = authority {
            // The target comes from the URI that is sent, never from a second formatting.
            let target = uri.path_and_query().map_or("/", |target| target.as_str());
            let signed = credential.sign(
                &sign::Request {
                    method: self.method.as_str(),
                    target,
                    host: Some(endpoint.host()),
                    date,
                    date_header: sign::DateHeader::Date,
                    body: self
                        .json
                        .as_ref()
                        .map(|json| sign::Body { content_type: sign::JSON, bytes: json }),
                },
                &endpoint.origin(),
            )?;
            let mut authorization = HeaderValue::try_from(signed.authorization)
                .map_err(|error| self.error(StorageErrorKind::Config, error.to_string()))?;
            authorization.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, authorization);
            if let Some(hash) = signed.content_sha256 {
                request = request.header("x-content-sha256", hash);
            }
        }
        let body = match upload {
            Some(UploadBody { length, chunks }) => RequestBody::stream(length, chunks),
            None => RequestBody::whole(self.json.clone().unwrap_or_default()),
        };
        request.uri(uri).body(body).map_err(refuse)
    }
}

/// What lets the service answer a request.
#[derive(Clone, Copy)]
pub(super) enum Authority<'a> {
    /// A signature.
    Signed(&'a Credential),
    /// The token in the URL of a pre-authenticated request.
    Par(&'a ParUrl),
    /// Nothing: the bucket is public.
    Nothing,
}

/// 32 hex digits, by which Oracle's support finds the request in its logs.
fn client_request_id() -> String {
    format!("{:032X}", u128::from_be_bytes(random::bytes()))
}
