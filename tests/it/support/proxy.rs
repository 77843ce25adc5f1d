//! A forward proxy: tunnels and plain requests, with a login if it wants one, and ways to fail.
//! `tests/clients` has one that others wrote.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// What a proxy does with requests.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Behaviour {
    /// Forwards them.
    Forward,
    /// Forwards them, and dies once, after so many bytes of answers.
    DieAfter(i64),
    /// Answers each with these bytes.
    Answer(&'static str),
}

/// A request that a proxy got.
#[derive(Debug, Clone)]
pub(crate) struct ProxiedRequest {
    pub(crate) peer: IpAddr,
    pub(crate) method: String,
    pub(crate) target: String,
    /// `Proxy-Authorization`.
    pub(crate) login: Option<String>,
}

/// A running proxy; it ends when it is dropped.
pub(crate) struct TestProxy {
    address: SocketAddr,
    state: Arc<ProxyState>,
}

struct ProxyState {
    behaviour: Mutex<Behaviour>,
    /// Where all names lead to; else they are addresses.
    all_at: Option<SocketAddr>,
    seen: Mutex<Vec<ProxiedRequest>>,
    left: AtomicI64,
    has_died: AtomicBool,
    is_over: AtomicBool,
}

impl TestProxy {
    /// Starts a proxy for which every name is at `all_at`, if that is given.
    pub(crate) fn start(behaviour: Behaviour, all_at: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let left = match behaviour {
            Behaviour::DieAfter(bytes) => bytes,
            _ => i64::MAX,
        };
        let state = Arc::new(ProxyState {
            behaviour: Mutex::new(behaviour),
            all_at,
            seen: Mutex::default(),
            left: AtomicI64::new(left),
            has_died: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        });
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let (state, stream) = (Arc::clone(&shared), stream.expect("a connection"));
                // A client that goes away is no failure of a test.
                thread::spawn(move || state.serve(&stream));
            }
        });
        Self { address, state }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://host:port`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL with a login.
    pub(crate) fn url_with(&self, login: &str) -> String {
        format!("http://{login}@{}", self.address)
    }

    /// Changes what it does with further connections.
    pub(crate) fn becomes(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().expect("no panic") = behaviour;
    }

    pub(crate) fn seen(&self) -> Vec<ProxiedRequest> {
        self.state.seen.lock().expect("no panic").clone()
    }

    /// Whether it died, as it was to.
    pub(crate) fn has_died(&self) -> bool {
        self.state.has_died.load(Ordering::Relaxed)
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        // The listener waits for a last connection.
        let _ = TcpStream::connect(self.address);
    }
}

impl ProxyState {
    fn serve(&self, mut client: &TcpStream) -> io::Result<()> {
        let peer = client.peer_addr()?.ip();
        let mut reader = BufReader::new(client.try_clone()?);
        let lines = head(&mut reader)?;
        let Some((first, headers)) = lines.split_first() else { return Ok(()) };
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let login = headers.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("proxy-authorization").then(|| value.to_owned())
        });
        let request =
            ProxiedRequest { peer, method: method.clone(), target: target.clone(), login };
        self.seen.lock().expect("no panic").push(request);
        let behaviour = *self.behaviour.lock().expect("no panic");
        if let Behaviour::Answer(answer) = behaviour {
            client.write_all(answer.as_bytes())?;
            return client.shutdown(Shutdown::Both);
        }
        if method == "CONNECT" {
            let server = self.connect(&target)?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
            self.forward(reader, client, &server);
            return Ok(());
        }
        let plain = target.strip_prefix("http://").expect("an absolute target");
        let (host, path) = plain.split_at(plain.find('/').unwrap_or(plain.len()));
        let server = self.connect(host)?;
        let kept = headers.iter().filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !["connection", "proxy-authorization"].contains(&name.as_str())
        });
        let kept: Vec<&str> = kept.flat_map(|line| [line.as_str(), "\r\n"]).collect();
        // One request for each connection.
        let request =
            format!("{method} {path} HTTP/1.1\r\n{}connection: close\r\n\r\n", kept.concat());
        (&server).write_all(request.as_bytes())?;
        self.forward(reader, client, &server);
        Ok(())
    }

    fn connect(&self, host: &str) -> io::Result<TcpStream> {
        match self.all_at {
            Some(address) => TcpStream::connect(address),
            None => TcpStream::connect(host),
        }
    }

    /// Moves bytes in both directions until one side ends.
    fn forward(
        &self,
        mut from_client: BufReader<TcpStream>,
        client: &TcpStream,
        server: &TcpStream,
    ) {
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = io::copy(&mut from_client, &mut { server });
                let _ = server.shutdown(Shutdown::Write);
            });
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let read = (&mut { server }).read(&mut buffer).unwrap_or(0);
                let bytes = i64::try_from(read).expect("a small number");
                let left = self.left.fetch_sub(bytes, Ordering::Relaxed);
                let dies = left < bytes && !self.has_died.swap(true, Ordering::Relaxed);
                if read == 0 || dies || (&mut { client }).write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }
}

/// The lines of a request's head.
fn head(reader: &mut BufReader<TcpStream>) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end() {
            "" => return Ok(lines),
            text => lines.push(text.to_owned()),
        }
    }
}
