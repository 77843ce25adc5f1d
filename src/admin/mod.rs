//! The HTTP endpoints for operators and probes: `/metrics`, `/healthz` and
//! `/readyz` on `--metrics-address`, and in addition, on the Unix socket of
//! `--admin-endpoint`, `/status`, which names models and pods, and `/cache`,
//! which takes commands.

mod client;
mod commands;
mod connections;
mod status;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

pub use client::call;

use crate::cache::Cache;
use crate::csi::Readiness;
use crate::error::{Error, Result};
use crate::manage::Manager;
use crate::metrics::Metrics;
use commands::Lines;
use connections::{ConnectionLimits, Connections};

/// The state that the endpoints report.
#[derive(Clone)]
pub struct Admin {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/status`; `None` in the controller, which has no cache.
    pub cache: Option<Cache>,
    /// For `/cache`; `None` in the controller.
    pub manager: Option<Manager>,
}

/// A text, or the lines of a command as they arrive.
type Body = Either<Full<Bytes>, Lines>;

/// A listener of the endpoints.
pub enum Listener {
    /// `--metrics-address`: open to the cluster, so it names no model and no pod.
    Tcp(TcpListener),
    /// `--admin-endpoint`: for the node's administrator.
    Unix(UnixListener),
}

impl Listener {
    /// Binds `--metrics-address`.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn tcp(address: SocketAddr) -> Result<Self> {
        let bound = TcpListener::bind(address).await;
        bound
            .map(Self::Tcp)
            .map_err(|e| Error::io(format!("listening on {address} (--metrics-address)"), &e))
    }
}

impl Admin {
    /// Serves requests until `shutdown`.
    pub async fn serve(self, listener: Listener, shutdown: CancellationToken) {
        let connections = Connections::new(match &listener {
            Listener::Tcp(_) => ConnectionLimits::METRICS,
            Listener::Unix(_) => ConnectionLimits::ADMIN,
        });
        loop {
            let accepted = tokio::select! {
                accepted = self.accept(&listener, &connections) => accepted,
                () = shutdown.cancelled() => return,
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "accepting a connection for metrics or status failed");
                // Out of descriptors, most likely: others must close some first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn accept(&self, listener: &Listener, connections: &Connections) -> std::io::Result<()> {
        match listener {
            Listener::Tcp(tcp) => {
                let (stream, peer) = tcp.accept().await?;
                self.connection(stream, Some(peer.ip()), connections).await;
            }
            Listener::Unix(unix) => {
                let (stream, _) = unix.accept().await?;
                self.connection(stream, None, connections).await;
            }
        }
        Ok(())
    }

    /// Serves a connection, or closes it at once where there are too many. A client with
    /// an address came over the network, and is not trusted.
    async fn connection<S>(&self, stream: S, address: Option<IpAddr>, connections: &Connections)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(permit) = connections.admit(address).await else {
            tracing::debug!(?address, "too many connections for metrics or status: closed one");
            return;
        };
        let (admin, trusted) = (self.clone(), address.is_none());
        let service = service_fn(move |request: Request<Incoming>| {
            let admin = admin.clone();
            async move {
                let answer = match request.uri().path() {
                    "/cache" if trusted => commands::answer(&admin, request).await,
                    _ => admin.answer(&request, trusted).map(Either::Left),
                };
                Ok::<Response<Body>, Infallible>(answer)
            }
        });
        let limits = connections.limits();
        let served = limits.http().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let over = async {
                match limits.lifetime {
                    Some(lifetime) => tokio::time::sleep(lifetime).await,
                    None => std::future::pending().await,
                }
            };
            // Dropping the connection closes it, whatever its client does not send or read.
            tokio::select! {
                ended = served => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection for metrics or status ended");
                    }
                }
                () = over => tracing::debug!(?address, "a connection for metrics took too long"),
                () = permit.displaced() => {
                    tracing::debug!(?address, "a connection for metrics made room for another");
                }
            }
        });
    }

    fn answer(&self, request: &Request<Incoming>, trusted: bool) -> Response<Full<Bytes>> {
        const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
        const PLAIN: &str = "text/plain; charset=utf-8";
        const JSON: &str = "application/json";
        let (status, kind, text) = match request.uri().path() {
            "/metrics" if takes_openmetrics(request) => {
                (StatusCode::OK, OPENMETRICS, self.metrics.to_text())
            }
            "/metrics" => (StatusCode::OK, PROMETHEUS, self.metrics.to_plain_text()),
            "/healthz" => (StatusCode::OK, PLAIN, "ok\n".to_owned()),
            "/readyz" => match self.readiness.check() {
                Ok(()) => (StatusCode::OK, PLAIN, "ready\n".to_owned()),
                Err(error) => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{error}\n")),
            },
            "/status" if trusted => (StatusCode::OK, JSON, status::json(self)),
            _ => {
                let known = "known are /metrics, /healthz, /readyz, and on the admin socket \
                             /status and /cache";
                (StatusCode::NOT_FOUND, PLAIN, format!("{known}\n"))
            }
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// Whether the client accepts OpenMetrics. Prometheus says so; others may know the older
/// format only.
fn takes_openmetrics(request: &Request<Incoming>) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT).iter();
    accepted
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"))
}

#[cfg(test)]
mod tests;
