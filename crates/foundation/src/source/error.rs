//! The errors of a source of objects, each as one sentence.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::error::Cause;

/// What a caller can do about a [`StorageError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StorageErrorKind {
    /// 401: the signature, the key or the token was refused, even after a refresh.
    Unauthenticated,
    /// 403: the credential is good, and the request is not allowed.
    Forbidden,
    /// 404: absent, or not visible with this credential; the service does not distinguish the two.
    NotFound,
    /// 409 `NotRestored`: in the archive tier, and not restored.
    Archived,
    /// 412: the object's ETag is no longer the requested one.
    Changed,
    /// 416: the range starts at or after the object's end.
    RangeNotSatisfiable,
    /// 429.
    Throttled,
    /// 5xx, a temporary conflict, connecting, DNS, timeouts, a broken body.
    Unavailable,
    /// An answer that breaks the API: a wrong `Content-Range`, invalid JSON. Also what something in
    /// place of the service says: a certificate of another name, a proxy that refuses.
    Protocol,
    /// The other 4xx: the same request gets the same answer.
    Invalid,
    /// The settings, the config file or the key are wrong; nothing was sent.
    Config,
    /// The metadata service or the federation endpoint cannot be reached; temporary.
    Identity,
}

/// An error of a source of objects, or of the path to it.
///
/// `Display` is a complete sentence: what was attempted on what and where, the
/// status, code and message of the service, its request id, how often and how
/// long it was tried, and what to do where that is known.
#[derive(Clone)]
pub struct StorageError(Box<StorageErrorInner>);

#[derive(Clone)]
struct StorageErrorInner {
    kind: StorageErrorKind,
    attempted: String,
    cause: String,
    status: Option<u16>,
    code: Option<String>,
    request_id: Option<String>,
    retry_after: Option<Duration>,
    attempts: u32,
    elapsed: Duration,
    remedy: Option<String>,
    of_identity: bool,
    source: Option<Cause>,
}

impl StorageError {
    /// `attempted: cause`; everything else is added where it is known.
    pub fn new(
        kind: StorageErrorKind,
        attempted: impl Into<String>,
        cause: impl Into<String>,
    ) -> Self {
        Self(Box::new(StorageErrorInner {
            kind,
            attempted: attempted.into(),
            cause: cause.into(),
            status: None,
            code: None,
            request_id: None,
            retry_after: None,
            attempts: 1,
            elapsed: Duration::ZERO,
            remedy: None,
            of_identity: false,
            source: None,
        }))
    }

    /// A mistake in the configuration, found before anything is sent.
    pub fn config(attempted: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(StorageErrorKind::Config, attempted, cause)
    }

    /// Adds the HTTP status of the answer.
    pub fn with_status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    /// Adds the service's error code.
    pub fn with_code(mut self, code: Option<String>) -> Self {
        self.0.code = code;
        self
    }

    /// Adds the service's id of the request.
    pub fn with_request_id(mut self, id: Option<String>) -> Self {
        self.0.request_id = id;
        self
    }

    /// Adds how long the service asks to wait.
    pub fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.0.retry_after = after;
        self
    }

    /// Adds what to do about it.
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.0.remedy = Some(remedy.into());
        self
    }

    /// As [`with_remedy`](Self::with_remedy), where one is known.
    #[must_use]
    pub fn with_known_remedy(self, remedy: Option<impl Into<String>>) -> Self {
        match remedy {
            Some(remedy) => self.with_remedy(remedy),
            None => self,
        }
    }

    /// Keeps what caused it, for callers that look at it.
    #[must_use]
    pub fn with_source(mut self, source: Option<Cause>) -> Self {
        self.0.source = source;
        self
    }

    /// Adds how often it was attempted, and for how long.
    pub fn with_attempts(mut self, attempts: u32, elapsed: Duration) -> Self {
        self.0.attempts = attempts;
        self.0.elapsed = elapsed;
        self
    }

    /// Marks an error of a request for a credential, not of the request that needs it.
    pub fn of_identity(mut self) -> Self {
        self.0.of_identity = true;
        self
    }

    /// Replaces the description of the attempted call. An error of
    /// a request for a credential stays as it is.
    #[must_use]
    pub fn while_attempting(mut self, attempted: impl Into<String>) -> Self {
        if !self.0.of_identity {
            self.0.attempted = attempted.into();
        }
        self
    }

    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&str> {
        self.0.remedy.as_deref()
    }

    /// The same error without what to do about it.
    #[must_use]
    pub fn without_remedy(mut self) -> Self {
        self.0.remedy = None;
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> StorageErrorKind {
        self.0.kind
    }

    /// The HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The service's own code, such as `BucketNotFound`; HEAD answers have none.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The pause that the service asked for (`Retry-After`).
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether a policy has repeated it, and has given up.
    pub fn was_repeated(&self) -> bool {
        self.0.attempts > 1
    }

    /// Whether the same request may succeed later without any change.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.kind,
            StorageErrorKind::Throttled
                | StorageErrorKind::Unavailable
                | StorageErrorKind::Identity
        )
    }

    /// Whether the service has not said anything about the request: no answer, or that of
    /// something else in its place. It is never a refusal.
    pub fn is_outage(&self) -> bool {
        self.is_transient() || self.kind() == StorageErrorKind::Protocol
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StorageErrorInner {
            attempted,
            cause,
            status,
            code,
            request_id,
            attempts,
            elapsed,
            remedy,
            ..
        } = &*self.0;
        write!(f, "{attempted}: ")?;
        if let Some(status) = status {
            write!(f, "{status} ")?;
        }
        if let Some(code) = code {
            write!(f, "{code}: ")?;
        }
        f.write_str(cause.trim_end_matches('.'))?;
        if let Some(id) = request_id {
            write!(f, " (opc-request-id {id})")?;
        }
        if *attempts > 1 {
            write!(f, ", after {attempts} attempts in {:.1} s", elapsed.as_secs_f64())?;
        }
        if let Some(remedy) = remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.0.kind)
    }
}

