//! HTTP/1.1 over hyper and rustls: no redirects, no decompression, no proxies.
//! The one place that opens connections. It knows nothing of the APIs above it.

mod upload;

use std::error::Error as StdError;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::Cause;
use crate::text::shown;
use crate::text::{self, pem};
pub use upload::RequestBody;
use upload::SendProgress;

/// Size of one read from a connection. Chunks have this length where the network keeps up, and at
/// most twice that: 128 to 512 KiB measured best when they go straight to positional writes.
const READ_BUFFER: usize = 256 * 1024;

/// Idle connections kept per host: as many as downloads use at most, unless an administrator
/// fixed a larger number.
const IDLE_CONNECTIONS: usize = 256;

/// Interim answers (`100 Continue`, `103 Early Hints`) that are skipped before the final one.
const INTERIM_ANSWERS: usize = 16;

/// Bytes that a body must deliver in [`WINDOW`]: 2 KiB/s for each request, which a node on a slow
/// line reaches with all its requests side by side.
const MINIMUM: u64 = 64 * 1024;

/// Time spent waiting for the network after which a body must have delivered [`MINIMUM`].
const WINDOW: Duration = Duration::from_secs(30);

/// How a request failed: before the head of its answer, or within its body.
#[derive(Debug)]
pub struct TransportFailure {
    /// What was attempted, and how it failed.
    pub what: String,
    /// What to do about it, where that is known.
    pub remedy: Option<&'static str>,
    /// The error of the library below, where it is one.
    pub cause: Option<Cause>,
}

impl TransportFailure {
    fn new(what: String) -> Self {
        Self { what, remedy: None, cause: None }
    }
}

/// How long each step may take. There is no limit on a whole body, only a minimum
/// progress (`MinimumProgress`): a slow transfer is not a stalled one.
#[derive(Debug, Clone, Copy)]
pub struct TransportTimeouts {
    /// For a TCP connection.
    pub connect: Duration,
    /// From sending a request to the head of its answer, TLS handshake included. For a body
    /// that is read while it is sent: from its last byte.
    pub response_head: Duration,
    /// Between two chunks of a body, received or sent.
    pub body_idle: Duration,
}

/// Why no connection can ever be opened: a fault of the configuration.
#[derive(Debug)]
pub struct Unusable {
    /// What was attempted.
    pub attempted: String,
    /// Why it cannot be used.
    pub why: String,
    /// What to do about it, where that is known.
    pub remedy: Option<&'static str>,
}

/// One pool of connections with its timeouts; cheap to clone.
#[derive(Clone)]
pub struct Transport {
    client: Client<HttpsConnector<HttpConnector>, RequestBody>,
    response_head: Duration,
    body_idle: Duration,
}

