//! The connection below TLS with a server: to the server itself, or a tunnel through a proxy.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Either, select};
use http::uri::Scheme;
use http::{Request, Response, Uri, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::failure::{FailureReason, HopFailure};
use super::proxy::Proxy;
use super::tcp::{TcpConnector, port_of};
use crate::http_error::header_text;
use crate::text::excerpt;

/// The longest words of a proxy about its login that are quoted.
const CHALLENGE: usize = 80;

/// Bytes to a server or to a proxy, whose own TLS is inside.
type RawStream = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Connects to servers, through a proxy if it has one.
#[derive(Clone)]
pub(super) struct HopConnector {
    tcp: TcpConnector,
    through: Option<Arc<ProxyWay>>,
}

struct ProxyWay {
    proxy: Proxy,
    /// Connects to the proxy, with TLS if that is an https one.
    connector: HttpsConnector<TcpConnector>,
    /// How long it may take to open a tunnel.
    patience: Duration,
}

impl HopConnector {
    pub(super) fn direct(tcp: TcpConnector) -> Self {
        Self { tcp, through: None }
    }

    pub(super) fn through(
        proxy: Proxy,
        tcp: TcpConnector,
        tls: rustls::ClientConfig,
        patience: Duration,
    ) -> Self {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp.clone());
        Self { tcp, through: Some(Arc::new(ProxyWay { proxy, connector, patience })) }
    }
}

impl Service<Uri> for HopConnector {
    type Response = Hop;
    type Error = HopFailure;
    type Future = BoxFuture<'static, Result<Hop, HopFailure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), HopFailure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let (mut tcp, through) = (self.tcp.clone(), self.through.clone());
        async move {
            let Some(way) = through else {
                let stream = MaybeHttpsStream::Http(tcp.call(server).await?);
                return Ok(Hop { stream, takes_absolute_targets: false });
            };
            let is_plain = server.scheme() == Some(&Scheme::HTTP);
            let opening = async {
                let stream = way.connect().await?;
                if is_plain {
                    return Ok(Hop { stream, takes_absolute_targets: true });
                }
                let stream = way.tunnel(stream, &server).await?;
                Ok(Hop { stream, takes_absolute_targets: false })
            };
            let opened = tokio::time::timeout(way.patience, opening).await;
            opened.unwrap_or_else(|_| Err(way.broken("opens no tunnel in time")))
        }
        .boxed()
    }
}

impl ProxyWay {
    async fn connect(&self) -> Result<RawStream, HopFailure> {
        let connecting = self.connector.clone().call(self.proxy.uri().clone());
        connecting.await.map_err(|error| {
            let what = format!("the proxy {} cannot be reached", self.proxy);
            HopFailure::to_proxy(what, self.proxy.named_by(), error)
        })
    }

    /// Asks the proxy for a tunnel to a server (RFC 9110, 9.3.6).
    async fn tunnel(&self, stream: RawStream, server: &Uri) -> Result<RawStream, HopFailure> {
        let broken = |error: hyper::Error| {
            self.broken("broke off while it opened a tunnel").caused_by(error)
        };
        let server = format!("{}:{}", server.host().unwrap_or_default(), port_of(server));
        let mut request = Request::connect(&server).header(header::HOST, &server);
        if let Some(login) = self.proxy.login() {
            request = request.header(header::PROXY_AUTHORIZATION, login.clone());
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.broken("cannot be asked for this server").caused_by(error))?;
        let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            if !answer.status().is_success() {
                return Err(self.refused(&answer, server));
            }
            hyper::upgrade::on(answer).await.map_err(broken)
        };
        // The connection moves the bytes of the exchange, and ends when the tunnel is open.
        let upgraded = match select(pin!(exchange), pin!(connection.with_upgrades())).await {
            Either::Left((upgraded, _)) => upgraded?,
            Either::Right((_, exchange)) => exchange.await?,
        };
        let parts = upgraded
            .downcast::<RawStream>()
            .map_err(|_| self.broken("broke off while it opened a tunnel"))?;
        if !parts.read_buf.is_empty() {
            // In TLS the client speaks first.
            return Err(self.broken("sends bytes of its own through the tunnel"));
        }
        Ok(parts.io)
    }

    fn broken(&self, how: &str) -> HopFailure {
        let named_by = self.proxy.named_by().to_owned();
        let reason = FailureReason::ProxyBroken { named_by };
        HopFailure::new(format!("the proxy {} {how}", self.proxy), Some(reason))
    }

    fn refused(&self, answer: &Response<Incoming>, server: String) -> HopFailure {
        let status = answer.status();
        let challenge = header_text(answer.headers(), header::PROXY_AUTHENTICATE.as_str())
            .map(|text| format!(" ({})", excerpt(text, CHALLENGE)))
            .unwrap_or_default();
        let what =
            format!("the proxy {} answers {status}{challenge} to CONNECT {server}", self.proxy);
        let reason = if status == http::StatusCode::PROXY_AUTHENTICATION_REQUIRED {
            let named_by = self.proxy.named_by().to_owned();
            FailureReason::ProxyLogin { named_by, was_sent: self.proxy.login().is_some() }
        } else {
            FailureReason::ProxyRefused { status, server }
        };
        HopFailure::new(what, Some(reason))
    }
}

/// A connection that [`HopConnector`] made.
pub(super) struct Hop {
    stream: RawStream,
    /// Whether requests name the server in their target: the proxy reads them (RFC 9112, 3.2.2).
    takes_absolute_targets: bool,
}

impl Connection for Hop {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.takes_absolute_targets)
    }
}

impl Read for Hop {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Hop {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}
