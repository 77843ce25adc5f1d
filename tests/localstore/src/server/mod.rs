//! The listener: connections, TLS, HTTP/1.1.

mod body;
mod buffers;
mod call;
mod connection;
pub(crate) mod reply;
mod service;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

pub(crate) use body::{ObjectBody, ReplyBody};
pub(crate) use buffers::Buffers;
pub(crate) use call::Call;
use connection::{Connection, ResetSwitch};
pub(crate) use tls::Tls;

use crate::faults::OpenConnection;
use crate::state::State;

/// The first byte of a TLS handshake; no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Serves connections until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, state: Arc<State>, tls: Option<TlsAcceptor>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                // Out of descriptors, most likely: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        state.counters.connection_accepted();
        let (state, tls) = (Arc::clone(&state), tls.clone());
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, state, tls).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

/// With TLS the same port speaks both: real metadata services are plain http.
async fn serve_connection(
    stream: TcpStream,
    state: Arc<State>,
    tls: Option<TlsAcceptor>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let secure = match &tls {
        Some(_) => {
            let mut first = [0];
            stream.peek(&mut first).await? == 1 && first[0] == TLS_HANDSHAKE
        }
        None => false,
    };
    let reset = ResetSwitch::default();
    let connection = Connection::new(stream, reset.clone());
    match tls {
        Some(acceptor) if secure => {
            serve_http(acceptor.accept(connection).await?, state, reset).await
        }
        _ => serve_http(connection, state, reset).await,
    }
}

async fn serve_http<S>(stream: S, state: Arc<State>, reset: ResetSwitch) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let open = OpenConnection::default();
    let service = service_fn(move |request| {
        service::answer(Arc::clone(&state), reset.clone(), open.clone(), request)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        // Idle connections are the client's to close.
        .header_read_timeout(None)
        .max_buf_size(1024 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}
