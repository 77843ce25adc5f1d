//! Attacks of strangers on the port and the sockets of a driver.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use crate::support::driver::{Driver, memory_of};
use crate::support::models::{MIB, PHI3, store_with_phi3};
use crate::support::run::{end_to_end, eventually, figure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// More than the driver's descriptors in the attack that was seen.
const CLIENTS: u16 = 1050;

/// Longer than any connection to the metrics port lasts.
const RELEASED: Duration = Duration::from_secs(60);

/// A client with an address of its own: all of 127/8 is loopback.
async fn connect_from(client: u16, server: SocketAddr) -> io::Result<TcpStream> {
    let [high, low] = client.to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 200, high, low), 0)))?;
    socket.connect(server).await
}

/// Sends as much of `bytes` as the driver accepts in a while, and keeps the connection.
async fn send_and_keep(client: u16, server: SocketAddr, bytes: &[u8]) -> Option<TcpStream> {
    let mut stream = connect_from(client, server).await.ok()?;
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.write_all(bytes)).await;
    Some(stream)
}

/// All clients at once, each with its own address unless they share one.
async fn attack(
    clients: u16,
    address_of: fn(u16) -> u16,
    server: SocketAddr,
    bytes: &'static [u8],
) -> Vec<TcpStream> {
    let attackers: Vec<_> = (0..clients)
        .map(|client| tokio::spawn(send_and_keep(address_of(client), server, bytes)))
        .collect();
    let mut streams = Vec::new();
    for attacker in attackers {
        streams.extend(attacker.await.unwrap());
    }
    streams
}

/// The status of a GET, as a probe of kubelet would see it; `None` without an answer.
async fn probe(server: SocketAddr, path: &str) -> Option<u16> {
    let mut stream = connect_from(u16::MAX, server).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Raises the limit on descriptors of this process, and gives a driver 1,024 of them.
fn limit_descriptors(driver: &Driver) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let pid = driver.pid().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, "--nofile=1024:1024"]).status();
    assert!(limited.unwrap().success());
}

#[test]
fn unfinished_headers_take_no_memory_and_publishes_continue() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        limit_descriptors(&driver);
        let server = driver.metrics_address();
        let before = memory_of(driver.pid(), "VmHWM");
        let header = format!("GET /metrics HTTP/1.1\r\nX: {}", "a".repeat(397 << 10));
        let header: &'static [u8] = header.leak().as_bytes();
        let held = attack(CLIENTS, |client| client, server, header).await;
        driver.kubelet().inline("1", &PHI3).publish().await.unwrap();
        let grown = memory_of(driver.pid(), "VmHWM") - before;
        figure(format_args!(
            "{} connections with 397 KiB of unfinished header: peak memory {} KiB more",
            held.len(),
            grown >> 10
        ));
        assert!(grown < 24 * MIB, "{grown} bytes");
    });
}

#[test]
fn clients_that_never_read_leave_descriptors_for_publishes_and_are_closed() {
    end_to_end(async |scratch| {
        let store = store_with_phi3();
        let driver = Driver::start(scratch, &store).await;
        limit_descriptors(&driver);
        let (server, kubelet) = (driver.metrics_address(), driver.kubelet());
        let idle = descriptors(driver.pid());
        let requests = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(400);
        let requests: &'static [u8] = requests.leak().as_bytes();
        let held = attack(CLIENTS, |client| client, server, requests).await;
        assert!(held.len() >= 1000, "the premise: {} clients", held.len());
        let most = descriptors(driver.pid());
        for volume in 0..8 {
            kubelet.inline(&volume.to_string(), &PHI3).publish().await.unwrap();
        }
        figure(format_args!(
            "{} clients that never read: {idle} descriptors before, {most} meanwhile",
            held.len()
        ));
        assert!(most < idle + 100, "{idle} before, {most} meanwhile");
        // The clients do not close their connections.
        eventually("all descriptors are back", RELEASED, async || {
            (descriptors(driver.pid()) <= idle + 8).then_some(())
        })
        .await;
        assert_eq!(probe(server, "/readyz").await, Some(200));
        drop(held);
    });
}

#[test]
fn a_probe_is_answered_while_another_address_takes_all_that_it_can() {
    end_to_end(async |scratch| {
        let driver = Driver::start(scratch, &store_with_phi3()).await;
        let server = driver.metrics_address();
        let half = b"GET /metrics HTTP/1.1\r\nX: ";
        let held = attack(300, |_| 1, server, half).await;
        assert_eq!(probe(server, "/readyz").await, Some(200));
        assert_eq!(probe(server, "/metrics").await, Some(200));
        drop(held);
    });
}

#[test]
fn a_probe_is_answered_while_a_thousand_addresses_take_all_connections() {
    end_to_end(async |scratch| {
        let driver = Driver::start(scratch, &store_with_phi3()).await;
        limit_descriptors(&driver);
        let server = driver.metrics_address();
        let half = b"GET /metrics HTTP/1.1\r\nX: ";
        let held = attack(CLIENTS, |client| client, server, half).await;
        // One after the other, as a probe's failures are counted.
        for _ in 0..10 {
            assert_eq!(probe(server, "/readyz").await, Some(200));
        }
        drop(held);
    });
}

#[test]
fn the_limit_on_descriptors_is_raised_to_what_the_system_allows() {
    end_to_end(async |scratch| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
        let driver = Driver::start(scratch, &store_with_phi3()).await;
        let limits = fs::read_to_string(format!("/proc/{}/limits", driver.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
        assert!(hard > 256, "the premise");
        assert_eq!(numbers, [hard.to_string(), hard.to_string()], "{line}");
    });
}