impl StdError for StorageError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<StorageError> for crate::Error {
    fn from(error: StorageError) -> Self {
        use crate::ErrorKind as Meaning;
        let meaning = match error.kind() {
            StorageErrorKind::Unauthenticated => Meaning::Unauthenticated,
            StorageErrorKind::Forbidden => Meaning::Denied,
            StorageErrorKind::NotFound => Meaning::NotFound,
            // The requester is not at fault when the driver is misconfigured.
            StorageErrorKind::Archived | StorageErrorKind::Changed | StorageErrorKind::Config => {
                Meaning::Precondition
            }
            // An invalid answer comes from a proxy in between; it is temporary.
            StorageErrorKind::Throttled
            | StorageErrorKind::Unavailable
            | StorageErrorKind::Identity
            | StorageErrorKind::Protocol => Meaning::Unavailable,
            StorageErrorKind::Invalid => Meaning::Invalid,
            StorageErrorKind::RangeNotSatisfiable => Meaning::Internal,
        };
        Self::new(meaning, error.to_string()).with_cause(error.0.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_where_why_how_often_and_what_to_do() {
        let error = StorageError::new(
            StorageErrorKind::Throttled,
            "ListObjects of m/ in bucket b of namespace n at objectstorage.example",
            "rate limit exceeded.",
        )
        .with_status(429)
        .with_code(Some("TooManyRequests".into()))
        .with_request_id(Some("iad-1:x".into()))
        .with_attempts(3, Duration::from_millis(2_140))
        .with_remedy("ask for fewer objects at once");
        assert_eq!(
            error.to_string(),
            "ListObjects of m/ in bucket b of namespace n at objectstorage.example: 429 \
             TooManyRequests: rate limit exceeded (opc-request-id iad-1:x), after 3 attempts in \
             2.1 s; ask for fewer objects at once"
        );
    }

    #[test]
    fn every_kind_has_the_meaning_that_the_library_gives_it() {
        use crate::ErrorKind as Meaning;
        for (kind, meaning, transient) in [
            (StorageErrorKind::Unauthenticated, Meaning::Unauthenticated, false),
            (StorageErrorKind::Forbidden, Meaning::Denied, false),
            (StorageErrorKind::NotFound, Meaning::NotFound, false),
            (StorageErrorKind::Archived, Meaning::Precondition, false),
            (StorageErrorKind::Changed, Meaning::Precondition, false),
            (StorageErrorKind::RangeNotSatisfiable, Meaning::Internal, false),
            (StorageErrorKind::Throttled, Meaning::Unavailable, true),
            (StorageErrorKind::Unavailable, Meaning::Unavailable, true),
            (StorageErrorKind::Identity, Meaning::Unavailable, true),
            (StorageErrorKind::Protocol, Meaning::Unavailable, false),
            (StorageErrorKind::Invalid, Meaning::Invalid, false),
            (StorageErrorKind::Config, Meaning::Precondition, false),
        ] {
            let error = StorageError::new(kind, "a", "b");
            assert_eq!(error.is_transient(), transient, "{kind:?}");
            assert_eq!(crate::Error::from(error).kind(), meaning, "{kind:?}");
        }
    }
}
