//! The client of the Identity service: which driver answers at a socket.

use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use super::proto::GetPluginInfoRequest;
use super::proto::identity_client::IdentityClient;
use super::status;
use crate::error::{Error, ErrorKind, Result};

/// How long a driver may take to answer; kubelet's registrar waits one second.
const LIMIT: Duration = Duration::from_secs(5);

/// The name of the driver that answers at this socket.
///
/// # Errors
/// `NotFound` when the socket does not exist, `Denied` when this user may not use it,
/// `Unavailable` when no driver answers there within five seconds.
pub async fn plugin_name(socket: &Path) -> Result<String> {
    let shown = socket.display();
    // Asked first, since the client's own error does not say which of these it was.
    UnixStream::connect(socket).await.map_err(|e| {
        let kind = match e.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("connecting to {shown}: {e}")).caused_by(e)
    })?;
    let unavailable = |why: String| {
        Error::new(ErrorKind::Unavailable, format!("asking the CSI driver at {shown}: {why}"))
    };
    let Some(path) = socket.to_str() else {
        return Err(Error::invalid(format!("the path of the socket {shown} is not UTF-8")));
    };
    let endpoint = Endpoint::from_shared(format!("unix://{path}"))
        .map_err(|e| Error::invalid(format!("the path of the socket {shown}: {e}")))?;
    let ask = async {
        let channel = endpoint.connect().await.map_err(|e| unavailable(e.to_string()))?;
        let answer = IdentityClient::new(channel).get_plugin_info(GetPluginInfoRequest {}).await;
        answer
            .map(|info| info.into_inner().name)
            .map_err(|e| unavailable(format!("{}: {}", status::name(e.code()), e.message())))
    };
    let answered = tokio::time::timeout(LIMIT, ask).await;
    answered.unwrap_or_else(|_| Err(unavailable(format!("no answer within {} s", LIMIT.as_secs()))))
}
