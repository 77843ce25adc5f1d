//! The client of the admin socket: sends commands to a running driver.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::commands::AnswerLine;
use super::status::DriverStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::http_error::HttpError;
use crate::manage::{CacheCommand, CommandAnswer, ProgressCallback};

/// Sends a command to the driver behind this socket. `None` when no driver listens
/// there.
///
/// Dropping the future cancels the command.
///
/// # Errors
/// The driver's own; `Denied` when this user may not use the socket; `Unavailable`
/// when the driver ends meanwhile.
pub async fn call(
    socket: &Path,
    command: &CacheCommand,
    report: &ProgressCallback,
) -> Result<Option<CommandAnswer>> {
    let json = serde_json::to_vec(command)
        .map_err(|e| Error::internal(format!("writing a command: {e}")).caused_by(e))?;
    let request = Request::builder().method(Method::POST).uri("/cache");
    let read = async |body| lines(body, report, |e| gone(socket, e)).await;
    exchange(socket, request, Bytes::from(json), read).await
}

/// Asks the driver behind this socket for its status. `None` when no driver listens there.
///
/// # Errors
/// `Denied` when this user may not use the socket; `Unavailable` when the driver ends
/// meanwhile.
pub async fn status(socket: &Path) -> Result<Option<DriverStatus>> {
    let read = async |body: Incoming| {
        let bytes = body.collect().await.map_err(|e| gone(socket, e))?.to_bytes();
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::internal(format!("the driver's answer: {e}")).caused_by(e))
    };
    exchange(socket, Request::builder().uri("/status"), Bytes::new(), read).await
}

fn gone(socket: &Path, e: hyper::Error) -> Error {
    let shown = socket.display();
    let text = format!("the driver at {shown} closed the connection: {e}; try again");
    Error::new(ErrorKind::Unavailable, text).caused_by(e)
}

async fn connect(socket: &Path) -> Result<Option<UnixStream>> {
    let shown = socket.display();
    match UnixStream::connect(socket).await {
        Ok(stream) => Ok(Some(stream)),
        Err(e) => match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
            io::ErrorKind::PermissionDenied => {
                let text = format!("asking the driver at {shown}: {e}; only its own user may");
                Err(Error::new(ErrorKind::Denied, text))
            }
            _ => Err(Error::io(format!("asking the driver at {shown}"), &e)),
        },
    }
}

/// One request on a connection of its own. The body of a good answer is what `read` makes of it.
async fn exchange<T>(
    socket: &Path,
    request: http::request::Builder,
    body: Bytes,
    read: impl AsyncFnOnce(Incoming) -> Result<T>,
) -> Result<Option<T>> {
    let shown = socket.display();
    let Some(stream) = connect(socket).await? else { return Ok(None) };
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| gone(socket, e))?;
    let conversation = async {
        let request = request
            .header(header::HOST, "localhost")
            .body(Full::new(body))
            .map_err(|e| Error::internal(format!("writing a command: {e}")).caused_by(e))?;
        let response = sender.send_request(request).await.map_err(|e| gone(socket, e))?;
        let (parts, body) = response.into_parts();
        if parts.status != StatusCode::OK {
            let body = body.collect().await.map_err(|e| gone(socket, e))?.to_bytes();
            let answer = HttpError::of_text(parts.status, &parts.headers, &body, SystemTime::now());
            return Err(Error::internal(format!(
                "the driver at {shown} answers {} ({}); is it of another version?",
                answer.status,
                answer.cause()
            )));
        }
        read(body).await
    };
    tokio::pin!(conversation);
    tokio::select! {
        answered = &mut conversation => answered.map(Some),
        // The last line may have been read already when the connection ends.
        _ = connection => conversation.await.map(Some),
    }
}

async fn lines(
    mut body: Incoming,
    report: &ProgressCallback,
    gone: impl Fn(hyper::Error) -> Error,
) -> Result<CommandAnswer> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(&gone)?.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            match serde_json::from_slice(&line) {
                Ok(AnswerLine::Progress(progress)) => report(progress),
                Ok(AnswerLine::Answer(answer)) => return Ok(answer),
                Ok(AnswerLine::Error { kind, message }) => return Err(Error::new(kind, message)),
                Err(e) => {
                    return Err(Error::internal(format!("the driver's answer: {e}")).caused_by(e));
                }
            }
        }
    }
    let text = "the driver ended before it answered; try again";
    Err(Error::new(ErrorKind::Unavailable, text))
}
