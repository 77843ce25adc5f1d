//! Connections for real, on the loopback interface: spread over addresses, from several addresses
//! of this machine, and through proxies that misbehave.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use http_body_util::Full;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Barrier;
use tokio::task::JoinHandle;

use super::*;

const WAITS: TransportTimeouts = TransportTimeouts {
    connect: Duration::from_secs(5),
    response_head: Duration::from_secs(20),
    body_idle: Duration::from_secs(5),
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

fn ip(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

/// A transport for which every name has these addresses.
fn transport(options: &TransportOptions, addresses: Vec<IpAddr>) -> Transport {
    let lookup: Lookup = Arc::new(move |_| {
        let addresses = addresses.clone();
        async move { Ok(addresses) }.boxed()
    });
    Transport::with_lookup(WAITS, options, lookup).unwrap()
}

async fn get(transport: &Transport, url: &str) -> Result<u16, TransportFailure> {
    let request = Request::get(url).body(Full::new(Bytes::new())).unwrap();
    transport.send(request).await.map(|answer| answer.status().as_u16())
}

/// The head of a request.
async fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Servers at several addresses and one port, which answer when `together` requests are there.
struct Servers {
    port: u16,
    /// How many connections each address of a server had, and from which address each came.
    seen: Arc<Mutex<Vec<(IpAddr, IpAddr)>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Servers {
    async fn start(addresses: &[IpAddr], together: usize) -> Self {
        let barrier = Arc::new(Barrier::new(together));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut port, mut tasks) = (0, Vec::new());
        for address in addresses {
            let listener = TcpListener::bind((*address, port)).await.unwrap();
            port = listener.local_addr().unwrap().port();
            let (barrier, seen, address) = (Arc::clone(&barrier), Arc::clone(&seen), *address);
            tasks.push(tokio::spawn(async move {
                while let Ok((mut stream, peer)) = listener.accept().await {
                    let (barrier, seen) = (Arc::clone(&barrier), Arc::clone(&seen));
                    tokio::spawn(async move {
                        head_of(&mut stream).await;
                        seen.lock().unwrap().push((address, peer.ip()));
                        barrier.wait().await;
                        let _ = stream.write_all(OK).await;
                    });
                }
            }));
        }
        Self { port, seen, tasks }
    }

    fn url(&self) -> String {
        format!("http://storage.example:{}/", self.port)
    }

    /// How often each address occurs.
    fn counts(&self, of: impl Fn(&(IpAddr, IpAddr)) -> IpAddr) -> BTreeMap<IpAddr, usize> {
        let mut counts = BTreeMap::new();
        for connection in self.seen.lock().unwrap().iter() {
            *counts.entry(of(connection)).or_default() += 1;
        }
        counts
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[tokio::test]
async fn connections_are_spread_evenly_over_all_addresses_of_a_host() {
    let addresses = [ip(12), ip(13), ip(14)];
    let servers = Servers::start(&addresses, 12).await;
    let transport = transport(&TransportOptions::default(), addresses.to_vec());
    let url = servers.url();
    let answers = join_all((0..12).map(|_| get(&transport, &url))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap() == 200));
    let expected: BTreeMap<_, _> = addresses.iter().map(|address| (*address, 4)).collect();
    assert_eq!(servers.counts(|(server, _)| *server), expected);
}

#[tokio::test]
async fn a_name_is_looked_up_again_for_a_new_connection() {
    let (one, other) = (Servers::start(&[ip(15)], 1).await, ip(16));
    let listener = TcpListener::bind((other, one.port)).await.unwrap();
    let moved = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        head_of(&mut stream).await;
        stream.write_all(OK).await.unwrap();
    });
    let answers = Mutex::new(vec![other, ip(15)]);
    let lookup: Lookup = Arc::new(move |_| {
        let answer = answers.lock().unwrap().pop().unwrap();
        async move { Ok(vec![answer]) }.boxed()
    });
    let transport = Transport::with_lookup(WAITS, &TransportOptions::default(), lookup).unwrap();
    for _ in 0..2 {
        assert_eq!(get(&transport, &one.url()).await.unwrap(), 200);
    }
    moved.await.unwrap();
}

#[tokio::test]
async fn a_refusing_address_costs_no_request() {
    let servers = Servers::start(&[ip(17)], 1).await;
    // Nothing listens at the first one.
    let transport = transport(&TransportOptions::default(), vec![ip(18), ip(17)]);
    for _ in 0..6 {
        assert_eq!(get(&transport, &servers.url()).await.unwrap(), 200);
    }
}

/// An address that takes no connection and refuses none: its queue is full.
async fn silent(address: IpAddr, port: u16) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address, port)).unwrap();
    let listener = socket.listen(0).unwrap();
    let mut queued = Vec::new();
    for _ in 0..8 {
        let connecting = TcpStream::connect((address, port));
        match tokio::time::timeout(Duration::from_millis(200), connecting).await {
            Ok(stream) => queued.push(stream.unwrap()),
            Err(_) => return (listener, queued),
        }
    }
    panic!("the queue never fills");
}