impl Transport {
    /// Trusts the system's roots and those of `ca_file`.
    pub fn new(waits: TransportTimeouts, ca_file: Option<&Path>) -> Result<Self, Unusable> {
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(|error| Unusable {
            attempted: "setting up TLS".to_owned(),
            why: error.to_string(),
            remedy: None,
        })?
        .with_root_certificates(roots(ca_file)?)
        .with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        tcp.set_connect_timeout(Some(waits.connect));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(45))
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(READ_BUFFER)
            .build(connector);
        Ok(Self { client, response_head: waits.response_head, body_idle: waits.body_idle })
    }

    /// Sends a request and waits for the head of the answer. Interim answers (1xx) are
    /// skipped; too many of them count as no answer.
    pub async fn send(
        &self,
        request: Request<impl Into<RequestBody>>,
    ) -> Result<Response<Incoming>, TransportFailure> {
        let mut request = request.map(Into::into);
        let (seen, too_many) = (AtomicUsize::new(0), Arc::new(Notify::new()));
        let noticed = Arc::clone(&too_many);
        hyper::ext::on_informational(&mut request, move |_| {
            if seen.fetch_add(1, Ordering::Relaxed) == INTERIM_ANSWERS {
                noticed.notify_one();
            }
        });
        let sending = request.body().progress();
        let answer = self.client.request(request);
        tokio::select! {
            biased;
            answered = answer => answered.map_err(describe),
            failure = self.out_of_patience(sending) => Err(failure),
            () = too_many.notified() => Err(TransportFailure::new(format!(
                "more than {INTERIM_ANSWERS} interim answers (1xx) and no other"
            ))),
        }
    }

    /// Waits until a request has taken too long to answer: a whole one since it was begun, and
    /// one whose body is read while it is sent since its last byte, or if that stalls.
    async fn out_of_patience(&self, sending: Option<Arc<SendProgress>>) -> TransportFailure {
        if let Some(sending) = sending
            && let Some(stalled) = sending.watch(self.body_idle, self.minimum_progress()).await
        {
            return stalled;
        }
        tokio::time::sleep(self.response_head).await;
        let seconds = self.response_head.as_secs_f64();
        TransportFailure::new(format!("no answer within {seconds} s"))
    }

    /// The minimum progress that a body of this transport must make.
    fn minimum_progress(&self) -> MinimumProgress {
        MinimumProgress::new(self.body_idle)
    }

    /// The chunks of a body as they arrive, up to 512 KiB each, and why it broke off.
    pub(crate) fn chunks(&self, body: Incoming) -> BoxStream<'static, Result<Bytes, String>> {
        let start = (body, self.minimum_progress());
        let next = |(mut body, mut patience)| async move {
            let chunk = next_chunk(&mut body, &mut patience).await;
            let chunk = chunk.map_err(|failure| failure.what).transpose()?;
            Some((chunk, (body, patience)))
        };
        stream::unfold(start, next).boxed()
    }

    /// Reads the whole of a body that is expected to be small.
    pub async fn read(&self, body: Incoming, limit: usize) -> Result<Bytes, TransportFailure> {
        let too_long = || TransportFailure::new(format!("the answer is longer than {limit} bytes"));
        self.read_short(body, limit).await?.ok_or_else(too_long)
    }

    /// Reads the whole of a body; `None` when it is longer than `limit` bytes.
    pub(crate) async fn read_short(
        &self,
        mut body: Incoming,
        limit: usize,
    ) -> Result<Option<Bytes>, TransportFailure> {
        let mut whole = BytesMut::new();
        let mut patience = self.minimum_progress();
        while let Some(chunk) = next_chunk(&mut body, &mut patience).await? {
            if whole.len() + chunk.len() > limit {
                return Ok(None);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(Some(whole.freeze()))
    }
}

/// The minimum progress of one body: a pause of `idle` at most, and [`MINIMUM`] bytes in each
/// [`WINDOW`]. Only the time spent waiting for the network counts: what the reader does between two
/// chunks (its own pacing, the disk) is not the server's slowness.
#[derive(Debug)]
pub(crate) struct MinimumProgress {
    idle: Duration,
    waited: Duration,
    arrived: u64,
}

impl MinimumProgress {
    pub(crate) fn new(idle: Duration) -> Self {
        Self { idle, waited: Duration::ZERO, arrived: 0 }
    }

    /// Counts a wait and the bytes that it delivered.
    fn progressed(&mut self, waited: Duration, bytes: usize) -> Result<(), TransportFailure> {
        self.waited += waited;
        self.arrived += u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.arrived < MINIMUM && self.waited >= WINDOW {
            let (arrived, seconds) = (self.arrived, self.waited.as_secs());
            let what = format!("the body trickles: {arrived} bytes in {seconds} s");
            return Err(TransportFailure::new(what));
        }
        if self.arrived >= MINIMUM {
            (self.waited, self.arrived) = (Duration::ZERO, 0);
        }
        Ok(())
    }
}

/// Returns the next piece of a body; `None` at its end.
///
/// Cancel safe: a chunk is either returned or still in the body.
async fn next_chunk(
    body: &mut Incoming,
    patience: &mut MinimumProgress,
) -> Result<Option<Bytes>, TransportFailure> {
    loop {
        let (idle, asked) = (patience.idle, Instant::now());
        match tokio::time::timeout(idle, body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    patience.progressed(asked.elapsed(), data.len())?;
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
                Err(_trailers) => {}
            },
            Ok(Some(Err(error))) => {
                let what = format!("the body broke off: {}", causes(&error));
                let cause: Cause = Arc::new(error);
                return Err(TransportFailure { what, remedy: None, cause: Some(cause) });
            }
            Err(_) => {
                let what = format!("the body stalled for {} s", idle.as_secs_f64());
                return Err(TransportFailure::new(what));
            }
        }
    }
}

fn roots(ca_file: Option<&Path>) -> Result<rustls::RootCertStore, Unusable> {
    let mut roots = rustls::RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "reading the system's CA certificates");
    }
    // Systems have certificates that rustls refuses; the others are enough.
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = ca_file {
        trust(&mut roots, path).map_err(|why| Unusable {
            attempted: format!("reading the CA file {}", path.display()),
            why,
            remedy: Some("it must hold one or more PEM certificates"),
        })?;
    }
    Ok(roots)
}

