//! A client that shows the bytes on the wire: one connection, no retries, no pool.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use localstore::LocalStore;

/// Long enough for a slow machine; a stalled body reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer, with as much of its body as arrived.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// Why the body ended before its Content-Length.
    pub(crate) broken: Option<io::ErrorKind>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The `code` of an error body.
    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().expect("an error has a code").to_owned()
    }
}

/// One keep-alive connection.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
    host: String,
}

impl Client {
    pub(crate) fn new(store: &LocalStore) -> Self {
        Self::connect(store.address())
    }

    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { reader: BufReader::new(stream), host: address.to_string() }
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn patience(&self, patience: Duration) {
        self.reader.get_ref().set_read_timeout(Some(patience)).unwrap();
    }

    pub(crate) fn get(&mut self, target: &str) -> Answer {
        self.call("GET", target, &[], b"")
    }

    pub(crate) fn get_range(&mut self, target: &str, range: &str) -> Answer {
        self.call("GET", target, &[("range", range)], b"")
    }

    pub(crate) fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.try_call(method, target, headers, body).expect("an answer")
    }

    /// Fails where there is no answer at all.
    pub(crate) fn try_call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        self.send_head(method, target, headers, body.len())?;
        self.reader.get_mut().write_all(body)?;
        self.receive(method)
    }

    pub(crate) fn send_head(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        len: usize,
    ) -> io::Result<()> {
        let given = |name| headers.iter().any(|(given, _)| *given == name);
        let mut head = vec![format!("{method} {target} HTTP/1.1")];
        if !given("host") {
            head.push(format!("host: {}", self.host));
        }
        let sized = given("content-length") || given("transfer-encoding");
        if !sized && (len > 0 || method == "PUT" || method == "POST") {
            head.push(format!("content-length: {len}"));
        }
        head.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
        self.reader.get_mut().write_all((head.join("\r\n") + "\r\n\r\n").as_bytes())
    }

    pub(crate) fn send_body(&mut self, body: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(body)
    }

    pub(crate) fn receive(&mut self, method: &str) -> io::Result<Answer> {
        let status_line = self.line()?;
        let status: u16 = status_line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| io::Error::other(format!("no status in {status_line:?}")))?;
        let mut headers = HashMap::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let len = headers.get("content-length").map_or(0, |len| len.parse().unwrap());
        let bodiless = method == "HEAD" || matches!(status, 100 | 204 | 304);
        let mut answer = Answer { status, headers, body: Vec::new(), broken: None };
        if !bodiless {
            answer.body = vec![0; len];
            let mut filled = 0;
            while filled < len {
                match self.reader.read(&mut answer.body[filled..]) {
                    Ok(0) => answer.broken = Some(io::ErrorKind::UnexpectedEof),
                    Ok(count) => filled += count,
                    Err(error) => answer.broken = Some(error.kind()),
                }
                if answer.broken.is_some() {
                    answer.body.truncate(filled);
                    break;
                }
            }
        }
        Ok(answer)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// A server that does not ask who calls.
pub(crate) fn open_store() -> LocalStore {
    LocalStore::builder().verify_signatures(false).start().unwrap()
}

/// `/n/{ns}/b/{bucket}` and what follows.
pub(crate) fn at(store: &LocalStore, rest: &str) -> String {
    format!("/n/{}/b/{rest}", store.namespace())
}