#[tokio::test]
async fn a_silent_address_delays_one_connection_and_then_is_tried_last() {
    let servers = Servers::start(&[ip(19)], 1).await;
    let _silent = silent(ip(20), servers.port).await;
    let transport = transport(&TransportOptions::default(), vec![ip(20), ip(19)]);
    let started = tokio::time::Instant::now();
    for _ in 0..60 {
        assert_eq!(get(&transport, &servers.url()).await.unwrap(), 200);
    }
    // Each request would wait for a time limit, or for the next address's turn.
    assert!(started.elapsed() < WAITS.connect, "{:?}", started.elapsed());
}

#[tokio::test]
async fn connections_come_from_the_chosen_addresses_in_turns() {
    let servers = Servers::start(&[ip(21)], 8).await;
    let source_addresses = ["127.0.0.22", "127.0.0.23", "::1"].map(|one| one.parse().unwrap());
    let options = TransportOptions {
        source_addresses: source_addresses.into(),
        ..TransportOptions::default()
    };
    let transport = transport(&options, vec![ip(21)]);
    let url = servers.url();
    let answers = join_all((0..8).map(|_| get(&transport, &url))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap() == 200));
    let expected = BTreeMap::from([(ip(22), 4), (ip(23), 4)]);
    assert_eq!(servers.counts(|(_, peer)| *peer), expected);
}

#[tokio::test]
async fn a_connection_without_tls_is_given_up_and_closed_before_an_answer_is_due() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", silent.local_addr().unwrap());
    let waits = TransportTimeouts { connect: Duration::from_millis(500), ..WAITS };
    let options = TransportOptions::default();
    let transport = Transport::with_lookup(waits, &options, system_lookup()).unwrap();
    let failure = get(&transport, &url).await.unwrap_err();
    assert!(failure.what.contains("TLS is not set up within 1.5 s"), "{failure:?}");
    let (mut taken, _) = silent.accept().await.unwrap();
    let mut hello = Vec::new();
    taken.read_to_end(&mut hello).await.unwrap();
    assert!(!hello.is_empty(), "the premise: TLS was begun");
}

