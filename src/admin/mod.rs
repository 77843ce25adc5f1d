//! The HTTP endpoints for operators and probes: `/metrics`, `/healthz` and
//! `/readyz` on `--metrics-address`, and in addition, on the Unix socket of
//! `--admin-endpoint`, `/status`, which names models and pods and quotes messages, and `/cache`,
//! which takes commands.

mod client;
mod commands;
mod connections;
mod status;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

pub use client::{call, status};
pub use status::{DownloadStatus, DriverStatus, LeaseStatus};

use crate::cache::Cache;
use crate::csi::{CallHistory, Readiness};
use crate::error::{Error, Result};
use crate::manage::Manager;
use crate::metrics::Metrics;
use connections::{ConnectionLimits, Connections};

/// The state that the endpoints report.
#[derive(Clone)]
pub struct Admin {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/readyz`.
    pub readiness: Readiness,
    /// For `/status`: what failed, and whether kubelet called.
    pub history: CallHistory,
    /// For `/status`; `None` in the controller, which has no cache.
    pub cache: Option<Cache>,
    /// For `/cache`; `None` in the controller.
    pub manager: Option<Manager>,
}

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
        let service = TowerToHyperService::new(self.router(address.is_none()));
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

    /// The endpoints, for a client that is trusted or not.
    fn router(&self, trusted: bool) -> Router {
        let mut router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get("ok\n"))
            .route("/readyz", get(readiness))
            .fallback(unknown_path);
        if trusted {
            router = router.route("/status", get(status::answer)).merge(commands::router());
        }
        router.with_state(self.clone())
    }
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> impl IntoResponse {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
    let (kind, text) = if takes_openmetrics(&headers) {
        (OPENMETRICS, admin.metrics.to_text())
    } else {
        (PROMETHEUS, admin.metrics.to_plain_text())
    };
    ([(header::CONTENT_TYPE, kind)], text)
}

/// Whether the client accepts OpenMetrics. Prometheus says so; others may know the older
/// format only.
fn takes_openmetrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    accepted
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("application/openmetrics-text"))
}

async fn readiness(State(admin): State<Admin>) -> Response {
    match admin.readiness.check() {
        Ok(()) => "ready\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

async fn unknown_path() -> (StatusCode, &'static str) {
    let known =
        "known are /metrics, /healthz, /readyz, and on the admin socket /status and /cache\n";
    (StatusCode::NOT_FOUND, known)
}

#[cfg(test)]
mod tests;
