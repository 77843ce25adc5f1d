//! An API server that takes events and keeps them.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Serves until the test's runtime ends.
#[derive(Debug, Clone)]
pub(crate) struct ApiServer {
    pub(crate) url: String,
    events: Arc<Mutex<Vec<Value>>>,
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let server = Self { url, events: Arc::default() };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.connection(stream).await });
            }
        });
        server
    }

    /// Reasons and messages so far, oldest first.
    pub(crate) fn told(&self) -> Vec<(String, String)> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or("").to_owned();
        events.iter().map(|event| (text(event, "reason"), text(event, "message"))).collect()
    }

    /// The message of the first event of this reason, if there is one.
    pub(crate) fn message_of(&self, reason: &str) -> Option<String> {
        self.told().into_iter().find(|(found, _)| found == reason).map(|(_, message)| message)
    }

    async fn connection(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                match stream.read_line(&mut line).await {
                    Ok(read) if read > 2 => {}
                    Ok(2) => break,
                    _ => return,
                }
                let lower = line.to_ascii_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            if stream.read_exact(&mut body).await.is_err() {
                return;
            }
            let event = serde_json::from_slice(&body).expect("an event");
            self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            let answer = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}
