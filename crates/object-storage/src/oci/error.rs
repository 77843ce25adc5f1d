//! The errors of Oracle's services: those of [`source`](crate::source), made of what the
//! transport and the services answer.

use crate::http_error::{HttpError, HttpMeaning};
pub(crate) use crate::source::{StorageError, StorageErrorKind};
use crate::transport::{FailureReason, TransportFailure, Unusable};

impl From<Unusable> for StorageError {
    fn from(unusable: Unusable) -> Self {
        Self::config(unusable.attempted, unusable.why).with_known_remedy(unusable.remedy)
    }
}

/// The error for a request without an answer. A proxy that refuses gets no second request, nor does
/// a server whose certificate is no good: they are as unusable as a page in place of the service's.
pub(crate) fn unanswered(
    kind: StorageErrorKind,
    attempted: impl Into<String>,
    failure: TransportFailure,
) -> StorageError {
    let is_lasting = failure.reason.as_ref().is_some_and(FailureReason::is_lasting);
    let kind = if is_lasting { StorageErrorKind::Protocol } else { kind };
    StorageError::new(kind, attempted, failure.what)
        .with_known_remedy(failure.reason.map(remedy))
        .with_source(failure.cause)
}

/// What to do about a connection that there is not.
fn remedy(reason: FailureReason) -> String {
    match reason {
        FailureReason::UnknownIssuer { is_proxied: false } => {
            "name the CA that signed the endpoint's certificate with --ca-file or \
             objectStorage.caFile"
                .to_owned()
        }
        FailureReason::UnknownIssuer { is_proxied: true } => {
            "name the CA that signed the endpoint's certificate with --ca-file or \
             objectStorage.caFile, or that of a proxy that inspects TLS with \
             objectStorage.proxyCaFile"
                .to_owned()
        }
        FailureReason::WrongName => {
            "another server answers under this name, or the endpoint is misspelt: write it with a \
             name that is in its certificate"
                .to_owned()
        }
        FailureReason::NotYetValid => {
            "this machine's clock is far behind, or the certificate was made for later: compare \
             `date` with another machine, and set the clock (chronyd or systemd-timesyncd)"
                .to_owned()
        }
        FailureReason::Expired => {
            "this machine's clock is far ahead, or the certificate was not renewed: compare `date` \
             with another machine, and set the clock (chronyd or systemd-timesyncd)"
                .to_owned()
        }
        FailureReason::UnusableCertificate => {
            "no setting of the driver makes this certificate valid: its server needs another one"
                .to_owned()
        }
        FailureReason::ProxyIssuer => {
            "name the CA that signed the proxy's certificate with objectStorage.proxyCaFile or \
             --ca-file"
                .to_owned()
        }
        FailureReason::ProxyName { named_by } => {
            format!("write the proxy in {named_by} with a name that is in its certificate")
        }
        FailureReason::ProxyUnreachable { named_by } | FailureReason::ProxyBroken { named_by } => {
            format!(
                "check the proxy in {named_by}: its scheme, host and port, whether it runs, and \
                 that it is reachable from here"
            )
        }
        FailureReason::ProxyLogin { named_by, was_sent } => proxy_login_remedy(&named_by, was_sent),
        FailureReason::ProxyRefused { server, .. } => format!(
            "let the proxy connect to {server}, or reach it past the proxy: with NO_PROXY, or \
             through a service gateway"
        ),
    }
}

/// What to do about a proxy that wants a login.
pub(crate) fn proxy_login_remedy(named_by: &str, was_sent: bool) -> String {
    if was_sent {
        return format!("correct user and password of the proxy in {named_by}: it refuses them");
    }
    format!(
        "write user and password into the proxy in {named_by}: http://USER:PASSWORD@HOST:PORT, \
         with special characters as %XX"
    )
}

/// The error for an answer outside 2xx.
pub(crate) fn refused(
    kind: StorageErrorKind,
    attempted: impl Into<String>,
    answer: HttpError,
) -> StorageError {
    StorageError::new(kind, attempted, answer.cause())
        .with_status(answer.status.as_u16())
        .with_code(answer.code)
        .with_request_id(answer.request_id)
        .with_retry_after(answer.retry_after)
}