/// A proxy that answers each request with these bytes, and nothing if there are none; and the heads
/// that it got.
async fn proxy(answer: &'static [u8]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let head = head_of(&mut stream).await;
                log.lock().unwrap().push(head);
                let _ = stream.write_all(answer).await;
                if answer.is_empty() {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (address, seen)
}

fn through(url: &str) -> TransportOptions {
    let proxies = ProxyRules::always(Proxy::parse(url, "TEST_PROXY").unwrap());
    TransportOptions { proxies, ..TransportOptions::default() }
}

#[tokio::test]
async fn a_plain_request_names_its_server_and_has_the_login() {
    let (address, seen) = proxy(OK).await;
    let options = through(&format!("http://me:hunter2@{address}"));
    let transport = transport(&options, Vec::new());
    assert_eq!(get(&transport, "http://storage.example:81/n/a?b=c").await.unwrap(), 200);
    let head = seen.lock().unwrap().remove(0);
    assert!(head.starts_with("GET http://storage.example:81/n/a?b=c HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("proxy-authorization: Basic bWU6aHVudGVyMg==\r\n"), "{head}");
}

#[tokio::test]
async fn an_exempt_server_is_reached_directly_and_without_the_login() {
    let (address, seen) = proxy(OK).await;
    let (server, direct) = proxy(OK).await;
    let variables = [
        ("http_proxy", format!("me:hunter2@{address}")),
        ("NO_PROXY", "storage.example".to_owned()),
    ];
    let get_variable = |name: &str| {
        variables.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_str())
    };
    let proxies = ProxyRules::of_variables(get_variable).unwrap();
    let options = TransportOptions { proxies, ..TransportOptions::default() };
    let port = server.rsplit_once(':').unwrap().1;
    let transport = transport(&options, vec![ip(1)]);
    assert_eq!(get(&transport, &format!("http://storage.example:{port}/x")).await.unwrap(), 200);
    assert!(seen.lock().unwrap().is_empty(), "the proxy was asked");
    let head = direct.lock().unwrap().remove(0);
    assert!(head.starts_with("GET /x HTTP/1.1\r\n") && !head.contains("proxy"), "{head}");
}

#[tokio::test]
async fn what_a_proxy_answers_to_a_tunnel_is_said_and_its_login_never() {
    let login = |was_sent| FailureReason::ProxyLogin { named_by: "TEST_PROXY".into(), was_sent };
    let refused = |status: u16| FailureReason::ProxyRefused {
        status: http::StatusCode::from_u16(status).unwrap(),
        server: "storage.example:443".into(),
    };
    let broken = || FailureReason::ProxyBroken { named_by: "TEST_PROXY".into() };
    for (answer, said, reason, is_lasting) in [
        (
            &b"HTTP/1.1 407 X\r\nproxy-authenticate: Basic realm=\"corp\"\r\n\r\n"[..],
            "answers 407 Proxy Authentication Required (Basic realm=\"corp\") to CONNECT \
             storage.example:443",
            login(true),
            true,
        ),
        (b"HTTP/1.1 403 X\r\n\r\n<html>", "answers 403 Forbidden", refused(403), true),
        (b"HTTP/1.1 302 X\r\nlocation: http://x/\r\n\r\n", "answers 302 Found", refused(302), true),
        (b"HTTP/1.1 502 X\r\n\r\n<html>", "answers 502 Bad Gateway", refused(502), false),
        (b"<html>", "broke off", broken(), false),
        (b"HTTP/1.1 200 X\r\n\r\nearly", "sends bytes of its own", broken(), false),
    ] {
        let (address, seen) = proxy(answer).await;
        let options = through(&format!("http://me:hunter2@{address}"));
        let transport = transport(&options, Vec::new());
        let failure = get(&transport, "https://storage.example/x").await.unwrap_err();
        let text = format!("{} {failure:?}", failure.what);
        assert!(text.contains(&format!("the proxy {address}")) && text.contains(said), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("bWU6"), "{text}");
        assert_eq!(failure.reason.as_ref(), Some(&reason), "{text}");
        assert_eq!(reason.is_lasting(), is_lasting, "{text}");
        let head = seen.lock().unwrap().remove(0);
        assert!(head.starts_with("CONNECT storage.example:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("proxy-authorization: Basic bWU6aHVudGVyMg==\r\n"), "{head}");
    }
}

#[tokio::test]
async fn a_tunnel_is_open_after_every_2xx_whatever_else_the_proxy_says() {
    for answer in [
        "HTTP/1.0 200 Connection established\r\nproxy-agent: old/1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 201 Tunnel\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = through(&listener.local_addr().unwrap().to_string());
        let transport = transport(&options, Vec::new());
        let tunnel = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            head_of(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.read_u8().await.unwrap_or_default()
        };
        // The proxy ends the tunnel after one byte, which is the type of a TLS handshake.
        let (first, failure) = tokio::join!(tunnel, get(&transport, "https://storage.example/x"));
        assert_eq!(first, 22, "{answer:?}: {failure:?}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_away_or_silent_is_named() {
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let transport_to = |url: &str| transport(&through(url), vec![ip(1)]);
    let failure = get(&transport_to(&format!("http://{away}")), "https://x/").await.unwrap_err();
    assert!(failure.what.contains(&format!("the proxy {away} cannot be reached")), "{failure:?}");
    let unreachable = FailureReason::ProxyUnreachable { named_by: "TEST_PROXY".into() };
    assert_eq!(failure.reason, Some(unreachable));
    tokio::time::pause();
    let (address, _) = proxy(b"").await;
    let failure = get(&transport_to(&format!("http://{address}")), "https://x/").await.unwrap_err();
    assert!(failure.what.contains("opens no tunnel in time"), "{failure:?}");
    assert_eq!(failure.reason, Some(FailureReason::ProxyBroken { named_by: "TEST_PROXY".into() }));
}
