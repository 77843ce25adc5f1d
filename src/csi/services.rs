//! The services on one socket, and how they end.

use std::time::Duration;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::warn;

use super::controller::ControllerService;
use super::identity::IdentityService;
use super::node::NodeService;
use super::proto::controller_server::ControllerServer;
use super::proto::identity_server::IdentityServer;
use super::proto::node_server::NodeServer;
use crate::error::{Error, Result};

/// How long calls may take to end after the shutdown began. Downloads end by
/// themselves then, and their callers are told to come again; a Kubernetes
/// pod has 30 seconds in all.
const GRACE: Duration = Duration::from_secs(12);

/// What is served on a socket.
pub struct Services {
    /// Always.
    pub identity: IdentityService,
    /// In the modes `node` and `all`.
    pub node: Option<NodeService>,
    /// In the modes `controller` and `all`.
    pub controller: Option<ControllerService>,
}

/// Serves until `shutdown`, then lets running calls end, for 12 s at most.
///
/// A client's deadline cuts its call off: the handler's future is dropped
/// where it stands.
///
/// # Errors
/// `Internal` when the socket fails.
pub async fn serve(
    listener: UnixListener,
    services: Services,
    shutdown: CancellationToken,
) -> Result<()> {
    serve_with_grace(listener, services, shutdown, GRACE).await
}

async fn serve_with_grace(
    listener: UnixListener,
    services: Services,
    shutdown: CancellationToken,
    grace: Duration,
) -> Result<()> {
    let serving = Server::builder()
        .add_service(IdentityServer::new(services.identity))
        .add_optional_service(services.node.map(NodeServer::new))
        .add_optional_service(services.controller.map(ControllerServer::new))
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            shutdown.clone().cancelled_owned(),
        );
    let too_long = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = serving => {
            served.map_err(|error| Error::internal(format!("serving the CSI socket: {error}")))
        }
        () = too_long => {
            let seconds = grace.as_secs();
            warn!(seconds, "calls are still running after the shutdown began; leaving them");
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