/// The kind of an answer of Object Storage; the code only distinguishes conflicts.
pub(crate) fn storage_kind(answer: &HttpError) -> StorageErrorKind {
    match (answer.meaning(), answer.code.as_deref()) {
        (HttpMeaning::Unauthenticated, _) => StorageErrorKind::Unauthenticated,
        (HttpMeaning::Forbidden, _) => StorageErrorKind::Forbidden,
        (HttpMeaning::NotFound, _) => StorageErrorKind::NotFound,
        (HttpMeaning::Conflict, Some("NotRestored")) => StorageErrorKind::Archived,
        (
            HttpMeaning::Conflict,
            Some("ConcurrentObjectUpdate" | "IncorrectState" | "LockConflict"),
        )
        | (HttpMeaning::Unavailable, _) => StorageErrorKind::Unavailable,
        (HttpMeaning::PreconditionFailed, _) => StorageErrorKind::Changed,
        (HttpMeaning::RangeNotSatisfiable, _) => StorageErrorKind::RangeNotSatisfiable,
        (HttpMeaning::Throttled, _) => StorageErrorKind::Throttled,
        // Without a code the answer comes from a server in between.
        (HttpMeaning::Conflict | HttpMeaning::Refused, Some(_)) => StorageErrorKind::Invalid,
        _ => StorageErrorKind::Protocol,
    }
}

/// The kind of an answer of a service that issues credentials.
pub(crate) fn identity_kind(answer: &HttpError) -> StorageErrorKind {
    match answer.meaning() {
        HttpMeaning::Unauthenticated => StorageErrorKind::Unauthenticated,
        HttpMeaning::Forbidden => StorageErrorKind::Forbidden,
        HttpMeaning::Throttled | HttpMeaning::Unavailable => StorageErrorKind::Identity,
        // Whatever is wrong with the service may be mended; an outage is never a refusal.
        _ if answer.status.is_server_error() => StorageErrorKind::Identity,
        HttpMeaning::Unexpected | HttpMeaning::LoginRequired => StorageErrorKind::Protocol,
        _ => StorageErrorKind::Invalid,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    #[test]
    fn the_status_decides_and_the_code_distinguishes_conflicts() {
        for (status, code, kind) in [
            (400, Some("InvalidParameter"), StorageErrorKind::Invalid),
            (401, Some("NotAuthenticated"), StorageErrorKind::Unauthenticated),
            (403, None, StorageErrorKind::Forbidden),
            (404, Some("NotAuthorizedOrNotFound"), StorageErrorKind::NotFound),
            (405, Some("MethodNotAllowed"), StorageErrorKind::Invalid),
            (405, None, StorageErrorKind::Protocol),
            (408, None, StorageErrorKind::Unavailable),
            (409, Some("NotRestored"), StorageErrorKind::Archived),
            (409, Some("ConcurrentObjectUpdate"), StorageErrorKind::Unavailable),
            (409, Some("ObjectAlreadyExists"), StorageErrorKind::Invalid),
            (407, None, StorageErrorKind::Protocol),
            (412, None, StorageErrorKind::Changed),
            (416, None, StorageErrorKind::RangeNotSatisfiable),
            (429, None, StorageErrorKind::Throttled),
            (301, None, StorageErrorKind::Protocol),
            (500, None, StorageErrorKind::Unavailable),
            (501, None, StorageErrorKind::Protocol),
            (511, None, StorageErrorKind::Protocol),
            (503, Some("ServiceUnavailable"), StorageErrorKind::Unavailable),
        ] {
            let body = code.map(|code| format!(r#"{{"code":"{code}"}}"#)).unwrap_or_default();
            let (status, now) = (StatusCode::from_u16(status).unwrap(), std::time::UNIX_EPOCH);
            let answer = HttpError::of_json(status, &HeaderMap::new(), body.as_bytes(), now);
            assert_eq!(storage_kind(&answer), kind, "{status} {code:?}");
        }
    }

    #[test]
    fn an_identity_service_that_fails_is_asked_again_whatever_the_status() {
        for status in [429, 500, 501, 502, 503, 504, 511] {
            let (status, now) = (StatusCode::from_u16(status).unwrap(), std::time::UNIX_EPOCH);
            let answer = HttpError::of_json(status, &HeaderMap::new(), b"", now);
            assert_eq!(identity_kind(&answer), StorageErrorKind::Identity, "{status}");
        }
    }
}
