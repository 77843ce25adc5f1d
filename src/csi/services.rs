//! Serves the services on one socket, and shuts them down.

use std::time::Duration;

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::warn;

use super::connections;
use super::controller::ControllerService;
use super::identity::IdentityService;
use super::node::NodeService;
use super::proto::controller_server::ControllerServer;
use super::proto::identity_server::IdentityServer;
use super::proto::node_server::NodeServer;
use crate::error::{Error, Result};

/// How long calls may take to end after the shutdown began. Downloads stop then,
/// and their callers get an answer that makes them retry. A Kubernetes pod has 30
/// seconds in total.
const GRACE: Duration = Duration::from_secs(12);

/// The maximum number of connections. kubelet opens one per call, so this is far above the
/// number of volumes that start together on a node.
const MAX_CONNECTIONS: usize = 1024;

/// Concurrent calls on one connection. csi-provisioner has one connection and 100 workers.
const MAX_CALLS_OF_CONNECTION: u32 = 256;

/// The maximum size of a call's headers in bytes. kubelet sends less than 1 KiB.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// The maximum size of a request in bytes: a Secret may have 1 MiB, and a PersistentVolume's
/// attributes as much.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// Limits that tests lower.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    grace: Duration,
    connections: usize,
}

/// The services on a socket.
pub struct Services {
    /// Served in all modes.
    pub identity: IdentityService,
    /// Served in the modes `node` and `all`.
    pub node: Option<NodeService>,
    /// Served in the modes `controller` and `all`.
    pub controller: Option<ControllerService>,
}

/// Serves until `shutdown`, then waits at most 12 s for running calls to end.
///
/// A client's deadline ends its call: the handler's future is dropped. Nothing else has a time
/// limit; connections, headers and messages are limited in number and size only.
///
/// # Errors
/// `Internal` if the socket fails.
pub async fn serve(
    listener: UnixListener,
    services: Services,
    shutdown: CancellationToken,
) -> Result<()> {
    let bounds = Bounds { grace: GRACE, connections: MAX_CONNECTIONS };
    serve_within(listener, services, shutdown, bounds).await
}

async fn serve_within(
    listener: UnixListener,
    services: Services,
    shutdown: CancellationToken,
    Bounds { grace, connections }: Bounds,
) -> Result<()> {
    let most = MAX_MESSAGE_BYTES;
    let identity = IdentityServer::new(services.identity).max_decoding_message_size(most);
    let node = services.node.map(|node| NodeServer::new(node).max_decoding_message_size(most));
    let controller = services.controller.map(ControllerServer::new);
    let controller = controller.map(|server| server.max_decoding_message_size(most));
    let serving = Server::builder()
        .max_concurrent_streams(MAX_CALLS_OF_CONNECTION)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .add_service(identity)
        .add_optional_service(node)
        .add_optional_service(controller)
        .serve_with_incoming_shutdown(
            connections::incoming(listener, connections),
            shutdown.clone().cancelled_owned(),
        );
    let too_long = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = serving => {
            served.map_err(|error| Error::internal(format!("serving the CSI socket: {error}")).caused_by(error))
        }
        () = too_long => {
            let seconds = grace.as_secs();
            warn!(seconds, "calls are still running after the grace period; abandoning them");
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