/// Trusts all certificates of a PEM bundle, or says which block of it is not a certificate.
fn trust(roots: &mut rustls::RootCertStore, path: &Path) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    // The tag of a SEQUENCE: no text begins with it.
    if bytes.starts_with(b"\x30\x82") {
        return Err("it is DER; convert it with openssl x509 -inform der".to_owned());
    }
    let text = text::decode(bytes)?;
    let blocks = pem::all_blocks(&text)?;
    let mut others = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        let at = |why: String| format!("block {} (line {}): {why}", index + 1, block.line);
        match block.label {
            "CERTIFICATE" | "X509 CERTIFICATE" => {
                let certificate = CertificateDer::from(block.der().map_err(at)?);
                roots.add(certificate).map_err(|error| at(error.to_string()))?;
            }
            "TRUSTED CERTIFICATE" => {
                return Err(at("it is in openssl's own form; convert it with openssl x509".into()));
            }
            "PKCS7" | "CMS" => {
                let how = "convert it with openssl pkcs7 -print_certs";
                return Err(at(format!("it is a {} container; {how}", block.label)));
            }
            other => others.push(other),
        }
    }
    let certificates = blocks.len() - others.len();
    if certificates == 0 {
        let found =
            if others.is_empty() { String::new() } else { format!(": {}", others.join(", ")) };
        return Err(format!("no certificate in it{found}"));
    }
    tracing::info!(file = %path.display(), certificates, ?others, "trusting the CA file");
    Ok(())
}

fn describe(error: hyper_util::client::legacy::Error) -> TransportFailure {
    let what = causes(&error);
    let remedy = what
        .contains("UnknownIssuer")
        .then_some("name the CA that signed the endpoint's certificate with --ca-file");
    let what = if error.is_connect() {
        format!("no connection: {what}")
    } else {
        format!("the exchange broke off: {what}")
    };
    TransportFailure { what, remedy, cause: Some(Arc::new(error)) }
}

/// The causes below the library's own wrapper, innermost last.
fn causes(error: &dyn StdError) -> String {
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
    shown(&text, 300)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many chunks of a body pass when they arrive in these intervals.
    fn passed(chunk: usize, every: Duration) -> usize {
        let mut patience = MinimumProgress::new(Duration::from_secs(30));
        (0..1000).take_while(|_| patience.progressed(every, chunk).is_ok()).count()
    }

    #[test]
    fn a_body_that_trickles_fails_after_the_window_and_a_slow_one_does_not() {
        assert_eq!(passed(1, Duration::from_secs(5)), 5, "a byte each 5 s ends after 30 s");
        assert_eq!(passed(1024, Duration::from_millis(600)), 49);
        assert_eq!(passed(1024, Duration::from_millis(400)), 1000, "2.5 KiB/s is slow");
        assert_eq!(passed(1 << 18, Duration::from_secs(25)), 1000);
    }

    fn certificate() -> String {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/vectors/oci-signing.json")).unwrap();
        vectors["leaf_certificate_pem"].as_str().unwrap().trim_end().to_owned()
    }

    fn read(content: &[u8]) -> Result<usize, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, content).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        trust(&mut roots, &path).map(|()| roots.len())
    }

    #[test]
    fn a_bundle_as_windows_tools_save_it_is_read_whole() {
        let one = certificate();
        let crlf = one.replace('\n', "\r\n");
        for (content, certificates) in [
            (format!("{one}\n"), 1),
            (one.clone(), 1),
            (format!("\u{feff}{crlf}\r\n{crlf}"), 2),
            (format!("# roots\n{one}{one}\n\u{feff}{one}\n"), 3),
            (format!("-----BEGIN DH PARAMETERS-----\nYQ==\n-----END DH PARAMETERS-----\n{one}"), 1),
        ] {
            assert_eq!(read(content.as_bytes()), Ok(certificates), "{content}");
        }
    }

    #[test]
    fn a_part_of_a_bundle_that_cannot_be_read_is_an_error_with_its_place() {
        let one = certificate();
        let lines = one.lines().count();
        let utf16: Vec<u8> = one.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let broken = one.replacen('M', "!", 1);
        let second = |block: &str| format!("{one}\n{block}\n").into_bytes();
        for (content, said) in [
            (second(&broken), format!("block 2 (line {}): the text between", lines + 1)),
            (second(&one[..one.len() / 2]), format!("begins in line {} has no end", lines + 1)),
            (second(&pem::encode("CERTIFICATE", b"garbage")), "block 2 (line".to_owned()),
            (second(&pem::encode("TRUSTED CERTIFICATE", b"x")), "openssl's own form".to_owned()),
            (second(&pem::encode("PKCS7", b"x")), "-print_certs".to_owned()),
            (
                pem::encode("PRIVATE KEY", b"x").into(),
                "no certificate in it: PRIVATE KEY".to_owned(),
            ),
            (b"\x30\x82\x01\x00".to_vec(), "it is DER".to_owned()),
            (utf16, "UTF-16".to_owned()),
            (Vec::new(), "no certificate in it".to_owned()),
        ] {
            let error = read(&content).unwrap_err();
            assert!(error.contains(&said), "{said:?} is not in {error:?}");
        }
    }
}
