//! `POST /cache`: a command as JSON in, and lines of JSON out while it runs:
//! `{"progress": …}` a few times a second, then `{"answer": …}` or
//! `{"error": {"kind": …, "message": …}}`.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Admin, Body};
use crate::error::{Error, ErrorKind, Result};
use crate::manage::{CacheCommand, CommandAnswer, CommandProgress, ProgressCallback};

/// The longest command: one has only a few names.
const MOST_BYTES: usize = 1 << 20;

/// Lines that wait for a slow client; further progress is dropped.
const WAITING: usize = 16;

pub(super) type Lines = StreamBody<ReceiverStream<Result<Frame<Bytes>, Infallible>>>;

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum AnswerLine {
    Progress(CommandProgress),
    Answer(CommandAnswer),
    Error { kind: ErrorKind, message: String },
}

impl AnswerLine {
    fn frame(&self) -> Frame<Bytes> {
        let mut json = serde_json::to_vec(self).unwrap_or_default();
        json.push(b'\n');
        Frame::data(json.into())
    }
}

impl From<Result<CommandAnswer>> for AnswerLine {
    fn from(result: Result<CommandAnswer>) -> Self {
        match result {
            Ok(answer) => Self::Answer(answer),
            Err(e) => Self::Error { kind: e.kind(), message: e.message().to_owned() },
        }
    }
}

/// Runs the command of a request. It is cancelled when the client disconnects.
pub(super) async fn answer(admin: &Admin, request: Request<Incoming>) -> Response<Body> {
    let refused = |status: StatusCode, text: String| {
        let mut response = Response::new(Either::Left(Full::from(text)));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::POST {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "commands are sent with POST\n".into());
    }
    let body = Limited::new(request.into_body(), MOST_BYTES).collect().await;
    let command = match body.map(http_body_util::Collected::to_bytes) {
        Ok(bytes) => serde_json::from_slice::<CacheCommand>(&bytes).map_err(|e| e.to_string()),
        Err(e) => Err(e.to_string()),
    };
    let command = match command {
        Ok(command) => command,
        Err(why) => return refused(StatusCode::BAD_REQUEST, format!("no command: {why}\n")),
    };
    let (lines, receiver) = mpsc::channel(WAITING);
    let admin = admin.clone();
    tokio::spawn(async move {
        let listener = lines.clone();
        let report: ProgressCallback = Arc::new(move |progress| {
            // A slow client gets the next one.
            let _ = listener.try_send(Ok(AnswerLine::Progress(progress).frame()));
        });
        let result = tokio::select! {
            result = execute(&admin, command, &report) => result,
            () = lines.closed() => return,
        };
        let _ = lines.send(Ok(AnswerLine::from(result).frame())).await;
    });
    let mut response = Response::new(Either::Right(StreamBody::new(ReceiverStream::new(receiver))));
    let kind = http::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn execute(
    admin: &Admin,
    command: CacheCommand,
    report: &ProgressCallback,
) -> Result<CommandAnswer> {
    let manager = admin.manager.as_ref().ok_or_else(|| {
        Error::new(ErrorKind::Precondition, "this process has no cache: ask the node plugin")
    })?;
    admin.readiness.check()?;
    manager.execute(command, report).await
}
