//! One connection at a time, on a paused clock.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use super::*;

/// Bytes that the kernel buffers between two ends that do not read.
const IN_TRANSIT: usize = 512;

fn admin() -> Admin {
    let readiness = Readiness::not_ready("nothing");
    readiness.ready();
    Admin {
        metrics: Arc::default(),
        readiness,
        history: CallHistory::default(),
        cache: None,
        manager: None,
    }
}

/// The client's end of a connection: from the network, or from the admin socket.
async fn connect(address: Option<&str>) -> DuplexStream {
    let limits = match address {
        Some(_) => ConnectionLimits::METRICS,
        None => ConnectionLimits::ADMIN,
    };
    let (client, server) = tokio::io::duplex(IN_TRANSIT);
    let address = address.map(|address| address.parse().unwrap());
    admin().connection(server, address, &Connections::new(limits)).await;
    client
}

/// Sends as much as is accepted, then reads to the end.
async fn answer(mut client: DuplexStream, request: &str) -> String {
    let _closed_early = client.write_all(request.as_bytes()).await;
    let mut text = String::new();
    let _closed = client.read_to_string(&mut text).await;
    text
}

#[tokio::test(start_paused = true)]
async fn a_request_over_the_network_is_answered_once_and_the_connection_ends() {
    let two = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2);
    let text = answer(connect(Some("10.0.0.1")).await, &two).await;
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 1, "{text}");
    assert!(text.to_lowercase().contains("connection: close"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_half_a_header_is_disconnected() {
    let started = Instant::now();
    let text = answer(connect(Some("10.0.0.1")).await, "GET /metrics HTTP/1.1\r\nX: ").await;
    assert_eq!(text, "");
    assert!(started.elapsed() <= Duration::from_secs(11), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_a_byte_now_and_then_is_disconnected() {
    let started = Instant::now();
    let mut client = connect(Some("10.0.0.1")).await;
    client.write_all(b"GET /metrics HTTP/1.1\r\nX: ").await.unwrap();
    while client.write_all(b"a").await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(60), "it is never disconnected");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(started.elapsed() <= Duration::from_secs(12), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_disconnected() {
    let mut client = connect(Some("10.0.0.1")).await;
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(16)).await;
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    assert_eq!(text.len(), IN_TRANSIT, "the rest was given up");
}

#[tokio::test(start_paused = true)]
async fn the_nodes_administrator_may_read_as_slowly_as_they_like() {
    let mut client = connect(None).await;
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let mut text = String::new();
    client.read_to_string(&mut text).await.unwrap();
    assert!(text.ends_with(&Metrics::default().to_plain_text()), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_header_that_is_too_long_or_has_too_many_fields_is_refused() {
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "a".repeat(397 << 10));
    let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: a\r\n".repeat(100));
    for address in [Some("10.0.0.1"), None] {
        for request in [&long, &many] {
            let text = answer(connect(address).await, request).await;
            assert!(text.starts_with("HTTP/1.1 431 "), "{address:?}: {text}");
        }
    }
}
