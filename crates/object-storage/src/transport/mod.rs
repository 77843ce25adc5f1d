//! HTTP/1.1 over hyper and rustls: no redirects, no decompression, and proxies only where they are
//! named. The one place that opens connections. It knows nothing of the APIs above it.

mod addresses;
mod body;
mod failure;
mod hop;
mod no_proxy;
mod opening;
mod proxy;
mod range;
mod source_address;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod upload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::uri::Scheme;
use http::{Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tokio::sync::Notify;

use addresses::{Lookup, system_lookup};
pub(crate) use body::MinimumProgress;
use body::next_chunk;
pub use failure::{FailureReason, TransportFailure};
use hop::HopConnector;
use opening::OpeningLimit;
pub use proxy::{Proxy, ProxyChoice, ProxyRules};
pub use range::AddressRange;
use tcp::TcpConnector;
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

/// How long each step may take. There is no limit on a whole body, only a minimum
/// progress (`MinimumProgress`): a slow transfer is not a stalled one.
#[derive(Debug, Clone, Copy)]
pub struct TransportTimeouts {
    /// For a TCP connection to one address. A proxy may take twice as long to open a tunnel, and
    /// all together with TLS three times as long.
    pub connect: Duration,
    /// From sending a request to the head of its answer, TLS handshake included. For a body
    /// that is read while it is sent: from its last byte.
    pub response_head: Duration,
    /// Between two chunks of a body, received or sent.
    pub body_idle: Duration,
}

/// How connections are opened that may leave the machine's surroundings.
#[derive(Debug, Clone, Default)]
pub struct TransportOptions {
    /// Certificates to trust in addition to the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Which requests go through a proxy.
    pub proxies: ProxyRules,
    /// Certificates to trust where a proxy is used: its own, and those that it makes for servers.
    pub proxy_ca_file: Option<PathBuf>,
    /// The addresses of this machine that connections take turns over; the system chooses if
    /// there are none.
    pub source_addresses: Vec<AddressRange>,
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
    direct: HttpClient,
    /// Those to servers behind proxies.
    proxied: Option<Arc<ProxiedClients>>,
    response_head: Duration,
    body_idle: Duration,
}

type HttpClient = Client<OpeningLimit, RequestBody>;

struct ProxiedClients {
    rules: ProxyRules,
    /// For servers that speak https, and for those that speak http.
    https: Option<HttpClient>,
    http: Option<HttpClient>,
}

impl Transport {
    /// Opens connections directly, whatever proxies there are. Trusts the system's roots and
    /// those of `ca_file`.
    pub fn direct(waits: TransportTimeouts, ca_file: Option<&Path>) -> Result<Self, Unusable> {
        let ca_file = ca_file.map(Path::to_owned);
        Self::new(waits, &TransportOptions { ca_file, ..TransportOptions::default() })
    }

    /// Opens connections as the options say. Blocks: it reads files.
    pub fn new(waits: TransportTimeouts, options: &TransportOptions) -> Result<Self, Unusable> {
        Self::with_lookup(waits, options, system_lookup())
    }

    fn with_lookup(
        waits: TransportTimeouts,
        options: &TransportOptions,
        lookup: Lookup,
    ) -> Result<Self, Unusable> {
        let sources = source_address::own_addresses(&options.source_addresses)?;
        if !sources.is_empty() {
            tracing::info!(?sources, "connections come from these addresses in turns");
        }
        let mut roots = tls::system_roots();
        if let Some(file) = &options.ca_file {
            tls::add_file(&mut roots, file)?;
        }
        let tcp = TcpConnector::new(waits.connect, &sources, lookup);
        let client = |tls: ClientConfig, hop| client(tls, hop, waits.connect * 3);
        let direct = client(tls::client_config(roots.clone())?, HopConnector::direct(tcp.clone()));
        if let Some(file) = &options.proxy_ca_file {
            tls::add_file(&mut roots, file)?;
        }
        let trusted = tls::client_config(roots)?;
        let through = |proxy: &Proxy| {
            tracing::info!(%proxy, named_by = proxy.named_by(), "connections go through a proxy");
            let patience = waits.connect * 2;
            let hop = HopConnector::through(proxy.clone(), tcp.clone(), trusted.clone(), patience);
            client(trusted.clone(), hop)
        };
        let rules = &options.proxies;
        let (https, http) = (rules.https.as_ref().map(through), rules.http.as_ref().map(through));
        let proxied = (https.is_some() || http.is_some())
            .then(|| Arc::new(ProxiedClients { rules: rules.clone(), https, http }));
        let TransportTimeouts { response_head, body_idle, .. } = waits;
        Ok(Self { direct, proxied, response_head, body_idle })
    }

    /// The way to the server of this URI.
    pub fn choose(&self, uri: &Uri) -> ProxyChoice<'_> {
        self.proxied.as_ref().map_or(ProxyChoice::Direct, |proxied| proxied.rules.choose(uri))
    }

    /// The connections to the server of this URI, and the proxy that they go through.
    fn client_for(&self, uri: &Uri) -> (&HttpClient, Option<&Proxy>) {
        let is_https = uri.scheme() == Some(&Scheme::HTTPS);
        let through = self.proxied.as_ref().and_then(|proxied| {
            let proxy = proxied.rules.choose(uri).proxy()?;
            let client = if is_https { &proxied.https } else { &proxied.http };
            Some((client.as_ref()?, Some(proxy)))
        });
        through.unwrap_or((&self.direct, None))
    }

    /// Sends a request and waits for the head of the answer. Interim answers (1xx) are
    /// skipped; too many of them count as no answer.
    pub async fn send(
        &self,
        request: Request<impl Into<RequestBody>>,
    ) -> Result<Response<Incoming>, TransportFailure> {
        let mut request = request.map(Into::into);
        let (client, proxy) = self.client_for(request.uri());
        if let Some(login) = proxy.and_then(Proxy::login)
            && request.uri().scheme() == Some(&Scheme::HTTP)
        {
            // The proxy reads the request itself; a tunnel has its login in CONNECT.
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, login.clone());
        }
        let (seen, too_many) = (AtomicUsize::new(0), Arc::new(Notify::new()));
        let noticed = Arc::clone(&too_many);
        hyper::ext::on_informational(&mut request, move |_| {
            if seen.fetch_add(1, Ordering::Relaxed) == INTERIM_ANSWERS {
                noticed.notify_one();
            }
        });
        let sending = request.body().progress();
        let answer = client.request(request);
        tokio::select! {
            biased;
            answered = answer => answered.map_err(|error| {
                TransportFailure::of_exchange(error, proxy.is_some())
            }),
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

/// A pool of connections, each opened within `limit`.
fn client(tls: ClientConfig, hop: HopConnector, limit: Duration) -> HttpClient {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(hop);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(45))
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_max_buf_size(READ_BUFFER)
        .build(OpeningLimit::new(connector, limit))
}
