//! Answers: status, headers, body.

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;

use super::body::ReplyBody;
use crate::error::ApiError;

/// An answer on its way out.
pub(crate) type Reply = Response<ReplyBody>;

/// Why there is no answer from a handler.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Answered with OCI's error body.
    Refused(ApiError),
    /// Not answered: the connection ends.
    Aborted,
}

impl<E: Into<ApiError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

/// What a handler returns.
pub(crate) type Handled = Result<Reply, Failure>;

/// No body. 204 and 304 must not even say that it is empty.
pub(crate) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = status;
    if !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    reply
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    let body = serde_json::to_vec(value).expect("values of this server's own types are JSON");
    with_body(status, "application/json", body)
}

/// A body that is labelled as JSON.
pub(crate) fn raw_json(body: Vec<u8>) -> Reply {
    with_body(StatusCode::OK, "application/json", body)
}

pub(crate) fn text(body: impl Into<String>) -> Reply {
    with_body(StatusCode::OK, "text/plain", body.into().into_bytes())
}

/// A page that is not an answer of this API, with a target for redirects.
pub(crate) fn page(code: u16) -> Reply {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
    let body = b"<html><body>This page is not available.</body></html>".to_vec();
    let mut reply = with_body(status, "text/html", body);
    if status.is_redirection() {
        set(&mut reply, "location", "https://login.example.invalid/");
    }
    reply
}

/// `{"code", "message"}`; on HEAD only its length.
pub(crate) fn error(error: &ApiError, head: bool) -> Reply {
    let body = serde_json::json!({"code": error.code, "message": error.message});
    let mut reply = json(error.status, &body);
    if head {
        *reply.body_mut() = ReplyBody::empty();
    }
    for (name, value) in &error.headers {
        set(&mut reply, name, value);
    }
    reply
}

fn with_body(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(ReplyBody::empty());
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    *reply.body_mut() = ReplyBody::bytes(body);
    reply
}

/// Sets a header; a value that HTTP cannot carry is left out with a warning.
pub(crate) fn set(reply: &mut Reply, name: &str, value: &str) {
    let header =
        (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value.as_bytes()));
    if let (Ok(name), Ok(value)) = header {
        reply.headers_mut().insert(name, value);
    } else {
        tracing::warn!(name, "not a header that HTTP can carry");
    }
}

/// Rewrites the answer in forms that proxies use.
pub(crate) fn through_a_proxy(reply: &mut Reply) {
    let text = |reply: &Reply, name| {
        reply.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    if let Some(etag) = text(reply, ETAG) {
        set(reply, "etag", &format!("W/\"{etag}\""));
    }
    if let Some((range, _)) = text(reply, CONTENT_RANGE).as_deref().and_then(|v| v.split_once('/'))
    {
        set(reply, "content-range", &format!("{range}/*"));
    }
    reply.headers_mut().remove(CONTENT_LENGTH);
    reply.body_mut().hide_length();
}
