//! Answers outside 2xx, of any HTTP API: what they mean, and what they say.
//!
//! Each client turns the meaning into an error of its own; none reads statuses itself.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::text::excerpt;

/// The longest message of a service that is quoted, in characters.
const MESSAGE: usize = 300;

/// The longest code of a service that is quoted.
const CODE: usize = 60;

/// The longest target of a redirect that is quoted, in characters.
const TARGET: usize = 200;

/// The longest request id, and the longest header of a proxy, that is quoted.
const HEADER: usize = 80;

/// What a status means to a client (RFC 9110, RFC 6585).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpMeaning {
    /// 401: the credential was refused.
    Unauthenticated,
    /// 403: the credential is good, and the request is not allowed.
    Forbidden,
    /// 404.
    NotFound,
    /// 409.
    Conflict,
    /// 412: the version is no longer the requested one.
    PreconditionFailed,
    /// 416.
    RangeNotSatisfiable,
    /// 429.
    Throttled,
    /// 407 and 511: a proxy asks for a login.
    LoginRequired,
    /// 408, and 5xx except 501 and 511: the same request may succeed later.
    Unavailable,
    /// The other 4xx: the same request gets the same answer.
    Refused,
    /// 501, and whatever is below 400: no API that is used here answers with it.
    Unexpected,
}

impl HttpMeaning {
    /// The meaning of a status outside 2xx.
    pub fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            401 => Self::Unauthenticated,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            409 => Self::Conflict,
            412 => Self::PreconditionFailed,
            416 => Self::RangeNotSatisfiable,
            429 => Self::Throttled,
            407 | 511 => Self::LoginRequired,
            501 | ..=399 => Self::Unexpected,
            408 | 500.. => Self::Unavailable,
            _ => Self::Refused,
        }
    }
}

/// An answer outside 2xx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpError {
    /// The status.
    pub status: StatusCode,
    /// The service's own code, such as `BucketNotFound`.
    pub code: Option<String>,
    /// The service's own message, as long as it is.
    pub message: Option<String>,
    /// `opc-request-id`.
    pub request_id: Option<String>,
    /// How long the service asks its clients to wait.
    pub retry_after: Option<Duration>,
    /// Where a redirect leads to, without query and login, from `location`.
    pub redirect: Option<String>,
    /// The proxy that may have sent it, from `via`.
    via: Option<String>,
}

impl HttpError {
    /// Reads an answer whose body is JSON with `code` and `message`, as far as it is.
    pub fn of_json(status: StatusCode, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let field = |name: &str| body[name].as_str().filter(|text| !text.is_empty());
        Self {
            code: field("code").map(|code| excerpt(code, CODE)),
            message: field("message").map(str::to_owned),
            ..Self::of_headers(status, headers, now)
        }
    }

    /// Reads an answer whose body is text.
    pub fn of_text(status: StatusCode, headers: &HeaderMap, body: &[u8], now: SystemTime) -> Self {
        let text = String::from_utf8_lossy(body).trim().to_owned();
        let message = Some(text).filter(|text| !text.is_empty());
        Self { message, ..Self::of_headers(status, headers, now) }
    }

