//! A server that answers with whatever bytes a test wants, on the loopback interface.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A received request.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// The raw bytes of the request line's target.
    pub(crate) target: String,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// An answer to send.
pub(crate) struct ScriptedAnswer {
    status: u16,
    headers: String,
    body: Vec<u8>,
    /// Send a `content-length` and only this many bytes of the body, then close or hang.
    cut: Option<(usize, AfterCut)>,
    framing: Framing,
}

/// How the end of a body is marked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunks,
    /// The connection is closed after it.
    End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterCut {
    Close,
    Hang,
}

impl ScriptedAnswer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let headers = "opc-request-id: iad-1:test\r\n".to_owned();
        Self { status, headers, body: body.into(), cut: None, framing: Framing::Length }
    }

    pub(crate) fn refusal(status: u16, code: &str) -> Self {
        Self::new(status, format!(r#"{{"code":"{code}","message":"scripted."}}"#))
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers += name;
        self.headers += ": ";
        self.headers += value;
        self.headers += "\r\n";
        self
    }

    pub(crate) fn cut(mut self, after: usize, then: AfterCut) -> Self {
        self.cut = Some((after, then));
        self
    }

    /// In chunks and without a `content-length`.
    pub(crate) fn chunked(mut self) -> Self {
        self.framing = Framing::Chunks;
        self
    }

    /// Without a `content-length`, until the connection ends.
    pub(crate) fn until_the_end(mut self) -> Self {
        self.framing = Framing::End;
        self
    }
}

/// Runs until it is dropped.
pub(crate) struct TestServer {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl TestServer {
    /// Answers each request with the result of `script` for it and its number (from 0).
    pub(crate) async fn start(
        script: impl Fn(usize, &Seen) -> ScriptedAnswer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(script);
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&script), Arc::clone(&log)));
            }
        });
        Self { url, seen, task }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    script: Arc<impl Fn(usize, &Seen) -> ScriptedAnswer>,
    log: Arc<Mutex<Vec<Seen>>>,
) {
    while let Some(request) = read(&mut stream).await {
        let number = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let answer = script(number, &request);
        let length = match answer.framing {
            Framing::Length => format!("content-length: {}\r\n", answer.body.len()),
            Framing::Chunks => "transfer-encoding: chunked\r\n".to_owned(),
            Framing::End => "connection: close\r\n".to_owned(),
        };
        let head = format!("HTTP/1.1 {} X\r\n{}{length}\r\n", answer.status, answer.headers);
        let has_body = request.method != "HEAD";
        let body = match answer.framing {
            _ if !has_body => Vec::new(),
            Framing::Chunks => {
                let size = format!("{:x}\r\n", answer.body.len());
                [size.as_bytes(), &answer.body, b"\r\n0\r\n\r\n"].concat()
            }
            Framing::Length | Framing::End => answer.body,
        };
        let sent = answer.cut.map_or(body.len(), |(after, _)| after.min(body.len()));
        if stream.write_all(head.as_bytes()).await.is_err()
            || stream.write_all(&body[..sent]).await.is_err()
        {
            return;
        }
        match answer.cut {
            None if answer.framing == Framing::End => return,
            None => {}
            Some((_, AfterCut::Close)) => return,
            Some((_, AfterCut::Hang)) => std::future::pending::<()>().await,
        }
    }
}

async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut line = head.lines().next()?.split(' ');
    let (method, target) = (line.next()?.to_owned(), line.next()?.to_owned());
    let mut seen = Seen { method, target, head, body: bytes.split_off(end) };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while seen.body.len() < length {
        if stream.read_buf(&mut seen.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(seen)
}
