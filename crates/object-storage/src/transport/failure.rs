//! How requests fail: before the head of their answer, or within its body.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use http::StatusCode;
use rustls::CertificateError;

use crate::error::Cause;
use crate::text::shown;

/// The longest chain of causes that is quoted, in characters.
const CAUSES: usize = 300;

/// How a request failed: before the head of its answer, or within its body.
#[derive(Debug)]
pub struct TransportFailure {
    /// What was attempted, and how it failed.
    pub what: String,
    /// What is at fault, where that is known.
    pub reason: Option<FailureReason>,
    /// The error of the library below, where it is one.
    pub cause: Option<Cause>,
}

/// What is at fault when there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureReason {
    /// A CA that is not trusted signed the server's certificate.
    UnknownIssuer {
        /// Whether the connection goes through a proxy, which may have made the certificate.
        is_proxied: bool,
    },
    /// The server's certificate is for other names.
    WrongName,
    /// The server's certificate is not valid yet, by this machine's clock.
    NotYetValid,
    /// The server's certificate is no longer valid, by this machine's clock.
    Expired,
    /// The server's certificate has another fault, which no setting here can mend.
    UnusableCertificate,
    /// A CA that is not trusted signed the certificate of an https proxy.
    ProxyIssuer,
    /// The certificate of an https proxy is for other names.
    ProxyName {
        /// Where the proxy is named: a key or a variable.
        named_by: String,
    },
    /// There is no connection to the proxy.
    ProxyUnreachable {
        /// Where the proxy is named: a key or a variable.
        named_by: String,
    },
    /// The proxy answered neither with a tunnel nor with a refusal, or not at all.
    ProxyBroken {
        /// Where the proxy is named: a key or a variable.
        named_by: String,
    },
    /// The proxy wants a login (407).
    ProxyLogin {
        /// Where the proxy is named: a key or a variable.
        named_by: String,
        /// Whether one was sent, and refused.
        was_sent: bool,
    },
    /// The proxy refused to connect to the server.
    ProxyRefused {
        /// Its answer.
        status: StatusCode,
        /// `host:port` of the server.
        server: String,
    },
}

impl FailureReason {
    /// Whether the same request fails again until an administrator changes something: a setting, a
    /// certificate, a clock.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::UnknownIssuer { .. }
            | Self::WrongName
            | Self::NotYetValid
            | Self::Expired
            | Self::UnusableCertificate
            | Self::ProxyIssuer
            | Self::ProxyName { .. }
            | Self::ProxyLogin { .. } => true,
            Self::ProxyRefused { status, .. } => {
                !status.is_server_error()
                    && !matches!(
                        *status,
                        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
                    )
            }
            Self::ProxyUnreachable { .. } | Self::ProxyBroken { .. } => false,
        }
    }
}

impl TransportFailure {
    pub(super) fn new(what: String) -> Self {
        Self { what, reason: None, cause: None }
    }

    /// The failure of a whole exchange; `is_proxied` where it went through a proxy.
    pub(super) fn of_exchange(error: hyper_util::client::legacy::Error, is_proxied: bool) -> Self {
        let what = causes(&error);
        let reason = reason_of(&error).or_else(|| certificate_reason(&error, is_proxied));
        let what = if error.is_connect() {
            format!("no connection: {what}")
        } else {
            format!("the exchange broke off: {what}")
        };
        Self { what, reason, cause: Some(Arc::new(error)) }
    }
}

/// What is wrong with the certificate of a server.
fn certificate_reason(error: &(dyn StdError + 'static), is_proxied: bool) -> Option<FailureReason> {
    use CertificateError as Fault;
    Some(match certificate_fault(error)? {
        // The second: a trusted CA has the issuer's name, and another key.
        Fault::UnknownIssuer | Fault::BadSignature => FailureReason::UnknownIssuer { is_proxied },
        Fault::NotValidForName | Fault::NotValidForNameContext { .. } => FailureReason::WrongName,
        Fault::NotValidYet | Fault::NotValidYetContext { .. } => FailureReason::NotYetValid,
        Fault::Expired | Fault::ExpiredContext { .. } => FailureReason::Expired,
        _ => FailureReason::UnusableCertificate,
    })
}

/// What rustls says of a certificate. An `io::Error` hides the error that it holds from `source`.
fn certificate_fault<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a CertificateError> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(rustls::Error::InvalidCertificate(fault)) = cause.downcast_ref() {
            return Some(fault);
        }
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(held) => Some(held),
            None => cause.source(),
        };
    }
    None
}

/// A failure on the way to a server, before TLS with it.
#[derive(Debug)]
pub(super) struct HopFailure {
    what: String,
    reason: Option<FailureReason>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl HopFailure {
    pub(super) fn new(what: String, reason: Option<FailureReason>) -> Self {
        Self { what, reason, source: None }
    }

    pub(super) fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// There is no connection to the proxy that `named_by` names.
    pub(super) fn to_proxy(
        what: String,
        named_by: &str,
        source: Box<dyn StdError + Send + Sync>,
    ) -> Self {
        let named_by = named_by.to_owned();
        let reason = match certificate_reason(source.as_ref(), true) {
            Some(FailureReason::UnknownIssuer { .. }) => FailureReason::ProxyIssuer,
            Some(FailureReason::WrongName) => FailureReason::ProxyName { named_by },
            Some(other) => other,
            None => FailureReason::ProxyUnreachable { named_by },
        };
        Self::new(what, Some(reason)).caused_by(source)
    }
}

impl fmt::Display for HopFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl StdError for HopFailure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// The reason that a [`HopFailure`] among the causes names.
fn reason_of(error: &dyn StdError) -> Option<FailureReason> {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(hop) = cause.downcast_ref::<HopFailure>() {
            return hop.reason.clone();
        }
        next = cause.source();
    }
    None
}

/// The causes below the library's own wrapper, innermost last.
pub(super) fn causes(error: &dyn StdError) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    let text = if texts.is_empty() { error.to_string() } else { texts.join(": ") };
    shown(&text, CAUSES)
}