    fn of_headers(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Self {
        let quoted = |name| header_text(headers, name).map(|text| excerpt(text, HEADER));
        Self {
            status,
            code: None,
            message: None,
            request_id: quoted("opc-request-id"),
            retry_after: retry_after(headers, now),
            redirect: header_text(headers, "location")
                .filter(|_| status.is_redirection())
                .map(redirect_target),
            via: quoted("via"),
        }
    }

    /// What the status means.
    pub fn meaning(&self) -> HttpMeaning {
        HttpMeaning::of(self.status)
    }

    /// Why the request was refused: the service's message, else the reason of the status.
    pub fn cause(&self) -> String {
        let reason = self.status.canonical_reason().unwrap_or("refused");
        let cause = excerpt(self.message.as_deref().unwrap_or(reason), MESSAGE);
        let cause = match &self.redirect {
            Some(target) => format!("{cause}, a redirect to {target}, which is not followed"),
            None => cause,
        };
        // The service's own answers have a code; others come from a server in between.
        match self.via.as_deref().filter(|_| self.code.is_none()) {
            Some(via) => format!("{} (from a proxy: Via: {via})", cause.trim_end_matches('.')),
            None => cause,
        }
    }
}

/// A redirect's target without what may be secret: its query, its login, and the path of a
/// pre-authenticated request.
fn redirect_target(location: &str) -> String {
    let plain = location.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = match plain.split_once("//") {
        Some((scheme, rest)) => (format!("{scheme}//"), rest),
        None => (String::new(), plain),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = if path.starts_with("/p/") { "/p/…" } else { path };
    excerpt(&format!("{scheme}{host}{path}"), TARGET)
}

/// A header's value that is text and not blank.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

/// The time of the service's clock, from `date`.
pub fn server_time(headers: &HeaderMap) -> Option<SystemTime> {
    httpdate::parse_http_date(header_text(headers, "date")?).ok()
}

/// Parses `retry-after`, in seconds or as a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = header_text(headers, "retry-after")?;
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    // A date in the past means no delay.
    Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn retry_after_is_parsed_as_seconds_and_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let read = |value: &str| retry_after(&headers(&[("retry-after", value)]), now);
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        let later = httpdate::fmt_http_date(now + Duration::from_secs(90));
        assert_eq!(read(&later), Some(Duration::from_secs(90)));
        assert_eq!(read("Fri, 05 Jan 1990 21:31:40 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }

    #[test]
    fn the_cause_is_the_services_message_or_the_reason_and_names_a_proxy() {
        let via = headers(&[("via", "1.1 squid")]);
        let cause = |headers: &HeaderMap, body: &str| {
            let now = SystemTime::UNIX_EPOCH;
            HttpError::of_json(StatusCode::NOT_FOUND, headers, body.as_bytes(), now).cause()
        };
        let long = format!(r#"{{"message":"{}"}}"#, "x".repeat(400));
        assert_eq!(cause(&HeaderMap::new(), r#"{"message":"no such\nthing"}"#), "no such thing");
        assert_eq!(cause(&HeaderMap::new(), r#"{"code":404,"message":""}"#), "Not Found");
        assert_eq!(cause(&via, "<html>"), "Not Found (from a proxy: Via: 1.1 squid)");
        assert_eq!(cause(&via, r#"{"code":"NoSuchThing","message":"no."}"#), "no.");
        assert_eq!(cause(&HeaderMap::new(), &long).chars().count(), MESSAGE + 1);
    }

    #[test]
    fn a_redirect_names_its_target_without_anything_secret() {
        for (location, target) in [
            (
                "https://portal.example.com/login?session=s3cret#top",
                "https://portal.example.com/login",
            ),
            ("http://me:s3cret@portal:8080/", "http://portal:8080/"),
            ("//portal/x?s3cret", "//portal/x"),
            ("/login?s3cret", "/login"),
            ("https://os.example.com/p/s3cret/n/ns/b/b/o/x", "https://os.example.com/p/…"),
            ("https://os.example.com", "https://os.example.com"),
        ] {
            let headers = headers(&[("location", location)]);
            let now = SystemTime::UNIX_EPOCH;
            let answer = HttpError::of_text(StatusCode::FOUND, &headers, b"", now);
            assert_eq!(answer.redirect.as_deref(), Some(target));
            let cause = answer.cause();
            assert_eq!(cause, format!("Found, a redirect to {target}, which is not followed"));
            let created = HttpError::of_text(StatusCode::CREATED, &headers, b"", now);
            assert_eq!(created.redirect, None);
        }
    }

    #[test]
    fn a_text_answer_is_quoted_on_one_line() {
        let status = StatusCode::from_u16(599).unwrap();
        let of = |body: &[u8]| {
            HttpError::of_text(status, &HeaderMap::new(), body, SystemTime::UNIX_EPOCH).cause()
        };
        assert_eq!(of(b" a\nb\n"), "a b");
        assert_eq!(of(b""), "refused");
    }
}
