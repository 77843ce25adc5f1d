//! `POST /cache`: a command as JSON in, and lines of JSON out while it runs:
//! `{"progress": …}` a few times a second, then `{"answer": …}` or
//! `{"error": {"kind": …, "message": …}}`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Admin;
use crate::error::{Error, ErrorKind, Result};
use crate::manage::{CacheCommand, CommandAnswer, CommandProgress, ProgressCallback};

/// The longest command: one has only a few names.
const MOST_BYTES: usize = 1 << 20;

/// Lines that wait for a slow client; further progress is dropped.
const WAITING: usize = 16;

/// One line of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum AnswerLine {
    Progress(CommandProgress),
    Answer(CommandAnswer),
    Error { kind: ErrorKind, message: String },
}

impl AnswerLine {
    fn json(&self) -> Bytes {
        let mut json = serde_json::to_vec(self).unwrap_or_default();
        json.push(b'\n');
        json.into()
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

/// The path at which commands are taken.
pub(super) fn router() -> Router<Admin> {
    let wrong_method =
        || async { (StatusCode::METHOD_NOT_ALLOWED, "commands are sent with POST\n") };
    let route = post(answer).fallback(wrong_method).layer(DefaultBodyLimit::max(MOST_BYTES));
    Router::new().route("/cache", route)
}

/// Runs the command of a request. It is cancelled when the client disconnects.
async fn answer(State(admin): State<Admin>, body: Result<Bytes, BytesRejection>) -> Response {
    let parsed = body.map_err(|why| why.body_text()).and_then(|body| {
        serde_json::from_slice::<CacheCommand>(&body).map_err(|why| why.to_string())
    });
    let command = match parsed {
        Ok(command) => command,
        Err(why) => {
            return (StatusCode::BAD_REQUEST, format!("no command: {why}\n")).into_response();
        }
    };
    let (lines, receiver) = mpsc::channel::<Result<Bytes, Infallible>>(WAITING);
    tokio::spawn(async move {
        let listener = lines.clone();
        let report: ProgressCallback = Arc::new(move |progress| {
            // A slow client gets the next one.
            let _ = listener.try_send(Ok(AnswerLine::Progress(progress).json()));
        });
        let result = tokio::select! {
            result = execute(&admin, command, &report) => result,
            () = lines.closed() => return,
        };
        let _ = lines.send(Ok(AnswerLine::from(result).json())).await;
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(ReceiverStream::new(receiver))).into_response()
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
