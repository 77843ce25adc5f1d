//! Refusals in Object Storage's form: a status, a code and a sentence.

use std::borrow::Cow;

use http::StatusCode;

/// A refusal as it goes to the client: `{"code": …, "message": …}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    /// Response headers beside the body, such as `content-range` of a 416.
    pub(crate) headers: Vec<(&'static str, String)>,
}

impl ApiError {
    pub(crate) fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self { status, code: code.into(), message: message.into(), headers: Vec::new() }
    }

    pub(crate) fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// One text for every cause, as OCI's: the body does not name what failed.
    pub(crate) fn not_authenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "NotAuthenticated",
            "The required information to complete authentication was not provided or was incorrect.",
        )
    }

    pub(crate) fn bucket_not_found(bucket: &str, namespace: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "BucketNotFound",
            format!(
                "Either the bucket named '{bucket}' does not exist in the namespace '{namespace}' or you are not authorized to access it"
            ),
        )
    }

    pub(crate) fn namespace_not_found(namespace: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NamespaceNotFound",
            format!(
                "Either the namespace '{namespace}' does not exist or you are not authorized to access it"
            ),
        )
    }

    pub(crate) fn object_not_found(object: &str, bucket: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "ObjectNotFound",
            format!("The object '{object}' was not found in the bucket '{bucket}'"),
        )
    }

    /// The one answer to a pre-authenticated request that is unknown, has expired, or does not
    /// permit what is asked for.
    pub(crate) fn par_not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotAuthorizedOrNotFound",
            "PAR does not exist, has expired, or does not permit this",
        )
    }

    pub(crate) fn upload_not_found(upload_id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "UploadNotFound",
            format!("No multipart upload with the id '{upload_id}' is open for this object"),
        )
    }

    pub(crate) fn no_such_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "The local Object Storage has no such route")
    }

    pub(crate) fn if_match_failed(value: &str) -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "IfMatchFailed",
            format!(
                "The If-Match header is set to '{value}' but does not match the ETag of the existing resource"
            ),
        )
    }

    pub(crate) fn if_none_match_failed(value: &str) -> Self {
        Self::new(
            StatusCode::PRECONDITION_FAILED,
            "IfNoneMatchFailed",
            format!("The If-None-Match header is set to '{value}' but the resource exists"),
        )
    }

    pub(crate) fn invalid_range(size: u64) -> Self {
        Self::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            "InvalidRange",
            format!("The range lies outside of the object, which has {size} bytes"),
        )
        .with_header("content-range", format!("bytes */{size}"))
    }

    pub(crate) fn not_restored(object: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "NotRestored",
            format!("The object '{object}' is archived: restore it before reading it"),
        )
    }

    pub(crate) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(crate) fn invalid_parameter(message: impl Into<String>) -> Self {
        Self::bad_request("InvalidParameter", message)
    }

    /// A failure of this server itself, such as a full disk.
    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::warn!(%error, "answering 500");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", error.to_string())
    }
}

impl From<std::io::Error> for ApiError {
    fn from(error: std::io::Error) -> Self {
        Self::internal(&error)
    }
}

/// What a handler returns.
pub(crate) type ApiResult<T> = Result<T, ApiError>;
